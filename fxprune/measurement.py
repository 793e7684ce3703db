"""What samples of a latency tell: an estimate, how well it is known, and ratios of two.

Noise only ever adds time, so the estimate is the 10th percentile of repeated calls, and the spread
is how far its distribution-free 95 % confidence interval reaches from it (order statistics), as a
share of it.  Where calls are taken in several turns, what counts of a turn is its fastest call, and
the estimate is the 5th percentile of the turns': what the network takes undisturbed.  The ratio of
two latencies is the median over the turns that were taken one beside the other: what slows down
both of them cancels (`python -m benchmarks.noise`), and networks that suffer from neighbours by
different shares are compared as they run on this machine.

Turns cannot tell how lucky the engines were that took them (`python -m benchmarks.luck`). So
latencies that a decision hangs on are looked at several times, each time with engines that are set
up anew. Their geometric mean counts, and how far they are apart tells how well it is known
(Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit

from fxprune.errors import InputError, MeasurementError

T = TypeVar("T")

Clock = Literal["cpu", "wall", "cuda"]

QUANTILE = 0.10
QUANTILE_OF_TURNS = 0.05
CONFIDENCE = 0.95
STEADY = 0.03
"""Spread down to which what was measured in turns has converged."""


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
    def of(cls, samples: Sequence[float], clock: Clock, *, converged: bool) -> Measurement:
        """What samples of one engine alone come to."""
        seconds, spread = _quantile(samples, QUANTILE)
        return cls(seconds, spread, tuple(samples), clock, converged)

    @classmethod
    def of_turns(cls, samples: Sequence[float], clock: Clock) -> Measurement:
        """What turns come to, of which these are the fastest samples."""
        seconds, spread = _quantile(samples, QUANTILE_OF_TURNS)
        return cls(seconds, spread, tuple(samples), clock, spread <= STEADY, in_turn=True)

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


def pooled(looks: Sequence[Measurement]) -> Measurement:
    """One measurement of a network that was looked at several times: the mean of these looks.

    Raises `InputError` if clocks differ.
    """
    clock = common("clocks", {look.clock for look in looks})
    samples = tuple(sample for look in looks for sample in look.samples)
    mean = mean_of([look.seconds for look in looks])
    spread = max(mean.high - mean.value, mean.value - mean.low) / mean.value
    return Measurement(mean.value, spread, samples, clock, spread <= STEADY, in_turn=True)


def ratio(numerator: Measurement, denominator: Measurement) -> float:
    """The ratio of two latencies that were measured together: the median of that of their turns.

    Raises `InputError` if the two were not measured together, in turn.
    """
    if len(numerator.samples) != len(denominator.samples):
        raise InputError(
            "the ratio of two latencies needs paired samples",
            f"{len(numerator.samples)} and {len(denominator.samples)} samples",
            "take both from one call of measure_interleaved",
        )
    return float(np.median(_turns(numerator) / _turns(denominator)))


def mean_of(looks: Sequence[float]) -> Interval:
    """The geometric mean of figures that were found independently, and how well it is known.

    The interval is Student's (Biometrika 6, 1908), of the logarithms: without end, for one figure.
    """
    logarithms = np.log(looks)
    mean, count = float(logarithms.mean()), len(looks)
    if count < 2:
        return Interval(math.exp(mean), 0.0, math.inf)
    error = float(logarithms.std(ddof=1)) / math.sqrt(count)
    reach = error * float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Interval(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def _turns(measurement: Measurement) -> NDArray[np.float64]:
    if measurement.in_turn:
        return np.array(measurement.samples)
    raise InputError(
        "a latency that was not measured in turns cannot be compared",
        str(measurement),
        "take it from a call of measure_interleaved",
    )


def _quantile(samples: Sequence[float], quantile: float) -> tuple[float, float]:
    """A quantile, and how far its confidence interval reaches from it, as a share of it.

    The number of samples below the true quantile is binomial, so two ranks enclose it whatever the
    distribution (Conover, Practical Nonparametric Statistics, section 3.2). Of few samples the
    lower one would lie under the smallest, which stands in for it: noise only adds time.
    """
    ordered = np.sort(samples)
    low, high = _ranks(len(ordered), quantile)
    value = float(np.quantile(samples, quantile))
    return value, float(max(ordered[high] - value, value - ordered[low])) / value


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
