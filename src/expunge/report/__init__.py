"""Reports from result files: one HTML page per run, comparison tables over several."""

from expunge.report.assessable import NotAssessable, not_assessable, not_assessable_of
from expunge.report.forget_quality import quality_lines
from expunge.report.formats import Grid, console_rows, grid, to_csv, to_latex, to_markdown
from expunge.report.html import render_comparison_html, render_html
from expunge.report.load import load_report
from expunge.report.model import ReportData
from expunge.report.tables import Cell, Column, Table, TableRow, compare_reports, table_of
from expunge.report.write import compare, write_comparison, write_report

__all__ = [
    "Cell",
    "Column",
    "Grid",
    "NotAssessable",
    "ReportData",
    "Table",
    "TableRow",
    "compare",
    "compare_reports",
    "console_rows",
    "grid",
    "load_report",
    "not_assessable",
    "not_assessable_of",
    "quality_lines",
    "render_comparison_html",
    "render_html",
    "table_of",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_comparison",
    "write_report",
]
