"""The model card: what was done to a model, with which data, and what that does not show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from expunge.core.results import DataSummary, ModelResults, RunManifest, Score
from expunge.models.builtin import BUILTIN

_ORIGINAL = {BUILTIN: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_ROLES = ("base", "target", "unlearned", "retain")
_MARKS = {"higher": "higher is better", "lower": "lower is better", "none": ""}

_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""

_USE_COMBINED = """## Use

The folder holds several models whose logits are combined. With expunge installed:

```python
import expunge.models.combined  # makes transformers know the type
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""

_COMBINED_LIMIT = (
    "The target model is in this folder unchanged: whoever has the folder has what was to be "
    "forgotten. Serve its answers, not its files."
)

_LIMITS = (
    "Unlearning by training is approximate: answers change, but nothing here shows that no trace "
    "of the data is left in the weights.",
    "Answers were generated greedily from the questions as they stand in the data. Sampling, "
    "paraphrased or adversarial prompts, training on related text and quantisation can bring "
    "back what is hidden here.",
    "Abilities that have no row in the table were not measured.",
)


def model_card(manifest: RunManifest, results: Sequence[ModelResults] = ()) -> str:
    """Markdown with YAML front matter for the README.md of a model folder.

    Text from data, models and settings is escaped, and of a path on this machine only the last
    part is told.

    Args:
        manifest: The run that made the model.
        results: What was measured, one per model; several roles become columns of one table.
    """
    parts = [_front_matter(manifest), _headline(manifest)]
    parts += [_method(manifest), _data(manifest.data.values()), _results(results)]
    use = _USE_COMBINED if is_combination(manifest) else _USE
    parts += [use, _limits(manifest, results), _origin(manifest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_combination(manifest: RunManifest) -> bool:
    """Whether the run's model answers with the combined logits of several."""
    post = manifest.method.hyperparameters.get("post") if manifest.method else None
    return isinstance(post, dict) and post.get("result") == "combination"


def escape_markdown(text: object) -> str:
    """`text` on one line, shown as it is by any Markdown renderer, also inside a table."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
    # Would start a heading, a list or a rule where the text opens a line or a list item.
    return re.sub(r"^([-+#=]|\d+(?=[.)](\s|$)))", _escape_start, line)


def _escape_start(match: re.Match[str]) -> str:
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"


def _front_matter(manifest: RunManifest) -> str:
    tags = ["expunge", "unlearning"] if manifest.method else ["expunge"]
    header: dict[str, Any] = {"library_name": "transformers", "tags": tags}
    start = manifest.models.get("base") or manifest.models.get("target")
    name = _ORIGINAL.get(start.path, start.path) if start else ""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        header["base_model"] = name
    return "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---"


def _headline(manifest: RunManifest) -> str:
    if manifest.method is None:
        return f"# {escape_markdown(manifest.name)}\n\nFine-tuned with Expunge."
    return (
        f"# {escape_markdown(manifest.name)}\n\nA language model from which a forget set was "
        f"unlearned with Expunge, method {escape_markdown(manifest.method.notation)}."
    )


def _method(manifest: RunManifest) -> str:
    if manifest.method is None:
        return ""
    lines = ["## Method", ""]
    lines += [f"- {escape_markdown(term)}" for term in manifest.method.terms]
    values = manifest.method.hyperparameters.items()
    lines += [f"- {escape_markdown(f'{key}: {value}')}" for key, value in values]
    return "\n".join(lines) if len(lines) > 2 else ""


def _data(sets: Iterable[DataSummary]) -> str:
    rows = [[data.name, public_name(data.origin), data.num_rows, data.fingerprint] for data in sets]
    if not rows:
        return ""
    return "## Data\n\n" + _table(["set", "origin", "rows", "fingerprint"], rows)


def _results(results: Sequence[ModelResults]) -> str:
    if not results:
        return "## Results\n\nNothing was measured when this model was written."
    order = {role: place for place, role in enumerate(_ROLES)}
    models = sorted(results, key=lambda item: order.get(item.role, len(order)))
    keys = list(dict.fromkeys(key for item in models for key in item.scores))
    rows = [
        [key, *(_cell(item.scores.get(key)) for item in models), _mark(key, models)] for key in keys
    ]
    benchmark = f"Benchmark {models[0].benchmark}, version {models[0].benchmark_version}."
    header = ["score", *(item.role for item in models), ""]
    return f"## Results\n\n{escape_markdown(benchmark)}\n\n{_table(header, rows)}"


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    if score.value is None:
        return f"absent: {score.reason}" if score.reason else "absent"
    return f"{score.value:.4g} (n = {score.n})"


def _mark(key: str, models: Sequence[ModelResults]) -> str:
    better = next(item.scores[key].better for item in models if key in item.scores)
    return _MARKS.get(better, better.replace("_", " "))


def _limits(manifest: RunManifest, results: Sequence[ModelResults]) -> str:
    known = _LIMITS if results else _LIMITS[:1]
    kept = (_COMBINED_LIMIT,) if is_combination(manifest) else ()
    texts = [*(known if manifest.method else ()), *kept, *manifest.notes]
    return (
        "\n".join(["## Limits", "", *(f"- {escape_markdown(t)}" for t in texts)]) if texts else ""
    )


def _origin(manifest: RunManifest) -> str:
    rows: list[list[Any]] = [["started", manifest.started], ["seed", manifest.seed]]
    for role, model in manifest.models.items():
        rows.append([f"{role} model", f"{public_name(model.path)} {model.fingerprint}".strip()])
    rows += [[name, version] for name, version in sorted(manifest.versions.items())]
    return "## Origin\n\n" + _table(["", ""], rows)


def public_name(path: str) -> str:
    """`path`, or only its last part if it is a place on this machine."""
    pure = PurePath(path)
    return pure.name if pure.is_absolute() or path.startswith(("~", "..")) else path


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(c) if c == "---" else escape_markdown(c) for c in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
