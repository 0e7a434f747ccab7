"""Numbers as people write them."""

from __future__ import annotations

import math


def readable(value: float, digits: int = 4) -> str:
    """48,600, 516.4, 0.0123; only what is very large or small as 3.2e-7; NaN as "-".

    Args:
      value: any number.
      digits: significant digits; those before the point are all shown.
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    size = math.floor(math.log10(abs(value))) if value else 0
    if not -6 < size < 12:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{_short(mantissa)}e{int(power)}"
    return _short(f"{value:,.{max(digits - 1 - size, 0)}f}")


def _short(text: str) -> str:
    """Without zeros at the end of the fraction, and without a minus before nothing."""
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
