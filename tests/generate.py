"""Random networks that are valid by construction: `generate(seed)` always gives the same one.

A network is grown value by value. Each step draws a row of the table below that takes the shape at
hand, builds its block, runs it once to learn the shape of the result, and goes on. What nobody has
read in the end becomes an output through a small head. Weights are drawn so that the signal stays
alive (He et al. 2015), everything is in float64, and batches of any size can be run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from tests import image_rows, sequence_rows  # noqa: F401  (imported for the rows they add)
from tests.blocks import images, plain
from tests.rows import ROWS, Shape

BATCH = 2
INPUTS: tuple[Shape, ...] = ((3, 8, 8), (4, 6, 6), (4, 6, 6), (3, 4, 4), (6, 5), (5,))
MOST_CHANNELS = 24
MOST_VALUES = 1200


@dataclass(frozen=True)
class Generated:
    """A random network, in evaluation mode, with inputs of `BATCH` samples."""

    seed: int
    model: nn.Module
    inputs: tuple[Tensor, ...]

    def samples(self, count: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Other inputs, `count` samples of them."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(count, *x.shape[1:], generator=generator, dtype=x.dtype)
            for x in self.inputs
        )


@dataclass(frozen=True)
class Step:
    """One block, and the numbers of the values it reads."""

    block: int
    reads: tuple[int, ...]


class Network(nn.Module):
    """Runs its steps in order; the values of `outputs` are what it returns."""

    def __init__(
        self, parts: list[nn.Module], steps: list[Step], outputs: list[int], structure: str
    ):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.steps, self.outputs, self.structure = steps, outputs, structure

    def compute(self, values: list[Tensor]) -> Any:
        """Everything that `forward` does, whatever its arguments are called."""
        for step in self.steps:
            values.append(self.parts[step.block](*[values[i] for i in step.reads]))
        results = [values[i] for i in self.outputs]
        match self.structure:
            case "dict":
                return {f"head{i}": result for i, result in enumerate(results)}
            case "list":
                return results
            case _:
                return results[0] if len(results) == 1 else tuple(results)

    def forward(self, x: Tensor) -> Any:
        return self.compute([x])


class TwoInputs(Network):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.compute([x, y])


class Grower:
    """The network so far: its blocks, its steps and the shape of every value."""

    def __init__(self, rng: random.Random, inputs: Sequence[Shape]):
        self.rng = rng
        self.parts: list[nn.Module] = []
        self.steps: list[Step] = []
        self.shapes: list[Shape] = list(inputs)
        self.readers = [0] * len(self.shapes)

    def apply(self, block: int, *reads: int) -> int:
        """A step that runs part number `block`; returns the number of its result."""
        part = self.parts[block].eval()
        with torch.no_grad():
            found = part(*(torch.randn(BATCH, *self.shapes[i]) for i in reads))
        self.steps.append(Step(block, reads))
        for i in reads:
            self.readers[i] += 1
        self.shapes.append(tuple(found.shape[1:]))
        self.readers.append(0)
        return len(self.shapes) - 1

    def add(self, part: nn.Module, *reads: int) -> int:
        """A step that runs a new block."""
        self.parts.append(part)
        return self.apply(len(self.parts) - 1, *reads)

    def grow(self) -> None:
        """One more step, from a value at random, the newest more often than not."""
        last = len(self.shapes) - 1
        source = last if self.rng.random() < 0.75 else self.rng.randrange(len(self.shapes))
        source = self._narrowed(source)
        kind = self.rng.random()
        if kind < 0.15 and self._join(source):
            return
        if kind < 0.22 and self._again(source):
            return
        shape = self.shapes[source]
        table = ROWS[len(shape)]
        (build,) = self.rng.choices([r for r, _ in table], [w for _, w in table])
        block = build(self.rng, shape)
        if block is not None:
            self.add(block, source)

    def _narrowed(self, source: int) -> int:
        """Wide values go through a narrow layer first, to keep networks small."""
        shape = self.shapes[source]
        if len(shape) == 3 and shape[0] > MOST_CHANNELS:
            return self.add(nn.Conv2d(shape[0], 8, 1), source)
        if len(shape) == 3 and math.prod(shape) > MOST_VALUES:
            return self.add(nn.AvgPool2d(2), source)
        if len(shape) < 3 and shape[-1] > MOST_CHANNELS:
            return self.add(nn.Linear(shape[-1], 8), source)
        return source

    def _join(self, source: int) -> bool:
        """Combine `source` with an earlier value, if there is one that fits."""
        mine = self.shapes[source]
        others = [i for i in range(len(self.shapes)) if i != source]
        self.rng.shuffle(others)
        for other in others:
            theirs = self.shapes[other]
            if len(mine) == 3 and len(theirs) == 1:
                self.add(images.Film(mine[0], theirs[0]), source, other)
                return True
            if len(mine) == 3 and len(theirs) == 3 and mine[1:] == theirs[1:]:
                self._join_alike(source, other, 0)
                return True
            if len(mine) == len(theirs) != 3 and mine[:-1] == theirs[:-1]:
                self._join_alike(source, other, -1)
                return True
        return False

    def _join_alike(self, source: int, other: int, channel: int) -> None:
        mine, theirs = self.shapes[source][channel], self.shapes[other][channel]
        if mine + theirs <= MOST_CHANNELS and self.rng.random() < 0.5:
            self.add(plain.Join(1 if channel == 0 else -1), source, other)
            return
        project: nn.Module = nn.Identity()
        if mine != theirs:
            project = nn.Conv2d(theirs, mine, 1) if channel == 0 else nn.Linear(theirs, mine)
        self.add(plain.Sum(project), source, other)

    def _again(self, source: int) -> bool:
        """Run an earlier block a second time, on another value of the shape it takes."""
        fits = [
            step.block
            for step in self.steps
            if len(step.reads) == 1 and self.shapes[step.reads[0]] == self.shapes[source]
        ]
        fits = [b for b in fits if any(True for _ in self.parts[b].parameters())]
        if not fits:
            return False
        self.apply(self.rng.choice(fits), source)
        return True

    def finish(self) -> list[int]:
        """A head for every value that nobody reads; the numbers of the outputs."""
        outputs = []
        for value in [i for i, readers in enumerate(self.readers) if not readers]:
            if self.rng.random() < 0.1 and value >= 2:
                outputs.append(value)
                continue
            shape = self.shapes[value]
            pool = {3: ["mean", "flatten", "adaptive"], 2: ["tokens", "token"], 1: ["flatten"]}
            flat = self.add(plain.Pooled(self.rng.choice(pool[len(shape)])), value)
            head = nn.Linear(self.shapes[flat][0], self.rng.choice([3, 5]))
            outputs.append(self.add(head, flat))
        return outputs


def generate(seed: int, steps: int | None = None) -> Generated:
    """The random network number `seed`, with `steps` rows (3 to 10 unless told)."""
    rng = random.Random(seed)
    with _float64(seed):
        shapes: list[Shape] = [rng.choice(INPUTS)]
        if rng.random() < 0.25:
            shapes.append(rng.choice([(6,), shapes[0]]))
        grower = Grower(rng, shapes)
        for _ in range(steps or rng.randint(3, 10)):
            grower.grow()
        outputs = grower.finish()
        kind = Network if len(shapes) == 1 else TwoInputs
        structure = rng.choice(["tuple", "tuple", "dict", "list"])
        model = kind(grower.parts, grower.steps, outputs, structure)
        _tie(rng, model)
        enliven(model)
        inputs = tuple(torch.randn(BATCH, *shape) for shape in shapes)
    return Generated(seed, model.eval(), inputs)


def enliven(model: nn.Module) -> None:
    """Weights and statistics that keep the signal alive at any depth."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = max(1, parameter[0].numel())
                parameter.normal_(0, math.sqrt(2 / fan_in))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, ParametrizationList) and hasattr(module[0], "_power_method"):
                weight = module[0]._reshape_weight_to_matrix(module.original)
                module[0]._power_method(weight, 15)


def _tie(rng: random.Random, model: nn.Module) -> None:
    """Now and then, two layers share one weight."""
    if rng.random() > 0.2:
        return
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    pairs = [
        (a, b)
        for i, a in enumerate(layers)
        for b in layers[i + 1 :]
        if type(a) is type(b) and a.weight.shape == b.weight.shape
    ]
    if pairs:
        first, second = rng.choice(pairs)
        second.weight = first.weight


@contextmanager
def _float64(seed: int) -> Iterator[None]:
    """Everything drawn inside is float64 and depends on `seed` alone."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
