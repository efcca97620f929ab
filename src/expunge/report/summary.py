"""One paragraph for a reader who did not run it: asked, done, achieved, not shown."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.core.results import RunManifest
from expunge.report.forget_quality import (
    known_test,
    smallest_detectable,
    verdict_text,
    why_unknown,
)
from expunge.report.measures import FORGET_ROUGE
from expunge.report.model import ROLES, ReportData
from expunge.report.text import count, duration, number, one_line


def summarize(data: ReportData) -> str:
    """The paragraph, generated from the numbers of the run."""
    return " ".join(part for part in (*_asked(data), *_done(data), *_achieved(data)) if part)


def _asked(data: ReportData) -> Iterator[str]:
    run = data.manifest
    if run is None:
        yield "What this run was asked to do is unknown: it has no description (run.json)."
        return
    if run.status == "failed":
        yield f"This run failed: {one_line(run.error or 'no reason was recorded', 300)}."
    elif run.status == "running":
        yield "This run had not finished when the report was written."
    forget, retain = run.data.get("forget"), run.data.get("retain")
    if forget and data.method:
        keep = (
            f" and keep {count(retain.num_rows, 'other')} ({one_line(retain.origin, 80)})"
            if retain
            else "; no retain set was given to protect what should stay"
        )
        yield (
            f"The run was asked to make a language model forget "
            f"{count(forget.num_rows, 'sample')} ({one_line(forget.origin, 80)}){keep}. "
            f"{_start(run)}"
        )


def _start(run: RunManifest) -> str:
    """Where unlearning started, by a name that means something to a reader."""
    base, target = run.models.get("base"), run.models.get("target")
    if base:
        return f"The model had been fine-tuned on these data from {one_line(base.path, 80)}."
    return f"The model was {one_line(target.path, 80)}." if target else ""


def _done(data: ReportData) -> Iterator[str]:
    run = data.manifest
    if run is None or data.method is None:
        if run is not None:
            yield "It unlearned nothing: it only trained or evaluated models."
        return
    steps = f" for {count(data.log[-1].step, 'step')}" if data.log else ""
    epochs = data.log[-1].epoch if data.log else None
    passes = f" ({epochs:g} passes over the forget set)" if epochs is not None else ""
    seconds = sum(run.seconds.values())
    time = f"; the run took {duration(seconds)}" if seconds else ""
    yield f"It applied {one_line(data.method, 120)}{steps}{passes}{_trained_part(data)}{time}."


def _trained_part(data: ReportData) -> str:
    model = data.manifest.models.get("unlearned") if data.manifest else None
    if model is None or not model.num_parameters or model.num_trainable is None:
        return ""
    share = model.num_trainable / model.num_parameters
    if share >= 0.9995:
        return ", changing all weights"
    return f", training {share:.2%} of the {count(model.num_parameters, 'parameter')}"


def _achieved(data: ReportData) -> Iterator[str]:
    if data.method is None and "unlearned" not in data.models:
        return
    rouge = _before_after(data, FORGET_ROUGE)
    if rouge is None:
        yield "What the model says to the forget set's questions before and after is not known."
    else:
        before, after, retain = rouge
        never_saw = (
            "there is no retain model to compare with"
            if retain is None
            else f"the retain model, which never saw that set, generates {retain:.0%}"
        )
        yield (
            f"On the forget set the model now generates {after:.0%} of the true answers' words, "
            f"against {before:.0%} before; {never_saw}."
        )
    utility = _before_after(data, "model_utility")
    if utility is not None:
        before, after, retain = utility
        yardstick = "" if retain is None else f" (retain model {number(retain)})"
        yield (
            f"Model utility, which stands for what should stay, is {number(after)} against "
            f"{number(before)} before{yardstick}."
        )
    yield _quality_in_short(data)
    yield (
        "Whether the removed answers return under sampling, relearning or quantisation was not "
        "tested."
    )


def _before_after(data: ReportData, key: str) -> tuple[float, float, float | None] | None:
    """A measure on the target, the unlearned and, where there is one, the retain model."""
    target, unlearned, retain = (data.score(role, key) for role in ROLES[1:])
    if target is None or unlearned is None or target.value is None or unlearned.value is None:
        return None
    return target.value, unlearned.value, retain.value if retain else None


def _quality_in_short(data: ReportData) -> str:
    test = known_test(data.models.get("unlearned"))
    if test is None:
        return f"Forget quality is absent: {why_unknown(data)}."
    words = f"Forget quality is {test.text}: "
    if test.tells_apart:
        return words + "the unlearned model can still be told from the retain model."
    if test.test.verdict == "inside":
        return f"{words}no difference from the retain model was found. {verdict_text(test.test)}"
    smallest = smallest_detectable(test.n, test.m)
    if smallest is None:
        return words + "with so few questions the test cannot find any difference at all."
    return (
        words + "no difference from the retain model was found, which is not evidence of sameness, "
        f"since at this n only D of {number(smallest)} or more would be detected."
    )
