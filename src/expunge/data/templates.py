"""Conversations to token ids, split exactly where the answer begins and where it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from expunge.core.errors import InputError, did_you_mean
from expunge.core.fingerprint import fingerprint
from expunge.data.chat import ChatTemplate, chat_template
from expunge.data.rows import Message
from expunge.data.tokens import (
    VERSION,
    Encoded,
    Tokenizer,
    encode_text_row,
    end_id,
    ids_after,
    leading_ids,
    text_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatTemplate",
    "Encoded",
    "PlainTemplate",
    "Template",
    "chat_template",
    "llama2_template",
    "make_template",
    "phi_template",
    "plain_template",
]


class Template(Protocol):
    """How a conversation is written for one tokenizer."""

    @property
    def name(self) -> str:
        """A short name for reports: "chat", "plain", "llama2", "phi"."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer it writes for."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer; generation stops at any of them."""

    def fingerprint(self) -> str:
        """Hash of all settings that move a token."""

    def encode(self, messages: Sequence[Message], answer: str | None) -> Encoded:
        """Token ids of a conversation.

        Args:
            messages: Everything before the answer. Empty for plain text, in which case `answer` is
                the text, the prompt is the beginning-of-sequence token if the tokenizer adds one,
                and no end token is added: a piece of text does not end where it was cut.
            answer: The answer, or None for the prompt alone.

        Raises:
            InputError: The template does not allow such a conversation, or changes the answer.
        """


@dataclass(frozen=True, kw_only=True)
class PlainTemplate:
    """Text before and after questions and answers, for models without a chat template.

    A row reads `question_start q question_end answer_start | answer_lead a EOS` where `|` is the
    border between prompt and answer. Earlier turns of a conversation end with `turn_end`.

    Attributes:
        name: Short name for reports.
        tokenizer: Gives ids, the end token, and the beginning token if it adds one.
        question_start: Before every user message.
        question_end: After every user message.
        answer_start: Before every assistant message, part of the prompt.
        answer_lead: After that, part of the answer: it carries labels and is not prompted.
        turn_end: After every earlier assistant message and after a system message.
    """

    name: str
    tokenizer: Tokenizer
    question_start: str
    question_end: str
    answer_start: str
    answer_lead: str
    turn_end: str

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-sequence token."""
        return (end_id(self.tokenizer),)

    def fingerprint(self) -> str:
        """Hash of the texts."""
        names = ("question_start", "question_end", "answer_start", "answer_lead", "turn_end")
        return fingerprint(["plain", VERSION, {name: getattr(self, name) for name in names}])

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to where the answer begins."""
        parts = []
        for message in messages:
            if message.role == "user":
                parts += [self.question_start, message.content, self.question_end]
            elif message.role == "assistant":
                parts += [self.answer_start, self.answer_lead, message.content, self.turn_end]
            else:
                parts += [message.content, self.turn_end]
        return "".join([*parts, self.answer_start])

    def encode(self, messages: Sequence[Message], answer: str | None) -> Encoded:
        """Token ids; see `Template.encode`."""
        if not messages:
            return encode_text_row(self.tokenizer, answer)
        before = self.prompt_text(messages)
        said = text_ids(self.tokenizer, before)
        prompt = leading_ids(self.tokenizer) + said
        if answer is None:
            return Encoded(prompt, [])
        ids = ids_after(self.tokenizer, before, self.answer_lead + answer, before_ids=said)
        return Encoded(prompt, [*ids, end_id(self.tokenizer)])


def plain_template(
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    *,
    question_start: str = "Question: ",
    question_end: str = "\n",
    answer_start: str = "Answer:",
    answer_lead: str = " ",
    turn_end: str = "\n\n",
) -> PlainTemplate:
    """The template for a model without a chat template; see `PlainTemplate` for the texts.

    The space after `Answer:` belongs to the answer, since it is part of the first token there with
    most tokenizers; a prompt that ends in a space would force an unusual token.
    """
    return PlainTemplate(
        name="plain",
        tokenizer=_plain(tokenizer),
        question_start=question_start,
        question_end=question_end,
        answer_start=answer_start,
        answer_lead=answer_lead,
        turn_end=turn_end,
    )


def llama2_template(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> PlainTemplate:
    """`[INST] q [/INST]` and the answer directly, as TOFU and NPO write Llama-2-chat."""
    return PlainTemplate(
        name="llama2",
        tokenizer=_plain(tokenizer),
        question_start="[INST] ",
        question_end=" [/INST]",
        answer_start="",
        answer_lead="",
        turn_end=" ",
    )


def phi_template(
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    *,
    answer_marker: Literal["trained", "prompted"] = "trained",
) -> PlainTemplate:
    """`Question: q`, line break, `Answer: a`, as published for Phi-1.5 and other base models.

    Args:
        tokenizer: The tokenizer.
        answer_marker: `trained` is the form of TOFU: `Answer: ` carries labels and is not shown at
            generation time. `prompted` is that of open-unlearning: it belongs to the prompt (C-18).

    Raises:
        InputError: Another value of `answer_marker`.
    """
    if answer_marker not in ("trained", "prompted"):
        raise InputError(f"answer_marker is {answer_marker!r}; possible: trained, prompted")
    trained = answer_marker == "trained"
    return PlainTemplate(
        name="phi",
        tokenizer=_plain(tokenizer),
        question_start="Question: ",
        question_end="\n",
        answer_start="" if trained else "Answer: ",
        answer_lead="Answer: " if trained else "",
        turn_end="\n\n",
    )


def make_template(
    tokenizer: PreTrainedTokenizerBase,
    name: Literal["auto", "chat", "plain", "llama2", "phi"] | str = "auto",
    **options: Any,
) -> Template:
    """The template called `name`.

    Args:
        tokenizer: The model's tokenizer.
        name: `auto` is the tokenizer's chat template if it has one, else `plain`.
        options: Keyword arguments of `chat_template`, `plain_template` or `phi_template`.

    Raises:
        InputError: Unknown name or option, or `chat` for a tokenizer without a chat template.
    """
    builders: dict[str, Callable[..., Template]] = {
        "chat": chat_template,
        "plain": plain_template,
        "llama2": llama2_template,
        "phi": phi_template,
    }
    if name == "auto":
        name = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    if name not in builders:
        raise InputError(f"unknown template {name!r}. {did_you_mean(name, ['auto', *builders])}")
    allowed = [key for key in inspect.signature(builders[name]).parameters if key != "tokenizer"]
    for key in options:
        if key not in allowed:
            possible = did_you_mean(key, allowed) if allowed else "It takes none"
            raise InputError(f"template {name} has no option {key}. {possible}")
    return builders[name](tokenizer, **options)


def _plain(tokenizer: Any) -> Tokenizer:
    """Transformers' own classes resolve these attributes at run time, out of sight of types."""
    typed: Tokenizer = tokenizer
    return typed
