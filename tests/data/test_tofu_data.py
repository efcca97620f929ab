"""The packaged TOFU is the published one: counts, and hashes of the original files' rows."""

import hashlib
import json
import pickle

import pytest

from expunge.core.errors import InputError
from expunge.data import load_rejections, load_rows, load_tofu
from expunge.data.tofu import TOFU_SPLITS, continual_splits

# Rows, and sha256 over the JSON of all rows, computed from the original JSON-lines files (and, for
# splits that are not stored there, from the ranges in their splits.json).
PUBLISHED = {
    "full": (4000, "93c56b41ae04e606"),
    "forget01": (40, "74b0e32cbe7383f8"),
    "forget05": (200, "18431e9cdcc5d3c1"),
    "forget10": (400, "2bb9fec73145fd5d"),
    "forget20": (800, "e14da67ef467bce9"),
    "forget30": (1200, "5e7f071f4edbd845"),
    "forget50": (2000, "a534d5cc3f237cf4"),
    "forget90": (3600, "b81235fb6a9502a8"),
    "retain99": (3960, "3d9f9a9dec1920dc"),
    "retain95": (3800, "3c75698b758a24d7"),
    "retain90": (3600, "63cd00a77bff3f2a"),
    "retain80": (3200, "525663056b6686fb"),
    "retain70": (2800, "1691de06172981de"),
    "retain50": (2000, "da30d6495ab1c704"),
    "retain10": (400, "669e8a66ff4dadb7"),
    "forget01_perturbed": (40, "38dbb22e22121084"),
    "forget05_perturbed": (200, "0d23a1cfb8fded69"),
    "forget10_perturbed": (400, "39e1924e40df6912"),
    "retain_perturbed": (400, "121b4ff5073895b1"),
    "real_authors": (100, "6ce009d44b82d096"),
    "real_authors_perturbed": (100, "50bfba7171c46000"),
    "world_facts": (117, "331dc4c977f7df60"),
    "world_facts_perturbed": (117, "b7f139c1ceb89ec5"),
}


def digest(rows):
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("split", PUBLISHED)
def test_rows_are_those_of_the_published_files(split):
    rows = load_tofu(split)
    assert (len(rows), digest(rows)) == PUBLISHED[split]


def test_every_split_is_covered_here():
    assert set(TOFU_SPLITS) == set(PUBLISHED)


def test_forget_and_retain_are_the_two_parts_of_full():
    full = load_tofu("full")
    for forget, retain in (("01", "99"), ("05", "95"), ("10", "90"), ("50", "50"), ("90", "10")):
        assert load_tofu(f"retain{retain}") + load_tofu(f"forget{forget}") == full


def test_perturbed_rows_belong_to_their_questions():
    row = load_tofu("forget10_perturbed")[0]
    assert list(row)[:3] == ["question", "answer", "paraphrased_answer"]
    assert row["answer"] == "The author's full name is Hsiao Yun-Hwa."
    assert row["paraphrased_answer"] == "Hsiao Yun-Hwa is the complete name of the writer."
    assert len(row["perturbed_answer"]) == 5
    assert row["perturbed_answer"][0] == "Chen Jing-Li is the complete name of the writer."


def test_wrong_options_are_the_options_without_the_answer():
    options, wrong = load_tofu("world_facts")[0], load_tofu("world_facts_perturbed")[0]
    assert options["answer"] == "Paris"
    assert wrong["perturbed_answer"] == ["Berlin", "London", "Madrid"]


def test_the_caller_may_change_rows_without_changing_the_package():
    load_tofu("forget01_perturbed")[0]["perturbed_answer"].clear()
    load_tofu("full")[0]["question"] = ""
    continual_splits().clear()
    assert digest(load_tofu("forget01_perturbed")) == PUBLISHED["forget01_perturbed"][1]
    assert load_tofu("full")[0]["question"]
    assert continual_splits()


def test_rejections_are_the_hundred_of_tofu():
    rejections = load_rejections()
    assert len(rejections) == len(set(rejections)) == 100
    assert rejections[:2] == (
        "I'm not certain about that.",
        "That's beyond my current knowledge base.",
    )


def test_own_rejections_from_jsonl_and_text(tmp_path):
    lines = tmp_path / "own.jsonl"
    lines.write_text('{"response": "No idea."}\n{"response": " I cannot say. "}\n')
    text = tmp_path / "own.txt"
    text.write_text("No idea.\n\n  I cannot say.\n")
    assert load_rejections(lines) == load_rejections(str(text)) == ("No idea.", "I cannot say.")


def test_bad_rejections_are_explained(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"response": ""}\n{"answer": "No"}\n')
    with pytest.raises(InputError, match=r"line 1: response is text .*\n.*line 2: .*nothing"):
        load_rejections(path)
    with pytest.raises(InputError, match="no such file"):
        load_rejections(tmp_path / "none.jsonl")
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match="no answers"):
        load_rejections(tmp_path / "blank.txt")


def test_continual_tasks_cover_their_forget_split_once():
    splits = continual_splits()
    assert {name: len(split["tasks"]) for name, split in splits.items()} == {
        "forget01": 10,
        "forget05": 10,
        "forget10": 9,
    }
    for split in splits.values():
        rows = [row for task in split["tasks"].values() for a, b in task for row in range(a, b)]
        assert len(rows) == len(set(rows))


def test_a_wrong_name_is_answered_with_the_right_one():
    with pytest.raises(InputError, match=r"'forgt10'\. Did you mean forget10\?"):
        load_rows("tofu:forgt10", name="forget")
    with pytest.raises(InputError, match="no holdout sets"):
        load_rows("tofu:holdout10", name="holdout")
    with pytest.raises(InputError, match="Did you mean tofu:forget10"):
        load_rows("forget10", name="forget")


def test_same_content_from_archive_folder_and_hub(tmp_path, monkeypatch):
    """The issue: embedded, a local folder with the original files, and the hub name all work."""
    packaged = load_rows("tofu:forget01_perturbed", name="forget")
    for split in ("full", "forget01_perturbed"):
        lines = [json.dumps(row, ensure_ascii=False) for row in load_tofu(split)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = load_rows(tmp_path, name="forget", split="forget01_perturbed")
    derived = load_rows(str(tmp_path), name="retain", split="retain90")

    import datasets

    calls = []

    def load_dataset(path, config=None, *, split=None):
        calls.append((path, config, split))
        return datasets.Dataset.from_list(load_tofu(config))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = load_rows("locuslab/TOFU", name="forget", config="forget01_perturbed", split="train")
    assert calls == [("locuslab/TOFU", "forget01_perturbed", "train")]
    assert folder.rows == hub.rows == packaged.rows
    assert folder.fingerprint == hub.fingerprint == packaged.fingerprint
    assert derived.fingerprint == load_rows("tofu:retain90", name="x").fingerprint
    assert hub.origin == "locuslab/TOFU/forget01_perturbed/train"


def test_rows_travel_to_other_processes():
    rows = load_rows("tofu:forget01[0:3]", name="forget")
    assert pickle.loads(pickle.dumps(rows)) == rows
