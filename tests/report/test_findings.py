"""The words of the report: each rule on the smallest run that triggers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from expunge.core.results import ForgetQuality, ModelResults, Score
from expunge.report.findings import Findings, findings
from expunge.report.forget_quality import known_test, smallest_detectable
from expunge.report.habits import Habits, generation_habits
from expunge.report.model import Generation, ModelReport, ProbeTable, ReportData

Levels = Mapping[str, tuple[float, float, float]]


def model(role: str, scores: Mapping[str, Score], test: ForgetQuality | None = None) -> ModelReport:
    results = ModelResults(
        role=role, model=role, model_fingerprint=role, benchmark="tofu", benchmark_version=1,
        scores=dict(scores), forget_quality=test, created="2026-11-21T10:00:00+00:00",
    )  # fmt: skip
    return ModelReport(role=role, results=results)


def run(*models: ModelReport) -> ReportData:
    return ReportData(folder=Path("runs/x"), name="x", models={each.role: each for each in models})


def span(value: float, low: float, high: float) -> Score:
    return Score(value=value, n=40, low=low, high=high)


def rouge(levels: Levels) -> ReportData:
    """Models with a forget ROUGE-L recall of (value, low, high) each."""
    key = "forget/rouge_l_recall"
    return run(*(model(role, {key: span(*level)}) for role, level in levels.items()))


def ks_test(p: float | None, d: float | None, n: int = 40) -> ForgetQuality:
    return ForgetQuality(p_value=p, statistic=d, n=n, m=n)


def claims(statements: tuple[object, ...]) -> str:
    return "\n".join(map(str, statements))


HIGH, LOW, MIDDLE = (0.9, 0.85, 0.95), (0.3, 0.25, 0.35), (0.5, 0.45, 0.55)


def test_forgetting_is_shown_where_the_intervals_are_apart() -> None:
    found = findings(rouge({"base": LOW, "target": HIGH, "unlearned": LOW, "retain": LOW}))
    shown = claims(found.shown)
    assert "had learned the forget set" in shown
    assert "reproduces less of the forget set" in shown
    assert "No difference from the level of the retain model was detected" in shown
    assert "rouge" not in claims(found.not_shown).lower()


@pytest.mark.parametrize(
    ("levels", "claim"),
    [
        ({"target": HIGH, "unlearned": (0.85, 0.8, 0.9)}, "the intervals overlap"),
        ({"target": LOW, "unlearned": HIGH}, "it reproduces more"),
        ({"target": HIGH, "unlearned": MIDDLE, "retain": LOW}, "some is left"),
        ({"target": HIGH, "unlearned": LOW, "retain": MIDDLE}, "below that level"),
        ({"base": HIGH, "target": HIGH, "unlearned": LOW}, "little to remove"),
        ({"target": LOW, "unlearned": LOW, "retain": LOW}, "these measures cannot show it"),
    ],
)
def test_what_is_not_shown_says_why(levels: Levels, claim: str) -> None:
    assert claim in claims(findings(rouge(levels)).not_shown)


@pytest.mark.parametrize(
    ("target", "unlearned", "claim", "verdict"),
    [
        (HIGH, HIGH, "No loss of what should stay was detected", "shown"),
        (HIGH, LOW, "it fell", "not_shown"),
        ((0.01, 0.0, 0.02), (0.01, 0.0, 0.02), "next to nothing to lose", "not_shown"),
    ],
)
def test_what_should_stay(
    target: tuple[float, float, float],
    unlearned: tuple[float, float, float],
    claim: str,
    verdict: str,
) -> None:
    scores = {"target": target, "unlearned": unlearned}
    models = [model(role, {"model_utility": span(*level)}) for role, level in scores.items()]
    assert claim in claims(getattr(findings(run(*models)), verdict))


def test_without_intervals_nothing_is_shown() -> None:
    key = "forget/rouge_l_recall"
    point = {
        role: Score(value=value, n=40) for role, value in (("target", 0.9), ("unlearned", 0.1))
    }
    found = findings(run(*(model(role, {key: score}) for role, score in point.items())))
    assert found.shown == ()
    assert "there are no intervals" in claims(found.not_shown)


def test_absent_values_are_not_assessed_with_their_reason() -> None:
    absent = Score(n=0, reason="the rows have no paraphrased answer")
    found = findings(run(model("target", {}), model("unlearned", {"model_utility": absent})))
    assert "the rows have no paraphrased answer" in claims(found.not_assessed)
    assert "ROUGE-L recall: not measured on the unlearned model" in claims(found.not_assessed)


def quality(unlearned: ForgetQuality, target: ForgetQuality | None) -> Findings:
    return findings(run(model("target", {}, target), model("unlearned", {}, unlearned)))


def test_a_high_p_value_is_never_evidence_of_sameness() -> None:
    found = quality(ks_test(0.99, 0.1), ks_test(1e-8, 0.7))
    assert "no longer tells the unlearned model" in claims(found.shown)
    assert "Sameness with the retain model: a high p-value is no evidence" in claims(
        found.not_shown
    )
    assert "D below 0.325" in claims(found.not_shown)
    assert "only D of 0.325 or more would be detected" in found.summary


def test_a_test_that_cannot_tell_the_target_model_shows_nothing() -> None:
    found = quality(ks_test(0.99, 0.1), ks_test(0.4, 0.2))
    assert "forget quality" not in claims(found.shown)
    assert "does not even tell the target model" in claims(found.not_shown)


def test_a_low_p_value_is_not_shown_and_says_which_way_it_went() -> None:
    found = quality(ks_test(1e-4, 0.5), ks_test(1e-8, 0.7))
    assert "It is closer than the target model was" in claims(found.not_shown)
    worse = quality(ks_test(1e-9, 0.8), ks_test(1e-8, 0.7))
    assert "It is no closer than the target model was" in claims(worse.not_shown)
    assert "can still be told from the retain model" in worse.summary


def test_no_retain_model_means_no_forget_quality_and_says_so() -> None:
    found = quality(ForgetQuality(reason="there is no retain model"), None)
    assert "Forget quality is absent: there is no retain model." in found.summary
    assert "Forget quality: there is no retain model." in claims(found.not_assessed)


def test_what_nobody_looked_at_is_always_listed() -> None:
    text = claims(findings(run()).not_assessed)
    for threat in ("Sampling", "Relearning", "Quantisation", "Membership attacks", "another seed"):
        assert threat in text


def with_answers(role: str, texts: list[str], *, finished: bool = True) -> ModelReport:
    generations = tuple(Generation(text=text, finished=finished) for text in texts)
    table = ProbeTable(
        probe="forget", indices=tuple(range(len(texts))), questions=("q",) * len(texts),
        answers=("a",) * len(texts), generations=generations,
    )  # fmt: skip
    return replace(model(role, {}), tables={"forget": table})


def test_gibberish_is_noticed_whatever_the_probabilities_say() -> None:
    fluent = with_answers("target", ["he was born in a small town by the sea"])
    loops = with_answers("unlearned", ["the the the the the the"])
    assert "repeats itself" in claims(findings(run(fluent, loops)).not_shown)
    rambles = with_answers("unlearned", ["he was born in a small town"], finished=False)
    assert "does not stop" in claims(findings(run(fluent, rambles)).not_shown)
    silent = with_answers("unlearned", ["", "a word"])
    assert "are empty" in claims(findings(run(fluent, silent)).not_shown)
    assert findings(run(fluent, with_answers("unlearned", ["a calm answer"]))).not_shown == ()


def test_habits_by_hand() -> None:
    """Words 2 and 0, of the first one half different; one of two empty; none cut off."""
    data = run(with_answers("unlearned", ["No no", "  "]))
    assert generation_habits(data, "unlearned") == Habits(2, 1.0, 0.5, 0.5, 0.0)


@pytest.mark.parametrize("n", [8, 20, 40, 200])
def test_the_smallest_detectable_distance_is_the_edge_of_the_test(n: int) -> None:
    """One step of the lattice below it the p-value is 0.05 or more, at it below."""
    smallest = smallest_detectable(n, n)
    assert smallest is not None

    def p_value(steps: int) -> float:
        return float(ks_2samp(range(n), [i + steps - 0.5 for i in range(n)]).pvalue)

    steps = round(smallest * n)
    assert p_value(steps) < 0.05 <= p_value(steps - 1)


def test_too_few_samples_detect_nothing() -> None:
    assert smallest_detectable(40, 40) == 0.325  # metrics.md section 6: D = .3 has p = .0541
    assert smallest_detectable(3, 3) is None
    assert smallest_detectable(0, 5) is None
    found = quality(ks_test(1.0, 0.3, n=3), ks_test(0.01, 1.0, n=3))
    assert "cannot find any difference" in found.summary


def test_a_test_without_result_is_no_test() -> None:
    assert known_test(None) is None
    assert known_test(model("unlearned", {}, ks_test(None, None))) is None
