"""What exists, by kind: what `expunge list` prints and messages suggest."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from expunge.methods import Method

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

# The combinations that papers report. Every loss also stands alone, in any other combination.
_PUBLISHED = (
    "GA", "GA+GD", "GA+KL", "NPO", "NPO+GD", "NPO+KL", "SimNPO", "SimNPO+GD", "ME+GD", "ME+KL",
    "LLMU+KL", "WGA+GD", "SatImp+GD", "CE-U", "UNDIAL", "UNDIAL+GD", "PDU+GD(limit=0.3)",
    "RMU+ACT", "IDK", "IDK+GD", "IDK+KL", "IDK+AP", "DPO", "DPO+GD", "DPO+KL", "AltPO+GD",
    "KTO", "EMPIRICAL(GA+GD)", "EGU(NPO+GD)", "EGUP(NPO+GD)", "PROXY(NPO+GD)", "SAM(NPO+GD)",
    "CONFIDENCE(NPO+GD)", "SATURATION(NPO+GD)", "UIPE(NPO+GD)", "TASKVECTOR", "WHP", "ULD",
)  # fmt: skip


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
    return [Entry(row.name, f"{row.kind}; needs {row.needs}; {row.paper}") for row in method_rows()]


class MethodRow(NamedTuple):
    """One line of the list of methods."""

    name: str
    kind: str
    needs: str
    paper: str


def method_rows() -> list[MethodRow]:
    """Published methods: class, needs (reference, hidden states, alternates, proxies), paper."""
    from expunge.methods import describe, parse

    rows = []
    for name in _PUBLISHED:
        method = parse(name)
        papers = [_arxiv(paper) for paper in describe(method)["papers"]]
        kind: str = method.forget.kind if method.forget.kind != "reinforcing" else ""
        if method.post is not None:
            kind = "inference time" if method.post.result == "combination" else "weight space"
        papers = [paper for paper in dict.fromkeys(papers) if paper]
        rows.append(MethodRow(name, kind, method_needs(method), ", ".join(papers)))
    return rows


def _arxiv(text: str) -> str:
    found = re.search(r"arXiv:\d+\.\d+", text)
    return found[0] if found else text


def method_needs(method: Method) -> str:
    """What a method needs beside the forget set, in a few words."""
    streams = method.streams
    needs = [
        "retain set" if method.needs_retain else "",
        f"reference {method.needs_reference}" if method.needs_reference else "",
        "hidden states" if method.needs_hidden else "",
        "alternates file" if method.needs_alternates else "",
        "rejections" if method.needs_rejections else "",
        "proxies" if "proxy" in streams else "",
    ]
    return ", ".join(need for need in needs if need) or "nothing"


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
