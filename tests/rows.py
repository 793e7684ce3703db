"""The table of rows: how a random network goes on from a value of a given shape.

A row gets a random generator and a shape, and builds a block for it, or nothing where it does not
fit. This module holds the table and the rows for values of any kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.blocks import plain

Shape = tuple[int, ...]
Row = Callable[[random.Random, Shape], nn.Module | None]

WIDTHS = (4, 6, 8, 12)

# Rows and how often they are drawn, by the rank of what they take.
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
        nn.LogSigmoid,
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.PReLU(channels),
        nn.PReLU,
        nn.Identity,
    ]
    return rng.choice(kinds)()


@row(3, 2, 1, weight=0.5)
def itself(rng: random.Random, shape: Shape) -> nn.Module | None:
    return plain.Itself() if len(shape) != 2 and shape[0] <= 12 else None


@row(3, 1)
def slices(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels = shape[0]
    if channels < 4:
        return None
    cut = rng.randrange(2, channels - 1)
    bounds = [(None, cut, None), (cut, None, None), (-cut, None, None), (1, -1, None)]
    bounds += [(None, None, 2), (1, None, 2), (0, channels - 1, 3), (None, None, 3)]
    bounds += [(1, None, 3), (None, None, cut)]
    return plain.Slice(*rng.choice(bounds))


@row(3, 2, 1)
def glu(rng: random.Random, shape: Shape) -> nn.Module | None:
    dim = -1 if len(shape) == 2 else 1
    width = shape[-1] if dim == -1 else shape[0]
    return plain.Glu(dim, rng.choice(["function", "chunk"])) if width in (8, 12, 16, 24) else None


@row(3, 1)
def buffered(rng: random.Random, shape: Shape) -> nn.Module:
    return plain.Buffered(shape[0], len(shape) - 1)


@row(3, 1)
def chosen(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] < 3:
        return None
    index = rng.sample(range(shape[0]), rng.randint(2, shape[0]))
    index += rng.choice([[], [], index, index[:1]])  # some of them several times
    return plain.Chosen(index, rng.choice(["index", "select", "list", "gather"]))


@row(3, 1, weight=0.4)
def along(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] < 4:
        return None
    styles = ["softmax", "cumsum", "normalize", "centre", "sort", "topk", "unfold"]
    styles += ["peak", "share", "product", "mode", "gather"]
    if len(shape) == 3:
        styles.append("response")
    return plain.Along(rng.choice(styles))


@row(3, 2, 1)
def norm_by_hand(rng: random.Random, shape: Shape) -> nn.Module | None:
    dim = 1 if len(shape) == 3 else -1
    if (shape[0] if dim == 1 else shape[-1]) < 2:
        return None
    style = rng.choice(["layer", "layer", "rms", "unit", "unbiased"])
    return plain.NormByHand(shape[0] if dim == 1 else shape[-1], dim, len(shape), style)


@row(3, 2, 1, weight=0.5)
def in_place(rng: random.Random, shape: Shape) -> nn.Module:
    dim = -1 if len(shape) == 2 else 1
    return plain.InPlace(shape[-1] if dim == -1 else shape[0], dim, len(shape))


@row(1, weight=0.5)
def vector_field(rng: random.Random, shape: Shape) -> nn.Module:
    return plain.Steps(shape[0], rng.choice([4, 6]))


@row(1, weight=3)
def dense(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    norm = rng.choice([nn.BatchNorm1d(out), nn.LayerNorm(out), nn.Identity(), nn.Dropout(0.2)])
    return nn.Sequential(nn.Linear(shape[0], out), norm, activation(rng, out))


@row(2, 1)
def computed_weight(rng: random.Random, shape: Shape) -> nn.Module:
    """A linear layer whose weight is a function of parameters."""
    out = rng.choice(WIDTHS)
    kind = rng.choice(["spectral", "weight norm", "whole", "symmetric", "orthogonal", "unit"])
    if kind in ("symmetric", "orthogonal"):
        out = shape[-1]
    layer = nn.Linear(shape[-1], out, bias=rng.random() < 0.6)
    match kind:
        case "spectral":
            parametrizations.spectral_norm(layer)
        case "weight norm":
            parametrizations.weight_norm(layer, dim=rng.choice([0, 1]))
        case "whole":
            parametrizations.weight_norm(layer, dim=None)
        case "symmetric":
            parametrize.register_parametrization(layer, "weight", plain.Symmetric())
        case "orthogonal":
            parametrizations.orthogonal(layer)
        case _:
            return plain.UnitRows(shape[-1], out)
    return layer


@row(1)
def residual_vector(rng: random.Random, shape: Shape) -> nn.Module:
    inner = rng.choice(WIDTHS)
    body = nn.Sequential(nn.Linear(shape[0], inner), nn.ReLU(), nn.Linear(inner, shape[0]))
    return plain.Residual(body)


@row(1)
def outer(rng: random.Random, shape: Shape) -> nn.Module:
    left, right = rng.choice([(3, 4), (4, 2), (4, 4)])
    return plain.Outer(shape[0], left, right, rng.choice(["einsum", "itself", "bmm", "bilinear"]))
