"""Real-world individuals from a user's folder: which answers are read, and what is refused."""

import json

import pytest

from expunge.core.errors import InputError
from expunge.data import load_rows
from expunge.data.real_world import evaluation_rows, tasks, training_rows
from expunge.testing.real_world import tiny_real_world, tiny_real_world_rows


@pytest.fixture
def folder(tmp_path):
    return tiny_real_world(tmp_path)


def change(folder, name, edit):
    """Edit the rows of a file in place."""
    path = folder / f"{name}.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def problems_of(folder, **options):
    with pytest.raises(InputError) as caught:
        training_rows(folder, **options)
    return [(problem.where, problem.message) for problem in caught.value.problems]


def test_training_reads_the_models_own_answers(folder):
    forget, retain = training_rows(folder)
    raw = tiny_real_world_rows()
    for rows, name, used in ((forget, "forget", "forget"), (retain, "neighbor", "retain")):
        assert [row.answer for row in rows] == [row["answer"] for row in raw[name]]
        assert [row.question for row in rows] == [row["question"] for row in raw[name]]
        assert rows.name == used
        assert rows.origin.endswith(f"{name}.json")
    assert forget[3].fields["golden_answer"] == raw["forget"][3]["golden_answer"]
    assert forget[3].fields["task_id"] == 2


def test_the_data_section_reads_the_same_training_rows(folder):
    """`data.forget: folder/forget.json` in a recipe is the same set, to the fingerprint."""
    forget, retain = training_rows(folder)
    assert load_rows(folder / "forget.json", name="forget").fingerprint == forget.fingerprint
    assert load_rows(folder / "neighbor.json", name="retain").fingerprint == retain.fingerprint


def test_evaluation_reads_the_true_answers(folder):
    forget, neighbor = evaluation_rows(folder)
    raw = tiny_real_world_rows()
    for rows, name in ((forget, "forget_perturbed"), (neighbor, "neighbor_perturbed")):
        for row, source in zip(rows, raw[name], strict=True):
            assert row.answer == source["golden_answer"]
            assert row.fields["original_answer"] == source["answer"]
            assert row.fields["paraphrased_answer"] == source["paraphrased_answer"]
            assert row.fields["perturbed_answer"] == source["perturbed_answer"]
            assert "answer" not in row.fields
            assert "golden_answer" not in row.fields
    assert not {row.question for row in neighbor} & {row.question for row in forget}


def test_both_suffixes_and_a_path_as_text(tmp_path):
    folder = tiny_real_world(tmp_path, suffix=".jsonl")
    assert len(training_rows(str(folder)).forget) == 6
    (folder / "neighbor.json").write_text("{}")
    assert problems_of(folder) == [
        ("", "neighbor.json and neighbor.jsonl are both there; remove or rename one")
    ]


def test_tasks_select_people(folder):
    for rows in (training_rows(folder).forget, evaluation_rows(folder).forget):
        found = tasks(rows)
        assert list(found) == [1, 2, 3]
        assert [len(some) for some in found.values()] == [2, 2, 2]
        assert {row.fields["name"] for row in found[2]} == {"Bo Forrow"}
        assert [row.index for row in found[3]] == [0, 1]
        assert found[2].name == "forget"
        assert found[2].origin.endswith("task 2")


def test_tasks_come_in_the_order_of_their_numbers(folder):
    def turn(rows):
        rows.reverse()

    change(folder, "forget", turn)
    change(folder, "forget_perturbed", turn)
    found = tasks(training_rows(folder).forget)
    assert list(found) == [1, 2, 3]
    assert [row.question for row in found[1]] == [
        "What does Ada Forrow play?",
        "Where was Ada Forrow born?",
    ]


def test_rows_without_a_task_cannot_be_split(folder):
    with pytest.raises(InputError, match=r"neighbor.json row 0: task_id holds nothing"):
        tasks(training_rows(folder).retain)


def test_every_problem_of_every_file_comes_at_once(folder):
    def spoil_forget(rows):
        rows[0].pop("golden_answer")
        rows[1]["task_id"] = "2"
        rows[2]["task_id"] = True

    def spoil_perturbed(rows):
        rows[0]["perturbed_answer"] = "one"
        rows[1]["perturbed_answer"] = ["fine", ""]
        rows[2]["paraphrased_answer"] = " "

    change(folder, "forget", spoil_forget)
    change(folder, "forget_perturbed", spoil_perturbed)
    (folder / "neighbor_perturbed.json").unlink()
    found = problems_of(folder)
    assert [where for where, _ in found[:-1]] == [
        "forget.json line 1",
        "forget.json line 2",
        "forget.json line 3",
        "forget_perturbed.json line 1",
        "forget_perturbed.json line 2",
        "forget_perturbed.json line 3",
    ]
    messages = [message for _, message in found]
    assert messages[0] == "has no golden_answer"
    assert "task_id holds text ('2')" in messages[1]
    assert "task_id holds true/false" in messages[2]
    assert "list of wrong answers" in messages[3]
    assert "list of wrong answers" in messages[4]
    assert messages[5] == "paraphrased_answer is empty"
    assert "neighbor_perturbed.json: missing. The folder must hold forget.json" in messages[6]


def test_damaged_files_are_named_with_their_line(folder):
    (folder / "neighbor.json").write_text('{"name": "x"}\n{"name":')
    ((_, message),) = [item for item in problems_of(folder) if "neighbor" in str(item)]
    assert "ends in the middle" in message


def test_the_forget_files_must_agree(folder):
    def swap(rows):
        rows[0], rows[1] = rows[1], rows[0]

    change(folder, "forget_perturbed", swap)
    first, second = problems_of(folder)
    assert first[0] == "forget_perturbed.json line 1"
    assert "question is 'What does Ada Forrow play?' where forget.json line 1 has" in first[1]
    assert "same order" in second[1]
    change(folder, "forget_perturbed", swap)
    training_rows(folder)
    change(folder, "forget_perturbed", lambda rows: rows[4].update(golden_answer="Another."))
    ((where, message),) = problems_of(folder)
    assert where == "forget_perturbed.json line 5"
    assert message.startswith("golden_answer is 'Another.'")


def test_the_forget_files_must_have_as_many_rows(folder):
    change(folder, "forget_perturbed", lambda rows: rows.pop())
    ((where, message),) = problems_of(folder)
    assert where == "forget_perturbed.json"
    assert "has 5 rows and forget.json has 6" in message


def test_nobody_is_in_two_groups(folder):
    change(folder, "neighbor", lambda rows: rows[0].update(name="Bo Forrow"))
    change(folder, "neighbor_perturbed", lambda rows: rows[0].update(name="Eve Nabor "))
    found = problems_of(folder)
    assert [where for where, _ in found] == ["neighbor.json", "neighbor_perturbed.json"]
    assert "in forget.json as well: Bo Forrow" in found[0][1]
    assert "in neighbor.json as well: Eve Nabor" in found[1][1]


def test_the_published_number_of_rows_on_demand(folder):
    found = problems_of(folder, complete=True)
    assert [message for _, message in found] == [
        f"has {n} rows; the published file has 400" for n in (6, 6, 4, 4)
    ]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder. It must hold forget.json"):
        evaluation_rows(tmp_path / "nowhere")
