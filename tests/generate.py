"""Random networks that are valid by construction: `generate(seed)` always gives the same one.

A network is grown value by value. Each step draws a row of the table below that takes the shape at
hand, builds its block, runs it once to learn the shape of the result, and goes on. What nobody has
read in the end becomes an output through a small head. Weights are drawn so that the signal stays
alive (He et al. 2015), everything is in float64, and batches of any size can be run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests import blocks

Shape = tuple[int, ...]
Row = Callable[[random.Random, Shape], nn.Module | None]

BATCH = 2
INPUTS: tuple[Shape, ...] = ((3, 8, 8), (4, 6, 6), (4, 6, 6), (3, 4, 4), (6, 5), (5,))
WIDTHS = (4, 6, 8, 12)
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


# -- the table of rows -----------------------------------------------------------------------------

ROWS: dict[int, list[tuple[Row, float]]] = {1: [], 2: [], 3: []}


def row(*ranks: int, weight: float = 1.0) -> Callable[[Row], Row]:
    """Decorator: a row for values of these ranks (3 image, 2 tokens, 1 vector)."""

    def add(build: Row) -> Row:
        for rank in ranks:
            ROWS[rank].append((build, weight))
        return build

    return add


def divisors(number: int) -> list[int]:
    """Divisors of `number` above one, `number` itself included."""
    return [d for d in range(2, number + 1) if number % d == 0]


def activation(rng: random.Random, channels: int) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        nn.GELU,
        nn.SiLU,
        nn.Hardswish,
        nn.Sigmoid,
        nn.ELU,
        nn.Mish,
        nn.Softplus,
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.PReLU(channels),
        nn.PReLU,
        nn.Identity,
    ]
    return rng.choice(kinds)()


def image_norm(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.BatchNorm2d(channels, affine=False),
        nn.Identity,
        lambda: nn.GroupNorm(rng.choice([1, *divisors(channels)][:-1] or [1]), channels),
        lambda: nn.InstanceNorm2d(channels, affine=True),
        lambda: blocks.ChannelsLast(nn.LayerNorm(channels)),
        lambda: nn.LayerNorm(shape, elementwise_affine=rng.random() < 0.5),
    ]
    return rng.choice(kinds)()


def convolution(rng: random.Random, inputs: int, outputs: int, height: int) -> nn.Module:
    """Any kind of two-dimensional convolution from `inputs` to `outputs` channels."""
    bias = rng.random() < 0.6
    common = [g for g in divisors(inputs) if outputs % g == 0]
    kind = rng.choice(["1x1", "3x3", "3x3", "dilated", "grouped", "strided", "depthwise", "other"])
    if kind == "grouped" and common:
        return nn.Conv2d(inputs, outputs, 3, padding=1, groups=rng.choice(common), bias=bias)
    if kind == "depthwise" and outputs % inputs == 0:
        return nn.Conv2d(inputs, outputs, 3, padding=1, groups=inputs, bias=bias)
    if kind == "dilated" and height > 4:
        return nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2, bias=bias)
    if kind == "strided" and height >= 4:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias)
    if kind == "other":
        return other_convolution(rng, inputs, outputs, height, bias)
    if kind == "1x1":
        return nn.Conv2d(inputs, outputs, 1, bias=bias)
    mode = rng.choice(["zeros", "zeros", "zeros", "reflect", "circular"])
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, padding_mode=mode)


def other_convolution(
    rng: random.Random, inputs: int, outputs: int, height: int, bias: bool
) -> nn.Module:
    common = [g for g in divisors(inputs) if outputs % g == 0]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: blocks.Functional(inputs, outputs, rng.choice([1, 3]), 1, bias),
        lambda: blocks.Mixing(inputs, outputs, rng.choice(["einsum", "matmul"])),
        lambda: blocks.Lifted(inputs, outputs),
        lambda: blocks.RowConv(inputs, outputs),
        lambda: blocks.Standardised(inputs, outputs),
        lambda: weight_norm(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)),
        lambda: blocks.ChannelsLast(nn.Linear(inputs, outputs)),
    ]
    if common:
        groups = rng.choice(common)
        kinds.append(lambda: blocks.Functional(inputs, outputs, 3, groups, bias))
    if height <= 4:
        kinds += [lambda: nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=bias)] * 2
    if height <= 4 and common:
        kinds.append(
            lambda: nn.ConvTranspose2d(
                inputs, outputs, 3, stride=2, padding=1, output_padding=1, groups=rng.choice(common)
            )
        )
    return rng.choice(kinds)()


@row(3, weight=4)
def conv_norm_act(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    conv = convolution(rng, shape[0], out, shape[1])
    after = tuple(conv(torch.zeros(1, *shape)).shape[1:])
    return nn.Sequential(conv, image_norm(rng, after), activation(rng, out))


@row(3, weight=2)
def residual_image(rng: random.Random, shape: Shape) -> nn.Module:
    channels, inner = shape[0], rng.choice(WIDTHS)
    first = nn.Conv2d(channels, inner, rng.choice([1, 3]), padding="same", bias=False)
    last = nn.Conv2d(inner, channels, 3, padding=1)
    body = nn.Sequential(first, image_norm(rng, (inner, *shape[1:])), activation(rng, inner), last)
    scale = torch.rand(channels, 1, 1) if rng.random() < 0.3 else None
    return blocks.Residual(body, scale, inplace=rng.random() < 0.2)


@row(3)
def inverted_residual(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    inner = channels * rng.choice([1, 2])
    body = [
        nn.Conv2d(channels, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU6(),
        nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
        nn.BatchNorm2d(inner),
        blocks.SqueezeExcite(inner, 4, "conv"),
        nn.Conv2d(inner, channels, 1, bias=False),
    ]
    return blocks.Residual(nn.Sequential(*body))


@row(3)
def branches(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] > 12:
        return None
    first: nn.Module = nn.Conv2d(shape[0], rng.choice(WIDTHS), 1)
    second = nn.Conv2d(shape[0], rng.choice(WIDTHS), 3, padding=1)
    parts = rng.choice([[first, second], [nn.Identity(), second], [second, nn.MaxPool2d(3, 1, 1)]])
    return blocks.Branches(parts)


@row(3, 2, 1, weight=0.5)
def itself(rng: random.Random, shape: Shape) -> nn.Module | None:
    return blocks.Itself() if len(shape) != 2 and shape[0] <= 12 else None


@row(3)
def halves(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels = shape[0]
    if channels % 2 or channels < 4:
        return None
    how = rng.choice(["chunk", "split", "narrow", "slice"])
    first = channels // 2 if how == "chunk" else rng.randrange(2, channels - 1)
    inner = nn.Sequential(
        nn.Conv2d(first, first, 3, padding=1, groups=rng.choice([1, first])), activation(rng, first)
    )
    body = blocks.Halves(inner, how, first, channels)
    if how == "chunk" and rng.random() < 0.6:
        return nn.Sequential(body, blocks.Shuffle(2, channels, "shape"))
    return body


@row(3, 1)
def slices(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels = shape[0]
    if channels < 4:
        return None
    cut = rng.randrange(2, channels - 1)
    bounds = [(None, cut, None), (cut, None, None), (-cut, None, None), (1, -1, None)]
    bounds += [(None, None, 2), (1, None, 2), (0, channels - 1, 3), (None, None, 3)]
    return blocks.Slice(*rng.choice(bounds))


@row(3, weight=0.5)
def even_odd(rng: random.Random, shape: Shape) -> nn.Module | None:
    return blocks.EvenOdd() if shape[0] % 2 == 0 and shape[0] >= 8 else None


@row(3)
def shuffle(rng: random.Random, shape: Shape) -> nn.Module | None:
    possible = [d for d in divisors(shape[0]) if d < shape[0]]
    if not possible:
        return None
    groups, style = rng.choice(possible), rng.choice(["shape", "numbers", "function", "module"])
    if style == "module":
        return nn.ChannelShuffle(groups)
    return blocks.Shuffle(groups, shape[0], style)


@row(3)
def squeeze_excite(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.SqueezeExcite(shape[0], rng.choice([2, 4]), rng.choice(["conv", "linear"]))


@row(3, 2, 1)
def glu(rng: random.Random, shape: Shape) -> nn.Module | None:
    dim = -1 if len(shape) == 2 else 1
    width = shape[-1] if dim == -1 else shape[0]
    return blocks.Glu(dim, rng.choice(["function", "chunk"])) if width in (8, 12, 16, 24) else None


@row(3)
def resize(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels, height, _ = shape
    if height % 2 == 0 and height > 2 and rng.random() < 0.5:
        return rng.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(height // 2)])
    if height <= 4:
        choices: list[nn.Module] = [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2)]
        if channels % 4 == 0 and channels > 4:
            choices += [nn.PixelShuffle(2)] * 3
        return rng.choice(choices)
    if height % 2 == 0 and channels <= 6:
        return nn.PixelUnshuffle(2)
    return nn.MaxPool2d(3, 1, 1)


@row(3, weight=0.5)
def shortcut(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] > 12 or shape[1] < 4:
        return None
    return blocks.Shortcut(rng.choice([0, 2]), rng.choice([1, 2]))


@row(3, weight=0.7)
def repeated(rng: random.Random, shape: Shape) -> nn.Module | None:
    return blocks.Repeated(2, rng.random() < 0.5) if shape[0] <= 8 else None


@row(3)
def non_local(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.NonLocal(shape[0], rng.choice([3, 4]))


@row(3)
def convnext(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    mlp = nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, channels)
    )
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    body = nn.Sequential(depthwise, blocks.ChannelsLast(mlp))
    return blocks.Residual(body, torch.rand(channels, 1, 1))


@row(3, 1)
def buffered(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.Buffered(shape[0], len(shape) - 1)


@row(3, 1, weight=0.5)
def chosen(rng: random.Random, shape: Shape) -> nn.Module:
    index = rng.sample(range(shape[0]), max(2, shape[0] - 1))
    return blocks.Chosen(index, rng.choice(["index", "select"]))


@row(3, weight=0.5)
def stacked(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    parts = [nn.Conv2d(shape[0], out, k, padding=k // 2) for k in (1, 3)]
    return blocks.Stacked(parts, 3)


@row(3, 1, weight=0.4)
def along(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] < 4:
        return None
    styles = ["softmax", "cumsum", "normalize", "centre", "sort", "flip", "topk", "unfold"]
    if len(shape) == 3:
        styles.append("response")
    return blocks.Along(rng.choice(styles))


@row(3, 2, 1)
def norm_by_hand(rng: random.Random, shape: Shape) -> nn.Module:
    dim = 1 if len(shape) == 3 else -1
    style = rng.choice(["layer", "layer", "rms", "unit", "unbiased"])
    return blocks.NormByHand(shape[0] if dim == 1 else shape[-1], dim, len(shape), style)


@row(3, 2, 1, weight=0.5)
def in_place(rng: random.Random, shape: Shape) -> nn.Module:
    dim = -1 if len(shape) == 2 else 1
    return blocks.InPlace(shape[-1] if dim == -1 else shape[0], dim, len(shape))


@row(3, weight=0.6)
def spatial_attention(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.SpatialAttention()


@row(2, weight=0.5)
def recurrent(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.Recurrent(shape[1], rng.choice([4, 6]), min(shape[0], 4))


@row(1, weight=0.5)
def vector_field(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.Steps(shape[0], rng.choice([4, 6]))


@row(3, weight=1.5)
def tokens(rng: random.Random, shape: Shape) -> nn.Module | None:
    places = shape[1] * shape[2]
    if places > 40:
        return None
    return blocks.Tokens(shape[0], places, rng.random() < 0.5, rng.random() < 0.5)


@row(3, weight=0.4)
def image_to_vector(rng: random.Random, shape: Shape) -> nn.Module:
    return blocks.Pooled(rng.choice(["mean", "adaptive", "peak", "view", "flatten"]))


@row(2, weight=4)
def attention(rng: random.Random, shape: Shape) -> nn.Module:
    count, channels = shape
    heads, width = rng.choice([(2, 3), (2, 4), (3, 2), (4, 2), (1, 4)])
    kind = rng.random()
    if kind < 0.15:
        inner: nn.Module = blocks.FoldedAttention(channels, heads, width)
    elif kind < 0.3:
        inner = blocks.GroupedQueries(channels, 4, 2, width, rng.random() < 0.5)
    elif kind < 0.35:
        inner = blocks.Rotary(channels, 2, 4, count)
    else:
        layouts = ["fused", "fused unbind", "fused chunk", "separate", "separate shape"]
        layouts.append("unflatten")
        kernels = ["sdpa", "causal", "masked", "biased", "einsum", "shape", "scaled"]
        inner = blocks.Attention(
            channels, heads, width, rng.choice(layouts), rng.choice(kernels), count
        )
    sizes = [d for d in divisors(count) if d < count]
    if kind > 0.8 and sizes and getattr(inner, "bias", None) is None:
        inner = blocks.Windows(inner, rng.choice(sizes), channels, rng.random() < 0.5)
    norm = rng.choice([nn.LayerNorm, nn.RMSNorm, nn.Identity])
    return blocks.Residual(nn.Sequential(norm(channels), inner))


@row(2, weight=2)
def mlp(rng: random.Random, shape: Shape) -> nn.Module:
    channels, inner = shape[1], rng.choice([6, 8, 12])
    plain = nn.Sequential(
        nn.Linear(channels, inner),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(inner, channels, bias=rng.random() < 0.5),
    )
    body = rng.choice([plain, blocks.SwiGlu(channels, inner, rng.random() < 0.5)])
    norm = rng.choice([nn.LayerNorm(channels), nn.RMSNorm(channels), nn.LayerNorm(channels, 1e-6)])
    scale = torch.rand(channels) if rng.random() < 0.3 else None
    return blocks.Residual(nn.Sequential(norm, body), scale)


@row(2)
def token_linear(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    return nn.Sequential(nn.Linear(shape[1], out), activation_last(rng))


def activation_last(rng: random.Random) -> nn.Module:
    return rng.choice([nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU(inplace=True)])


@row(2)
def across_tokens(rng: random.Random, shape: Shape) -> nn.Module:
    count, channels = shape
    if rng.random() < 0.5:
        return blocks.TokenMixing(count, rng.choice([4, 6]))
    out = rng.choice(WIDTHS)
    groups = rng.choice([1, *(g for g in divisors(channels) if out % g == 0)])
    return blocks.TokenConv(channels, out, groups)


@row(2, weight=0.8)
def tokens_to_vector(rng: random.Random, shape: Shape) -> nn.Module:
    if rng.random() < 0.2:
        return blocks.AttentionPool(shape[1])
    return blocks.Pooled(rng.choice(["token", "tokens", "sum", "flatten"]))


@row(1, weight=3)
def dense(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    norm = rng.choice([nn.BatchNorm1d(out), nn.LayerNorm(out), nn.Identity(), nn.Dropout(0.2)])
    return nn.Sequential(nn.Linear(shape[0], out), norm, activation(rng, out))


@row(1)
def residual_vector(rng: random.Random, shape: Shape) -> nn.Module:
    inner = rng.choice(WIDTHS)
    body = nn.Sequential(nn.Linear(shape[0], inner), nn.ReLU(), nn.Linear(inner, shape[0]))
    return blocks.Residual(body)


@row(1)
def outer(rng: random.Random, shape: Shape) -> nn.Module:
    left, right = rng.choice([(3, 4), (4, 2), (4, 4)])
    return blocks.Outer(shape[0], left, right, rng.choice(["einsum", "itself", "bmm"]))


# -- growing a network -----------------------------------------------------------------------------


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
                self.add(blocks.Film(mine[0], theirs[0]), source, other)
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
            self.add(blocks.Join(1 if channel == 0 else -1), source, other)
            return
        project: nn.Module = nn.Identity()
        if mine != theirs:
            project = nn.Conv2d(theirs, mine, 1) if channel == 0 else nn.Linear(theirs, mine)
        self.add(blocks.Sum(project), source, other)

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
            flat = self.add(blocks.Pooled(self.rng.choice(pool[len(shape)])), value)
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
