"""Numbers as readable text."""

from __future__ import annotations

import math


def readable(value: float, digits: int = 4) -> str:
    """A number as text: 48,600, 516.4, 0.0123; very large or small ones as 3.2e-7; NaN as "-".

    Args:
      value: any number.
      digits: significant digits; digits before the decimal point are always shown.
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    size = math.floor(math.log10(abs(value))) if value else 0
    if not -6 < size < 12:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{_short(mantissa)}e{int(power)}"
    return _short(f"{value:,.{max(digits - 1 - size, 0)}f}")


def _short(text: str) -> str:
    """The number without zeros at the end of its fraction; "0" instead of "-0"."""
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
