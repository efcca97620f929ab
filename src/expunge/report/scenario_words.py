"""A scenario in sentences, by fixed rules: what came back, and what happened to the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from expunge.core.results import Score
from expunge.report.differences import RunContrast
from expunge.report.forget_quality import quality_lines
from expunge.report.measures import column_label, metric_label
from expunge.report.scenario_changes import Change, Changes, Place, in_words
from expunge.report.scenario_values import (
    ARM_MEASURES,
    FORGET_PROBES,
    MAIN_MEASURES,
    Matrix,
    RequestRow,
    Scenario,
    StageReport,
    changing_sets,
)
from expunge.report.text import count, listing, number, one_line

UTILITIES: Final = (
    "model_utility",
    "model_utility_cl",
    "unrelated_utility",
    "knowmem_retain/rouge_l_f1",
    "retain/probability",
    "retain/rouge_l_recall",
)
"""What should stay, for sentences; of those that were measured the first."""

BY_CHANCE: Final = (
    "Each comparison has a 95% interval: of values that did not move at all about one in twenty is "
    "called higher or lower by chance. Not distinguishable is no evidence that nothing came back."
)


@dataclass(frozen=True, kw_only=True)
class Return:
    """What one measure of one request did since its own unlearning.

    Attributes:
        matrix: The measure.
        row: The request.
        at: Position of the later request after which it was measured.
        score: The value then.
        change: That value compared with the one right after the request.
    """

    matrix: Matrix
    row: RequestRow
    at: int
    score: Score
    change: Change

    @property
    def verdict(self) -> str:
        """The conclusion in a word or two: "came back"."""
        return in_words(self.change.verdict, self.matrix.better)


def returns(scenario: Scenario, found: Sequence[Matrix], changes: Changes) -> list[Return]:
    """Every later value of the main measures, compared with the one right after the request."""
    if not scenario.is_continual:
        return []
    return [
        Return(
            matrix=matrix,
            row=row,
            at=t,
            score=score,
            change=changes.of_request(row, matrix.name, t),
        )
        for matrix in found
        if matrix.name in MAIN_MEASURES
        for row in matrix.rows
        for t, score in row.later
    ]


def latest(found: Sequence[Return]) -> list[Return]:
    """Of every measure and request the last comparison."""
    last = {(each.matrix.name, each.row.stage.position): each for each in found}
    return list(last.values())


def summary(scenario: Scenario, found: Sequence[Return]) -> str:
    """The scenario in two or three sentences."""
    num, done = len(scenario.stages), len(scenario.finished)
    if scenario.record.kind == "arms":
        return f"{count(num, 'arm')} side by side, {done} of them finished."
    how = "one after the other" if scenario.is_continual else "each from the target model"
    text = f"{count(num, 'forget request')}, {how}, {done} of them finished."
    last = latest(found)
    if not last:
        return text
    name = last[0].matrix.name
    groups: dict[str, list[str]] = {}
    for each in last:
        if each.matrix.name == name:
            groups.setdefault(each.verdict, []).append(each.row.stage.label)
    said = "; ".join(f"{verdict}: {listing(labels)}" for verdict, labels in groups.items())
    return f"{text} {metric_label(name)} after the last one: {said}."


def statements(scenario: Scenario, found: Sequence[Return]) -> dict[str, tuple[str, ...]]:
    """What came back, by measure: a sentence per request that others followed."""
    if scenario.is_continual and len(scenario.finished) < 2:
        why = "Nothing can have come back yet: no request was followed by a finished one."
        return {"": (why,)}
    said: dict[str, tuple[str, ...]] = {}
    for each in latest(found):
        label = metric_label(each.matrix.name)
        said[label] = (*said.get(label, ()), _statement(each))
    return said


def _statement(each: Return) -> str:
    row, change = each.row, each.change
    start = f"{metric_label(each.matrix.name)} of {row.stage.label} ({row.stage.title}): "
    values = (
        f"{number(each.score.value)} after request {each.at}, {number(row.own.value)} right after "
        f"its own request"
    )
    levels = [
        f"{number(score.value)} {what}"
        for score, what in ((row.before, "before it"), (row.retain, "on the retain model"))
        if score.value is not None
    ]
    against = f" ({listing(levels)})" if levels else ""
    return f"{start}{_verdict(each)}. {values}{against}{_difference(change)}."


def _verdict(each: Return) -> str:
    if each.change.verdict == "not distinguishable":
        return f"not distinguishable at n = {each.change.n}"
    if each.change.verdict == "too few questions":
        return f"too few questions to tell, n = {each.change.n}"
    return each.verdict


def _difference(change: Change) -> str:
    if change.value is None:
        return f"; not compared: {(change.reason or 'no reason is recorded').rstrip('.')}"
    reason = one_line(change.reason or "", 200).rstrip(".")
    if change.by == "intervals":
        return f"; {_signed(change.value)}, judged by the two 95% intervals, since {reason}"
    return f"; {_signed(change.value)}{_span(change)} by the same {count(change.n, 'question')}"


def _span(change: Change) -> str:
    if change.low is None or change.high is None:
        return ""
    # No-break spaces keep a value and its interval on one line.
    return f"\u00a0[{_signed(change.low)},\u00a0{_signed(change.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def quality_statements(scenario: Scenario) -> tuple[str, ...]:
    """The forget quality of every request right after it, where there is one."""
    said = []
    for stage in scenario.finished:
        model = stage.model("unlearned")
        test = model.forget_quality if model else None
        if test is not None and test.p_value is not None:
            said.append(f"After {stage.label}: {' '.join(quality_lines(test))}")
    return tuple(said)


def utility_statements(scenario: Scenario, changes: Changes) -> tuple[str, ...]:
    """What happened to that which should stay: before the first request against after the last."""
    done = scenario.finished
    if scenario.record.kind != "requests" or not done:
        return ()
    return (*_utility(done[0], done[-1], changes), *_changing(scenario))


def _utility(first: StageReport, last: StageReport, changes: Changes) -> Iterator[str]:
    for key in UTILITIES:
        start = Place(stage=first, role="target", key=key)
        end = Place(stage=last, role="unlearned", key=key)
        if start.score.value is None or end.score.value is None:
            continue
        change = changes.of_kept(start, end)
        verdict = change.verdict
        if verdict == "not distinguishable":
            verdict_text = f"not distinguishable at n = {change.n}"
        else:
            verdict_text = verdict
        yield (
            f"{column_label(key)}: {verdict_text}. {number(end.score.value)} after {last.label}, "
            f"{number(start.score.value)} before {first.label}{_difference(change)}."
        )
        return


def arm_statements(contrasts: Sequence[RunContrast]) -> tuple[str, ...]:
    """How the arms differ in what they still say of what was to be forgotten."""
    keys = [f"{probe}/{name}" for probe in FORGET_PROBES for name in ARM_MEASURES]
    return tuple(
        f"{column_label(item.key)}: {contrast.second} against {contrast.first}: {item.verdict}, "
        f"{_signed(item.difference.value)} by the same {count(item.difference.n, 'question')}."
        for contrast in contrasts
        for item in sorted(
            (each for each in contrast.contrasts if each.key in keys),
            key=lambda each: keys.index(each.key),
        )
    )


def _changing(scenario: Scenario) -> Iterator[str]:
    if probes := changing_sets(scenario):
        yield (
            f"The rows of {listing(probes)} are not the same with every request, so values on them "
            "at different times are about different questions."
        )
