"""Checks of data: files, rows, overlap, proxies, alternates, rejections, lengths in tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError, Problem, Problems
from expunge.run.config import RunConfig
from expunge.run.sections import DataSource, TemplateConfig

if TYPE_CHECKING:
    from expunge.data import RowSet, Template
    from expunge.methods import Method
    from expunge.run.planning.workload import Lengths


@dataclass(kw_only=True)
class Findings:
    """What the checks of one run have found so far.

    Attributes:
        config: What is checked.
        problems: What must be corrected.
        warnings: What may be meant, but often is not.
        facts: What the run comes to, as (topic, text).
        method: The method, once it has been read.
        rows: The data sets that could be read, by name.
        num_samples: Training samples of each, once they have been tokenised.
        lengths: Their tokens.
        bad_models: Keys of models that cannot be loaded.
    """

    config: RunConfig
    problems: Problems
    warnings: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    method: Method | None = None
    rows: dict[str, RowSet] = field(default_factory=dict)
    num_samples: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    bad_models: set[str] = field(default_factory=set)

    def add(self, where: str, error: str | InputError | Problem) -> None:
        """Note what is wrong with the value at the key `where`."""
        if isinstance(error, InputError):
            for problem in error.problems:
                self.problems.add(where, str(problem))
        else:
            self.problems.add(where, str(error))


def load_source(source: DataSource, name: str) -> RowSet:
    """The rows of a data section.

    Raises:
        InputError: The source cannot be read, or its rows are not what they should be.
    """
    from expunge.data import Columns, load_rows

    return load_rows(
        source.source,
        name=name,
        split=source.split,
        config=source.config,
        columns=Columns(**source.columns.model_dump()),
        rows=source.rows,
    )


def build_template(config: TemplateConfig, tokenizer: Any) -> Template:
    """The template of a run.

    Raises:
        InputError: The tokenizer has no chat template, or an option does not go with the template.
    """
    from expunge.data import make_template

    options = {
        key: value
        for key, value in config.model_dump(exclude={"name"}).items()
        if value is not None
    }
    return make_template(tokenizer, config.name, **options)


def check_rows(found: Findings) -> None:
    """Read the forget and the retain set and compare them."""
    from expunge.data import check_overlap

    data = found.config.data
    for name, source in (("forget", data.forget), ("retain", data.retain)):
        if source is None:
            continue
        try:
            rows = load_source(source, name)
        except InputError as error:
            found.add(f"data.{name}", error)
            continue
        found.rows[name] = rows
        found.facts.append((f"{name} set", f"{len(rows)} rows of {rows.origin}"))
    if len(found.rows) == 2:
        try:
            check_overlap(found.rows["forget"], found.rows["retain"])
        except InputError as error:
            found.add("data.retain", error)


def check_rejections(found: Findings) -> None:
    """Look at a file of refusals, if the run has its own."""
    from expunge.data import load_rejections

    path = found.config.data.rejections
    if path is None:
        return
    try:
        load_rejections(path)
    except InputError as error:
        found.add("data.rejections", error)


def check_exemplars(found: Findings) -> None:
    """See whether there is data for the worked examples of proxy prompts."""
    from expunge.data.proxy_prompt import load_exemplars

    own, forget = found.config.proxies.exemplar_file, found.rows.get("forget")
    if own is not None:
        if forget is not None:
            try:
                load_exemplars(own, forget)
            except InputError as error:
                found.add("proxies.exemplar_file", error)
    elif found.config.data.retain is None:
        found.add(
            "data.retain",
            "is required: the examples in the prompts come from outside the forget set; or give "
            "your own in proxies.exemplar_file",
        )


def proxy_file(config: RunConfig) -> Path:
    """Where the proxy answers of a run are."""
    return Path(config.data.proxies or Path(config.output_dir) / "proxies.jsonl")


def check_proxies(found: Findings) -> None:
    """Look for a proxy answer to every forget question, if the method needs them."""
    from expunge.data.proxies import load_proxies

    method, forget = found.method, found.rows.get("forget")
    stops = "proxy" in found.config.training.stop_at
    if method is None or not (method.needs_proxies or stops):
        return
    path = proxy_file(found.config)
    if not path.is_file():
        needing = method if method.needs_proxies else "training.stop_at=proxy"
        found.add(
            "data.proxies",
            f"{needing} needs proxy answers and there is no {path}. Make them with: "
            "expunge proxies, followed by the same arguments",
        )
    elif forget is not None:
        try:
            load_proxies(path, forget)
        except InputError as error:
            found.add("data.proxies", error)


def check_proxies_or_exemplars(found: Findings) -> None:
    """The proxy answers, or what they will be written from by a run that does so itself."""
    method = found.method
    if method is not None and method.needs_proxies and not proxy_file(found.config).is_file():
        check_exemplars(found)
    else:
        check_proxies(found)


def check_alternates_if_there(found: Findings) -> None:
    """The alternate answers, if the run will not have to write them."""
    if alternates_file(found.config).is_file():
        check_alternates(found)


def alternates_file(config: RunConfig) -> Path:
    """Where the alternate answers of a run are."""
    return Path(config.data.alternates or Path(config.output_dir) / "alternates.jsonl")


def check_alternates(found: Findings) -> None:
    """Look for alternate answers to every forget question, if the method needs them."""
    from expunge.data.alternates import load_alternates

    method, forget = found.method, found.rows.get("forget")
    if method is None or not method.needs_alternates:
        return
    path = alternates_file(found.config)
    if not path.is_file():
        found.add(
            "data.alternates",
            f"{method} needs alternate answers and there is no {path}. Make them with: "
            "expunge alternates, followed by the same arguments",
        )
    elif forget is not None:
        try:
            load_alternates(path, forget)
        except InputError as error:
            found.add("data.alternates", error)


def check_lengths(found: Findings) -> None:
    """Count tokens: does every sample fit into max_length, and max_length into the model."""
    if "model.path" in found.bad_models:
        return
    if _is_packed(found.config.model.path):
        # Unpacking takes a minute and half a gigabyte: more than a check should.
        found.facts.append(("tokens", "not counted: the first run unpacks the builtin model"))
        return
    template = _template(found)
    if template is None:
        return
    _check_context(found)
    for name, rows in found.rows.items():
        _check_rows_length(found, name, rows, template)


def _is_packed(path: str) -> bool:
    from expunge.models.builtin import BUILTIN, builtin_folder

    return path == BUILTIN and not builtin_folder().is_dir()


def _template(found: Findings) -> Template | None:
    from expunge.run.texts import run_template, run_tokenizer

    try:
        run_tokenizer(found.config.model)
    except InputError as error:
        found.add("model.path", error)
        return None
    try:
        return run_template(found.config)
    except InputError as error:
        found.add("template", error)
        return None


def _check_rows_length(found: Findings, name: str, rows: RowSet, template: Template) -> None:
    from expunge.data import encode_rows, encode_text
    from expunge.run.planning.reading import lengths_of

    data = found.config.data
    try:
        if rows.is_text:
            examples = encode_text(
                rows, template.tokenizer, max_length=data.max_length, form=data.text_form
            )
        else:
            examples = encode_rows(
                rows, template, max_length=data.max_length, on_too_long=data.on_too_long
            )
    except InputError as error:
        found.add(f"data.{name}", error)
        return
    found.num_samples[name] = len(examples)
    found.lengths[name] = lengths_of(examples)
    longest = max(len(example.input_ids) for example in examples)
    pieces = f"{len(examples)} pieces, " if rows.is_text else ""
    dropped = "" if rows.is_text else f", {len(rows) - len(examples)} dropped"
    dropped = dropped if len(examples) < len(rows) else ""
    found.facts.append((f"{name} tokens", f"{pieces}at most {longest} per sample{dropped}"))


def _check_context(found: Findings) -> None:
    limit = context_length(found.config)
    wanted = found.config.data.max_length
    if limit is not None and wanted > limit:
        found.add(
            "data.max_length", f"{wanted} is more than the context of the model, {limit} tokens"
        )


def context_length(config: RunConfig) -> int | None:
    """Tokens that the model can look at; None where its config does not say."""
    limit = getattr(model_config(config), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def model_config(config: RunConfig) -> Any:
    """The transformers config of the model, without its weights."""
    from transformers import AutoConfig

    from expunge.models.loading import resolve_model

    return AutoConfig.from_pretrained(
        resolve_model(config.model.path),
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
