"""Stored tables: found by key, damaged ones computed again, interrupted rows kept."""

import math

import pytest

from expunge.core.errors import InputError
from expunge.evaluation.store import EvaluationStore, finite
from expunge.evaluation.tables import COLUMNS, ProbeTable

TABLE = ProbeTable(
    probe="forget",
    columns={
        "index": [0, 1],
        "question": ["q", "ü\n\u202e"],
        "answer": ["a", ""],
        "original_answer": [None, "b"],
        "prompt_tokens": [3, 4],
        "answer_logps": [[-0.5, -1.25], []],
        "answer_greedy": [[True, False], []],
        "answer_logp_mean": [[-1.5, -2.5], []],
        "answer_logp_var": [[0.5, 0.25], []],
        "paraphrase_logps": [[-2.0], None],
        "perturbed_logps": [[[-1.0], [-3.0, -4.0]], []],
        "generation": ["text", ""],
        "generation_ids": [[1, 2], []],
        "generation_tokens": [2, 0],
        "finished": [True, False],
    },
    info={"key": "k1", "model": "m", "data": {"fingerprint": "f", "rows": 2}},
)


def test_the_example_has_every_column():
    assert set(TABLE.columns) == set(COLUMNS)


def test_a_table_is_read_back_as_it_was(tmp_path):
    store = EvaluationStore(tmp_path / "evaluation" / "target")
    store.save(TABLE)
    found = store.find("forget", "k1")
    assert found.columns == TABLE.columns
    assert {key: found.info[key] for key in TABLE.info} == TABLE.info
    assert found.info["rows"] == 2
    assert store.load()["forget"].columns == TABLE.columns


def test_another_key_is_not_found(tmp_path):
    store = EvaluationStore(tmp_path)
    store.save(TABLE)
    assert store.find("forget", "k2") is None
    assert store.find("retain", "k1") is None


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="expunge evaluate MODEL"):
        EvaluationStore(tmp_path / "nothing").load()


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_damaged_table_is_not_found_but_an_error_to_load(tmp_path, damage):
    store = EvaluationStore(tmp_path)
    store.save(TABLE)
    path = tmp_path / "forget.parquet"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    assert store.find("forget", "k1") is None
    with pytest.raises(InputError, match=r"forget\.parquet"):
        store.load()


def test_a_broken_manifest_means_nothing_is_stored(tmp_path):
    store = EvaluationStore(tmp_path)
    store.save(TABLE)
    (tmp_path / "manifest.json").write_text('{"schema_ver')
    assert store.find("forget", "k1") is None


def test_interrupted_rows_are_kept_until_the_table_is_complete(tmp_path):
    store = EvaluationStore(tmp_path)
    store.append("forget", "k1", [{"index": 0}, {"index": 1}])
    assert store.resume("forget", "k1") == [{"index": 0}, {"index": 1}]
    assert store.resume("forget", "k2") == []
    store.save(TABLE)
    assert store.resume("forget", "k1") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.parquet", "manifest.json"]


def test_a_torn_line_costs_only_itself(tmp_path):
    """Killed in the middle of a line: what came before it and what comes after counts."""
    store = EvaluationStore(tmp_path)
    store.append("forget", "k1", [{"index": 0}, {"index": 1}])
    (journal,) = tmp_path.glob(".forget-*")
    journal.write_text(journal.read_text()[:-5])
    assert store.resume("forget", "k1") == [{"index": 0}]
    store.append("forget", "k1", [{"index": 2}])
    assert store.resume("forget", "k1") == [{"index": 0}, {"index": 2}]


def test_columns_of_a_table_have_one_length():
    with pytest.raises(ValueError, match="different lengths"):
        ProbeTable(probe="forget", columns={"index": [0], "answer": []})


def test_finite_turns_what_is_no_number_into_nan():
    found = finite([-1.0, None, -math.inf])
    assert found[0] == -1.0
    assert [math.isnan(value) for value in found] == [False, True, True]


def test_annotations_are_added_to_a_stored_table(tmp_path):
    store = EvaluationStore(tmp_path)
    store.save(TABLE)
    judge = {"name": "some encoder", "fingerprint": "e1"}
    store.annotate(
        "forget", {"generation_similarity": [0.5, None]}, {"generation_similarity": judge}
    )
    found = store.find("forget", "k1")
    assert found["generation_similarity"] == [0.5, None]
    assert found.info["annotations"] == {"generation_similarity": judge}
    assert found["answer_logps"] == TABLE["answer_logps"]
    labels = {"nli_generation_first": ["entailment", "neutral"]}
    store.annotate("forget", labels, {"nli_generation_first": {"name": "n"}})
    assert set(store.find("forget", "k1").info["annotations"]) == {
        "generation_similarity",
        "nli_generation_first",
    }
