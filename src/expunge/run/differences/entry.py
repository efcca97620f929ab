"""What an entry of the register holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public implementation.

    Attributes:
        name: Short name on the page.
        project: Repository, empty where only the paper or a description was read.
        commit: The commit whose functions were run.
        licence: Its licence, as found there.
        golden: Files of numbers made with it, in tests/golden.
        cases: How many of them there are.
    """

    name: str
    project: str
    commit: str
    licence: str
    golden: tuple[str, ...]
    cases: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way of doing it.

    Attributes:
        who: Sources that do so.
        does: What they do.
        notation: The method notation that does it here.
        settings: Configuration keys that do it here, as `key=value`.
        measured: Notation to measure when it needs other options than its plain name has.
        golden: Files in tests/golden whose numbers, made with that code, this form reproduces.
    """

    who: str
    does: str
    notation: str = ""
    settings: tuple[str, ...] = ()
    measured: str = ""
    golden: tuple[str, ...] = ()

    @property
    def here(self) -> str:
        """How to get it, as code; empty if there is no way."""
        return ", ".join(f"`{text}`" for text in (self.notation, *self.settings) if text)

    @property
    def runs(self) -> str:
        """Notation that is measured, empty if there is none."""
        return self.measured or self.notation


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry of the register: one question that sources answer in several ways.

    Attributes:
        mark: Its number, C-nn for released codes and E-nn for EGUP.
        topic: The question in a few words.
        paper: What the paper says.
        plain: What Expunge does unless told otherwise; the recommended default.
        others: The other forms.
        why: Why the plain form is what it is, or what follows from the difference.
        shows: Names whose `expunge show` page documents it.
        padded: The value of some form depends on padding.
        inputs: Variations of a fixture to measure on as well, by name.
        micro_batches: Rows of the worked example in each micro-batch, for a form that looks at
            one micro-batch.
        first_step_same: All forms agree until the first update, so there is nothing to measure.
    """

    mark: str
    topic: str
    paper: str
    plain: Form
    others: tuple[Form, ...] = ()
    why: str = ""
    shows: tuple[str, ...] = ()
    padded: bool = False
    inputs: tuple[str, ...] = ()
    micro_batches: tuple[int, ...] = ()
    first_step_same: bool = False

    @property
    def forms(self) -> tuple[Form, ...]:
        """All forms, the plain one first."""
        return (self.plain, *self.others)

    @property
    def measured(self) -> tuple[Form, ...]:
        """Forms that are compared with the plain one by numbers."""
        if self.first_step_same or not self.plain.runs:
            return ()
        return tuple(form for form in self.others if form.runs)
