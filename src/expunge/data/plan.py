"""Which rows meet at which optimizer step: a pure function of seed and step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import Problems, did_you_mean

Pairing = Literal["shuffled", "random", "fixed_by_index", "modulo"]
"""How a retain row is chosen for a forget row; see `StreamPlan`."""

NONE = -1
"""Retain or template index where there is no retain set or no template."""

# Independent random streams of one seed. The numbers are part of what a seed means; none is reused.
_FORGET, _RETAIN, _DRAW, _FIXED_RETAIN, _TEMPLATE, _FIXED_TEMPLATE = range(6)


class Pick(NamedTuple):
    """The rows of one place in a batch: positions in the streams, -1 where there is none."""

    forget: int
    retain: int
    template: int


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The order of training, without state and without touching any global random generator.

    Every epoch visits each forget row once; the last batch of an epoch may be short. Retain pairing
    (register C-01 of the differences between published codes):

    - `shuffled` (default): permutations of the retain set are used up one after the other, across
      epochs, so that each retain row is seen before any is seen again.
    - `random`: a fresh draw for each access (TOFU, open-unlearning); rows repeat, some never come.
    - `fixed_by_index`: a draw made once for each forget row, so that it meets the same retain row,
      and the same template, in every epoch (NPO, closer-look; they draw by other generators).
    - `modulo`: forget row i meets retain row i mod `num_retain` (MUSE).

    Attributes:
        num_forget: Rows to forget.
        num_retain: Rows to retain, 0 without a retain set.
        num_templates: Rejection templates, 0 without any. The template is drawn anew for each
            access (except for `fixed_by_index`), one for both rows of a pick.
        batch_size: Forget rows of an optimizer step.
        seed: Seed of everything.
        pairing: How retain rows are chosen.
        shuffle: Forget rows come in a new random order each epoch, else as they are.

    Raises:
        InputError: A number is out of range or the pairing is unknown.
    """

    num_forget: int
    num_retain: int = 0
    num_templates: int = 0
    batch_size: int
    seed: int = 0
    pairing: Pairing = "shuffled"
    shuffle: bool = True

    def __post_init__(self) -> None:
        problems = Problems()
        for name, least in (("num_forget", 1), ("num_retain", 0), ("num_templates", 0)):
            if getattr(self, name) < least:
                problems.add(name, f"is {getattr(self, name)}; must be at least {least}")
        if self.batch_size < 1:
            problems.add("batch_size", f"is {self.batch_size}; must be at least 1")
        if self.seed < 0:
            problems.add("seed", f"is {self.seed}; must be 0 or more")
        if self.pairing not in get_args(Pairing):
            options = did_you_mean(str(self.pairing), get_args(Pairing))
            problems.add("pairing", f"is {self.pairing!r}. {options}")
        problems.raise_if_any()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that visit every forget row once."""
        return -(-self.num_forget // self.batch_size)

    def step(self, global_step: int) -> list[Pick]:
        """The rows of an optimizer step, counted from 0 over all epochs."""
        epoch, place = divmod(global_step, self.steps_per_epoch)
        start = place * self.batch_size
        stop = min(start + self.batch_size, self.num_forget)
        return [self._pick(epoch, position) for position in range(start, stop)]

    def _pick(self, epoch: int, position: int) -> Pick:
        forget = position
        if self.shuffle:
            forget = int(_permutation(self.seed, _FORGET, epoch, self.num_forget)[position])
        retain = self._retain(epoch, position, forget) if self.num_retain else NONE
        template = self._template(epoch, position, forget) if self.num_templates else NONE
        return Pick(forget, retain, template)

    def _retain(self, epoch: int, position: int, forget: int) -> int:
        if self.pairing == "modulo":
            return forget % self.num_retain
        if self.pairing == "fixed_by_index":
            return self._draw(_FIXED_RETAIN, 0, forget, self.num_retain)
        if self.pairing == "random":
            return self._draw(_DRAW, epoch, position, self.num_retain)
        lap, place = divmod(epoch * self.num_forget + position, self.num_retain)
        return int(_permutation(self.seed, _RETAIN, lap, self.num_retain)[place])

    def _template(self, epoch: int, position: int, forget: int) -> int:
        if self.pairing == "fixed_by_index":
            return self._draw(_FIXED_TEMPLATE, 0, forget, self.num_templates)
        return self._draw(_TEMPLATE, epoch, position, self.num_templates)

    def _draw(self, purpose: int, epoch: int, place: int, options: int) -> int:
        return int(_draws(self.seed, purpose, epoch, options, self.num_forget)[place])


def _raw(seed: int, purpose: int, lap: int, n: int) -> NDArray[np.uint64]:
    """`n` random 64-bit numbers.

    Philox and SeedSequence keep their output between numpy versions; what the methods of a
    Generator make of it may change, so they are not used.
    """
    source = np.random.Philox(np.random.SeedSequence([seed, purpose, lap]))
    return np.asarray(source.random_raw(n), dtype=np.uint64)


@lru_cache(maxsize=32)
def _permutation(seed: int, purpose: int, lap: int, n: int) -> NDArray[np.int64]:
    """Numbers 0 to n - 1 in random order: the ranks of raw draws, the same in every version."""
    order = np.argsort(_raw(seed, purpose, lap, n), kind="stable")
    order.setflags(write=False)
    return order


@lru_cache(maxsize=32)
def _draws(seed: int, purpose: int, epoch: int, options: int, n: int) -> NDArray[np.int64]:
    """`n` numbers from 0 to options - 1. The bias of the remainder is below options / 2^64."""
    draws = (_raw(seed, purpose, epoch, n) % np.uint64(options)).astype(np.int64)
    draws.setflags(write=False)
    return draws
