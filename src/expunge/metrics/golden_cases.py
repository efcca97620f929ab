"""What checks of golden numbers have in common: outcomes, tolerances, stored logits as tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from expunge.metrics.registry import Values

RELATIVE = 1e-9
ABSOLUTE = 1e-12  # for values that are 0 or nearly so
NOT_SUPPORTED = "not supported: "


class GoldenCase(NamedTuple):
    """Outcome of one case.

    Attributes:
        name: Group, function and what else tells the case apart.
        outcome: None when it agrees; else the difference, or "not supported: " and why.
    """

    name: str
    outcome: str | None

    @property
    def supported(self) -> bool:
        """The case could be checked."""
        return self.outcome is None or not self.outcome.startswith(NOT_SUPPORTED)


class Tolerance(NamedTuple):
    """Relative differences that are let pass, for all values and for membership scores."""

    values: float
    attacks: float

    def agree(self, found: Iterable[Any], expected: Iterable[Any], **options: float) -> str | None:
        """None if all values agree, else the worst difference."""
        return difference(found, expected, **{"relative": self.values, **options})


def tolerance_of(header: Mapping[str, Any]) -> Tolerance:
    """Smallest and largest number in the header's `suggested_tolerance`, if it has one.

    The largest is for membership scores, some of which went through float32.
    """
    stated = re.findall(r"\d+(?:\.\d+)?e-\d+", str(header.get("suggested_tolerance", "")))
    numbers = [float(number) for number in stated] or [RELATIVE]
    return Tolerance(min(numbers), max(numbers))


def difference(
    found: Iterable[Any],
    expected: Iterable[Any],
    *,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> str | None:
    """None if all numbers agree, else the worst of them. None stands for a missing number."""
    ours = np.array([np.nan if x is None else x for x in found], dtype=np.float64)
    theirs = np.array([np.nan if x is None else x for x in expected], dtype=np.float64)
    if ours.shape != theirs.shape:
        return f"{len(ours)} values should be {len(theirs)}"
    if not ours.size:
        return None
    with np.errstate(invalid="ignore"):
        excess = np.abs(ours - theirs) - (relative * np.abs(theirs) + absolute)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    excess = np.where(same, -np.inf, np.where(np.isnan(excess), np.inf, excess))
    worst = int(excess.argmax())
    if excess[worst] <= 0:
        return None
    return f"value {worst} is {float(ours[worst])!r}, should be {float(theirs[worst])!r}"


def unchecked(values: Mapping[str, Any], known: Collection[str]) -> Iterator[GoldenCase]:
    """A case for every stored number that no check looks at, so that none is passed over."""
    for key, value in values.items():
        if key not in known and has_numbers(value):
            yield GoldenCase(key, NOT_SUPPORTED + "no check knows this value")


def has_numbers(value: Any) -> bool:
    """Whether there is a number in some JSON; true and false are none."""
    if isinstance(value, Mapping):
        return any(map(has_numbers, value.values()))
    if isinstance(value, list):
        return any(map(has_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


class Tokens(NamedTuple):
    """What a teacher-forced pass stores of some sequences."""

    logps: list[Values]
    greedy: list[Any]
    means: list[Values]
    variances: list[Values]


def tokens_of(rows: Mapping[str, Any], logits_key: str = "logits") -> Tokens:
    """Log-probabilities of the labelled tokens and what goes with them, from full logits.

    Args:
        rows: `labels`, [B, T], and logits, [B, T, V]; those at t predict the label at t + 1.
        logits_key: Which logits.
    """
    found = Tokens([], [], [], [])
    for logits, labels in zip(rows[logits_key], rows["labels"], strict=True):
        scores = np.asarray(logits, dtype=np.float64)
        scores = scores - scores.max(-1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        places = [t for t in range(1, len(labels)) if labels[t] != -100]
        at = log_p[[t - 1 for t in places]]
        tokens = np.array([labels[t] for t in places], dtype=int)
        mean = (np.exp(at) * at).sum(-1)
        found.logps.append(at[np.arange(len(tokens)), tokens])
        found.greedy.append(at.argmax(-1) == tokens)
        found.means.append(mean)
        found.variances.append((np.exp(at) * at**2).sum(-1) - mean**2)
    return found


def as_logps(nlls: Iterable[float]) -> list[list[float]]:
    """Stored mean losses as log-probabilities of answers of one token, which have that mean."""
    return [[-float(nll)] for nll in nlls]
