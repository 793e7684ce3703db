"""Networks compiled once and set up a few times, so that no engine's luck decides what is measured.

Where the tensors of an engine come to lie in memory changes its latency (`python -m
benchmarks.luck`), and engines that are set up one after the other may share that luck. So those of
networks that are compared are set up by turns, in random order.
"""

from __future__ import annotations

import gc
import random
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import mkdtemp

from torch import Tensor, nn

from fxprune.backends.base import Backend, Engine
from fxprune.backends.settings import Settings
from fxprune.errors import BackendError
from fxprune.sizes import weight_bytes

ENGINES = 2
"""How often networks are set up that are compared, for every look at them: many looks at few
engines tell more than few looks at many."""
KEPT = 8
"""How many are made of a network in all where memory is not freed."""
SETTING_UP = 1.0
"""Seconds after which no further engines are made."""
WEIGHTS = 2**28
"""Bytes of weights in all engines of a network over which no further one is made: each holds them
two or three times."""


@dataclass(frozen=True)
class Compiled:
    """A network that was compiled.

    Attributes:
        engine: as it came from the compiler.
        another: sets it up once more.
        weights: bytes.
    """

    engine: Engine
    another: Callable[[], Engine]
    weights: int

    @staticmethod
    def of(
        backend: Backend, settings: Settings, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> Compiled:
        """Compile a network; raises as `Backend.compile`."""
        engine = backend.compile(module, inputs, settings)
        # Exporters leave networks behind that refer to themselves, of which Python counts few.
        gc.collect()
        weights = weight_bytes(module)
        if copy := backend.copier(engine):
            return Compiled(engine, copy, weights)
        folder = mkdtemp(prefix="fxprune")
        path = Path(folder, "engine")
        try:
            engine.save(path)
        except BackendError:  # nothing is compiled, so there is nothing to save
            shutil.rmtree(folder)
            return Compiled(engine, partial(backend.compile, module, inputs, settings), weights)
        load = partial(backend.load, path)
        most = min(KEPT, WEIGHTS // max(weights, 1))
        another = load if backend.frees_engines else _one_of_few(load, most)
        found = Compiled(engine, another, weights)
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
        return found


def _one_of_few(load: Callable[[], Engine], most: int) -> Callable[[], Engine]:
    """`load` for so many times, and then what it gave, again and again."""
    made: list[Engine] = []
    again = cycle(made)

    def another() -> Engine:
        if len(made) < max(most, 1):
            made.append(load())
            return made[-1]
        return next(again)

    return another


def set_up(*networks: Compiled) -> list[tuple[Engine, ...]]:
    """Engines of networks that are compared: equally many of each, made by turns.

    Of large networks, these are the ones that came from the compiler.
    """
    most = min(ENGINES, *(WEIGHTS // max(network.weights, 1) for network in networks))
    if most <= 1:
        return [(network.engine,) for network in networks]
    order, stop = random.Random(), time.perf_counter() + SETTING_UP
    engines: list[list[Engine]] = [[] for _ in networks]
    while not engines[0] or (len(engines[0]) < most and time.perf_counter() < stop):
        for place in order.sample(range(len(networks)), len(networks)):
            engines[place].append(networks[place].another())
    return [*map(tuple, engines)]
