"""From a compiler's list of kernels to seconds by fx node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

PROTOCOL = "kernels/12"
"""Version of the way of profiling; figures of different versions must not be mixed."""

RESOLUTION = 1e-6
"""Profilers count in whole microseconds."""
SHORTEST = 1e-7
"""Seconds of a kernel that takes less than a profiler counts."""
OVERHEAD = "[overhead]"
"""Stands in a profile for what a call takes besides its kernels, whatever their widths."""


def typical(seconds: Sequence[float]) -> float:
    """Mean of the fast runs: the fastest quarter, and all that a profiler cannot tell from these.

    Noise only adds time, so the fast runs are the true ones. Their mean resolves more than whole
    microseconds, as long as none is left out for having been rounded up.
    """
    slowest = sorted(seconds)[len(seconds) // 4] + 1.5 * RESOLUTION
    return fmean(figure for figure in seconds if figure <= slowest)


def by_node(seconds: Mapping[str, Sequence[float]], nodes: Mapping[str, str]) -> dict[str, float]:
    """Sum the kernels of each fx node; what no node asked for stays under "[kernel name]".

    Compilers name kernels after their nodes, with what they made of them: "fused" in front, after
    a slash, or "_bn" for what has become of a normalisation.
    """
    total: dict[str, float] = {}
    for kernel, runs in seconds.items():
        origin = kernel.removeprefix("fused ").partition("/")[0].removesuffix("_bn")
        key = nodes.get(kernel) or nodes.get(origin) or f"[{kernel}]"
        total[key] = total.get(key, 0.0) + typical(runs)
    return total
