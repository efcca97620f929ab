"""The examples behind every stream of a training step: forget, retain, alternates, proxies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from expunge.core.errors import InputError
from expunge.data.chunks import TextForm, encode_text
from expunge.data.encode import Example, OnTooLong, encode_answers, encode_rows
from expunge.data.plan import NONE, Pairing, Pick, StreamPlan
from expunge.data.rows import Row, RowSet
from expunge.data.templates import Template

__all__ = ["FIXED", "NONE", "STREAMS", "Pairing", "Pick", "StreamPlan", "Streams"]

FIXED = ("forget", "retain", "proxy", "reserve")
"""Streams with one example for each row, the same at every access. The reserve are retain rows
that do not train: utility is measured on them."""

STREAMS = (*FIXED, "alternate", "retain_alternate", "mismatch")
"""All streams. An alternate is the question of a row with a rejection as its answer, or with an
answer of its own where the forget set comes with alternates; a mismatch is a forget question with
the answer of a retain row, and `mismatch_2`, `mismatch_3` and so on are further ones."""


_STRIDE = 104_729  # a prime, so that further mismatched rows are spread over the retain set


class Streams:
    """Encoded examples of every stream.

    The index of every example is its position in its fixed stream (that of `fixed("forget")[i]`
    is i), which is a row's index as long as no row was dropped and no text was cut. An alternate
    or proxy has the index of the example whose question it has.

    Args:
        forget: Rows to forget.
        retain: Rows to retain, if there are any.
        template: Writes conversations.
        max_length: Tokens of an example at most.
        on_too_long: What to do with longer rows, see `encode_answers`. Proxies are truncated
            where rows are dropped, so that streams stay aligned. Alternates are always truncated: a
            row that fits has room for some of it, and a run must not stop halfway.
        text_form: How plain text is cut, see `chunk_text`.
        rejections: Answers that decline; the templates a `Pick` counts.
        proxy_answers: One substitute answer for each row to forget.
        alternates: One alternate answer for each row to forget, instead of rejections there.
        reserve: Retain rows that are set aside.

    Raises:
        InputError: Rows cannot be encoded, there are not as many proxy answers or alternates as
            rows to forget, or they are given for plain text, which has no questions.
    """

    def __init__(
        self,
        forget: RowSet,
        retain: RowSet | None = None,
        *,
        template: Template,
        max_length: int,
        on_too_long: OnTooLong = "error",
        text_form: TextForm = "muse",
        rejections: Sequence[str] = (),
        proxy_answers: Sequence[str] | None = None,
        alternates: Sequence[str] | None = None,
        reserve: RowSet | None = None,
    ) -> None:
        self.rejections = tuple(rejections)
        self._template = template
        self._max_length = max_length
        self._proxy_policy: OnTooLong = "truncate" if on_too_long == "drop" else on_too_long
        encoder = _Encoder(template, max_length, on_too_long, text_form)
        self._sets = {"forget": encoder.encode(forget)}
        self._sets["retain"] = encoder.encode(retain) if retain is not None else _Set([], [])
        self._fixed = {name: stored.examples for name, stored in self._sets.items()}
        self._fixed["reserve"] = [] if reserve is None else encoder.encode(reserve).examples
        self._fixed["proxy"] = self._encode_own(forget, proxy_answers, "proxy answers")
        if alternates is not None:
            self._fixed["alternate"] = self._encode_own(forget, alternates, "alternates")
        self._alternates: dict[tuple[str, int, int], Example] = {}

    @property
    def num_forget(self) -> int:
        """Examples to forget."""
        return len(self._fixed["forget"])

    @property
    def num_retain(self) -> int:
        """Examples to retain."""
        return len(self._fixed["retain"])

    @property
    def fixed_names(self) -> frozenset[str]:
        """Streams with the same examples at every access, so that a table can hold values."""
        return frozenset(self._fixed)

    def plan(
        self, *, batch_size: int, seed: int, pairing: Pairing = "shuffled", shuffle: bool = True
    ) -> StreamPlan:
        """The plan over these examples; see `StreamPlan`."""
        return StreamPlan(
            num_forget=self.num_forget,
            num_retain=self.num_retain,
            num_templates=len(self.rejections),
            batch_size=batch_size,
            seed=seed,
            pairing=pairing,
            shuffle=shuffle,
        )

    def fixed(self, stream: str) -> list[Example]:
        """All examples of a fixed stream, in order.

        Raises:
            InputError: The stream is not fixed, or there is nothing in it.
        """
        if stream not in self._fixed:
            raise InputError(
                f"stream {stream!r} has no fixed examples; these have: {', '.join(self._fixed)}"
            )
        if not self._fixed[stream]:
            advice = _ADVICE[stream]
            raise InputError(f"the method needs the stream {stream}, which is empty: {advice}")
        return self._fixed[stream]

    def examples(self, stream: str, picks: Sequence[Pick]) -> list[Example]:
        """One example of a stream for each pick.

        Raises:
            InputError: Unknown stream, or one that there is no data for.
        """
        kind = stream.partition("_")[0] if stream.startswith("mismatch_") else stream
        if kind not in STREAMS:
            raise InputError(f"unknown stream {stream!r}; possible: {', '.join(STREAMS)}")
        source = "retain" if stream.startswith("retain") else "forget"
        positions = [getattr(pick, source) for pick in picks]
        stored = self.fixed(stream if stream in self._fixed else source)
        # A plan for other streams than these would otherwise count from the end.
        assert NONE not in positions, f"the plan has no {source} rows"
        if stream in self._fixed:
            return [stored[position] for position in positions]
        if kind == "mismatch":
            number = int(stream.rpartition("_")[2]) if "_" in stream else 1
            return [self._mismatch(pick, number) for pick in picks]
        if not self.rejections:
            raise InputError(f"the method needs rejection answers: {_ADVICE['alternate']}")
        return [
            self._alternate(source, position, pick.template)
            for position, pick in zip(positions, picks, strict=True)
        ]

    def _alternate(self, stream: str, position: int, template: int) -> Example:
        """Encoded at first use and kept: with 100 templates few of all pairs ever come up."""
        assert template != NONE, "the plan has no templates"
        key = (stream, position, template)
        if key not in self._alternates:
            row = self._row(stream, position)
            answer = self.rejections[template]
            (example,) = self._encode_instead([row], [answer], [position], "truncate")
            self._alternates[key] = example
        return self._alternates[key]

    def _mismatch(self, pick: Pick, number: int) -> Example:
        """A forget question with the answer of the retain row of its pick, or one further on."""
        assert pick.retain != NONE, "the plan has no retain rows"
        retain = (pick.retain + (number - 1) * _STRIDE) % self.num_retain
        key = ("mismatch", pick.forget, retain)
        if key not in self._alternates:
            row, other = self._row("forget", pick.forget), self._row("retain", retain)
            (example,) = self._encode_instead([row], [other.answer], [pick.forget], "truncate")
            self._alternates[key] = example
        return self._alternates[key]

    def _row(self, stream: str, position: int) -> Row:
        rows = self._sets[stream].rows
        if not rows:
            raise InputError(
                f"the {stream} set is plain text, which has no questions to answer otherwise"
            )
        return rows[position]

    def _encode_own(
        self, forget: RowSet, answers: Sequence[str] | None, what: str
    ) -> list[Example]:
        """The forget questions with one other answer each."""
        if answers is None:
            return []
        if len(answers) != len(forget):
            raise InputError(
                f"there are {len(answers)} {what} for {len(forget)} rows to forget; "
                f"one is needed for each"
            )
        rows = self._sets["forget"].rows
        if not rows:
            raise InputError(f"the forget set is plain text: it has no questions for {what}")
        kept = [answers[row.index] for row in rows]
        return self._encode_instead(rows, kept, range(len(rows)), self._proxy_policy)

    def _encode_instead(
        self,
        rows: Sequence[Row],
        answers: Sequence[str],
        positions: Sequence[int],
        on_too_long: OnTooLong,
    ) -> list[Example]:
        found = encode_answers(
            rows,
            answers,
            self._template,
            max_length=self._max_length,
            on_too_long=on_too_long,
        )
        # A kept row has a label behind its prompt, so another answer has at least that much room.
        assert len(found) == len(rows)
        pairs = zip(found, positions, strict=True)
        return [replace(example, index=position) for example, position in pairs]


class _Set(NamedTuple):
    """Examples of a set and the row of each; no rows for plain text."""

    examples: list[Example]
    rows: list[Row]


class _Encoder(NamedTuple):
    template: Template
    max_length: int
    on_too_long: OnTooLong
    text_form: TextForm

    def encode(self, rows: RowSet) -> _Set:
        if rows.is_text:
            tokenizer = self.template.tokenizer
            return _Set(
                encode_text(rows, tokenizer, max_length=self.max_length, form=self.text_form), []
            )
        found = encode_rows(
            rows, self.template, max_length=self.max_length, on_too_long=self.on_too_long
        )
        kept = [rows[example.index] for example in found]
        return _Set([replace(example, index=i) for i, example in enumerate(found)], kept)


_ADVICE = {
    "forget": "give rows to forget",
    "retain": "give a retain set (data.retain)",
    "proxy": "give proxy answers; the verb proxies writes them",
    "reserve": "give rows that are set aside from the retain set",
    "alternate": "give data.rejections, or leave it out for those of TOFU",
}
