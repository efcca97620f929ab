"""From a configuration to the numbers of a plan: work, settings, model shape, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError
from expunge.run.config import RunConfig
from expunge.run.planning.shapes import BUILTIN, SHAPES, ModelShape, find_shape
from expunge.run.planning.speed import Evaluation
from expunge.run.planning.workload import Attention, Lengths, Settings, Work
from expunge.run.sections import LoraConfig, TrainingConfig

if TYPE_CHECKING:
    from expunge.data import RowSet
    from expunge.data.encode import Example
    from expunge.methods import Method

TOFU_ANSWERS = 7
"""Answers of a TOFU row whose probability is measured: its own, a paraphrase, five wrong ones."""
_TOFU_OTHER_ROWS = 100 + 117  # real authors and world facts
_TOFU_MOST_ROWS = 400  # rows with wrong answers


def lengths_of(examples: Sequence[Example]) -> Lengths:
    """Lengths of rows that have been tokenised."""
    return Lengths.of(
        [len(example.input_ids) for example in examples],
        [example.num_labels for example in examples],
    )


def joined(parts: list[Lengths]) -> Lengths:
    """Lengths of the rows of several sets together."""
    rows = sum(part.rows for part in parts)

    def mean(name: str) -> float:
        total = sum(part.rows * float(getattr(part, name)) for part in parts)
        return total / rows

    first = Lengths(rows=rows, tokens=mean("tokens"), labels=mean("labels"), square=mean("square"))
    spread = max(0.0, first.square - first.tokens**2) ** 0.5
    return replace(first, spread=spread, longest=max(part.longest for part in parts))


def model_shape(path: str, config: Any = None) -> ModelShape:
    """The shape of a run's model.

    Args:
        path: A folder, a hub name or the builtin model.
        config: Its `transformers` config where that is at hand.

    Raises:
        InputError: The model is not here and none of the package's shapes has its name, or models
            of its family cannot be planned.
    """
    from expunge.run.planning.shapes import shape_of

    if path == BUILTIN:
        return SHAPES[BUILTIN]
    if config is not None:
        return shape_of(config.to_dict(), name=Path(path).name)
    if Path(path).expanduser().exists() or path.lower() in map(str.lower, SHAPES):
        return find_shape(path)
    for shape in SHAPES.values():
        if shape.name.lower() in path.lower():
            return shape
    raise InputError(
        f"model.path: {path} is not here; say which dimensions to plan for with --sizes: "
        f"{', '.join(SHAPES)}, a model folder or a config file"
    )


def method_work(
    method: Method, lengths: Mapping[str, Lengths], *, lora: bool, other_reference: bool = False
) -> Work:
    """The passes of a method.

    Args:
        method: The method.
        lengths: Lengths of `forget` and, if the method needs it, `retain`. Other answers to their
            questions count as long as their own.
        lora: Whether adapters train.
        other_reference: Whether reference values come from another model.

    Raises:
        InputError: The method needs a retain set and there is none.
    """
    from expunge.training.reference import reference_sources

    objective = method.objective
    names = objective.all_streams()
    streams = {}
    for name in names:
        source = "retain" if name.startswith("retain") else "forget"
        if source not in lengths:
            raise InputError(f"data.{source}: {method} needs a {source} set; name one")
        streams[name] = lengths[source]
    references = reference_sources(objective, peft=lora and not other_reference)
    tables = {name for name, kind in references.items() if kind == "table"}
    states = {"ref_logits", "ref_activations"}
    return Work(
        streams=streams,
        trained=objective.streams(),
        ahead=objective.boundary_streams(),
        statistics=objective.statistic_streams(),
        references=dict(references),
        copies=int("frozen_copy" in references.values()),
        states=tuple(name for name in sorted(tables) if objective.reads(name) & states),
        whole=tuple(name for name in names if objective.reads(name) & {"logits", "ref_logits"}),
        uphill=2 if method.sharpness is not None else 1,
    )


def learning_work(lengths: Lengths) -> Work:
    """The passes of fine-tuning."""
    return Work(streams={"forget": lengths}, trained=("forget",))


def settings_of(
    training: TrainingConfig,
    lora: LoraConfig | None,
    *,
    rows: int,
    dtype: str = "float32",
    trainable: str = "all",
    attention: Attention = "fused",
) -> Settings:
    """What a training section means for cost.

    Args:
        training: The section.
        lora: Adapters, if they train.
        rows: Rows of an epoch.
        dtype: Type that weights are loaded in.
        trainable: What trains where the section says auto.
        attention: How attention runs.
    """
    from expunge.run.arithmetic import training_arguments

    arguments = training_arguments(training)
    per_epoch = -(-rows // training.effective_batch_size)
    return Settings(
        precision=training.precision,
        micro_batch=min(training.micro_batch_size, training.effective_batch_size),
        effective_batch=min(training.effective_batch_size, rows),
        steps=arguments.num_steps(per_epoch),
        checkpointing=training.gradient_checkpointing,
        optimizer=_optimizer(training, lora=lora is not None),
        master=training.master_weights == "float32",
        rank=0 if lora is None else lora.r,
        modules=("all-linear",) if lora is None else lora.target_modules,
        dropout=lora is not None and lora.dropout > 0,
        frozen_bytes=2 if dtype == "bfloat16" else 4,
        trainable=trainable if training.trainable == "auto" else training.trainable,
        attention=attention,
        packed=training.packing != "off",
    )


def _optimizer(training: TrainingConfig, *, lora: bool) -> str:
    """A key of `OPTIMIZER_BYTES`; moments have the type of the weights unless there are masters."""
    narrow = training.precision == "bfloat16" and not lora
    if training.optimizer == "adamw" and narrow and training.master_weights != "float32":
        return "adamw_bf16"
    return training.optimizer


def attention_of(config: RunConfig, *, gpu: bool) -> Attention:
    """How attention runs in the training of a configuration."""
    if config.training.packing != "off":
        return "fused" if gpu else "rows"
    chosen = config.model.attn_implementation or ("sdpa" if gpu else "eager")
    return "scores" if chosen == "eager" else "fused"


def evaluation_of(config: RunConfig, lengths: Mapping[str, Lengths]) -> Evaluation | None:
    """What the evaluation section comes to; None where nothing is measured.

    An estimate: rows of the forget and the retain set within the section's limits, generated
    answers a quarter longer than the true ones. Harness tasks and judges are not in it.
    """
    section = config.evaluation
    if section is None:
        return None
    tofu = config.benchmark() == "tofu"
    rows = 0
    for name, found in lengths.items():
        limit = section.rows.get(name) or (_TOFU_MOST_ROWS if tofu else found.rows)
        rows += min(limit, found.rows)
    if tofu:
        others = [section.rows.get(name) for name in ("real_authors", "world_facts")]
        rows += _TOFU_OTHER_ROWS if None in others else sum(other or 0 for other in others)
    own = lengths["forget"]
    made = min(1.25 * own.labels, section.max_new_tokens or 200)
    return Evaluation(
        rows=rows,
        lengths=own,
        answers=TOFU_ANSWERS if tofu else 1,
        new_tokens=made,
        batch_tokens=section.batch_tokens,
        models=len(section.roles or config.roles()),
    )


def data_lengths(
    config: RunConfig, *, tokens: float | None, labels: float | None
) -> tuple[dict[str, Lengths], str]:
    """Lengths of the run's rows, and a sentence on where they come from.

    Rows are tokenised where the model's tokenizer is here; otherwise all count as long as said.

    Args:
        config: The configuration.
        tokens: Tokens of a row, prompt and answer; None: count.
        labels: Of these, tokens of the answer; None: half.

    Raises:
        InputError: The data cannot be read, or rows are too long for data.max_length.
    """
    from expunge.run.check_data import load_source

    sources = {"forget": config.data.forget, "retain": config.data.retain}
    rows = {
        name: load_source(source, name) for name, source in sources.items() if source is not None
    }
    if tokens is None and has_tokenizer(config.model.path):
        return _counted(
            config, rows
        ), f"Lengths: counted with the tokenizer of {config.model.path}."
    each = _TOFU_TOKENS if tokens is None else tokens
    own = each * _TOFU_LABELS / _TOFU_TOKENS if labels is None else labels
    even = {name: Lengths.even(len(found), each, own) for name, found in rows.items()}
    said = "assumed, as TOFU in a chat template" if tokens is None else "given"
    return even, f"Lengths: {each:g} tokens per row, {own:g} of them labels ({said})."


# Mean of TOFU's forget01 and retain99 in the chat template of SmolLM2.
_TOFU_TOKENS, _TOFU_LABELS = 80.0, 40.0


def has_tokenizer(path: str) -> bool:
    """Whether a model's tokenizer can be loaded at once: nothing is unpacked or downloaded."""
    from expunge.models.builtin import builtin_folder

    folder = builtin_folder() if path == BUILTIN else Path(path).expanduser()
    return (folder / "tokenizer_config.json").is_file()


def _counted(config: RunConfig, rows: Mapping[str, RowSet]) -> dict[str, Lengths]:
    from expunge.data import encode_rows, encode_text
    from expunge.models.loading import load_tokenizer
    from expunge.run.check_data import build_template

    data = config.data
    template = build_template(config.template, load_tokenizer(config.model.path))
    found = {}
    for name, some in rows.items():
        if some.is_text:
            examples = encode_text(
                some, template.tokenizer, max_length=data.max_length, form=data.text_form
            )
        else:
            examples = encode_rows(
                some, template, max_length=data.max_length, on_too_long=data.on_too_long
            )
        found[name] = lengths_of(examples)
    return found
