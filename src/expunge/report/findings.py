"""What the numbers of a run show, what they do not show, and what was never looked at.

Every sentence is derived from the results. The rules are deliberately plain, so that a reader can
check them: a change counts as shown only where the two 95% intervals do not overlap, and a p-value
is never read as a degree of sameness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from expunge.core.results import Score
from expunge.report.assessable import NotAssessable, not_assessable_of
from expunge.report.forget_quality import (
    KnownTest,
    band_text,
    known_test,
    smallest_detectable,
    verdict_text,
    why_unknown,
)
from expunge.report.habits import generation_habits
from expunge.report.measures import (
    FORGET_PROBABILITY,
    FORGET_ROUGE,
    NO_LEAK,
    STILL_FAMILIAR,
    leak,
    metric_label,
    ordered,
)
from expunge.report.model import ReportData
from expunge.report.summary import summarize
from expunge.report.text import listing, number

ATTACKS: Final = ("mia_", "privleak")
"""What the keys of scores of membership attacks start with."""

NEXT_TO_NOTHING: Final = 0.02  # a score below this has no room to fall

_FORGET_MEASURES: Final = {
    FORGET_ROUGE: "ROUGE-L recall",
    FORGET_PROBABILITY: "Probability of the true answers",
}
_KEPT_MEASURES: Final = {
    "model_utility": "Model utility",
    "retain/rouge_l_recall": "ROUGE-L recall on the retain set",
    "retain/probability": "Probability of the true answers on the retain set",
}

NEVER_ASSESSED: Final = (
    "Sampling: every answer was generated greedily, one per question. Removed text can come back "
    "when many answers are sampled.",
    "Other wordings: each question was asked in one form. Paraphrases, other languages, prefixes "
    "of the answer and adversarial prompts were not tried.",
    "Relearning: whether a little further training on related text brings the answers back.",
    "Quantisation: whether they come back when the weights are stored in 8 or 4 bits.",
    "The inside of the model: whether the knowledge is still in its hidden states.",
    "Chance between runs: the intervals are over questions of one run; another seed gives other "
    "numbers.",
)
"""What no part of an evaluation looks at."""

_SOMETIMES_ASSESSED: Final = {
    ATTACKS: "Membership attacks: whether an outsider can tell that the forget set was once "
    "trained on, or that something was removed.",
    ("lm_eval/",): "General ability beyond the sets in the table, such as reasoning, code or "
    "safety behaviour.",
}
"""What was not looked at either unless a score's key starts so."""

NO_CERTIFICATE: Final = (
    "This report is evidence about the questions it asked. It is no proof that the model holds "
    "nothing of the forget set; no test of a model's answers can be."
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One claim and the numbers behind it.

    Attributes:
        claim: A sentence.
        evidence: Each a measure with its values.
    """

    claim: str
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.claim} {'; '.join(self.evidence)}." if self.evidence else self.claim


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The report in words.

    Attributes:
        summary: One paragraph: asked, done, achieved, not shown.
        shown: Claims that the numbers support.
        not_shown: Claims that were looked at and are not supported.
        gaps: What this evaluation meant to measure and could not, by reason.
        not_assessed: What nobody looked at.
    """

    summary: str
    shown: tuple[Statement, ...]
    not_shown: tuple[Statement, ...]
    gaps: tuple[NotAssessable, ...]
    not_assessed: tuple[Statement, ...]


class Finding(NamedTuple):
    """One claim about one measure, and whether the numbers support it."""

    verdict: Literal["shown", "not shown", "not assessed"]
    claim: str
    evidence: str = ""


def findings(data: ReportData) -> Findings:
    """Judge one run."""
    judged = [
        *_forgetting(data),
        *_keeping(data),
        *_forget_quality(data),
        *_attacks(data),
        *_readability(data),
    ]
    never = [Finding("not assessed", text) for text in _never_assessed(data)]
    results = {role: model.results for role, model in data.models.items() if model.results}
    return Findings(
        summary=summarize(data),
        shown=_statements(judged, "shown"),
        not_shown=_statements(judged, "not shown"),
        gaps=not_assessable_of(results),
        not_assessed=_statements([*judged, *never], "not assessed"),
    )


def _never_assessed(data: ReportData) -> Iterator[str]:
    measured = [
        key
        for model in data.models.values()
        if model.results
        for key, score in model.results.scores.items()
        if score.value is not None
    ]
    yield from NEVER_ASSESSED
    for starts, text in _SOMETIMES_ASSESSED.items():
        if not any(key.startswith(starts) for key in measured):
            yield text


def _statements(judged: Sequence[Finding], verdict: str) -> tuple[Statement, ...]:
    """The findings of one verdict; equal claims become one with the evidence of all."""
    evidence: dict[str, list[str]] = {}
    for finding in judged:
        if finding.verdict == verdict:
            known = evidence.setdefault(finding.claim, [])
            known += [finding.evidence] if finding.evidence else []
    return tuple(Statement(claim=claim, evidence=tuple(each)) for claim, each in evidence.items())


def _apart(low: Score, high: Score) -> bool:
    """Whether the 95% interval of `low` lies wholly below that of `high`."""
    return low.high is not None and high.low is not None and low.high < high.low


def _has_interval(*scores: Score) -> bool:
    return all(score.low is not None and score.high is not None for score in scores)


def _valued(data: ReportData, role: str, key: str) -> Score | None:
    score = data.score(role, key)
    return score if score is not None and score.value is not None else None


def _span(score: Score) -> str:
    if score.low is None or score.high is None:
        return f"{number(score.value)} (n = {score.n})"
    # No-break spaces keep a value and its interval on one line.
    return f"{number(score.value)}\u00a0[{number(score.low)},\u00a0{number(score.high)}]"


def _forgetting(data: ReportData) -> Iterator[Finding]:
    for key, name in _FORGET_MEASURES.items():
        target, unlearned = _valued(data, "target", key), _valued(data, "unlearned", key)
        if unlearned is None or target is None:
            yield from _absent(data, key, name, "Forgetting, by these measures:")
            continue
        base, retain = _valued(data, "base", key), _valued(data, "retain", key)
        if base is not None:
            evidence = f"{name}: base {_span(base)}, target {_span(target)}"
            yield from _was_known(evidence, base, target)
        evidence = f"{name}: target {_span(target)}, unlearned {_span(unlearned)}"
        yield _fell(evidence, target, unlearned)
        if retain is not None:
            evidence = f"{name}: unlearned {_span(unlearned)}, retain {_span(retain)}"
            yield _against_retain(evidence, target, unlearned, retain)


def _absent(data: ReportData, key: str, name: str, claim: str) -> Iterator[Finding]:
    """A measure that a model has no entry for; one that has, without a value, is among the gaps."""
    scores = {role: data.score(role, key) for role in ("unlearned", "target")}
    if not any(score is not None and score.value is None for score in scores.values()):
        role = next(role for role, score in scores.items() if score is None)
        yield Finding("not assessed", claim, f"{name}: not measured on the {role} model")


def _was_known(evidence: str, base: Score, target: Score) -> Iterator[Finding]:
    if _apart(base, target):
        yield Finding("shown", "The target model had learned the forget set.", evidence)
    elif _has_interval(base, target):
        yield Finding(
            "not shown",
            "That the target model had learned the forget set: it does not stand out from the "
            "base model, so there was little to remove.",
            evidence,
        )


def _fell(evidence: str, target: Score, unlearned: Score) -> Finding:
    if _apart(unlearned, target):
        return Finding("shown", "The unlearned model reproduces less of the forget set.", evidence)
    claim = "That the unlearned model reproduces less of the forget set"
    if _apart(target, unlearned):
        return Finding("not shown", f"{claim}: it reproduces more.", evidence)
    if _has_interval(target, unlearned):
        return Finding("not shown", f"{claim}: the intervals overlap.", evidence)
    return Finding("not shown", f"{claim}: there are no intervals.", evidence)


def _against_retain(evidence: str, target: Score, unlearned: Score, retain: Score) -> Finding:
    if _apart(retain, unlearned):
        claim = "Forgetting as complete as never having seen the data: some is left."
    elif _apart(unlearned, retain):
        claim = (
            "The behaviour of a model that never saw the data: it is below that level, which can "
            "itself give away that something was removed."
        )
    elif not _has_interval(unlearned, retain):
        claim = "The level of the retain model: there are no intervals."
    elif not _apart(retain, target) and not _apart(target, retain):
        claim = (
            "The level of the retain model: the target model is not told apart from that level "
            "either, so these measures cannot show it."
        )
    else:
        claim = "No difference from the level of the retain model was detected."
        return Finding("shown", claim, evidence)
    return Finding("not shown", claim, evidence)


def _keeping(data: ReportData) -> Iterator[Finding]:
    for key, name in _KEPT_MEASURES.items():
        target, unlearned = _valued(data, "target", key), _valued(data, "unlearned", key)
        if unlearned is None or target is None:
            yield from _absent(data, key, name, "What was kept, by these measures:")
            continue
        evidence = f"{name}: target {_span(target)}, unlearned {_span(unlearned)}"
        if _apart(unlearned, target):
            yield Finding("not shown", "That nothing else was lost: it fell.", evidence)
        elif (target.value or 0.0) < NEXT_TO_NOTHING:
            claim = "That nothing else was lost: there was next to nothing to lose."
            yield Finding("not shown", claim, evidence)
        elif _has_interval(target, unlearned):
            yield Finding("shown", "No loss of what should stay was detected.", evidence)
        else:
            claim = "That nothing else was lost: there are no intervals."
            yield Finding("not shown", claim, evidence)


def _forget_quality(data: ReportData) -> Iterator[Finding]:
    test, before = known_test(data.models.get("unlearned")), known_test(data.models.get("target"))
    if test is None:
        if data.score("unlearned", "forget_quality") is None:
            yield Finding("not assessed", f"Forget quality: {why_unknown(data)}.")
        return
    evidence = f"unlearned {test.text}"
    if before is not None:
        evidence = f"target {before.text}; {evidence}"
    if test.tells_apart:
        claim = (
            "Truth ratios like those of a model that never saw the forget set: the test tells the "
            f"two apart.{_compared(test, before)}"
        )
        yield Finding("not shown", claim, evidence)
    elif before is not None and not before.tells_apart:
        claim = (
            "Anything by forget quality: the test does not even tell the target model from the "
            "retain model."
        )
        yield Finding("not shown", claim, evidence)
    elif before is not None:
        claim = (
            "The truth-ratio test no longer tells the unlearned model from the retain model, "
            "as it did the target model."
        )
        yield Finding("shown", claim, evidence)
    yield from _sameness(test)


def _sameness(test: KnownTest) -> Iterator[Finding]:
    """What the bounds of the distance say, which no p-value can."""
    verdict, band = verdict_text(test.test), band_text(test.test)
    details = " ".join(part for part in (verdict, band) if part)
    if test.test.verdict == "inside":
        yield Finding("shown", "Truth ratios within the tolerated distance.", details.rstrip("."))
    elif not test.tells_apart:
        yield Finding("not shown", _no_sameness(test), details.rstrip("."))
    elif details:
        yield Finding("not shown", "Sameness with the retain model.", details.rstrip("."))
    if test.test.warning:
        yield Finding("not shown", "Much by forget quality.", test.test.warning.rstrip("."))


def _compared(test: KnownTest, before: KnownTest | None) -> str:
    if before is None:
        return ""
    nearer = test.distance < before.distance
    return f" It is {'closer' if nearer else 'no closer'} than the target model was."


def _no_sameness(test: KnownTest) -> str:
    smallest = smallest_detectable(test.n, test.m)
    limit = f"misses any D below {number(smallest)}" if smallest else "cannot find any difference"
    return (
        "Sameness with the retain model: a high p-value is no evidence of it. "
        f"At n = {test.n} the test {limit}, and it looks at probabilities only, not at what the "
        "model says."
    )


def _attacks(data: ReportData) -> Iterator[Finding]:
    """Whether attacks tell the forget set from unseen text; on either side of the ideal they do."""
    results = data.models["unlearned"].results if "unlearned" in data.models else None
    for key in ordered(results.scores if results else ()):
        score, retain = _valued(data, "unlearned", key), _valued(data, "retain", key)
        if not key.startswith(ATTACKS) or score is None or not (found := leak(score)):
            continue
        evidence = f"{metric_label(key)}: unlearned {_span(score)}"
        if retain is not None and key != "privleak":  # which is relative to the retain model
            evidence += f", retain {_span(retain)}"
        yield _attack(found, evidence, score, retain)


def _attack(found: str, evidence: str, score: Score, retain: Score | None) -> Finding:
    if found == NO_LEAK:
        return Finding("shown", "No leak was detected by membership attacks.", evidence)
    if retain is not None and leak(retain) == found and not _apart_either_way(score, retain):
        claim = (
            "Anything by these attacks: they tell the forget set from unseen text on the retain "
            "model as well, which never saw it, so the two sets differ by themselves."
        )
    elif found == STILL_FAMILIAR:
        claim = (
            "That the forget set cannot be recognised: to membership attacks it still looks like "
            "training data, which is a leak."
        )
    else:
        claim = (
            "That nothing gives the removal away: to membership attacks the forget set looks less "
            "familiar than text the model never saw, which is a leak as well. Over-unlearning is "
            "visible."
        )
    return Finding("not shown", claim, evidence)


def _apart_either_way(first: Score, second: Score) -> bool:
    return _apart(first, second) or _apart(second, first)


def _readability(data: ReportData) -> Iterator[Finding]:
    """Whether the unlearned model still writes text, since no probability can tell."""
    after, before = generation_habits(data, "unlearned"), generation_habits(data, "target")
    if after is None or before is None:
        return
    if after.empty > before.empty + 0.1:
        yield Finding(
            "not shown",
            f"Usable answers: {after.empty:.0%} of the unlearned model's answers on the forget set "
            f"are empty (target {before.empty:.0%}).",
        )
    if after.distinct < before.distinct - 0.2 or after.unfinished > before.unfinished + 0.3:
        yield Finding(
            "not shown",
            "Fluent answers: on the forget set the unlearned model repeats itself or does not "
            f"stop ({after.distinct:.0%} different words per answer against {before.distinct:.0%} "
            f"of the target model; {after.unfinished:.0%} of answers cut off against "
            f"{before.unfinished:.0%}).",
        )


def assumptions(data: ReportData) -> tuple[str, ...]:
    """Circumstances of this very run that limit what its numbers mean."""
    if data.manifest is None:
        return data.notes
    notes = [*data.manifest.notes, *data.notes]
    post = data.manifest.method.hyperparameters.get("post") if data.manifest.method else None
    if isinstance(post, dict) and post.get("result") == "combination":
        notes.append(
            "The target model is in the result's folder unchanged, and only its answers are "
            "different: whoever has the folder has what was to be forgotten."
        )
    evaluation = data.manifest.config.get("evaluation")
    rows = evaluation.get("rows") if isinstance(evaluation, dict) else None
    if isinstance(rows, dict):
        limits = [f"{name} {limit}" for name, limit in rows.items() if limit is not None]
        if limits:
            notes.append(f"Only the first rows of these sets were evaluated: {listing(limits)}.")
    return tuple(notes)
