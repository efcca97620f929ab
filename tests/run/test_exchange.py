"""Evaluation files of other projects: reading, a run folder from them, and writing their form."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from expunge.benchmarks import benchmarks
from expunge.core.errors import InputError
from expunge.core.results import ModelResults, load_record
from expunge.evaluation import EvaluationStore, Measure, ProbeTable
from expunge.evaluation.evidence import Evidence
from expunge.metrics import metrics
from expunge.metrics.published import TOFU_SETS, tofu_log_values
from expunge.run import pipelines
from expunge.run.config import RunConfig
from expunge.run.exchange import (
    export_open_unlearning,
    export_run,
    import_evaluation,
    read_evaluation,
    tables_of,
)
from expunge.run.exchange_names import KNOWN
from expunge.run.exchange_read import _FROM_MEAN
from expunge.run.folder import RunFolder, read_manifest
from expunge.run.resolve import load_config
from expunge.run.ui import RecordingUi, SilentUi

TOFU = benchmarks.get("tofu")
SIZES = {"forget": 40, "retain": 6, "real_authors": 4, "world_facts": 5}
PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def scored(tables, retain=None, **options):
    retains = () if retain is None else (retain,)
    return TOFU.score_tables(Evidence(tables=tables, retains=retains), **options)


def by_index(values):
    return {str(index): value for index, value in enumerate(values)}


# --- TOFU's logs ---


def tofu_log(seed=0, forget=40):
    """Numbers of the size of real ones, in the layout of eval_log_aggregated.json."""
    random = np.random.default_rng(seed)
    logs = {}
    for name, label in TOFU_SETS.items():
        rows, wrong = (forget, 5) if label == "Forget" else (6, 5) if label == "Retain" else (4, 3)
        logs[name] = {
            "avg_gt_loss": random.uniform(0.1, 3, rows).tolist(),
            "avg_paraphrased_loss": random.uniform(0.5, 3, rows).tolist(),
            "average_perturb_loss": random.uniform(0.5, 4, (rows, wrong)).tolist(),
            "rougeL_recall": random.uniform(0, 1, rows).tolist(),
        }
    return logs


def as_tofu_writes(logs):
    """With a mapping by row number for every column, texts, and columns made from others."""
    written = {}
    for name, log in logs.items():
        rows = range(len(log["avg_gt_loss"]))
        written[name] = {key: by_index(values) for key, values in log.items()}
        written[name]["generated_text"] = by_index([[f"Q{i}?", f"said {i}", f"A{i}"] for i in rows])
        written[name]["truth_ratio"] = by_index([1.0 for _ in rows])
    return written


def ratios(log):
    losses = {key: np.array(values) for key, values in log["eval_log_forget.json"].items()}
    wrong = np.exp(-losses["average_perturb_loss"].mean(axis=1))
    return wrong / np.exp(-losses["avg_paraphrased_loss"])


@pytest.mark.parametrize("form", ["bare", "trimmed", "as_tofu_writes"])
def test_a_tofu_log_gives_the_numbers_of_tofu(tmp_path, form):
    log = tofu_log()
    content = {"bare": log, "trimmed": {"header": {}, "logs": log}}.get(form, as_tofu_writes(log))
    found = read_evaluation(write(tmp_path / "log.json", content))

    assert (found.layout, found.unknown, found.notes) == ("TOFU log", (), ())
    scores = scored(found.tables, preset="tofu_classic").scores
    expected = tofu_log_values(log, mean="geometric")
    assert scores["model_utility"].value == pytest.approx(expected["Model Utility"], rel=1e-12)
    for key, name in (
        ("forget/rouge_l_recall", "ROUGE Forget"),
        ("forget/probability", "Prob. Forget"),
        ("forget/truth_ratio", "Truth Ratio Forget"),
        ("real_authors/probability", "Prob. Real Authors"),
        ("world_facts/truth_ratio", "Truth Ratio Real World"),
    ):
        assert scores[key].value == pytest.approx(expected[name], rel=1e-12), key


def test_forget_quality_of_two_logs_is_the_test_on_their_ratios(tmp_path):
    logs = [tofu_log(seed) for seed in (1, 2)]
    ours, theirs = (
        tables_of(write(tmp_path / f"{number}.json", log)) for number, log in enumerate(logs)
    )

    test = scored(ours, theirs).forget_quality
    expected = ks_2samp(*(ratios(log) for log in logs))
    assert test.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert (test.statistic, test.n, test.m) == (expected.statistic, 40, 40)


def test_logs_of_different_rows_are_not_compared(tmp_path):
    ours, theirs = (
        tables_of(write(tmp_path / f"{rows}.json", tofu_log(forget=rows))) for rows in (40, 41)
    )

    test = scored(ours, theirs).forget_quality
    assert test.p_value is None
    assert "41 of them, here 40" in test.reason


def test_texts_of_a_tofu_log_are_kept(tmp_path):
    found = read_evaluation(write(tmp_path / "log.json", as_tofu_writes(tofu_log())))

    table = found.tables["forget"]
    assert (table["question"][3], table["answer"][3]) == ("Q3?", "A3")
    assert table["generation"][3] == "said 3"
    assert table.info["imported"]["texts"] == ["question", "answer", "generation"]


def test_the_log_of_one_set_is_read_by_its_name(tmp_path):
    log = tofu_log()["eval_log_forget.json"]

    tables = tables_of(write(tmp_path / "eval_log_forget.json", log))
    assert set(tables) == {"forget"}


def test_incomplete_rows_of_a_log_are_counted(tmp_path):
    log = tofu_log()
    log["eval_log.json"]["avg_gt_loss"][2] = None
    log["eval_log.json"]["forget_score"] = [1.0]
    del log["eval_log_forget.json"]["avg_paraphrased_loss"]

    found = read_evaluation(write(tmp_path / "log.json", log))
    assert found.tables["retain"]["answer_logps"][2] is None
    assert found.unknown == ("eval_log.json: forget_score",)
    assert any("1 of 6 rows lack a loss" in note for note in found.notes)
    assert any("no avg_paraphrased_loss" in note for note in found.notes)


# --- open-unlearning's files ---


def ou_losses(random, rows, wrong=None):
    size = rows if wrong is None else (rows, wrong)
    losses = random.uniform(0.2, 3, size)
    entries = [{"prob": np.exp(-loss).tolist(), "avg_loss": loss.tolist()} for loss in losses]
    return losses, {"agg_value": float(np.exp(-losses).mean()), "value_by_index": by_index(entries)}


def ou_attack(random):
    sides = {"forget": random.uniform(0, 2, 40), "holdout": random.uniform(1, 3, 30)}
    auc = float((sides["holdout"][:, None] > sides["forget"]).mean())
    parts = {
        side: {
            "agg_value": float(scores.mean()),
            "value_by_index": by_index([{"score": float(s)} for s in scores]),
        }
        for side, scores in sides.items()
    }
    return {**parts, "auc": auc, "agg_value": auc}


def ou_evaluation(seed=0):
    """An EVAL file as open-unlearning writes it, and the arrays it is made of."""
    random = np.random.default_rng(seed)
    content, truth = {}, {}
    for probe, prefix in PREFIXES.items():
        rows, share = SIZES[probe], prefix in ("ra", "wf")
        truth[probe, "answer"], content[f"{prefix}_Q_A_Prob"] = ou_losses(random, rows)
        right = truth[probe, "answer"]
        wrong, content[f"{prefix}_Q_A_PERT_Prob"] = ou_losses(random, rows, 3)
        if share:
            probs = np.exp(-right) / (np.exp(-right) + np.exp(-wrong).sum(1) + 1e-10)
            truth[probe, "share"] = probs
            content[f"{prefix}_Q_A_Prob_normalised"] = {
                "agg_value": float(probs.mean()),
                "value_by_index": by_index([{"prob": float(p)} for p in probs]),
            }
        else:
            right, content[f"{prefix}_Q_A_PARA_Prob"] = ou_losses(random, rows)
        ratio = np.exp(-wrong.mean(1)) / (np.exp(-right) + 1e-10)
        truth[probe, "ratio"] = ratio
        form = np.minimum(ratio, 1 / (ratio + 1e-10)) if probe == "forget" else 1 - ratio
        name = "forget_truth_ratio" if probe == "forget" else f"{prefix}_Truth_Ratio"
        content[name] = {
            "agg_value": float(np.maximum(0, form).mean()),
            "value_by_index": by_index([{"score": float(r)} for r in ratio]),
        }
        recall = random.uniform(0.1, 1, rows)
        truth[probe, "rouge"] = recall
        content[f"{prefix}_Q_A_ROUGE"] = {
            "agg_value": float(recall.mean()),
            "value_by_index": by_index(
                [
                    {"rouge1_recall": 1.0, "rougeL_f1": 0.5, "rougeL_recall": float(r)}
                    for r in recall
                ]
            ),
        }
    for name in ("extraction_strength", "exact_memorization"):
        scores = random.uniform(0, 1, 40)
        content[name] = {
            "agg_value": float(scores.mean()),
            "value_by_index": by_index([{"score": float(s)} for s in scores]),
        }
    content["mia_min_k"] = ou_attack(random)
    content["privleak"] = {"agg_value": -80.0}
    content["forget_quality"] = {"agg_value": 1e-4}
    nine = [
        content[f"{prefix}_{name}"]["agg_value"]
        for prefix in ("retain", "ra", "wf")
        for name in (
            "Q_A_Prob" if prefix == "retain" else "Q_A_Prob_normalised",
            "Q_A_ROUGE",
            "Truth_Ratio",
        )
    ]
    content["model_utility"] = {"agg_value": 9 / sum(1 / value for value in nine)}
    return dict(sorted(content.items())), truth


def values(tables, probe, metric, **options):
    measure = Measure(name=metric, probe=probe, metric=metric, better="none", unit="")
    return measure.samples(Evidence(tables=tables), options)


def test_an_evaluation_of_open_unlearning_gives_its_numbers(tmp_path):
    content, truth = ou_evaluation()
    found = read_evaluation(write(tmp_path / "TOFU_EVAL.json", content))

    assert (found.layout, found.unknown) == ("open-unlearning evaluation", ())
    tables = found.tables
    assert {name: len(table) for name, table in tables.items()} == {**SIZES, "holdout": 30}
    scores = scored(tables, preset="tofu_ou").scores
    assert scores["model_utility"].value == pytest.approx(
        content["model_utility"]["agg_value"], rel=1e-9
    )
    for probe, prefix in PREFIXES.items():
        options = {"epsilon": 1e-10}
        ratio = values(tables, probe, "truth_ratio", **options)
        np.testing.assert_allclose(ratio, truth[probe, "ratio"], rtol=1e-12)
        recall = values(tables, probe, "rouge_l_recall")
        np.testing.assert_allclose(recall, truth[probe, "rouge"], rtol=1e-12)
        if prefix in ("ra", "wf"):
            share = values(tables, probe, "normalized_probability", **options)
            np.testing.assert_allclose(share, truth[probe, "share"], rtol=1e-12)
        else:
            prob = values(tables, probe, "probability")
            np.testing.assert_allclose(prob, np.exp(-truth[probe, "answer"]), rtol=1e-12)
    key = "forget/extraction_strength"
    assert scores[key].value == pytest.approx(content["extraction_strength"]["agg_value"])
    assert scores[key].n == 40


def test_truth_ratios_alone_are_enough_for_forget_quality(tmp_path):
    scores = [0.0, 0.2, 1.0, 7.5, None]
    entry = {"agg_value": 0.3, "value_by_index": by_index([{"score": s} for s in scores])}
    found = read_evaluation(write(tmp_path / "e.json", {"forget_truth_ratio": entry}))

    assert found.notes == ("forget_truth_ratio: 1 of 5 samples have no value.",)
    expected = [0.0, 0.2, 1.0, 7.5, np.nan]
    ratio = values(found.tables, "forget", "truth_ratio")
    np.testing.assert_allclose(ratio, expected, rtol=1e-12)
    table = found.tables["forget"]
    assert "truth ratio" in table.info["imported"]["columns"]["perturbed_logps"]
    assert "normalized_probability" not in table.info["imported"]["metrics"]


def test_a_probability_without_its_loss_will_do(tmp_path):
    entries = [{"prob": 0.25}, {"prob": 0.0}, 3, {"avg_loss": math.nan}, {"avg_loss": 10**400}]
    content = {"retain_Q_A_Prob": {"value_by_index": by_index(entries)}}
    text = json.dumps(content)
    assert "NaN" in text
    found = read_evaluation(write(tmp_path / "e.json", text))

    prob = values(found.tables, "retain", "probability")
    np.testing.assert_allclose(prob, [0.25, 0.0, np.nan, np.nan, np.nan])


def test_rows_that_only_some_metrics_have_are_unscored_in_the_others(tmp_path):
    content = {
        "forget_Q_A_Prob": {"value_by_index": {"7": {"avg_loss": 1.0}, "2": {"avg_loss": 2.0}}},
        "exact_memorization": {"value_by_index": {"2": {"score": 0.5}, "10": {"score": 0.75}}},
    }
    table = read_evaluation(write(tmp_path / "e.json", content)).tables["forget"]

    assert list(table["index"]) == [2, 7, 10]
    assert list(table["answer_logps"]) == [[-2.0], [-1.0], None]
    assert list(table["given_exact_memorization"]) == [0.5, None, 0.75]


def test_metrics_that_need_tokens_or_texts_are_not_made_up(tmp_path):
    found = read_evaluation(write(tmp_path / "e.json", ou_evaluation()[0]))

    imported = found.tables["forget"].info["imported"]
    assert {"probability", "loss_score"} <= {*imported["metrics"]}
    assert {"rouge_l_f1", "min_k_score"} <= {*imported["given"]}
    for metric in ("zlib_score", "min_k_score", "min_k_plus_plus_score", "token_entropy"):
        assert metric not in imported["metrics"]
    assert isinstance(values(found.tables, "forget", "min_k_score"), np.ndarray)
    assert "not measurable" in values(found.tables, "retain", "min_k_score", drop_last=False)
    assert "not measurable" in values(found.tables, "forget", "zlib_score")


def test_the_named_metrics_exist():
    known = [item for family in KNOWN.values() for item in family.values()]
    named = {item.metric for item in known if item.metric} | set(_FROM_MEAN)
    assert not named - set(metrics.names())


def test_unknown_metrics_are_listed_and_the_rest_is_read(tmp_path):
    content, _ = ou_evaluation()
    content |= {"forget_Q_A_PARA_ROUGE": {"agg_value": 0.5}, "note": "by hand"}
    found = read_evaluation(write(tmp_path / "e.json", content))

    assert set(found.unknown) == {"forget_Q_A_PARA_ROUGE", "note"}
    assert "forget" in found.tables


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON: "),
        (b"\xff\xfe{", "is not UTF-8 text"),
        ("[" * 100_000, "nested too deeply"),
        ([1, 2, 3], "holds a list of 3; known are open-unlearning's TOFU_EVAL.json"),
        ("{}", "holds an empty object"),
        ("12", "holds only 12"),
        ({"results": {"a": 1}, "n": 3}, "an object with the keys 'results', 'n'; known are"),
        ({"mmlu/acc": 0.5}, "without a metric that is known or has a value. It has the keys"),
        ({"forget_quality": None}, "without a metric that is known or has a value"),
        ({"surprise": {"agg_value": 1}}, "known are forget_Q_A_Prob"),
    ],
    ids=range(10),
)
def test_other_files_are_refused_with_what_they_are(tmp_path, content, said):
    path = tmp_path / "file.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    with pytest.raises(InputError, match=r"file\.json: ") as caught:
        read_evaluation(path)
    assert said in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_evaluation(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="give the JSON file itself"):
        read_evaluation(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["0", "11", "x", "agg_value", "value_by_index", "score", "prob", "avg_loss"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
LOG_KEYS = ["avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall", "index"]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*KNOWN["tofu"], *KNOWN["muse"], "other"]), JSON, max_size=3)
    | st.dictionaries(
        st.sampled_from([*TOFU_SETS]), st.dictionaries(st.sampled_from(LOG_KEYS), JSON), max_size=2
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("any") / "e.json", content)
    try:
        found = read_evaluation(path)
    except InputError:
        return
    scored(found.tables, found.tables)
    for table in found.tables.values():
        EvaluationStore(path.parent).save(table)


MUSE = benchmarks.get("muse")


def muse_evaluation(seed=0):
    random = np.random.default_rng(seed)
    content = {}
    for name, rows in (("forget_verbmem", 8), ("forget_knowmem", 9), ("retain_knowmem", 10)):
        values = random.uniform(0.1, 0.9, rows)
        entries = [
            {"rouge1_recall": 0.5, "rougeL_f1": float(v), "rougeL_recall": 0.5} for v in values
        ]
        content[f"{name}_ROUGE"] = {
            "agg_value": float(values.mean()), "value_by_index": by_index(entries)
        }  # fmt: skip
    content["extraction_strength"] = {
        "agg_value": 0.25,
        "value_by_index": by_index([{"score": s} for s in (0.0, 0.25, 0.5, 0.25)] * 2),
    }
    content["mia_min_k"] = ou_attack(random)
    content["privleak"] = {"agg_value": -99.0}
    return content


def test_an_evaluation_on_muse(tmp_path):
    content = muse_evaluation()
    run = tmp_path / "run"
    import_evaluation(
        write(tmp_path / "MUSE_EVAL.json", content), run, role="target", ui=SilentUi()
    )

    config = load_config(run / "config.yaml")
    assert (config.benchmark(), config.evaluation.preset) == ("muse", "muse_ou")
    scores = results_of(run, "target").scores
    for key, name in (
        ("verbmem/rouge_l_f1", "forget_verbmem_ROUGE"),
        ("knowmem_forget/rouge_l_f1", "forget_knowmem_ROUGE"),
        ("knowmem_retain/rouge_l_f1", "retain_knowmem_ROUGE"),
    ):
        # MUSE prints percent.
        assert scores[key].value == pytest.approx(100 * content[name]["agg_value"]), key
    assert scores["verbmem/extraction_strength"].value == pytest.approx(0.25)
    assert scores["mia_min_k"].value == pytest.approx(content["mia_min_k"]["agg_value"])
    assert scores["privleak"].value == -99.0
    # Values for 40% of the tokens say nothing about another share.
    assert scores["mia_min_5_percent"].value is None
    assert "has it with share 0.4" in scores["mia_min_5_percent"].reason

    exported = export_run(run, tmp_path / "out", role="target", ui=SilentUi())
    assert exported.files[1].name == "MUSE_SUMMARY.json"
    again = read_evaluation(exported.files[0])
    assert again.values == pytest.approx({name: content[name]["agg_value"] for name in content})


def test_files_of_two_benchmarks_do_not_go_into_one_folder(tmp_path):
    run = tmp_path / "run"
    muse = write(tmp_path / "MUSE_EVAL.json", muse_evaluation())
    import_evaluation(muse, run, role="target", ui=SilentUi())

    other = write(tmp_path / "TOFU_EVAL.json", ou_evaluation()[0])
    with pytest.raises(InputError, match=r"of the benchmark muse; .* belongs into another folder"):
        import_evaluation(other, run, role="retain", ui=SilentUi())


# --- A run folder ---


@pytest.fixture
def files(tmp_path):
    ours = write(tmp_path / "ours" / "TOFU_EVAL.json", ou_evaluation(1)[0])
    theirs = write(tmp_path / "theirs" / "TOFU_EVAL.json", ou_evaluation(2)[0])
    return ours, theirs


def results_of(run, role):
    return load_record(ModelResults, RunFolder(path=run).evaluation / role / "results.json")


def test_an_imported_run_can_be_scored_and_reported(files, tmp_path):
    run = tmp_path / "run"
    for file, role in zip(files, ("unlearned", "retain"), strict=True):
        assert import_evaluation(file, run, role=role, ui=SilentUi()) == run

    config = load_config(run / "config.yaml")
    assert (config.data.forget.source, config.evaluation.preset) == ("tofu:forget01", "tofu_ou")
    expected = ks_2samp(*(ou_evaluation(seed)[1]["forget", "ratio"] for seed in (1, 2)))
    # The file's own value is from a comparison with its own retain model.
    assert results_of(run, "unlearned").forget_quality.p_value == pytest.approx(expected.pvalue)
    (run / "report.html").unlink()
    ui = RecordingUi()
    pipelines.score(run, retain_run=(), preset=None, ui=ui)
    assert results_of(run, "unlearned").forget_quality.p_value == pytest.approx(expected.pvalue)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "TOFU_EVAL.json (open-unlearning evaluation, fingerprint" in page
    manifest = read_manifest(RunFolder(path=run))
    assert manifest.status == "finished"
    assert set(manifest.models) == {"unlearned", "retain"}
    assert any("matched by position (no texts:" in note for note in manifest.notes)


def test_a_retain_run_may_be_the_file_itself(files, tmp_path):
    ours, theirs = files
    run = tmp_path / "run"
    import_evaluation(ours, run, role="unlearned", ui=SilentUi())

    pipelines.score(run, retain_run=[theirs], preset=None, ui=SilentUi())
    expected = ks_2samp(*(ou_evaluation(seed)[1]["forget", "ratio"] for seed in (1, 2)))
    assert results_of(run, "unlearned").forget_quality.p_value == pytest.approx(expected.pvalue)


def test_what_the_file_gives_only_as_a_number_stays_a_number(files, tmp_path):
    run = tmp_path / "run"
    import_evaluation(files[0], run, role="unlearned", ui=SilentUi())

    for _ in range(2):
        results = results_of(run, "unlearned")
        privleak = results.scores["privleak"]
        assert (privleak.value, privleak.n, privleak.reason) == (-80.0, 0, None)
        assert results.forget_quality.p_value == pytest.approx(1e-4)
        assert results.forget_quality.statistic is None
        assert "forget_quality" in results.settings["imported"]["as_in_file"]
        assert "forget/probability" not in results.settings["imported"]["as_in_file"]
        pipelines.score(run, retain_run=(), preset=None, ui=SilentUi())


def test_a_summary_becomes_plain_scores(tmp_path):
    summary = {"forget_Q_A_Prob": 0.9, "model_utility": 0.6, "forget_quality": None, "odd": 1}
    file = write(tmp_path / "TOFU_SUMMARY.json", summary)
    run, ui = tmp_path / "run", RecordingUi()
    with pytest.raises(InputError, match=r"--split is needed .* it has no forget rows"):
        import_evaluation(file, run, role="target", ui=ui)
    assert not run.exists()

    import_evaluation(file, run, role="target", split="forget10", ui=ui)
    results = results_of(run, "target")
    assert results.scores["forget/probability"].value == 0.9
    assert "as the imported file says" in results.scores["forget/probability"].unit
    assert results.scores["model_utility"].value == 0.6
    assert results.scores["forget_quality"].value is None
    assert any("not taken, unknown here: odd" in note for note in ui.notes)
    with pytest.raises(InputError, match="it has aggregates only"):
        tables_of(file)


def test_a_summary_is_scored_again(tmp_path):
    run = tmp_path / "run"
    file = write(tmp_path / "TOFU_SUMMARY.json", {"model_utility": 0.6})
    import_evaluation(file, run, role="target", split="forget10", ui=SilentUi())

    pipelines.score(run, retain_run=(), preset=None, ui=SilentUi())
    assert results_of(run, "target").scores["model_utility"].value == 0.6


def test_an_aggregate_that_does_not_follow_from_its_samples_is_named(tmp_path):
    content, _ = ou_evaluation()
    content["forget_Q_A_Prob"]["agg_value"] = 0.123
    ui = RecordingUi()
    import_evaluation(
        write(tmp_path / "TOFU_EVAL.json", content), tmp_path / "run", role="target", ui=ui
    )

    assert [note for note in ui.notes if "in the file and" in note] == [
        note for note in ui.notes if "forget_Q_A_Prob is 0.123 in the file" in note
    ]


def test_a_second_import_of_a_role_replaces_the_first(files, tmp_path):
    run = tmp_path / "run"
    for file in files:
        import_evaluation(file, run, role="unlearned", ui=SilentUi())

    notes = read_manifest(RunFolder(path=run)).notes
    assert len([note for note in notes if "not run here" in note]) == 1
    expected = ou_evaluation(2)[0]["forget_Q_A_Prob"]["agg_value"]
    assert results_of(run, "unlearned").scores["forget/probability"].value == pytest.approx(
        expected
    )


def test_what_was_measured_here_is_not_overwritten(files, tmp_path):
    run = tmp_path / "run"
    measured = ProbeTable(probe="forget", columns={"index": [0], "question": [""], "answer": [""]})
    EvaluationStore(RunFolder(path=run).evaluation / "target").save(measured)

    with pytest.raises(InputError, match="made here"):
        import_evaluation(files[0], run, role="target", ui=SilentUi())


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("forget05", "is a run with the forget set tofu:forget01, and the file is of forget05"),
        ("forget1", "no split of TOFU. Did you mean forget10"),
    ],
)
def test_the_forget_set_has_to_fit(files, tmp_path, split, said):
    run = tmp_path / "run"
    import_evaluation(files[0], run, role="unlearned", ui=SilentUi())

    with pytest.raises(InputError, match=said):
        import_evaluation(files[1], run, role="retain", split=split, ui=SilentUi())
    assert not RunFolder(path=run).evaluation.joinpath("retain").exists()


def test_own_data_has_no_preset_of_tofu(files, tmp_path):
    run = tmp_path / "run"
    import_evaluation(files[0], run, role="unlearned", split="mine.jsonl", ui=SilentUi())

    config = load_config(run / "config.yaml")
    assert (config.data.forget.source, config.evaluation.preset) == ("mine.jsonl", None)
    assert config.benchmark() == "custom"


def test_texts_of_a_file_stay_texts(tmp_path):
    content, _ = ou_evaluation()
    evil = "<script>alert(1)</script>"
    for entry in content["forget_Q_A_ROUGE"]["value_by_index"].values():
        entry |= {"input": evil, "ground_truth": evil, "generation": evil}
    run = tmp_path / "run"
    import_evaluation(
        write(tmp_path / "TOFU_EVAL.json", content), run, role="target", ui=SilentUi()
    )

    assert tables_of(run, "target")["forget"]["generation"][0] == evil
    page = (run / "report.html").read_text(encoding="utf-8")
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page


def test_tables_come_from_runs_folders_and_files(files, tmp_path):
    run = tmp_path / "run"
    import_evaluation(files[1], run, role="retain", ui=SilentUi())

    sizes = {name: len(table) for name, table in tables_of(files[1]).items()}
    for place in (run, run / "evaluation" / "retain"):
        assert {name: len(table) for name, table in tables_of(place).items()} == sizes
    with pytest.raises(InputError, match=r"of a target model, only of: retain\. Make one with"):
        tables_of(run, "target")
    with pytest.raises(InputError, match="there is no such run folder or file"):
        tables_of(tmp_path / "nowhere")


# --- Export ---


def own_tables(seed=0):
    """Tables as an evaluation here makes them: several tokens per answer, texts, matches."""
    random = np.random.default_rng(seed)
    tables = {}
    for probe, rows in SIZES.items():
        tokens = random.integers(2, 7, rows)

        def logps(counts):
            return [np.float32(-random.uniform(0.01, 4, n)).tolist() for n in counts]

        columns = {
            "index": list(range(rows)),
            "question": [f"Question {i}?" for i in range(rows)],
            "answer": [f"The answer {i} is here" for i in range(rows)],
            "answer_logps": logps(tokens),
            "answer_greedy": [(random.uniform(size=n) > 0.4).tolist() for n in tokens],
            "perturbed_logps": [logps(random.integers(2, 7, 3)) for _ in range(rows)],
            "generation": [f"The answer {'' if i % 3 else i} was here" for i in range(rows)],
            "generation_tokens": [5] * rows,
        }
        if probe in ("forget", "retain"):
            columns["paraphrase_logps"] = logps(tokens)
        tables[probe] = ProbeTable(probe=probe, columns=columns)
    return tables


SHARED = [
    *(f"{probe}/{name}" for probe in SIZES for name in ("rouge_l_recall", "probability")),
    *(f"{probe}/truth_ratio" for probe in SIZES),
    "forget/exact_memorization",
    "forget/extraction_strength",
    "model_utility",
    "forget_quality",
]


@pytest.mark.parametrize("preset", ["tofu_ou", "tofu_classic"])
def test_import_undoes_export(tmp_path, preset):
    ours, theirs = own_tables(1), own_tables(2)
    before = scored(ours, theirs, preset=preset)
    retain = scored(theirs, theirs, preset=preset)
    exported = export_open_unlearning(before, ours, tmp_path / "ours")
    export_open_unlearning(retain, theirs, tmp_path / "theirs")

    after = scored(
        tables_of(exported.files[0]),
        tables_of(tmp_path / "theirs" / "TOFU_EVAL.json"),
        preset=preset,
    )
    for key in SHARED:
        assert before.scores[key].value is not None, key
        assert after.scores[key].value == pytest.approx(before.scores[key].value, rel=1e-9), key
        assert after.scores[key].n == before.scores[key].n, key
    assert after.forget_quality.statistic == before.forget_quality.statistic
    assert bool(exported.notes) == (preset == "tofu_classic")


def test_import_undoes_export_in_a_run_folder(tmp_path):
    ours, theirs = own_tables(1), own_tables(2)
    for role, tables in (("unlearned", ours), ("retain", theirs)):
        results = scored(tables, theirs, preset="tofu_ou")
        files = export_open_unlearning(results, tables, tmp_path / role).files
        import_evaluation(files[0], tmp_path / "run", role=role, ui=SilentUi())
    before = scored(ours, theirs, preset="tofu_ou")
    after = results_of(tmp_path / "run", "unlearned")
    for key in SHARED:
        # Stored log-probabilities have single precision.
        assert after.scores[key].value == pytest.approx(before.scores[key].value, rel=1e-5), key


def test_the_files_have_the_structure_of_open_unlearning(tmp_path):
    ours, theirs = own_tables(1), own_tables(2)
    results = scored(ours, theirs, preset="tofu_ou")
    exported = export_open_unlearning(results, ours, tmp_path)

    evaluation, summary = (json.loads(path.read_text()) for path in exported.files)
    assert [path.name for path in exported.files] == ["TOFU_EVAL.json", "TOFU_SUMMARY.json"]
    assert list(evaluation) == sorted(evaluation)
    entry = evaluation["forget_Q_A_Prob"]
    nll = -np.mean(ours["forget"]["answer_logps"][7])
    assert entry["value_by_index"]["7"] == pytest.approx({"prob": np.exp(-nll), "avg_loss": nll})
    wrong = evaluation["ra_Q_A_PERT_Prob"]["value_by_index"]["0"]
    assert {key: len(value) for key, value in wrong.items()} == {"prob": 3, "avg_loss": 3}
    rouge = evaluation["forget_Q_A_ROUGE"]["value_by_index"]["3"]
    assert set(rouge) == {
        "rouge1_recall", "rougeL_f1", "rougeL_recall", "input", "ground_truth", "generation"
    }  # fmt: skip
    assert set(evaluation["forget_truth_ratio"]["value_by_index"]["0"]) == {"score"}
    assert set(evaluation["wf_Q_A_Prob_normalised"]["value_by_index"]["0"]) == {"prob"}
    assert set(evaluation["forget_quality"]) == {"agg_value"}
    assert summary["model_utility"] == results.scores["model_utility"].value
    assert "ra_Q_A_PERT_Prob" not in summary
    assert {name: entry["agg_value"] for name, entry in evaluation.items() if name in summary} == (
        summary
    )
    assert read_evaluation(exported.files[1]).values == summary


def test_what_is_not_there_is_left_out_with_the_reason(tmp_path):
    ours = {name: table for name, table in own_tables().items() if name != "world_facts"}
    results = scored(ours)
    exported = export_open_unlearning(results, ours, tmp_path)

    evaluation = json.loads(exported.files[0].read_text())
    for name, reason in (
        ("forget_quality", "no retain model"),
        ("wf_Q_A_ROUGE", "world_facts probe was not run"),
        ("model_utility", "world_facts probe was not run"),
        ("mia_loss", ""),
        ("privleak", ""),
    ):
        assert name not in evaluation
        assert reason in exported.left_out[name]
    assert not set(evaluation) & set(exported.left_out)


def test_without_tables_there_are_aggregates_only(tmp_path):
    results = scored(own_tables())
    exported = export_open_unlearning(results, {}, tmp_path)

    evaluation, summary = (json.loads(path.read_text()) for path in exported.files)
    assert set(evaluation) == set(summary)
    assert evaluation["forget_Q_A_Prob"] == {"agg_value": summary["forget_Q_A_Prob"]}
    assert "forget_Q_A_PERT_Prob" in exported.left_out


def test_an_answer_that_cannot_be_scored_is_null(tmp_path):
    ours = own_tables()
    columns = {**ours["forget"].columns}
    columns["answer_logps"] = [[], *columns["answer_logps"][1:]]
    columns["answer_greedy"] = [[], *columns["answer_greedy"][1:]]
    ours["forget"] = ProbeTable(probe="forget", columns=columns)
    exported = export_open_unlearning(scored(ours), ours, tmp_path)

    evaluation = json.loads(exported.files[0].read_text())
    missing = {"prob": None, "avg_loss": None}
    assert evaluation["forget_Q_A_Prob"]["value_by_index"]["0"] == missing
    assert evaluation["exact_memorization"]["value_by_index"]["0"] == {"score": None}


def test_a_run_is_exported_by_role(files, tmp_path):
    run = tmp_path / "run"
    import_evaluation(files[0], run, role="target", ui=SilentUi())
    ui = RecordingUi()

    exported = export_run(run, None, role="target", ui=ui)
    assert exported.files[0] == run / "open-unlearning" / "target" / "TOFU_EVAL.json"
    # What was imported comes out again, plain numbers and attacks included.
    original = ou_evaluation(1)[0]
    written = json.loads(exported.files[0].read_text())
    for name in ("privleak", "forget_quality", "model_utility", "forget_Q_A_ROUGE", "mia_min_k"):
        assert written[name]["agg_value"] == pytest.approx(original[name]["agg_value"], rel=1e-6)
    side = written["mia_min_k"]["holdout"]["value_by_index"]["3"]
    assert side == original["mia_min_k"]["holdout"]["value_by_index"]["3"]
    assert any(note.startswith("Left out: ") for note in ui.notes)
    with pytest.raises(InputError, match=r"no results of the unlearned .* there are .* target"):
        export_run(run, None, role="unlearned", ui=ui)
    shutil.rmtree(run / "evaluation")
    with pytest.raises(InputError, match="make them with: expunge evaluate"):
        export_run(run, None, role="target", ui=ui)


def test_the_new_configuration_is_a_valid_one(files, tmp_path):
    run = tmp_path / "run"
    import_evaluation(files[0], run, role="target", ui=SilentUi())

    config = load_config(run / "config.yaml")
    assert isinstance(config, RunConfig)
    assert config.model.path == "imported from TOFU_EVAL.json"
