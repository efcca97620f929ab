"""Numbers as text, rounded so that the last bits of a machine do not show."""

from __future__ import annotations

import math
from collections.abc import Iterable

NONE = "-"
_NOISE = 1e-9


def number(value: float, digits: int = 4) -> str:
    """`digits` significant digits; 0 for rounding noise."""
    value = _steady(value)
    if math.isnan(value):
        return NONE
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text else text


def difference(value: float, plain: float) -> str:
    """How far a value is from the plain one, in percent; as a multiple from tenfold on."""
    value, plain = _steady(value), _steady(plain)
    if plain == 0:
        return "0" if value == 0 else NONE
    relative = _steady((value - plain) / abs(plain))
    if abs(relative) >= 9:
        return f"x {number(value / plain, 3)}"
    percent = number(100 * relative, 3)
    return "0" if abs(relative) < _NOISE else f"{'+' if relative > 0 else ''}{percent}%"


def differences(pairs: Iterable[tuple[float, float]]) -> str:
    """From the smallest to the largest difference of pairs of value and plain value."""
    kept = [(value, plain) for value, plain in pairs if _steady(plain)]
    kept.sort(key=lambda pair: (pair[0] - pair[1]) / abs(pair[1]))
    ends = [difference(*pair) for pair in (kept[0], kept[-1])] if kept else [NONE]
    return " to ".join(dict.fromkeys(ends))


def cosine(value: float) -> str:
    """Four decimals; 1 only for the same direction up to rounding noise."""
    if math.isnan(value):
        return NONE
    if value > 0.99995:
        return "1" if abs(value - 1) < _NOISE else ">0.9999"
    return f"{round(_steady(value), 4) + 0.0:.4f}"


def cosines(values: Iterable[float]) -> str:
    """From the smallest to the largest cosine."""
    kept = [value for value in values if not math.isnan(value)]
    return " to ".join(dict.fromkeys(map(cosine, (min(kept), max(kept))))) if kept else NONE


def ratio(value: float) -> str:
    """Ratio of two norms; says in words where one of them is 0."""
    if math.isinf(value):
        return "plain is 0"
    return number(value, 3)


def span(values: Iterable[float], digits: int = 3) -> str:
    """From the smallest to the largest; `-` without any."""
    kept = [_steady(value) for value in values if math.isfinite(value)]
    ends = [number(end, digits) for end in (min(kept), max(kept))] if kept else []
    return " to ".join(dict.fromkeys(ends)) if ends else NONE


def _steady(value: float) -> float:
    """The value without its last digits: a tie then rounds the same way everywhere."""
    if not math.isfinite(value):
        return value
    return 0.0 if abs(value) < 1e-12 else float(f"{value:.10g}")
