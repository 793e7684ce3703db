"""Kernel algebra: what two linear maps make together, in float64, against running them."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.passes.linear import kernels
from fxprune.passes.linear.geometry import Geometry
from fxprune.passes.linear.kernels import Kernel
from tests.linear_networks import noise

RUN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def run(kernel: Kernel, x: Tensor) -> Tensor:
    shape = kernel.geometry
    if not shape.dims:
        assert shape.groups == 1
        return F.linear(x, kernel.weight, kernel.bias)
    before = [p for p in reversed(shape.padding) for _ in range(2)]
    x = F.pad(x, before)  # which crops where the padding is negative
    zeros = (0,) * shape.dims
    return RUN[shape.dims](
        x, kernel.weight, kernel.bias, shape.stride, zeros, shape.dilation, shape.groups
    )


def gap(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 1e-3
    return float((found - expected).abs().max() / expected.abs().max())


def numbers(shape: Geometry, seed: int) -> Kernel:
    weight = noise(shape.out_width, shape.in_width // shape.groups, *shape.kernel, seed=seed)
    return Kernel(shape, weight, noise(shape.out_width, seed=seed + 1) if shape.bias else None)


def drawn(
    draw: random.Random, dims: int, widths: tuple[int, int], padding: tuple[int, ...]
) -> Geometry:
    groups = [g for g in (1, 2, 3, 4, 6, 12) if widths[0] % g == 0 and widths[1] % g == 0]
    return Geometry(
        *widths,
        kernel=tuple(draw.choice((1, 2, 3) if dims == 3 else (1, 2, 3, 5)) for _ in range(dims)),
        stride=tuple(draw.choice((1, 1, 2, 3)) for _ in range(dims)),
        padding=padding,
        dilation=tuple(draw.choice((1, 1, 2)) for _ in range(dims)),
        groups=draw.choice(groups) if dims else 1,
        bias=draw.random() < 0.5,
    )


def inputs(draw: random.Random, dims: int, width: int, shape: Geometry) -> Tensor:
    """Of random sizes, odd and even, a little larger than the kernel."""
    sizes = [draw.randint(r + 3, r + (6 if dims == 3 else 12)) for r in shape.reach]
    return noise(2, width, *sizes, seed=7) if dims else noise(5, width, seed=7)


@pytest.mark.parametrize("seed", range(80))
def test_a_sequence_is_one_kernel(seed):
    draw = random.Random(seed)
    dims = seed % 4
    widths = [draw.choice((4, 6, 12)) for _ in range(3)]
    pads = tuple(draw.choice((0, 1, 2)) for _ in range(dims))
    first = numbers(drawn(draw, dims, (widths[0], widths[1]), pads), seed)
    second = numbers(drawn(draw, dims, (widths[1], widths[2]), (0,) * dims), seed + 100)
    assert first.geometry.is_exact_before(second.geometry)
    merged = kernels.then(first, second)
    x = inputs(draw, dims, widths[0], merged.geometry)
    assert gap(run(merged, x), run(second, run(first, x))) < 1e-12
    assert merged.weight.numel() == merged.geometry.weights
    if dims:
        assert run(merged, x).shape[2:] == merged.geometry.out_spatial(tuple(x.shape[2:]))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", range(9, 15))
def test_inner_padding_is_exact_where_nothing_but_zeros_lies_outside(size, stride):
    # Without a bias, and padded by its whole reach, the first layer yields zeros beyond its border.
    first = numbers(Geometry(2, 3, (3,), (stride,), (2,), (1,), 1, bias=False), 1)
    second = numbers(Geometry(3, 2, (3,), (2,), (1,), (1,), 1, bias=True), 2)
    assert first.geometry.is_exact_before(second.geometry)
    x = noise(1, 2, size)
    assert gap(run(kernels.then(first, second), x), run(second, run(first, x))) < 1e-12


@pytest.mark.parametrize(
    ("padding", "bias"), [(0, True), (1, True), (2, True), (0, False), (1, False)]
)
def test_inner_padding_is_called_inexact_where_it_is(padding, bias):
    first = numbers(Geometry(2, 3, (3,), (1,), (padding,), (1,), 1, bias), 1)
    second = numbers(Geometry(3, 2, (3,), (1,), (1,), (1,), 1, bias=False), 2)
    assert not first.geometry.is_exact_before(second.geometry)
    x = noise(1, 2, 12)
    merged, expected = run(kernels.then(first, second), x), run(second, run(first, x))
    assert gap(merged, expected) > 1e-3
    assert gap(merged[..., 1:-1], expected[..., 1:-1]) < 1e-12


def test_the_sequence_rule_in_numbers():
    first = Geometry(8, 16, (3, 1), (2, 2), (1, 0), (1, 1), 8, bias=False)
    second = Geometry(16, 4, (3, 3), (1, 2), (1, 1), (1, 1), 4, bias=True)
    # 3 + 2 (3 - 1) = 7 taps; behind a single tap of stride 2, three taps two apart.
    assert first.then(second) == Geometry(8, 4, (7, 3), (2, 4), (3, 2), (1, 2), groups=4, bias=True)


@pytest.mark.parametrize("seed", range(40))
def test_a_sum_is_one_kernel(seed):
    draw = random.Random(seed)
    dims = 1 + seed % 3
    widths = (draw.choice((4, 6, 12)), draw.choice((4, 6, 12)))
    stride = tuple(draw.choice((1, 2)) for _ in range(dims))
    cropped = tuple(draw.choice((0, 1)) for _ in range(dims))
    shapes = []
    for _ in range(2):
        kernel = tuple(draw.choice((1, 3, 5)) for _ in range(dims))
        dilation = tuple(draw.choice((1, 2)) for _ in range(dims))
        taps = zip(kernel, dilation, cropped, strict=True)
        padding = tuple(d * (k - 1) // 2 - c for k, d, c in taps)
        groups = draw.choice([g for g in (1, 2, 4) if all(w % g == 0 for w in widths)])
        bias = draw.random() < 0.5
        shapes.append(Geometry(*widths, kernel, stride, padding, dilation, groups, bias))
    first, second = (numbers(shape, seed + i) for i, shape in enumerate(shapes))
    assert first.geometry.why_not_plus(second.geometry) is None
    merged = kernels.plus(first, second)
    x = inputs(draw, dims, widths[0], merged.geometry)
    assert gap(run(merged, x), run(first, x) + run(second, x)) < 1e-12


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_a_skip_connection_is_a_tap_in_the_centre(dims):
    three = (3,) * dims
    ones = (1,) * dims
    shape = Geometry(4, 4, three, ones, ones, ones, 1, bias=True)
    layer = numbers(shape, 1)
    merged = kernels.plus(layer, kernels.identity(4, dims))
    assert merged.geometry == shape
    centre = (slice(None), slice(None), *ones)
    difference = merged.weight - layer.weight
    assert float((difference[centre] - torch.eye(4)).abs().max()) < 1e-15
    assert float(difference.abs().sum()) == pytest.approx(4)


def test_a_skip_between_the_taps_of_a_dilated_kernel_gets_a_tap_of_its_own():
    layer = numbers(Geometry(4, 4, (2,), (1,), (1,), (2,), 1, bias=True), 1)
    merged = kernels.plus(layer, kernels.identity(4, 1))
    assert (merged.geometry.kernel, merged.geometry.dilation) == ((3,), (1,))
    x = noise(2, 4, 9)
    assert gap(run(merged, x), run(layer, x) + x) < 1e-12


def test_a_skip_around_a_depthwise_kernel_leaves_it_depthwise():
    shape = Geometry(6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 6, bias=False)
    merged = kernels.plus(numbers(shape, 1), kernels.identity(6, 2))
    assert merged.geometry == shape


def test_padding_before_a_layer_and_cropping_behind_it_are_maps_too():
    layer = numbers(Geometry(3, 4, (3, 3), (1, 1), (0, 0), (1, 1), 1, bias=True), 1)
    merged = kernels.then(kernels.identity(3, 2, (2, 1)), layer)
    assert merged.geometry.padding == (2, 1)
    cropped = kernels.then(merged, kernels.identity(4, 2, (-1, -1)))
    assert cropped.geometry.padding == (1, 0)
    x = noise(1, 3, 6, 6)
    assert gap(run(cropped, x), run(merged, x)[..., 1:-1, 1:-1]) < 1e-12


def test_a_scale_and_shift_keeps_the_shape_of_the_layer_before():
    layer = numbers(Geometry(4, 6, (3, 3), (2, 2), (1, 1), (1, 1), 2, bias=False), 1)
    scale, shift = noise(6, seed=2), noise(6, seed=3)
    merged = kernels.then(layer, kernels.scaling(scale, shift, 2))
    assert merged.geometry.groups == 2
    x = noise(1, 4, 7, 7)
    expected = run(layer, x) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
    assert gap(run(merged, x), expected) < 1e-12


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"out_width": 8}, "different channels"),
        ({"stride": (2,)}, "different strides"),
        ({"padding": (0,)}, "by different amounts"),
    ],
)
def test_maps_that_cannot_be_added_are_told_apart(change, why):
    base = {"in_width": 4, "out_width": 4, "kernel": (3,), "stride": (1,), "padding": (1,)}
    rest = {"dilation": (1,), "groups": 1, "bias": False}
    refusal = Geometry(**base, **rest).why_not_plus(Geometry(**{**base, **change}, **rest))
    assert refusal is not None
    assert why in refusal
