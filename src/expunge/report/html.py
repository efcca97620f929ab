"""The self-contained HTML page: everything inline, everything escaped, nothing from the network.

Model output and data are hostile text here. Three fences, each enough on its own for scripts:
autoescape with no exception for data; figures as JSON data blocks that cannot be closed from
inside; and a content security policy that runs only the two scripts whose hashes it names.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from expunge.core.files import jsonable
from expunge.report.assessable import NotAssessable, not_assessable_of
from expunge.report.curves import loss_curves, other_curves
from expunge.report.differences import chance_note
from expunge.report.figure import Figure
from expunge.report.findings import NO_CERTIFICATE, assumptions, findings
from expunge.report.forget_quality import quality_lines
from expunge.report.formats import contrast_grid
from expunge.report.habits import generation_habits
from expunge.report.measures import (
    mark,
    metric_explanation,
    metric_label,
    probe_label,
    split_key,
)
from expunge.report.model import ROLE_MEANINGS, ReportData, role_label
from expunge.report.ratios import truth_ratio_figure
from expunge.report.steering import alpha_figure, stop_figures
from expunge.report.tables import Column, Footnotes, Table, count_text, counts, table_of
from expunge.report.text import DASH, visible
from expunge.report.tradeoff import tradeoff
from expunge.report.views import (
    EXEMPLAR_SOURCES,
    NUM_PROXY_SAMPLES,
    evaluation_rows,
    facts,
    key_figures,
    method_rows,
    proxy_making_text,
    proxy_text,
    sample_sets,
    spread,
)

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTENTS = (
    ("findings", "Findings"),
    ("models", "Models"),
    ("tradeoff", "Trade-off"),
    ("truth-ratios", "Truth ratios"),
    ("training", "Training"),
    ("generations", "Before and after"),
    ("proxies", "Proxy answers"),
    ("not-assessed", "Not assessed"),
    ("limits", "Limits"),
    ("settings", "Settings"),
)


def render_html(data: ReportData) -> str:
    """The page of one run, as a complete HTML document."""
    table = table_of(data).measured()
    trade_offs = tradeoff(table)
    ratios = truth_ratio_figure(data)
    losses, others = loss_curves(data.log), other_curves(data.log)
    steering = [figure for figure in (alpha_figure(data), *stop_figures(data)) if figure]
    run = data.manifest
    habits = [
        (role_label(role), habit)
        for role in data.models
        if (habit := generation_habits(data, role)) is not None
    ]
    figures = [figure for figure in (*trade_offs, ratios, losses, others, *steering) if figure]
    return render_page(
        "report.html.jinja",
        title=f"Unlearning report: {data.name}",
        figures=figures,
        data=data,
        run=run,
        findings=findings(data),
        keys=list(key_figures(data)),
        quality=_quality(data),
        contents=[(a, n) for a, n in _CONTENTS if a != "proxies" or data.proxies is not None],
        table=table,
        footnotes=Footnotes(),
        habits=habits,
        tradeoff=trade_offs,
        tradeoff_reason=_tradeoff_reason(data),
        truth_ratios=ratios,
        truth_ratio_reason=_truth_ratio_reason(data),
        losses=losses,
        others=others,
        steering=steering,
        generations=list(sample_sets(data)),
        proxy_text=proxy_text(data),
        proxy_making=proxy_making_text(data),
        exemplar_source=EXEMPLAR_SOURCES.get(data.proxy_making.exemplar_source, ""),
        proxy_samples=spread(data.proxies or (), NUM_PROXY_SAMPLES),
        assumptions=assumptions(data),
        no_certificate=NO_CERTIFICATE,
        rerun="expunge unlearn config.yaml" if data.method and data.config else None,
        evaluation=evaluation_rows(data),
        facts=list(facts(run)) if run else [],
        config=data.config,
        version=run.versions.get("expunge") if run else None,
        why=_why(data),
    )


def render_comparison_html(table: Table, reports: Sequence[ReportData]) -> str:
    """The page that compares several runs, as a complete HTML document."""
    trade_offs = tradeoff(table)
    return render_page(
        "comparison.html.jinja",
        title=table.caption,
        figures=trade_offs,
        table=table.measured(),
        headlines=table.headlines(),
        warnings=table.notes,
        footnotes=Footnotes(),
        more_footnotes=Footnotes(prefix="all-note-"),
        tradeoff=trade_offs,
        reports=reports,
        no_certificate=NO_CERTIFICATE,
        contrast_grids=[(c, contrast_grid(c)) for c in table.contrasts],
        chance=chance_note(table.contrasts),
        gaps=_gaps(reports),
    )


def _gaps(reports: Iterable[ReportData]) -> list[tuple[str, tuple[NotAssessable, ...]]]:
    """What could not be measured on the models of each run; runs with the same gaps share them."""
    found: dict[tuple[NotAssessable, ...], list[str]] = {}
    for report in reports:
        models = report.models.items()
        gaps = not_assessable_of({role: m.results for role, m in models if m.results})
        found.setdefault(gaps, []).append(report.name)
    return [(", ".join(names), gaps) for gaps, names in found.items() if gaps]


def _why(data: ReportData) -> Callable[..., str]:
    def why(*starts: str) -> str:
        """The reasons noted for things whose name starts so, as one clause."""
        found = [absence.why for absence in data.absences if absence.what.startswith(starts)]
        if starts == ("loss curves",) and data.manifest and data.manifest.method is None:
            return "nothing was unlearned in this run"
        return "; ".join(dict.fromkeys(found)) or "none were stored"

    return why


def _tradeoff_reason(data: ReportData) -> str:
    """The reasons recorded for the values that the trade-off plot lacks."""
    reasons = []
    for model in data.models.values():
        for key in ("model_utility", "forget_quality"):
            score = model.score(key)
            if score is not None and score.value is None and score.reason:
                reasons.append(score.reason.rstrip("."))
    return f"Reasons: {'; '.join(dict.fromkeys(reasons))}." if reasons else ""


def _quality(data: ReportData) -> tuple[str, ...]:
    """The test of the unlearned model in sentences; empty where it has no result."""
    model = data.models.get("unlearned")
    test = model.forget_quality if model else None
    return quality_lines(test) if test is not None and test.p_value is not None else ()


def _truth_ratio_reason(data: ReportData) -> str:
    if not any(data.table(role, "forget") for role in data.models):
        return "no per-sample table of the forget set is stored."
    return "the forget set has no wrong answers to compare the right ones with."


def render_page(template: str, *, title: str, figures: Sequence[Figure], **values: Any) -> str:
    """A template of this package as one self-contained page; texts in it are escaped."""
    environment = _environment()
    scripts = [_plotly(), _asset("app.js")] if figures else []
    return environment.get_template(template).render(
        title=title,
        figures=figures,
        scripts=[Markup(script) for script in scripts],
        style=Markup(_asset("style.css")),
        policy=_policy(scripts),
        dash=DASH,
        meanings=ROLE_MEANINGS,
        **values,
    )


def _policy(scripts: Iterable[str]) -> str:
    """Nothing from anywhere; only the scripts we put in; styles inline, as plotly needs them."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    allowed = hashes or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    if "</script" in script.lower() or "<!--" in script:
        # The HTML parser would end the script there, and the rest would land in the page.
        script = script.replace("</script", r"<\/script").replace("<!--", r"<\!--")
    return script


@functools.cache
def _asset(name: str) -> str:
    from importlib.resources import files

    return files("expunge.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps

    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        count_text=count_text,
        mark=mark,
        method_rows=method_rows,
        metric_label=lambda column: metric_label(split_key(column.key)[1]),
        probe_label=probe_label,
        role_label=role_label,
        shared_counts=_shared_counts,
    )
    environment.filters.update(
        day=lambda time: time.split("T")[0],
        explained=_explained,
        groups=_groups,
        json_block=lambda value: htmlsafe_json_dumps(jsonable(value), allow_nan=False),
    )
    return environment


def _finalize(value: Any) -> Any:
    """Runs on the value of every expression of every template, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shared_counts(table: Table, column: Column) -> tuple[int, int] | None:
    return counts(row.cells[column.key] for row in table.rows)


def _groups(columns: Iterable[Column]) -> list[tuple[str, list[Column]]]:
    """Columns by probe, in their order."""
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(split_key(column.key)[0], []).append(column)
    return list(groups.items())


def _explained(columns: Iterable[Column]) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(split_key(column.key)[1] for column in columns):
        if text := metric_explanation(name):
            yield metric_label(name), text
