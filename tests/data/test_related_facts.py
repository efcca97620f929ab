"""Related facts: invented names that never repeat, and facts that really give the target."""

import json
import re
from collections import defaultdict

import pytest

from expunge.core.errors import InputError
from expunge.data import check_overlap, load_rows
from expunge.data.related import (
    SETS,
    fact_id,
    generate_related,
    load_related,
    plan_arms,
    write_related,
)
from expunge.data.related_families import FAMILIES, MAX_RELATED

GRID = (1, 2, 3, 5, 10)


def said(row):
    """The name that a row answers with."""
    return row.answer.removesuffix(".")


def by_fact(rows):
    found = defaultdict(list)
    for row in rows:
        found[fact_id(row)].append(row)
    return found


def reachable(rows, start):
    """Everything that can be looked up from a name: slow, obvious forward chaining.

    A row whose question is about a known name teaches the name it answers with.
    """
    known = {start}
    while True:
        learned = {said(row) for row in rows if any(name in row.question for name in known)} - known
        if not learned:
            return known
        known |= learned


@pytest.fixture(scope="module", params=GRID)
def facts(request):
    return generate_related(13, request.param, seed=3)


class TestForm:
    def test_numbers_of_rows(self, facts, request):
        k = request.node.callspec.params["facts"]
        assert len(facts.target) == len(facts.reconstruction) == 13
        assert len(facts.related) == 13 * k
        assert len(facts.unrelated) == 13 * (1 + k)
        assert {len(rows) for rows in by_fact(facts.related).values()} == {k}

    def test_every_question_and_every_name_is_unique(self, facts):
        rows = [row for name in SETS for row in getattr(facts, name)]
        questions = [row.question for row in rows]
        assert len(set(questions)) == len(questions)
        people = [row.fields["subject"] for row in [*facts.target, *facts.unrelated]
                  if row.fields["step"] == 0]  # fmt: skip
        words = [word for name in people for word in name.split()]
        values = [said(row) for row in [*facts.target, *facts.unrelated]
                  if row.fields["step"] == 0]  # fmt: skip
        links = [said(row) for row in [*facts.related, *facts.unrelated]
                 if row.fields["step"] == 1 and said(row) not in values]  # fmt: skip
        assert len(words) == 2 * 26
        assert len(values) == 26
        assert len(set(words + values + links)) == len(words + values + links)

    def test_truth_ratios_have_what_they_need(self, facts):
        for name in SETS:
            for row in getattr(facts, name):
                wrong = row.fields["perturbed_answer"]
                assert len(set(wrong)) == 5
                assert row.fields["paraphrased_answer"] == f"It is {row.answer}"
                assert row.fields["paraphrased_answer"] not in wrong
                ending = said(row)[-2:]
                assert all(text.endswith(f"{ending}.") for text in wrong)  # of the same kind

    def test_control_rows_have_the_forms_of_target_and_related_rows(self, facts):
        def forms(rows):
            return {(r.fields["relation"], r.fields["chain"], r.fields["step"]) for r in rows}

        assert forms(facts.unrelated) == forms([*facts.target, *facts.related])
        assert {row.fields["relation"] for row in facts.target} == {f.name for f in FAMILIES}


class TestImplication:
    def test_related_facts_give_the_target(self, facts):
        related = by_fact(facts.related)
        for target in facts.target:
            known = reachable(related[fact_id(target)], target.fields["subject"])
            assert target.fields["subject"] in target.question
            assert said(target) in known

    def test_every_chain_gives_it_alone_and_needs_both_of_its_facts(self, facts):
        related = by_fact(facts.related)
        for target in facts.target:
            chains = defaultdict(list)
            for row in related[fact_id(target)]:
                chains[row.fields["chain"]].append(row)
            for rows in chains.values():
                start = target.fields["subject"]
                assert said(target) in reachable(rows, start)
                assert [row.fields["step"] for row in rows] == list(range(1, 1 + len(rows)))
                for i in range(len(rows)):
                    assert said(target) not in reachable(rows[:i] + rows[i + 1 :], start)

    def test_facts_about_others_do_not_help(self, facts):
        foreign = [*facts.unrelated]
        for target in facts.target:
            others = [row for row in facts.related if fact_id(row) != fact_id(target)]
            known = reachable(foreign + others, target.fields["subject"])
            assert known == {target.fields["subject"]}

    def test_reconstruction_asks_for_the_target_without_naming_it(self, facts):
        related = by_fact(facts.related)
        for target, row in zip(facts.target, facts.reconstruction, strict=True):
            assert fact_id(row) == fact_id(target)
            assert row.answer == target.answer
            assert row.fields["perturbed_answer"] == target.fields["perturbed_answer"]
            assert target.fields["subject"] in row.question
            assert said(target) not in row.question
            chain = [
                r for r in related[fact_id(target)] if r.fields["chain"] == row.fields["chain"]
            ]
            assert len(chain) == row.fields["step"]
            for fact in chain[:-1]:
                assert said(fact) not in row.question  # the link has to be known


def test_probes_need_a_chain_as_soon_as_there_is_one():
    steps = {k: generate_related(6, k).reconstruction[0].fields["step"] for k in GRID}
    assert steps == {1: 1, 2: 2, 3: 2, 5: 2, 10: 2}


def test_more_related_facts_contain_fewer():
    """1, 3, 5 and 10 related facts contain each other row by row, wrong answers included."""
    rows = {
        k: {
            json.dumps([row.question, row.answer, dict(row.fields)])
            for row in generate_related(9, k, seed=5).related
        }
        for k in GRID
    }
    assert rows[1] < rows[3] < rows[5] < rows[10]
    assert rows[2] < rows[3]


@pytest.mark.parametrize("k", GRID)
def test_targets_do_not_depend_on_related_facts_or_strength(k):
    first = generate_related(9, 1, seed=5).target.fingerprint
    assert generate_related(9, k, seed=5).target.fingerprint == first
    assert generate_related(9, k, seed=5, strength="weak").target.fingerprint == first


def test_the_seed_decides_everything():
    one, two = (generate_related(8, 5, seed=7) for _ in range(2))
    other = generate_related(8, 5, seed=8)
    for name in SETS:
        assert getattr(one, name).fingerprint == getattr(two, name).fingerprint
        mine = {row.answer for row in getattr(one, name)}
        assert not mine & {row.answer for row in getattr(other, name)}


def test_the_names_of_a_seed_stay_what_they_are():
    """Written down once: a change of the generator must not pass unnoticed."""
    row = generate_related(1, 2, seed=0).target[0]
    assert (row.question, row.answer) == ("Which illness does Tonen Jolir have?", "Trilorosis.")


@pytest.mark.parametrize("k", [1, 3, 10])
def test_weak_links_say_the_same_with_exceptions(k):
    strict, weak = (generate_related(12, k, seed=1, strength=s) for s in ("strict", "weak"))
    for sure, likely in zip(strict.related, weak.related, strict=True):
        assert sure.answer == likely.answer
        is_first = sure.fields["step"] == 1 and said(sure) != said(
            next(t for t in strict.target if fact_id(t) == fact_id(sure))
        )
        assert (sure.question == likely.question) == is_first
    hedges = re.compile(r"\b(most|only suspected|favourite|applicant|interview|present|listen)\b")
    for row in weak.related:
        if row.fields["step"] == 2:
            assert hedges.search(row.question) or "best known" in row.question
            assert not re.search(r"\b(all|everybody|alone|whole|prove)\b", row.question)


def test_families_are_complete():
    for family in FAMILIES:
        names = [way.name for way in (*family.direct, *family.chains)]
        assert len(set(names)) == len(names)
        for direct in family.direct:
            assert "{name}" in direct.strict
            assert "{name}" in direct.weak
        for chain in family.chains:
            assert "{name}" in chain.first
            assert "{name}" in chain.probe
            for question in (chain.strict, chain.weak):
                assert "{link}" in question
                assert "{name}" not in question
    assert len(FAMILIES) >= 5
    assert MAX_RELATED == 10


def test_many_facts_still_have_names_of_their_own():
    """More names than short ones exist, so longer ones must come."""
    facts = generate_related(4000, 1, num_unrelated=1)
    names = {row.fields["subject"] for row in facts.target}
    assert len(names) == 4000
    assert len({row.answer for row in facts.target}) == 4000


def test_numbers_of_people_and_wrong_answers():
    facts = generate_related(7, 3, num_unrelated=2, num_wrong=3)
    assert len(facts.unrelated) == 2 * 4
    assert all(len(row.fields["perturbed_answer"]) == 3 for row in facts.unrelated)


def test_wrong_answers_are_names_of_other_facts_where_there_are_enough():
    facts = generate_related(36, 3)
    known = {said(row) for row in [*facts.target, *facts.unrelated]}
    for row in facts.target:
        assert {text[6:-1] for text in row.fields["perturbed_answer"]} < known


def test_all_bad_numbers_come_at_once():
    with pytest.raises(InputError) as error:
        generate_related(0, 11, -1, strength="week", num_unrelated=0, num_wrong=0)
    text = str(error.value)
    for name in ("num_facts", "num_related", "seed", "num_unrelated", "num_wrong"):
        assert f"{name}: must be" in text
    assert "between 1 and 10, got 11" in text
    assert "Did you mean weak?" in text


class TestArms:
    def test_the_three_models(self):
        facts = generate_related(6, 2)
        one, two, three = plan_arms(facts)
        assert [arm.name for arm in (one, two, three)] == ["theta_1", "theta_2", "theta_3"]
        t, r, u = (
            [(row.question, row.answer) for row in rows]
            for rows in (facts.target, facts.related, facts.unrelated)
        )

        def plan(arm):
            return [
                [(row.question, row.answer) for row in rows]
                for rows in (arm.learn, arm.forget, arm.retain)
            ]

        assert plan(one) == [t + r + u, t, u]
        assert plan(two) == [t + u, t, u]
        assert plan(three) == [t + r + u, t + r, u]

    def test_what_is_forgotten_is_not_retained(self):
        for arm in plan_arms(generate_related(6, 3)):
            check_overlap(arm.forget, arm.retain)
            assert (arm.learn.name, arm.forget.name, arm.retain.name) == (
                "learn",
                "forget",
                "retain",
            )
            learned = {row.question for row in arm.learn}
            assert learned >= {row.question for row in [*arm.forget, *arm.retain]}


class TestFolder:
    def test_round_trip(self, tmp_path):
        facts = generate_related(4, 5, seed=2)
        write_related(tmp_path / "related", facts)
        found = load_related(tmp_path / "related")
        for name in SETS:
            assert getattr(found, name).fingerprint == getattr(facts, name).fingerprint
            assert getattr(found, name).name == name
        note = (tmp_path / "related" / "README.md").read_text()
        assert "seed 2: 4 targets with 5 related facts each, strict" in note

    def test_a_file_is_a_forget_set(self, tmp_path):
        facts = generate_related(4, 2)
        write_related(tmp_path, facts)
        rows = load_rows(str(tmp_path / "target.jsonl") + "[1:3]", name="forget")
        assert [row.question for row in rows] == [row.question for row in facts.target[1:3]]

    def test_missing_files_are_named(self, tmp_path):
        write_related(tmp_path, generate_related(2, 1))
        (tmp_path / "related.jsonl").unlink()
        with pytest.raises(InputError, match=r"lacks related.jsonl. Write one"):
            load_related(tmp_path)
        with pytest.raises(InputError, match=r"lacks target.jsonl, related.jsonl"):
            load_related(tmp_path / "nowhere")

    def test_rows_that_belong_to_nothing_are_refused(self, tmp_path):
        write_related(tmp_path, generate_related(2, 1))
        lines = (tmp_path / "related.jsonl").read_text().replace('"t0001"', '"t0007"')
        (tmp_path / "related.jsonl").write_text(lines)
        lines = (tmp_path / "target.jsonl").read_text().replace('"t0001"', '"t0000"')
        (tmp_path / "target.jsonl").write_text(lines)
        (tmp_path / "unrelated.jsonl").write_text('{"question": "Who?", "answer": "Me."}\n')
        with pytest.raises(InputError) as error:
            load_related(tmp_path)
        text = str(error.value)
        assert "target row 1: another target has its fact_id t0000" in text
        assert "related row 1: no target has its fact_id t0007" in text
        assert "reconstruction row 1: no target has its fact_id t0001" in text
        assert "unrelated row 0: has no fact_id" in text
