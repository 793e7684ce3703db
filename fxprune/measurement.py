"""What samples of a latency tell: an estimate, how well it is known, and ratios of two.

Noise only ever adds time, so the estimate is the 10th percentile of repeated calls, and the spread
is how far its distribution-free 95 % confidence interval reaches from it (order statistics), as a
share of it.  Where calls are taken in several turns, what counts of a turn is its fastest call, and
the estimate is the 5th percentile of the turns': what the network takes undisturbed.  The ratio of
two latencies is the median over the turns that were taken one beside the other: what slows down
both of them cancels (`python -m benchmarks.noise`), and networks that suffer from neighbours by
different shares are compared as they run on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from fxprune.errors import InputError, MeasurementError

T = TypeVar("T")

Clock = Literal["cpu", "wall", "cuda"]

QUANTILE = 0.10
QUANTILE_OF_TURNS = 0.05
CONFIDENCE = 0.95
BOOTSTRAPS = 400
STRETCHES = 30
"""Stretches of turns that follow one another, which make a bootstrap sample: a slow moment slows
all the turns of it."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A latency: `seconds` per call, and how well it is known.

    spread: how far the 95 % confidence interval reaches from `seconds`, as a share of it.
    samples: seconds per call, in the order in which they were taken; of several in one turn, the
        fastest.
    clock: what was read: CPU time of the process, wall-clock time, or CUDA events.
    converged: whether the spread came down to what was asked for.
    in_turn: whether each sample is a turn, taken beside that of another network.
    """

    seconds: float
    spread: float
    samples: tuple[float, ...]
    clock: Clock
    converged: bool
    in_turn: bool = False

    @classmethod
    def of(
        cls, samples: Sequence[float], clock: Clock, *, converged: bool, in_turn: bool = False
    ) -> Measurement:
        """What these samples come to."""
        found = _interval(np.array(samples)) if in_turn else _alone(samples)
        apart = max(found.value - found.low, found.high - found.value) / found.value
        return cls(found.value, apart, tuple(samples), clock, converged, in_turn)

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
    """One measurement of a network that was measured in turn several times: all count alike.

    Its spread tells how far one of them may be from it.  Of the longer ones, as many turns are
    taken as the shortest has.  Raises `InputError` if clocks differ.
    """
    clock = common("clocks", {part.clock for part in parts})
    count = min(len(part.samples) for part in parts)
    samples = [part.samples[place] for part in parts for place in _spaced(len(part.samples), count)]
    converged = all(part.converged for part in parts)
    found = Measurement.of(samples, clock, converged=converged, in_turn=True)
    apart = max(max(part.spread, abs(part.seconds / found.seconds - 1)) for part in parts)
    return replace(found, spread=apart)


def _spaced(length: int, count: int) -> NDArray[np.intp]:
    """So many places, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, count).round().astype(np.intp)


def interval(measurement: Measurement) -> Interval:
    """Seconds of a measurement in several turns, by the same bootstrap over turns as a ratio.

    Raises `InputError` if there are no turns to draw from.
    """
    return _interval(_turns(measurement))


def ratio(numerator: Measurement, denominator: Measurement) -> Interval:
    """The ratio of two latencies that were measured together: the median of that of their turns.

    The confidence interval is a bootstrap over blocks of turns that follow one another (Kuensch,
    The Jackknife and the Bootstrap for General Stationary Observations, Annals of Statistics 17,
    1989).  Raises `InputError` if the two were not measured together, in turn.
    """
    if len(numerator.samples) != len(denominator.samples):
        raise InputError(
            "the ratio of two latencies needs paired samples",
            f"{len(numerator.samples)} and {len(denominator.samples)} samples",
            "take both from one call of measure_interleaved",
        )
    shares = _turns(numerator) / _turns(denominator)
    medians = np.median(shares[_resampled(len(shares))], axis=1)
    return _enclosed(float(np.median(shares)), medians)


def _turns(measurement: Measurement) -> NDArray[np.float64]:
    if measurement.in_turn:
        return np.array(measurement.samples)
    raise InputError(
        "a latency that was not measured in turns has no interval",
        str(measurement),
        "take it from a call of measure_interleaved",
    )


def _interval(turns: NDArray[np.float64]) -> Interval:
    resampled = np.quantile(turns[_resampled(len(turns))], QUANTILE_OF_TURNS, axis=1)
    return _enclosed(float(np.quantile(turns, QUANTILE_OF_TURNS)), resampled)


def _resampled(turns: int) -> NDArray[np.intp]:
    """Places of turns in bootstrap samples, in rows; of equally many turns, always the same."""
    length = ceil(turns / STRETCHES)
    size = (BOOTSTRAPS, ceil(turns / length))
    starts = np.random.default_rng(0).integers(turns - length + 1, size=size)
    return (starts[:, :, None] + np.arange(length)).reshape(BOOTSTRAPS, -1)[:, :turns]


def _enclosed(value: float, resampled: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _alone(samples: Sequence[float]) -> Interval:
    """Seconds per call of one engine alone.

    The number of samples below the true quantile is binomial, so two ranks enclose it whatever the
    distribution (Conover, Practical Nonparametric Statistics, section 3.2). Of few samples the
    lower one would lie under the smallest, which stands in for it: noise only adds time.
    """
    ordered = np.sort(samples)
    low, high = _ranks(len(ordered), QUANTILE)
    return Interval(
        float(np.quantile(samples, QUANTILE)), float(ordered[low]), float(ordered[high])
    )


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
