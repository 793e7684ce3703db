"""Measuring latency: how every figure and every table entry is taken.

Calls are repeated until the spread is small enough; if time runs out first, the measurement says
that it has not converged.  What the samples come to is told in `fxprune.measurement`.

Which clock is read matters more than any statistics.  With one thread the CPU time of the process
is not charged for what neighbours take from a shared machine; wall-clock time is, and is used only
where work is spread over threads.  On CUDA, events on the current stream are read.

What is to be compared is measured together, turn by turn and in random order, so that drifts of the
machine hit all alike (`measure_interleaved`).  Turns are short, so that slow networks have several
of them in the time; ratios repeat about as well as those of long turns (`python -m
benchmarks.noise`).  A turn begins with calls that are not counted: a network that is called right
after another one finds the caches full of the other's weights, and takes up to a third longer than
it does in service.  Where one thread works, its samples wait for moments in which no neighbour
slows the core down (`fxprune.quiet`).
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from fxprune.backends.base import Engine, failure
from fxprune.backends.devices import torch_threads
from fxprune.errors import FxpruneError
from fxprune.measurement import Clock, Measurement, common, spread
from fxprune.quiet import Patience

CPU_CLOCKS = MappingProxyType({"cpu": time.process_time_ns, "wall": time.perf_counter_ns})

PROTOCOL = "p10/5"
"""Version of the way of measuring; figures of different versions must not be mixed."""
IN_TURN = "turns/4"
"""The same for networks that are measured in turn."""

WARM_UP_CALLS = 3
"""Before the first turn, at least."""
TURN_SECONDS = 0.05
"""How long one turn of the slowest engine is to be; the others take as many samples."""
SHORTEST_SAMPLE = 200e-6
"""Seconds: shorter calls are timed several at once, since reading a clock takes about 1 us."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure.

    tolerance: the spread at which to stop (0.01 is 1 %).
    min_samples: samples of each engine to take at least.
    max_seconds: time after which to stop in any case, for each engine; what goes by with waiting
        for quiet moments counts.
    warm_up: seconds to run an engine before each of its turns, and one call at least
        (`python -m benchmarks.warm_up`).
    turns: turns of each engine to take at least, where several are compared.
    clock: "auto" reads CPU time for one thread, wall-clock time for more, events on CUDA.
    """

    tolerance: float = 0.01
    min_samples: int = 30
    max_seconds: float = 10.0
    warm_up: float = 0.05
    turns: int = 15
    clock: Clock | Literal["auto"] = "auto"


def measure(engine: Engine, inputs: Sequence[Tensor], timing: Timing | None = None) -> Measurement:
    """The latency of one engine on these inputs."""
    return measure_interleaved({"engine": (engine, inputs)}, timing)["engine"]


def measure_interleaved(
    engines: Mapping[str, tuple[Engine, Sequence[Tensor]]], timing: Timing | None = None
) -> dict[str, Measurement]:
    """The latencies of several engines, measured turn by turn in random order.

    All get equally many turns with equally many samples each. Raises `InputError` if there are no
    engines or their clocks or thread counts differ, `BackendError` if one fails.
    """
    timing = timing or Timing()
    clock = common("clocks", {_clock(e, inputs, timing) for e, inputs in engines.values()})
    threads = common("thread counts", {engine.settings.threads for engine, _ in engines.values()})
    shuffled = random.Random(0)
    with torch_threads(threads), _no_garbage_collection(), _failures_of(engines):
        samplers = {
            name: _Sampler.start(engine.runner(*inputs), clock, timing.warm_up)
            for name, (engine, inputs) in engines.items()
        }
        least, each = timing.min_samples, _samples_of_a_turn(samplers.values(), timing)
        samples: dict[str, list[float]] = {name: [] for name in samplers}
        alone, rounds = len(samplers) == 1, 0
        # However slow they are: a single turn tells nothing of how far turns are apart.
        fewest = 1 if alone else 2
        # Half of the time may go by with waiting, in equal parts.
        waiting = timing.max_seconds / (2 * (least if alone else timing.turns))
        stop = time.perf_counter() + timing.max_seconds * len(samplers)
        converged = False
        while not converged and (rounds < fewest or time.perf_counter() < stop):
            for name in shuffled.sample(list(samplers), len(samplers)):
                if not alone:
                    samplers[name].warm_up(timing.warm_up)
                samples[name].extend(samplers[name].turn(each, Patience(waiting)))
            rounds += 1
            enough = rounds * each >= least and (alone or rounds >= timing.turns)
            turns = 1 if alone else rounds
            converged = enough and all(
                spread(taken, turns) <= timing.tolerance for taken in samples.values()
            )
    return {name: Measurement.of(taken, turns, clock, converged) for name, taken in samples.items()}


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Takes samples of one engine.

    timed: seconds per call, of as many calls as it is given.
    calls: calls in one sample.
    waits: whether quiet moments are waited for: where one thread works, and no other of ours.
    """

    timed: Callable[[int], float]
    calls: int
    waits: bool

    @staticmethod
    def start(run: Callable[[], object], clock: Clock, warm_up: float) -> _Sampler:
        """Warm up, and see how many calls a sample needs."""
        on_cpu = partial(_on_cpu, CPU_CLOCKS[clock], run) if clock != "cuda" else None
        once = _Sampler(on_cpu or partial(_on_cuda, run), 1, clock == "cpu")
        return replace(once, calls=ceil(SHORTEST_SAMPLE / once.warm_up(warm_up, WARM_UP_CALLS)))

    def warm_up(self, seconds: float, least: int = 1) -> float:
        """Call it for so long, and so many times at least; the shortest call."""
        stop = time.perf_counter() + seconds
        fastest, calls = self.sample(), 1
        while calls < least or time.perf_counter() < stop:
            fastest, calls = min(fastest, self.sample()), calls + 1
        return fastest

    def sample(self) -> float:
        """Seconds per call."""
        return self.timed(self.calls)

    def turn(self, count: int, patience: Patience) -> list[float]:
        """So many samples, each once neighbours leave the core alone."""
        taken = []
        for _ in range(count):
            if self.waits:
                patience.wait()
            taken.append(self.sample())
        return taken


def _samples_of_a_turn(samplers: Iterable[_Sampler], timing: Timing) -> int:
    """Samples in one turn of each: one where there is nothing to take turns with."""
    several = tuple(samplers)
    if len(several) == 1:
        return 1
    slowest = max(sampler.warm_up(0.0, WARM_UP_CALLS) * sampler.calls for sampler in several)
    return max(ceil(TURN_SECONDS / slowest), ceil(timing.min_samples / timing.turns))


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


def _clock(engine: Engine, inputs: Sequence[Tensor], timing: Timing) -> Clock:
    if timing.clock != "auto":
        return timing.clock
    if any(tensor.is_cuda for tensor in inputs):
        return "cuda"
    return "cpu" if engine.settings.threads == 1 else "wall"


@contextmanager
def _failures_of(engines: Mapping[str, tuple[Engine, Sequence[Tensor]]]) -> Iterator[None]:
    """What engines raise becomes a `BackendError`."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        names = ", ".join(sorted({engine.name for engine, _ in engines.values()}))
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
