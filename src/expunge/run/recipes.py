"""The recipes in the package: complete configurations of published settings."""

from __future__ import annotations

import importlib.resources
from functools import cache
from pathlib import Path

from expunge.core.errors import InputError, did_you_mean


def recipe_folder() -> Path:
    """Folder of the recipes."""
    return Path(str(importlib.resources.files("expunge"))) / "recipes"


def recipe_names() -> list[str]:
    """Names of all recipes, such as "tofu/npo_phi15"."""
    return list(_names())


@cache
def _names() -> tuple[str, ...]:
    folder = recipe_folder()
    paths = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return tuple(sorted(path.as_posix() for path in paths))


def find_recipe(name: str) -> Path:
    """File of a recipe.

    Raises:
        InputError: There is none of that name; the message lists what exists.
    """
    names = recipe_names()
    if name not in names:
        raise InputError(f"no file and no recipe is called {name!r}. {did_you_mean(name, names)}")
    return recipe_folder() / f"{name}.yaml"


def recipe_header(name: str) -> str:
    """The comment at the top of a recipe, without its marks.

    Raises:
        InputError: There is no recipe of that name.
    """
    header = []
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(header)
