"""What a metric declares about itself, and the list of all of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from expunge.core.registry import Registry

Values = NDArray[np.float64]
"""One value per sample; nan where a sample cannot be scored."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A pure function over columns of a per-sample table: one value per sample.

    Attributes:
        name: Name of the function.
        title: What it is called in reports.
        function: The function; positional arguments are columns, keyword-only ones are options.
        reads: Columns it takes, in order. "ROLE:column" is the column of another model on the same
            rows: `retain:` the retain model, `initial:` the model that unlearning started from,
            `base:` the base model.
        optional: Those of `reads` that a table may lack; the function then gets None.
        version: Raised by every change that moves its numbers.
        range: Smallest and largest possible value.
        direction: Which way is good, in words; a benchmark decides for each of its measures.
        source: Where it is defined.
    """

    name: str
    title: str
    function: Callable[..., Values]
    reads: tuple[str, ...]
    optional: tuple[str, ...] = ()
    version: int
    range: tuple[float, float]
    direction: str
    source: str

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def missing(self, columns: Mapping[str, Any]) -> list[str]:
        """Columns it needs and the table lacks."""
        return [name for name in self.reads if name not in columns and name not in self.optional]

    def __call__(self, columns: Mapping[str, Sequence[Any]], **options: Any) -> Values:
        """Values of every sample of a table that has all columns it needs."""
        assert not self.missing(columns), f"{self.name} lacks {self.missing(columns)}"
        return self.function(*(columns.get(name) for name in self.reads), **options)


def _discover() -> None:
    package = importlib.import_module("expunge.metrics")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"expunge.metrics.{module.name}")


metrics: Registry[Metric] = Registry("metric", discover=_discover)
"""Every metric by name."""

F = TypeVar("F", bound=Callable[..., Values])


def metric(
    *,
    title: str,
    reads: tuple[str, ...],
    version: int,
    range: tuple[float, float],
    direction: str,
    source: str,
    optional: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Register a function as a metric; it stays a plain function. See `Metric`."""

    def register(function: F) -> F:
        metrics.add(
            function.__name__,
            Metric(
                name=function.__name__,
                title=title,
                function=function,
                reads=reads,
                optional=optional,
                version=version,
                range=range,
                direction=direction,
                source=source,
            ),
        )
        return function

    return register
