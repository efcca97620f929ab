"""Losses on the output of one decoder block: RMU and its retain side."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from expunge.models.outputs import TokenOutputs, upcast
from expunge.objectives.losses import Positive, loss

Block = Annotated[int, Ge(0)]
LAYER = 7


@loss(unit="token", reads={"activations", "control"}, positions="unshifted", predicts=False,
      average="rows")  # fmt: skip
def misdirect(out: TokenOutputs, *, layer: Block = LAYER, steering: Positive = 20.0) -> Tensor:
    """Mean squared distance of a block's output from a random direction, [B, T].

    RMU, arXiv:2403.03218, equation 1: `mean_d (h - s u)^2` with u one random unit vector for the
    whole run, averaged over the tokens of a row and then over rows.

    Args:
        out: The forget stream.
        layer: Decoder block whose output is steered, counted from 0; not the last one.
        steering: Length s of the control vector; 6.5 and 20 are common.
    """
    assert out.activations is not None, "misdirect reads activations"
    assert out.control is not None, "misdirect reads control"
    hidden = upcast(out.activations)
    return (hidden - steering * out.control.to(hidden)).square().mean(-1)


@loss(unit="token", reads={"activations", "ref_activations"}, positions="unshifted",
      predicts=False, average="rows")  # fmt: skip
def match_activations(out: TokenOutputs, *, layer: Block = LAYER) -> Tensor:
    """Mean squared distance of a block's output from the reference model's, [B, T]; 0 there.

    Retain side of RMU, arXiv:2403.03218, equation 2.

    Args:
        out: The retain stream.
        layer: Decoder block, the same as that of RMU.
    """
    assert out.activations is not None, "match_activations reads activations"
    assert out.ref_activations is not None, "match_activations reads ref_activations"
    return (upcast(out.activations) - upcast(out.ref_activations)).square().mean(-1)
