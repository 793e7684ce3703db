"""Networks measured in turn: how every latency is taken that is compared with another one.

A shared machine changes its pace several times a second, by a tenth and more. Calls that follow one
another closely are slowed down alike, so turns are short, and each one is compared with that beside
it (`python -m benchmarks.noise`). Nothing waits for quiet moments: that makes turns fewer and
further apart.

A turn of a fast network begins with a call that is not counted: right after another one it finds
the caches full of the other's weights, and takes up to a third longer than it does in service
(`python -m benchmarks.warm_up`). A slow one fills them in a small part of a call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from fxprune.backends.base import Engine
from fxprune.measurement import Clock, Measurement, common
from fxprune.sampler import Sampler, clock_of, undisturbed

PROTOCOL = "turns/6"
"""Version of the way of measuring in turn; figures of different versions must not be mixed."""

LEAST_TURNS = 5
"""Turns whatever the time: one that was disturbed is not to decide."""
TURN_SECONDS = 5e-3
"""How long one turn of the slowest network is to be; the others take as many samples."""
FAST = 0.02
"""Seconds: turns begin with a call that is not counted where one of the fastest network takes
less."""

Found = Mapping[str, Measurement]
"""What networks take, by name."""


def measure_interleaved(
    networks: Mapping[str, Sequence[Engine]], inputs: Sequence[Tensor], seconds: float
) -> dict[str, Measurement]:
    """The latencies of several networks, measured turn by turn in random order.

    All get equally many turns, of which the fastest sample is kept. Raises `InputError` if there
    are no engines or their clocks or thread counts differ, `BackendError` if one fails.

    Args:
        networks: engines of each, by name; several of one take its turns one after the other.
        inputs: what all of them are called with.
        seconds: after which to stop, but for the least number of turns. Warming up comes on top.
    """
    engines = [engine for some in networks.values() for engine in some]
    clock = common("clocks", {clock_of(engine, inputs) for engine in engines})
    threads = common("thread counts", {engine.settings.threads for engine in engines})
    samples: dict[str, list[float]] = {name: [] for name in networks}
    order = random.Random()
    with undisturbed(engines, threads):
        players = _Players.of(networks, inputs, clock)
        stop, turns = time.perf_counter() + seconds, 0
        while turns < LEAST_TURNS or time.perf_counter() < stop:
            for name in order.sample(list(samples), len(samples)):
                samples[name].append(players.turn(name, turns))
            turns += 1
    return {name: Measurement.of_turns(taken, clock) for name, taken in samples.items()}


@dataclass(frozen=True, slots=True)
class _Players:
    """Networks that take turns.

    samplers: of the engines of each.
    count: samples in one turn.
    warm_up: whether one more goes first that is not counted.
    """

    samplers: Mapping[str, Sequence[Sampler]]
    count: int
    warm_up: bool

    @staticmethod
    def of(
        networks: Mapping[str, Sequence[Engine]], inputs: Sequence[Tensor], clock: Clock
    ) -> _Players:
        """Call every engine once, and see how long a call of each network takes."""
        samplers: dict[str, list[Sampler]] = {}
        seconds: list[float] = []
        for name, engines in networks.items():
            first, *others = (Sampler.of(e.runner(*inputs), clock) for e in engines)
            fastest = first.warm_up()
            for sampler in others:
                sampler.sample()
            samplers[name] = [sampler.long_enough(fastest) for sampler in (first, *others)]
            seconds.append(fastest * samplers[name][0].calls)
        return _Players(samplers, max(ceil(TURN_SECONDS / max(seconds)), 1), min(seconds) < FAST)

    def turn(self, name: str, number: int) -> float:
        """Seconds of the fastest sample in one turn of a network."""
        engines = self.samplers[name]
        sampler = engines[number % len(engines)]
        if self.warm_up:
            sampler.sample()
        return min(sampler.sample() for _ in range(self.count))
