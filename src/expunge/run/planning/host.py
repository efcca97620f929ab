"""Peak memory of a run on this machine, stage by stage, for `expunge check`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expunge.run.config import RunConfig
from expunge.run.planning.devices import GIB, MIB
from expunge.run.planning.memory import Memory, Placement, pass_memory, training_memory
from expunge.run.planning.shapes import ModelShape
from expunge.run.planning.workload import Settings, Work

LATER_MODULES: dict[str, int] = {
    "torch": 195 * MIB,
    "transformers.modeling_utils": 120 * MIB,
    "peft": 10 * MIB,
    "expunge.run.pipelines": 15 * MIB,
}
"""Resident bytes that a run adds by importing these, if they are not there yet (torch 2.13 for
CPUs, transformers 5.23)."""
KERNELS = 25 * MIB
"""Code and workspaces that the first matrix products load."""
CUDA_CONTEXT = int(0.5 * GIB)


@dataclass(frozen=True, kw_only=True)
class RunMemory:
    """Peak memory of a run.

    Attributes:
        peak: Bytes at most.
        stage: When that is.
        on: host, or device for a GPU.
        training: The parts of the training that needs most.
        stages: Peak of every stage.
    """

    peak: float
    stage: str
    on: str
    training: Memory
    stages: Mapping[str, float]

    def __str__(self) -> str:
        """The estimate with its parts, in one line."""
        parts = {"libraries" if k == "base" else k: v for k, v in self.training.parts().items()}
        listed = ", ".join(
            f"{name} {value / GIB:.2f}" for name, value in parts.items() if value >= 0.005 * GIB
        )
        others = ", ".join(
            f"{name} {value / GIB:.2f}" for name, value in self.stages.items() if name != self.stage
        )
        text = f"about {self.peak / GIB:.2f} GiB of {self.on} memory at most, while {self.stage}"
        return f"{text}; training: {listed}; peak of others: {others}"


def resident_bytes() -> int:
    """Resident size of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in lines.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def process_base() -> int:
    """Bytes that a training process has before it loads a model.

    What this process has now, plus what a run imports on top of it.
    """
    missing = sum(size for name, size in LATER_MODULES.items() if name not in sys.modules)
    return (resident_bytes() or 225 * MIB) + missing + KERNELS


def run_memory(
    config: RunConfig,
    shape: ModelShape,
    trainings: Mapping[str, tuple[Work, Settings]],
    *,
    gpu: bool = False,
    base: int | None = None,
) -> RunMemory:
    """Peak memory of loading, every training, and the evaluation.

    Args:
        config: The configuration.
        shape: Its model.
        trainings: Work and settings of each training, by what it does; at least one.
        gpu: Count the memory of a GPU instead of the host's.
        base: Bytes of the process before it loads a model; measured by default.
    """
    from expunge.run.environment import launched_processes

    if base is None:
        base = CUDA_CONTEXT if gpu else process_base()
    place = Placement(world=launched_processes(), gpu=gpu, base=base)
    memories = {
        name: training_memory(shape, work, settings, place)
        for name, (work, settings) in trainings.items()
    }
    heaviest = max(memories, key=lambda name: memories[name].peak)
    stages = {name: memory.peak for name, memory in memories.items()}
    if not gpu:
        stages["loading"] = base + _loading(config, shape, trainings[heaviest][1])
    if config.evaluation is not None:
        width = 2 if config.model.dtype == "bfloat16" else 4
        tokens = config.evaluation.batch_tokens
        stages["evaluating"] = (
            base
            + width * shape.num_parameters
            + pass_memory(
                shape,
                tokens=tokens,
                labels=tokens,
                weight_bytes=width,
                chunk=trainings[heaviest][1].chunk,
                cached=True,
            )
        )
    stage = max(stages, key=lambda name: stages[name])
    return RunMemory(
        peak=stages[stage],
        stage=stage,
        on="device" if gpu else "host",
        training=memories[heaviest],
        stages=stages,
    )


def _loading(config: RunConfig, shape: ModelShape, settings: Settings) -> float:
    """Bytes while weights are read.

    A file in the wanted type is mapped and needs no copy; another is resident beside its copy.
    """
    loaded = float(settings.weight_bytes * shape.num_parameters)
    folder = Path(config.model.path).expanduser()
    file = sum(part.stat().st_size for part in folder.glob("*.safetensors"))
    same = not file or abs(file - loaded) < 0.02 * loaded
    return loaded if same else loaded + file
