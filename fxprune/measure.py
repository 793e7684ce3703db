"""Measuring one engine, for `fxprune.benchmark` and for kernels of which a backend has no profile.

Calls are repeated until the spread is small enough; if time runs out first, the measurement says
that it has not converged.  What the samples come to is told in `fxprune.measurement`.  Nothing
waits between them: after a pause a small network finds the caches cold.  What is to be compared is
measured in turn (`fxprune.turns`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fxprune.backends.base import Engine
from fxprune.measurement import Clock, Measurement
from fxprune.sampler import Sampler, clock_of, undisturbed

PROTOCOL = "p10/6"
"""Version of the way of measuring; figures of different versions must not be mixed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure.

    tolerance: the spread at which to stop (0.01 is 1 %).
    min_samples: samples to take at least.
    max_seconds: time after which to stop in any case.
    warm_up: seconds to run before the first sample.
    clock: "auto" reads CPU time for one thread, wall-clock time for more, events on CUDA.
    """

    tolerance: float = 0.01
    min_samples: int = 30
    max_seconds: float = 10.0
    warm_up: float = 0.05
    clock: Clock | Literal["auto"] = "auto"


def measure(engine: Engine, inputs: Sequence[Tensor], timing: Timing | None = None) -> Measurement:
    """The latency of one engine on these inputs; raises `BackendError` if it fails."""
    timing = timing or Timing()
    clock = clock_of(engine, inputs) if timing.clock == "auto" else timing.clock
    with undisturbed([engine], engine.settings.threads):
        sampler = Sampler.of(engine.runner(*inputs), clock)
        sampler = sampler.long_enough(sampler.warm_up(timing.warm_up))
        samples: list[float] = []
        stop = time.perf_counter() + timing.max_seconds
        while True:
            samples.append(sampler.sample())
            found = Measurement.of(samples, clock, converged=True)
            enough = len(samples) >= timing.min_samples and found.spread <= timing.tolerance
            if enough or time.perf_counter() >= stop:
                return replace(found, converged=enough)
