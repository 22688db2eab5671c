"""Figures as a person reads them: three digits that count, and a unit of the right size."""

import math

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SCALES = {
    "s": _SECONDS,
    "bytes": _BINARY,
    "B/s": tuple((size, prefix + "B/s") for size, prefix in _DECIMAL),
    "FLOP/s": tuple((size, prefix + "FLOP/s") for size, prefix in _DECIMAL),
}

DASH = "\N{EN DASH}"


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """The size of the unit to write a value in, and its name; 1 and the unit itself if unknown.

    Args:
        value: the largest of those that are to be written in one unit.
        unit: of the measurement, as "s", "bytes", "tok/s".
    """
    scales = _SCALES.get(unit, ((1.0, unit),))
    written = abs(float(f"{value:.2e}"))  # 999.6 ms are 1 s
    return next((scale for scale in scales if written >= scale[0]), scales[-1 if value else 0])


def quantity(value: float, unit: str) -> str:
    """A value and its unit: "1.23 s", "45.6 ms", "1.5 GiB", "228 tok/s"."""
    size, name = scale_of(value, unit)
    return f"{number(value / size)} {name}".strip()


def span(low: float, middle: float, high: float, unit: str) -> str:
    """From one value to another, in the unit that `quantity` writes the middle one in."""
    size, _ = scale_of(middle, unit)
    return f"{number(low / size)} {DASH} {number(high / size)}"


def number(value: float) -> str:
    """Three digits that count; all digits before the point."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.2e}")
    if rounded and not 1e-3 <= abs(rounded) < 1e9:
        return f"{value:.2e}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    return f"{value:,.{digits}f}".replace("-", "−")


def count(value: float) -> str:
    """A parameter: a whole number without decimals."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time that one waits: "42 s", "8 min 43 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if minutes else f"{rest} s"


def percent(share: float) -> str:
    """A share as percent: "41 %", "4.2 %"."""
    digits = 0 if abs(share) >= 0.0995 or not share else 1
    return f"{share * 100:,.{digits}f} %".replace("-", "−").replace("inf", "∞")


def times(ratio: float) -> str:
    """A ratio: "2.75", "0.55", "18.3"."""
    return f"{ratio:.2f}" if abs(ratio) < 10 else number(ratio)


def change(ratio: float) -> str:
    """What a ratio adds or takes: "+12 %", "−3.1 %"."""
    added = ratio - 1
    return "0 %" if abs(added) < 5e-4 else ("+" if added > 0 else "") + percent(added)


def printable(text: str) -> str:
    """The text without what no document may contain."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
