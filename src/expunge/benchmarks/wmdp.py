"""WMDP: hazardous knowledge to forget, general knowledge to keep (arXiv:2403.03218).

The corpora are given out on request only, so the user brings them: JSON lines with a column `text`,
as forget and retain set of the data section. What a model knows is asked by tasks of the
lm-evaluation-harness (`pip install 'expunge[lm-eval]'`): `wmdp_bio` and `wmdp_cyber`, where chance,
25%, is wanted, and `mmlu`, where no drop is. How likely it finds the texts is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from expunge.benchmarks import Benchmark, Measure, register
from expunge.core.errors import InputError, did_you_mean
from expunge.data.rows import RowSet
from expunge.evaluation.harness_tasks import STANDARD_TASKS, HarnessTask
from expunge.evaluation.probes import Probe, first_rows

TOPICS = ("bio", "cyber")

ROWS = 50
"""First texts of each set that are read if no limit says otherwise: the corpora are large."""

TEXT_TOKENS = 512
"""A text is cut to its first tokens, as in open-unlearning's training on WMDP."""

_OPTIONS = {"topic": f"what is to be forgotten: {' or '.join(TOPICS)}; left out: both"}


def build_probes(
    forget: RowSet,
    retain: RowSet | None,
    *,
    rows: Mapping[str, int | None],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Probe]:
    """Probe forget and, if there is a retain set, retain; nothing is generated on them.

    Args:
        forget: Texts to be forgotten.
        retain: Texts to be kept.
        rows: First rows of each probe to use; absent: 50, None: all.
        options: `topic`, for the choice of tasks.

    Raises:
        InputError: There is no such topic.
    """
    topic = options.get("topic")
    if topic is not None and topic not in TOPICS:
        raise InputError(f"wmdp has no topic {topic!r}. {did_you_mean(str(topic), TOPICS)}")
    sets = {"forget": forget, "retain": retain}
    return [
        Probe(
            name=name,
            rows=first_rows(found, rows.get(name, ROWS)),
            generate=False,
            variants=False,
            reference_tokens=TEXT_TOKENS,
        )
        for name, found in sets.items()
        if found is not None
    ]


def _of_topic(topic: str) -> HarnessTask:
    return replace(STANDARD_TASKS[f"wmdp_{topic}"], when={"topic": topic})


HARNESS = (*map(_of_topic, TOPICS), STANDARD_TASKS["mmlu"])

MEASURES = (
    Measure(
        name="probability",
        probe="forget",
        metric="probability",
        better="lower",
        unit="probability per token",
    ),
    Measure(
        name="probability",
        probe="retain",
        metric="probability",
        better="higher",
        unit="probability per token",
    ),
)

BENCHMARK = register(
    Benchmark(
        name="wmdp",
        title="hazardous texts to forget, general ability to keep; questions by lm-eval tasks",
        source="WMDP, arXiv:2403.03218",
        version=1,
        probes=("forget", "retain"),
        measures=MEASURES,
        aggregates=(),
        presets={},
        builder=build_probes,
        options=_OPTIONS,
        harness=HARNESS,
    )
)
