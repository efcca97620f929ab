"""Check objectives, metrics and data handling against golden files made with the authors' code.

A golden file is JSON with a header and cases. Every case gives one line: passed, failed with the
difference, or not supported with the reason. The tolerance is the header's own, never looser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.benchmarks.muse import CUT_AT
from expunge.core.errors import InputError, Problem
from expunge.data.golden import check_data_case
from expunge.evaluation.runner import cut_text
from expunge.methods import parse
from expunge.metrics.golden import (
    NOT_SUPPORTED,
    GoldenCase,
    check_metric_group,
    check_published,
    has_metrics,
)
from expunge.objectives import EmpiricalOptions, EntanglementOptions
from expunge.objectives.entanglement import (
    drift_contrast,
    effort,
    sentence_embedding,
    similarity,
)
from expunge.objectives.proxy import proxy_excess
from expunge.postprocess import extrapolate, update_norm
from expunge.run.golden_gradnorm import gradnorm_scores
from expunge.run.golden_inputs import SUFFIXES, fixtures_beside, read_json
from expunge.run.golden_losses import (
    compare,
    golden_method,
    loss_differences,
    other_differences,
    tensor,
)
from expunge.run.golden_worked import embed, hidden_outputs, nll_outputs

Outcome = Literal["passed", "failed", "not supported"]


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
            files += sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        elif path.is_file():
            files.append(path)
        else:
            problems.append(Problem(where=str(path), message="no such file or folder"))
    if problems:
        raise InputError(problems)
    if not files:
        raise InputError("there is no .json or .json.xz file in the folders given")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(Problem(where=str(path), message=f"not a JSON file: {error}")) from None
    if not isinstance(content, dict):
        raise InputError(Problem(where=str(path), message="a golden file holds one JSON object"))
    return content


# Losses -----------------------------------------------------------------------------------------


def _check_losses(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    cases = content.get("cases")
    if not isinstance(cases, list) or not any("function" in case for case in cases):
        return None
    return _loss_results(path, cases)


def _loss_results(path: Path, cases: list[dict[str, Any]]) -> Iterator[CaseResult]:
    fixtures = fixtures_beside(path)
    for number, case in enumerate(cases):
        label = f"[{number}] {case.get('fixture', '-')} {case.get('name')} {case.get('hyper', {})}"
        fixture = fixtures.get(str(case.get("fixture")))
        differences = other_differences(fixture, case)
        if differences is None:
            method = golden_method(case)
            if method is not None and fixture is not None:
                differences = loss_differences(method, fixture, case)
        if differences is None:
            known = case.get("fixture") is None or fixture is not None
            reason = "no such objective" if known else f"no fixture {case['fixture']}"
            yield CaseResult(file=path.name, case=label, outcome="not supported", detail=reason)
        else:
            yield _result(path, label, differences)


def _result(path: Path, label: str, differences: list[str]) -> CaseResult:
    outcome: Outcome = "failed" if differences else "passed"
    return CaseResult(file=path.name, case=label, outcome=outcome, detail="; ".join(differences))


# EGU, EGUP and UIPE -----------------------------------------------------------------------------


def _check_worked_examples(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    if "weights_sum_to_one" not in content or "totals" not in content:
        return None
    return _worked_examples(path, content)


def _worked_examples(path: Path, content: dict[str, Any]) -> Iterator[CaseResult]:
    inputs = content["inputs"]
    embeddings = embed(inputs["hidden"], inputs["attention_mask"])
    past = embed(inputs["hidden_prev"], inputs["attention_mask"])
    centre = embed(inputs["retain_hidden"], inputs["retain_attention_mask"]).mean(0)
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
        yield _result(path, name, compare(name, actual, expected))
    for key, expected in content["weights_sum_to_one"].items():
        transform, direction, temperature, k = key.split("|")
        options = EntanglementOptions(
            transform=transform,
            direction=direction,
            temperature=temperature,
            k=float(k.removeprefix("k=")),
        )
        weights = effort(similarities, options).softmax(0)
        yield _result(path, f"weights {key}", compare("weights", weights, expected))
    yield from _narrow_band(path, content["narrow_band"])
    for number, example in enumerate(content["totals"]):
        label = f"total [{number}] {example['base']} k={example['k']} mu={example['mu']}"
        yield _result(path, label, _total_differences(inputs, centre, past, example))
    yield from _uipe_examples(path, content["uipe"])
    for key, expected in content.get("empirical_loss_weights", {}).items():
        yield _result(
            path, f"empirical weights {key}", _empirical_differences(inputs, key, expected)
        )


def _empirical_differences(inputs: Mapping[str, Any], key: str, expected: Any) -> list[str]:
    options = EmpiricalOptions(power=float(key.removeprefix("lambda=")))
    weights = options.weights(nll_outputs(inputs, "nll_real_mean", "ref_nll_real_mean"))
    return compare("weights", weights / weights.mean(), expected)


def _contrast_gradient(inputs: Mapping[str, Any], past: Tensor, centre: Tensor) -> Tensor:
    hidden = tensor(inputs["hidden"]).requires_grad_()
    out = hidden_outputs(hidden, torch.tensor(inputs["attention_mask"]))
    embeddings = sentence_embedding(out)
    contrast = drift_contrast(similarity(embeddings, centre), similarity(embeddings, past))
    (gradient,) = torch.autograd.grad(contrast.mean(), hidden)
    return gradient


def _narrow_band(path: Path, band: Mapping[str, Any]) -> Iterator[CaseResult]:
    similarities = tensor(band["sim"])
    for key, expected in band.items():
        match = re.fullmatch(r"(double_exp|single_exp) k=([\d.]+)", key)
        if match is not None:
            options = EntanglementOptions(
                transform=match[1],  # type: ignore[arg-type]
                k=float(match[2]),
            )
            weights = effort(similarities, options).softmax(0)
            yield _result(path, f"narrow band {key}", compare("weights", weights, expected))


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
            "forget": nll_outputs(inputs, "nll_real_mean", "ref_nll_real_mean"),
            "proxy": nll_outputs(inputs, "nll_proxy_mean", "nll_proxy_mean"),
        }
        state = objective.new_state(len(past))
        if state.entanglement is not None:
            state.entanglement.start(past, centre)
        sums = objective(outputs, state=state)
        value = sums.total(objective.counts(outputs))
        value = value + example["alpha"] * inputs["retain_loss"]
        differences += compare(key, value, example[key])
        if key == "total_EGUP":
            excess = proxy_excess(outputs["forget"].mean_nll(), outputs["proxy"].mean_nll())
            if (excess > 0).tolist() != example["penalty_active"]:
                differences.append(f"penalty fires on {(excess > 0).tolist()}")
    return differences


def _uipe_examples(path: Path, examples: Mapping[str, Any]) -> Iterator[CaseResult]:
    initial = {name: tensor(value) for name, value in examples["initial"].items()}
    unlearned = {name: tensor(value) for name, value in examples["unlearned"].items()}
    norm = update_norm(initial, unlearned)
    yield _result(path, "update norm", compare("norm", norm, examples["update_norm"]))
    for result in examples["results"]:
        actual = extrapolate(initial, unlearned, alpha=result["alpha"])
        differences = []
        for name, expected in result["params"].items():
            differences += compare(name, actual[name], expected)
        yield _result(path, f"UIPE alpha={result['alpha']}", differences)


# Metrics and data -------------------------------------------------------------------------------

_MODELS = {"mia_gradnorm": gradnorm_scores}
"""Scores that need a stored model."""


def _check_metrics(path: Path, content: dict[str, Any]) -> Iterator[CaseResult] | None:
    if not isinstance(content.get("groups"), list):
        return None
    header = content.get("header", {})
    groups = (check_metric_group(group, header, _MODELS) for group in content["groups"])
    return _from_golden(path, groups)


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
                yield _result(path, label, differences + _cut_differences(case))
                if not has_metrics(case["group"]):
                    continue
            for checked in check_metric_group(case, header, _MODELS):
                name = f"{label}: {checked.name.removeprefix(case['group'] + ': ')}"
                yield from _from_golden(path, [[checked._replace(name=name)]])


def _cut_differences(case: Mapping[str, Any]) -> list[str]:
    """What is left of a stored raw generation of MUSE, cut at the marks of its benchmark."""
    if "raw_generation" not in case:
        return []
    raw, expected = case["raw_generation"], case["history"][0]["response"]
    found = cut_text(raw, CUT_AT)
    return [] if found == expected else [f"response: {found!r} instead of {expected!r}"]


_CHECKS: list[Callable[[Path, dict[str, Any]], Iterator[CaseResult] | None]] = [
    _check_losses,
    _check_worked_examples,
    _check_metrics,
    _check_published_logs,
    _check_data,
]
