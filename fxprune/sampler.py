"""Samples of an engine's latency: the clock that is read, and the calls that make a sample.

Which clock is read matters more than any statistics.  With one thread the CPU time of the process
is not charged for what neighbours take from a shared machine; wall-clock time is, and is used only
where work is spread over threads.  On CUDA, events on the current stream are read.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from types import MappingProxyType

import torch
from torch import Tensor

from fxprune.backends.base import Engine, failure
from fxprune.backends.devices import torch_threads
from fxprune.errors import FxpruneError
from fxprune.measurement import Clock

CPU_CLOCKS = MappingProxyType({"cpu": time.process_time_ns, "wall": time.perf_counter_ns})

WARM_UP_CALLS = 3
"""Before the first sample, at least."""
SHORTEST_SAMPLE = 200e-6
"""Seconds: shorter calls are timed several at once, since reading a clock takes about 1 us."""
RESOLUTION = 1e-9
"""Seconds: what a coarse clock counts as nothing takes this long."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Takes samples of one engine.

    timed: seconds per call, of as many calls as it is given.
    calls: calls in one sample.
    """

    timed: Callable[[int], float]
    calls: int = 1

    @staticmethod
    def of(run: Callable[[], object], clock: Clock) -> Sampler:
        """Samples of one call each."""
        return Sampler(
            partial(_on_cuda, run) if clock == "cuda" else partial(_on_cpu, CPU_CLOCKS[clock], run)
        )

    def long_enough(self, fastest: float) -> Sampler:
        """Samples of as many calls as the clock needs, if one takes so many seconds."""
        return replace(self, calls=ceil(SHORTEST_SAMPLE / fastest))

    def warm_up(self, seconds: float = 0.0) -> float:
        """Call it for so long, a few times at least; seconds of the fastest call."""
        stop = time.perf_counter() + seconds
        fastest, calls = self.sample(), 1
        while calls < WARM_UP_CALLS or time.perf_counter() < stop:
            fastest, calls = min(fastest, self.sample()), calls + 1
        return fastest

    def sample(self) -> float:
        """Seconds per call."""
        return max(self.timed(self.calls), RESOLUTION)


def clock_of(engine: Engine, inputs: Sequence[Tensor]) -> Clock:
    """CPU time for one thread, wall-clock time for more, events on CUDA."""
    if any(tensor.is_cuda for tensor in inputs):
        return "cuda"
    return "cpu" if engine.settings.threads == 1 else "wall"


@contextmanager
def undisturbed(engines: Iterable[Engine], threads: int) -> Iterator[None]:
    """So many threads, no garbage collection; what engines raise becomes a `BackendError`."""
    with torch_threads(threads), _no_garbage_collection(), _failures_of(engines):
        yield


def _on_cpu(read: Callable[[], int], run: Callable[[], object], calls: int) -> float:
    start = read()
    for _ in range(calls):
        run()
    return (read() - start) * 1e-9 / calls


def _on_cuda(run: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds * 1e-3 / calls


@contextmanager
def _failures_of(engines: Iterable[Engine]) -> Iterator[None]:
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        names = ", ".join(sorted({engine.name for engine in engines}))
        raise failure("run what is measured", f"backend {names}", error) from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
