"""Sources: what is read from each kind, and what is said when it cannot be."""

import csv
import doctest
import json
import re

import pytest

import expunge.data.sources
from expunge.core.errors import InputError
from expunge.data import Columns, load_rows
from expunge.data.rows import check_overlap
from expunge.testing.tiny import toy_facts

FACTS = toy_facts(6)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        load_rows(*args, name="forget", **kwargs)
    return str(caught.value)


def as_facts(rows):
    return [{"question": row.question, "answer": row.answer} for row in rows]


# Every kind of source gives the same rows.


def make_jsonl(folder):
    return write_jsonl(folder / "facts.jsonl", FACTS)


def make_json_array(folder):
    path = folder / "facts.json"
    path.write_text(json.dumps(FACTS, indent=2))
    return path


def make_json_lines(folder):
    return write_jsonl(folder / "facts.json", FACTS)


def make_csv(folder):
    path = folder / "facts.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(FACTS)
    return path


def make_tsv(folder):
    path = folder / "facts.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter="\t")
        writer.writeheader()
        writer.writerows(FACTS)
    return path


def make_parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "facts.parquet"
    pq.write_table(pa.Table.from_pylist(FACTS), path)
    return path


def make_folder(folder):
    make_jsonl(folder)
    return folder


def make_saved(folder):
    import datasets

    datasets.Dataset.from_list(FACTS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def make_list(_folder):
    return FACTS


def make_live(_folder):
    import datasets

    return datasets.Dataset.from_list(FACTS)


def make_live_dict(_folder):
    import datasets

    return datasets.DatasetDict({"train": datasets.Dataset.from_list(FACTS)})


@pytest.mark.parametrize(
    "make",
    [
        *(make_jsonl, make_json_array, make_json_lines, make_csv, make_tsv, make_parquet),
        *(make_folder, make_saved, make_list, make_live, make_live_dict),
    ],
)
def test_every_source_gives_the_same_rows(make, tmp_path):
    rows = load_rows(make(tmp_path), name="forget")
    assert as_facts(rows) == FACTS
    assert [row.index for row in rows] == list(range(6))
    assert rows.fingerprint == load_rows(FACTS, name="other").fingerprint
    assert rows.name == "forget"


def test_a_file_may_be_given_as_text_or_path_and_sliced(tmp_path):
    path = make_jsonl(tmp_path)
    assert load_rows(str(path), name="f").rows == load_rows(path, name="f").rows
    part = load_rows(f"{path}[2:4]", name="f")
    assert as_facts(part) == FACTS[2:4]
    assert [row.index for row in part] == [0, 1]
    assert part.origin == f"{path}[2:4]"
    assert part == load_rows(path, name="f", rows=(2, 4)) == load_rows(path, name="f")[2:4]
    assert as_facts(load_rows(f"{path}[4:]", name="f")) == FACTS[4:]
    assert as_facts(load_rows(f"{path}[:1]", name="f")) == FACTS[:1]


def test_a_row_set_is_passed_on_under_another_name():
    rows = load_rows(FACTS, name="forget")
    again = load_rows(rows, name="retain", rows=(0, 2))
    assert (again.name, len(again)) == ("retain", 2)


def test_other_columns_are_kept_and_own_names_are_mapped():
    rows = load_rows(
        [{"prompt": "Q?", "completion": "A.", "paraphrased_answer": "B.", "n": 3}],
        name="forget",
        columns=Columns(question="prompt", answer="completion"),
    )
    assert (rows[0].question, rows[0].answer) == ("Q?", "A.")
    assert rows[0].fields == {"paraphrased_answer": "B.", "n": 3}


def test_a_renamed_column_decides_between_forms():
    both = [{"question": "Q?", "answer": "A.", "body": "Some text."}]
    assert load_rows(both, name="f")[0].answer == "A."
    text = load_rows(both, name="f", columns=Columns(text="body"))
    assert text[0].is_text
    assert text[0].answer == "Some text."
    assert text.is_text


def test_chat_rows_end_with_the_answer():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "Two."},
    ]
    (row,) = load_rows([{"messages": turns}], name="forget")
    assert [message.content for message in row.messages] == [t["content"] for t in turns[:-1]]
    assert (row.question, row.answer, row.is_text) == ("Second?", "Two.", False)


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [{"role": "assistant", "content": "Two."}],
        [{"role": "user", "content": "Q?"}],
        [{"role": "assistant", "content": "A"}, {"role": "user", "content": "Q?"}],
        [{"role": "user", "content": ""}, {"role": "assistant", "content": "A"}],
        [{"role": "human", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "Q?",
        ["Q?", "A."],
    ],
)
def test_broken_conversations_are_refused(turns):
    assert "[0]: " in message([{"messages": turns}])


def test_text_files_are_one_row_as_they_stand(tmp_path):
    path = tmp_path / "tale.txt"
    path.write_text("One line.\n\nAnother – line.\n", encoding="utf-8")
    (row,) = load_rows(path, name="forget")
    assert row.is_text
    assert row.answer == "One line.\n\nAnother – line.\n"
    assert row.question == ""


def test_json_lines_may_hold_separators_that_python_takes_for_line_ends(tmp_path):
    path = tmp_path / "facts.jsonl"
    facts = [{"question": "Why?", "answer": "Because\u2028of\x85that."}]
    path.write_text(json.dumps(facts[0], ensure_ascii=False) + "\n", encoding="utf-8")
    assert as_facts(load_rows(path, name="forget")) == facts


def test_csv_cells_may_be_long_and_span_lines(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "facts.csv"
    answer = "x" * 200_000 + "\nend"
    path.write_text(f'question,answer\nQ?,"{answer}"\nR?,short\n')
    rows = load_rows(path, name="forget")
    assert [row.answer for row in rows] == [answer, "short"]
    assert csv.field_size_limit() == limit


# What is said when it cannot be read.


def test_missing_file_suggests_close_names(tmp_path):
    make_jsonl(tmp_path)
    text = message(str(tmp_path / "fact.jsonl"))
    assert text.startswith(f"{tmp_path}/fact.jsonl: no such file")
    assert f"Did you mean {tmp_path}/facts.jsonl?" in text


def test_missing_file_lists_data_files_or_the_missing_folder(tmp_path):
    make_jsonl(tmp_path)
    assert "Data files in" in message(str(tmp_path / "zebra.csv"))
    assert "there is no folder" in message(str(tmp_path / "no" / "zebra.csv"))


def test_unknown_suffix_lists_the_known(tmp_path):
    (tmp_path / "facts.xlsx").write_bytes(b"x")
    assert "has the suffix .xlsx; readable are .jsonl" in message(tmp_path / "facts.xlsx")


def test_empty_sources(tmp_path):
    for name, content in {
        "a.jsonl": "",
        "b.jsonl": "\n\n",
        "c.json": "[]",
        "d.csv": "a,b\n",
    }.items():
        path = tmp_path / name
        path.write_text(content)
        assert re.search(f"{name}.*(empty|no rows)", message(path))
    assert "the forget set is empty" in message([])


def test_wrong_columns_are_listed_with_the_way_to_map_them(tmp_path):
    path = write_jsonl(tmp_path / "facts.jsonl", [{"prompt": "Q?", "completion": "A."}])
    text = message(path)
    assert "Columns found: completion, prompt." in text
    assert "data.forget.columns" in text
    path = tmp_path / "semicolons.csv"
    path.write_text("question;answer\nQ?;A.\n")
    assert "look separated by ';'" in message(path)


def test_truncated_last_line_is_named(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(FACTS[0]) + '\n{"question": "Where was')
    text = message(path)
    assert "facts.jsonl line 2: ends in the middle of a value; the file seems to be cut" in text


def test_truncated_array_and_other_json_faults(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS, indent=1)[:-20])
    assert "ends in the middle of a value; the file seems to be cut off" in message(path)
    path.write_text('{"rows": [\n{"question": "Q", "answer": "A"}]}')
    assert "an array of objects (or JSON lines) is needed" in message(path)
    path = tmp_path / "facts.jsonl"
    path.write_text("{'question': 'Q'}\n[1]\n")
    text = message(path)
    assert "line 1: not valid JSON at column 2" in text
    assert "line 2: holds a list ([1])" in text


def test_bytes_that_are_no_utf8_are_located(tmp_path):
    path = tmp_path / "facts.jsonl"
    first = json.dumps(FACTS[0]).encode() + b"\n"
    bad = '{"question": "Café?", "answer": "Oui."}\n'.encode("latin1")
    offset = len(first) + bad.index(0xE9)
    path.write_bytes(first + bad)
    assert f"facts.jsonl line 2: not UTF-8: byte 0xe9 at offset {offset}" in message(path)
    path.write_bytes(b"\xef\xbb\xbf" + first + bad)
    assert f"line 2: not UTF-8: byte 0xe9 at offset {offset + 3}" in message(path)
    path.write_bytes("x".encode("utf-16"))
    assert "UTF-16" in message(path)


def test_bad_cells_come_together_and_are_capped(tmp_path):
    cells = [None, 1987, ["A"], " ", "fine", True, {"a": 1}, 1.5, ""]
    rows = [{"question": "Q?", "answer": cell} for cell in cells] + [{"question": "Q?"}]
    text = message(write_jsonl(tmp_path / "facts.jsonl", rows))
    lines = text.splitlines()
    assert lines[0].endswith("line 1: column answer holds nothing (null); it must be text")
    assert lines[1].endswith("line 2: column answer holds a number (1987); it must be text")
    assert "line 4: column answer is empty" in lines[3]
    assert len(lines) == 6
    assert lines[5].endswith("and 4 more problems like these")


def test_csv_rows_with_too_many_cells_and_open_quotes(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("question,answer\nQ?,A\nQ?,one, two\n")
    assert "line 3: has 3 cells, the header has 2 (question, answer)" in message(path)
    path.write_text('question,answer\nQ?,"open\n')
    assert "line 2: not valid CSV" in message(path)
    path.write_text("question,answer,answer\nQ,A,B\n")
    assert "column names appear twice: answer" in message(path)


def test_parquet_that_is_none(tmp_path):
    path = tmp_path / "facts.parquet"
    path.write_bytes(b"PAR1 nothing")
    assert "cannot be read as Parquet" in message(path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("tofu:forget01[5:2]", "takes no rows"),
        ("tofu:forget01[0:41]", "the source has 40 rows"),
        ("tofu:forget01[a:2]", "whole numbers"),
        ("tofu:forget01[-3:]", "whole numbers"),
        ("tofu:forget01[3]", "not a slice"),
        ("tofu:forget01[0:1:2]", "not a slice"),
    ],
)
def test_bad_slices(source, said):
    assert said in message(source)


def test_a_slice_and_rows_together_are_refused():
    assert "use one" in message("tofu:forget01[0:3]", rows=(0, 2))


def test_folder_with_several_files_asks_for_the_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", FACTS)
    write_jsonl(tmp_path / "test.jsonl", FACTS[:1])
    assert "say which with split: test, train" in message(tmp_path)
    assert len(load_rows(tmp_path, name="f", split="test")) == 1
    assert "Did you mean train?" in message(tmp_path, split="tran")


def test_unreachable_hub_is_one_message(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'org/facts' on the Hub\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = message("org/facts", split="train")
    assert text.startswith("org/facts (split train): no such file or folder here")
    assert "Couldn't reach 'org/facts' on the Hub." in text
    assert "details" not in text
    assert "tofu:forget05" in message("locuslab/TOFU", config="forget05")


def test_a_data_set_without_the_split(monkeypatch):
    import datasets

    both = {name: datasets.Dataset.from_list(FACTS) for name in ("train", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.DatasetDict(both))
    assert "no split is given; possible: train, test" in message("org/facts")


@pytest.mark.parametrize("source", [7, {"question": "Q"}, b"x", iter([])])
def test_things_that_are_no_source(source):
    assert "cannot read rows from" in message(source)


def test_a_list_of_something_else():
    assert "row [1] of the given list is text ('B')" in message([FACTS[0], "B"])


# Overlap


def test_overlap_is_refused_with_its_size_and_first_row():
    forget = load_rows(FACTS[2:5], name="forget")
    retain = load_rows(
        [*FACTS[:4], {**FACTS[4], "answer": FACTS[4]["answer"] + " "}], name="retain"
    )
    with pytest.raises(InputError, match=r"3 of 3 rows to forget .*row 0 to forget, row 2 to ret"):
        check_overlap(forget, retain)


def test_disjoint_sets_pass_and_so_does_the_same_question_with_another_answer():
    forget = load_rows(FACTS[:3], name="forget")
    check_overlap(forget, load_rows(FACTS[3:], name="retain"))
    check_overlap(forget, load_rows([{**FACTS[0], "answer": "Nobody knows."}], name="retain"))


def test_plain_text_overlap():
    text = load_rows([{"text": "A tale."}], name="forget")
    with pytest.raises(InputError, match="1 of 1"):
        check_overlap(text, load_rows([{"text": "A tale.\n"}, {"text": "B"}], name="retain"))


def test_fingerprint_sees_every_column_and_the_order():
    base = load_rows(FACTS, name="f").fingerprint
    assert load_rows(FACTS[::-1], name="f").fingerprint != base
    assert load_rows([{**fact, "note": 1} for fact in FACTS], name="f").fingerprint != base
    moved = [{"question": FACTS[0]["question"] + "a", "answer": "b"}]
    other = [{"question": FACTS[0]["question"], "answer": "ab"}]
    assert load_rows(moved, name="f").fingerprint != load_rows(other, name="f").fingerprint


def test_examples_in_the_documentation():
    assert doctest.testmod(expunge.data.sources).failed == 0
