"""Checks of a run as a whole: method, models, batches, evaluation, output folder, disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from expunge.core.errors import InputError, did_you_mean
from expunge.run.arithmetic import plan_batches
from expunge.run.check_data import Findings
from expunge.run.config import RunConfig
from expunge.run.methods import method_of
from expunge.run.sections import EvaluationConfig, TrainingConfig

_GIB = 2**30


def check_method(found: Findings) -> None:
    """Read the method and see whether the run has what it needs."""
    config = found.config
    if config.method is None:
        found.add("method", 'is required to unlearn, for example method: "NPO+GD"')
        return
    try:
        method = method_of(config.method)
    except InputError as error:
        for problem in error.problems:
            found.problems.add(problem.where, problem.message)
        return
    found.method = method
    found.facts.append(("method", str(method)))
    if method.needs_retain and config.data.retain is None:
        found.add("data.retain", f"{method} needs a retain set; name one, or take another method")
    entanglement = method.entanglement
    alone = config.training.micro_batch_size == 1
    if alone and entanglement is not None and entanglement.scope == "micro_batch":
        found.add(
            "training.micro_batch_size",
            f"with 1 sample per micro-batch and scope=micro_batch every weight of {method} is 1; "
            "take at least 2, or scope=step",
        )
    if config.lora is None and method.needs_reference == "distributions":
        found.warnings.append(
            f"{method} compares whole distributions with the target model: without lora a second "
            "copy of it is kept in memory"
        )


def check_finetune(found: Findings) -> None:
    """See whether there is something to fine-tune on."""
    if found.config.finetune is None:
        found.add("finetune", "is required to make a target and a retain model")
    if found.config.data.retain is None:
        found.add("data.retain", "is required: the retain model is made from it alone")


def check_models(found: Findings) -> None:
    """See whether models and tokenizers are there and can be loaded."""
    from expunge.models.loading import check_model

    config = found.config
    models = {"model.path": config.model.path}
    if config.proxies.model is not None:
        models["proxies.model"] = config.proxies.model
    for key, path in models.items():
        own = key == "model.path"
        problems = check_model(
            path,
            revision=config.model.revision if own else None,
            trust_remote_code=config.model.trust_remote_code,
        )
        for problem in problems:
            found.bad_models.add(key)
            found.add(key, problem)


def check_batches(found: Findings) -> None:
    """Do the batch arithmetic of every training of the run."""
    config = found.config
    sizes = {name: len(rows) for name, rows in found.rows.items()} | found.num_samples
    if config.method is not None and "forget" in sizes:
        _plan(found, "training", "unlearning", config.training, sizes["forget"])
    if config.finetune is None or set(sizes) != {"forget", "retain"}:
        return
    training = config.finetune.training
    total = sizes["forget"] + sizes["retain"]
    if _plan(found, "finetune.training", "target model", training, total):
        _plan(found, "finetune.training", "retain model", training, sizes["retain"])


def _plan(found: Findings, key: str, what: str, training: TrainingConfig, samples: int) -> bool:
    try:
        plan = plan_batches(training, samples)
    except InputError as error:
        for problem in error.problems:
            found.problems.add(f"{key}.{problem.where}", problem.message)
        return False
    found.facts.append((what, str(plan)))
    if plan.warmup_steps >= plan.total_steps > 1:
        found.warnings.append(
            f"{key}: all {plan.total_steps} steps are warm-up, so the learning rate never reaches "
            f"{training.learning_rate:g}"
        )
    return True


def check_training(found: Findings) -> None:
    """Look for settings that cannot go together, and for packages that are not installed."""
    config = found.config
    trainings = {"training": (config.training, config.lora)}
    if config.finetune is not None:
        trainings["finetune.training"] = (config.finetune.training, config.finetune.lora)
    for key, (training, lora) in trainings.items():
        if lora is not None and training.trainable != "all":
            found.add(
                f"{key}.trainable",
                "cannot choose parameters when lora trains adapters; say which layers get one with "
                f"{key.removesuffix('training')}lora.target_modules",
            )
        for tracker in training.report_to:
            if importlib.util.find_spec(tracker) is None:
                found.add(
                    f"{key}.report_to",
                    f"{tracker} is not installed. Get it with: pip install 'expunge[{tracker}]'",
                )


def check_evaluation(found: Findings) -> None:
    """See whether the benchmark exists and the models it compares."""
    config = found.config
    evaluation = config.evaluation
    if evaluation is None:
        return
    _check_benchmark(found, evaluation)
    possible = config.roles()
    for role in evaluation.roles or ():
        if role not in possible:
            found.add(
                "evaluation.roles",
                f"this run has no {role} model, only: {', '.join(possible)}. A finetune section "
                "makes base, target and retain models; retain_run brings a retain model's results",
            )
    if evaluation.retain_run is not None:
        _check_retain_run(found, Path(evaluation.retain_run))
    elif "retain" not in possible:
        found.warnings.append(
            "no retain model (finetune section or evaluation.retain_run): forget quality will be "
            "absent from the results"
        )


def _check_benchmark(found: Findings, evaluation: EvaluationConfig) -> None:
    from expunge.benchmarks import benchmarks

    try:
        benchmark = benchmarks.get(found.config.benchmark() or "")
    except InputError as error:
        found.add("evaluation.benchmark", error)
        return
    try:
        benchmark.preset(evaluation.preset)
    except InputError as error:
        found.add("evaluation.preset", error)
    for name in evaluation.rows:
        if name not in benchmark.probes:
            found.add(
                "evaluation.rows",
                f"{benchmark.name} has no probe {name!r}. {did_you_mean(name, benchmark.probes)}",
            )


def _check_retain_run(found: Findings, folder: Path) -> None:
    if not folder.is_dir():
        found.add("evaluation.retain_run", f"{folder}: there is no such run folder")
    elif not (folder / "evaluation" / "retain").is_dir():
        found.add(
            "evaluation.retain_run",
            f"no results of a retain model in {folder}; make them with: "
            f"expunge evaluate MODEL --role retain --output {folder}",
        )


def check_output(found: Findings) -> None:
    """See whether the run folder can be written and the disk has room for what goes there."""
    folder = Path(found.config.output_dir)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        found.add("output_dir", f"{existing} is a file; a run needs a folder")
        return
    if not os.access(existing, os.W_OK):
        found.add("output_dir", f"not allowed to write into {existing}")
        return
    needed = disk_estimate(found.config)
    free = shutil.disk_usage(existing).free
    if needed is None:
        found.facts.append(("disk", f"{free / _GIB:.1f} GiB free; size of the model not known yet"))
    elif needed > free:
        found.add(
            "output_dir",
            f"the run writes about {needed / _GIB:.1f} GiB and {existing} has {free / _GIB:.1f} "
            "GiB free; free some space, choose another folder, or set training.save_steps=null",
        )
    else:
        found.facts.append(
            ("disk", f"about {needed / _GIB:.1f} GiB to write, {free / _GIB:.1f} GiB free")
        )


def disk_estimate(config: RunConfig) -> int | None:
    """Bytes that a run writes at most: models and checkpoints; None where the model is unknown.

    A checkpoint of full fine-tuning holds the weights and two float32 moments of AdamW per weight;
    one of adapters is small. The estimate errs on the large side.
    """
    parameters = num_parameters(config)
    if parameters is None:
        return None
    saved = parameters * (4 if config.model.dtype == "float32" else 2)
    trainings = [(config.training, config.lora)] if config.method is not None else []
    models = len(trainings)
    if config.finetune is not None:
        trainings.append((config.finetune.training, config.finetune.lora))
        models += 2
    checkpoints = [
        (training.save_total_limit + 1) * parameters * 12
        for training, lora in trainings
        if lora is None and training.save_steps is not None
    ]
    # Trainings follow each other; the checkpoints of one are gone when the next begins.
    return models * saved + max(checkpoints, default=0)


def num_parameters(config: RunConfig) -> int | None:
    """Parameters of the model by the size of its files; None for one that is not here."""
    from expunge.models.builtin import BUILTIN

    if config.model.path == BUILTIN:
        return 134_515_008
    sizes = [file.stat().st_size for file in Path(config.model.path).glob("*.safetensors")]
    # Two bytes per weight is the usual file; float32 files are counted double, on the safe side.
    return sum(sizes) // 2 if sizes else None
