"""From the papers' notation to a method, with errors that point into the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from expunge.composition.method import Method, Wrapping, forget_default, retain_default
from expunge.composition.parts import (
    ForgetLoss,
    RetainTerm,
    forget_losses,
    post_steps,
    retain_terms,
    wrappers,
)
from expunge.core.errors import InputError, Problem, did_you_mean
from expunge.core.notation import Node, notation_error, read_notation
from expunge.core.options import Option, check_options, options_of
from expunge.core.registry import Registry
from expunge.objectives import (
    ConfidenceOptions,
    EmpiricalOptions,
    EntanglementOptions,
    MultiplierOptions,
    Positions,
    ProxyOptions,
    SaturationOptions,
    Term,
    loss_info,
)


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """Options that every term has.

    Attributes:
        weight: Coefficient of the term in the objective.
    """

    weight: Annotated[float, Ge(0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class TokenTermOptions:
    """Options of every term with a value per token.

    Attributes:
        positions: Logit positions the mean runs over: `labels` predict a token of the answer,
            `unshifted` hold one, `nonpad` are all real tokens, `all` also padding, which then
            depends on the batch layout.
        average: Mean over all `tokens` of a step, over `rows` of their token means, or over rows of
            their `sums`; `broadcast` divides as open-unlearning's RMU does (C-11).
    """

    positions: Positions = "labels"
    average: Literal["tokens", "rows", "sums", "broadcast"] = "tokens"


@dataclass(frozen=True, kw_only=True)
class DualOptions:
    """A retain weight that follows a primal-dual rule, as in PDU, arXiv:2506.05314.

    Attributes:
        limit: Level of the retain term to keep, in its own unit; the weight then becomes a
            multiplier that starts at `weight`, rises while the term is above the limit and falls
            below it. Choose it somewhat above the target model's value.
        dual_step: Change of the multiplier per step and unit of violation.
        dual_warmup: Epochs before the multiplier moves.
        dual_every: Move it after every optimizer `step`, or after every `epoch` by a pass over the
            whole retain set.
        dual_max: The multiplier never exceeds this.
    """

    limit: float | None = None
    dual_step: Annotated[float, Gt(0)] = 1.0
    dual_warmup: Annotated[float, Ge(0)] = 0.0
    dual_every: Literal["step", "epoch"] = "step"
    dual_max: Annotated[float, Gt(0)] = 1e6


@dataclass(frozen=True, kw_only=True)
class MismatchOptions:
    """How many wrong answers a forget question is paired with.

    Attributes:
        num_mismatch: Retain answers per forget question; 5 in the code of LLMU, 1 in Closer Look.
    """

    num_mismatch: Annotated[int, Ge(1)] = 1


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
        wrapper: Further options of the wrappers; each goes to the wrapper that knows it.
        post: Further options of the post-processing step.

    Raises:
        InputError: The text does not parse, names something unknown, or an option is not allowed;
            the message points at the character and lists what is possible.
    """
    builder = _Builder(text)
    extra = {"forget": forget, "retain": retain, "wrapper": wrapper, "post": post}
    return builder.build(read_notation(text), {k: dict(v or {}) for k, v in extra.items()})


def forget_options(part: ForgetLoss) -> dict[str, Option]:
    """All options of a forget loss."""
    known = term_options(part.term)
    for name, term in part.auxiliary.items():
        weight = options_of(TermOptions)["weight"]
        title = f"Coefficient of the {name} term."
        known[f"{name}_weight"] = replace(
            weight, name=f"{name}_weight", default=term.weight, doc=title
        )
    if "mismatch" in part.auxiliary:
        known |= options_of(MismatchOptions)
    return known


def retain_options(part: RetainTerm) -> dict[str, Option]:
    """All options of a retain term."""
    return term_options(part.term) | options_of(DualOptions)


def term_options(term: Term) -> dict[str, Option]:
    """Options of a term: those of every term with this term's defaults, and those of its loss."""
    known = options_of(TermOptions)
    known["weight"] = replace(known["weight"], default=term.weight)
    if term.is_token:
        known |= options_of(TokenTermOptions)
        known["positions"] = replace(known["positions"], default=term.averaged_over)
        known["average"] = replace(known["average"], default=term.averaged_by)
    return known | options_of(term.loss)


class _Builder:
    """Turns a tree of names into a method."""

    def __init__(self, text: str) -> None:
        self.text = text

    def fail(self, node: Node, *problems: str) -> InputError:
        return notation_error(self.text, node.at, "\n".join(problems))

    def build(self, node: Node, extra: dict[str, dict[str, Any]]) -> Method:
        start = node
        post: dict[str, Any] = {}
        if node.name in post_steps:
            step = post_steps.get(node.name)
            inner = node.inner or (read_notation(step.inner) if step.inner else None)
            given = self.options(node, options_of(step.options), step.name, extra["post"])
            options = step.options(**given)
            post = {"post": step, "post_options": options, "post_given": given}
            node = self.inner_of(node, step.name, inner)
        elif extra["post"]:
            raise InputError(
                Problem(where="post", message=f"{self.text} has no post-processing step")
            )
        node, wrappings = self.wrappings(node, extra["wrapper"])
        method = replace(self.terms(node, extra), **post)
        problems = _clashes(wrappings)
        if not problems:
            method = replace(method, wrappings=wrappings)
            problems = _impossible(method)
        if problems:
            raise self.fail(start, *problems)
        return method

    def inner_of(self, node: Node, name: str, inner: Node | None) -> Node:
        if inner is None:
            raise self.fail(node, f"{name} wraps a method. Write for example {name}(NPO+GD)")
        return inner

    def wrappings(self, node: Node, extra: Mapping[str, Any]) -> tuple[Node, tuple[Wrapping, ...]]:
        """The node inside all wrappers, and these, innermost first."""
        nodes = []
        while node.name in wrappers:
            nodes.append(node)
            node = self.inner_of(node, wrappers.get(node.name).name, node.inner)
        if extra and not nodes:
            raise InputError(Problem(where="wrapper", message=f"{self.text} has no wrapper"))
        known = {item.name: self.known(item.name) for item in nodes}
        taken = {key for options in known.values() for key in options}
        found = []
        for item in nodes:
            # With one wrapper it takes everything; what none of several knows goes to the first.
            mine = {
                key: value
                for key, value in extra.items()
                if key in known[item.name] or (key not in taken and item is nodes[0])
            }
            found.append(self.wrapping(item, mine))
        ranked = sorted(reversed(found), key=lambda wrapping: wrapping.wrapper.rank)
        return node, tuple(ranked)

    def known(self, name: str) -> dict[str, Option]:
        found: dict[str, Option] = {}
        for owner in wrappers.get(name).options:
            found |= options_of(owner)
        return found

    def wrapping(self, node: Node, extra: Mapping[str, Any]) -> Wrapping:
        wrapper = wrappers.get(node.name)
        given = self.options(node, self.known(node.name), wrapper.name, extra)
        built = []
        for owner in wrapper.options:
            names = options_of(owner)
            chosen = {key: value for key, value in given.items() if key in names}
            if owner is EntanglementOptions and ProxyOptions in wrapper.options:
                # The only written formula ties lambda_c to mu (E-07).
                chosen.setdefault("lambda_c", given.get("mu", ProxyOptions().mu))
            built.append(owner(**chosen))
        return Wrapping(wrapper=wrapper, given=given, built=tuple(built))

    def terms(self, node: Node, extra: dict[str, dict[str, Any]]) -> Method:
        if node.inner is not None:
            known = wrappers.names() + post_steps.names()
            raise self.fail(
                node,
                f"{node.name} does not wrap a method here. {did_you_mean(node.name, known)}",
            )
        forget: ForgetLoss = self.find(forget_losses, node)
        retain: RetainTerm | None = None
        if node.plus is not None:
            retain = self.find(retain_terms, node.plus)
        given = self.options(node, forget_options(forget), forget.name, extra["forget"])
        auxiliary, given_auxiliary = _auxiliary(forget, given)
        method = Method(
            forget=forget,
            forget_term=_with_options(forget_default(forget, retain), given),
            auxiliary=auxiliary,
            auxiliary_options=given_auxiliary,
            retain=retain,
        )
        if retain is not None and node.plus is not None:
            more = self.options(node.plus, retain_options(retain), retain.name, extra["retain"])
            return self.retained(method, retain, node.plus, more)
        if extra["retain"]:
            raise InputError(
                Problem(where="retain", message=f"{self.text} has no retain term, add +GD")
            )
        return method

    def retained(
        self, method: Method, retain: RetainTerm, node: Node, given: dict[str, Any]
    ) -> Method:
        dual = {name: given.pop(name) for name in options_of(DualOptions) if name in given}
        term = _with_options(retain_default(method.forget, retain), given)
        limit = dual.get("limit")
        if limit is None and dual:
            raise self.fail(node, f"{', '.join(dual)} without limit: {retain.name}(limit=...)")
        if limit is None and method.forget.needs_limit:
            raise self.fail(
                node,
                f"{method.forget.name}+{retain.name} needs the level of the retain term that is to "
                f"be kept: write {method.forget.name}+{retain.name}(limit=0.5), somewhat above the "
                f"target model's value",
            )
        multiplier = None
        if limit is not None:
            values = DualOptions(**dual)
            multiplier = MultiplierOptions(
                limit=limit,
                start=term.weight,
                rate=values.dual_step,
                warmup=values.dual_warmup,
                every=values.dual_every,
                maximum=values.dual_max,
            )
        return replace(method, retain_term=term, multiplier=multiplier, multiplier_options=dual)

    def find(self, registry: Registry[Any], node: Node) -> Any:
        if node.name in registry:
            return registry.get(node.name)
        options = registry.names()
        if registry is forget_losses:
            options = options + [f"{n}(...)" for n in wrappers.names() + post_steps.names()]
        raise self.fail(
            node, f"unknown {registry.kind} {node.name}. {did_you_mean(node.name, options)}"
        )

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


def _with_options(term: Term, given: Mapping[str, Any]) -> Term:
    """The term with its own fields and the options of its loss set."""
    fields = {key: given[key] for key in ("weight", "positions", "average") if key in given}
    own = options_of(term.loss)
    options = {key: value for key, value in given.items() if key in own}
    return replace(term, **fields, options={**term.options, **options})


def _auxiliary(
    forget: ForgetLoss, given: Mapping[str, Any]
) -> tuple[tuple[Term, ...], dict[str, Any]]:
    """Further terms of a forget loss with the options that concern them."""
    names = {f"{name}_weight" for name in forget.auxiliary} | set(options_of(MismatchOptions))
    own = {key: value for key, value in given.items() if key in names}
    terms = []
    for name, term in forget.auxiliary.items():
        streams = [name] + [f"{name}_{i}" for i in range(2, own.get("num_mismatch", 1) + 1)]
        average = given.get("average", term.average)
        weight = own.get(f"{name}_weight", term.weight)
        terms.append(
            replace(
                term, weight=weight, on=tuple(streams), pooled=len(streams) > 1, average=average
            )
        )
    return tuple(terms), own


_EXCLUSIVE: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("weighs samples", (EntanglementOptions, EmpiricalOptions)),
    ("weighs tokens", (ConfidenceOptions, SaturationOptions)),
    ("adds the proxy constraint", (ProxyOptions,)),
)


def _clashes(wrappings: tuple[Wrapping, ...]) -> list[str]:
    """Wrappers that do the same thing twice."""
    problems = []
    for what, kinds in _EXCLUSIVE:
        users = [w.wrapper.name for w in wrappings if any(isinstance(b, kinds) for b in w.built)]
        if len(users) > 1:
            problems.append(f"{' and '.join(users)}: each {what}; one of them is enough")
    names = [wrapping.wrapper.name for wrapping in wrappings]
    problems += [f"{name} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    return problems


def _impossible(method: Method) -> list[str]:
    """Combinations of options that mean nothing, with the reason."""
    problems = [
        *_impossible_token_weights(method),
        *_impossible_weights(method),
        *_impossible_proxy(method),
        *_impossible_terms(method),
    ]
    step = method.post
    if step is not None and step.inner and method.forget.kind != "reinforcing":
        problems.append(
            f"{step.name} turns around what a model learned from the forget set, so it goes around "
            f"a method that learns it: {step.name}({step.inner}), not {method.forget.name}"
        )
    return problems


def _impossible_token_weights(method: Method) -> list[str]:
    term = method.forget_term
    by_probability = method.objective.token_weights is not None
    if not by_probability or not term.is_token or term.averaged_over == "labels":
        return []
    name = method.forget.name
    return [
        f"{name} also looks at tokens without a label, whose probability is not known; write "
        f"{name}(positions=labels) to weigh the tokens of the answers"
    ]


def _impossible_weights(method: Method) -> list[str]:
    entanglement = method.entanglement
    if entanglement is None:
        return []
    problems = []
    if entanglement.temperature == "divide" and entanglement.k == 0:
        problems.append("k must be above 0 with temperature=divide: it divides the exponent")
    if entanglement.weight_grad and entanglement.scope != "micro_batch":
        problems.append(
            "weight_grad=true needs scope=micro_batch: weights over a whole step are known "
            "before its last micro-batch runs"
        )
    if entanglement.level == "token":
        if entanglement.scope == "dataset":
            problems.append(
                "level=token needs scope=step or micro_batch: a table of weights for every token "
                "of the forget set is not kept"
            )
        if entanglement.reduce == "mean":
            problems.append("level=token has no reduce=mean: its weights have mean 1 over tokens")
        if method.objective.token_weights is not None:
            problems.append("level=token already weighs tokens; leave out the other token weights")
    return problems


def _impossible_proxy(method: Method) -> list[str]:
    proxy = method.proxy
    if proxy is None:
        return []
    problems = []
    if proxy.penalty_nll == "objective" and method.forget_term.on != ("forget",):
        problems.append(
            f"penalty_nll=objective needs a loss on the forget answers; {method.forget.name} "
            f"looks at {', '.join(method.forget_term.on)}"
        )
    if proxy.penalty_nll == "objective" and loss_info(method.forget_term.loss).statistic:
        problems.append(
            f"penalty_nll=objective compares samples; {method.forget.name} has one value for a "
            "whole step. Take mean or sum"
        )
    if proxy.proxy_grad and proxy.proxy_loss == "initial":
        problems.append("proxy_grad=true needs proxy_loss=current: the initial one is fixed")
    return problems


def _impossible_terms(method: Method) -> list[str]:
    problems = []
    terms = method.objective.terms
    layers = {term.options.get("layer", 7) for term in terms if "activations" in term.reads}
    if len(layers) > 1:
        problems.append(
            f"the terms look at blocks {' and '.join(map(str, sorted(layers)))}; both must name "
            "the same layer"
        )
    for term in terms:
        if term.averaged_by == "broadcast" and "activations" not in term.reads:
            problems.append(
                f"average=broadcast is how open-unlearning divides in RMU; {term.name} takes "
                f"tokens, rows or sums"
            )
    dual, retain = method.multiplier, method.retain_term
    by_epoch = dual is not None and dual.every == "epoch"
    if retain is not None and by_epoch and (retain.on != ("retain",) or len(retain.reads)):
        problems.append(
            "dual_every=epoch measures the term on the whole retain set, which is done for GD "
            "only; take dual_every=step"
        )
    return problems
