"""Rows written to a file are read back as the same rows."""

import pytest

from expunge.data import load_rows
from expunge.data.write import write_rows

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Nobody."},
]


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "q\u2028", "answer": "ä\n", "perturbed_answer": ["x", "y"]}],
        [{"text": "Once.", "note": 3}, {"text": "Twice.", "note": None}],
        [{"messages": TURNS, "fact_id": "f1"}],
    ],
    ids=["question", "text", "chat"],
)
def test_rows_survive_the_way_through_a_file(tmp_path, rows):
    known = load_rows(rows, name="forget")
    write_rows(tmp_path / "new" / "rows.jsonl", known)
    found = load_rows(tmp_path / "new" / "rows.jsonl", name="forget")
    assert found.fingerprint == known.fingerprint
    assert [row.messages for row in found] == [row.messages for row in known]
