"""Check objectives, metrics and data handling against golden files made with the authors' code.

A golden file is JSON with a header and cases. Every case gives one line: passed, failed with the
difference, or not supported with the reason. The tolerance is the header's own, never looser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.core.errors import InputError, Problem
from expunge.data.golden import check_data_case
from expunge.methods import Method, parse
from expunge.metrics.golden import (
    NOT_SUPPORTED,
    GoldenCase,
    check_metric_group,
    check_published,
)
from expunge.models.outputs import TokenOutputs, outputs_from_logits
from expunge.objectives.entanglement import (
    EntanglementOptions,
    EntanglementState,
    drift_contrast,
    effort,
    sentence_embedding,
    similarity,
)
from expunge.objectives.proxy import proxy_excess
from expunge.postprocess import extrapolate, update_norm

Outcome = Literal["passed", "failed", "not supported"]

RELATIVE = 1e-9
ABSOLUTE = 1e-12  # for entries that are 0 or nearly so
STREAM_OF = {
    "forget": "forget",
    "retain": "retain",
    "idk": "alternate",
    "retain_idk": "retain_alternate",
}


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Outcome of one golden case."""

    file: str
    case: str
    outcome: Outcome
    detail: str = ""

    def line(self) -> str:
        """One line for the console."""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.outcome:<13} {self.file} {self.case}{detail}"


def verify(paths: Iterable[Path | str]) -> Iterator[CaseResult]:
    """Check every golden file in the given files and folders.

    Raises:
        InputError: A path does not exist, or a file is not JSON.
    """
    for path in _golden_files(paths):
        content = _read(path)
        for check in _CHECKS:
            results = check(path, content)
            if results is not None:
                yield from results
                break
        else:
            if "fixtures" not in content:
                yield CaseResult(
                    file=path.name,
                    case="file",
                    outcome="not supported",
                    detail="no check knows this layout",
                )


def _golden_files(paths: Iterable[Path | str]) -> list[Path]:
    files: list[Path] = []
    problems = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(path.glob("*.json"))
        elif path.is_file():
            files.append(path)
        else:
            problems.append(Problem(where=str(path), message="no such file or folder"))
    if problems:
        raise InputError(problems)
    if not files:
        raise InputError("there is no .json file in the folders given")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(Problem(where=str(path), message=f"not a JSON file: {error}")) from None
    if not isinstance(content, dict):
        raise InputError(Problem(where=str(path), message="a golden file holds one JSON object"))
    return content


# Losses -----------------------------------------------------------------------------------------


def _number(hyper: Mapping[str, Any], *names: str, default: float = 1.0) -> float:
    return next((float(hyper[name]) for name in names if name in hyper), default)


def _closer_look(name: str, hyper: Mapping[str, Any]) -> str | None:
    forget, _, retain = name.partition("+")
    options = f"weight={hyper['forget_coeff']}"
    if forget == "NPO":
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
    npo = f"NPO({beta}, weight={_number(hyper, 'npo_coeff')})"
    return {
        "grad_ascent": "GA",
        "grad_diff": "GA+GD",
        "KL": "GA+KL(positions=all)",
        "npo": f"NPO({beta})",
        "npo_grad_diff": f"{npo}+GD(weight={_number(hyper, 'grad_diff_coeff')})",
        "npo_KL": f"{npo}+KL(weight={_number(hyper, 'KL_coeff')}, positions=all)",
    }.get(name)


def _open_unlearning(name: str, hyper: Mapping[str, Any]) -> str | None:
    if name == "GradAscent":
        return "GA"
    match = re.fullmatch(r"(GradDiff|NPO)\[(NLL|KL)\]", name)
    if match is None:
        return None
    forget = "GA" if match[1] == "GradDiff" else "NPO"
    options = f"weight={hyper['gamma']}" + (f", beta={hyper['beta']}" if forget == "NPO" else "")
    retain = "GD" if match[2] == "NLL" else "KL"
    positions = ", positions=all" if retain == "KL" else ""
    return f"{forget}({options})+{retain}(weight={hyper['alpha']}{positions})"


def _uld(name: str, hyper: Mapping[str, Any]) -> str | None:
    forget = {"NPOLossFunc": f"NPO(beta={hyper.get('beta', 0.1)})", "GradAscentLossFunc": "GA"}
    weight = f"weight={hyper.get('retain_weight', 1.0)}"
    retain = {
        "GradDescentLossFunc": f"GD({weight})",
        "KLLossFunc": f"KL({weight}, positions=all)",
    }
    first, _, second = name.partition("+")
    if first in forget and second in retain:
        return f"{forget[first]}+{retain[second]}"
    return None


def _muse(name: str, hyper: Mapping[str, Any]) -> str | None:
    return {"ga": "GA", "ga_gdr": "GA+GD"}.get(name)


_NAMING: dict[str, Callable[[str, Mapping[str, Any]], str | None]] = {
    "trainer/losses.py": _closer_look,
    "TOFU/dataloader.py": _npo_family,
    "dataloader.py": _npo_family,
    "trainer/unlearn/": _open_unlearning,
    "uld/": _uld,
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


def _check_losses(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    cases = content.get("cases")
    if not isinstance(cases, list) or not any("function" in case for case in cases):
        return None
    return _loss_results(path, cases)


def _loss_results(path: Path, cases: list[dict[str, Any]]) -> Iterator[CaseResult]:
    fixtures_file = path.parent / "fixtures.json"
    fixtures = _read(fixtures_file)["fixtures"] if fixtures_file.is_file() else {}
    for number, case in enumerate(cases):
        label = f"[{number}] {case.get('fixture', '-')} {case.get('name')} {case.get('hyper', {})}"
        method = golden_method(case)
        fixture = fixtures.get(case.get("fixture"))
        if method is None or fixture is None:
            reason = (
                "no such objective" if method is None else f"no fixture in {fixtures_file.name}"
            )
            yield CaseResult(file=path.name, case=label, outcome="not supported", detail=reason)
            continue
        differences = loss_differences(method, fixture, case)
        yield _result(path, label, differences)


def _result(path: Path, label: str, differences: list[str]) -> CaseResult:
    outcome: Outcome = "failed" if differences else "passed"
    return CaseResult(file=path.name, case=label, outcome=outcome, detail="; ".join(differences))


def loss_differences(
    method: Method, fixture: Mapping[str, Any], case: Mapping[str, Any]
) -> list[str]:
    """Run a method on stored logits and compare value, terms and gradients; [] when all agree."""
    leaves: dict[str, Tensor] = {}
    outputs: dict[str, TokenOutputs] = {}
    for name, stream in STREAM_OF.items():
        data = fixture.get(name)
        if data is not None and stream in method.streams:
            leaves[name] = _tensor(data["logits"]).requires_grad_()
            outputs[stream] = outputs_from_logits(
                leaves[name],
                torch.tensor(data["labels"]),
                torch.tensor(data["attention_mask"]),
                input_ids=torch.tensor(data["input_ids"]),
                ref_logits=_tensor(data["ref_logits"]),
            )
    objective = method.objective
    sums = objective(outputs)
    counts = objective.counts(outputs)
    total = sums.total(counts)
    total.backward()  # type: ignore[no-untyped-call]
    differences = _compare("loss", total.detach(), case["loss"])
    for key, term in zip(("forget_term", "retain_term"), sums.sums, strict=False):
        if key in case:
            value = term.total.detach() / counts[term.count_key].clamp(min=1)
            differences += _compare(key, value, case[key])
    expected = case.get("grad_logits", {})
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        wanted = expected.get(name)
        differences += _compare(
            f"gradient of {name}", gradient, wanted if wanted is not None else gradient * 0
        )
    missing = [name for name in expected if name not in leaves]
    return differences + [f"no gradient for {name}" for name in missing]


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _compare(
    what: str, actual: Any, expected: Any, relative: float = RELATIVE, absolute: float = ABSOLUTE
) -> list[str]:
    """A line when some entry differs by more than `absolute + relative * |expected|`."""
    actual, expected = _tensor(actual), _tensor(expected)
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


# EGU, EGUP and UIPE -----------------------------------------------------------------------------


def _check_worked_examples(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    if "weights_sum_to_one" not in content or "totals" not in content:
        return None
    return _worked_examples(path, content)


def _worked_examples(path: Path, content: dict[str, Any]) -> Iterator[CaseResult]:
    inputs = content["inputs"]
    embeddings = _embed(inputs["hidden"], inputs["attention_mask"])
    past = _embed(inputs["hidden_prev"], inputs["attention_mask"])
    centre = _embed(inputs["retain_hidden"], inputs["retain_attention_mask"]).mean(0)
    similarities = similarity(embeddings, centre)
    to_past = similarity(embeddings, past)
    pooled = content["pooled"]
    for name, actual, expected in (
        ("embeddings", embeddings, pooled["E"]),
        ("past embeddings", past, pooled["E_prev"]),
        ("retain centre", centre, pooled["retain_mean_of_means"]),
        ("similarity", similarities, content["sim"]),
        ("similarity to past", to_past, content["sim_prev"]),
        ("drift contrast", drift_contrast(similarities, to_past), content["contrastive"]),
        (
            "gradient of drift contrast",
            _contrast_gradient(inputs, past, centre),
            content["grad_hidden_of_mean_contrastive"],
        ),
    ):
        yield _result(path, name, _compare(name, actual, expected))
    for key, expected in content["weights_sum_to_one"].items():
        transform, direction, temperature, k = key.split("|")
        options = EntanglementOptions(
            transform=transform,
            direction=direction,
            temperature=temperature,
            k=float(k.removeprefix("k=")),
        )
        weights = effort(similarities, options).softmax(0)
        yield _result(path, f"weights {key}", _compare("weights", weights, expected))
    yield from _narrow_band(path, content["narrow_band"])
    for number, example in enumerate(content["totals"]):
        label = f"total [{number}] {example['base']} k={example['k']} mu={example['mu']}"
        yield _result(path, label, _total_differences(inputs, centre, past, example))
    yield from _uipe_examples(path, content["uipe"])
    if "empirical_loss_weights" in content and golden_method({}) is None:
        yield CaseResult(
            file=path.name,
            case="empirical_loss_weights",
            outcome="not supported",
            detail="no such objective",
        )


def _embed(hidden: Any, mask: Any) -> Tensor:
    return sentence_embedding(_hidden_outputs(_tensor(hidden), torch.tensor(mask)))


def _hidden_outputs(hidden: Tensor, attention_mask: Tensor) -> TokenOutputs:
    rows, length = attention_mask.shape
    logits = torch.zeros(rows, length, 2, dtype=torch.float64)
    labels = torch.zeros(rows, length, dtype=torch.long).masked_fill(attention_mask == 0, -100)
    return outputs_from_logits(logits, labels, attention_mask, hidden=hidden)


def _contrast_gradient(inputs: Mapping[str, Any], past: Tensor, centre: Tensor) -> Tensor:
    hidden = _tensor(inputs["hidden"]).requires_grad_()
    out = _hidden_outputs(hidden, torch.tensor(inputs["attention_mask"]))
    embeddings = sentence_embedding(out)
    contrast = drift_contrast(similarity(embeddings, centre), similarity(embeddings, past))
    (gradient,) = torch.autograd.grad(contrast.mean(), hidden)
    return gradient


def _narrow_band(path: Path, band: Mapping[str, Any]) -> Iterator[CaseResult]:
    similarities = _tensor(band["sim"])
    for key, expected in band.items():
        match = re.fullmatch(r"(double_exp|single_exp) k=([\d.]+)", key)
        if match is not None:
            options = EntanglementOptions(
                transform=match[1],  # type: ignore[arg-type]
                k=float(match[2]),
            )
            weights = effort(similarities, options).softmax(0)
            yield _result(path, f"narrow band {key}", _compare("weights", weights, expected))


def _total_differences(
    inputs: Mapping[str, Any], centre: Tensor, past: Tensor, example: Mapping[str, Any]
) -> list[str]:
    """Run EGU, EGUP and PROXY through the objective on logits that have the stored NLLs."""
    options = f"k={example['k']}, lambda_c={example['lambda_c']}"
    mu = f"mu={example['mu']}"
    base = example["base"] + (f"(beta={inputs['npo_beta']})" if example["base"] == "NPO" else "")
    differences = []
    for key, text in (
        ("total_EGU", f"EGU({base}, {options})"),
        ("total_EGUP", f"EGUP({base}, {options}, {mu})"),
        ("total_EGUP_without_entanglement", f"PROXY({base}, {mu})"),
    ):
        objective = parse(text).objective
        outputs = {
            "forget": _nll_outputs(inputs, "nll_real_mean", "ref_nll_real_mean"),
            "proxy": _nll_outputs(inputs, "nll_proxy_mean", "nll_proxy_mean"),
        }
        state = None
        if objective.entanglement is not None:
            state = EntanglementState(objective.entanglement, len(past))
            state.start(past, centre)
        sums = objective(outputs, entanglement=state)
        value = sums.total(objective.counts(outputs))
        value = value + example["alpha"] * inputs["retain_loss"]
        differences += _compare(key, value, example[key])
        if key == "total_EGUP":
            excess = proxy_excess(outputs["forget"].mean_nll(), outputs["proxy"].mean_nll())
            if (excess > 0).tolist() != example["penalty_active"]:
                differences.append(f"penalty fires on {(excess > 0).tolist()}")
    return differences


def _nll_outputs(inputs: Mapping[str, Any], key: str, ref_key: str) -> TokenOutputs:
    """Outputs whose rows have the stored token-mean NLL at the stored number of answer tokens."""
    counts = inputs["num_answer_tokens"]
    hidden = _tensor(inputs["hidden"])
    attention_mask = torch.tensor(inputs["attention_mask"])
    template = _hidden_outputs(hidden, attention_mask)
    width = max(counts)
    mask = torch.arange(width)[None] < torch.tensor(counts)[:, None]
    logps = -_tensor(inputs[key])[:, None].expand(-1, width) * mask
    ref_logps = -_tensor(inputs[ref_key])[:, None].expand(-1, width) * mask
    return TokenOutputs(
        logps=logps,
        mask=mask,
        nonpad=mask,
        predicts=mask,
        not_last=mask,
        targets=torch.zeros_like(mask, dtype=torch.long),
        num_labels=mask.sum(-1),
        valid=template.valid,
        index=template.index,
        ref_logps=ref_logps,
        hidden=hidden,
        hidden_mask=attention_mask.bool(),
        label_mask=attention_mask.bool(),
    )


def _uipe_examples(path: Path, examples: Mapping[str, Any]) -> Iterator[CaseResult]:
    initial = {name: _tensor(value) for name, value in examples["initial"].items()}
    unlearned = {name: _tensor(value) for name, value in examples["unlearned"].items()}
    norm = update_norm(initial, unlearned)
    yield _result(path, "update norm", _compare("norm", norm, examples["update_norm"]))
    for result in examples["results"]:
        actual = extrapolate(initial, unlearned, alpha=result["alpha"])
        differences = []
        for name, expected in result["params"].items():
            differences += _compare(name, actual[name], expected)
        yield _result(path, f"UIPE alpha={result['alpha']}", differences)


# Metrics and data -------------------------------------------------------------------------------


def _check_metrics(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    if not isinstance(content.get("groups"), list):
        return None
    header = content.get("header", {})
    return _from_golden(path, (check_metric_group(group, header) for group in content["groups"]))


def _check_published_logs(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    if "model_utility" not in content or "forget_quality_pairs" not in content:
        return None
    return _from_golden(path, [check_published(content, path.parent / "tofu_published_logs")])


def _from_golden(path: Path, groups: Iterable[list[GoldenCase]]) -> Iterator[CaseResult]:
    for case in (case for group in groups for case in group):
        if case.outcome is None:
            yield CaseResult(file=path.name, case=case.name, outcome="passed")
        else:
            detail = case.outcome.removeprefix(NOT_SUPPORTED)
            outcome: Outcome = "failed" if case.supported else "not supported"
            yield CaseResult(file=path.name, case=case.name, outcome=outcome, detail=detail)


def _check_data(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    header = content.get("header", {})
    if "toy_tokenizer" not in header or not isinstance(content.get("sources"), dict):
        return None
    return _data_results(path, content["sources"], header)


def _data_results(
    path: Path, sources: Mapping[str, list[dict[str, Any]]], header: Mapping[str, Any]
) -> Iterator[CaseResult]:
    for source, cases in sources.items():
        for number, case in enumerate(cases):
            label = f"{source} [{number}] {case['group']}"
            differences = check_data_case(case, header)
            if differences is not None:
                yield _result(path, label, differences)
                continue
            for checked in check_metric_group(case, header):
                yield from _from_golden(path, [[checked._replace(name=f"{label}: {checked.name}")]])


_CHECKS: list[Callable[[Path, dict[str, Any]], Iterator[CaseResult] | None]] = [
    _check_losses,
    _check_worked_examples,
    _check_metrics,
    _check_published_logs,
    _check_data,
]
