"""Allocation problems shaped like real networks, with synthetic values and latencies.

Structures, widths and resolutions are those of the published networks; no framework is needed to
make them.  Values are sums of a saliency matrix per layer (random norms, log-normal spread between
layers and between channels) over the kept inputs and outputs.  Latencies follow a roofline with
tiles of 128 positions x 64 output channels x 32 inputs, waves over 108 multiprocessors, and a
launch cost per layer: staircases as on a GPU at batch 128.  Nothing here was measured on a network;
the point is the shape and the size of the problems.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.instance import FloatArray, Instance, IntArray, Term
from fxprune.solver import SparseFactor, sum_factor

STEP = 8  # channels between options of the fine ladders
COARSE = 8  # options of the coarse ladders
RESOURCES = ("latency_ns", "weights", "activations")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer between two groups of channels; `source` None is the image.

    `target` None is an output that keeps its width.  Depthwise layers have source == target.
    """

    name: str
    source: str | None
    target: str | None
    inputs: int
    outputs: int
    kernel: int
    pixels: int
    depthwise: bool = False


@dataclass
class Network:
    """Groups (name to width), layers, and sums of groups (concatenations)."""

    widths: dict[str, int] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    sums: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def conv(
        self, source: str | None, target: str | None, kernel: int, pixels: int, fixed: int = 3
    ) -> None:
        name = f"{len(self.layers)}:{source}->{target}"
        inputs = self.widths[source] if source else fixed
        outputs = self.widths[target] if target else fixed
        depthwise = source is not None and source == target
        self.layers.append(Layer(name, source, target, inputs, outputs, kernel, pixels, depthwise))


def resnet(blocks: Sequence[int], bottleneck: bool) -> Network:
    net = Network()
    expansion = 4 if bottleneck else 1
    net.widths["stem"] = 64
    net.conv(None, "stem", 7, 112 * 112)
    before = "stem"
    for stage, count in enumerate(blocks):
        width, pixels = 64 * 2**stage, (56 // 2**stage) ** 2
        trunk = "stem" if stage == 0 and not bottleneck else f"trunk{stage}"
        net.widths[trunk] = width * expansion
        for block in range(count):
            a, b = f"s{stage}b{block}a", f"s{stage}b{block}b"
            net.widths[a] = width
            if bottleneck:
                net.widths[b] = width
                wide = pixels * 4 if block == 0 and stage else pixels
                net.conv(before, a, 1, wide)
                net.conv(a, b, 3, pixels)
                net.conv(b, trunk, 1, pixels)
            else:
                net.conv(before, a, 3, pixels)
                net.conv(a, trunk, 3, pixels)
            if block == 0 and before != trunk:
                net.conv(before, trunk, 1, pixels)
            before = trunk
    net.conv(before, None, 1, 1, fixed=1000)
    return net


def vgg16() -> Network:
    net = Network()
    before: str | None = None
    side = 224
    for stage, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for layer in range(count):
            name = f"s{stage}c{layer}"
            net.widths[name] = width
            net.conv(before, name, 3, side * side)
            before = name
        side //= 2
    for name, kernel in (("fc1", 7), ("fc2", 1)):
        net.widths[name] = 4096
        net.conv(before, name, kernel, 1)
        before = name
    net.conv(before, None, 1, 1, fixed=1000)
    return net


def mobilenet_v2() -> Network:
    net = Network(widths={"stem": 32})
    net.conv(None, "stem", 3, 112 * 112)
    net.conv("stem", "stem", 3, 112 * 112)
    net.widths["out0"] = 16
    net.conv("stem", "out0", 1, 112 * 112)
    before, side = "out0", 112
    for stage, (expansion, width, count, stride) in enumerate(
        [(6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    ):
        out = f"out{stage + 1}"
        net.widths[out] = width
        for block in range(count):
            hidden = f"s{stage}b{block}"
            net.widths[hidden] = expansion * net.widths[before]
            net.conv(before, hidden, 1, side * side)
            side //= stride if block == 0 else 1
            net.conv(hidden, hidden, 3, side * side)
            net.conv(hidden, out, 1, side * side)
            before = out
    net.widths["head"] = 1280
    net.conv(before, "head", 1, side * side)
    net.conv("head", None, 1, 1, fixed=1000)
    return net


def densenet121() -> Network:
    net = Network(widths={"stem": 64})
    net.conv(None, "stem", 7, 112 * 112)
    before = "stem"
    for stage, count in enumerate([6, 12, 24, 16]):
        pixels = (56 // 2**stage) ** 2
        for layer in range(count):
            middle, grown = f"s{stage}l{layer}m", f"s{stage}l{layer}w"
            total = f"s{stage}l{layer}c"
            net.widths |= {middle: 128, grown: 32, total: net.widths[before] + 32}
            net.conv(before, middle, 1, pixels)
            net.conv(middle, grown, 3, pixels)
            net.sums.append((total, (before, grown)))
            before = total
        if stage < 3:
            net.widths[f"t{stage}"] = net.widths[before] // 2
            net.conv(before, f"t{stage}", 1, pixels)
            before = f"t{stage}"
    net.conv(before, None, 1, 1, fixed=1000)
    return net


NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet18": lambda: resnet([2, 2, 2, 2], bottleneck=False),
    "resnet50": lambda: resnet([3, 4, 6, 3], bottleneck=True),
    "resnet101": lambda: resnet([3, 4, 23, 3], bottleneck=True),
    "vgg16": vgg16,
    "mobilenet_v2": mobilenet_v2,
    "densenet121": densenet121,
}


def latency(layer: Layer, inputs: IntArray, outputs: IntArray, batch: int = 128) -> FloatArray:
    """Nanoseconds [len(inputs), len(outputs)] of the roofline model."""
    a, b = inputs[:, None].astype(np.float64), outputs[None, :].astype(np.float64)
    positions = batch * layer.pixels
    traffic = 2.0 * (positions * (a + b) + a * b * layer.kernel**2) / 1555.0
    if layer.depthwise:
        return np.asarray(4.0 * positions * np.diagonal(a + 0 * b)[:, None] / 1555.0 + 3000.0)
    tiles = np.ceil(positions / 128) * np.ceil(b / 64)
    compute = np.ceil(tiles / 108) * np.ceil(a * layer.kernel**2 / 32) * 180.0
    return np.asarray(np.maximum(compute, traffic) + 3000.0)


def importance(layer: Layer, inputs: IntArray, outputs: IntArray, seed: int) -> FloatArray:
    """What keeping the best `inputs[i]` and `outputs[j]` channels is worth, [i, j].

    Sums of squared weights, so gamma distributed, drawn per cell between two rungs of the ladders.
    """
    rng = np.random.default_rng([seed, zlib.crc32(layer.name.encode())])
    scale = float(rng.lognormal(0.0, 0.7))
    sides = [-np.sort(-rng.lognormal(0.0, 0.8, n)) for n in (layer.inputs, layer.outputs)]
    edges = [np.concatenate([[0], rungs[:-1]]) for rungs in (inputs, outputs)]
    if layer.depthwise:
        return np.asarray(scale * np.cumsum(np.add.reduceat(sides[1], edges[1])))
    weights = np.multiply.outer(np.diff(inputs, prepend=0), np.diff(outputs, prepend=0))
    weights = weights * layer.kernel**2
    noise = rng.gamma(weights / 2, 2.0) / weights
    cells = np.multiply.outer(*(np.add.reduceat(s, e) for s, e in zip(sides, edges, strict=True)))
    cells *= noise * scale / layer.inputs
    return np.asarray(cells.cumsum(axis=0).cumsum(axis=1))


def ladder(width: int, coarse: bool) -> IntArray:
    """The widths to choose from: every 8 channels, or 8 of these."""
    fine = np.arange(STEP, width + 1, STEP)
    if width % STEP:
        fine = np.append(fine, width)
    return (fine[rungs(len(fine))] if coarse else fine).astype(np.int64)


def rungs(count: int) -> IntArray:
    """The options that a coarse ladder keeps of `count`."""
    if count <= COARSE:
        return np.arange(count)
    return np.linspace(0, count - 1, COARSE + 1).round().astype(np.int64)[1:]


def instance(name: str, coarse: bool = False, seed: int = 0) -> Instance:
    """The named network with all three resources; values scaled so that dense is worth 100."""
    network = NETWORKS[name]()
    parts_of = dict(network.sums)
    ladders: dict[str, IntArray] = {}
    for group, width in network.widths.items():
        if group in parts_of:
            first, second = (ladders[part] for part in parts_of[group])
            ladders[group] = np.unique(np.add.outer(first, second))
        else:
            ladders[group] = ladder(width, coarse)
    terms = [_term(layer, ladders, seed) for layer in network.layers]
    scale = 100 / sum(float(term.value.flat[-1]) for term in terms)
    return Instance(
        ladders=ladders,
        terms=tuple(replace(term, value=term.value * scale) for term in terms),
        ties=tuple(_tie(total, parts, ladders) for total, parts in network.sums),
        fixed=(0,) * len(RESOURCES),
    )


def _term(layer: Layer, ladders: Mapping[str, IntArray], seed: int) -> Term:
    inputs = ladders[layer.source] if layer.source else np.array([layer.inputs])
    outputs = ladders[layer.target] if layer.target else np.array([layer.outputs])
    value = importance(layer, inputs, outputs, seed)
    time = latency(layer, inputs, outputs)
    kernel = layer.kernel**2
    if layer.depthwise:
        time = time.ravel()
        weights, activations = inputs * kernel, inputs * layer.pixels
        ends = [layer.source]
    else:
        weights = np.multiply.outer(inputs, outputs) * kernel
        activations = np.broadcast_to(outputs * layer.pixels, weights.shape)
        ends = [layer.source, layer.target]
    scope = tuple(end for end in ends if end is not None)
    shape = tuple(len(ladders[end]) for end in scope)
    cost = np.stack([np.rint(time).astype(np.int64), weights, activations])
    return Term(
        layer.name,
        scope,
        value.reshape(shape),
        cost.reshape(len(RESOURCES), *shape),
        reads=frozenset(scope) & {layer.source},
        writes=frozenset(scope) & {layer.target},
    )


def _tie(total: str, parts: Sequence[str], ladders: Mapping[str, IntArray]) -> SparseFactor:
    ends = [(part, ladders[part].tolist()) for part in parts]
    return sum_factor(f"sum {total}", ends, (total, ladders[total].tolist()), 0)
