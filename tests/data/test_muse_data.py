"""MUSE from a folder or the hub: every layout that exists, and what is said of a broken one."""

import itertools
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.core.errors import InputError
from expunge.data import encode_rows, encode_text, load_rows, make_template
from expunge.data.golden import ToyTokenizer
from expunge.data.muse import (
    _LAYOUT,
    _PREFERRED,
    knowmem_prompt,
    load_muse,
    scalability_sets,
    sustainability_sets,
)
from expunge.data.readers import SUFFIXES
from expunge.testing.muse import tiny_muse, write_rows, write_text
from expunge.testing.tiny import tiny_tokenizer

EVALUATED = ("verbmem", "knowmem", "privleak")


@pytest.fixture
def folder(tmp_path):
    return tiny_muse(tmp_path / "muse")


def message(source, **options):
    with pytest.raises(InputError) as caught:
        load_muse(source, **options)
    return str(caught.value)


def test_every_part_is_read(folder):
    corpus = load_muse(folder)
    expected = {f"{part}/{name}" for part, item in _LAYOUT.items() for name in item.names}
    assert set(corpus.sets) == {key for key in expected if not key.startswith("train/")}
    pair = corpus.need("verbmem/forget")[0]
    assert (pair.question[:6], pair.answer) == ("In the", "ships.")
    asked = corpus.need("knowmem/retain_qa")[1]
    assert "keeper 1 of the retain harbour" in asked.question
    assert asked.answer == "4 ships"
    assert corpus.need("privleak/holdout").is_text
    assert len(corpus.need("privleak/holdout")) == 4
    assert len(corpus.need("raw/forget")) == 1
    assert corpus.find("train/full") is None


def test_only_the_parts_that_are_asked_for_are_read(folder):
    write_text(folder / "raw" / "forget.txt", "")
    corpus = load_muse(folder, parts=EVALUATED)
    assert {key.partition("/")[0] for key in corpus.sets} == set(EVALUATED)
    assert "raw/forget.txt: the file is empty" in message(folder, parts=("raw",))


# The same rows, as the published code, a download of the hub or a person writes them.


def as_strings(path, rows):
    path.with_suffix(".json").write_text(json.dumps([row["text"] for row in rows]))


def as_array(path, rows):
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1))


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))


def as_shards(path, rows):
    for i, part in enumerate((rows[:1], rows[1:])):
        name = f"{path.stem}-0000{i}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part), path.with_name(name))


@pytest.mark.parametrize("write", [as_strings, as_array, as_parquet, as_shards])
def test_every_form_of_a_file_gives_the_same_rows(folder, write):
    path = folder / "privleak" / "forget.jsonl"
    before = load_muse(folder, parts=("privleak",)).need("privleak/forget")
    path.unlink()
    write(path, [{"text": row.answer} for row in before])
    after = load_muse(folder, parts=("privleak",)).need("privleak/forget")
    assert after.fingerprint == before.fingerprint


def test_names_of_older_revisions_are_known(folder):
    for old, new in (("retain2_qa", "retain_qa"), ("retain2_qa_icl", "retain_qa_icl")):
        (folder / "knowmem" / f"{new}.jsonl").rename(folder / "knowmem" / f"{old}.jsonl")
    (folder / "privleak" / "retain.jsonl").rename(folder / "privleak" / "retain2.jsonl")
    corpus = load_muse(folder, parts=EVALUATED)
    assert {"knowmem/retain_qa", "knowmem/retain_qa_icl", "privleak/retain"} <= set(corpus.sets)


def test_rows_go_before_the_same_text_in_one_piece(folder):
    """The published code writes raw texts as an array and joined by blank lines."""
    (folder / "raw" / "forget.json").write_text('["one", "two"]')
    write_text(folder / "raw" / "forget.txt", "one\n\ntwo")
    assert [row.answer for row in load_muse(folder).need("raw/forget")] == ["one", "two"]


def test_every_readable_suffix_has_its_place():
    assert set(_PREFERRED) == set(SUFFIXES)


# What may be missing, and what may not.


def test_parts_that_are_missing_are_absent(tmp_path):
    folder = tiny_muse(tmp_path / "muse", folds=0)
    for path in (folder / "knowmem").glob("retain*"):
        path.unlink()
    (folder / "privleak" / "retain.jsonl").unlink()
    corpus = load_muse(folder)
    assert corpus.find("scal/forget_1") is None
    assert corpus.find("knowmem/retain_qa") is None
    assert corpus.find("knowmem/forget_qa") is not None
    with pytest.raises(InputError, match=r"holds no part of MUSE\. Expected: scal/ with forget_1"):
        scalability_sets(folder)
    with pytest.raises(InputError, match=r"train/full\.\*: missing; .* must hold plain text"):
        corpus.need("train/full")


def test_all_problems_come_in_one_error(folder):
    (folder / "knowmem" / "retain_qa_icl.jsonl").unlink()
    (folder / "privleak" / "holdout.jsonl").rename(folder / "privleak" / "hold.jsonl")
    (folder / "scal" / "forget_2.txt").unlink()
    write_rows(folder / "verbmem" / "forget.jsonl", [{"prompt": "a", "answer": "b"}])
    write_rows(folder / "knowmem" / "forget_qa.jsonl", [{"question": "q", "answer": ""}])
    write_text(folder / "privleak" / "retain.txt", "all in one")
    (folder / "privleak" / "retain.jsonl").unlink()
    said = message(folder)
    assert "6 problems" in said
    for pattern in (
        r"knowmem/retain_qa_icl\.\* +missing; .* rows with question and answer",
        r"privleak/holdout\.\* +missing; .* rows with text .* privleak/ has .*hold\.jsonl",
        r"scal/forget_2\.\* +missing; .* plain text",
        r"verbmem/forget\.jsonl: no column gt; .*prompt and gt.*Columns: answer, prompt",
        r"knowmem/forget_qa\.jsonl line 1 +column answer is empty",
        r"privleak/retain\.txt: is running text; privleak/retain must hold rows with text",
    ):
        assert re.search(pattern, said), pattern


def test_a_wrong_folder_is_answered_with_the_right_one(folder, tmp_path):
    assert f"Did you mean {folder}?" in message(tmp_path)
    assert f"Did you mean {folder}?" in message(folder / "raw")
    (tmp_path / "empty").mkdir()
    said = message(tmp_path / "empty")
    assert "holds no part of MUSE" in said
    assert "verbmem/ with forget: rows with prompt and gt" in said
    assert "no such folder. Give a folder" in message(tmp_path / "none")
    assert "Did you mean knowmem?" in message(folder, parts=("knomem",))


def test_an_empty_part_is_a_problem(folder):
    (folder / "verbmem" / "forget.jsonl").unlink()
    assert re.search(r"verbmem/forget\.\* +missing.*has no data files", message(folder))


# The hub.


class Hub:
    """What `datasets` gives of a copy of MUSE on the hub."""

    def __init__(self, folder, rename=None):
        self.folder = folder
        self.rename = rename or {}

    def get_dataset_config_names(self, source):
        return [path.name for path in self.folder.iterdir()]

    def load_dataset(self, source, part):
        rows = load_muse(self.folder, parts=(part,)).sets
        columns = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer")}
        first, second = columns.get(part, ("", "text"))
        return {
            self.rename.get(key, key.partition("/")[2]): [
                {first: row.question, second: row.answer, "id": row.index} for row in found
            ]
            for key, found in rows.items()
        }


def test_the_hub_gives_the_same_sets(folder, monkeypatch):
    import datasets

    hub = Hub(folder, {"knowmem/retain_qa": "retain2_qa"})
    monkeypatch.setattr(datasets, "get_dataset_config_names", hub.get_dataset_config_names)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    here, there = load_muse(folder), load_muse("muse-bench/MUSE-News")
    assert {key: rows.fingerprint for key, rows in there.sets.items()} == {
        key: rows.fingerprint for key, rows in here.sets.items()
    }
    assert there.need("raw/forget").origin == "muse-bench/MUSE-News/raw/forget"
    (folder / "knowmem" / "forget_qa_icl.jsonl").unlink()
    (folder / "knowmem" / "forget_qa.jsonl").unlink()
    hub.rename = {"knowmem/retain_qa": "retain_questions"}
    said = message("muse-bench/MUSE-News")
    assert "muse-bench/MUSE-News/knowmem/retain_qa" in said
    assert "missing; knowmem/retain_qa must hold rows with question and answer" in said


def test_without_network_the_message_says_what_else_works(monkeypatch):
    import datasets

    def offline(source):
        raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr(datasets, "get_dataset_config_names", offline)
    said = message("muse-bench/MUSE-Books")
    assert "could not be loaded as a hub data set: no route to the hub. Without network" in said
    assert "make_muse_standin.py" in said


# Scalability and sustainability.


def test_folds_are_nested_or_disjoint_and_ready_to_be_forgotten(folder, caplog):
    growing, separate = scalability_sets(folder), sustainability_sets(folder)
    assert len(growing) == len(separate) == 4
    assert {rows.name for rows in (*growing, *separate)} == {"forget"}
    first = load_muse(folder).need("raw/forget")
    assert growing[0].fingerprint == separate[0].fingerprint == first.fingerprint
    for smaller, larger in itertools.pairwise(growing):
        assert smaller[0].answer in larger[0].answer
    assert not caplog.records


def test_folds_that_are_not_what_they_should_be_are_told(folder, caplog):
    write_text(folder / "scal" / "forget_3.txt", "something else")
    scalability_sets(folder)
    assert "forget_3.txt does not contain all of forget_2" in caplog.text
    write_rows(folder / "sust" / "forget_4.jsonl", [{"text": "new"}, {"text": "new too"}])
    again = load_muse(folder).need("sust/forget_2")[0].answer
    write_rows(folder / "sust" / "forget_3.jsonl", [{"text": again}, {"text": "new"}])
    sustainability_sets(folder)
    assert "1 texts of" in caplog.text
    assert "are also in" in caplog.text


# The in-context prompt and the way into training.


def test_the_prompt_is_that_of_the_released_code():
    """Golden vector `knowmem_prompt`: muse_bench, knowmem/get_rouge_qa.py:run_completions."""
    icl = [{"question": "Where is Orla from?", "answer": "Orla Quist is from Bergen."}]
    assert knowmem_prompt(load_rows(icl, name="icl"), "Who wrote Glass Harbour?") == (
        "Question: Where is Orla from?\nAnswer: Orla Quist is from Bergen.\n\n"
        "Question: Who wrote Glass Harbour?\nAnswer: "
    )


def test_raw_text_goes_through_the_published_chunking(folder):
    """A recipe names the files: forget is raw/forget, retain is raw/retain1."""
    alphabet = ToyTokenizer("".join(map(chr, range(10, 127))))
    forget = load_rows(folder / "raw" / "forget.txt", name="forget")
    retain = load_rows(folder / "raw", split="retain1", name="retain")
    assert forget.fingerprint == load_muse(folder).need("raw/forget").fingerprint
    for rows in (forget, retain, load_muse(folder).need("raw/retain2")):
        pieces = encode_text(rows, alphabet, max_length=32, form="muse")
        assert all(len(piece.input_ids) == 32 for piece in pieces)
        assert all(piece.input_ids[0] == alphabet.bos_token_id for piece in pieces)
        text = "".join(alphabet.decode(piece.input_ids) for piece in pieces)
        assert text.startswith(rows[0].answer)


def test_rows_joined_by_blank_lines_are_the_text_in_one_piece(folder):
    tokenizer = tiny_tokenizer("llama3")
    rows = load_rows([{"text": "one ship"}, {"text": "two ships"}], name="forget")
    whole = load_rows([{"text": "one ship\n\ntwo ships"}], name="forget")
    one, other = (encode_text(found, tokenizer, max_length=8) for found in (rows, whole))
    assert [piece.input_ids for piece in one] == [piece.input_ids for piece in other]


@pytest.mark.parametrize("family", ["llama3", "smollm2"])
def test_a_long_text_row_is_cut_and_keeps_all_of_its_tokens_before(family):
    """2048 tokens, the length of MUSE, with and without a beginning-of-sequence token."""
    tokenizer = tiny_tokenizer(family)
    template = make_template(tokenizer, "auto")
    rows = load_rows([{"text": "the keeper wrote ships " * 900}], name="forget")
    (cut,) = encode_rows(rows, template, max_length=2048, on_too_long="truncate")
    assert len(cut.input_ids) == 2048
    assert cut.num_labels == 2047
    with pytest.raises(InputError, match="cut plain text into pieces with text_form"):
        encode_rows(rows, template, max_length=2048)
    pieces = encode_text(rows, tokenizer, max_length=2048, form="muse")
    assert {len(piece.input_ids) for piece in pieces} == {2048}
