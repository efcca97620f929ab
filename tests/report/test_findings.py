"""The words of the report: each rule on the smallest run that triggers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from expunge.core.results import ForgetQuality, ModelResults, Score
from expunge.report.findings import Findings, findings
from expunge.report.forget_quality import known_test, quality_lines, smallest_detectable
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
    assert "the rows have no paraphrased answer" in claims(found.gaps)
    assert "ROUGE-L recall: not measured on the unlearned model" in claims(found.not_assessed)
    assert "utility" not in claims(found.not_assessed)  # once is enough


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


@pytest.mark.parametrize(
    ("key", "text"), [("mia_loss", "Membership attacks"), ("lm_eval/mmlu", "General ability")]
)
def test_what_was_looked_at_is_not_listed_as_not_assessed(key: str, text: str) -> None:
    assert text in claims(findings(run(model("unlearned", {key: Score(n=0)}))).not_assessed)
    found = findings(run(model("unlearned", {key: span(0.5, 0.4, 0.6)})))
    assert text not in claims(found.not_assessed)


def auc(value: float, low: float, high: float) -> Score:
    return Score(value=value, n=80, low=low, high=high, better="closer_to_half",
                 two_sided=2 * abs(value - 0.5))  # fmt: skip


FAMILIAR, UNFAMILIAR, NEITHER = auc(0.9, 0.85, 0.95), auc(0.2, 0.1, 0.3), auc(0.52, 0.4, 0.6)


@pytest.mark.parametrize(
    ("unlearned", "retain", "claim", "verdict"),
    [
        (FAMILIAR, NEITHER, "it still looks like training data, which is a leak", "not_shown"),
        (UNFAMILIAR, NEITHER, "which is a leak as well. Over-unlearning is visible", "not_shown"),
        (UNFAMILIAR, None, "which is a leak as well", "not_shown"),
        (FAMILIAR, FAMILIAR, "the two sets differ by themselves", "not_shown"),
        (NEITHER, FAMILIAR, "No leak was detected by membership attacks", "shown"),
    ],
)
def test_attacks_leak_on_both_sides(
    unlearned: Score, retain: Score | None, claim: str, verdict: str
) -> None:
    models = [model("unlearned", {"mia_loss": unlearned})]
    models += [model("retain", {"mia_loss": retain})] if retain else []
    found = findings(run(*models))
    assert claim in claims(getattr(found, verdict))
    assert "Attack by loss: unlearned" in claims(getattr(found, verdict))


def test_privleak_is_relative_to_the_retain_model_already() -> None:
    score = Score(value=-60, n=80, low=-80, high=-40, better="closer_to_zero", two_sided=60)
    found = findings(run(model("unlearned", {"privleak": score})))
    assert "still looks like training data" in claims(found.not_shown)


def judged(verdict: str, **fields: object) -> ForgetQuality:
    values = {
        "p_value": 0.4, "statistic": 0.05, "n": 400, "m": 400, "low": 0.0, "high": 0.15,
        "upper_bound": 0.09, "distances": [0.05], "margin": 0.1, "margin_origin": "default",
        "verdict": verdict,
    }  # fmt: skip
    return ForgetQuality.model_validate(values | fields)


def test_a_bound_within_the_margin_is_shown() -> None:
    found = quality(judged("inside"), ks_test(1e-8, 0.7))
    assert "true distance to the retain model is at most 0.090" in claims(found.shown)
    assert "margin of 0.100 (the default; see evaluation.options.margin)" in claims(found.shown)
    assert "Sameness" not in claims(found.not_shown)
    assert "Inside the margin" in found.summary


def test_a_verdict_that_cannot_be_given_says_how_many_rows_would_do() -> None:
    undecided = judged("cannot tell", upper_bound=0.2, rows_needed=1200, margin_origin="given")
    text = claims(quality(undecided, ks_test(1e-8, 0.7)).not_shown)
    assert "Cannot tell at n = 400 whether the true distance is within the margin of 0.100" in text
    assert "it may be up to 0.200. About 1,200 questions would decide it" in text
    never = judged("cannot tell", rows_needed=None)
    assert "No number of questions" in claims(quality(never, ks_test(1e-8, 0.7)).not_shown)
    far = judged("outside", p_value=1e-9, statistic=0.5, low=0.4)
    assert "at least 0.400" in claims(quality(far, ks_test(1e-8, 0.7)).not_shown)


def test_several_retain_models_are_listed_and_the_few_questions_warned_about() -> None:
    band = {"distances": [0.02, 0.04, 0.03], "lowest": 0.02, "median": 0.03, "highest": 0.04,
            "num_models": 3}  # fmt: skip
    fields = {
        "distances": [0.1, 0.12, 0.11], "null_band": band, "margin": 0.04, "n": 40,
        "margin_origin": "retain models", "excess": 0.07, "excess_low": 0.02, "excess_high": 0.1,
        "warning": "n = 40 is below 100: and so on.",
    }  # fmt: skip
    text = claims(quality(judged("outside", **fields), ks_test(1e-8, 0.7)).not_shown)
    assert "Further from the retain models than they are from each other" in text
    assert "0.070\u00a0[0.020,\u00a00.100], by the same questions" in text
    assert "Of 4 retrained models one is always the furthest" in text
    assert "D to each of 3 retain models: 0.100, 0.120, 0.110" in text
    assert "0.020 to 0.040, median 0.030" in text
    assert "Much by forget quality. n = 40 is below 100" in text
    lines = quality_lines(judged("cannot tell", **fields))
    assert lines[0].startswith("Forget quality: p = 0.400, D = 0.050")
    assert "as close to the retain models as they are to each other" in lines[1]
    assert lines[-1].startswith("Few questions: n = 40 is below 100")
    assert quality_lines(ForgetQuality(reason="no retain model.")) == (
        "Forget quality is absent: no retain model.",
    )


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
