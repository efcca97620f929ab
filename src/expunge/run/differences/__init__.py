"""Where published codes differ from papers and from each other, and by how much."""

from expunge.run.differences.page import differences_text
from expunge.run.differences.register import DIFFERENCES, SOURCES, Difference, Form, Source

__all__ = ["DIFFERENCES", "SOURCES", "Difference", "Form", "Source", "differences_text"]
