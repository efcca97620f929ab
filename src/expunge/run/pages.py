"""One page of plain text per thing: what `expunge show` prints and the reference holds."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError, did_you_mean
from expunge.run.config import Key, json_schema, keys

if TYPE_CHECKING:
    from expunge.core.options import Option
    from expunge.methods import ForgetLoss, Method, Part, RetainTerm
    from expunge.objectives import Term

_WIDTH = 92
_NEEDS = {
    "retain": "a retain set",
    "alternate": "refusals (data.rejections, or the 100 of TOFU)",
    "retain_alternate": "refusals for retain questions",
    "proxy": "proxy answers (expunge proxies)",
    "mismatch": "a retain set with answers",
}


def page(name: str) -> str:
    """Everything about one thing.

    Args:
        name: A loss, retain term, wrapper, method, metric, benchmark, recipe, template, split or
            configuration key; "config" for all keys, "schema" for the JSON schema.

    Raises:
        InputError: Nothing is called that; the message suggests what may be meant.
    """
    finders = (_config_page, _recipe_page, _template_page, _split_page, _part_page, _measured_page)
    for find in (_method_page,) if any(mark in name for mark in "+(") else finders:
        text = find(name)
        if text is not None:
            return text
    from expunge.run.catalog import names

    raise InputError(f"nothing is called {name!r}. {did_you_mean(name, names())}")


def option_rows(options: Mapping[str, Option]) -> list[tuple[str, str, str, str]]:
    """Name, default, allowed values and meaning of every option."""
    from expunge.core.options import REQUIRED

    return [
        (
            option.name,
            "required" if option.default is REQUIRED else _show(option.default),
            option.allowed,
            option.doc,
        )
        for option in options.values()
    ]


def option_table(owner: Callable[..., object]) -> list[tuple[str, str, str, str]]:
    """The same for the keyword-only arguments of a function."""
    from expunge.core.options import options_of

    return option_rows(options_of(owner))


def key_text(key: Key) -> str:
    """A configuration key on one line, with default and allowed values."""
    from expunge.run.allowed import allowed

    return f"{key.path}: {default_text(key)}  ({allowed(key.path)})"


def default_text(key: Key) -> str:
    """Default of a key as YAML, or "required"."""
    if key.field.is_required():
        return "required"
    return _show(key.field.get_default(call_default_factory=True))


def part_rows(part: Part) -> list[tuple[str, str, str, str]]:
    """The same for everything that a loss, retain term, wrapper or post-processing step takes."""
    from expunge.methods import ForgetLoss

    rows = option_rows(_options(part))
    if isinstance(part, ForgetLoss) and part.weight_with:
        others = ", ".join(f"{value:g} with +{name}" for name, value in part.weight_with.items())
        rows = [
            (name, default, allowed, f"{meaning} Published: {others}.")
            if name == "weight"
            else (name, default, allowed, meaning)
            for name, default, allowed, meaning in rows
        ]
    return rows


def _options(part: Part) -> dict[str, Option]:
    from expunge.composition.notation import forget_options, retain_options
    from expunge.core.options import options_of
    from expunge.methods import ForgetLoss, PostStep, RetainTerm, Wrapper

    match part:
        case ForgetLoss():
            return forget_options(part)
        case RetainTerm():
            return retain_options(part)
        case Wrapper():
            return {k: v for owner in part.options for k, v in options_of(owner).items()}
        case PostStep():
            return options_of(part.options)
        case _:
            return {}


def find_part(name: str) -> Part | None:
    """The building block of methods called `name`, in any case; None if there is none."""
    from expunge.methods import forget_losses, post_steps, retain_terms, wrappers

    for registry in (forget_losses, retain_terms, wrappers, post_steps):
        if name in registry:
            found: Part = registry.get(name)
            return found
    return None


def _part_page(name: str) -> str | None:
    from expunge.methods import ForgetLoss, RetainTerm

    part = find_part(name)
    if part is None:
        return None
    lines = [f"{part.name}: {part.title}", "", *facts(part), ""]
    term: Term | None = part.term if isinstance(part, ForgetLoss | RetainTerm) else None
    if term is not None:
        lines += [*_paragraphs(_doc_body(term.loss)), ""]
    lines += option_lines(part_rows(part))
    if part.notes:
        lines += ["", "Notes:", *_wrapped(part.notes, "  ")]
    return "\n".join([*lines, "", "Use:", *_uses(part)])


def facts(part: Part) -> list[str]:
    """Paper, other names, kind, streams and needs, one per line."""
    from expunge.methods import ForgetLoss, RetainTerm

    facts = [f"Paper: {part.paper}"]
    if part.aliases:
        facts.append(f"Also called: {', '.join(part.aliases)}")
    if isinstance(part, ForgetLoss):
        facts.append(f"Kind: {part.kind} forget loss")
    if isinstance(part, ForgetLoss | RetainTerm):
        facts.append(f"Streams: {', '.join(part.term.on)}")
        needs = part_needs(part)
        facts += [f"Needs: {'; '.join(needs)}"] if needs else []
    return facts


def part_needs(part: ForgetLoss | RetainTerm) -> list[str]:
    """What a loss needs beside its own rows, in words."""
    from expunge.methods import ForgetLoss

    streams = list(part.term.on)
    if isinstance(part, ForgetLoss):
        streams += [name for term in part.auxiliary.values() for name in term.on]
    needs = [_NEEDS[stream] for stream in streams if stream in _NEEDS]
    if isinstance(part, ForgetLoss) and part.alternates == "file":
        needs = ["alternate answers (expunge alternates)"]
    reads = part.term.reads
    if "ref_logits" in reads:
        needs.append("whole distributions of the reference model")
    if "ref_activations" in reads:
        needs.append("hidden states of the reference model")
    if "ref_logps" in reads:
        needs.append("log-probabilities of the reference model, computed once")
    if "activations" in reads:
        needs.append("hidden states")
    return needs


def _uses(part: Part) -> list[str]:
    from expunge.methods import ForgetLoss, PostStep, RetainTerm

    match part:
        case ForgetLoss():
            limit = "(limit=0.5)" if part.needs_limit else ""
            uses = [part.name, f"{part.name}+GD{limit}", f"EGUP({part.name}+GD{limit})"]
        case RetainTerm():
            uses = [f"NPO+{part.name}"]
        case PostStep() if part.inner:
            uses = [part.name, f"{part.name}({part.inner})"]
        case _:
            uses = [f"{part.name}(NPO+GD)"]
    return [f'  expunge unlearn my.yaml --method "{use}"' for use in uses]


def _method_page(name: str) -> str | None:
    from expunge.methods import describe, parse

    method = parse(name)
    told = describe(method)
    lines = [str(method), "", f"Papers: {'; '.join(told['papers'])}"]
    needs = _method_needs(method)
    lines += [f"Needs: {'; '.join(needs)}"] if needs else []
    lines += ["", "Terms of the objective:"]
    for term in told["terms"]:
        options = {"weight": term["weight"], **term["options"]}
        options |= {key: term[key] for key in ("positions", "average") if key in term}
        lines.append(f"  {term['name']}: {_listed(options)} (one value per {term['unit']})")
    if told["multiplier"] is not None:
        lines += ["", "Primal-dual retain weight:", *_wrapped(_listed(told["multiplier"]), "  ")]
    for name, options in told["wrappers"].items():
        lines += ["", f"{name}:", *_wrapped(_listed(options), "  ")]
    if told["post"] is not None:
        options = {k: v for k, v in told["post"].items() if k not in ("name", "title", "result")}
        lines += ["", f"Afterwards, {told['post']['name']}: {told['post']['title']}"]
        lines += _wrapped(_listed(options), "  ")
    parts = [method.forget.name, method.retain.name if method.retain else ""]
    parts += list(told["wrappers"]) + ([] if method.post is None else [method.post.name])
    more = [f"expunge show {part}" for part in parts if part]
    return "\n".join([*lines, "", f"Options and their meaning: {', '.join(more)}"])


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_show(value)}" for key, value in options.items())


def _method_needs(method: Method) -> list[str]:
    needs = [_NEEDS[stream] for stream in method.streams if stream in _NEEDS]
    if method.needs_alternates:
        needs = [*(need for need in needs if need != _NEEDS["alternate"])]
        needs.append("alternate answers (expunge alternates)")
    if method.needs_hidden:
        needs.append("hidden states")
    if method.needs_retain and _NEEDS["retain"] not in needs:
        needs.insert(0, _NEEDS["retain"])
    if method.needs_reference:
        needs.append(f"{method.needs_reference} of the target model as reference")
    return needs


def _config_page(name: str) -> str | None:
    if name == "schema":
        return json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if name == "config":
        plain = [key for key in keys() if key.section is None]
        return "\n".join(line for key in plain for line in _key_lines(key))
    found = [key for key in keys() if key.path == name or key.path.startswith(f"{name}.")]
    lines = [line for key in found if key.section is None for line in _key_lines(key)]
    if found and found[0].section is not None:
        lines = [*_wrapped(found[0].field.description or "", ""), "", *lines]
    return "\n".join(lines) if found else None


def _key_lines(key: Key) -> list[str]:
    return [key_text(key), *_wrapped(key.field.description or "", "    ")]


def _recipe_page(name: str) -> str | None:
    from expunge.run.recipes import find_recipe, recipe_names

    if name not in recipe_names():
        return None
    return find_recipe(name).read_text(encoding="utf-8").rstrip("\n")


def _template_page(name: str) -> str | None:
    from expunge.run.catalog import entries, template_builders

    if name in template_builders():
        return "\n".join([f"{name} template", "", *_paragraphs(_template_doc(name))])
    listed = {entry.name: entry.summary for entry in entries("templates")}
    return f"{name} template: {listed[name]}" if name in listed else None


def _template_doc(name: str) -> str:
    from expunge.run.catalog import template_builders

    return _doc(template_builders()[name]).partition("\n\nRaises:")[0]


def _split_page(name: str) -> str | None:
    from expunge.data import load_tofu
    from expunge.data.tofu import TOFU_SPLITS

    split = name.removeprefix("tofu:")
    if split not in TOFU_SPLITS:
        return None
    rows = load_tofu(split)
    first = json.dumps(rows[0], ensure_ascii=False, indent=2)
    return f"tofu:{split}: {len(rows)} rows. The first:\n{first}"


def _measured_page(name: str) -> str | None:
    from expunge.run.measured import benchmark_page, metric_page

    return metric_page(name) or benchmark_page(name)


def _doc(thing: Callable[..., object]) -> str:
    return inspect.getdoc(thing) or ""


def _doc_body(thing: Callable[..., object]) -> str:
    return _doc(thing).partition("\nArgs:")[0]


def _paragraphs(text: str) -> list[str]:
    return text.strip().splitlines()


def option_lines(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Options with default, meaning and allowed values, as indented text."""
    lines = ["Options:"]
    for name, default, allowed, meaning in rows:
        lines += _indented(name, default, f"{meaning} ({allowed})".lstrip())
    return lines


def _indented(name: str, default: str, meaning: str) -> list[str]:
    return [f"  {name} = {default}", *_wrapped(meaning, "    ")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _show(value: Any) -> str:
    from expunge.run.render import yaml_value
    from expunge.run.sections import Section

    if isinstance(value, Section):
        return "{}"
    return f"{value:g}" if isinstance(value, float) else yaml_value(value)
