"""General ability, measured with EleutherAI's lm-evaluation-harness through its Python API.

An extra: `pip install 'expunge[lm-eval]'`. Tasks run one after another, so that one whose data
cannot be had, say without a network, leaves the others their numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from expunge.core.errors import InputError, Problem
from expunge.core.results import Better, Record, Score
from expunge.evaluation.harness_names import Paths, check_tasks, task_folders, task_manager
from expunge.evaluation.harness_tasks import SEEDS, HarnessTask, harness_task

__all__ = ["CPU_BATCH_SIZE", "HarnessResults", "HarnessTaskInfo", "check_tasks", "run_harness"]

CPU_BATCH_SIZE = 4
"""Questions per batch that `auto` means on a CPU: the harness finds its size by filling the memory,
which an accelerator reports and a computer without one does not survive."""

# Metrics of the harness that are shares, for the clipping of intervals.
_SHARES = frozenset({"acc", "acc_norm", "acc_mutual_info", "exact_match", "f1"})
# Resamples for intervals of metrics that are no means; the harness' 100 000 start processes.
_BOOTSTRAP = 1000


class HarnessTaskInfo(Record):
    """Where the score of one task comes from.

    Attributes:
        metric: Key of the number in the harness' results; "" if there is none.
        version: Version of the task, as the harness has it; raised when its numbers move.
        num_fewshot: Examples in front of every question; None where the task did not run.
        num_questions: All questions it has, of which a limit leaves some out.
        add_bos: Prompts start with the beginning-of-sequence token; None: as the tokenizer does.
        stderr: Standard error by the harness; None where it gives none.
        chance: What guessing gives; None where that means nothing.
        explanation: How to read the number.
        seconds: Wall-clock time.
        warnings: What the harness complained about, such as cut prompts; the first few.
    """

    metric: str = ""
    version: str = ""
    num_fewshot: int | None = None
    num_questions: int = 0
    add_bos: bool | None = None
    stderr: float | None = None
    chance: float | None = None
    explanation: str = ""
    seconds: float = 0.0
    warnings: list[str] = Field(default_factory=list)


class HarnessResults(Record):
    """Scores of one model on tasks of the harness.

    Attributes:
        scores: By key, "lm_eval/TASK".
        tasks: Where each comes from, by the same keys.
        settings: What the numbers depend on besides: limit, batch size, chat template, folders
            of own tasks.
        versions: Of lm-eval, transformers and torch.
        created: ISO 8601 time with zone.
    """

    scores: dict[str, Score]
    tasks: dict[str, HarnessTaskInfo]
    settings: dict[str, Any]
    versions: dict[str, str]
    created: str


class _Outcome(NamedTuple):
    score: Score
    info: HarnessTaskInfo


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | HarnessTask],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: Literal["auto"] | int = "auto",
    include_path: Paths = None,
    apply_chat_template: bool = False,
    add_bos: bool | None = None,
    show_progress: bool = False,
    on_task: Callable[[str, Score], None] | None = None,
) -> HarnessResults:
    """Scores of a model on tasks of the harness.

    The numbers are those of `lm_eval.simple_evaluate`. A task whose data cannot be loaded gives an
    absent score with the reason. Model, tokenizer and the process' random state are left as they
    were.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        tasks: Names or declarations; for names of `STANDARD_TASKS` metric and number of examples
            are as the papers have them, for others the task's first metric counts.
        limit: First questions of every task, of every task in a group; None: all.
        num_fewshot: Examples in front of every question, for all tasks that do not fix it at 0;
            None: what each task's declaration says.
        batch_size: Questions per batch; `auto` asks the accelerator's memory, and is
            `CPU_BATCH_SIZE` without one. Moves no number beyond rounding.
        include_path: Folders with tasks of the user's own, as YAML files.
        apply_chat_template: Ask within the tokenizer's chat template, each example a turn.
        add_bos: Start prompts with the beginning-of-sequence token, as Closer Look does (True), or
            never (False), for all tasks; None: what each task's declaration says, else as the
            tokenizer does it.
        show_progress: Let the harness draw its progress bars.
        on_task: Called with key and score when a task is done.

    Raises:
        MissingExtraError: The harness is not installed.
        InputError: A task is unknown, or an argument makes no sense.
    """
    wanted = [harness_task(task) for task in tasks]
    problems = check_tasks(wanted, include_path=include_path)
    if not wanted:
        problems.append(Problem(where="tasks", message="none is named; name at least one"))
    problems += _argument_problems(tokenizer, limit, num_fewshot, batch_size, apply_chat_template)
    if problems:
        raise InputError(problems, source="The list of harness tasks")
    from expunge.evaluation.harness_model import HarnessModel, undisturbed

    folders = task_folders(include_path)
    manager = task_manager([task.name for task in wanted], folders)
    on_cpu = next(model.parameters()).device.type == "cpu"
    size = CPU_BATCH_SIZE if batch_size == "auto" and on_cpu else batch_size
    outcomes: dict[str, _Outcome] = {}
    for task in wanted:
        start = time.perf_counter()
        begins = task.add_bos if add_bos is None else add_bos
        with undisturbed(model, show_progress) as warnings:
            outcome = _run_task(
                task,
                manager,
                # A new one for each task: the batch size it found fits prompts of that length.
                partial(HarnessModel, model, tokenizer, batch_size=size, add_bos=begins),
                num_fewshot=task.num_fewshot if num_fewshot is None else num_fewshot,
                limit=limit,
                chat=apply_chat_template,
            )
        seconds = time.perf_counter() - start
        more = {"seconds": seconds, "warnings": warnings, "add_bos": begins}
        outcomes[task.key] = outcome._replace(info=outcome.info.model_copy(update=more))
        if on_task is not None:
            on_task(task.key, outcome.score)
    return HarnessResults(
        scores={key: outcome.score for key, outcome in outcomes.items()},
        tasks={key: outcome.info for key, outcome in outcomes.items()},
        settings={
            "limit": limit,
            "num_fewshot": num_fewshot,
            "batch_size": size,
            "apply_chat_template": apply_chat_template,
            "include_path": [str(folder) for folder in folders],
        },
        versions={name: metadata.version(name) for name in ("lm_eval", "transformers", "torch")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _argument_problems(
    tokenizer: Any, limit: Any, num_fewshot: Any, batch_size: Any, chat: bool
) -> list[Problem]:
    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    found = []
    if limit is not None and not whole(limit, 1):
        found.append(("limit", f"{limit!r} is not allowed; it must be a whole number from 1"))
    if num_fewshot is not None and not whole(num_fewshot, 0):
        message = f"{num_fewshot!r} is not allowed; it must be a whole number from 0"
        found.append(("num_fewshot", message))
    if batch_size != "auto" and not whole(batch_size, 1):
        message = f"{batch_size!r} is not allowed; it must be auto or a whole number from 1"
        found.append(("batch_size", message))
    if chat and not getattr(tokenizer, "chat_template", None):
        found.append(("apply_chat_template", "the tokenizer has no chat template; leave it off"))
    return [Problem(where=where, message=message) for where, message in found]


def _run_task(
    task: HarnessTask,
    manager: Any,
    make_model: Callable[[], Any],
    *,
    num_fewshot: int | None,
    limit: int | None,
    chat: bool,
) -> _Outcome:
    import lm_eval

    loaded = _load(manager, task.name)
    if isinstance(loaded, str):
        return _absent(task, loaded)
    for leaf in loaded["tasks"].values():
        _set_fewshot(leaf, num_fewshot)
    # Not `simple_evaluate`: it loads tasks itself, where a failure would end the others too, and
    # asks git and the system for things nobody reads here. What else it does is done here.
    raw = lm_eval.evaluate(
        lm=make_model(),
        task_dict=loaded,
        limit=limit,
        log_samples=False,
        bootstrap_iters=_BOOTSTRAP,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    return _outcome(task, raw)


def _load(manager: Any, name: str) -> Any:
    """What the harness loads for a name, or why it cannot run."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        hint = ". Its data come from the hub: needs a network or a filled cache of datasets"
        return f"the harness could not load it: {reason}{hint if _is_remote(error) else ''}"
    for leaf in loaded["tasks"].values():
        if getattr(leaf, "UNSAFE_CODE", False):
            return "it runs program code that the model writes, which is not done here"
        if getattr(leaf, "MULTIMODAL", False):
            return "it needs a model that sees images or hears sound"
    return loaded


def _is_remote(error: BaseException) -> bool:
    from datasets.exceptions import DatasetsError

    return isinstance(error, OSError | DatasetsError)


def _set_fewshot(leaf: Any, num_fewshot: int | None) -> None:
    """Number and seed of a task's examples; a task that fixes 0 keeps it, as upstream."""
    own = leaf.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        leaf.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        leaf.set_config(key="num_fewshot", value=0)
    leaf.set_fewshot_seed(seed=SEEDS[1])


def _outcome(task: HarnessTask, raw: Mapping[str, Any]) -> _Outcome:
    """Score and origin from the harness' results."""
    found: Mapping[str, Any] = raw["results"].get(task.name, {})
    keys = [key for key in found if "," in key and "_stderr," not in key]
    key = task.metric if task.metric is not None else next(iter(keys), "")
    if key not in found:
        return _absent(task, f"the harness has no {key or 'number'} of it; it has: {keys}")
    name, _, chosen = key.partition(",")
    value, stderr = float(found[key]), found.get(f"{name}_stderr,{chosen}")
    stderr = float(stderr) if isinstance(stderr, int | float) else None
    low, high = _interval(name, value, stderr)
    rising = raw["higher_is_better"].get(task.name, {}).get(name)
    said: Better = "none" if rising is None else "higher" if rising else "lower"
    score = Score(
        value=value,
        n=_count(task.name, "effective", raw),
        low=low,
        high=high,
        better=task.better or said,
        reason="the harness gives a value that is no number" if np.isnan(value) else None,
        unit=name,
        two_sided=None if task.ideal is None else abs(value - task.ideal),
        note=task.explanation or None,
    )
    info = HarnessTaskInfo(
        metric=key,
        version=str(raw["versions"].get(task.name, "")),
        num_fewshot=raw["n-shot"].get(task.name),
        num_questions=_count(task.name, "original", raw),
        stderr=stderr,
        chance=task.chance,
        explanation=task.explanation,
    )
    return _Outcome(score, info)


def _interval(name: str, value: float, stderr: float | None) -> tuple[float | None, float | None]:
    """The value and 1.96 standard errors to both sides, within the metric's range."""
    if stderr is None:
        return None, None
    low, high = value - 1.96 * stderr, value + 1.96 * stderr
    return (max(low, 0.0), min(high, 1.0)) if name in _SHARES else (low, high)


def _count(name: str, which: str, raw: Mapping[str, Any]) -> int:
    """Questions of a task, or of all tasks of a group: "original" all, "effective" asked."""
    if name in raw["n-samples"]:
        return int(raw["n-samples"][name][which])
    return sum(_count(child, which, raw) for child in raw["group_subtasks"].get(name, ()))


def _absent(task: HarnessTask, reason: str) -> _Outcome:
    score = Score(n=0, better=task.better or "none", reason=reason)
    info = HarnessTaskInfo(
        metric=task.metric or "", chance=task.chance, explanation=task.explanation
    )
    return _Outcome(score, info)
