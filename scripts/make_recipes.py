"""Write the recipes of the package from the tables below.

    python scripts/make_recipes.py [FOLDER]

Every recipe is a complete configuration: nothing is inherited from another file. `custom` and
`demo` are written by hand and left alone; other files that are not in the tables are deleted.
A comment at the top cites where the numbers come from; `open point` marks one that the source
leaves open. The same tables give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recipe_tables.assistants import llmu, uld
from recipe_tables.closer_look import closer_look
from recipe_tables.egup import egup
from recipe_tables.layout import Recipe
from recipe_tables.muse import muse
from recipe_tables.open_unlearning import open_unlearning
from recipe_tables.tofu import tofu
from recipe_tables.uipe import uipe
from recipe_tables.wmdp import wmdp

RECIPES = Path(__file__).resolve().parents[1] / "src" / "expunge" / "recipes"
BY_HAND = (
    "custom",
    "demo",
    *(
        f"benchmarks/{name}"
        for name in ("continual", "muse", "real_world", "related_knowledge", "tofu", "wmdp")
    ),
)


def recipes() -> list[Recipe]:
    """Every recipe that is not written by hand, by name."""
    families = (tofu, closer_look, egup, uipe, muse, open_unlearning, wmdp, llmu, uld)
    found = [recipe for family in families for recipe in family()]
    names = [recipe.name for recipe in found]
    assert len(set(names)) == len(names), "two recipes have one name"
    return sorted(found, key=lambda recipe: recipe.name)


def main(arguments: list[str]) -> int:
    """Write all files and delete those that no table has."""
    if len(arguments) > 1:
        sys.stderr.write(__doc__ or "")
        return 2
    folder = Path(arguments[0]) if arguments else RECIPES
    written = recipes()
    known = {recipe.name for recipe in written} | set(BY_HAND)
    for path in sorted(folder.rglob("*.yaml")):
        if path.relative_to(folder).with_suffix("").as_posix() not in known:
            path.unlink()
    for recipe in written:
        path = folder / f"{recipe.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe.text(), encoding="utf-8")
    sys.stdout.write(f"{len(written)} recipes in {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
