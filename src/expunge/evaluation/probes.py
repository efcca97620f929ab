"""Probes: rows and what is asked of a model on them, and the settings their tables depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from expunge.core.errors import InputError, did_you_mean
from expunge.core.fingerprint import fingerprint
from expunge.data.rows import Row, RowSet, row_set

PARAPHRASE = "paraphrased_answer"
PERTURBED = "perturbed_answer"
ORIGINAL = "original_answer"
"""Field of a row: what the model said before unlearning (Closer Look)."""

Generator = Literal["transformers", "vllm"]
"""What writes answers."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A set of rows and the outputs wanted for them.

    The true answer is always scored; the paraphrase and the wrong answers where a row has the
    fields `paraphrased_answer` and `perturbed_answer`.

    Attributes:
        name: "forget", "retain", "real_authors", "world_facts", ...
        rows: The rows.
        generate: Let the model answer by itself as well.
        variants: Score paraphrases and wrong answers too.
        continuation: The question is a text to be continued as it stands: no template, the
            beginning-of-sequence token in front if the tokenizer adds one.
        max_new_tokens: Most tokens of a generated answer, goes before the settings; None: as they
            say.
        cut_at: A generated answer ends before the first of these texts.
        reference_tokens: The true answer is cut to this many tokens before it is scored and
            compared, a beginning-of-sequence token included; None: it is not.
    """

    name: str
    rows: RowSet
    generate: bool = True
    variants: bool = True
    continuation: bool = False
    max_new_tokens: int | None = None
    cut_at: tuple[str, ...] = ()
    reference_tokens: int | None = None

    def fingerprint(self) -> str:
        """Hash of rows and wanted outputs; the name is no part of it."""
        wanted = [getattr(self, name) for name in _WANTED]
        return fingerprint([self.rows.fingerprint, *wanted])

    def paraphrase(self, row: Row) -> str | None:
        """The paraphrased answer to score for a row, if any."""
        text = row.fields.get(PARAPHRASE) if self.variants else None
        return text if isinstance(text, str) and text.strip() else None

    def perturbed(self, row: Row) -> tuple[str, ...]:
        """The wrong answers to score for a row.

        Raises:
            InputError: The field holds something that is not a list of texts.
        """
        value = row.fields.get(PERTURBED) if self.variants else None
        if value is None:
            return ()
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not all(
            isinstance(text, str) and text.strip() for text in texts
        ):
            raise InputError(
                f"{self.name} row {row.index}: {PERTURBED} must be a list of texts, not {value!r}"
            )
        return tuple(texts)


_WANTED = (
    "generate",
    "variants",
    "continuation",
    "max_new_tokens",
    "cut_at",
    "reference_tokens",
)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a model is run.

    Attributes:
        max_new_tokens: Most tokens of a generated answer.
        max_total_tokens: Most tokens of prompt and generated answer together; None: no such limit.
        max_length: Prompt and scored answer are cut to this many tokens; None: nothing is cut.
        batch_tokens: Tokens per batch, padding included. Moves no number beyond rounding.
        share_prefix: Compute each prompt once for all its answers. Moves no number beyond rounding.
        gibberish_max_length: Tokens of an answer that a gibberish classifier sees; 32 for TOFU and
            512 for MUSE in the released code.
        generator: What writes answers. vLLM rounds in another way, so its texts may differ, and
            its tables are kept apart.
    """

    max_new_tokens: int = 200
    max_total_tokens: int | None = None
    max_length: int | None = None
    batch_tokens: int = 4096
    share_prefix: bool = True
    gibberish_max_length: int = 32
    generator: Generator = "transformers"

    def __post_init__(self) -> None:
        if self.generator not in get_args(Generator):
            known = get_args(Generator)
            raise InputError(
                f"the generator is {self.generator!r}. {did_you_mean(self.generator, known)}"
            )
        other = ("share_prefix", "generator")
        limits = {name: value for name, value in asdict(self).items() if name not in other}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the content of a table."""
        unimportant = {"batch_tokens", "share_prefix", "gibberish_max_length"}
        if self.generator == "transformers":
            unimportant.add("generator")  # tables from before there was a choice stay valid
        return {name: value for name, value in asdict(self).items() if name not in unimportant}


def first_rows(rows: RowSet, limit: int | None) -> RowSet:
    """The first `limit` rows, or all of them.

    Raises:
        InputError: The limit is not positive.
    """
    if limit is None:
        return rows
    if limit < 1:
        raise InputError(f"a limit of {limit} rows for {rows.name} leaves nothing to measure")
    return rows if limit >= len(rows) else rows[:limit]


def with_fields(rows: RowSet, fields: Mapping[tuple[str, str], Mapping[str, Any]]) -> RowSet:
    """Rows completed with further fields, found by question and answer.

    Args:
        rows: Rows; fields that they have already stay as they are.
        fields: By question and answer without surrounding white space.
    """
    completed = []
    for row in rows:
        extra = fields.get((row.question.strip(), row.answer.strip()), {})
        completed.append(
            Row(
                index=row.index,
                messages=row.messages,
                answer=row.answer,
                fields={**extra, **row.fields},
            )
        )
    return row_set(completed, name=rows.name, origin=rows.origin)
