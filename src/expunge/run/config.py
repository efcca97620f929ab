"""One complete, typed configuration per run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from expunge.run.sections import (
    AlternatesConfig,
    BudgetConfig,
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    ProxiesConfig,
    Role,
    ScenarioConfig,
    Section,
    TemplateConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """Everything one run needs. Relative paths count from the current folder."""

    name: str = Field(
        default="run", min_length=1, description="Name of the run, shown in its report."
    )
    output_dir: str = Field(default="", description="Run folder; empty: runs/NAME.")
    seed: int = Field(default=0, ge=0, description="Seed of everything random.")
    model: ModelConfig = Field(default=ModelConfig(), description="The model to start from.")
    template: TemplateConfig = Field(
        default=TemplateConfig(), description="How questions and answers become text."
    )
    data: DataConfig = Field(description="What is to be forgotten, what is to be kept.")
    method: MethodConfig | None = Field(
        default=None, description="The unlearning method; not needed to finetune or evaluate."
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="The training that unlearns."
    )
    budget: BudgetConfig = Field(
        default=BudgetConfig(), description="Utility that unlearning may cost, where it is asked."
    )
    lora: LoraConfig | None = Field(
        default=None, description="Adapters for unlearning; null: the weights themselves change."
    )
    finetune: FinetuneConfig | None = Field(
        default=None,
        description="Make the target and the retain model first (cached); null: model.path is "
        "the target model.",
    )
    proxies: ProxiesConfig = Field(
        default=ProxiesConfig(), description="How proxy answers for EGUP are generated."
    )
    alternates: AlternatesConfig = Field(
        default=AlternatesConfig(), description="How alternate answers for AltPO are generated."
    )
    evaluation: EvaluationConfig | None = Field(
        default=EvaluationConfig(), description="What is measured; null: nothing."
    )
    scenario: ScenarioConfig | None = Field(
        default=None, description="Several requests, for: expunge run-benchmark; null: one."
    )

    @model_validator(mode="before")
    @classmethod
    def _folder_from_name(cls, value: Any) -> Any:
        """Fill in the run folder, so that a resolved configuration always names it."""
        if isinstance(value, dict) and value.get("output_dir") in (None, ""):
            name = value.get("name", cls.model_fields["name"].default)
            value = {**value, "output_dir": f"runs/{name}"}
        return value

    def roles(self) -> tuple[Role, ...]:
        """Models that this run can have: made by it, started from, or evaluated elsewhere."""
        retain_run = self.evaluation is not None and bool(self.evaluation.retain_run)
        roles: list[Role] = ["base"] if self.finetune is not None else []
        roles += ["target", "unlearned"]
        if self.finetune is not None or retain_run:
            roles.append("retain")
        return tuple(roles)

    def benchmark(self) -> str | None:
        """The benchmark, by the forget set where none is named; None: no evaluation."""
        if self.evaluation is None:
            return None
        chosen = "tofu" if self.data.forget.source.startswith("tofu:") else "custom"
        return self.evaluation.benchmark or chosen


class Key(NamedTuple):
    """One key of the configuration."""

    path: str
    field: FieldInfo
    section: type[Section] | None


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, also where it may be null; None for a plain value."""
    if get_origin(field.annotation) in (tuple, dict):
        return None  # several of them
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key with its dotted path, sections before what is in them."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        yield Key(prefix + name, field, section)
        if section is not None:
            yield from keys(section, f"{prefix}{name}.")


def json_schema() -> dict[str, Any]:
    """JSON schema of a run configuration, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(),
        "title": "Expunge run",
    }
