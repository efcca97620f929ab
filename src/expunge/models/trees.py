"""Texts that begin alike, in one forward pass in which every shared beginning is computed once.

The answers to one prompt make a tree: the prompt is the stem, and answers part where their tokens
differ. What all prompts begin with, such as a system message, is the trunk of all trees. A pass
takes a whole forest of trees in one row without padding, and every token attends to the tokens on
its own way to the root. What a model supports is found out by trying.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.models.attention import attending
from expunge.models.head import innermost

logger = logging.getLogger(__name__)

ATTENTION = "expunge_trees"
"""Name under which transformers knows the attention inside trees."""


class Tree(NamedTuple):
    """Token sequences with a common beginning, every token once.

    Attributes:
        tokens: Token ids, the stem first, every token after the one it follows.
        parents: For each the place of the token that it follows; -1 for the first.
        depths: For each the number of tokens before it.
        paths: For each answer and each of its tokens, the place that predicts it.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    paths: list[list[int]]


def grow(stem: Sequence[int], answers: Sequence[Sequence[int]] = ()) -> Tree:
    """The tree of a prompt and the answers to it.

    The last token of an answer predicts nothing and is left out, unless another answer goes on.

    Args:
        stem: Token ids of the prompt; not empty.
        answers: Token ids of each answer.
    """
    tokens = list(stem)
    parents, depths = list(range(-1, len(tokens) - 1)), list(range(len(tokens)))
    children: dict[tuple[int, int], int] = {}
    paths = []
    for answer in answers:
        path, place = [], len(stem) - 1
        for number, token in enumerate(answer):
            path.append(place)
            if number == len(answer) - 1:
                break
            follower = children.get((place, token))
            if follower is None:
                follower = children[place, token] = len(tokens)
                tokens.append(token)
                parents.append(place)
                depths.append(depths[place] + 1)
            place = follower
        paths.append(path)
    return Tree(tokens, parents, depths, paths)


def shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; at least the last one of each is its own."""
    ordered = sorted(tuple(prompt) for prompt in prompts)
    first, last = ordered[0], ordered[-1]  # all others lie between them
    shared = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        shared += 1
    return min(shared, min(len(prompt) for prompt in prompts) - 1)


Keep = Callable[[int, Tensor, Tensor], None]
"""Gets number, keys and values of every attention layer, [1, key heads, N, d] each."""


@dataclass(kw_only=True)
class Forest:
    """Trees in one row: the trunk, then tree after tree without the trunk.

    Attributes:
        ids: Token ids, [1, N].
        positions: Number of tokens before each, [1, N].
        trunk: Tokens of the trunk.
        offsets: Where each tree starts in the row.
        blocks: Parts of the row that attend together: first and last place, and which of the trunk
            and of these places each place sees, bool, [S, trunk + S].
        keep: Takes the keys and values of every layer, if anybody wants them.
    """

    ids: Tensor
    positions: Tensor
    trunk: int
    offsets: list[int]
    blocks: list[tuple[int, int, Tensor]]
    keep: Keep | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.positions.max()) + 1

    def place(self, tree: int, place: int) -> int:
        """Where a place of a tree, counted with the trunk, is in the row."""
        return place if place < self.trunk else self.offsets[tree] + place - self.trunk

    def masks(self, dtype: torch.dtype) -> list[tuple[int, int, Tensor]]:
        """The blocks with what to add to scores, [1, 1, S, trunk + S]; made once per type."""
        made = self._masks.get(dtype)
        if made is None:
            made = [
                (start, stop, torch.zeros(seen.shape, dtype=dtype, device=seen.device))
                for start, stop, seen in self.blocks
            ]
            for (_, _, seen), (_, _, mask) in zip(self.blocks, made, strict=True):
                mask.masked_fill_(~seen, -torch.inf)
            self._masks[dtype] = made
        return [(start, stop, mask[None, None]) for start, stop, mask in made]

    def __post_init__(self) -> None:
        self._masks: dict[torch.dtype, list[tuple[int, int, Tensor]]] = {}


def plant(
    trees: Sequence[Tree],
    *,
    trunk: int = 0,
    device: torch.device | None = None,
    together: bool = False,
) -> Forest:
    """Put trees into one row.

    Args:
        trees: All of them start with the same `trunk` tokens and have one more at least.
        trunk: Tokens of the trunk.
        device: Where the row is wanted.
        together: One attention over the whole row with a mask, as suits an accelerator; else one
            per tree, which does less work.
    """
    ids, depths = list(trees[0].tokens[:trunk]), list(range(trunk))
    offsets = []
    for tree in trees:
        offsets.append(len(ids))
        ids += tree.tokens[trunk:]
        depths += tree.depths[trunk:]
    blocks = [(0, trunk, torch.ones(trunk, trunk, dtype=torch.bool).tril())] if trunk else []
    for tree, start in zip(trees, offsets, strict=True):
        blocks.append((start, start + len(tree.tokens) - trunk, _seen(tree, trunk)))
    if together:
        blocks = [_joined(blocks, trunk, len(ids))]
    return Forest(
        ids=torch.tensor([ids], device=device),
        positions=torch.tensor([depths], device=device),
        trunk=trunk,
        offsets=offsets,
        blocks=[(start, stop, seen.to(device)) for start, stop, seen in blocks],
    )


def _seen(tree: Tree, trunk: int) -> Tensor:
    """What each place beyond the trunk sees: its ancestors and itself, bool, [S, trunk + S]."""
    seen = torch.zeros(len(tree.tokens), len(tree.tokens), dtype=torch.bool).numpy()
    for place, parent in enumerate(tree.parents):
        if parent >= 0:
            seen[place] = seen[parent]
        seen[place, place] = True
    return torch.from_numpy(seen)[trunk:]


def _joined(
    blocks: list[tuple[int, int, Tensor]], trunk: int, size: int
) -> tuple[int, int, Tensor]:
    whole = torch.zeros(size, size, dtype=torch.bool)
    for start, stop, seen in blocks:
        own = stop - start
        whole[start:stop, start:stop] = seen[:, -own:]
        if start >= trunk:
            whole[start:stop, :trunk] = seen[:, :trunk]
    return 0, size, whole


# The attention ------------------------------------------------------------------------------------

_FOREST: contextvars.ContextVar[Forest | None] = contextvars.ContextVar("forest", default=None)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside the trees of the forest that the pass is over.

    Signature and shapes are those of transformers' attention functions.

    Args:
        module: The attention layer.
        query: [1, heads, N, d].
        key: [1, key heads, N, d].
        value: [1, key heads, N, d].
        attention_mask: Not used; the forest says who sees whom.
        dropout: 0 in evaluation.
        scaling: Factor of the scores.
        **kwargs: What a model passes along.

    Returns:
        [1, N, heads, d] and no weights.

    Raises:
        ValueError: The layer asks for something that trees do not support.
    """
    forest = _FOREST.get()
    odd = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if forest is None or odd or dropout:
        raise ValueError(f"attention inside trees does not know {odd or 'padded rows or dropout'}")
    if forest.keep is not None:
        forest.keep(int(module.layer_idx), key, value)  # type: ignore[arg-type]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    trunk = forest.trunk
    parts = []
    for start, stop, mask in forest.masks(query.dtype):
        before = trunk if start >= trunk else 0
        keys, values = (
            whole[:, :, start:stop]
            if not before
            else torch.cat([whole[:, :, :before], whole[:, :, start:stop]], dim=2)
            for whole in (key, value)
        )
        found = F.scaled_dot_product_attention(
            query[:, :, start:stop], keys, values, attn_mask=mask, scale=scaling
        )
        parts.append(found.transpose(1, 2))
    return torch.cat(parts, dim=1), None


@contextlib.contextmanager
def walking(model: nn.Module, forest: Forest) -> Iterator[dict[str, Any]]:
    """Forward passes inside are over a forest; gives their arguments.

    Args:
        model: A model of transformers, possibly wrapped.
        forest: What the pass is over.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, tree_attention)  # no mask function: there is no mask
    token = _FOREST.set(forest)
    try:
        with attending(model, ATTENTION):
            yield {
                "input_ids": forest.ids,
                "position_ids": forest.positions,
                "use_cache": False,
            }
    finally:
        _FOREST.reset(token)


# What a model supports ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TreeSupport:
    """Whether a model takes trees, and how.

    Attributes:
        works: It does, and gives its own numbers.
        longest: Longest text; more than that a window would cut. None: any.
        together: One attention over the whole row.
    """

    works: bool = False
    longest: int | None = None
    together: bool = False

    def fits(self, longest: int) -> bool:
        """Whether texts of up to `longest` tokens may be trees."""
        return self.works and (self.longest is None or longest <= self.longest)


@torch.no_grad()
def tree_support(model: nn.Module) -> TreeSupport:
    """Try a few tokens both ways.

    Args:
        model: A causal language model in evaluation mode.
    """
    inner: Any = innermost(model)
    config = getattr(inner, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not getattr(inner, "_supports_attention_backend", False) or not kinds <= {
        "full_attention",
        "sliding_attention",
    }:
        return TreeSupport()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    device = next(inner.parameters()).device
    together = device.type != "cpu"
    return TreeSupport(
        works=_same(model, device, together),
        longest=min((size for size in sizes if size), default=None),
        together=together,
    )


def _same(model: Any, device: torch.device, together: bool) -> bool:
    size = int(model.config.get_text_config().vocab_size)
    texts = [[1, 5, 9, 2, 6], [1, 5, 9, 7, 3, 8, 4], [1, 5, 4, 2, 8, 9]]
    one, two, three = ([token * 11 % size for token in text] for text in texts)
    # The first two part after three tokens, and the third shares two with them: trunk and tree.
    forest = plant(
        [grow(one[:3], [[*one[3:], 0], [*two[3:], 0]]), grow(three)],
        trunk=2,
        device=device,
        together=together,
    )
    rows = [0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7, 8], [0, 1, 9, 10, 11, 12]
    try:
        with walking(model, forest) as arguments:
            logits = model(**arguments).logits[0]
        for text, places in zip((one, two, three), rows, strict=True):
            ids = torch.tensor([text], device=device)
            own = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            found = logits[list(places)].float().log_softmax(-1)
            if not torch.allclose(found, own, rtol=0, atol=_tolerance(model)):
                logger.info("this model gives other numbers for trees; rows are padded")
                return False
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        logger.info("this model does not take trees: %s", error)
        return False
    return True


def _tolerance(model: nn.Module) -> float:
    """Most that rounding does to log-probabilities; a wrong mask does far more."""
    parameter = next(model.parameters())
    fine = parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64)
    return 1e-3 if fine else 0.15
