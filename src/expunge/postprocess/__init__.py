"""State dict in, state dict out."""

from expunge.postprocess.extrapolate import ExtrapolationOptions, extrapolate, update_norm

__all__ = ["ExtrapolationOptions", "extrapolate", "update_norm"]
