"""What samples of a latency tell: an estimate, how well it is known, and ratios of two.

Noise only ever adds time, so the estimate is the 10th percentile of repeated calls, and the spread
is how far its distribution-free 95 % confidence interval reaches from it (order statistics), as a
share of it.  Where calls are taken in several turns, a whole turn can be slow, when a neighbour
fills the caches that are shared, and the two networks that are compared do not suffer alike.  There
what counts of a turn is its fastest call, and the estimate is the 5th percentile of the turns': one
of the statistics whose ratios repeat best (`python -m benchmarks.noise`).

Engines of one network may differ a little, since their tensors come to lie elsewhere in memory:
`pooled` makes one measurement of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from fxprune.errors import InputError, MeasurementError

T = TypeVar("T")

Clock = Literal["cpu", "wall", "cuda"]

QUANTILE = 0.10
QUANTILE_OF_TURNS = 0.05
CONFIDENCE = 0.95
BOOTSTRAPS = 2000


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

    @classmethod
    def of(cls, samples: Sequence[float], turns: int, clock: Clock, converged: bool) -> Measurement:
        """What these samples come to."""
        seconds, apart = estimate(samples, turns), spread(samples, turns)
        return cls(seconds, apart, tuple(samples), clock, converged, turns)

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

    def is_known_to(self, tolerance: float) -> bool:
        """Whether it reaches no further than that from its middle, as a share of the value."""
        return self.high - self.low <= 2 * tolerance * self.value

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pooled(parts: Sequence[Measurement]) -> Measurement:
    """One measurement of a network that was measured several times, of all turns together.

    Its spread tells how far one of them may be from it.  Turns are cut to the shortest.  Raises
    `InputError` if clocks differ.
    """
    common("clocks", {part.clock for part in parts})
    each = min(len(part.samples) // part.turns for part in parts)
    samples = tuple(
        sample
        for part in parts
        for turn in np.reshape(part.samples, (part.turns, -1)).tolist()
        for sample in turn[:each]
    )
    turns = sum(part.turns for part in parts)
    found = Measurement.of(samples, turns, parts[0].clock, all(part.converged for part in parts))
    apart = max(max(part.spread, abs(part.seconds / found.seconds - 1)) for part in parts)
    return replace(found, spread=apart)


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


def estimate(samples: Sequence[float], turns: int) -> float:
    """Seconds per call, from samples in so many equal turns."""
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


def spread(samples: Sequence[float], turns: int) -> float:
    """How far the confidence interval reaches from the estimate, relative to it.

    The number of units below the true quantile is binomial, so two ranks enclose it whatever the
    distribution (Conover, Practical Nonparametric Statistics, section 3.2). Of few units the
    lower one would lie under the smallest, which stands in for it: noise only adds time.
    """
    ordered, middle = np.sort(_units(samples, turns)), estimate(samples, turns)
    low, high = _ranks(len(ordered), _quantile(turns))
    return float(max(middle - ordered[low], ordered[high] - middle) / middle)


@cache
def _ranks(count: int, quantile: float) -> tuple[int, int]:
    """Places in the ordered samples between which the true quantile lies."""
    tail = (1 - CONFIDENCE) / 2
    cumulative = bdtr(np.arange(count + 1), count, quantile)
    low, high = (int(rank) for rank in np.searchsorted(cumulative, [tail, 1 - tail]))
    return max(low - 1, 0), min(high, count - 1)


def common(what: str, values: set[T]) -> T:
    """The one value that all engines which are compared have; raises `InputError` otherwise."""
    if len(values) == 1:
        return next(iter(values))
    found = ", ".join(sorted(map(str, values))) or "nothing to measure"
    raise InputError(
        f"only engines of equal {what} can be compared: {found}",
        "measure_interleaved",
        "compile them with equal settings for one kind of device",
    )
