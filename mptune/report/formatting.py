"""Numbers as text, the same in the terminal, the report and the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

SCALES = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
UNITS = ("s", "min", "h", "d")


def minus(value: float, digits: int) -> str:
    """Fixed-point with a true minus sign, and no negative zero; `–` if the value is not finite."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    negative = text.startswith("-") and float(text) != 0
    return ("−" if negative else "") + text.lstrip("-")


def count(value: float, scales: Sequence[tuple[float, str]] = SCALES) -> str:
    """Three significant digits with the name of a power of ten.

    >>> count(1_234_567), count(999), count(45_600)
    ('1.23 M', '999', '45.6 k')
    """
    for size, suffix in scales:
        if value >= 0.9995 * size:
            return f"{_three(value / size)}{suffix}"
    return _three(value)


def _three(value: float) -> str:
    digits = 0 if value >= 99.95 or value == int(value) else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def power(value: float) -> str:
    """Two digits and a power of ten, for FLOPs; a dash unless positive and finite.

    >>> power(3.14e15)
    '3.1 × 10¹⁵'
    """
    if not math.isfinite(value) or value <= 0:
        return "–"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{raised(exponent)}"


def raised(exponent: str) -> str:
    """An exponent in superscript digits, without leading zeros."""
    return str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def rate(value: float) -> str:
    """A mask rate in percent; laws extrapolated far outside their data give rates near 0.

    >>> rate(0.15), rate(0.2534), rate(3e-22)
    ('15 %', '25.3 %', '< 0.1 %')
    """
    return f"{100 * value:.3g} %" if value >= 0.001 else "< 0.1 %"


def duration(seconds: float, units: Sequence[str] = UNITS) -> str:
    """The two largest units.

    >>> duration(42), duration(200), duration(4000), duration(200_000)
    ('42 s', '3 min 20 s', '1 h 06 min', '2 d 07 h')
    """
    s = round(seconds)
    second, minute, hour, day = units
    if s < 60:
        return f"{s} {second}"
    if s < 3600:
        return f"{s // 60} {minute} {s % 60:02d} {second}"
    if s < 86400:
        return f"{s // 3600} {hour} {s % 3600 // 60:02d} {minute}"
    return f"{s // 86400} {day} {s % 86400 // 3600:02d} {hour}"


def about(seconds: float) -> str:
    """An estimated duration: only its largest unit if it is below an hour.

    >>> about(42.3), about(200), about(4000)
    ('42 s', '3 min', '1 h 06 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else duration(seconds)


def interval(value: float, half_width: float, digits: int = 0) -> str:
    """Value ± half-width, with the digits that the half-width supports but at least `digits`.

    >>> interval(-1.52345, 0.0123)
    '−1.523 ± 0.012'
    """
    if not math.isfinite(half_width):
        return minus(value, 3)
    digits = max(digits, decimals(half_width))
    return f"{minus(value, digits)} ± {half_width:.{digits}f}"


def per_token(value: float, half_width: float) -> str:
    """A score in nats per token, with at least three digits: scores of one study are close."""
    return interval(value, half_width, 3)


def decimals(half_width: float) -> int:
    """Digits after the point that a half-width supports: two digits if it starts with 1 or 2.

    >>> decimals(0.9), decimals(0.12), decimals(34.0)
    (1, 2, 0)
    """
    if not half_width or not math.isfinite(half_width):
        return 3
    exponent = math.floor(math.log10(half_width))
    leading = half_width / 10.0**exponent
    return min(6, max(0, (1 if leading < 3 else 0) - exponent))
