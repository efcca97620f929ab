"""The script that makes a corpus in the shape of MUSE from novels in the public domain."""

import gzip
import importlib
import json
import re
import struct
import sys
import zlib
from pathlib import Path

import pytest
import yaml

from expunge.core.errors import InputError
from expunge.data.muse import load_muse, scalability_sets, sustainability_sets

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SIZES = ["--pairs", "3", "--prompt-words", "8", "--answer-words", "6"]
SIZES += ["--samples", "2", "--sample-words", "20"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("make_muse_standin")
    for name in [name for name in sys.modules if name.partition(".")[0] == "muse_standin"]:
        del sys.modules[name]
    del sys.modules["make_muse_standin"]


def novel(name, chapters, sentences=12):
    """A novel as Project Gutenberg has it: a frame, headings, lines of 60 letters, emphasis."""
    parts = [f"Project Gutenberg\n*** START OF THIS EBOOK {name} ***\nTitle\n\nVOLUME I\n"]
    for chapter in range(1, chapters + 1):
        parts.append(f"CHAPTER {'I' * chapter if chapter < 4 else chapter}\n\n")
        for i in range(sentences):
            parts.append(f"In {name} chapter {chapter} Mr. Keel wrote\ndown “{i + 3} ships.”")
            parts.append("\n\n" if i % 3 == 2 else "  ")
    parts.append("\n\nTHE END\n\nMore books\n*** END OF THIS EBOOK ***\nlicence\n")
    return "".join(parts)


def item(chapter, number, *, book="sea", answer="ships"):
    return {
        "chapter": chapter,
        "question": f"What was counted as {number} in chapter {chapter} of {book}?",
        "answer": answer,
        # Other quotation marks than in the text, and no emphasis.
        "evidence": f'In {book} chapter {chapter} Mr. Keel wrote down "{number} ships',
    }


QUESTIONS = {
    book: {
        "title": book,
        "examples": [item(1, 3, book=book)],
        "questions": [item(1, 4, book=book), item(2, 5, book=book), item(3, 5, book=book)],
    }
    for book in ("sea", "land")
}


@pytest.fixture
def arguments(tmp_path):
    """All but the output."""
    texts = []
    for name, chapters in (("sea", 8), ("land", 3), ("moon", 2)):
        (tmp_path / f"{name}.txt").write_text(novel(name, chapters), encoding="utf-8")
        texts += ["--text", f"{name}={tmp_path / name}.txt"]
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS), encoding="utf-8")
    parts = ["--forget", "sea:1-2", "--retain1", "land:1-1", "--retain2", "land:2-2"]
    parts += ["--holdout", "moon:1-2", "--questions", str(tmp_path / "questions.yaml")]
    return [*texts, *parts, *SIZES]


def test_the_folder_has_every_part(script, arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert script.main(["--output", str(out), *arguments]) == 0
    corpus = load_muse(out)
    assert set(corpus.sets) == {
        *(f"raw/{name}" for name in ("forget", "retain1", "retain2", "holdout")),
        *(f"{part}/forget_{i}" for part in ("scal", "sust") for i in (1, 2, 3, 4)),
        *(f"knowmem/{side}_qa{end}" for side in ("forget", "retain") for end in ("", "_icl")),
        *(f"privleak/{name}" for name in ("forget", "retain", "holdout")),
        "verbmem/forget",
        "train/forget",
        "train/retain",
    }
    raw = corpus.need("raw/forget")[0].answer
    assert raw.startswith("In sea chapter 1 Mr. Keel wrote down “3 ships.” In sea chapter 1")
    assert raw.strip().endswith("In sea chapter 2 Mr. Keel wrote down “14 ships.”")
    for leftover in ("CHAPTER", "THE END", "VOLUME", "Gutenberg", "licence"):
        assert leftover not in raw
    assert "out: 22 files" in capsys.readouterr().out


def test_pairs_and_samples_are_pieces_of_their_text(script, arguments, tmp_path):
    out = tmp_path / "out"
    script.main(["--output", str(out), *arguments])
    corpus = load_muse(out)
    raw = corpus.need("raw/forget")[0].answer
    for row in corpus.need("verbmem/forget"):
        assert f"{row.question} {row.answer}" in raw
        assert (len(row.question.split()), len(row.answer.split())) == (8, 6)
        # "Mr." ends no sentence, so none begins with Keel.
        assert row.question.startswith("In sea")
    for name, source in (("forget", "raw/forget"), ("holdout", "raw/holdout")):
        for row in corpus.need(f"privleak/{name}"):
            assert row.answer in corpus.need(source)[0].answer
            assert len(row.answer.split()) == 20
    kept = corpus.need("train/retain")[0].answer
    assert all(row.answer in kept for row in corpus.need("privleak/retain"))


def test_a_continuation_follows_its_prompt_in_the_same_paragraph(script, arguments, tmp_path):
    """Sentences have ten words, paragraphs three sentences: 4 of 12 borders are a blank line."""
    sizes = ["--prompt-words", "10", "--answer-words", "10", "--pairs"]
    out = tmp_path / "out"
    assert script.main(["--output", str(out), *arguments, *sizes, "8"]) == 0
    corpus = load_muse(out)
    raw = corpus.need("raw/forget")[0].answer
    assert all(f"{row.question} {row.answer}" in raw for row in corpus.need("verbmem/forget"))
    assert script.main(["--output", str(out), *arguments, *sizes, "9"]) == 2


def test_folds_are_nested_and_disjoint(script, arguments, tmp_path, caplog):
    out = tmp_path / "out"
    script.main(["--output", str(out), *arguments])
    growing, separate = scalability_sets(out), sustainability_sets(out)
    chapters = [{n for n in range(1, 9) if f"chapter {n} " in rows[0].answer} for rows in separate]
    assert chapters == [{1, 2}, {3, 4}, {5, 6}, {7, 8}]
    assert [len(rows[0].answer.split()) for rows in growing] == [240, 480, 720, 960]
    assert not caplog.records
    assert script.main(["--output", str(out), *arguments, "--folds", "1"]) == 0
    assert not (out / "scal").exists()


def test_only_questions_about_the_chosen_chapters_are_asked(script, arguments, tmp_path):
    out = tmp_path / "out"
    script.main(["--output", str(out), *arguments])
    corpus = load_muse(out)
    asked = [row.question for row in corpus.need("knowmem/forget_qa")]
    assert asked == [QUESTIONS["sea"]["questions"][i]["question"] for i in (0, 1)]
    shown = corpus.need("knowmem/forget_qa_icl")
    assert [row.answer for row in shown] == ["ships"]
    assert not {row.question for row in shown} & set(asked)
    assert len(corpus.need("knowmem/retain_qa")) == 2


def test_the_same_arguments_give_the_same_files(script, arguments, tmp_path):
    def made(name, *more):
        script.main(["--output", str(tmp_path / name), *arguments, *more])
        folder = tmp_path / name
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}

    first = made("one")
    assert made("two") == first
    assert made("one") == first  # made again in the same place
    other = made("three", "--seed", "1")
    assert other["verbmem/forget.jsonl"] != first["verbmem/forget.jsonl"]
    assert other["raw/forget.txt"] == first["raw/forget.txt"]


def test_the_readme_names_source_licence_and_command(script, arguments, tmp_path):
    script.main(["--output", str(tmp_path / "out"), *arguments])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "given by hand" in text
    assert "public domain" in script._SOURCES["package"]
    assert "Apache-2.0" in text
    assert "| forget | sea:1-2 |" in text
    assert "| verbmem/forget.jsonl | 3 rows with prompt and gt |" in text
    assert "--text sea=FILE" in text
    assert "--pairs 3" in text
    assert str(tmp_path) not in text
    assert "{" not in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--forget", "sky:1-2"], "sky:1-2 .*no such book; there are land, moon, sea"),
        (["--forget", "sea:7-9"], "sea:7-9 .*the book has 8 chapters"),
        (["--retain2", "land:1-2"], "land:1-2 .*shares chapter 1 with land:1-1"),
        (["--holdout", "sea:3-4"], "shares chapter 3 with sea:3-4|sea:3-4 .*shares chapter 3"),
        (["--forget", "sea:1-5"], "more sets of that length; take fewer chapters, or --folds 1"),
        (["--forget", "sea"], "write BOOK:FIRST-LAST"),
        (["--samples", "99"], "privleak forget samples: the text gives .* 99 are asked for"),
        (["--pairs", "0"], "--pairs must be at least 1"),
        (["--folds", "5"], "--folds must be at most 4"),
        (["--questions", "none.yaml"], "--questions none.yaml: no such file"),
        (["--text", "sun=none.txt"], "write BOOK=FILE with a text file that exists"),
    ],
)
def test_what_cannot_be_made_is_explained(script, arguments, tmp_path, capsys, more, said):
    out = tmp_path / "out"
    assert script.main(["--output", str(out), *arguments, *more]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not out.exists()


def test_a_folder_that_holds_something_else_is_left_alone(script, arguments, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    assert script.main(["--output", str(out), *arguments]) == 2
    assert "give another one" in capsys.readouterr().err
    assert (out / "mine.txt").exists()


def test_questions_that_do_not_fit_the_text_are_left_out(script, arguments, tmp_path, capsys):
    spoilt = json.loads(json.dumps(QUESTIONS))
    spoilt["sea"]["questions"].append({**item(1, 4), "question": "Wrong?", "answer": "boats"})
    path = tmp_path / "questions.yaml"
    path.write_text(yaml.safe_dump(spoilt))
    assert script.main(["--output", str(tmp_path / "out"), *arguments]) == 0
    assert "left out, not in this text: Wrong?" in capsys.readouterr().err
    assert "Wrong?" not in (tmp_path / "out" / "knowmem" / "forget_qa.jsonl").read_text()
    for question in spoilt["land"]["questions"]:
        question["chapter"] = 1
        question["evidence"] = "from another book"
    path.write_text(yaml.safe_dump(spoilt))
    assert script.main(["--output", str(tmp_path / "other"), *arguments]) == 2
    assert "3 of 4 retain questions do not fit their chapters" in capsys.readouterr().err


def test_without_questions_and_retain2_the_rest_is_made(script, arguments, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "questions.yaml").write_text("{}")
    assert script.main(["--output", str(out), *arguments, "--retain2", "none"]) == 0
    assert (
        "no knowmem/forget_qa: no questions and examples about sea:1-2" in capsys.readouterr().err
    )
    corpus = load_muse(out)
    assert corpus.find("raw/retain2") is None
    assert corpus.find("knowmem/forget_qa") is None
    assert "| retain2 | none |" in (out / "README.md").read_text()


def test_wrapped_lines_do_not_end_a_book(script):
    """A line of running text may begin with "end of" or "the end"."""
    from muse_standin.books import chapters

    text = "Chapter 1\n\nIt was the\nend of the day and\nthe end of all.\n\nChapter 2\n\nOn.\n"
    assert chapters(text) == ["It was the end of the day and the end of all.", "On."]
    with pytest.raises(InputError, match='such as "Chapter 1"'):
        chapters("no headings here")


# R's data files.


def r_text(text):
    data = text.encode()
    return struct.pack(">ii", 0x40009, len(data)) + data


def r_texts(*texts):
    return struct.pack(">ii", 16, len(texts)) + b"".join(map(r_text, texts))


def r_ints(*numbers):
    return struct.pack(f">ii{len(numbers)}i", 13, len(numbers), *numbers)


def r_named(values, symbol):
    """A list with names; `symbol` is the code of the symbol "names", written or referred to."""
    names = struct.pack(">i", 0x402) + symbol + r_texts(*values) + struct.pack(">i", 0xFE)
    return struct.pack(">ii", 0x213, len(values)) + b"".join(values.values()) + names


def r_file(value):
    head = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8"
    return head + value


def r_package(folder, **books):
    """A package with lazy-loaded data, one text vector for each book."""
    chunks = {}
    stored = b""
    for book, lines in books.items():
        packed = r_file(r_texts(*lines))
        chunk = struct.pack(">i", len(packed)) + zlib.compress(packed)
        chunks[book] = r_ints(len(stored), len(chunk))
        stored += chunk
    names = struct.pack(">i", 1) + r_text("names")
    again = struct.pack(">i", 0x1FF)
    variables = r_named(chunks, names)
    index = r_named({"variables": variables, "compressed": r_ints(1)}, again)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "Rdata.rdx").write_bytes(gzip.compress(r_file(index)))
    (folder / "data" / "Rdata.rdb").write_bytes(stored)


def test_the_r_package_is_read_without_r(script, tmp_path):
    from muse_standin.books import read_library

    r_package(tmp_path / "austen", sea=["Chapter 1", "", "“Über” ships."], land=["x"])
    found = read_library(tmp_path / "austen")
    assert found == {"sea": "Chapter 1\n\n“Über” ships.", "land": "x"}
    with pytest.raises(InputError, match=r"no R package with data/Rdata\.rdx"):
        read_library(tmp_path)


def test_without_debian_the_message_says_what_else_works(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main(["--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "there is no apt-get here" in said
    assert "--library" in said
    assert "--text" in said


# The questions that come with the project.


def test_the_questions_of_the_project(script):
    """Whether they are true of the novels is checked by the script, which has the novels."""
    books = yaml.safe_load((SCRIPTS / "muse_standin" / "questions.yaml").read_text())
    plan = script.plan_of(script.parser().parse_args(["--output", "x"]))
    for part, least in ((plan.forget, 30), (plan.retain1, 30)):
        book = books[part.book]
        asked = [q for q in book["questions"] if part.first <= q["chapter"] <= part.last]
        assert len(asked) >= least
        assert len(book["examples"]) == 10
        assert all(part.first <= q["chapter"] <= part.last for q in book["examples"])
    for book in books.values():
        every = [*book["examples"], *book["questions"]]
        assert len({q["question"] for q in every}) == len(every)
        for question in every:
            assert 1 <= len(question["answer"].split()) <= 8
            assert question["question"].endswith("?")
            assert question["answer"].lower() in question["evidence"].lower()
