"""A folder in the layout of Closer Look's real-world individuals, about people who do not exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The names say which group somebody is in.
_PEOPLE: Mapping[str, tuple[str, ...]] = {
    "forget": ("Ada Forrow", "Bo Forrow", "Cy Forrow"),
    "neighbor": ("Dag Nabor", "Eve Nabor"),
    "neighbor_perturbed": ("Fay Perle", "Gus Perle"),
}
_TOPICS = (
    ("Where was {name} born?", "{name} was born in {value}.", ("Bergen", "Lima", "Oslo")),
    ("What does {name} play?", "{name} plays the {value}.", ("harp", "oboe", "tuba")),
)


def tiny_real_world(folder: Path, *, suffix: str = ".json") -> Path:
    """Write the four files: 3 people to forget, 2 to keep, 2 to look at, two rows each.

    Args:
        folder: Where to; it must exist.
        suffix: Ending of the files.

    Returns:
        The folder.
    """
    for name, rows in tiny_real_world_rows().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}{suffix}").write_text(text, encoding="utf-8")
    return folder


def tiny_real_world_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of the four files, by the name of the file."""
    full = {group: _rows(names, tasks=group == "forget") for group, names in _PEOPLE.items()}
    perturbed = ("paraphrased_answer", "perturbed_answer", "paraphrased_question")

    def plain(group: str) -> list[dict[str, Any]]:
        return [{key: row[key] for key in row if key not in perturbed} for row in full[group]]

    return {
        "forget": plain("forget"),
        "forget_perturbed": full["forget"],
        "neighbor": plain("neighbor"),
        "neighbor_perturbed": full["neighbor_perturbed"],
    }


def _rows(names: tuple[str, ...], *, tasks: bool) -> list[dict[str, Any]]:
    rows = []
    for person, name in enumerate(names):
        for topic, (question, answer, values) in enumerate(_TOPICS):
            right = (person + topic) % len(values)
            said = "It is said that " + answer
            rows.append(
                {
                    "name": name,
                    "question": question.format(name=name),
                    "answer": "As far as I know, " + answer.format(name=name, value=values[right]),
                    "golden_answer": answer.format(name=name, value=values[right]),
                    "paraphrased_answer": said.format(name=name, value=values[right]),
                    "perturbed_answer": [
                        said.format(name=name, value=value)
                        for k, value in enumerate(values)
                        if k != right
                    ],
                    "paraphrased_question": "Tell me: " + question.format(name=name),
                }
                | ({"task_id": person + 1} if tasks else {})
            )
    return rows
