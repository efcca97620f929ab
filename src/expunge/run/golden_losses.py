"""Golden loss cases: which method each stands for here, and where the numbers differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from expunge.core.errors import InputError
from expunge.methods import Method, parse
from expunge.models.outputs import TokenOutputs, label_logps, outputs_from_logits
from expunge.objectives import ObjectiveSums

RELATIVE = 1e-9
ABSOLUTE = 1e-12  # for entries that are 0 or nearly so
SINGLE = 1e-5  # where the released code computes in float32, as the golden headers say

STREAM_OF = {
    "forget": "forget",
    "retain": "retain",
    "idk": "alternate",
    "retain_idk": "retain_alternate",
    "mismatch": "mismatch",
}


# What a case stands for -------------------------------------------------------------------------


def _number(hyper: Mapping[str, Any], *names: str, default: float = 1.0) -> float:
    return next((float(hyper[name]) for name in names if name in hyper), default)


def _closer_look(name: str, hyper: Mapping[str, Any]) -> str | None:
    forget, _, retain = name.partition("+")
    options = f"weight={hyper['forget_coeff']}"
    if forget == "LLMU":
        weight = hyper["regularization_coeff"]
        mismatch = f"LLMU({options}, mismatch_weight={weight})"
        return f"{mismatch}+KL(weight={weight}, positions=all)"
    if forget in ("NPO", "DPO"):
        options += f", beta={hyper['beta']}"
    if forget == "ME":
        # The case's labels say which positions count.
        options += ", direction=uniform_to_model, positions=labels"
    retain_options = f"weight={hyper['regularization_coeff']}"
    if retain == "KL":
        retain_options += ", positions=all"
    if retain == "AP":
        retain_options += f", beta={hyper['beta']}"
    text = f"{forget}({options})"
    return f"{text}+{retain}({retain_options})" if retain else text


def _npo_family(name: str, hyper: Mapping[str, Any]) -> str | None:
    beta = f"beta={hyper.get('beta', 0.1)}"
    weight = f"weight={_number(hyper, 'npo_coeff')}"
    descent = f"GD(weight={_number(hyper, 'grad_diff_coeff')})"
    divergence = f"KL(weight={_number(hyper, 'KL_coeff')}, positions=all)"
    simnpo = f"SimNPO({beta}, delta={hyper.get('gamma', 0.0)}, weight="
    return {
        "grad_ascent": "GA",
        "grad_ascent_forgetKL": "GA+KL-forget(positions=all)",
        "grad_diff": "GA+GD",
        "KL": "GA+KL(positions=all)",
        "idk": "IDK-TOFU",
        "npo": f"NPO({beta})",
        "npo_grad_diff": f"NPO({beta}, {weight})+{descent}",
        "npo_KL": f"NPO({beta}, {weight})+{divergence}",
        "simnpo": f"{simnpo}1)",
        "simnpo_grad_diff": f"{simnpo}{_number(hyper, 'npo_coeff')})+{descent}",
        "dpo": f"DPO({beta})",
        "dpo_grad_diff": f"DPO({beta})+{descent}",
        "dpo_KL": f"DPO({beta})+{divergence}",
        "kto_sigmoid": f"KTO({beta}, link=sigmoid)",
        "kto_logsigmoid": f"KTO({beta}, link=logsigmoid)",
    }.get(name)


def _open_unlearning(name: str, hyper: Mapping[str, Any]) -> str | None:
    match = re.match(r"([A-Za-z-]+)(?:\[(\w+)\])?", name)
    if match is None:
        return None
    kind = match[2] or hyper.get("retain_loss_type", "NLL")
    retain = {
        "NLL": f"GD(weight={hyper.get('alpha', 1.0)})",
        "KL": f"KL(weight={hyper.get('alpha', 1.0)}, positions=all)",
        "EMBED_DIFF": f"ACT(weight={hyper.get('alpha', 1.0)}, average=broadcast)",
    }.get(str(kind))
    weight = f"weight={hyper.get('gamma', 1.0)}"
    beta = f"beta={hyper.get('beta', 0.1)}"
    first_ignored = hyper.get("ignore_first_n_answer_tokens", 1)
    undial = "UNDIAL-OU" if "wraparound" in name else "UNDIAL"
    forget = {
        "GradAscent": "GA",
        "GradDiff": f"GA({weight})",
        "NPO": f"NPO({weight}, {beta})",
        "DPO": f"DPO({weight}, {beta})",
        "SimNPO": f"SimNPO({weight}, {beta}, delta={hyper.get('delta', 0.0)})",
        "WGA": f"WGA({weight}, {beta})",
        "SatImp": f"SatImp({weight}, beta1={hyper.get('beta1', 5.0)}, "
        f"beta2={hyper.get('beta2', 1.0)})",
        "CE-U": f"CE-U(ignore_first={first_ignored})",
        "UNDIAL": f"{undial}({weight}, {beta})",
        "PDU": f"PDU({weight}, positions=unshifted)",
        "RMU": f"RMU({weight}, steering={hyper.get('steering_coeff', 20.0)}, average=broadcast)",
    }.get(match[1])
    if forget is None or retain is None:
        return None
    if match[1] in ("GradAscent", "CE-U"):
        return forget
    if match[1] == "PDU":
        dual = f"limit={hyper['retain_loss_eps']}, dual_step={hyper['dual_step_size']}"
        return f"{forget}+GD(weight={hyper['alpha']}, {dual})"
    return f"{forget}+{retain}"


def _uld(name: str, hyper: Mapping[str, Any]) -> str | None:
    weight = f"weight={hyper.get('retain_weight', 1.0)}"
    forget = {
        "NPOLossFunc": f"NPO(beta={hyper.get('beta', 0.1)})",
        "GradAscentLossFunc": "GA",
        "GradDescentLossFunc": "REINFORCE",
        "DPOLossFunc": f"DPO(beta={hyper.get('beta', 0.1)})",
    }
    retain = {
        "GradDescentLossFunc": f"GD({weight})",
        "KLLossFunc": f"KL({weight}, positions=all)",
        "UniformLossFunc": f"UNIFORM({weight}, positions=all)",
    }
    first, _, second = name.partition("+")
    first, second = hyper.get("forget_loss", first), hyper.get("retain_loss", second)
    return f"{forget[first]}+{retain[second]}" if first in forget and second in retain else None


def _muse(name: str, hyper: Mapping[str, Any]) -> str | None:
    npo = f"NPO-MUSE(beta={hyper.get('beta', 0.1)})"
    margin = f"gamma={hyper.get('gamma', 0.0)}"
    simnpo = f"SimNPO-MUSE(beta={hyper.get('beta', 0.7)}, {margin}, "
    simnpo += f"weight={_number(hyper, 'npo_coeff')})"
    return {
        "ga": "GA",
        "ga_gdr": "GA+GD",
        "ga_klr": "GA+KL-MUSE",
        "npo": npo,
        "npo_gdr": f"{npo}+GD",
        "npo_klr": f"{npo}+KL-MUSE",
        "simnpo": simnpo,
        "simnpo_gdr": f"{simnpo}+GD(weight={_number(hyper, 'coeff')})",
        "simnpo_klr": f"{simnpo}+KL-MUSE(weight={_number(hyper, 'coeff')})",
    }.get(name)


_NAMING: dict[str, Callable[[str, Mapping[str, Any]], str | None]] = {
    "trainer/losses.py": _closer_look,
    "TOFU/dataloader.py": _npo_family,
    "dataloader.py": _npo_family,
    "trainer/unlearn/": _open_unlearning,
    "uld/model/forget_losses.py": _uld,
    "baselines/baselines/iterative.py": _muse,
}


def golden_method(case: Mapping[str, Any]) -> Method | None:
    """The method that a loss case stands for, None when there is none here."""
    function = str(case.get("function", ""))
    for prefix, naming in _NAMING.items():
        if function.startswith(prefix):
            text = naming(str(case["name"]), case.get("hyper", {}))
            break
    else:
        return None
    if text is None:
        return None
    try:
        return parse(text)
    except InputError:
        return None


# How it compares --------------------------------------------------------------------------------


def loss_differences(
    method: Method, fixture: Mapping[str, Any], case: Mapping[str, Any]
) -> list[str]:
    """Run a method on stored logits and compare value, terms and gradients; [] when all agree."""
    leaves, outputs = golden_outputs(method, fixture)
    objective = method.objective
    state = objective.new_state(0)
    if "control_unit" in fixture and state.control is not None:
        state.control = tensor(fixture["control_unit"])
    if "steps" in case:
        return _dual_differences(method, leaves, outputs, case)
    sums = objective(outputs, state=state)
    counts = objective.counts(outputs)
    total = sums.total(counts)
    total.backward()  # type: ignore[no-untyped-call]
    differences = compare("loss", total.detach(), case["loss"])
    differences += _term_differences(sums, counts, case)
    if "value_with_per_sequence_mean" in case:
        differences += _by_rows(method, outputs, state.control, case)
    for kind in ("logits", "activations"):
        differences += _gradient_differences(leaves, kind, case.get(f"grad_{kind}", {}))
    return differences


def golden_outputs(
    method: Method, fixture: Mapping[str, Any]
) -> tuple[dict[tuple[str, str], Tensor], dict[str, TokenOutputs]]:
    """The records of a method's streams, and their leaves by set and kind."""
    leaves: dict[tuple[str, str], Tensor] = {}
    outputs: dict[str, TokenOutputs] = {}
    acts = fixture.get("act", {})
    for name, stream in STREAM_OF.items():
        data = fixture.get(name)
        if data is None or stream not in method.streams:
            continue
        leaves[name, "logits"] = tensor(data["logits"]).requires_grad_()
        if name in acts:
            leaves[name, "activations"] = tensor(acts[name]).requires_grad_()
        reference = acts.get(f"{name}_ref")
        outputs[stream] = outputs_from_logits(
            leaves[name, "logits"],
            torch.tensor(data["labels"]),
            torch.tensor(data["attention_mask"]),
            input_ids=torch.tensor(data["input_ids"]),
            ref_logits=tensor(data["ref_logits"]),
            activations=leaves.get((name, "activations")),
            ref_activations=None if reference is None else tensor(reference),
        )
    return leaves, outputs


def _term_differences(
    sums: ObjectiveSums, counts: Mapping[str, Tensor], case: Mapping[str, Any]
) -> list[str]:
    """Compare the two terms of a source that shows them; all but the first are its retain side."""
    values = [term.total.detach() / counts[term.count_key].clamp(min=1) for term in sums.sums]
    differences = []
    if "forget_term" in case:
        differences += compare("forget_term", values[0], case["forget_term"])
    if "retain_term" in case and len(values) > 1:
        differences += compare("retain_term", torch.stack(values[1:]).sum(), case["retain_term"])
    return differences


def _gradient_differences(
    leaves: Mapping[tuple[str, str], Tensor],
    kind: str,
    expected: Mapping[str, Any],
    relative: float = RELATIVE,
) -> list[str]:
    """Compare gradients set by set; a set that is absent has none."""
    differences = []
    for (name, own), leaf in leaves.items():
        if own != kind:
            continue
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        wanted = expected.get(name)
        wanted = gradient * 0 if wanted is None else wanted
        differences += compare(f"gradient of {name}", gradient, wanted, relative)
    missing = [name for name in expected if (name, kind) not in leaves]
    return differences + [f"no gradient for {name}" for name in missing]


def _by_rows(
    method: Method,
    outputs: Mapping[str, TokenOutputs],
    control: Tensor | None,
    case: Mapping[str, Any],
) -> list[str]:
    """Compare the plain form of RMU, which the case stores as a second number."""
    objective = method.objective
    retain = objective.retain
    plain = replace(
        objective,
        forget=replace(objective.forget, average="rows"),
        retain=None if retain is None else replace(retain, average="rows"),
    )
    state = plain.new_state(0)
    state.control = control
    value = plain(outputs, state=state).total(plain.counts(outputs)).detach()
    return compare("per-sequence mean", value, case["value_with_per_sequence_mean"])


def _dual_differences(
    method: Method,
    leaves: Mapping[tuple[str, str], Tensor],
    outputs: Mapping[str, TokenOutputs],
    case: Mapping[str, Any],
) -> list[str]:
    """Follow a multiplier through the stored steps; the first step's gradients are compared."""
    objective = method.objective
    state = objective.new_state(0)
    counts = objective.counts(outputs)
    assert state.retain_weight is not None, "the case has a multiplier"
    assert objective.retain is not None, "the case has a retain term"
    differences = []
    for number, step in enumerate(case["steps"]):
        sums = objective(outputs, state=state)
        total = sums.total(counts)
        if number == 0:
            total.backward()  # type: ignore[no-untyped-call]
            expected = case["grad_logits_step0"]
            differences += _gradient_differences(leaves, "logits", expected, SINGLE)
        values = {t.name: float(t.total.detach() / counts[t.count_key]) for t in sums.sums}
        for what, actual in (
            ("loss", float(total.detach())),
            ("forget_loss", values[objective.forget.name]),
            ("retain_loss", values[objective.retain.name]),
            ("retain_preference_before", state.retain_weight.value),
        ):
            differences += compare(f"step {number} {what}", actual, step[what], SINGLE)
        if step["can_update"]:
            objective.update(state, values, epoch=1.0)
        after = state.retain_weight.value
        what = "retain_preference_after"
        differences += compare(f"step {number} {what}", after, step[what], SINGLE)
    return differences


# Logits and weights of two models ---------------------------------------------------------------


def other_differences(
    fixture: Mapping[str, Any] | None, case: Mapping[str, Any]
) -> list[str] | None:
    """Cases that are no training objective: combined logits, task vectors, sample weights.

    Returns:
        What differs; None when the case is of no known kind.
    """
    name = str(case.get("name", ""))
    if name.startswith("task vector"):
        return _task_vector(case)
    if name.startswith("empirical-loss"):
        return _empirical(case)
    if fixture is None:
        return None
    if name.startswith("ULD combined"):
        return _combined_uld(fixture, case)
    if name.startswith("WHP logits"):
        return _combined_whp(fixture, case)
    return None


def _task_vector(case: Mapping[str, Any]) -> list[str]:
    from expunge.postprocess.task_vector import negate

    initial = {name: tensor(value) for name, value in case["base"].items()}
    reinforced = {name: tensor(value) for name, value in case["reinforced"].items()}
    found = negate(initial, reinforced, alpha=float(case["hyper"]["alpha"]))
    return [
        line
        for name, wanted in case["result"].items()
        for line in compare(name, found[name], wanted)
    ]


def _combined_uld(fixture: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    from expunge.models.combine import uld_logits, unlikely_tokens

    target, assistant = _pair(fixture)
    rho = float(case["hyper"]["top_logit_filter"])
    weight = float(case["hyper"]["weight"])
    found = uld_logits(target, assistant, weight=weight, top_logit_filter=rho)
    unlikely = unlikely_tokens(target, rho)
    filtered = 0 if unlikely is None else int(unlikely.sum())
    return compare("logits", found, case["logits"]) + compare(
        "filtered entries", filtered, case["n_filtered"]
    )


def _combined_whp(fixture: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    from expunge.models.combine import whp_logits

    base, reinforced = _pair(fixture)
    found = whp_logits(base, reinforced, alpha=float(case["hyper"]["alpha"]))
    logps, mask = label_logps(found, torch.tensor(fixture["forget"]["labels"]))
    value = -logps.sum() / mask.sum()
    return compare("logits", found, case["logits"]) + compare("loss", value, case["loss"])


def _pair(fixture: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    data = fixture["forget"]
    return tensor(data["logits"]), tensor(data["ref_logits"])


def _empirical(case: Mapping[str, Any]) -> list[str]:
    """Every classified sample as a row with one labelled token."""
    logits = tensor(case["logits"])
    labels = torch.tensor(case["labels"])
    leaf = torch.stack([logits, logits], dim=1).requires_grad_()
    row_labels = torch.stack([torch.full_like(labels, -100), labels], dim=1)
    out = outputs_from_logits(leaf, row_labels, torch.ones_like(row_labels))
    objective = parse(f"EMPIRICAL(GA, power={case['hyper']['lambd']})").objective
    total = objective({"forget": out}).total(objective.counts({"forget": out}))
    total.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None, "the loss depends on the logits"
    # The stored value is what ascends; ours is minimised.
    return (
        compare("per-sample loss", out.mean_nll().detach(), case["per_sample_loss"])
        + compare("value", -total.detach(), case["value"])
        + compare("gradient", -leaf.grad[:, 0], case["grad_logits"])
    )


def tensor(values: Any) -> Tensor:
    """Stored numbers in float64."""
    return torch.as_tensor(values, dtype=torch.float64)


def compare(
    what: str, actual: Any, expected: Any, relative: float = RELATIVE, absolute: float = ABSOLUTE
) -> list[str]:
    """A line when some entry differs by more than `absolute + relative * |expected|`."""
    actual, expected = tensor(actual), tensor(expected)
    if actual.shape != expected.shape:
        return [f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"]
    difference = (actual - expected).abs()
    beyond = difference - (absolute + relative * expected.abs())
    if actual.numel() and not float(beyond.max()) <= 0:
        worst = int(beyond.argmax())
        return [
            f"{what} differs by {float(difference.flatten()[worst]):.3g} from "
            f"{float(expected.flatten()[worst]):.6g}"
        ]
    return []
