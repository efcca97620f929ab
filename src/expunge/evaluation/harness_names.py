"""Names of the lm-evaluation-harness' tasks: the index of them, and what is wrong with a list."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from expunge.core.errors import MissingExtraError, Problem
from expunge.evaluation.harness_tasks import STANDARD_TASKS, HarnessTask, harness_task

EXTRA = "lm-eval"
"""The extra of this package that brings the harness."""

# Folders of the harness' tasks that hold the standard ones. Reading these takes a moment, reading
# all fourteen thousand tasks takes up to half a minute.
_STANDARD_FOLDERS = ("arc", "gsm8k", "mmlu/default", "triviaqa", "truthfulqa", "wmdp")

Paths = str | Path | Sequence[str | Path] | None
"""No folder, one, or several."""


def check_tasks(names: Sequence[str | HarnessTask], *, include_path: Paths = None) -> list[Problem]:
    """What is wrong with a list of tasks; needs no weights, no data and no network.

    Args:
        names: Tasks or groups of tasks of the harness.
        include_path: Folders with tasks of the user's own, as YAML files.

    Returns:
        One problem for every name that is unknown, a mere tag, a group without a mean, or there
        twice, and for every folder that does not exist.

    Raises:
        MissingExtraError: The harness is not installed.
    """
    require_harness()
    wanted = [harness_task(name).name for name in names]
    folders = task_folders(include_path)
    problems = [
        Problem(where=str(folder), message="no such folder of harness tasks")
        for folder in folders
        if not folder.is_dir()
    ]
    if problems:
        return problems
    if not wanted:
        return []
    index = task_manager(wanted, folders).task_index
    for name in dict.fromkeys(wanted):
        fault = _fault(name, index)
        if fault:
            problems.append(Problem(where=name, message=fault))
        if wanted.count(name) > 1:
            problems.append(Problem(where=name, message="is named more than once"))
    return problems


def require_harness() -> None:
    """Make sure that the harness is there.

    Raises:
        MissingExtraError: It is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", EXTRA, "Measuring general ability with harness tasks")


def task_folders(include_path: Paths) -> tuple[Path, ...]:
    """Folders of the user's own tasks, as paths."""
    if include_path is None:
        return ()
    paths = [include_path] if isinstance(include_path, str | Path) else include_path
    return tuple(Path(path).expanduser() for path in paths)


def task_manager(names: Sequence[str], folders: tuple[Path, ...]) -> Any:
    """The harness' `TaskManager`: with a small index if that has all of `names`, else the whole."""
    small = _index(folders, whole=False)
    index = small.task_index
    # A user's group may have members that are not in the small index.
    groups = set(small.all_groups) - set(STANDARD_TASKS)
    if all(name in index and name not in groups for name in names):
        return small
    return _index(folders, whole=True)


@lru_cache(maxsize=8)
def _index(folders: tuple[Path, ...], *, whole: bool) -> Any:
    import lm_eval.tasks

    paths: list[Path] = []
    if not whole:
        home = Path(str(lm_eval.tasks.__file__)).parent
        paths = [home / name for name in _STANDARD_FOLDERS if (home / name).is_dir()]
    return lm_eval.tasks.TaskManager(include_path=[*paths, *folders], include_defaults=whole)


def _fault(name: str, index: Mapping[str, Any]) -> str:
    """What is wrong with a task's name; "" if nothing."""
    entry = index.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, list(index), n=3, cutoff=0.6)
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        return (
            f"the harness has no such task. {guess}It has {len(index)} names; those of its "
            f"published tasks are listed by: lm-eval ls tasks"
        )
    if entry.kind.name == "TAG":
        members = sorted(entry.tags)
        shown = ", ".join(members[:6]) + (", ..." if len(members) > 6 else "")
        return f"is a tag of {len(members)} tasks without a common number; name tasks: {shown}"
    if entry.kind.name == "GROUP" and not (entry.cfg or {}).get("aggregate_metric_list"):
        return "is a group without a mean over its tasks (aggregate_metric_list); name its tasks"
    return ""
