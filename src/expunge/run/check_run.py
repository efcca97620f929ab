"""Checks of a run as a whole: method, models, batches, evaluation, output folder, disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.errors import InputError, did_you_mean
from expunge.run.arithmetic import plan_batches, training_arguments
from expunge.run.check_data import Findings, alternates_file, load_source, proxy_file
from expunge.run.config import RunConfig
from expunge.run.methods import method_of
from expunge.run.sections import EndpointConfig, EvaluationConfig, TrainingConfig

if TYPE_CHECKING:
    from expunge.benchmarks import Benchmark
    from expunge.data import RowSet
    from expunge.methods import Method

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
    _check_with_training(found, method)
    if config.lora is None and method.needs_reference in ("distributions", "hidden states"):
        found.warnings.append(
            f"{method} compares {method.needs_reference} with the target model: without lora a "
            "second copy of it is kept in memory"
        )


def _check_with_training(found: Findings, method: Method) -> None:
    """What the method asks of the training section, the budget and the model's depth."""
    from expunge.run.afterwards import needs_reserve
    from expunge.run.inputs import TrainSettings, check_combination

    config = found.config
    try:
        arguments = training_arguments(config.training)
        check_combination(method, TrainSettings(arguments=arguments))
    except InputError as error:
        for problem in error.problems:
            found.add(f"training.{problem.where}", problem.message)
    stop_at = config.training.stop_at
    if needs_reserve(method, stop_at) and config.data.retain is None:
        found.add("data.retain", "a utility budget is measured on retain rows; name a retain set")
    if method.post is not None and method.post.result == "combination" and "proxy" in stop_at:
        found.warnings.append(
            f"stop_at proxy looks at the model that trains; under {method.post.name} it learns the "
            "forget set instead of losing it"
        )


def check_layers(found: Findings) -> None:
    """See whether the model has the layers that the method names."""
    from expunge.run.inputs import layer_fault

    if found.method is None or "model.path" in found.bad_models:
        return
    layers = num_layers(found.config)
    problem = "" if layers is None else layer_fault(found.method, layers)
    if problem:
        found.add("method.name", problem)


def num_layers(config: RunConfig) -> int | None:
    """Decoder blocks of the model; None where its config does not say."""
    from expunge.models.builtin import BUILTIN
    from expunge.run.check_data import model_config

    if config.model.path == BUILTIN:
        return 30
    layers = getattr(model_config(config), "num_hidden_layers", None)
    return layers if isinstance(layers, int) else None


def check_stream_texts(found: Findings) -> None:
    """See whether rows have questions where the method asks them with other answers."""
    method = found.method
    if method is None:
        return
    asked = {
        "forget": {"alternate", "proxy", "mismatch"},
        "retain": {"retain_alternate", "mismatch"},
    }
    for name, streams in asked.items():
        rows = found.rows.get(name)
        used = sorted(streams & {stream.partition("_2")[0] for stream in method.streams})
        if rows is not None and rows.is_text and used:
            found.add(
                f"data.{name}",
                f"{method} asks its questions with other answers ({', '.join(used)}), and plain "
                "text has no questions; take rows with question and answer, or another method",
            )


def check_reserve(found: Findings) -> None:
    """See whether the retain set is large enough to set rows aside."""
    from expunge.run.afterwards import needs_reserve

    method, retain = found.method, found.rows.get("retain")
    if method is None or retain is None:
        return
    reserve = found.config.budget.rows
    if needs_reserve(method, found.config.training.stop_at) and len(retain) <= reserve:
        found.add(
            "budget.rows",
            f"{reserve} rows are to be set aside and the retain set has {len(retain)}; take fewer",
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
    if config.alternates.model is not None:
        models["alternates.model"] = config.alternates.model
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


def check_writer(found: Findings) -> None:
    """See who would write the proxy answers. A server is not contacted."""
    config = found.config
    if config.proxies.endpoint is not None:
        _check_endpoint(found, "proxies", config.proxies.endpoint)
    elif config.proxies.model is None and config.finetune is None:
        found.warnings.append(
            "proxies are written by model.path, which is the target model here and knows the true "
            "answers; name a model that does not in proxies.model, or a server in proxies.endpoint"
        )


def check_writers(found: Findings) -> None:
    """See who would write the proxies and alternates that the method needs and nobody wrote yet."""
    if found.method is None:
        return
    if found.method.needs_proxies and not proxy_file(found.config).is_file():
        check_writer(found)
    if found.method.needs_alternates and not alternates_file(found.config).is_file():
        check_alternates_writer(found)


def check_alternates_writer(found: Findings) -> None:
    """See who would write the alternate answers. A server is not contacted."""
    config = found.config
    if config.alternates.endpoint is not None:
        _check_endpoint(found, "alternates", config.alternates.endpoint)
    elif config.alternates.model is None and config.finetune and config.data.retain is None:
        found.add(
            "data.retain",
            "is required: the target model, which writes the alternates, is fine-tuned on forget "
            "and retain set; or name another writer in alternates.model or alternates.endpoint",
        )


def _check_endpoint(found: Findings, section: str, endpoint: EndpointConfig) -> None:
    from expunge.run.endpoint import is_local

    found.facts.append((section, f"{endpoint.model} at {endpoint.url} (not contacted)"))
    name = endpoint.api_key_env
    has_key = name is not None and bool(os.environ.get(name))
    if has_key and endpoint.url.startswith("http:") and not is_local(endpoint.url):
        found.warnings.append(
            f"{section}.endpoint.url: the key in {name} goes to {endpoint.url} without encryption; "
            f"take an https url, or set {section}.endpoint.api_key_env=null if no key is needed"
        )


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
        if lora is not None and training.trainable not in ("all", "auto"):
            found.add(
                f"{key}.trainable",
                "cannot choose parameters when lora trains adapters; say which layers get one with "
                f"{key.removesuffix('training')}lora.target_modules",
            )
        if training.optimizer != "adamw":
            from expunge.training.optimizers import optimizer_fault

            fault = optimizer_fault(training_arguments(training))
            if fault:
                found.add(f"{key}.optimizer", fault)
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
    if evaluation.generator == "vllm":
        from expunge.models.generate_vllm import check_vllm

        try:
            check_vllm()
        except InputError as error:
            found.add("evaluation.generator", error)
    possible = config.roles()
    for role in evaluation.roles or ():
        if role not in possible:
            found.add(
                "evaluation.roles",
                f"this run has no {role} model, only: {', '.join(possible)}. A finetune section "
                "makes base, target and retain models; retain_run brings a retain model's results",
            )
    _check_retain_runs(found, evaluation.retain_run)
    if "retain" not in possible:
        found.warnings.append(
            "no retain model (finetune section or evaluation.retain_run): forget quality will be "
            "absent from the results"
        )
    _check_harness(found, evaluation)


def _check_benchmark(found: Findings, evaluation: EvaluationConfig) -> None:
    from expunge.benchmarks import benchmarks

    try:
        named = benchmarks.get(found.config.benchmark() or "")
    except InputError as error:
        found.add("evaluation.benchmark", error)
        return
    benchmark = named.with_further(tuple(evaluation.also))
    so_far = len(list(found.problems))
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
    for problem in benchmark.check_options(evaluation.options):
        found.add(problem.where, problem.message)
    sources = _evaluation_sources(found, evaluation)
    if len(list(found.problems)) == so_far:
        _check_probes(found, evaluation, benchmark, sources)


def _evaluation_sources(found: Findings, evaluation: EvaluationConfig) -> dict[str, RowSet]:
    """Rows that only the evaluation reads, by their key; those that cannot be read are noted."""
    named = {"retain": evaluation.retain} if evaluation.retain is not None else {}
    named |= {f"also.{name}": source for name, source in evaluation.also.items()}
    rows = {}
    for key, source in named.items():
        try:
            rows[key] = load_source(source, key.removeprefix("also."))
        except InputError as error:
            found.add(f"evaluation.{key}", error)
    return rows


def _check_probes(
    found: Findings,
    evaluation: EvaluationConfig,
    benchmark: Benchmark,
    sources: Mapping[str, RowSet],
) -> None:
    """Build the probes as the evaluation will: what is wrong with their data must not come late.

    Where the forget set itself cannot be read, a folder of the benchmark still can.
    """
    forget, options = found.rows.get("forget"), evaluation.options
    folder = options.get("folder")
    try:
        if forget is not None:
            benchmark.build_probes(
                forget,
                sources.get("retain", found.rows.get("retain")),
                preset=evaluation.preset,
                rows=evaluation.rows,
                options=options,
                further={name: sources[f"also.{name}"] for name in evaluation.also},
            )
        elif benchmark.reader is not None and folder:
            benchmark.reader(folder)
        elif benchmark.reader is not None:
            found.add("evaluation.options.folder", f"is required: {benchmark.options['folder']}")
    except InputError as error:
        found.add("evaluation.options" if options else "evaluation", error)


def _check_retain_runs(found: Findings, paths: Sequence[str]) -> None:
    from expunge.run.imported import tables_of

    for path in paths:
        try:
            tables_of(path)
        except InputError as error:
            found.add("evaluation.retain_run", error)


def _check_harness(found: Findings, evaluation: EvaluationConfig) -> None:
    if not evaluation.harness.tasks:
        return
    from expunge.evaluation.harness import check_tasks
    from expunge.run.evaluating import wanted_tasks

    try:
        tasks = wanted_tasks(found.config)
        if not tasks:
            found.add("evaluation.harness.tasks", "this benchmark has no tasks; name some")
        problems = check_tasks(tasks, include_path=evaluation.harness.include_path)
    except InputError as error:  # an unknown benchmark, or the extra is not installed
        found.add("evaluation.harness.tasks", error)
        return
    for problem in problems:
        found.add(f"evaluation.harness.tasks {problem.where}".rstrip(), problem.message)


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
