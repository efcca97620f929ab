"""Checkpoints that resume bit for bit, without pickle: tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.core.errors import RunError
from expunge.core.files import atomic_folder, atomic_write_json

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after an optimizer step.

    Attributes:
        step: Optimizer steps done.
        key: Fingerprint of everything that determines the run; another key does not resume.
        parameters: Parameters that train, by name.
        optimizer: State of the optimizer, flat.
        objective: Tensors of the objective's state.
        random: Random state of every process.
    """

    step: int
    key: str
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    objective: Mapping[str, Tensor]
    random: Mapping[str, Tensor]


def save_checkpoint(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `root/step-N` at once and delete the oldest beyond `keep`."""
    folder = root / f"step-{checkpoint.step:06d}"
    with atomic_folder(folder) as temporary:
        for name in ("parameters", "optimizer", "objective", "random"):
            tensors = {
                k: v.detach().cpu().contiguous() for k, v in getattr(checkpoint, name).items()
            }
            save_file(tensors, temporary / f"{name}.safetensors")
        state = {"format": FORMAT, "step": checkpoint.step, "key": checkpoint.key}
        atomic_write_json(temporary / "state.json", state)
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    folders = [p for p in root.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(folder for folder in folders if (folder / "state.json").is_file())


def load_checkpoint(folder: Path, *, key: str) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        RunError: It belongs to a run with other settings, data or model, or is damaged.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = {
            name: load_file(folder / f"{name}.safetensors")
            for name in ("parameters", "optimizer", "objective", "random")
        }
    except Exception as error:
        raise RunError(
            f"the checkpoint {folder} cannot be read ({error}). Delete that folder to resume from "
            f"an earlier one or from the start"
        ) from error
    if state["key"] != key or state["format"] != FORMAT:
        raise RunError(
            f"{folder} belongs to a run with other settings, data or model. Choose another "
            f"output_dir, or delete that folder to start over"
        )
    return Checkpoint(step=state["step"], key=key, **tensors)


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """State of an optimizer as a flat mapping "index.name", or "index.name.part" where nested."""
    flat: dict[str, Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        _flatten(str(index), entry, flat)
    seen: set[int] = set()
    for name, value in flat.items():
        # Parameters may share a small table, which a file must hold once for each.
        flat[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return flat


def load_optimizer_tensors(optimizer: Any, flat: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, *parents, name = key.split(".")
        entry = state.setdefault(int(index), {})
        for parent in parents:
            entry = entry.setdefault(parent, {})
        # A counter that is no tensor was made one to be saved.
        counts = value.ndim == 0 and not value.is_floating_point()
        entry[name] = value.item() if counts else value
    full = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})


def _flatten(prefix: str, value: Any, flat: dict[str, Tensor]) -> None:
    if isinstance(value, Mapping):
        for name, part in value.items():
            _flatten(f"{prefix}.{name}", part, flat)
    else:
        flat[prefix] = value if isinstance(value, Tensor) else torch.tensor(value)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that train, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_parameters(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy saved parameters into the model.

    Raises:
        RunError: Names or shapes differ.
    """
    current = trainable_parameters(model)
    if {k: v.shape for k, v in current.items()} != {k: v.shape for k, v in saved.items()}:
        raise RunError("the checkpoint holds other parameters than the model trains")
    with torch.no_grad():
        for name, parameter in current.items():
            parameter.copy_(saved[name])


def random_state(device: torch.device) -> Tensor:
    """Random state of this process, one byte tensor."""
    if device.type == "cuda":
        return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state(device)])
    return torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put back what `random_state` gave."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
