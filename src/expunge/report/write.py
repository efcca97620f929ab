"""Writing a report: the page, a Markdown summary, and every number as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from expunge.core.files import atomic_write_text
from expunge.report.findings import NO_CERTIFICATE, assumptions, findings
from expunge.report.formats import differences_csv, to_csv, to_latex, to_markdown
from expunge.report.html import render_comparison_html, render_html
from expunge.report.load import load_report
from expunge.report.model import ReportData
from expunge.report.tables import Table, compare_reports, table_of
from expunge.report.text import markdown_text


def write_report(run_folder: Path | str, output: Path | str | None = None) -> Path:
    """Write report.html, report.md and report.csv of one run; returns the path of the page.

    Args:
        run_folder: The run folder.
        output: Folder to write into; the run folder if None.

    Raises:
        InputError: It is not a run folder.
        RunError: The files cannot be written.
    """
    data = load_report(run_folder)
    folder = data.folder if output is None else Path(output)
    atomic_write_text(folder / "report.csv", to_csv(table_of(data)))
    atomic_write_text(folder / "report.md", render_markdown(data))
    page = folder / "report.html"
    atomic_write_text(page, render_html(data))
    return page


def compare(runs: Sequence[Path | str]) -> Table:
    """All models of several runs in one table; what the runs share has one row.

    Raises:
        InputError: One of them is not a run folder.
    """
    return compare_reports([load_report(run) for run in runs])


def write_comparison(runs: Sequence[Path | str], output: Path | str) -> Path:
    """Write comparison.html, .md, .csv and .tex of several runs; returns the path of the page.

    What differs, question by question, is in the first two and in comparison_differences.csv.

    Args:
        runs: The run folders.
        output: Folder to write into.

    Raises:
        InputError: One of them is not a run folder.
        RunError: The files cannot be written.
    """
    reports = [load_report(run) for run in runs]
    table, folder = compare_reports(reports), Path(output)
    atomic_write_text(folder / "comparison.csv", to_csv(table))
    atomic_write_text(folder / "comparison_differences.csv", differences_csv(table))
    atomic_write_text(folder / "comparison.md", to_markdown(table.headlines()))
    atomic_write_text(folder / "comparison.tex", to_latex(table.headlines()))
    page = folder / "comparison.html"
    atomic_write_text(page, render_comparison_html(table, reports))
    return page


def render_markdown(data: ReportData) -> str:
    """Summary, findings, table and limits of one run as GitHub-flavoured Markdown."""
    found = findings(data)
    parts = [
        f"# Unlearning report: {markdown_text(data.name)}",
        markdown_text(found.summary),
        *_section("Shown", map(str, found.shown)),
        *_section("Not shown", map(str, found.not_shown)),
        "## Models",
        "Value and 95% bootstrap interval over questions.",
        to_markdown(table_of(data).measured(), rows="measures"),
        *_section("Could not be measured", map(str, found.gaps)),
        *_section("Not assessed", map(str, found.not_assessed)),
        *_section("Limits of this run", assumptions(data)),
        *_section("Missing", [f"No {absence.what}: {absence.why}." for absence in data.absences]),
        markdown_text(NO_CERTIFICATE),
    ]
    if data.manifest:
        parts += ["## How to rerun", _code(data.manifest.command)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _section(title: str, texts: Iterable[str]) -> list[str]:
    lines = [f"- {markdown_text(text)}" for text in texts]
    return [f"## {title}", "\n".join(lines)] if lines else []


def _code(text: str) -> str:
    """A code block that its content cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"
