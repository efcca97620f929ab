"""Weights of model folders, tensor by tensor, without a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.models.builtin import BUILTIN, builtin_folder

if TYPE_CHECKING:
    from torch import Tensor


class FolderTensors:
    """The tensors in the safetensors files of a folder.

    Args:
        folder: A model folder.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    self.files[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def update_distance(first: str, second: str) -> float | None:
    """Euclidean distance of the weights of two model folders, 0 or more.

    Quoted by EGUP (arXiv:2505.08493) as the size of the update. None if one of them is not a local
    folder with whole weights, or their tensors do not have the same names and shapes.

    Args:
        first: A model folder, such as the target model's.
        second: Another one, such as the unlearned model's.
    """
    folders = [builtin_folder() if path == BUILTIN else Path(path) for path in (first, second)]
    ours, theirs = (FolderTensors(folder) for folder in folders)
    if not ours.shapes or ours.shapes != theirs.shapes:
        return None
    total = 0.0
    for name in ours.shapes:
        difference = ours[name].double() - theirs[name].double()
        total += float(difference.square().sum())
    return math.sqrt(total)
