"""Useful floating-point operations of a training step: what any implementation has to do.

Padding, logits of tokens that are no answers, attention to later tokens, recomputed activations,
a reference pass that a table replaces: all of that is work, but none of it is useful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIGA = 1e9


class Row(Protocol):
    """A tokenised row."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Its tokens."""

    @property
    def num_labels(self) -> int:
        """Tokens of the answer."""


class Linear(NamedTuple):
    """A linear layer and how many of this shape the decoder has."""

    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides how much a step computes.

    Attributes:
        linears: Linear layers of all decoder blocks, without the head.
        blocks: Decoder blocks.
        attention_width: Query heads times their width.
        hidden: Width of the hidden states.
        vocabulary: Tokens the head tells apart.
    """

    linears: tuple[Linear, ...]
    blocks: int
    attention_width: int
    hidden: int
    vocabulary: int

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks."""
        return sum(one.inputs * one.outputs * one.count for one in self.linears)


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a plain decoder, without an adapter."""
    config = model.config
    head = model.get_output_embeddings()
    sizes = Counter(
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linears=tuple(Linear(*size, count) for size, count in sizes.items()),
        blocks=config.num_hidden_layers,
        attention_width=config.num_attention_heads * width,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
    )


def step_flops(
    shape: Shape,
    trained: Sequence[Row],
    *,
    forward_only: Sequence[Row] = (),
    moves_weights: bool = True,
) -> float:
    """Useful operations of a step, a multiplication and an addition being two.

    Per parameter and token: 2 forward, 2 for the gradient of the input, 2 for that of the weight.
    The attention has no weights: its backward pass is twice its forward pass in any case.

    Args:
        shape: The model.
        trained: Rows with a gradient.
        forward_only: Rows that are only looked at.
        moves_weights: Whether the weights get a gradient; with an adapter they do not, and the few
            operations of the adapter itself are left out.
    """
    with_gradient = 6 if moves_weights else 4
    return _flops(shape, trained, linear=with_gradient, attention=6) + _flops(
        shape, forward_only, linear=2, attention=2
    )


def _flops(shape: Shape, rows: Sequence[Row], *, linear: int, attention: int) -> float:
    tokens = sum(len(row.input_ids) for row in rows)
    answers = sum(row.num_labels for row in rows)
    # Each token looks at itself and the tokens before it, once for the scores, once for the values.
    looks = sum(len(row.input_ids) * (len(row.input_ids) + 1) // 2 for row in rows)
    return (
        float(linear * shape.linear_parameters * tokens)
        + float(attention * 2 * shape.attention_width * shape.blocks * looks)
        + float(linear * shape.hidden * shape.vocabulary * answers)
    )
