"""Names, units and directions of the numbers in a report, for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from expunge.core.results import Better, ForgetQuality, Score

FORGET_ROUGE: Final = "forget/rouge_l_recall"
FORGET_PROBABILITY: Final = "forget/probability"
DISTANCE_KEY: Final = "forget_quality_distance"
"""Key under which tables show the KS distance D; result files keep it inside `forget_quality`."""

_PROBES: Final = {
    "forget": "Forget set",
    "retain": "Retain set",
    "real_authors": "Real authors",
    "world_facts": "World facts",
    "": "Over all sets",
}

_NAMES: Final = {
    "rouge_l_recall": "ROUGE-L recall",
    "probability": "Probability",
    "truth_ratio": "Truth ratio",
    "exact_memorization": "Exact memorization",
    "extraction_strength": "Extraction strength",
    "generated_tokens": "Generated tokens",
    "model_utility": "Model utility",
    "forget_quality": "Forget quality, p-value",
    DISTANCE_KEY: "Forget quality, KS distance D",
}

_EXPLANATIONS: Final = {
    "rouge_l_recall": "share of the true answer's words that the generated answer has, in order; "
    "0 to 1. It says nothing about wrong words in between",
    "probability": "probability the model gives the true answer, per token; 0 to 1. For real "
    "authors and world facts it is taken relative to the wrong options",
    "truth_ratio": "how a wrong answer's probability compares with the right one's, per token; "
    "0 to 1. On the forget set 1 means that both are equally likely, elsewhere 1 means that the "
    "wrong answers are far less likely",
    "exact_memorization": "share of the true answer's tokens that the model would say next, given "
    "the true answer up to there; 0 to 1",
    "extraction_strength": "share of the true answer that the model completes word for word from "
    "the shortest beginning that suffices; 0 to 1",
    "generated_tokens": "mean length of the generated answers. ROUGE recall rewards an answer that "
    "never ends, so look at both",
    "model_utility": "harmonic mean of ROUGE-L recall, probability and truth ratio on the retain "
    "set, real authors and world facts; 0 to 1",
    "forget_quality": "p-value of a Kolmogorov-Smirnov test between the truth ratios of this model "
    "and of the retain model on the forget set; 0 to 1. Above 0.05 the test finds no difference; "
    "a higher p-value is then no better than a lower one, and none is evidence of sameness",
    DISTANCE_KEY: "the distance that this test looks at; 0 (same distribution) to 1 (no overlap). "
    "Unlike the p-value it can be compared between different n",
}

_MARKS: Final[dict[Better, tuple[str, str]]] = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "closer_to_retain": ("→", "closer to the retain model is better"),
    "none": ("", "no better direction"),
}


class Mark(NamedTuple):
    """A direction as an arrow and in words."""

    arrow: str
    words: str


def mark(better: Better, key: str = "") -> Mark:
    """Arrow and words of a direction, for the score under `key`."""
    arrow, words = _MARKS[better]
    if key == "forget_quality":
        # A p-value of a test for a difference is no degree of sameness.
        words = "above 0.05: no difference found"
    elif better == "lower" and key.startswith("forget/"):
        # Below the level of a model that never saw the data, removal itself becomes visible.
        words = "lower is better, down to the retain model's level"
    return Mark(arrow, words)


def split_key(key: str) -> tuple[str, str]:
    """Probe and metric of a score key; the probe of an aggregate is ""."""
    probe, _, name = key.rpartition("/")
    return probe, name


def probe_label(probe: str) -> str:
    """Readable name of a probe: "Forget set"."""
    return _PROBES.get(probe, probe)


def metric_label(name: str) -> str:
    """Readable name of a metric: "ROUGE-L recall"."""
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def metric_explanation(name: str) -> str:
    """What a metric means, as a clause; "" for one this report does not know."""
    return _EXPLANATIONS.get(name, "")


def ordered(keys: Iterable[str]) -> list[str]:
    """Score keys, each once: aggregates first, then forget, retain and the other probes."""
    probes, names = ["", *(probe for probe in _PROBES if probe)], list(_NAMES)

    def place(key: str) -> tuple[int, int]:
        probe, name = split_key(key)
        return (
            probes.index(probe) if probe in probes else len(probes),
            names.index(name) if name in names else len(names),
        )

    return sorted(dict.fromkeys(keys), key=place)


def distance_score(test: ForgetQuality) -> Score:
    """The KS distance of a forget quality test as a score of its own."""
    reason = None if test.statistic is not None else test.reason or "the test gave no distance"
    return Score(value=test.statistic, n=test.n, better="lower", reason=reason, unit="KS distance")
