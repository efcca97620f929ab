"""What could not be said of a model, and why: gaps by reason, not one line per measure.

A gap is no result. Without a retain model there is no telling whether a model behaves like one that
never saw the forget set; a report that only left those numbers out would read as if nothing were
amiss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from expunge.core.results import ModelResults
from expunge.report.measures import metric_label, ordered, probe_label, split_key
from expunge.report.text import listing

# What an answer to is missing, by a part of the reason. The first one that fits is taken.
_QUESTIONS: Final = (
    ("no retain model", "Whether the model behaves like one that never saw the forget set"),
    ("retain model", "Whether the model behaves like one that never saw the forget set"),
    ("no holdout set", "Whether an attack can tell the forget set from unseen text"),
    ("holdout", "Whether an attack can tell the forget set from unseen text"),
    ("encoder", "Whether answers still say the same in other words"),
    ("NLI classifier", "Whether answers follow from the truth, or the truth from them"),
    ("entailment", "Whether answers follow from the truth, or the truth from them"),
    ("gibberish", "Whether a classifier takes the answers for language"),
    ("base model was evaluated", "What a model that knew nothing of these data would tell"),
    ("fluency", "Whether the answers are fluent to a model that was not changed"),
    ("gradient", "Whether an attack by gradients can tell the forget set"),
    ("lower-cased", "Whether an attack by lower-cased text can tell the forget set"),
    ("wrong answers", "Whether right answers are preferred to wrong ones"),
    ("nothing was generated", "What the model says"),
    ("not part of the evaluation", "Anything about a set that was not asked about"),
    ("could be scored", "Anything that these samples hold no answer to"),
)
_ANYTHING_ELSE: Final = "What these measures would show"

# How aggregates and measures put a reason: "needs forget/a, retain/a: not measurable on X: WHY".
_NEEDS: Final = re.compile(r"(?:^|; )needs [^:;]+: ")
_PLACE: Final = re.compile(r"not measurable on [^:]+: ")
_NOT_RUN: Final = re.compile(r"the \w+ probe was not run")


@dataclass(frozen=True, kw_only=True)
class NotAssessable:
    """One reason and everything it kept from being measured.

    Attributes:
        question: What could not be said.
        reason: Why, as a clause.
        keys: Keys of the scores without a value.
        roles: The models it is so for; empty for a single one, or where it is so for all.
    """

    question: str
    reason: str
    keys: tuple[str, ...]
    roles: tuple[str, ...] = ()

    @property
    def measures(self) -> str:
        """The measures by name, those of several sets once: "Cosine similarity (forget set)"."""
        probes: dict[str, list[str]] = {}
        for key in ordered(self.keys):
            probe, name = split_key(key)
            probes.setdefault(metric_label(name), []).append(probe)
        return "; ".join(_with_sets(label, found) for label, found in probes.items())

    def __str__(self) -> str:
        """Question, reason and measures in one sentence."""
        where = f" (of {listing(self.roles)})" if self.roles else ""
        return f"{self.question}{where}: {self.reason}. Missing: {self.measures}."


def not_assessable(results: ModelResults) -> tuple[NotAssessable, ...]:
    """What could not be said of one model, grouped by the reason behind it."""
    return not_assessable_of({results.role: results})


def not_assessable_of(results: Mapping[str, ModelResults]) -> tuple[NotAssessable, ...]:
    """What could not be said of several models; a reason that holds for all of them stands once.

    Args:
        results: By role.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for role, each in results.items():
        for key, score in each.scores.items():
            if score.value is None:
                for reason in root_causes(score.reason or "no reason was recorded"):
                    found.setdefault(reason, {}).setdefault(key, []).append(role)
    return tuple(_gaps(found, len(results)))


def root_causes(reason: str) -> tuple[str, ...]:
    """What lies behind a reason: an aggregate that needs two absent measures has their two."""
    parts = _NEEDS.split(reason.rstrip("."))
    causes = [
        _NOT_RUN.sub("the set was not part of the evaluation", _PLACE.sub("", part)).rstrip(".")
        for part in parts
        if part
    ]
    return tuple(dict.fromkeys(causes)) or (reason,)


def _gaps(found: Mapping[str, Mapping[str, list[str]]], models: int) -> Iterator[NotAssessable]:
    for reason, keys in found.items():
        by_roles: dict[tuple[str, ...], list[str]] = {}
        for key, having in keys.items():
            roles = () if len(having) == models else tuple(having)
            by_roles.setdefault(roles, []).append(key)
        for roles, same in by_roles.items():
            yield NotAssessable(
                question=_question(reason), reason=reason, keys=tuple(same), roles=roles
            )


def _question(reason: str) -> str:
    return next((text for part, text in _QUESTIONS if part in reason), _ANYTHING_ELSE)


def _with_sets(label: str, probes: Iterable[str]) -> str:
    sets = [probe_label(probe).lower() for probe in probes if probe]
    return f"{label} ({listing(sets)})" if sets else label
