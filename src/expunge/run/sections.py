"""The sections of a run configuration: one frozen model each, closed to unknown keys.

Hyperparameters of methods have no defaults here: their only home is the signature of the loss.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from expunge.evaluation.judges.settings import DEFAULT_ENCODER, DEFAULT_NLI

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"

Role = Literal["base", "target", "unlearned", "retain"]
Dtype = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """A frozen section: values keep their YAML type (no text for numbers), unknown keys fail."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Shorthand(Section):
    """A section that may be written as one text, which then is the value of its first key."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [schema, {"type": "string"}], "description": schema.get("description", "")}


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_as_tuple)]
"""One name or a list of names."""


class ModelConfig(Section):
    """The model that the run starts from."""

    path: str = Field(
        default=BUILTIN_MODEL,
        description="Folder, hub name or builtin model. Without a finetune section this is the "
        "target model, which unlearning changes; with one, the base model that the target and the "
        "retain model are made from.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub model; null: its main branch."
    )
    dtype: Dtype = Field(
        default="float32",
        description="Type that weights are loaded, evaluated and saved in.",
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        default=None, description="Attention code of transformers; null: its own choice."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that comes with the model. Only for sources you trust.",
    )


class TemplateConfig(Section):
    """How questions and answers become text."""

    name: Literal["auto", "chat", "plain", "llama2", "phi"] = Field(
        default="auto",
        description="auto: the tokenizer's chat template if it has one, else plain. "
        "See: expunge list templates",
    )
    system_prompt: str | None = Field(
        default=None,
        description="System message of chat templates; null: what the template does by itself.",
    )
    date_string: str | None = Field(
        default=None,
        description="Date for templates that print one, such as 10 Apr 2025; null: the template's "
        "own, which may be today's and then changes from day to day.",
    )
    answer_marker: Literal["trained", "prompted"] | None = Field(
        default=None,
        description='For the phi template. trained (or null): "Answer: " belongs to the answer, as '
        "in TOFU; prompted: to the prompt, as in open-unlearning (C-18).",
    )


class ColumnsConfig(Section):
    """Names of the columns in a data file."""

    question: str = Field(default="question", description="Column with the question.")
    answer: str = Field(default="answer", description="Column with the answer.")
    messages: str = Field(
        default="messages", description="Column with a conversation in chat format."
    )
    text: str = Field(default="text", description="Column with plain text to continue.")


Bounds = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None, Field(strict=False)
]


class DataSource(Shorthand):
    """One data set. A text alone means source: text."""

    source: str = Field(
        min_length=1,
        description="tofu:SPLIT for the TOFU data in the package (see: expunge list splits), a "
        ".jsonl, .json, .csv, .parquet or .txt file, a folder, or a name on the hub.",
    )
    split: str | None = Field(default=None, description="Split of a folder or hub data set.")
    config: str | None = Field(default=None, description="Configuration of a hub data set.")
    columns: ColumnsConfig = Field(
        default=ColumnsConfig(), description="Column names, where they differ from the usual ones."
    )
    rows: Bounds = Field(
        default=None, description="Rows to use as [start, stop], counted from 0; null: all."
    )

    @field_validator("rows")
    @classmethod
    def _not_empty(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and rows[1] <= rows[0]:
            raise ValueError(f"[{rows[0]}, {rows[1]}] holds no row; stop must be above start")
        return rows


class DataConfig(Section):
    """What is to be forgotten, what is to be kept."""

    forget: DataSource = Field(description="The forget set: what the model must unlearn.")
    retain: DataSource | None = Field(
        default=None,
        description="The retain set: data like it that must be kept; null: none.",
    )
    rejections: str | None = Field(
        default=None,
        description="Refusals for IDK methods: text with one per line, or JSON lines with a column "
        "response; null: the 100 of TOFU.",
    )
    proxies: str | None = Field(
        default=None,
        description="Proxy answers for EGUP, a file written by: expunge proxies. "
        "null: proxies.jsonl in the run folder.",
    )
    alternates: str | None = Field(
        default=None,
        description="Alternate answers for AltPO, a file written by: expunge alternates. "
        "null: alternates.jsonl in the run folder.",
    )
    max_length: int = Field(
        default=512, ge=2, description="Most tokens of one sample, prompt and answer."
    )
    on_too_long: Literal["error", "truncate", "drop"] = Field(
        default="error", description="What to do with samples above max_length."
    )
    text_form: Literal["muse", "short_last", "separate", "open_unlearning"] = Field(
        default="muse",
        description="How plain text is cut into pieces of max_length tokens. muse: joined, the "
        "last piece filled up from the start; short_last: joined, the last piece stays short; "
        "separate: every text by itself; open_unlearning: as there.",
    )
    retain_pairing: Literal["shuffled", "random", "fixed_by_index", "modulo"] = Field(
        default="shuffled",
        description="Which retain sample goes with a forget sample. shuffled: one permutation of "
        "the retain set after the other; random: a fresh draw (TOFU, open-unlearning); "
        "fixed_by_index: the same one in every epoch (NPO, Closer Look); modulo: by position "
        "(MUSE) (C-01).",
    )


class MethodConfig(Shorthand):
    """The unlearning method. A text alone means name: text."""

    name: str = Field(
        description='Notation of the papers: "NPO+GD", "EGUP(NPO+GD, k=1, mu=0.001)", '
        '"UIPE(NPO+GD, alpha=0.5)". See: expunge list methods'
    )
    forget: dict[str, Any] = Field(
        default={}, description="Options of the forget loss, such as {weight: 1.0, beta: 0.1}."
    )
    retain: dict[str, Any] = Field(
        default={}, description="Options of the retain loss, such as {weight: 1.0}."
    )
    wrapper: dict[str, Any] = Field(
        default={}, description="Options of EGU or EGUP, such as {k: 1, mu: 0.001}."
    )
    post: dict[str, Any] = Field(
        default={}, description="Options of the post-processing, such as {alpha: 0.5} for UIPE."
    )


class LoraConfig(Section):
    """Low-rank adapters; merged into the weights when a model is saved."""

    r: int = Field(default=8, ge=1, description="Rank. 8 in Closer Look and EGUP.")
    alpha: float = Field(
        default=32.0, gt=0, description="Scale; updates are multiplied by alpha / r."
    )
    dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Dropout in front of the adapters, 0 to 1."
    )
    target_modules: Names = Field(
        default=("all-linear",),
        description="Names of the layers to adapt; all-linear: every linear layer but the head.",
    )


class TrainingConfig(Section):
    """One training: names as in transformers.TrainingArguments. Defaults are TOFU's settings."""

    learning_rate: float = Field(
        default=1e-5, gt=0, description="Peak learning rate of AdamW. TOFU: 1e-5 for 7B models."
    )
    num_train_epochs: float = Field(
        default=5.0, gt=0, description="Passes over the forget set (finetune: over all its data)."
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimizer steps, whatever num_train_epochs says; null: that.",
    )
    effective_batch_size: int = Field(
        default=32,
        ge=1,
        description="Samples per optimizer step over all processes; accumulation follows from it.",
    )
    micro_batch_size: int = Field(
        default=4,
        ge=1,
        description="Samples per forward pass of one process; in unlearning, forget samples: "
        "retain and other samples come on top, one each.",
    )
    weight_decay: float = Field(
        default=0.01, ge=0, description="Decoupled weight decay; norms and biases are exempt."
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    adam_epsilon: float = Field(
        default=1e-8, ge=0, description="Added to the root of the second moment."
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, description="Warm-up in optimizer steps. Give one warmup_* at most."
    )
    warmup_ratio: float | None = Field(
        default=None, ge=0, le=1, description="Warm-up as a share of all steps, 0 to 1."
    )
    warmup_epochs: float | None = Field(
        default=None,
        ge=0,
        description="Warm-up in epochs (1 in the TOFU family); 0 when an epoch is one step.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Course of the learning rate after warm-up."
    )
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="Gradients are clipped to this norm; null: no clipping."
    )
    logging_steps: int = Field(default=1, ge=1, description="A log line every so many steps.")
    save_steps: int | None = Field(
        default=0,
        ge=0,
        description="A checkpoint to resume from every so many steps; 0: after every epoch; null: "
        "none.",
    )
    save_total_limit: int = Field(
        default=1, ge=1, description="Checkpoints to keep; older ones are deleted."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass to save memory."
    )
    packing: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: samples of a batch one after the other without padding, where model and "
        "hardware support it; off: padded to the longest. The numbers are the same.",
    )
    torch_compile: bool = Field(
        default=False,
        description="Compile the decoder layers with torch.compile, which takes time at the first "
        "steps; perf/compile.py measures after how many steps it has paid, if at all.",
    )
    pad_to: int | None = Field(
        default=None,
        ge=1,
        description="Pad every sample to this many tokens; null: to the longest of its batch. Only "
        "losses with positions=all can tell the difference.",
    )
    trainable: str = Field(
        default="auto",
        description="all; a regular expression searched in parameter names: only those move; auto: "
        "what the method asks for, three down-projections for RMU and all otherwise (C-17).",
    )
    precision: Literal["float32", "bfloat16", "mixed"] = Field(
        default="float32",
        description="float32: everything; mixed: trained weights in float32, forward pass in "
        "bfloat16; bfloat16: everything, least memory; see master_weights.",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw",
        description="adamw: the fused one where the device has it; adamw_8bit: its moments take a "
        "quarter of the memory, with bitsandbytes or torchao.",
    )
    master_weights: Literal["auto", "float32", "stochastic_rounding", "none"] = Field(
        default="auto",
        description="How weights that train in bfloat16 take up small updates. float32: a copy in "
        "float32 takes them; stochastic_rounding: rounded up or down at random, right on average, "
        "without further memory; none: rounded to the nearest, which loses those below about 1/256 "
        "of a weight; auto: stochastic_rounding. Without effect on weights in float32.",
    )
    reference: str | None = Field(
        default=None,
        description="Model that reference log-probabilities and states come from, for successive "
        "requests that keep the very first one; null: the model that unlearning starts from.",
    )
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
        Field(strict=False),
        BeforeValidator(_as_tuple),
    ] = Field(default=(), description="Trackers to log to, besides log.jsonl.")
    stop_at: Annotated[
        tuple[Literal["proxy", "budget"], ...], Field(strict=False), BeforeValidator(_as_tuple)
    ] = Field(
        default=(),
        description="End the run early. proxy: when the forget answers are less likely than their "
        "proxies on average, the reading of EGUP; budget: when the utility budget is spent, with "
        "the parameters of the check before.",
    )
    stop_every: int = Field(
        default=0, ge=0, description="Steps between checks of stop_at; 0: after every epoch."
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Stop after this time, in seconds, with a checkpoint; null: no limit.",
    )

    @field_validator("trainable")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainingConfig:
        keys = ("warmup_steps", "warmup_ratio", "warmup_epochs")
        given = [key for key in keys if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, not {len(given)}")
        return self


class BudgetConfig(Section):
    """How much utility unlearning may cost: for UIPE with alpha=auto and for stop_at: budget."""

    utility: float = Field(
        default=0.98,
        gt=0,
        le=1,
        description="Share of the target model's utility that must be left; utility is the mean "
        "probability per token of retain answers that do not train.",
    )
    rows: int = Field(
        default=32, ge=1, description="Retain rows set aside to measure it; they do not train."
    )


class FactsConfig(Section):
    """Generated facts of the related-knowledge experiment (UIPE)."""

    num_facts: int = Field(default=20, ge=1, description="Target facts.")
    num_related: int = Field(
        default=3, ge=1, le=10, description="Related facts of each, which together imply it."
    )
    strength: Literal["strict", "weak"] = Field(
        default="strict",
        description="strict: the related facts imply the target; weak: they make it likely.",
    )


class FinetuneConfig(Section):
    """How the target model (forget + retain) and the retain model (retain only) are made."""

    training: TrainingConfig = Field(default=TrainingConfig(), description="As in training below.")
    lora: LoraConfig | None = Field(
        default=None, description="Adapters during fine-tuning; null: all weights are trained."
    )
    target_data: DataSource | None = Field(
        default=None, description="Rows of the target model; null: forget and retain set."
    )
    retain_data: DataSource | None = Field(
        default=None, description="Rows of the retain model; null: the retain set."
    )


class ScenarioConfig(Section):
    """Several requests instead of one, for: expunge run-benchmark."""

    requests: Annotated[tuple[DataSource, ...], Field(strict=False)] = Field(
        default=(), description="Forget sets, in the order in which they are requested."
    )
    start: Literal["previous", "target"] = Field(
        default="previous",
        description="Where a request starts from. previous: the model of the request before "
        "(continual unlearning, sustainability); target: the target model each time (scalability).",
    )
    pending: Literal["retain", "leave_out"] = Field(
        default="retain",
        description="Rows of later requests: part of the retain set until their turn comes, as in "
        "Closer Look, or left out.",
    )
    reference: Literal["refreshed", "fixed"] = Field(
        default="refreshed",
        description="Model of reference values. refreshed: where the request starts from; fixed: "
        "the first target model throughout (fix_ref_model).",
    )
    facts: FactsConfig | None = Field(
        default=None, description="Generated facts, for the related-knowledge experiment."
    )


class EndpointConfig(Section):
    """A server that speaks the chat-completions protocol of OpenAI."""

    url: str = Field(
        description="Where the protocol begins, normally ending in /v1, such as "
        "http://localhost:8000/v1. vLLM, llama.cpp server, Ollama (port 11434) and others have it."
    )
    model: str = Field(
        min_length=1, description="Name of the model there, as GET URL/models lists it."
    )
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        description="Environment variable that holds the key, if it is set; null: no key is sent.",
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds to wait for one reply.")
    max_retries: int = Field(
        default=3,
        ge=0,
        description="New attempts after a timeout, a refused connection, 429 or 5xx, with growing "
        "pauses in between.",
    )
    concurrency: int = Field(default=4, ge=1, description="Requests under way at once.")

    @field_validator("url")
    @classmethod
    def _is_base_url(cls, url: str) -> str:
        from expunge.run.endpoint import base_url

        return base_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # The value is not repeated: it is most likely the key.
            raise ValueError(
                "must be the name of an environment variable, such as OPENAI_API_KEY, and not the "
                "key itself"
            )
        return name


class WriterConfig(Section):
    """Who writes: a local model or an endpoint."""

    model: str | None
    endpoint: EndpointConfig | None

    @model_validator(mode="after")
    def _one_writer(self) -> WriterConfig:
        if self.model is not None and self.endpoint is not None:
            raise ValueError(
                f"came model ({self.model}) and endpoint ({self.endpoint.url}): one of them "
                "writes; set the other to null"
            )
        return self


class ProxiesConfig(WriterConfig):
    """How proxy answers for EGUP are generated."""

    model: str | None = Field(
        default=None,
        description="Local model that writes them; it should not know the facts. null: the base "
        "model, or the endpoint.",
    )
    endpoint: EndpointConfig | None = Field(
        default=None, description="Server that writes them instead; null: a local model does."
    )
    exemplars: int = Field(
        default=3, ge=1, description="Worked examples in the prompt, from outside the forget set."
    )
    questions_per_prompt: int = Field(default=4, ge=1, description="Questions per prompt.")
    max_retries: int = Field(
        default=3,
        ge=0,
        description="New attempts for an answer that is empty, a refusal or the true answer.",
    )
    max_new_tokens: int = Field(default=96, ge=1, description="Most tokens of one proxy answer.")
    temperature: float = Field(
        default=0.7,
        ge=0,
        le=10,
        description="Sampling temperature of retries after the first; prompts start out greedy.",
    )
    exemplar_source: Literal["base_model", "perturbed"] = Field(
        default="base_model",
        description="Uninformed answers in the examples: what the writing model says without help, "
        "or the wrong answers that come with TOFU.",
    )
    exemplar_file: str | None = Field(
        default=None,
        description="Examples of your own, JSON lines with question, answer and uninformed_answer; "
        "all of them are used and none may be in the forget set. null: as exemplars and "
        "exemplar_source say, with questions of the retain set.",
    )


class AlternatesConfig(WriterConfig):
    """How alternate answers for AltPO are generated."""

    model: str | None = Field(
        default=None,
        description="Local model that writes them; null: the one that unlearning starts from (the "
        "target model), or the endpoint.",
    )
    endpoint: EndpointConfig | None = Field(
        default=None, description="Server that writes them instead; null: a local model does."
    )
    per_question: int = Field(default=5, ge=1, description="Alternates per question. 5 in AltPO.")
    temperature: float = Field(
        default=1.0, gt=0, le=10, description="Sampling temperature. 1.0 in AltPO."
    )
    max_new_tokens: int = Field(
        default=200, ge=1, description="Most tokens of one alternate. 200 in AltPO."
    )
    max_retries: int = Field(
        default=3,
        ge=0,
        description="New draws for alternates that are empty, a refusal, the true answer or one "
        "that is there already.",
    )


class HarnessConfig(Section):
    """Tasks of lm-evaluation-harness, an extra: pip install 'expunge[lm-eval]'."""

    tasks: Names = Field(
        default=(),
        description="Tasks by their names there, such as mmlu; benchmark: those that belong to the "
        "benchmark.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="First questions of every task; null: all."
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="Examples in the prompt; null: as the papers have it."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Questions per batch; null: what fits."
    )
    include_path: str | None = Field(
        default=None, description="Folder with tasks of your own, as YAML files."
    )
    apply_chat_template: bool = Field(
        default=False, description="Ask within the model's chat template."
    )
    add_bos: bool | None = Field(
        default=None,
        description="Start prompts with the beginning-of-sequence token, as Closer Look does; "
        "null: as the tokenizer does it.",
    )


class EvaluationConfig(Section):
    """What is measured after the run."""

    benchmark: str | None = Field(
        default=None,
        description="See: expunge list benchmarks. null: tofu for a tofu: forget set, else custom.",
    )
    preset: str | None = Field(
        default=None,
        description="Variant of the benchmark, such as tofu_classic; null: its own, with all rows.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="Options of the benchmark, such as {folder: muse}, and of its metrics, such as "
        "{mean: arithmetic}; they go before the preset's.",
    )
    retain: DataSource | None = Field(
        default=None,
        description="Rows that show what was kept, where they are not those of data.retain.",
    )
    also: dict[str, DataSource] = Field(
        default={},
        description="Further sets to forget that are measured as well, by name, such as earlier "
        "requests.",
    )
    rows: dict[str, Annotated[int, Field(ge=1)] | None] = Field(
        default={},
        description="First rows of each probe to use, such as {retain: 40}; goes before the "
        "preset's limits, null lifts one.",
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of one generated answer; null: the preset's number, else 200.",
    )
    batch_tokens: int = Field(
        default=4096, ge=1, description="Tokens per forward pass, padding included."
    )
    generator: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="What writes the answers. vllm is an extra, and rounds in its own way: its "
        "results are kept apart.",
    )
    retain_run: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_as_tuple)] = Field(
        default=(),
        description="Run folder with the stored evaluation of a retain model, or a results file of "
        "another project (see: expunge import). Several, of different seeds, give the distance "
        "that chance alone makes. Empty: the retain model of the finetune section, if there is "
        "one. Never replaced by a default number.",
    )
    roles: Annotated[tuple[Role, ...] | None, Field(strict=False)] = Field(
        default=None, description="Models to evaluate; null: all that the run has."
    )
    encoder: str | None = Field(
        default=DEFAULT_ENCODER,
        description="Sentence encoder for cosine similarity: hub name, folder, or "
        "builtin:all-minilm-l6-v2, which needs no hub; null: none.",
    )
    nli: str | None = Field(
        default=DEFAULT_NLI,
        description="Entailment classifier for the entailment score: hub name or folder; null: "
        "none.",
    )
    gibberish: str | None = Field(
        default=None,
        description="Classifier of gibberish: hub name or folder. The published one is "
        "madhurjindal/autonlp-Gibberish-Detector-492513457. null: none.",
    )
    fluency: str | None = Field(
        default=None,
        description="Model whose perplexity on the answers is their fluency; null: the base model "
        "of the finetune section, if there is one.",
    )
    original: Literal["stored", "initial_model"] = Field(
        default="stored",
        description="What cosine similarity compares with (M-04). stored: the row's "
        "original_answer, else the true answer, but on real authors and world facts what the model "
        "said before unlearning; initial_model: that everywhere.",
    )
    passes: Annotated[
        tuple[Literal["gradnorm", "lowercase"], ...],
        Field(strict=False),
        BeforeValidator(_as_tuple),
    ] = Field(
        default=(),
        description="Passes beyond the two: gradnorm, one backward pass per row, for the attack of "
        "that name; lowercase, for the attack PPL/lower of MUSE.",
    )
    harness: HarnessConfig = Field(
        default=HarnessConfig(), description="Tasks of lm-evaluation-harness to run as well."
    )
