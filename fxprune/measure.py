"""Latency with its spread: how every figure and every table entry is measured.

Noise only ever adds time, so the estimate is the 10th percentile of repeated calls, and the spread
is how far its distribution-free 95 % confidence interval reaches from it (order statistics), as a
share of it.  Calls are repeated until the spread is small enough; if time runs out first, the
measurement says that it has not converged.  Where calls are taken in several turns, a whole turn
can be slow, when a neighbour fills the caches that are shared, and the two networks that are
compared do not suffer alike.  There what counts of a turn is its fastest call, and the estimate is
the 5th percentile of the turns': one of the statistics whose ratios repeat best
(`python -m benchmarks.noise`).

Which clock is read matters more than any statistics.  With one thread the CPU time of the process
is not charged for what neighbours take from a shared machine; wall-clock time is, and is used only
where work is spread over threads.  On CUDA, events on the current stream are read.

What is to be compared is measured together, turn by turn and in random order, so that slow drifts
of the machine hit all alike (`measure_interleaved`, `ratio`).  A turn is many calls, and begins
with some that are not counted: a network that is called right after another one finds the caches
full of the other's weights, and takes up to a third longer than it does in service.

Compiling the same network twice gives latencies some per cent apart, since its tensors come to lie
elsewhere in memory.  `pooled` makes one measurement of several such engines.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr
from torch import Tensor

from fxprune.backends.base import Engine
from fxprune.backends.devices import torch_threads
from fxprune.errors import InputError, MeasurementError

T = TypeVar("T")

Clock = Literal["cpu", "wall", "cuda"]

CPU_CLOCKS = MappingProxyType({"cpu": time.process_time_ns, "wall": time.perf_counter_ns})

PROTOCOL = "p10/4"
"""Version of the way of measuring; figures of different versions must not be mixed."""
IN_TURN = "turns/2"
"""The same for networks that are measured in turn."""

QUANTILE = 0.10
QUANTILE_OF_TURNS = 0.05
CONFIDENCE = 0.95
BOOTSTRAPS = 2000
WARM_UP_CALLS = 3
TURN_SECONDS = 0.2
"""How long one turn of the slowest engine is to be; the others take as many samples."""
SHORTEST_SAMPLE = 200e-6
"""Seconds: shorter calls are timed several at once, since reading a clock takes about 1 us."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure.

    tolerance: the spread at which to stop (0.01 is 1 %).
    min_samples: samples of each engine to take at least.
    max_seconds: time after which to stop in any case, for each engine.
    warm_up: seconds to run an engine before each of its turns, and three calls at least. The
        caches of a CPU need about a tenth of a second.
    turns: turns of each engine to take at least, where several are compared.
    clock: "auto" reads CPU time for one thread, wall-clock time for more, events on CUDA.
    """

    tolerance: float = 0.01
    min_samples: int = 30
    max_seconds: float = 10.0
    warm_up: float = 0.1
    turns: int = 5
    clock: Clock | Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A latency: `seconds` per call, and how well it is known.

    spread: how far the 95 % confidence interval reaches from `seconds`, as a share of it.
    samples: seconds per call of every sample, in the order in which they were taken.
    clock: what was read: CPU time of the process, wall-clock time, or CUDA events.
    converged: whether the spread came down to what was asked for.
    turns: number of equal parts in which the samples were taken.
    """

    seconds: float
    spread: float
    samples: tuple[float, ...]
    clock: Clock
    converged: bool
    turns: int = 1

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return float(np.median(self.samples))

    @property
    def p90(self) -> float:
        """90th percentile of the seconds per call."""
        return float(np.quantile(self.samples, 0.9))

    def require(self, tolerance: float) -> Measurement:
        """This measurement; raises `MeasurementError` if its spread is wider than `tolerance`."""
        if self.spread <= tolerance:
            return self
        raise MeasurementError(
            f"the latency {self} spreads more than the {tolerance:.1%} allowed",
            f"{len(self.samples)} samples, {self.clock} clock",
            "measure longer, use one thread, or leave the machine to this process alone",
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "seconds": self.seconds,
            "spread": self.spread,
            "samples": list(self.samples),
            "clock": self.clock,
            "converged": self.converged,
            "turns": self.turns,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """From `to_json`."""
        return cls(**{**data, "samples": tuple(data["samples"])})

    def __str__(self) -> str:
        note = "" if self.converged else " (not converged)"
        figure = f"{self.seconds * 1e3:#.3g}".rstrip(".")
        return f"{figure} ms ± {self.spread * 100:.1f} %{note}"


@dataclass(frozen=True, slots=True)
class Interval:
    """A latency, or a ratio of two, with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def measure(engine: Engine, inputs: Sequence[Tensor], timing: Timing | None = None) -> Measurement:
    """The latency of one engine on these inputs."""
    return measure_interleaved({"engine": (engine, inputs)}, timing)["engine"]


def measure_interleaved(
    engines: Mapping[str, tuple[Engine, Sequence[Tensor]]], timing: Timing | None = None
) -> dict[str, Measurement]:
    """The latencies of several engines, measured turn by turn in random order.

    All get equally many turns with equally many samples each. Raises `InputError` if there are no
    engines or their clocks or thread counts differ.
    """
    timing = timing or Timing()
    clock = _common("clocks", {_clock(e, inputs, timing) for e, inputs in engines.values()})
    threads = _common("thread counts", {engine.settings.threads for engine, _ in engines.values()})
    shuffled = random.Random(0)
    with torch_threads(threads), _no_garbage_collection():
        samplers = {
            name: _Sampler.start(engine.runner(*inputs), clock, timing.warm_up)
            for name, (engine, inputs) in engines.items()
        }
        least, each = timing.min_samples, _samples_of_a_turn(samplers.values(), timing)
        samples: dict[str, list[float]] = {name: [] for name in samplers}
        alone, rounds = len(samplers) == 1, 0
        # However slow they are: a single turn tells nothing of how far turns are apart.
        fewest = 1 if alone else 2
        stop = time.perf_counter() + timing.max_seconds * len(samplers)
        converged = False
        while not converged and (rounds < fewest or time.perf_counter() < stop):
            for name in shuffled.sample(list(samplers), len(samplers)):
                if not alone:
                    samplers[name].warm_up(timing.warm_up)
                samples[name].extend(samplers[name].sample() for _ in range(each))
            rounds += 1
            enough = rounds * each >= least and (alone or rounds >= timing.turns)
            turns = 1 if alone else rounds
            converged = enough and all(
                _spread(taken, turns) <= timing.tolerance for taken in samples.values()
            )
    return {
        name: Measurement(
            seconds=_estimate(taken, turns),
            spread=_spread(taken, turns),
            samples=tuple(taken),
            clock=clock,
            converged=converged,
            turns=turns,
        )
        for name, taken in samples.items()
    }


def pooled(parts: Sequence[Measurement]) -> Measurement:
    """One measurement of a network that was measured several times, of all turns together.

    Its spread tells how far one of them may be from it.  Turns are cut to the shortest.  Raises
    `InputError` if clocks differ.
    """
    _common("clocks", {part.clock for part in parts})
    each = min(len(part.samples) // part.turns for part in parts)
    samples = tuple(
        sample
        for part in parts
        for turn in np.reshape(part.samples, (part.turns, -1)).tolist()
        for sample in turn[:each]
    )
    turns = sum(part.turns for part in parts)
    seconds = _estimate(samples, turns)
    return Measurement(
        seconds=seconds,
        spread=max(max(part.spread, abs(part.seconds / seconds - 1)) for part in parts),
        samples=samples,
        clock=parts[0].clock,
        converged=all(part.converged for part in parts),
        turns=turns,
    )


def interval(measurement: Measurement) -> Interval:
    """Seconds of a measurement in several turns, by the same bootstrap over turns as a ratio.

    Raises `InputError` if there are no turns to draw from.
    """
    turns = _turns(measurement)
    return _enclosed(measurement.seconds, _of_turns(_resampled(turns)))


def ratio(numerator: Measurement, denominator: Measurement) -> Interval:
    """The ratio of two latencies that were measured together.

    The confidence interval is a bootstrap over the pairs of turns, since the samples of one turn
    are alike (Efron and Tibshirani, An Introduction to the Bootstrap, section 8.6).  Raises
    `InputError` if the two were not measured together, in turn.
    """
    if (len(numerator.samples), numerator.turns) != (len(denominator.samples), denominator.turns):
        raise InputError(
            "the ratio of two latencies needs paired samples",
            f"{len(numerator.samples)} and {len(denominator.samples)} samples",
            "take both from one call of measure_interleaved",
        )
    above, below = _turns(numerator), _turns(denominator)
    shares = _of_turns(_resampled(above)) / _of_turns(_resampled(below))
    return _enclosed(float(_of_turns(above) / _of_turns(below)), shares)


def _turns(measurement: Measurement) -> NDArray[np.float64]:
    if measurement.turns == 1:
        raise InputError(
            "a latency that was not measured in turns has no interval",
            str(measurement),
            "take it from a call of measure_interleaved with several engines",
        )
    return _units(measurement.samples, measurement.turns)


def _resampled(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bootstrap samples of turns, in rows; of equally many turns, always the same ones."""
    drawn = np.random.default_rng(0).integers(len(turns), size=(BOOTSTRAPS, len(turns)))
    return turns[drawn]


def _enclosed(value: float, resampled: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _estimate(samples: Sequence[float], turns: int) -> float:
    return float(np.quantile(_units(samples, turns), _quantile(turns)))


def _units(samples: Sequence[float], turns: int) -> NDArray[np.float64]:
    """What is independent of each other: the fastest samples of turns, or samples."""
    if turns == 1:
        return np.array(samples)
    return np.array(np.reshape(samples, (turns, -1)).min(axis=1))


def _quantile(turns: int) -> float:
    """The quantile of the units that is the estimate."""
    return QUANTILE if turns == 1 else QUANTILE_OF_TURNS


def _of_turns(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The estimate from several turns, in the last dimension."""
    return np.quantile(turns, QUANTILE_OF_TURNS, axis=-1)


def _spread(samples: Sequence[float], turns: int) -> float:
    """How far the confidence interval reaches from the estimate, relative to it.

    The number of units below the true quantile is binomial, so two ranks enclose it whatever the
    distribution (Conover, Practical Nonparametric Statistics, section 3.2). Of few units the
    lower one would lie under the smallest, which stands in for it: noise only adds time.
    """
    ordered, estimate = np.sort(_units(samples, turns)), _estimate(samples, turns)
    low, high = _ranks(len(ordered), _quantile(turns))
    return float(max(estimate - ordered[low], ordered[high] - estimate) / estimate)


@cache
def _ranks(count: int, quantile: float) -> tuple[int, int]:
    """Places in the ordered samples between which the true quantile lies."""
    tail = (1 - CONFIDENCE) / 2
    cumulative = bdtr(np.arange(count + 1), count, quantile)
    low, high = (int(rank) for rank in np.searchsorted(cumulative, [tail, 1 - tail]))
    return max(low - 1, 0), min(high, count - 1)


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Takes samples of one engine.

    timed: seconds per call, of as many calls as it is given.
    calls: calls in one sample.
    """

    timed: Callable[[int], float]
    calls: int

    @staticmethod
    def start(run: Callable[[], object], clock: Clock, warm_up: float) -> _Sampler:
        """Warm up, and see how many calls a sample needs."""
        on_cpu = partial(_on_cpu, CPU_CLOCKS[clock], run) if clock != "cuda" else None
        once = _Sampler(on_cpu or partial(_on_cuda, run), 1)
        return _Sampler(once.timed, ceil(SHORTEST_SAMPLE / once.warm_up(warm_up)))

    def warm_up(self, seconds: float) -> float:
        """Call it for so long, and three times at least; the shortest call."""
        stop = time.perf_counter() + seconds
        fastest, calls = self.sample(), 1
        while calls < WARM_UP_CALLS or time.perf_counter() < stop:
            fastest, calls = min(fastest, self.sample()), calls + 1
        return fastest

    def sample(self) -> float:
        """Seconds per call."""
        return self.timed(self.calls)


def _samples_of_a_turn(samplers: Iterable[_Sampler], timing: Timing) -> int:
    """Samples in one turn of each: one where there is nothing to take turns with."""
    several = tuple(samplers)
    if len(several) == 1:
        return 1
    slowest = max(sampler.warm_up(0.0) * sampler.calls for sampler in several)
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


def _common(what: str, values: set[T]) -> T:
    if len(values) == 1:
        return next(iter(values))
    found = ", ".join(sorted(map(str, values))) or "nothing to measure"
    raise InputError(
        f"only engines of equal {what} can be compared: {found}",
        "measure_interleaved",
        "compile them with equal settings for one kind of device",
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
