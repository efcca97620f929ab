"""Proxies and alternates of a run: from its configuration to the file and the figures about it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from expunge.data.alternates import AlternateSettings, AlternateSummary, read_alternates
from expunge.data.proxies import ProxySettings, ProxySummary, load_proxies
from expunge.data.proxy_prompt import load_exemplars
from expunge.data.rows import Message
from expunge.data.templates import Template
from expunge.models.loading import load_tokenizer
from expunge.run.alternates import make_alternates
from expunge.run.check_data import build_template
from expunge.run.proxies import make_proxies
from expunge.run.proxy_endpoint import EndpointGenerator, make_endpoint
from expunge.run.proxy_generator import Generator, LocalGenerator
from expunge.run.proxy_quality import known_nll, mean_nll, write_quality

if TYPE_CHECKING:
    from expunge.run.pipelines import Context


class LocalWriter:
    """A local model as a `Generator` that is loaded when it is first needed.

    Args:
        context: Loads it.
        path: Its folder or name.
        name: What files call it; the path if empty.
    """

    def __init__(self, context: Context, path: str, *, name: str = "") -> None:
        self.path, self.name = path, name or path
        self._context = context

    @functools.cached_property
    def loaded(self) -> LocalGenerator:
        """The model with tokenizer and template."""
        context, config = self._context, self._context.config
        tokenizer, template = context.tokenizer, context.template
        if self.path != config.model.path and self.name == self.path:
            tokenizer = load_tokenizer(self.path)
            template = build_template(config.template, tokenizer)
        model = context.load(self.path, config.model.dtype).to(context.accelerator.device)
        return LocalGenerator(model, tokenizer, template=template)

    @property
    def template(self) -> Template:
        """How its conversations are written."""
        template: Template = self.loaded.template
        return template

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """The replies; see `Generator`."""
        return self.loaded(
            prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )


class _Writer(NamedTuple):
    """Who writes: what it is called and how it is asked."""

    name: str
    generator: Generator


def write_proxies(context: Context, path: Path, *, force: bool = False) -> ProxySummary:
    """Fill the proxy file of a run, show and keep the figures about it.

    Args:
        context: The run.
        path: The proxy file.
        force: Make every line anew.

    Raises:
        InputError: See `make_proxies`, `load_exemplars` and `EndpointGenerator`.
        RunError: An endpoint cannot be reached or fails.
    """
    config, section = context.config, context.config.proxies
    uninformed = _uninformed(context)
    if section.endpoint is not None:
        endpoint = make_endpoint(section.endpoint, key="proxies.endpoint")
        writer = _Writer(endpoint.model, EndpointGenerator(endpoint))
    else:
        local = uninformed or LocalWriter(context, config.model.path)
        writer = _Writer(local.name, local)
    exemplars = None
    if section.exemplar_file is not None:
        exemplars = load_exemplars(section.exemplar_file, context.forget)
    summary = make_proxies(
        context.forget,
        context.retain,
        writer.generator,
        path,
        model_name=writer.name,
        settings=ProxySettings(
            exemplars=section.exemplars,
            questions_per_prompt=section.questions_per_prompt,
            max_retries=section.max_retries,
            max_new_tokens=section.max_new_tokens,
            temperature=section.temperature,
            seed=config.seed,
            exemplar_source=section.exemplar_source,
        ),
        exemplars=exemplars,
        force=force,
        on_progress=context.ui.progress,
    )
    texts = load_proxies(path, context.forget)
    if uninformed is not None:
        summary = _with_nll(context, path, summary, texts, uninformed)
    write_quality(path, summary.as_dict(), texts=texts, model=writer.name)
    _tell(context, "Proxy answers", summary.lines(), written=bool(summary.written))
    return summary


def _uninformed(context: Context) -> LocalWriter | None:
    """A local model that does not know the facts, if the run names one."""
    config = context.config
    if config.proxies.model is not None:
        return LocalWriter(context, config.proxies.model)
    # Without fine-tuning model.path is the target model, which knows them.
    return LocalWriter(context, config.model.path) if config.finetune is not None else None


def _with_nll(
    context: Context,
    path: Path,
    summary: ProxySummary,
    texts: Sequence[str],
    uninformed: LocalWriter,
) -> ProxySummary:
    """The summary with likelihoods, from an earlier call where nothing has changed since."""
    found = known_nll(path, texts=texts, model=uninformed.name)
    if found is None:
        found = mean_nll(uninformed.loaded.model, uninformed.template, context.forget, texts)
    if found is None:
        return summary
    return replace(
        summary,
        mean_nll_proxies=found.proxies,
        mean_nll_truths=found.truths,
        nll_model=uninformed.name,
    )


def write_alternates(
    context: Context, path: Path, *, target: str, force: bool = False
) -> AlternateSummary:
    """Fill the alternates file of a run, show and keep the figures about it; returns these.

    Args:
        context: The run.
        path: The alternates file.
        target: Folder or name of the model that unlearning starts from.
        force: Make every line anew.

    Raises:
        InputError: See `make_alternates` and `EndpointGenerator`.
        RunError: An endpoint cannot be reached or fails.
    """
    config, section = context.config, context.config.alternates
    if section.endpoint is not None:
        endpoint = make_endpoint(section.endpoint, key="alternates.endpoint")
        writer = _Writer(endpoint.model, EndpointGenerator(endpoint))
    elif section.model is not None or target == config.model.path:
        local = LocalWriter(context, section.model or target)
        writer = _Writer(local.name, local)
    else:
        # The folder is in a cache, under a fingerprint of what made the model.
        name = f"{config.model.path}, fine-tuned ({Path(target).name[:12]})"
        writer = _Writer(name, LocalWriter(context, target, name=name))
    summary = make_alternates(
        context.forget,
        writer.generator,
        path,
        model_name=writer.name,
        settings=AlternateSettings(
            per_question=section.per_question,
            temperature=section.temperature,
            max_new_tokens=section.max_new_tokens,
            max_retries=section.max_retries,
            seed=config.seed,
        ),
        force=force,
        on_progress=context.ui.progress,
    )
    texts = [line.alternate for line in read_alternates(path)]
    write_quality(path, summary.as_dict(), texts=texts, model=writer.name)
    _tell(context, "Alternate answers", summary.lines(), written=bool(summary.written))
    return summary


def _tell(context: Context, what: str, lines: Sequence[str], *, written: bool) -> None:
    """Show the figures; what was made now goes into the notes of the run as well."""
    for line in lines:
        context.ui.note(line)
    if written:
        context.log.notes.append(f"{what}: " + "; ".join(lines))
