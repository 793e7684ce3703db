"""The processors that engines run on: names that can key a measurement, and thread counts."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@functools.cache
def cpu_name() -> str:
    """The CPU's name and core count, with family, model and stepping where the system tells them.

    The name alone is often too vague to key a latency: virtual machines say just "AMD EPYC".
    """
    return ", ".join([*_identity(), f"{os.cpu_count()} cores"])


def _identity() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
        name = fields.get("model name") or fields.get("Hardware") or platform.machine()
        details = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
        return [name, *(f"{key} {fields[key]}" for key in details if key in fields)]
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        brand = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return [brand or platform.machine()]
    return [platform.processor() or platform.machine()]


def cuda_name() -> str:
    """The current CUDA device with its compute capability and memory."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gib = properties.total_memory / 2**30
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {gib:.0f} GiB"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch's thread count within an operator, set for a while and then put back."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cuda_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Record what `run` launches on the current CUDA device, to be replayed as one graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is done lazily must be done before recording
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], object] = graph.replay
    return replay
