"""What a ratio of two latencies would be at another pace of the machine.

Neighbours on a shared machine slow it down for minutes on end, and a slim network by another share
than the dense one: at a pace 10 % slower, their ratio is 3 % higher or 1 % lower, as the network
will have it (`python -m benchmarks.sway`). So ratios that were measured within half a minute of
each other agree, and no longer a few minutes later. Within the looks that are taken while the pace
changes the ratio is seen to follow it, which tells what it is at one pace for all: the analysis of
covariance (Fisher, Statistical Methods for Research Workers, 4th edition, section 49.1), with a
slope of nothing as long as little is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.measurement import Interval, Measurement, interval_of, ratio

Looks = Sequence[tuple[Measurement, Measurement]]
"""At the dense network and a slim one, measured in turn."""

LITTLE = 0.005
"""How far paces are apart in looks that tell little of what they change: the sum of squared
logarithms. Of ten looks, 2 % each."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How the ratio of slim and dense follows the pace, as seen in looks at several slim networks.

    The pace is what the dense network takes. Each network has a ratio of its own; what they have in
    common is the slope.

    Attributes:
        spread: sum of squared differences of the logarithm of the pace from its mean.
        shared: sum of its products with those of the logarithm of the ratio.
    """

    spread: float = 0.0
    shared: float = 0.0

    @staticmethod
    def of(looks: Looks) -> Trend:
        """What looks at one slim network tell."""
        if not looks:
            return Trend()
        paces, ratios = _paces(looks), _ratios(looks)
        apart = paces - paces.mean()
        return Trend(float(apart @ apart), float(apart @ ratios))

    @staticmethod
    def total(trends: Iterable[Trend]) -> Trend:
        """What all of them tell together."""
        found = list(trends)
        return Trend(sum(each.spread for each in found), sum(each.shared for each in found))

    @property
    def slope(self) -> float:
        """Change of the logarithm of the ratio over that of the pace."""
        return self.shared / (self.spread + LITTLE)


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of the machine that ratios are told for.

    Attributes:
        seconds: what the dense network takes then.
        trend: what looks at other slim networks tell.
    """

    seconds: float
    trend: Trend = Trend()

    def ratio(self, looks: Looks) -> Interval:
        """Slim over dense latency at this pace, and how well it is known.

        What is not known of the slope makes the interval wider, the further the pace was from this
        one.
        """
        paces, ratios = _paces(looks), _ratios(looks)
        trend = Trend.total([self.trend, Trend.of(looks)])
        away = math.log(self.seconds) - float(paces.mean())
        reach = 1 / len(looks) + away**2 / (trend.spread + LITTLE)
        return interval_of(ratios + trend.slope * (math.log(self.seconds) - paces), reach)


def _paces(looks: Looks) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.log([dense.seconds for dense, _ in looks])


def _ratios(looks: Looks) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.log([ratio(slim, dense) for dense, slim in looks])
