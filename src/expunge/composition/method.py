"""A complete method: forget loss, retain term, wrappers and post-processing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from expunge.composition.parts import ForgetLoss, PostStep, RetainTerm, Wrapper
from expunge.core.notation import write_options
from expunge.core.options import options_of
from expunge.objectives import (
    ConfidenceOptions,
    EmpiricalOptions,
    EntanglementOptions,
    MultiplierOptions,
    Objective,
    ProxyOptions,
    SaturationOptions,
    Term,
    loss_info,
)
from expunge.objectives.updates import SharpnessOptions

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """A wrapper in use.

    Attributes:
        wrapper: Its declaration.
        given: The options as given.
        built: Its option records.
    """

    wrapper: Wrapper
    given: Mapping[str, Any]
    built: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A complete method: what the trainer minimises and what is done to the weights afterwards.

    Attributes:
        forget: The forget loss as declared.
        forget_term: Its term with the options given.
        auxiliary: Its further terms.
        auxiliary_options: Options given to these.
        retain: The retain term as declared, if any.
        retain_term: Its term with the options given.
        multiplier: Primal-dual rule of the retain weight, if it is not fixed.
        multiplier_options: Options given to it.
        wrappings: Wrappers, innermost first.
        post: What is done with the trained weights.
        post_options: Its option record.
        post_given: Its options as given.
    """

    forget: ForgetLoss
    forget_term: Term
    auxiliary: tuple[Term, ...] = ()
    auxiliary_options: Mapping[str, Any] = field(default_factory=dict)
    retain: RetainTerm | None = None
    retain_term: Term | None = None
    multiplier: MultiplierOptions | None = None
    multiplier_options: Mapping[str, Any] = field(default_factory=dict)
    wrappings: tuple[Wrapping, ...] = ()
    post: PostStep | None = None
    post_options: Any = None
    post_given: Mapping[str, Any] = field(default_factory=dict)

    def _option(self, kind: type[T]) -> T | None:
        for wrapping in self.wrappings:
            for built in wrapping.built:
                if isinstance(built, kind):
                    return built
        return None

    @property
    def entanglement(self) -> EntanglementOptions | None:
        """Options of EGU, if it is part of the method."""
        return self._option(EntanglementOptions)

    @property
    def proxy(self) -> ProxyOptions | None:
        """Options of the proxy constraint, if it is part of the method."""
        return self._option(ProxyOptions)

    @property
    def sharpness(self) -> SharpnessOptions | None:
        """Options of the sharpness-aware update, if it is part of the method."""
        return self._option(SharpnessOptions)

    @property
    def objective(self) -> Objective:
        """What the trainer minimises."""
        return Objective(
            forget=self.forget_term,
            auxiliary=self.auxiliary,
            retain=self.retain_term,
            multiplier=self.multiplier,
            token_weights=self._option(ConfidenceOptions) or self._option(SaturationOptions),
            empirical=self._option(EmpiricalOptions),
            entanglement=self.entanglement,
            proxy=self.proxy,
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams of data the method needs."""
        return self.objective.all_streams()

    @property
    def reads(self) -> frozenset[str]:
        """Fields of `TokenOutputs` that some stream needs."""
        objective = self.objective
        return frozenset().union(*(objective.reads(name) for name in self.streams))

    @property
    def needs_retain(self) -> bool:
        """Whether the method needs a retain set."""
        used = any(name.startswith(("retain", "mismatch")) for name in self.streams)
        return used or self.entanglement is not None

    @property
    def needs_reference(self) -> Literal["", "log-probabilities", "distributions", "hidden states"]:
        """What the method needs of a reference model; the most expensive of it."""
        if "ref_logits" in self.reads:
            return "distributions"
        if "ref_activations" in self.reads:
            return "hidden states"
        return "log-probabilities" if "ref_logps" in self.reads else ""

    @property
    def needs_hidden(self) -> bool:
        """Whether the method looks at hidden states of the model."""
        return bool({"hidden", "activations"} & self.reads)

    @property
    def needs_alternates(self) -> bool:
        """Whether the method needs a file of alternate answers."""
        return "alternate" in self.streams and self.forget.alternates == "file"

    @property
    def needs_rejections(self) -> bool:
        """Whether the method answers some questions with a rejection."""
        drawn = {"alternate", "retain_alternate"} & set(self.streams)
        return bool(drawn - {"alternate"} if self.needs_alternates else drawn)

    @property
    def needs_proxies(self) -> bool:
        """Whether the method needs proxy answers."""
        return "proxy" in self.streams

    @property
    def block(self) -> int | None:
        """Decoder block whose output is looked at, counted from 0."""
        return self.objective.block

    @property
    def trainable(self) -> str:
        """Parameters that move unless the user says otherwise: "all" or a pattern."""
        if self.block is None:
            return self.forget.trainable
        pattern = self.forget.trainable
        for back in (0, 1, 2):
            place = "{layer}" if back == 0 else f"{{layer-{back}}}"
            pattern = pattern.replace(place, str(max(0, self.block - back)))
        return pattern

    def __str__(self) -> str:
        """Canonical notation; parsing it gives the same method."""
        text = _write_part(
            self.forget.name, self.forget_term, _forget_default(self), self.auxiliary_options
        )
        if self.retain is not None and self.retain_term is not None:
            default = retain_default(self.forget, self.retain)
            text += "+" + _write_part(
                self.retain.name, self.retain_term, default, self.multiplier_options
            )
        for wrapping in self.wrappings:
            text = _write_around(wrapping.wrapper.name, text, wrapping.given)
        if self.post is not None:
            text = _write_around(self.post.name, text, self.post_given)
        return text


def forget_default(forget: ForgetLoss, retain: RetainTerm | None) -> Term:
    """The forget term with the weight published for this retain term."""
    name = "" if retain is None else retain.name
    return replace(forget.term, weight=forget.weight_with.get(name, forget.term.weight))


def retain_default(forget: ForgetLoss, retain: RetainTerm) -> Term:
    """The retain term with the weight published for this forget loss."""
    weight = forget.retain_weight_with.get(retain.name, retain.term.weight)
    return replace(retain.term, weight=weight)


def _forget_default(method: Method) -> Term:
    return forget_default(method.forget, method.retain)


def _write_around(name: str, inner: str, options: Mapping[str, Any]) -> str:
    written = write_options(options)
    return f"{name}({inner}{', ' + written if written else ''})"


def _write_part(name: str, term: Term, default: Term, more: Mapping[str, Any]) -> str:
    options = dict(term.options)
    for key in ("weight", "positions", "average"):
        value = getattr(term, key)
        if value is not None and value != getattr(default, key):
            options[key] = value
    options |= more
    return f"{name}({write_options(options)})" if options else name


def describe(method: Method) -> dict[str, Any]:
    """Everything about a method that a report or a config needs, as plain values."""
    papers = [method.forget.paper, method.retain.paper if method.retain else ""]
    papers += [wrapping.wrapper.paper for wrapping in method.wrappings]
    papers += [] if method.post is None else [method.post.paper]
    around = {
        wrapping.wrapper.name: {k: v for built in wrapping.built for k, v in vars(built).items()}
        for wrapping in method.wrappings
    }
    return {
        "notation": str(method),
        "terms": [_describe_term(term) for term in method.objective.terms],
        "multiplier": None if method.multiplier is None else vars(method.multiplier),
        "wrappers": around,
        "post": None
        if method.post is None
        else {
            "name": method.post.name,
            "title": method.post.title,
            "result": method.post.result,
            **vars(method.post_options),
        },
        "streams": list(method.streams),
        "needs_reference": method.needs_reference,
        "papers": list(dict.fromkeys(paper for paper in papers if paper)),
    }


def _describe_term(term: Term) -> dict[str, Any]:
    defaults = {name: option.default for name, option in options_of(term.loss).items()}
    entry: dict[str, Any] = {
        "name": term.name,
        "streams": list(term.on),
        "weight": term.weight,
        "unit": loss_info(term.loss).unit,
        "options": defaults | dict(term.options),
    }
    if term.is_token:
        entry["positions"] = term.averaged_over
        entry["average"] = term.averaged_by
    return entry
