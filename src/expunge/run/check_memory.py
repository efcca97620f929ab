"""What a check says about memory: an estimate of the peak, and whether this machine has as much."""

from __future__ import annotations

import sys

from expunge.core.errors import InputError
from expunge.run.check_data import Findings
from expunge.run.planning.devices import GIB
from expunge.run.planning.host import RunMemory, run_memory
from expunge.run.planning.workload import Settings, Work

NOT_COUNTED = "samples could not be counted"


def check_memory(found: Findings) -> None:
    """Estimate the peak memory of the run, and warn where this machine has less."""
    estimate = memory_estimate(found)
    if isinstance(estimate, str):
        found.facts.append(("memory", f"not estimated: {estimate}"))
        return
    found.facts.append(("memory", str(estimate)))
    available = _available(gpu=estimate.on == "device")
    if available is not None and estimate.peak > available:
        found.warnings.append(
            f"the run needs about {estimate.peak / GIB:.1f} GiB and there are "
            f"{available / GIB:.1f} GiB of {estimate.on} memory; lower training.micro_batch_size, "
            "set training.gradient_checkpointing=true, or use lora"
        )


def memory_estimate(found: Findings) -> RunMemory | str:
    """The estimate, or why there is none."""
    from expunge.run.check_data import model_config
    from expunge.run.planning.reading import model_shape

    if "forget" not in found.lengths:
        return NOT_COUNTED
    try:
        shape = model_shape(found.config.model.path, model_config(found.config))
        found_trainings = trainings(found)
    except InputError as error:
        return str(error)
    if not found_trainings:
        return "nothing is trained"
    return run_memory(found.config, shape, found_trainings, gpu=_has_gpu())


def trainings(found: Findings) -> dict[str, tuple[Work, Settings]]:
    """Work and settings of every training of the run, by what it does."""
    from expunge.run.planning.reading import (
        attention_of,
        joined,
        learning_work,
        method_work,
        settings_of,
    )

    config = found.config
    attention = attention_of(config, gpu=_has_gpu())
    parts: dict[str, tuple[Work, Settings]] = {}
    if found.method is not None:
        work = method_work(
            found.method,
            found.lengths,
            lora=config.lora is not None,
            other_reference=config.training.reference is not None,
        )
        settings = settings_of(
            config.training,
            config.lora,
            rows=found.lengths["forget"].rows,
            dtype=config.model.dtype,
            trainable=found.method.trainable,
            attention=attention,
        )
        parts["unlearning"] = (work, settings)
    if config.finetune is not None:
        rows = joined(list(found.lengths.values()))
        settings = settings_of(
            config.finetune.training,
            config.finetune.lora,
            rows=rows.rows,
            dtype=config.model.dtype,
            attention=attention,
        )
        parts["fine-tuning"] = (learning_work(rows), settings)
    return parts


def _has_gpu() -> bool:
    """Whether training runs on an accelerator; torch is asked only where it is loaded already."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.accelerator.is_available())


def _available(*, gpu: bool) -> float | None:
    from expunge.run.environment import memory_bytes

    if not gpu:
        return memory_bytes()
    torch = sys.modules["torch"]
    return float(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None
