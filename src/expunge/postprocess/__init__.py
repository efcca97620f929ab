"""State dict in, state dict out."""

from expunge.postprocess.extrapolate import ExtrapolationOptions, extrapolate, update_norm
from expunge.postprocess.task_vector import TaskVectorOptions, negate

__all__ = ["ExtrapolationOptions", "TaskVectorOptions", "extrapolate", "negate", "update_norm"]
