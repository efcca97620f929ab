"""The report reads what the evaluation really writes, and arrives at the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fabricated_run import RunBuilder

from expunge.benchmarks import benchmarks
from expunge.evaluation import EvaluationStore, ProbeTable
from expunge.evaluation.evidence import Evidence
from expunge.report import load_report, table_of, write_report
from expunge.report.distributions import ks_distance

ROLES = ("base", "target", "unlearned", "retain")
NUM = 12


def outputs(role: str) -> ProbeTable:
    """Made-up outputs of one model on a forget set of which the last row has no wrong answers."""
    rng = np.random.default_rng(ROLES.index(role))
    perturbed = [[list(-rng.exponential(2, 3)) for _ in range(5)] for _ in range(NUM)]
    return ProbeTable(
        probe="forget",
        columns={
            "index": list(range(NUM)),
            "question": [f"question {i}" for i in range(NUM)],
            "answer": [f"the true answer {i}" for i in range(NUM)],
            "prompt_tokens": [9] * NUM,
            "answer_logps": [list(-rng.exponential(1, 4)) for _ in range(NUM)],
            "answer_greedy": [[True, False, True, True]] * NUM,
            "paraphrase_logps": [list(-rng.exponential(1, 4)) for _ in range(NUM)],
            "perturbed_logps": [*perturbed[:-1], None],
            "generation": [f"{role} says the answer {i}" for i in range(NUM)],
            "generation_ids": [[1, 2, 3]] * NUM,
            "generation_tokens": [3] * NUM,
            "finished": [True] * NUM,
        },
        info={"key": role, "model": f"weights of {role}", "dtype": "float32"},
    )


@pytest.mark.parametrize("preset", [None, "tofu_ou"])
def test_distances_and_ratios_agree_with_the_scores(tmp_path: Path, preset: str | None) -> None:
    folder = RunBuilder(folder=tmp_path / "run", roles=()).build()
    benchmark = benchmarks.get("tofu")
    for role in ROLES:
        EvaluationStore(folder / "evaluation" / role).save(outputs(role))
    stored = {role: EvaluationStore(folder / "evaluation" / role).load() for role in ROLES}
    for role, tables in stored.items():
        evidence = Evidence(tables=tables, retains=[stored["retain"]])
        results = benchmark.score_tables(evidence, preset=preset, role=role)
        results.save(folder / "evaluation" / role / "results.json")

    data = load_report(folder)
    assert list(data.models) == list(ROLES)
    ratios = {role: model.tables["forget"].truth_ratios for role, model in data.models.items()}
    for role, model in data.models.items():
        ours, theirs, test = ratios[role], ratios["retain"], model.forget_quality
        assert ours is not None
        assert theirs is not None
        assert test is not None
        assert np.isnan(ours).sum() == 1
        distance = ks_distance(ours, theirs)
        assert distance is not None
        assert test.n == NUM - 1
        assert distance.statistic == pytest.approx(test.statistic, abs=1e-12)
        mean = np.nanmean(np.minimum(ours, 1 / ours))
        score = model.score("forget/truth_ratio")
        assert score is not None
        assert mean == pytest.approx(score.value, abs=1e-9)
    write_report(folder)
    keys = {column.key for column in table_of(data).measured().columns}
    assert "forget/rouge_l_recall" in keys
    assert not {key for key in keys if key.startswith("real_authors/")}
