"""Made-up facts that imply each other: targets to forget, and related facts that give them back.

UIPE (arXiv:2503.04693, section 4) shows that a model rebuilds an unlearned fact from facts that are
logically related to it: somebody's illness from the medicine they take and what the medicine is
for. Its data are not published; these are generated, with invented names only, so no model can
know them and no licence binds them.

>>> facts = generate_related(1, 2, seed=0)
>>> [len(rows) for rows in (facts.target, facts.related, facts.unrelated, facts.reconstruction)]
[1, 2, 3, 1]
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from expunge.core.errors import InputError, Problems, did_you_mean
from expunge.core.files import atomic_write_text
from expunge.data.problems import FileProblems
from expunge.data.related_families import FAMILIES, MAX_RELATED, Chain, Direct, Family
from expunge.data.rows import Record, Row, RowSet, parse_rows, row_set
from expunge.data.sources import load_rows

Strength = Literal["strict", "weak"]
"""`strict`: the related facts imply the target. `weak`: they only make it likely."""

SETS = ("target", "related", "unrelated", "reconstruction")
"""The files of a folder of related facts, without `.jsonl`."""

MAX_WRONG = 10

# Names read consonant, vowel, consonant, ...: pronounceable, and few tokens in any tokenizer.
_STARTS = ("b", "br", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "tr", "v")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("b", "d", "g", "k", "l", "m", "n", "nd", "r", "rv", "s", "st", "t", "v", "z")
_ENDS = ("d", "k", "l", "m", "n", "r", "s", "t", "v")


@dataclass(frozen=True, kw_only=True)
class RelatedFacts:
    """Question-answer rows that belong together by their field `fact_id`.

    Fields of every row:
        fact_id: The fact it belongs to; a related row has that of its target.
        relation: The family of the fact: illness, country, ...
        chain: The way to the target it lies on; "" for a target.
        step: Its place on that way, from 1; 0 for a target; for a reconstruction how many there
            are.
        subject: Whom or what it asks about.
        paraphrased_answer, perturbed_answer: The answer in other words, and wrong ones.

    Attributes:
        target: Facts to forget.
        related: The facts that imply them, with the `fact_id` of their target.
        unrelated: Facts of both forms about other people: retain set and control.
        reconstruction: One question per target that asks for its answer by way of related facts.
    """

    target: RowSet
    related: RowSet
    unrelated: RowSet
    reconstruction: RowSet


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model of the experiment: what it learns and what it then unlearns.

    Attributes:
        name: "theta_1", "theta_2", "theta_3".
        title: What it is.
        learn: Rows it is trained on first.
        forget: Rows it unlearns then.
        retain: Rows to keep while it unlearns.
    """

    name: str
    title: str
    learn: RowSet
    forget: RowSet
    retain: RowSet


def plan_arms(facts: RelatedFacts) -> tuple[Arm, Arm, Arm]:
    """The three models of UIPE's experiment (arXiv:2503.04693, section 4.2).

    Their recall of the targets after unlearning is compared: theta_1 is expected to keep most of
    it, since it still has the related facts. Which model learns and unlearns what is our reading,
    the one under which the paper's conclusions can be tested. All three learn and retain the
    unrelated rows. theta_3 unlearns more rows, so it takes more steps per epoch.
    """
    target, related, kept = facts.target, facts.related, facts.unrelated
    plans = (
        ("theta_1", "learned targets and related facts, unlearned targets", True, False),
        ("theta_2", "learned targets only, unlearned targets", False, False),
        ("theta_3", "learned targets and related facts, unlearned both", True, True),
    )
    one, two, three = (
        Arm(
            name=name,
            title=title,
            learn=_join("learn", target, *([related] if learns else []), kept),
            forget=_join("forget", target, *([related] if unlearns else [])),
            retain=replace(kept, name="retain"),
        )
        for name, title, learns, unlearns in plans
    )
    return one, two, three


def generate_related(
    num_facts: int,
    num_related: int,
    seed: int = 0,
    *,
    strength: Strength = "strict",
    num_unrelated: int | None = None,
    num_wrong: int = 5,
) -> RelatedFacts:
    """Make up targets, facts that imply them, and facts about other people.

    Facts take the families in turn. Every person, link and value has a name of its own, so two
    facts have nothing in common but their wording. Names and wrong answers do not depend on
    `num_related` and `strength`, so models trained with different ones share their targets.

    Args:
        num_facts: Targets.
        num_related: Related facts per target, 1 to 10. One is a fact that implies the target alone;
            two are a chain, as in the paper; an odd number has one such fact and chains; a larger
            even number has two of them and chains. So 1, 3, 5 and 10 contain each other.
        seed: Seed of all names, 0 or more.
        strength: Whether related facts imply the target or only make it likely.
        num_unrelated: Other people, each with a target-like fact and `num_related` others; as many
            as targets if None.
        num_wrong: Wrong answers per row: values of other facts of the family, and new names where
            there are too few.

    Raises:
        InputError: A number or the strength is out of range; all problems come at once.
    """
    num_unrelated = num_facts if num_unrelated is None else num_unrelated
    _check(num_facts, num_related, seed, strength, num_unrelated, num_wrong)
    words = _Words(seed)
    targets = [_make_fact(words, f"t{i:04d}", i) for i in range(num_facts)]
    others = [_make_fact(words, f"u{i:04d}", i) for i in range(num_unrelated)]
    wrong = _wrong_answers([*targets, *others], words, num_wrong)
    writer = _Writer(wrong, num_related, strength)
    origin = (
        f"made-up facts, seed {seed}: {num_facts} targets with {num_related} related facts each, "
        f"{strength}"
    )
    rows = {
        "target": [writer.target(fact) for fact in targets],
        "related": [row for fact in targets for row in writer.related(fact)],
        "unrelated": [
            row for fact in others for row in (writer.target(fact), *writer.related(fact))
        ],
        "reconstruction": [writer.reconstruction(fact) for fact in targets],
    }
    return RelatedFacts(
        **{
            name: parse_rows(
                [Record(f"row {i}", values) for i, values in enumerate(found, start=1)],
                name=name,
                source=f"{name} of {origin}",
            )
            for name, found in rows.items()
        }
    )


def write_related(folder: Path | str, facts: RelatedFacts) -> None:
    """Write the four sets as JSON lines, each as one file, and a note on where they come from.

    The files can be named in a run: `data.forget: FOLDER/target.jsonl`.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = Path(folder)
    for name in SETS:
        rows: RowSet = getattr(facts, name)
        lines = [{"question": row.question, "answer": row.answer, **row.fields} for row in rows]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic_write_text(folder / f"{name}.jsonl", text)
    listed = "".join(
        f"- {name}.jsonl: {len(getattr(facts, name))} rows; {getattr(facts, name).origin}\n"
        for name in SETS
    )
    atomic_write_text(
        folder / "README.md", f"# Related facts\n\nEvery name is invented.\n\n{listed}"
    )


def load_related(folder: Path | str) -> RelatedFacts:
    """Read what `write_related` wrote, or a folder of that form made by hand.

    Raises:
        InputError: A file is missing or broken, a row has no `fact_id`, two targets share one, or a
            related row names a target that does not exist.
    """
    folder = Path(folder).expanduser()
    missing = [f"{name}.jsonl" for name in SETS if not (folder / f"{name}.jsonl").is_file()]
    if missing:
        raise InputError(
            f"{folder}: is no folder of related facts; it lacks {', '.join(missing)}. Write one "
            f"with generate_related and write_related"
        )
    facts = RelatedFacts(**{name: load_rows(folder / f"{name}.jsonl", name=name) for name in SETS})
    _check_ids(facts, folder)
    return facts


def fact_id(row: Row) -> str:
    """The fact that a row belongs to; "" if it does not say."""
    found = row.fields.get("fact_id")
    return "" if found is None else str(found)


class _Fact(NamedTuple):
    """The names of one fact.

    Attributes:
        id: Its `fact_id`.
        family: Its relation.
        name: The person.
        value: Answer of the target.
        links: The link of every chain, by the chain's name.
    """

    id: str
    family: Family
    name: str
    value: str
    links: Mapping[str, str]


class _Words:
    """Invented names that all differ in more than their ending.

    Args:
        seed: Seed of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._used: set[str] = set()

    def new(self, suffix: str) -> str:
        """A name with an ending."""
        attempt = 0
        while (stem := self._stem(attempt)) in self._used or stem + suffix in self._used:
            attempt += 1
        self._used |= {stem, stem + suffix}
        return (stem + suffix).capitalize()

    def _stem(self, attempt: int) -> str:
        # Longer names once the short ones run out.
        parts = [self._pick(_STARTS), self._pick(_VOWELS)]
        for _ in range(1 + attempt // 8):
            parts += [self._pick(_MIDDLES), self._pick(_VOWELS)]
        return "".join([*parts, self._pick(_ENDS)])

    def _pick(self, options: Sequence[str]) -> str:
        # Of all methods only random() is promised to be the same in every Python.
        return options[int(self._random.random() * len(options))]


class _Writer:
    """Puts facts into rows.

    Args:
        wrong: Wrong answers by right one.
        num_related: Related facts of each.
        strength: How related facts are put.
    """

    def __init__(
        self, wrong: Mapping[str, Sequence[str]], num_related: int, strength: Strength
    ) -> None:
        self._wrong, self._num_related, self._strict = wrong, num_related, strength == "strict"

    def target(self, fact: _Fact) -> dict[str, Any]:
        """The target row."""
        return self._row(fact, fact.family.question, fact.value, chain="", step=0)

    def related(self, fact: _Fact) -> list[dict[str, Any]]:
        """The rows that imply it."""
        rows = []
        for way in _ways(fact.family, self._num_related):
            last = way.strict if self._strict else way.weak
            if isinstance(way, Direct):
                rows.append(self._row(fact, last, fact.value, chain=way.name, step=1))
            else:
                link = fact.links[way.name]
                rows += [
                    self._row(fact, way.first, link, chain=way.name, step=1),
                    self._row(fact, last, fact.value, chain=way.name, step=2, subject=link),
                ]
        return rows

    def reconstruction(self, fact: _Fact) -> dict[str, Any]:
        """A question for the value by way of related facts, the same from two of them on."""
        ways = _ways(fact.family, self._num_related)
        chain = next((way for way in ways if isinstance(way, Chain)), None)
        if chain is None:
            return self._row(fact, fact.family.probe, fact.value, chain=ways[0].name, step=1)
        return self._row(fact, chain.probe, fact.value, chain=chain.name, step=2)

    def _row(
        self,
        fact: _Fact,
        question: str,
        answer: str,
        *,
        chain: str,
        step: int,
        subject: str | None = None,
    ) -> dict[str, Any]:
        subject = subject or fact.name
        # The answer is the name alone: ROUGE of a whole sentence would reward its wording.
        return {
            "question": question.format(name=fact.name, link=subject),
            "answer": f"{answer}.",
            "paraphrased_answer": f"It is {answer}.",
            "perturbed_answer": [f"It is {name}." for name in self._wrong[answer]],
            "fact_id": fact.id,
            "relation": fact.family.name,
            "chain": chain,
            "step": step,
            "subject": subject,
        }


def _make_fact(words: _Words, identity: str, number: int) -> _Fact:
    """A fact with all names it could need, so that none depends on how many are used."""
    family = FAMILIES[number % len(FAMILIES)]
    return _Fact(
        id=identity,
        family=family,
        name=f"{words.new('')} {words.new('')}",
        value=words.new(family.suffix),
        links={chain.name: words.new(chain.suffix) for chain in family.chains},
    )


def _wrong_answers(
    facts: Sequence[_Fact], words: _Words, num_wrong: int
) -> dict[str, tuple[str, ...]]:
    """For every name that answers a question, the ones that come next in the other facts.

    They are names of the same kind that a model learned too: a preference for the right one comes
    from the fact, not from having seen the name. Few facts are filled up with new names.
    """
    wrong = {}
    for family in FAMILIES:
        own = [fact for fact in facts if fact.family is family]
        kinds = [(family.suffix, [fact.value for fact in own])]
        for chain in family.chains:
            kinds.append((chain.suffix, [fact.links[chain.name] for fact in own]))
        for suffix, known in kinds:
            ring = known + [words.new(suffix) for _ in range(1 + num_wrong - len(known))]
            for i, name in enumerate(known):
                wrong[name] = tuple(ring[(i + d) % len(ring)] for d in range(1, 1 + num_wrong))
    return wrong


def _ways(family: Family, num_related: int) -> list[Direct | Chain]:
    """What implies a target with a number of related facts; the numbers 1, 3, 5, ... are nested."""
    first, second = family.direct
    if num_related == 2:
        return [family.chains[0]]
    chains = family.chains[: (num_related - 1) // 2]
    return [first, *chains, *([second] if num_related % 2 == 0 else [])]


def _join(name: str, *parts: RowSet) -> RowSet:
    origin = " + ".join(part.origin for part in parts)
    return row_set((row for part in parts for row in part), name=name, origin=origin)


def _check(
    num_facts: int,
    num_related: int,
    seed: int,
    strength: str,
    num_unrelated: int,
    num_wrong: int,
) -> None:
    problems = Problems()
    limits: Mapping[str, tuple[int, int, int | None]] = {
        "num_facts": (num_facts, 1, None),
        "num_related": (num_related, 1, MAX_RELATED),
        "seed": (seed, 0, None),
        "num_unrelated": (num_unrelated, 1, None),
        "num_wrong": (num_wrong, 1, MAX_WRONG),
    }
    for name, (value, low, high) in limits.items():
        if value < low or (high is not None and value > high):
            allowed = f"{low} or more" if high is None else f"between {low} and {high}"
            problems.add(name, f"must be {allowed}, got {value}")
    if strength not in get_args(Strength):
        problems.add("strength", f"{strength!r}. {did_you_mean(strength, get_args(Strength))}")
    problems.raise_if_any()


def _check_ids(facts: RelatedFacts, folder: Path) -> None:
    problems = FileProblems(str(folder))
    known = {fact_id(row) for row in facts.target}
    seen: set[str] = set()
    for name in SETS:
        for row in getattr(facts, name):
            place, identity = f"{name} row {row.index}", fact_id(row)
            if not identity:
                problems.add(place, "has no fact_id")
            elif name == "target" and identity in seen:
                problems.add(place, f"another target has its fact_id {identity}")
            elif name in ("related", "reconstruction") and identity not in known:
                problems.add(place, f"no target has its fact_id {identity}")
            if name == "target":
                seen.add(identity)
    problems.raise_if_any()
