"""What exists, by kind: what `expunge list` prints and messages suggest."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

KINDS = {
    "methods": "complete methods, in the notation that --method takes",
    "losses": "what is done on the forget set",
    "retain": "what protects the rest; stands after a +",
    "wrappers": "what goes around a method",
    "metrics": "what is computed from stored outputs",
    "benchmarks": "probes, measures and aggregates, with their presets",
    "recipes": "complete configurations in the package",
    "templates": "how questions and answers become text (template.name)",
    "splits": "TOFU data in the package; use as tofu:SPLIT",
}

# The combinations that papers report, and what they are called there.
_PUBLISHED = {
    "GA": "gradient ascent",
    "GA+GD": "gradient difference (grad_diff)",
    "GA+KL": "KL minimisation (kl_min)",
    "NPO": "negative preference optimisation",
    "NPO+GD": "the same with descent on the retain set",
    "NPO+KL": "the same with KL to the target model on the retain set",
    "IDK": "fine-tuning on refusals",
    "IDK+GD": "the same with descent on the retain set",
    "IDK+AP": "refusals with answer preservation",
    "ME+GD": "maximum entropy with descent on the retain set",
    "EGU(NPO+GD)": "entanglement-guided weights; EGU goes around any method",
    "EGUP(NPO+GD)": "the same with a proxy constraint; needs expunge proxies",
    "UIPE(NPO+GD)": "a method followed by extrapolation; goes around any method",
}


class Entry(NamedTuple):
    """One line of a list."""

    name: str
    summary: str


def entries(kind: str) -> list[Entry]:
    """Everything of one of `KINDS`."""
    return _LISTS[kind]()


def names() -> list[str]:
    """Every name that has a page of its own."""
    return [entry.name for kind in KINDS for entry in entries(kind)]


def _methods() -> list[Entry]:
    return [Entry(*item) for item in _PUBLISHED.items()]


def _losses() -> list[Entry]:
    from expunge.methods import forget_losses

    return [Entry(part.name, f"{part.title} ({part.kind})") for part in forget_losses]


def _retain() -> list[Entry]:
    from expunge.methods import retain_terms

    return [Entry(part.name, part.title) for part in retain_terms]


def _wrappers() -> list[Entry]:
    from expunge.methods import post_steps, wrappers

    return [
        Entry(part.name, part.title) for registry in (wrappers, post_steps) for part in registry
    ]


def _metrics() -> list[Entry]:
    from expunge.metrics import metrics

    return [Entry(item.name, item.title) for item in metrics]


def _benchmarks() -> list[Entry]:
    from expunge.benchmarks import benchmarks

    found = []
    for benchmark in benchmarks:
        presets = f" (presets: {', '.join(benchmark.presets)})" if benchmark.presets else ""
        found.append(Entry(benchmark.name, benchmark.title + presets))
    return found


def _recipes() -> list[Entry]:
    from expunge.run.recipes import recipe_header, recipe_names

    return [Entry(name, recipe_header(name).partition("\n")[0]) for name in recipe_names()]


def _templates() -> list[Entry]:
    return [
        Entry("auto", "the tokenizer's chat template if it has one, else plain"),
        Entry("chat", "the tokenizer's chat template"),
        *(Entry(name, summary(build)) for name, build in template_builders().items()),
    ]


def template_builders() -> dict[str, Callable[..., object]]:
    """The templates that are written out, by name."""
    from expunge.data import templates

    return {
        "plain": templates.plain_template,
        "llama2": templates.llama2_template,
        "phi": templates.phi_template,
    }


def _splits() -> list[Entry]:
    from expunge.data import load_tofu
    from expunge.data.tofu import TOFU_SPLITS

    return [Entry(split, f"{len(load_tofu(split))} rows") for split in TOFU_SPLITS]


def summary(thing: object) -> str:
    """First line of a docstring, without its full stop."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].removesuffix(".")


_LISTS: dict[str, Callable[[], list[Entry]]] = {
    "methods": _methods,
    "losses": _losses,
    "retain": _retain,
    "wrappers": _wrappers,
    "metrics": _metrics,
    "benchmarks": _benchmarks,
    "recipes": _recipes,
    "templates": _templates,
    "splits": _splits,
}
