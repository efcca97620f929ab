"""What happens beside the training loop: logs, trackers, progress, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.files import append_jsonl, atomic_write_text, read_jsonl


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step did.

    Attributes:
        step: Optimizer steps done, counted from 1.
        epoch: Passes over the forget set done.
        total: The loss, all terms with their weights.
        terms: Every term's mean over the step, without its weight.
        learning_rate: Learning rate of the step.
        grad_norm: Norm of the gradient before clipping.
        seconds: Wall-clock time of the step.
        extra: Ranges of weights and similarities, samples whose proxy penalty fired.
    """

    step: int
    epoch: float
    total: float
    terms: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    seconds: float
    extra: Mapping[str, float] = field(default_factory=dict)


class Callback:
    """Hooks of the loop; they run on the main process only unless they say otherwise."""

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Before the first step; `first_step` is above 0 when a run resumes."""

    def on_step(self, record: StepRecord) -> None:
        """After every optimizer step."""

    def on_end(self) -> None:
        """After the last step, also of a run that failed."""


class JsonlLog(Callback):
    """Append every step to a JSON-lines file.

    Args:
        path: The file. On resume, lines after the checkpoint are dropped.
        every: Steps between lines.
    """

    def __init__(self, path: Path | str, every: int = 1) -> None:
        self.path = Path(path)
        self.every = every

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Drop what a killed run wrote after its last checkpoint."""
        if self.path.exists():
            kept = [line for line in read_jsonl(self.path) if line["step"] <= first_step]
            atomic_write_text(self.path, "")
            for line in kept:
                append_jsonl(self.path, line)

    def on_step(self, record: StepRecord) -> None:
        """Write the step."""
        if record.step % self.every == 0 or record.step == 1:
            append_jsonl(self.path, asdict(record))


class Trackers(Callback):
    """Forward every step to accelerate's trackers: tensorboard, wandb, mlflow.

    Args:
        accelerator: The accelerator whose trackers were named in `log_with`.
        project: Project name.
        config: Settings to show next to the curves.
    """

    def __init__(self, accelerator: Any, project: str, config: Mapping[str, Any]) -> None:
        self.accelerator = accelerator
        self.project = project
        # Trackers take flat values only.
        self.config = {k: v for k, v in config.items() if isinstance(v, int | float | str | bool)}

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Open the trackers."""
        self.accelerator.init_trackers(self.project, config=self.config)

    def on_step(self, record: StepRecord) -> None:
        """Send the step."""
        values = {f"terms/{name}": value for name, value in record.terms.items()}
        values |= {"total": record.total, "learning_rate": record.learning_rate}
        values |= {"grad_norm": record.grad_norm} | dict(record.extra)
        self.accelerator.log(values, step=record.step)

    def on_end(self) -> None:
        """Close the trackers."""
        self.accelerator.end_training()
