"""Builds a run folder with the real result models and pyarrow, hostile on demand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from expunge.core.files import append_jsonl
from expunge.core.fingerprint import fingerprint
from expunge.core.results import (
    DataSummary,
    ForgetQuality,
    MethodSummary,
    ModelResults,
    ModelSummary,
    RunManifest,
    Score,
)
from expunge.data.proxies import texts_key

HOSTILE: dict[str, str] = {
    "script": "<script>alert(1)</script>",
    "closing": "</script></textarea></style></title>--><script>alert(2)</script>",
    "image": '<img src=x onerror="alert(3)"><svg/onload=alert(4)>',
    "attribute": '" onmouseover="alert(5)" x=\'',
    "link": '<a href="javascript:alert(6)">x</a> [x](javascript:alert(7))',
    "template": "{{7*7}} {% raw %} ${7*7} %{x} #{7*7}",
    "unbroken": "W" * 10_000,
    "right_to_left": "اسمي خالد وأعيش في الكويت \u202eevil\u202c שלום",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \U0001f9d1\u200d\U0001f680",
    "markdown": "| a | b |\n| --- | --- |\n# head *bold* `code` <b>x</b>",
    "latex": r"50% of $x_1^2$ & #3 \input{/etc/passwd} ~ {x}",
    "control": "nul\x00 bell\x07 escape\x1b[31m del\x7f c1\x85 line\u2028sep",
    "formula": '=HYPERLINK("http://evil.example","x")',
    "comment": "<!-- <!--<script> ]]> &lt;b&gt; &amp;#60;",
}

VERSIONS = {"expunge": "0.1.0", "python": "3.11.2", "torch": "2.9.0", "transformers": "5.2.0"}
CREATED = "2026-11-21T10:00:00+00:00"
NUM_FORGET = 40

# Location of log truth ratios, ROUGE-L recall and probability per role: what one run looks like.
LEVELS: Mapping[str, tuple[float, float, float]] = {
    "base": (-0.05, 0.31, 0.12),
    "target": (-0.9, 0.88, 0.81),
    "unlearned": (-0.18, 0.36, 0.16),
    "retain": (-0.1, 0.34, 0.14),
}


@dataclass
class RunBuilder:
    """Writes one run folder; every part can be left out or replaced."""

    folder: Path
    name: str = "demo"
    method: str | None = "EGUP(NPO+GD, k=1, mu=0.001)"
    roles: Sequence[str] = ("base", "target", "unlearned", "retain")
    hostile: Sequence[str] = ()
    num_steps: int = 30
    proxies: bool = True
    seed: int = 0
    shift: float = 0.0
    overrides: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest().save(self.folder / "run.json")
        config = {"name": self.name, "seed": self.seed, "method": {"name": self.method}}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        for step in range(1, self.num_steps + 1):
            append_jsonl(self.folder / "log.jsonl", self.log_line(step))
        for role in self.roles:
            self.evaluation(role)
        if self.proxies:
            for i in range(NUM_FORGET):
                append_jsonl(self.folder / "proxies.jsonl", self.proxy(i))
            self.proxy_making()
        return self.folder

    def hostile_text(self, i: int, usual: str) -> str:
        return self.hostile[i % len(self.hostile)] if self.hostile else usual

    def manifest(self) -> RunManifest:
        hostile = self.hostile_text(0, "")
        model = {"dtype": "bfloat16", "num_parameters": 134_515_008}
        values: dict[str, Any] = {
            "name": self.name + hostile,
            "command": "expunge demo" + hostile,
            "status": "finished",
            "started": CREATED,
            "finished": "2026-11-21T10:08:12+00:00",
            "seconds": {"finetune": 201.4, "unlearn": 93.0, "evaluate": 178.25},
            "peak_memory_bytes": 3_435_973_837,
            "method": MethodSummary(
                notation=self.method + hostile,
                terms=["forget/npo: weight 1.0, beta 0.1", "retain/nll: weight 1.0" + hostile],
                hyperparameters={
                    "notation": self.method,
                    "terms": [{"name": "forget/npo", "weight": 1.0}],
                    "entanglement": {"k": 1, "granularity": "sample" + hostile},
                    "proxy": {"mu": 0.001, "direction" + hostile: hostile},
                    "needs_reference": True,
                    "papers": ["arXiv:2404.05868", "arXiv:2508.20443"],
                },
            )
            if self.method
            else None,
            "data": {
                "forget": DataSummary(
                    name="forget",
                    origin="tofu:forget01" + hostile,
                    num_rows=NUM_FORGET,
                    fingerprint="0d4be7de6c0f8f3f",
                ),
                "retain": DataSummary(
                    name="retain",
                    origin="tofu:retain99[0:120]",
                    num_rows=120,
                    fingerprint="93a1c7de6c0f8f3f",
                ),
            },
            "models": {
                "base": ModelSummary(path="builtin:smollm2-135m-instruct", **model),
                "target": ModelSummary(path="cache/models/ab12", fingerprint="ab12", **model),
                "unlearned": ModelSummary(
                    path="model" + hostile, fingerprint="cd34", num_trainable=2_442_240, **model
                ),
                "retain": ModelSummary(path="cache/models/ef56", fingerprint="ef56", **model),
            },
            "config": {
                "name": self.name,
                "seed": self.seed,
                "evaluation": {"rows": {"retain": 30, "forget": None}, "retain_run": None},
            },
            "versions": VERSIONS,
            "machine": {"processor": "x86_64", "cores": 2, "memory": "16 GiB"},
            "seed": self.seed,
            "diagnostics": {
                "alpha_search": {
                    "alpha": 0.75,
                    "budget": 0.98,
                    "bounded": False,
                    "curve": [
                        {"alpha": 0.0, "utility": 0.997},
                        {"alpha": 0.75, "utility": 0.981},
                        {"alpha": 1.0, "utility": 0.953},
                    ],
                },
                "stop_checks": [
                    {"step": 5, "proxy_gap": -1.2, "utility": 0.999, "reason": ""},
                    {"step": 10, "proxy_gap": 0.1, "utility": 0.99, "reason": "far" + hostile},
                ],
            },
            "notes": ["A slice of 8 authors was used to keep the demo short." + hostile],
        }
        return RunManifest(**(values | self.overrides))

    def log_line(self, step: int) -> dict[str, Any]:
        decay = float(np.exp(-step / 10))
        return {
            "step": step,
            "epoch": step / 6,
            "total": 1.4 * decay + 0.2,
            "terms": {
                "forget/npo" + self.hostile_text(0, ""): 1.2 * decay,
                "retain/nll": 0.2 + 0.02 * np.sin(step),
                "proxy_penalty": 0.001 * step,
            },
            "learning_rate": 1e-4 * (1 - step / 30),
            "grad_norm": 2.0 * decay + 0.3,
            "seconds": 2.9,
            "extra": {"penalty_active": step % 5, "weight_min": 0.4, "weight_max": 0.6},
        }

    def evaluation(self, role: str) -> None:
        folder = self.folder / "evaluation" / role
        folder.mkdir(parents=True)
        self.results(role).save(folder / "results.json")
        for probe, num in (("forget", NUM_FORGET), ("retain", 30)):
            pq.write_table(self.table(role, probe, num), folder / f"{probe}.parquet")

    def results(self, role: str) -> ModelResults:
        _, rouge, probability = LEVELS[role]
        rouge += self.shift if role == "unlearned" else 0.0

        def score(value: float, better: str, unit: str, n: int = NUM_FORGET) -> Score:
            low, high = max(value - 0.06, 0), min(value + 0.06, 1)
            return Score(value=value, n=n, low=low, high=high, better=better, unit=unit)

        gap = "closer_to_retain"
        test, as_score = self.test(role)
        return ModelResults(
            role=role,
            model=f"model of {role}",
            model_fingerprint=f"{role}-weights",
            benchmark="tofu",
            benchmark_version=1,
            scores={
                "forget/rouge_l_recall": score(rouge, gap, "ROUGE-L recall"),
                "forget/probability": score(probability, gap, "probability"),
                "forget/truth_ratio": score(0.7, "none", "min(r, 1/r)"),
                "retain/rouge_l_recall": score(0.8 if role != "base" else 0.3, "higher", "", 30),
                "retain/probability": score(0.75 if role != "base" else 0.1, "higher", "", 30),
                "real_authors/rouge_l_recall": Score(
                    value=0.45, n=29, unscored=1, low=0.3, high=0.6, better="higher"
                ),
                "model_utility": score(0.4 if role == "base" else 0.55, "higher", "", 90),
                "forget_quality": as_score,
            },
            forget_quality=test,
            settings={
                "preset": "tofu",
                "metric_options": {},
                "rows": {"forget": NUM_FORGET, "retain": 30},
                "template": {"name": "chat" + self.hostile_text(0, "")},
                "max_new_tokens": 64,
            },
            created=CREATED,
            versions=VERSIONS,
        )

    def test(self, role: str) -> tuple[ForgetQuality, Score]:
        from scipy.stats import ks_2samp

        if role == "retain" or "retain" not in self.roles:
            why = "it is the retain model" if role == "retain" else "there is no retain model"
            return ForgetQuality(reason=why), Score(n=0, reason=why, better="higher")
        result = ks_2samp(self.truth_ratios(role), self.truth_ratios("retain"))
        p_value = float(result.pvalue)
        test = ForgetQuality(
            p_value=p_value,
            statistic=float(result.statistic),
            n=NUM_FORGET,
            m=NUM_FORGET,
            log10_p=float(np.log10(p_value)),
        )
        return test, Score(value=p_value, n=NUM_FORGET, better="higher", unit="p-value")

    def truth_ratios(self, role: str) -> np.ndarray:
        rng = np.random.default_rng(list(LEVELS).index(role))
        shift = self.shift if role == "unlearned" else 0.0
        return np.exp(rng.normal(LEVELS[role][0] - shift, 0.35, NUM_FORGET))

    def table(self, role: str, probe: str, num: int) -> pa.Table:
        usual = f"{role} answers something about the author, in a sentence of some length"
        ratios = np.resize(self.truth_ratios(role), num)
        return pa.table(
            {
                "index": list(range(num)),
                "question": [
                    self.hostile_text(i + 1, f"What is fact number {i} of {probe}?")
                    for i in range(num)
                ],
                "answer": [self.hostile_text(i + 2, f"The true answer {i}.") for i in range(num)],
                "prompt_tokens": [20] * num,
                "answer_logps": [[-1.0, -1.5]] * num,
                "paraphrase_logps": [[-1.0, -1.4]] * num,
                # Two wrong answers whose mean log-probabilities give exactly the wanted ratio.
                "perturbed_logps": [
                    [[-1.2 + np.log(r) + 0.1] * 3, [-1.2 + np.log(r) - 0.1]] for r in ratios
                ],
                "generation": [self.hostile_text(i, f"{usual} {i}.") for i in range(num)],
                "generation_tokens": [14] * num,
                "finished": [i % 7 != 0 for i in range(num)],
            }
        )

    def proxy(self, i: int) -> dict[str, Any]:
        answer = self.hostile_text(i, f"A made-up answer {i}.")
        return {
            "id": f"{i:016x}",
            "question": self.hostile_text(i + 1, f"What is fact number {i} of forget?"),
            "answer": f"The true answer {i}.",
            "proxy_answer": answer,
            "generator": "in_context",
            "status": "accepted",
            "attempts": 1,
            "rejected": [],
            "made": fingerprint(answer) if i else "edited since",
        }

    def proxy_making(self) -> None:
        """The exemplars and the figures beside the proxy file."""
        exemplars = [
            {
                "question": self.hostile_text(i, f"What is fact number {i} of retain?"),
                "informed_answer": self.hostile_text(i + 1, f"The kept answer {i}."),
                "uninformed_answer": self.hostile_text(i + 2, f"A guess {i}."),
            }
            for i in range(len(self.hostile) or 3)
        ]
        model = "a/writer" + self.hostile_text(0, "")
        shown = {"key": "0a", "source": "base_model", "model": model, "exemplars": exemplars}
        write_json(self.folder / "proxies.exemplars.json", shown)
        proxies = [self.proxy(i)["proxy_answer"] for i in range(NUM_FORGET)]
        summary = {
            "attempts": 57,
            "num_rejected": 17,
            "parse_failures": 4,
            "retried": 12,
            "mean_nll_proxies": 2.25,
            "mean_nll_truths": 2.75,
            "nll_model": "a/base" + self.hostile_text(1, ""),
        }
        quality = {"texts": texts_key(proxies), "model": model, "summary": summary}
        write_json(self.folder / "proxies.quality.json", quality)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
