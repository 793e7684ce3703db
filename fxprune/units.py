"""Quantities as people read and write them: seconds, MACs, parameters and bytes.

Decimal prefixes throughout (1 MB is 10**6 bytes), as in the data sheets of accelerators; the binary
ones (KiB, MiB, GiB) are understood when written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Resource = Literal["latency", "macs", "params", "memory", "activations"]

_PREFIXES: Final = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))

FACTORS: Final[Mapping[str, tuple[Resource, float]]] = {
    **{unit: ("latency", f) for unit, f in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6))},
    "μs": ("latency", 1e-6),  # the Greek letter, beside the micro sign
    **{f"{p.lower()}macs": ("macs", f) for p, f in _PREFIXES},
    **{f"{p.lower()}params": ("params", f) for p, f in _PREFIXES},
    **{f"{p.lower()}parameters": ("params", f) for p, f in _PREFIXES},
    **{f"{p.lower()}b": ("memory", f) for p, f in _PREFIXES},
    **{f"{p}ib": ("memory", f) for p, f in (("k", 2.0**10), ("m", 2.0**20), ("g", 2.0**30))},
    **{f"{p.lower()}bactivations": ("activations", f) for p, f in _PREFIXES},
    **{
        f"{p}ibactivations": ("activations", f)
        for p, f in (("k", 2.0**10), ("m", 2.0**20), ("g", 2.0**30))
    },
}
"""Lower-case unit -> what it counts, and how many of the base unit (s, 1, 1, bytes) it is."""

BASE_UNITS: Final[Mapping[str, str]] = {
    "latency": "s",
    "macs": "MACs",
    "params": "parameters",
    "memory": "bytes",
    "activations": "bytes",
}

NAMES: Final[Mapping[str, str]] = {
    "latency": "latency",
    "macs": "MACs",
    "params": "parameters",
    "memory": "weight memory",
    "activations": "activation memory",
}


def format_seconds(seconds: float) -> str:
    """`0.0123` -> `12.3 ms`: three significant digits in s, ms or µs."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} µs"


def format_count(count: float) -> str:
    """`1_234_000` -> `1.23 M`: three significant digits with a decimal prefix."""
    for prefix, factor in _PREFIXES:
        if abs(count) >= factor * 0.9995 and factor > 1:
            return f"{_three_digits(count / factor)} {prefix}"
    return f"{count:g}"


def format_bytes(count: float) -> str:
    """`20_500_000` -> `20.5 MB`."""
    text = format_count(count)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def format_resource(resource: Resource, amount: float) -> str:
    """An amount of a resource in its own unit, for messages and tables."""
    if resource == "latency":
        return format_seconds(amount)
    if resource in ("memory", "activations"):
        return format_bytes(amount)
    unit = "MACs" if resource == "macs" else "parameters"
    text = format_count(amount)
    glue = "" if resource == "macs" and text[-1].isalpha() else " "
    return f"{text}{glue}{unit}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
