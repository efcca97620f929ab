"""Which judges an evaluation uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from expunge.core.errors import InputError

JudgeKind = Literal["encoder", "nli", "gibberish"]
KINDS: tuple[JudgeKind, ...] = get_args(JudgeKind)

DEFAULT_ENCODER = "sentence-transformers/paraphrase-MiniLM-L6-v2"
"""The encoder of arXiv:2410.08109 (A Closer Look at Machine Unlearning for LLMs)."""

DEFAULT_NLI = "sileod/deberta-v3-base-tasksource-nli"
"""The NLI classifier of arXiv:2410.08109."""

PUBLISHED_GIBBERISH = "madhurjindal/autonlp-Gibberish-Detector-492513457"
"""The gibberish classifier of OpenUnlearning (arXiv:2506.12618); never used unless named."""

JUDGED_COLUMNS: dict[str, JudgeKind | Literal["base_model"]] = {
    "generation_similarity": "encoder",
    "nli_generation_first": "nli",
    "nli_reference_first": "nli",
    "clean_probability": "gibberish",
    "generation_base_nll": "base_model",
}
"""Columns that judges add to a table, and the judge of each."""

TITLES: dict[JudgeKind, str] = {
    "encoder": "sentence encoder",
    "nli": "NLI classifier",
    "gibberish": "gibberish classifier",
}


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The judges by name: a folder, a hub name, an embedded one, or None for no such judge.

    Attributes:
        encoder: A sentence-transformers model.
        nli: A sequence classifier with a label "entailment".
        gibberish: A sequence classifier whose label "clean", or else first label, marks clean text.
        gibberish_max_length: Tokens of a text that the gibberish classifier sees: 32 for TOFU and
            512 for MUSE in OpenUnlearning.
        batch_size: Texts per batch. Moves no number beyond rounding.
        device: Where the judges run, as torch names it.
    """

    encoder: str | None = DEFAULT_ENCODER
    nli: str | None = DEFAULT_NLI
    gibberish: str | None = None
    gibberish_max_length: int = 32
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("gibberish_max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def name(self, kind: JudgeKind) -> str | None:
        """The name given for one kind of judge."""
        chosen: str | None = getattr(self, kind)
        return chosen
