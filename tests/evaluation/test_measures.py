"""Scores from tables: values, counts, reasons; nothing is ever filled in."""

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.measures import Measure
from expunge.evaluation.standard import FORGET_QUALITY, MODEL_UTILITY
from expunge.evaluation.tables import ProbeTable

log = math.log
PROBABILITY = Measure(
    name="probability", probe="forget", metric="probability", better="lower", unit="probability"
)
ROUGE = Measure(
    name="rouge_l_recall", probe="forget", metric="rouge_l_recall", better="lower", unit="ROUGE-L"
)


def table(probabilities, *, probe="forget", data="rows", template="t", **columns):
    n = len(probabilities)
    return ProbeTable(
        probe=probe,
        columns={
            "question": [f"q{i}" for i in range(n)],
            "answer": ["an answer"] * n,
            "answer_logps": [[] if p is None else [log(p)] for p in probabilities],
            **columns,
        },
        info={
            "data": {"fingerprint": data},
            "template": {"name": "chat", "fingerprint": template},
            "settings": {"max_new_tokens": 5, "max_length": None},
        },
    )


def ratios(values, **options):
    """A table whose truth ratios are the given values: wrong = r * right, right = 1/100."""
    wrong = [[[log(r / 100)]] for r in values]
    return {"forget": table([1 / 100] * len(values), perturbed_logps=wrong, **options)}


def quality(tables, *retains, **more):
    """The test against retain models."""
    return FORGET_QUALITY.test(Evidence(tables=tables, retains=retains, **more))


def test_a_score_is_a_mean_with_its_counts():
    """(1/2 + 1/4) / 2 = 3/8; the empty answer is left out and counted."""
    score = PROBABILITY.score(Evidence(tables={"forget": table([1 / 2, 1 / 4, None])}))
    assert score.value == pytest.approx(3 / 8)
    assert (score.n, score.unscored) == (2, 1)
    assert 1 / 4 <= score.low <= score.high <= 1 / 2
    assert (score.better, score.unit, score.reason) == ("lower", "probability", None)
    assert PROBABILITY.key == "forget/probability"


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({}, "the forget probe was not run"),
        ({"forget": table([0.5])}, "nothing was generated"),
        ({"forget": table([0.5], generation=[None])}, "not one of the samples"),
    ],
)
def test_an_absent_score_says_why(tables, reason):
    score = ROUGE.score(Evidence(tables=tables))
    assert score.value is None
    assert score.n == 0
    assert reason in score.reason


def test_presets_set_options_only_where_they_exist():
    measure = Measure(
        name="ratio", probe="forget", metric="truth_ratio", better="none", unit="wrong/right"
    )
    tables = Evidence(tables=ratios([2.0]))
    options = {"epsilon": 1 / 100, "floor": True}
    # (2/100) / (1/100 + 1/100) = 1
    assert measure.score(tables, options).value == pytest.approx(1.0)
    assert PROBABILITY.score(tables, options).value == pytest.approx(1 / 100)


def test_utility_is_the_harmonic_mean():
    """Means 1/2 and 1/4: 2 / (2 + 4) = 1/3; the samples of both probes count."""
    measures = {
        m.key: m
        for m in (
            PROBABILITY,
            Measure(
                name="probability",
                probe="retain",
                metric="probability",
                better="higher",
                unit="probability",
            ),
        )
    }
    aggregate = Aggregate(
        name="both", kind="harmonic_mean", over=tuple(measures), better="higher", unit="mean"
    )
    tables = {
        "forget": table([1 / 4, 3 / 4, None]),
        "retain": table([1 / 4, 1 / 4], probe="retain"),
    }
    score = aggregate.score(measures, Evidence(tables=tables))
    assert score.value == pytest.approx(1 / 3)
    assert (score.n, score.unscored) == (5, 1)
    assert score.low < 1 / 3 < score.high
    lone = aggregate.score(measures, Evidence(tables={"retain": tables["retain"]}))
    assert lone.value is None
    assert lone.reason == "needs forget/probability: the forget probe was not run"


def test_forget_quality_is_the_ks_test_of_the_raw_ratios():
    ours, theirs = [0.1, 0.5, 2.0, 3.0, 9.0], [0.2, 0.3, 0.4, 0.6, 5.0]
    test = quality(ratios(ours), ratios(theirs))
    expected = ks_2samp(ours, theirs)
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.statistic == pytest.approx(expected.statistic)
    score = FORGET_QUALITY.test_score(test)
    assert (score.value, score.n, score.better) == (test.p_value, 5, "higher")


def test_folding_the_ratios_first_would_hide_a_difference():
    """Ratios 2..9 against 1/2..1/9: the same when folded, nothing in common as they are."""
    values = [float(k) for k in range(2, 10)]
    inverse = [1 / k for k in values]
    test = quality(ratios(values), ratios(inverse))
    assert test.statistic == 1.0


def test_without_a_retain_model_there_is_no_forget_quality():
    test = quality(ratios([1.0, 2.0]))
    assert test.p_value is None
    assert test.statistic is None
    assert test.n == 2
    assert "no retain model" in test.reason
    assert FORGET_QUALITY.test_score(test).reason == test.reason


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (ratios([1.0]), ratios([1.0], data="others"), "on other forget rows"),
        (ratios([1.0]), ratios([1.0], template="plain"), "with another template"),
        (ratios([1.0]), {"forget": table([0.5])}, "of the retain model: .* no wrong answers"),
        ({"forget": table([0.5])}, ratios([1.0]), "its rows have no wrong answers"),
        (ratios([1.0]), {}, "of the retain model: the forget probe was not run"),
    ],
)
def test_incomparable_retain_tables_give_a_reason(ours, theirs, reason):
    import re

    test = quality(ours, theirs)
    assert test.p_value is None
    assert re.search(reason, test.reason)


def test_generation_limits_do_not_matter_to_forget_quality():
    ours, theirs = ratios([1.0, 2.0]), ratios([1.0, 2.0])
    theirs["forget"].info["settings"]["max_new_tokens"] = 99
    assert quality(ours, theirs).p_value == 1.0
    theirs["forget"].info["settings"]["max_length"] = 99
    assert "other settings" in quality(ours, theirs).reason


def test_tables_without_an_origin_are_compared_by_their_rows():
    """Tables imported from elsewhere have no fingerprint; questions and answers decide."""

    def bare(values, question):
        columns = dict(ratios(values)["forget"].columns)
        return {"forget": ProbeTable(probe="forget", columns=columns | {"question": question})}

    same = quality(bare([1.0], ["q"]), bare([1.0], ["q"]))
    assert same.p_value == 1.0
    other = quality(bare([1.0], ["q"]), bare([1.0], ["r"]))
    assert "other forget rows" in other.reason


def test_model_utility_is_over_nine_values():
    assert len(MODEL_UTILITY.over) == 9
    assert not any(key.startswith("forget/") for key in MODEL_UTILITY.over)


def test_utility_with_a_zero_is_zero_with_an_interval():
    aggregate = Aggregate(
        name="one", kind="harmonic_mean", over=(ROUGE.key,), better="higher", unit="mean"
    )
    tables = {"forget": table([0.5, 0.5], generation=["nothing", "alike"])}
    score = aggregate.score({ROUGE.key: ROUGE}, Evidence(tables=tables))
    assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)
    assert not np.isnan(score.value)


def test_columns_of_other_models_are_found_by_role():
    gap = Measure(name="gap", probe="forget", metric="loss_gap", better="none", unit="nats")
    ours, theirs = {"forget": table([1 / 2, 1 / 4])}, {"forget": table([1 / 4, 1 / 4])}
    # A = -log p: (log 2 - log 4) / 2 + 0 / 2
    score = gap.score(Evidence(tables=ours, retains=[theirs]))
    assert score.value == pytest.approx(-log(2) / 2)
    assert "no retain model" in gap.score(Evidence(tables=ours)).reason
    others = {"forget": table([1 / 4, 1 / 4], data="others")}
    assert "on other forget rows" in gap.score(Evidence(tables=ours, retains=[others])).reason
    absent = gap.score(Evidence(tables=ours, retains=[{}])).reason
    assert absent == "of the retain model: the forget probe was not run"


def test_a_column_no_judge_made_says_why():
    measure = Measure(name="c", probe="forget", metric="cosine_similarity", better="none", unit="")
    tables = {"forget": table([0.5], generation=["x"])}
    assert "no sentence encoder" in measure.score(Evidence(tables=tables)).reason
    absent = {"generation_similarity": "the encoder X is not here"}
    score = measure.score(Evidence(tables=tables, absent=absent))
    assert score.reason == "the encoder X is not here"


def attack(kind, **options):
    samples = Measure(name="l", probe="forget", metric="loss_score", better="none", unit="")
    return Aggregate(
        name="mia",
        kind=kind,
        samples=samples,
        against="holdout",
        better="closer_to_half",
        unit="",
        **options,
    )


def test_an_attack_compares_forget_and_holdout():
    """Losses of forget are below those of holdout in 3 of 4 pairs."""
    tables = {
        "forget": table([0.9, 0.3]),
        "holdout": table([0.5, 0.2], probe="holdout", data="more"),
    }
    score = attack("auc").score({}, Evidence(tables=tables))
    assert score.value == 3 / 4
    assert score.two_sided == pytest.approx(1 / 2)
    assert score.n == 4
    alone = attack("auc").score({}, Evidence(tables={"forget": tables["forget"]}))
    assert "no holdout set" in alone.reason


def test_privleak_is_relative_to_the_retain_model():
    """(1 - 3/4 - 1/2) / (1/2) = -50 percent."""
    ours = {"forget": table([0.9, 0.3]), "holdout": table([0.5, 0.2], probe="holdout", data="h")}
    theirs = {"forget": table([0.6, 0.1]), "holdout": table([0.5, 0.2], probe="holdout", data="h")}
    found = attack("privleak").score({}, Evidence(tables=ours, retains=[theirs]))
    assert found.value == pytest.approx(-50.0)
    given = attack("privleak").score({}, Evidence(tables=ours), {"retain_auc": 0.5})
    assert given.value == pytest.approx(-50.0)
    absent = attack("privleak").score({}, Evidence(tables=ours))
    assert absent.value is None
    assert "no retain model" in absent.reason


def test_forget_efficacy_is_one_minus_the_mean():
    measures = {PROBABILITY.key: PROBABILITY, ROUGE.key: ROUGE}
    aggregate = Aggregate(
        name="fe", kind="one_minus_mean", over=tuple(measures), better="higher", unit=""
    )
    tables = {"forget": table([1 / 4, 3 / 4], generation=["an answer", "nothing"])}
    # means 1/2 and 1/2
    assert aggregate.score(measures, Evidence(tables=tables)).value == pytest.approx(1 / 2)


def test_several_retain_models_give_a_null_band():
    generator = np.random.default_rng(0)
    models = [ratios(generator.lognormal(size=30).tolist()) for _ in range(4)]
    test = quality(*models)
    assert test.null_band.num_models == 3
    assert len(test.distances) == 3
    assert test.verdict in ("inside", "outside", "cannot tell")


def test_the_median_and_the_largest_gap():
    samples = Measure(
        name="g", probe="forget", metric="absolute_loss_gap", better="none", unit="nats"
    )
    ours, theirs = {"forget": table([1 / 2, 1 / 4, 1])}, {"forget": table([1 / 8, 1 / 4, 1 / 2])}
    evidence = Evidence(tables=ours, retains=[theirs])
    found = {
        kind: Aggregate(name=kind, kind=kind, samples=samples, better="none", unit="").score(
            {}, evidence
        )
        for kind in ("median", "max")
    }
    assert found["median"].value == pytest.approx(log(2))
    assert found["max"].value == pytest.approx(log(4))
