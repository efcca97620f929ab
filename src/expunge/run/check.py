"""Everything that can be known to be wrong before weights are loaded, in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from expunge.core.errors import InputError, Problem, Problems
from expunge.run import check_data, check_memory, check_run
from expunge.run.check_data import Findings
from expunge.run.config import RunConfig

Verb = Literal["unlearn", "run", "finetune", "proxies", "alternates", "evaluate", "demo"]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found.

    Attributes:
        problems: What must be corrected; a run would fail.
        warnings: What may be meant, but often is not.
        facts: What the run comes to, as (topic, text): data, method, batches, disk.
    """

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    def raise_if_problems(self, source: str | None = None) -> None:
        """Raise every problem at once.

        Raises:
            InputError: There is at least one.
        """
        if self.problems:
            raise InputError(self.problems, source=source)


def check(config: RunConfig, *, verb: Verb | None = None) -> CheckReport:
    """Check a configuration against files, models, methods and this machine. Loads no weights.

    Args:
        config: The configuration, valid in itself.
        verb: What it will be used for, `run` being unlearning that writes the answers it lacks
            first; None: unlearning if it names a method, else fine-tuning.
    """
    verb = verb or ("finetune" if config.method is None and config.finetune else "unlearn")
    found = Findings(config=config, problems=Problems())
    for part in _PARTS[verb]:
        part(found)
    return CheckReport(
        problems=tuple(found.problems), warnings=tuple(found.warnings), facts=tuple(found.facts)
    )


# In this order: later parts look at what earlier ones loaded, and leave out what they could not.
_PARTS: dict[Verb, tuple[Callable[[Findings], None], ...]] = {
    "unlearn": (
        check_run.check_method,
        check_data.check_rows,
        check_data.check_rejections,
        check_data.check_proxies,
        check_data.check_alternates,
        check_run.check_stream_texts,
        check_run.check_reserve,
        check_run.check_models,
        check_run.check_layers,
        check_data.check_lengths,
        check_run.check_batches,
        check_run.check_training,
        check_run.check_evaluation,
        check_memory.check_memory,
        check_run.check_output,
    ),
    "run": (
        check_run.check_method,
        check_data.check_rows,
        check_data.check_rejections,
        check_data.check_proxies_or_exemplars,
        check_data.check_alternates_if_there,
        check_run.check_stream_texts,
        check_run.check_reserve,
        check_run.check_models,
        check_run.check_layers,
        check_run.check_writers,
        check_data.check_lengths,
        check_run.check_batches,
        check_run.check_training,
        check_run.check_evaluation,
        check_memory.check_memory,
        check_run.check_output,
    ),
    "demo": (
        check_run.check_method,
        check_data.check_rows,
        check_run.check_models,
        check_data.check_lengths,
        check_run.check_batches,
        check_run.check_training,
        check_run.check_evaluation,
        check_memory.check_memory,
        check_run.check_output,
    ),
    "finetune": (
        check_run.check_finetune,
        check_data.check_rows,
        check_run.check_models,
        check_data.check_lengths,
        check_run.check_batches,
        check_run.check_training,
        check_memory.check_memory,
        check_run.check_output,
    ),
    "proxies": (
        check_data.check_rows,
        check_data.check_exemplars,
        check_run.check_models,
        check_run.check_writer,
        check_run.check_output,
    ),
    "alternates": (
        check_data.check_rows,
        check_run.check_models,
        check_run.check_alternates_writer,
        check_run.check_output,
    ),
    "evaluate": (
        check_data.check_rows,
        check_run.check_models,
        check_run.check_evaluation,
        check_run.check_output,
    ),
}
