"""How related facts hang together in the models of an experiment, measured and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.files import atomic_write_json
from expunge.core.results import Score
from expunge.data.related import Arm, load_related
from expunge.evaluation.gradient_relations import (
    FactPairs,
    pair_facts,
    relation_cosines,
    update_projections,
)
from expunge.evaluation.measures import score_of
from expunge.metrics.aggregate import Estimate
from expunge.run.config import RunConfig
from expunge.run.folder import RunFolder, read_manifest

if TYPE_CHECKING:
    from expunge.run.ui import Ui

RELATIONS = "relations.json"
GRADIENT_FACTS = 4
"""Targets whose gradients are compared: each costs a backward pass per related row and control."""


def write_relations(config: RunConfig, arms: Sequence[Arm], facts: Path, ui: Ui) -> Path:
    """Gradient cosines and update projections of every arm; returns the file.

    UIPE (arXiv:2503.04693), section 4. Cosines are those of the arm's target model; projections
    those of its update by unlearning. An arm that is in the file already is not measured again.

    Args:
        config: The scenario.
        arms: Its arms, finished.
        facts: Folder of the facts.
        ui: Where progress and the table go.
    """
    folder = Path(config.output_dir)
    path = folder / RELATIONS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sets = load_related(facts)
    pairs = pair_facts(sets.target, sets.related, sets.unrelated)[:GRADIENT_FACTS]
    for arm in arms:
        run = RunFolder(path=folder / arm.name)
        manifest = read_manifest(run)
        target = manifest.models["target"] if manifest else None
        if target is None or known.get(arm.name, {}).get("target") == target.fingerprint:
            continue
        known[arm.name] = {
            "target": target.fingerprint,
            "facts": len(pairs),
            **_measured(config, target.path, str(run.model), pairs, ui),
        }
        atomic_write_json(path, known)
    columns = ["arm", "gradients of targets and ...", "cosine", "share of the update along them"]
    ui.table("Related knowledge", columns, list(_lines(known)))
    return path


def _measured(
    config: RunConfig, target: str, unlearned: str, pairs: Sequence[FactPairs], ui: Ui
) -> dict[str, dict[str, dict[str, object]]]:
    from expunge.models.loading import load_model, load_tokenizer
    from expunge.models.tensors import FolderTensors
    from expunge.run.check_data import build_template

    model = load_model(target, dtype="float32")
    template = build_template(config.template, load_tokenizer(target))
    end = FolderTensors(Path(unlearned))
    parameters = {name: end[name] for name, _ in model.named_parameters()}
    cosines = relation_cosines(model, template, pairs, on_progress=ui.progress)
    found = update_projections(model, parameters, template, pairs, on_progress=ui.progress)
    return {
        "gradient_cosine": _scores(cosines.summary(), "cosine of gradients"),
        "projection_share": _scores(found.shares.summary(), "share of the update's norm"),
        "projection_cosine": _scores(found.cosines.summary(), "cosine of update and gradient"),
    }


def _scores(summary: Mapping[str, Estimate], unit: str) -> dict[str, dict[str, object]]:
    def record(found: Estimate) -> Score:
        return score_of(found, better="none", unit=unit, version=1)

    return {group: record(found).model_dump(mode="json") for group, found in summary.items()}


def _lines(known: Mapping[str, Any]) -> Iterator[list[str]]:
    for arm, found in known.items():
        for group in ("related", "unrelated", "difference"):
            cells = [
                _cell(found[kind].get(group)) for kind in ("gradient_cosine", "projection_share")
            ]
            yield [arm, group, *cells]


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None or score["value"] is None:
        return "-"
    low, high = score["low"], score["high"]
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{score['value']:.3f}{interval}, n = {score['n']}"
