"""The proxy file: what is read, what is matched to which row, and what is measured."""

import json

import pytest

from expunge.core.errors import InputError
from expunge.core.fingerprint import fingerprint
from expunge.data.proxies import (
    ProxyLine,
    ProxySettings,
    load_proxies,
    match_lines,
    read_proxies,
    row_id,
    summarize,
    write_proxies,
)
from expunge.data.sources import load_rows

FACTS = [
    {"question": f"Where was person {i} born?", "answer": f"Person {i} was born in town {i}."}
    for i in range(4)
]


@pytest.fixture
def forget():
    return load_rows(FACTS, name="forget")


def save(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def by_hand(i, **more):
    return {"question": FACTS[i]["question"], "proxy_answer": f"In village {i}.", **more}


def test_lines_come_back_as_they_were_written(tmp_path):
    line = ProxyLine(
        id="0a",
        question="Où ? \u2028",
        answer="Là.",
        proxy_answer="Ici « là ».",
        generator="in_context",
        status="retried",
        attempts=3,
        rejected=("refusal", "too_close"),
        prompt_sha256="ab",
        model="m",
        settings="cd",
        made=fingerprint("Ici « là »."),
    )
    path = tmp_path / "proxies.jsonl"
    write_proxies(path, [line, line])
    assert read_proxies(path) == [line, line]
    first = ["id", "question", "answer", "proxy_answer", "generator", "status", "attempts"]
    assert list(json.loads(path.read_text().split("\n")[0]))[: len(first)] == first
    assert not line.by_hand


def test_a_file_made_by_hand_needs_two_columns(tmp_path, forget):
    lines = [by_hand(i) for i in (3, 1, 0)] + [by_hand(2, answer=FACTS[2]["answer"])]
    path = save(tmp_path / "p.jsonl", *lines)
    assert load_proxies(path, forget) == [f"In village {i}." for i in range(4)]
    assert all(line.by_hand for line in read_proxies(path))


def test_a_csv_file_works_as_well(tmp_path, forget):
    rows = [f"{fact['question']},In village {i}." for i, fact in enumerate(FACTS)]
    path = tmp_path / "p.csv"
    path.write_text("\n".join(["question,proxy_answer", *rows]))
    assert load_proxies(path, forget)[3] == "In village 3."


def test_load_lists_every_problem(tmp_path, forget):
    path = save(tmp_path / "p.jsonl", by_hand(0), {**by_hand(1), "proxy_answer": "  "}, by_hand(3))
    with pytest.raises(InputError) as caught:
        load_proxies(path, forget)
    message = str(caught.value)
    assert "row 1" in message
    assert "has an empty proxy answer" in message
    assert "row 2" in message
    assert "has no proxy answer" in message
    assert "row 3" not in message
    assert "expunge proxies" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "Who is that?", "proxy_answer": "x"}, "no question of the forget set"),
        (by_hand(2), "second proxy answer"),
        (by_hand(3, answer="Person 3 was born at sea."), "made for other data"),
    ],
)
def test_lines_that_fit_no_row(tmp_path, forget, line, said):
    others = [by_hand(i) for i in range(4) if line["question"] != FACTS[3]["question"] or i != 3]
    path = save(tmp_path / "p.jsonl", *others, line)
    with pytest.raises(InputError, match=said):
        load_proxies(path, forget)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "q", "proxy_answer": "a"', "line 1: ends in the middle"),
        ('{"question": "q"}', "proxy_answer holds nothing"),
        ('{"question": 3, "proxy_answer": "a"}', "question holds a number"),
        ('["q", "a"]', "a JSON object is needed"),
    ],
)
def test_broken_files(tmp_path, text, said):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_proxies(path)


def test_a_missing_file_says_how_to_make_it(tmp_path, forget):
    with pytest.raises(InputError, match="expunge proxies"):
        load_proxies(tmp_path / "none.jsonl", forget)


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "p.jsonl").touch()
    assert read_proxies(tmp_path / "p.jsonl") == []


def test_a_repeated_question_is_told_apart_by_its_answer():
    facts = [
        {"question": "Born where?", "answer": "In Oslo."},
        {"question": "Born where?", "answer": "In Lima."},
    ]
    forget = load_rows(facts, name="forget")

    def matched(*lines):
        found = match_lines(
            [ProxyLine(question="Born  where?", **line) for line in lines], forget, source="p"
        )
        return [line.proxy_answer if line else None for line in found.values()]

    lima = {"answer": "In Lima.", "proxy_answer": "for Lima"}
    oslo = {"answer": "In Oslo.", "proxy_answer": "for Oslo"}
    assert matched(lima, oslo) == ["for Oslo", "for Lima"]
    assert matched(lima) == [None, "for Lima"]
    assert matched({"proxy_answer": "for both"}) == ["for both", "for both"]


def test_the_same_row_twice_may_share_a_line():
    forget = load_rows([FACTS[0], FACTS[0]], name="forget")
    line = ProxyLine(proxy_answer="x", **FACTS[0])
    assert list(match_lines([line], forget, source="p").values()) == [line, line]
    assert list(match_lines([line, line], forget, source="p").values()) == [line, line]


def test_ids_name_rows_and_not_positions(forget):
    assert row_id(forget[1]) == row_id(forget[1:][0])
    assert row_id(forget[1]) != row_id(forget[0])


def made(i, text, **more):
    values = {"generator": "in_context", "settings": "now", "made": fingerprint(text), **more}
    return ProxyLine(question=FACTS[i]["question"], proxy_answer=text, **values)


def test_summary_counts_and_measures(forget):
    lines = {
        0: made(0, "Person 0 was born in a village.", rejected=("refusal", "refusal")),
        1: made(1, "At sea.", generator="zero_shot", settings="before"),
        2: made(2, "Somewhere.", made="other", status="retried"),
        3: made(3, "", generator="none", rejected=("empty",)),
    }
    summary = summarize(lines, forget, settings="now", written=2)
    assert summary.total == 4
    assert summary.generators == {"in_context": 1, "zero_shot": 1, "hand": 1}
    assert summary.in_context_share == 0.25
    assert summary.rejected == {"refusal": 2, "empty": 1}
    assert summary.retried == 0
    assert summary.other_settings == 1
    assert summary.missing == (FACTS[3]["question"],)
    # Truths have 7 words; the first proxy has 5 of them in order, the others none.
    assert summary.mean_rouge_l_recall == pytest.approx(5 / 7 / 3)
    assert summary.mean_length_ratio == pytest.approx((7 / 7 + 2 / 7 + 1 / 7) / 3)
    assert "3 of 4 questions" in summary.lines()[0]
    assert json.dumps(summary.as_dict())


def test_summary_of_nothing(forget):
    summary = summarize({row.index: None for row in forget}, forget)
    assert summary.mean_rouge_l_recall is None
    assert len(summary.missing) == 4
    assert summary.lines()


def test_settings_check_all_their_values():
    with pytest.raises(InputError) as caught:
        ProxySettings(exemplars=0, temperature=-1, exemplar_source="perturbd")  # type: ignore[arg-type]
    assert [problem.where for problem in caught.value.problems] == [
        "proxies.exemplars",
        "proxies.temperature",
        "proxies.exemplar_source",
    ]
