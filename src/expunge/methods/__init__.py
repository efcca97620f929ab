"""Methods as declarations: forget term, retain term, wrappers, post-processing, freely combined."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge

from expunge.core.errors import InputError, Problem, did_you_mean
from expunge.core.notation import Node, notation_error, read_notation, write_options
from expunge.core.options import Option, check_options, options_of
from expunge.core.registry import Registry
from expunge.objectives import (
    EntanglementOptions,
    Objective,
    Positions,
    ProxyOptions,
    Term,
    loss_info,
)

__all__ = [
    "ForgetLoss",
    "Method",
    "Part",
    "PostStep",
    "RetainTerm",
    "Wrapper",
    "describe",
    "forget_losses",
    "parse",
    "post_steps",
    "register",
    "retain_terms",
    "wrappers",
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What every registered building block declares.

    Attributes:
        name: Name in the notation.
        title: What it is, in a few words.
        paper: Where it comes from.
        notes: Where sources disagree and what is done here.
        aliases: Other names that are understood.
    """

    name: str
    title: str
    paper: str
    notes: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ForgetLoss(Part):
    """What is done on the forget set.

    Attributes:
        term: The loss with its stream and weight.
        kind: `untargeted`: forget without saying what to answer instead; `targeted`: answer this.
        weight_with: Published forget weight when combined with the named retain term.
    """

    term: Term
    kind: Literal["untargeted", "targeted"] = "untargeted"
    weight_with: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RetainTerm(Part):
    """What protects the rest. Attributes: `term`, the loss with its stream and weight."""

    term: Term


@dataclass(frozen=True, kw_only=True)
class Wrapper(Part):
    """What weighs or constrains any forget loss.

    Attributes:
        options: Dataclasses whose fields are its options.
    """

    options: tuple[type, ...]


@dataclass(frozen=True, kw_only=True)
class PostStep(Part):
    """What is done to the weights afterwards. Attributes: `options`, dataclass of its options."""

    options: type


def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


forget_losses: Registry[ForgetLoss] = Registry("forget loss", _discover)
retain_terms: Registry[RetainTerm] = Registry("retain term", _discover)
wrappers: Registry[Wrapper] = Registry("wrapper", _discover)
post_steps: Registry[PostStep] = Registry("post-processing step", _discover)


def register(part: Part) -> None:
    """Make a building block known by its name.

    Raises:
        ValueError: The name is taken.
        TypeError: It is of no known kind.
    """
    match part:
        case ForgetLoss():
            forget_losses.add(part.name, part, *part.aliases)
        case RetainTerm():
            retain_terms.add(part.name, part, *part.aliases)
        case Wrapper():
            wrappers.add(part.name, part, *part.aliases)
        case PostStep():
            post_steps.add(part.name, part, *part.aliases)
        case _:
            raise TypeError(f"cannot register {type(part).__name__}")


@dataclass(frozen=True, kw_only=True)
class _TermOptions:
    """Options that every term has.

    Attributes:
        weight: Coefficient of the term in the objective.
        positions: Logit positions a token loss averages over: `labels` of the answer, all `nonpad`
            tokens, or `all` with padding, which then depends on the batch layout.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    positions: Positions = "labels"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A complete method: what the trainer minimises and what is done to the weights afterwards.

    Attributes:
        forget: The forget loss as declared.
        forget_term: Its term with the options given.
        retain: The retain term as declared, if any.
        retain_term: Its term with the options given.
        entanglement: Options of EGU, if it is part of the method.
        proxy: Options of the proxy constraint, if it is part of the method.
        wrapper: Name of the wrapper.
        wrapper_options: Options given to the wrapper.
        extrapolate: Factor of UIPE's extrapolation, None without it.
    """

    forget: ForgetLoss
    forget_term: Term
    retain: RetainTerm | None = None
    retain_term: Term | None = None
    entanglement: EntanglementOptions | None = None
    proxy: ProxyOptions | None = None
    wrapper: str = ""
    wrapper_options: Mapping[str, Any] = field(default_factory=dict)
    extrapolate: float | None = None

    @property
    def objective(self) -> Objective:
        """What the trainer minimises."""
        return Objective(
            forget=self.forget_term,
            retain=self.retain_term,
            entanglement=self.entanglement,
            proxy=self.proxy,
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams of data the method needs."""
        return self.objective.all_streams()

    @property
    def needs_retain(self) -> bool:
        """Whether the method needs a retain set."""
        used = any(name.startswith("retain") for name in self.streams)
        return used or self.entanglement is not None

    @property
    def needs_reference(self) -> Literal["", "log-probabilities", "distributions"]:
        """What the method needs of a reference model."""
        read = frozenset().union(*(self.objective.reads(name) for name in self.streams))
        if "ref_logits" in read:
            return "distributions"
        return "log-probabilities" if "ref_logps" in read else ""

    def __str__(self) -> str:
        """Canonical notation; parsing it gives the same method."""
        text = _write_part(self.forget.name, self.forget_term, _forget_default(self))
        if self.retain is not None and self.retain_term is not None:
            text += "+" + _write_part(self.retain.name, self.retain_term, self.retain.term)
        if self.wrapper:
            options = write_options(self.wrapper_options)
            text = f"{self.wrapper}({text}{', ' + options if options else ''})"
        if self.extrapolate is not None:
            text = f"UIPE({text}, alpha={self.extrapolate!r})"
        return text


def _forget_default(method: Method) -> Term:
    if method.retain is None:
        return method.forget.term
    weight = method.forget.weight_with.get(method.retain.name, method.forget.term.weight)
    return replace(method.forget.term, weight=weight)


def _write_part(name: str, term: Term, default: Term) -> str:
    options = dict(term.options)
    if term.weight != default.weight:
        options["weight"] = term.weight
    if term.positions is not None and term.positions != default.positions:
        options["positions"] = term.positions
    return f"{name}({write_options(options)})" if options else name


def parse(
    text: str,
    *,
    forget: Mapping[str, Any] | None = None,
    retain: Mapping[str, Any] | None = None,
    wrapper: Mapping[str, Any] | None = None,
    post: Mapping[str, Any] | None = None,
) -> Method:
    """Read a method in the papers' notation, such as `UIPE(EGUP(NPO+GD, k=1), alpha=0.5)`.

    Args:
        text: The notation.
        forget: Further options of the forget loss; they override those in the text.
        retain: Further options of the retain term.
        wrapper: Further options of the wrapper.
        post: Further options of the post-processing step.

    Raises:
        InputError: The text does not parse, names something unknown, or an option is not allowed;
            the message points at the character and lists what is possible.
    """
    builder = _Builder(text)
    extra = {"forget": forget, "retain": retain, "wrapper": wrapper, "post": post}
    return builder.build(read_notation(text), {k: dict(v or {}) for k, v in extra.items()})


class _Builder:
    """Turns a tree of names into a method, with errors that point into the text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def build(self, node: Node, extra: dict[str, dict[str, Any]]) -> Method:
        extrapolate = None
        if node.name in post_steps:
            step = post_steps.get(node.name)
            inner = self.inner_of(node, step.name)
            options = self.options(node, options_of(step.options), step.name, extra.pop("post"))
            extrapolate = step.options(**options).alpha
            node = inner
        elif extra.pop("post"):
            raise InputError(
                Problem(where="post", message=f"{self.text} has no post-processing step")
            )
        wrapper, given = None, extra["wrapper"]
        wrapper_options: dict[str, Any] = {}
        if node.name in wrappers:
            wrapper = wrappers.get(node.name)
            inner = self.inner_of(node, wrapper.name)
            known: dict[str, Option] = {}
            for owner in wrapper.options:
                known |= options_of(owner)
            wrapper_options = self.options(node, known, wrapper.name, given)
            node = inner
        elif given:
            raise InputError(Problem(where="wrapper", message=f"{self.text} has no wrapper"))
        method = self.terms(node, extra)
        return self.wrap(method, wrapper, wrapper_options, extrapolate)

    def inner_of(self, node: Node, name: str) -> Node:
        if node.inner is None:
            raise notation_error(
                self.text, node.at, f"{name} wraps a method. Write for example {name}(NPO+GD)"
            )
        return node.inner

    def terms(self, node: Node, extra: dict[str, dict[str, Any]]) -> Method:
        if node.inner is not None:
            known = wrappers.names() + post_steps.names()
            raise notation_error(
                self.text,
                node.at,
                f"{node.name} does not wrap a method here. {did_you_mean(node.name, known)}",
            )
        declared = self.find(forget_losses, node)
        retain = None if node.plus is None else self.find(retain_terms, node.plus)
        term = declared.term
        if retain is not None:
            term = replace(term, weight=declared.weight_with.get(retain.name, term.weight))
        forget_term = self.term(node, term, declared.name, extra["forget"])
        retain_term = None
        if retain is not None and node.plus is not None:
            retain_term = self.term(node.plus, retain.term, retain.name, extra["retain"])
        elif extra["retain"]:
            raise InputError(
                Problem(where="retain", message=f"{self.text} has no retain term, add +GD")
            )
        return Method(
            forget=declared, forget_term=forget_term, retain=retain, retain_term=retain_term
        )

    def find(self, registry: Registry[Any], node: Node) -> Any:
        if node.name in registry:
            return registry.get(node.name)
        options = registry.names()
        if registry is forget_losses:
            options = options + [f"{n}(...)" for n in wrappers.names() + post_steps.names()]
        raise notation_error(
            self.text,
            node.at,
            f"unknown {registry.kind} {node.name}. {did_you_mean(node.name, options)}",
        )

    def term(self, node: Node, term: Term, name: str, extra: Mapping[str, Any]) -> Term:
        known = options_of(_TermOptions) | options_of(term.loss)
        if loss_info(term.loss).unit == "sequence":
            known.pop("positions")
        given = self.options(node, known, name, extra)
        weight = given.pop("weight", term.weight)
        positions = given.pop("positions", term.positions)
        return replace(term, weight=weight, positions=positions, options={**term.options, **given})

    def options(
        self, node: Node, known: Mapping[str, Option], name: str, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        values, problems = check_options(node.options, known, owner=name)
        if problems:
            first = problems[0]
            message = "\n".join(problem.message for problem in problems)
            raise notation_error(self.text, node.option_at[first.where], message)
        more, problems = check_options(extra, known, owner=name)
        if problems:
            raise InputError(problems)
        return values | more

    def wrap(
        self,
        method: Method,
        wrapper: Wrapper | None,
        options: dict[str, Any],
        extrapolate: float | None,
    ) -> Method:
        if wrapper is None:
            return replace(method, extrapolate=extrapolate)
        built: dict[type, Any] = {}
        for owner in wrapper.options:
            names = options_of(owner)
            chosen = {key: value for key, value in options.items() if key in names}
            if owner is EntanglementOptions and ProxyOptions in wrapper.options:
                # The only written formula ties lambda_c to mu (E-07).
                chosen.setdefault("lambda_c", options.get("mu", ProxyOptions().mu))
            built[owner] = owner(**chosen)
        problems = _impossible(method, built.get(EntanglementOptions), built.get(ProxyOptions))
        if problems:
            raise notation_error(self.text, 0, "\n".join(problems))
        return replace(
            method,
            entanglement=built.get(EntanglementOptions),
            proxy=built.get(ProxyOptions),
            wrapper=wrapper.name,
            wrapper_options=options,
            extrapolate=extrapolate,
        )


def _impossible(
    method: Method, entanglement: EntanglementOptions | None, proxy: ProxyOptions | None
) -> list[str]:
    """Combinations of options that no reading of the paper allows."""
    problems = []
    if entanglement is not None:
        if entanglement.temperature == "divide" and entanglement.k == 0:
            problems.append("k must be above 0 with temperature=divide: it divides the exponent")
        if entanglement.weight_grad and entanglement.scope != "micro_batch":
            problems.append(
                "weight_grad=true needs scope=micro_batch: weights over a whole step are known "
                "before its last micro-batch runs"
            )
    if proxy is not None:
        if proxy.penalty_nll == "objective" and method.forget_term.on != ("forget",):
            problems.append(
                f"penalty_nll=objective needs a loss on the forget answers; {method.forget.name} "
                f"looks at {', '.join(method.forget_term.on)}"
            )
        if proxy.proxy_grad and proxy.proxy_loss == "initial":
            problems.append("proxy_grad=true needs proxy_loss=current: the initial one is fixed")
    return problems


def describe(method: Method) -> dict[str, Any]:
    """Everything about a method that a report or a config needs, as plain values."""
    terms = []
    for term in method.objective.terms:
        defaults = {name: option.default for name, option in options_of(term.loss).items()} | dict(
            term.options
        )
        info = loss_info(term.loss)
        entry: dict[str, Any] = {
            "name": term.name,
            "streams": list(term.on),
            "weight": term.weight,
            "unit": info.unit,
            "options": defaults,
        }
        if info.unit == "token":
            entry["positions"] = term.averaged_over
        terms.append(entry)
    papers = [method.forget.paper, method.retain.paper if method.retain else ""]
    if method.wrapper:
        papers.append(wrappers.get(method.wrapper).paper)
    if method.extrapolate is not None:
        papers.append(post_steps.get("UIPE").paper)
    return {
        "notation": str(method),
        "terms": terms,
        "entanglement": None if method.entanglement is None else vars(method.entanglement),
        "proxy": None if method.proxy is None else vars(method.proxy),
        "extrapolate": method.extrapolate,
        "streams": list(method.streams),
        "needs_reference": method.needs_reference,
        "papers": list(dict.fromkeys(paper for paper in papers if paper)),
    }
