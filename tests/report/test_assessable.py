"""Gaps: what could not be said, once per reason, and never mixed with what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fabricated_run import rewrite

from expunge.core.results import ModelResults, Score
from expunge.report import not_assessable, not_assessable_of, write_report
from expunge.report.assessable import root_causes

NO_RETAIN = "no retain model to compare with. Evaluate one and name its run as retain_run"
NO_ENCODER = "no sentence encoder has compared the answers (evaluation.encoder)"
NO_HOLDOUT = "no holdout set: an attack needs rows that no model has seen (evaluation.holdout)"


def results(reasons: Mapping[str, str | None], role: str = "unlearned") -> ModelResults:
    """Scores with a reason each; None has a value."""
    scores = {
        key: Score(n=0, reason=reason) if reason else Score(value=0.5, n=9)
        for key, reason in reasons.items()
    }
    return ModelResults(
        role=role, model=role, model_fingerprint=role, benchmark="tofu", benchmark_version=1,
        scores=scores, created="2026-11-21T10:00:00+00:00",
    )  # fmt: skip


def test_each_reason_stands_once_with_everything_it_prevented() -> None:
    gaps = not_assessable(
        results(
            {
                "forget_quality": NO_RETAIN,
                "privleak": NO_RETAIN,
                "forget/loss_gap": NO_RETAIN,
                "retain/loss_gap": NO_RETAIN,
                "mia_loss": NO_HOLDOUT,
                "forget/cosine_similarity": f"not measurable on forget: {NO_ENCODER}",
                "retain/cosine_similarity": f"not measurable on retain: {NO_ENCODER}",
                "forget/probability": None,
            }
        )
    )
    assert [gap.reason for gap in gaps] == [NO_RETAIN, NO_HOLDOUT, NO_ENCODER]
    retain, holdout, encoder = gaps
    assert retain.question == "Whether the model behaves like one that never saw the forget set"
    assert retain.measures == (
        "Forget quality, p-value; PrivLeak; Loss gap, signed (forget set and retain set)"
    )
    assert holdout.question == "Whether an attack can tell the forget set from unseen text"
    assert encoder.measures == "Cosine similarity (forget set and retain set)"
    assert str(encoder).endswith("Missing: Cosine similarity (forget set and retain set).")
    assert not_assessable(results({"forget/probability": None})) == ()


@pytest.mark.parametrize(
    ("reason", "causes"),
    [
        ("it is broken.", ("it is broken",)),
        (f"not measurable on forget: {NO_ENCODER}", (NO_ENCODER,)),
        (
            f"needs forget/a, retain/b: not measurable on forget: {NO_ENCODER}; needs retain/c: "
            "the retain probe was not run",
            (NO_ENCODER, "the set was not part of the evaluation"),
        ),
        (
            "of the retain model: not measurable on forget: nothing was generated on it",
            ("of the retain model: nothing was generated on it",),
        ),
        ("the world_facts probe was not run", ("the set was not part of the evaluation",)),
    ],
)
def test_the_cause_behind_an_aggregate_is_named(reason: str, causes: tuple[str, ...]) -> None:
    assert root_causes(reason) == causes


def test_an_aggregate_stands_under_every_cause() -> None:
    reason = f"needs forget/a: not measurable on forget: {NO_ENCODER}; needs forget/b: {NO_RETAIN}"
    gaps = not_assessable(results({"forget_efficacy": reason, "privleak": NO_RETAIN}))
    assert [gap.keys for gap in gaps] == [("forget_efficacy",), ("forget_efficacy", "privleak")]


def test_models_are_named_only_where_they_differ() -> None:
    gaps = not_assessable_of(
        {
            "target": results({"privleak": NO_RETAIN, "forget/perplexity": None}),
            "unlearned": results({"privleak": NO_RETAIN, "forget/perplexity": "it is empty"}),
        }
    )
    assert [(gap.keys, gap.roles) for gap in gaps] == [
        (("privleak",), ()),
        (("forget/perplexity",), ("unlearned",)),
    ]
    assert "(of unlearned): it is empty" in str(gaps[1])


def test_the_page_has_a_section_of_its_own(make_run: Callable[..., Path]) -> None:
    folder = make_run()

    def remove(found: dict) -> None:
        found["scores"]["privleak"] = {"n": 0, "reason": NO_HOLDOUT}

    rewrite(folder / "evaluation/unlearned/results.json", remove)
    page = write_report(folder).read_text(encoding="utf-8")
    section = page.split('<section id="not-assessed">')[1].split("</section>")[0]
    assert "Could not be measured" in section
    assert section.count("no holdout set") == 1
    assert "Missing: PrivLeak" in section
    assert "Sampling: every answer was generated greedily" in section
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## Could not be measured" in text
    assert "no holdout set" in text
