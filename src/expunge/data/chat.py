"""A tokenizer's own chat template, with the answer's borders found and not guessed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from expunge.core.errors import InputError
from expunge.core.fingerprint import fingerprint
from expunge.data.problems import short
from expunge.data.rows import Message
from expunge.data.tokens import (
    VERSION,
    Encoded,
    Tokenizer,
    encode_text_row,
    end_id,
    ids_after,
    text_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "10 Apr 2025"
"""Today's date as templates are told it, on every day; the one open-unlearning uses."""

_ASKS_TIME = re.compile(r"""\bstrftime_now\s*\(\s*(["'])(?P<format>[^"'\\]*)\1\s*\)""")
_DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")
_MAX_FRAMES = 1024
_STAND_IN = "EXPUNGEANSWERGOESHERE"  # one word, so that no template strips or splits it


class _Frame(NamedTuple):
    """What a template writes around an answer.

    Attributes:
        prompt: Text up to where the model takes over.
        prompt_ids: Its token ids.
        head: Text of the full conversation up to the answer.
        lead: White space between the two; it belongs to the answer.
        tail: Text of the full conversation behind the answer.
    """

    prompt: str
    prompt_ids: list[int]
    head: str
    lead: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Conversations as the tokenizer's template writes them.

    The prompt is what the template renders with `add_generation_prompt`. The answer is what it then
    renders for the assistant's turn, up to and including the first special token behind the answer
    (the end of the turn) and not what follows that, such as a line break. A template without a
    special token there gets the end-of-sequence token.

    Attributes:
        tokenizer: Has a chat template.
        system_prompt: System message for conversations that have none; None leaves it to the
            template, which may have its own.
        date_string: What the template is told today's date is.
        variables: Further variables for the template.
    """

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None
    date_string: str
    variables: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Always "chat"."""
        return "chat"

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The template's end of turn, and the end of sequence."""
        probe = (Message(role="user", content="Hello"),)
        ends = [self.encode(probe, "Hello")[1][-1], self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(end for end in ends if isinstance(end, int)))

    def fingerprint(self) -> str:
        """Hash of the template's text and of everything it is given besides the messages."""
        given = [self.system_prompt, self.date_string, dict(self.variables)]
        return fingerprint(["chat", VERSION, self.tokenizer.get_chat_template(), given])

    def encode(self, messages: Sequence[Message], answer: str | None) -> Encoded:
        """Token ids; see `Template.encode`."""
        tokenizer = cast("Tokenizer", self.tokenizer)
        if not messages:
            return encode_text_row(tokenizer, answer)
        frame = self._frame(tuple(messages))
        if answer is None:
            return Encoded(list(frame.prompt_ids), [])
        said = frame.lead + self._as_rendered(messages, answer, frame)
        end = self._end_of_turn(frame.tail)
        ids = ids_after(tokenizer, frame.prompt, said + (end or ""), before_ids=frame.prompt_ids)
        if end is None:
            ids.append(end_id(tokenizer))
        return Encoded(list(frame.prompt_ids), ids)

    def _render(self, messages: Sequence[Message], answer: str | None) -> str:
        import jinja2

        turns = [{"role": message.role, "content": message.content} for message in messages]
        if self.system_prompt is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self._stilled,
                tokenize=False,
                add_generation_prompt=answer is None,
                date_string=self.date_string,
                **self.variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise InputError(
                f"the tokenizer's chat template refuses a conversation with the roles {roles}: "
                f"{error}. Change the conversation, or use the plain template"
            ) from error
        return str(text)

    @cached_property
    def _stilled(self) -> str:
        return _stop_clock(self.tokenizer.get_chat_template(), _day(self.date_string))

    @cached_property
    def _frames(self) -> dict[tuple[Message, ...], _Frame]:
        """Frames of late: alternates and paraphrases ask for the same question again."""
        return {}

    def _frame(self, messages: tuple[Message, ...]) -> _Frame:
        if messages not in self._frames:
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            self._frames[messages] = self._find_frame(messages)
        return self._frames[messages]

    def _find_frame(self, messages: Sequence[Message]) -> _Frame:
        prompt = self._render(messages, None)
        full = self._render(messages, _STAND_IN)
        head, found, tail = full.partition(_STAND_IN)
        if not found or _STAND_IN in tail:
            raise InputError(
                f"the tokenizer's chat template renders an assistant message "
                f"{full.count(_STAND_IN)} times, so the borders of the answer cannot be found; use "
                f"the plain template"
            )
        if not head.startswith(prompt):
            # The generation prompt says more than the full conversation does (an opened thinking
            # block, say). Generation uses it, so training does as well.
            lead = ""
        elif (lead := head[len(prompt) :]).strip():
            # A template that ignores add_generation_prompt: the header of the answer is prompt.
            prompt, lead = head, ""
        # The template writes the beginning-of-sequence token itself where there is one.
        ids = text_ids(cast("Tokenizer", self.tokenizer), prompt)
        return _Frame(prompt, ids, head, lead, tail)

    def _as_rendered(self, messages: Sequence[Message], answer: str, frame: _Frame) -> str:
        """The answer as the template writes it: most strip white space around it."""
        full = self._render(messages, answer)
        for text in (answer, answer.strip(), answer.rstrip(), answer.lstrip()):
            if full == frame.head + text + frame.tail:
                return text
        raise InputError(
            f"the tokenizer's chat template changes the answer {short(answer)}, so its borders "
            f"cannot be found; reword it, or use the plain template"
        )

    def _end_of_turn(self, tail: str) -> str | None:
        """Text behind the answer up to its first special token; None if there is no such token."""
        found = [(tail.find(token), -len(token)) for token in self._special if token in tail]
        if not found:
            return None
        start, minus_length = min(found)  # the longest of those that start first
        return tail[: start - minus_length]

    @cached_property
    def _special(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        named = [token.content for token in added if token.special]
        return tuple(dict.fromkeys([*map(str, self.tokenizer.all_special_tokens), *named]))


def chat_template(
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None = None,
    date_string: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """The tokenizer's chat template.

    Args:
        tokenizer: Must have a chat template.
        system_prompt: System message for conversations without one.
        date_string: Today's date for templates that mention it; fixed by default, so that tokens do
            not change from day to day. Like "10 Apr 2025" or "2025-04-10".
        variables: Further variables for the template, such as `reasoning_effort`. By default
            `enable_thinking` is off, which templates without a thinking mode ignore.

    Raises:
        InputError: The tokenizer has no chat template, or the date cannot be read.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template; use the plain template")
    date = DATE if date_string is None else date_string
    _stop_clock(tokenizer.get_chat_template(), _day(date))
    return ChatTemplate(
        tokenizer=tokenizer,
        system_prompt=system_prompt,
        date_string=date,
        variables={"enable_thinking": False, **(variables or {})},
    )


def _day(date_string: str) -> datetime:
    for form in _DATE_FORMATS:
        with contextlib.suppress(ValueError):
            return datetime.strptime(date_string, form)
    raise InputError(f"date_string is {date_string!r}; write it like 10 Apr 2025 or 2025-04-10")


def _stop_clock(template: str, day: datetime) -> str:
    """The template with every question for the time answered.

    Some templates take the date from their host and not from `date_string`. The host's function
    cannot be replaced (transformers hands data to templates, no functions), but its calls can.
    """

    def answered(call: re.Match[str]) -> str:
        return repr(day.strftime(call["format"]))

    stilled = _ASKS_TIME.sub(answered, template)
    if re.search(r"\bstrftime_now\s*\(", stilled):
        raise InputError(
            "the tokenizer's chat template writes the time in a form that cannot be fixed, so its "
            "tokens would change from day to day; use the plain template"
        )
    return stilled
