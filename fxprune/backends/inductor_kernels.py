"""The kernels that inductor's code calls for convolutions and linear layers, called directly.

What inductor compiles for a CPU calls oneDNN: activations in the NHWC layout, weights in oneDNN's
own, and most activation functions and additions inside of the kernel
(`torch/_inductor/fx_passes/mkldnn_fusion.py`). On CUDA it calls what PyTorch calls, and adds bias
and activation in one loop of its own (`torch/_inductor/kernel/conv.py`). Compiling a region takes
ten seconds and makes the same calls, between changes of layout that networks spare.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.backends.region import ACTIVATIONS, Region

Attribute = tuple[str, list[float], str]
Kernel = Callable[..., Tensor]

NO_ACTIVATION: Attribute = ("none", [], "")
FUSED = MappingProxyType[str | None, Attribute](
    {
        None: NO_ACTIVATION,
        "relu": ("relu", [], ""),
        "relu6": ("hardtanh", [0.0, 6.0], ""),
        "leaky_relu": ("leaky_relu", [nn.LeakyReLU().negative_slope], ""),
        "silu": ("swish", [], ""),
        "hardswish": ("hardswish", [], ""),
        "hardsigmoid": ("hardsigmoid", [], ""),
        "sigmoid": ("sigmoid", [], ""),
        "tanh": ("tanh", [], ""),
        "gelu": ("gelu", [], "none"),
        "gelu_tanh": ("gelu", [], "tanh"),
    }
)
"""How kernels are told the activation that they end in."""
FUSED_AFTER_SUM = MappingProxyType[str | None, Any](
    {None: (None, [], None), "relu": ("relu", [], "")}
)
"""The same for a convolution that adds a second tensor first."""
MANY = 10_000
"""Compilations of one loop that are too many: for every rank, layout, dtype and size of 1."""


def kernel_of(region: Region, dtype: torch.dtype, device: str) -> Kernel:
    """What runs a region on inputs that `laid_out` made, of which it may overwrite the second."""
    arrays = region.weights()
    weight, bias = (None if a is None else torch.from_numpy(a).to(device, dtype) for a in arrays)
    assert weight is not None
    if device != "cpu":
        return with_loop(region, laid_out(weight, dtype), bias)
    if not _is_packed(region, dtype):
        return _alone(region, weight, bias)
    if region.operator == "linear":
        return _packed_linear(region, weight, bias)
    if region.operator == "conv":
        return _packed_convolution(region, weight, bias)
    return _packed_transposed(region, weight, bias)


def laid_out(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it comes from the layer before: in the network's precision and layout."""
    on_cpu = tensor.device.type == "cpu"
    layout = {4: torch.channels_last, 5: torch.channels_last_3d if on_cpu else None}.get(
        tensor.dim()
    )
    copied = torch.empty_like(
        tensor, dtype=dtype, memory_format=layout or torch.contiguous_format, requires_grad=False
    )
    return copied.copy_(tensor.detach())


def _is_packed(region: Region, dtype: torch.dtype) -> bool:
    """Whether weights are brought into oneDNN's own layout."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # On Arm machines little is fused, and PyTorch's own kernels call the same library.
    if not available or torch.ops.mkldnn._is_mkldnn_acl_supported():
        return False
    supported = {
        torch.float32: region.operator != "linear" or torch._C.has_mkl,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    if not supported[dtype]:
        return False
    if region.operator == "linear":
        return True
    if region.operator == "conv_transpose" and (
        region.groups == region.in_width > 1
        or any(p >= s for p, s in zip(region.output_padding, region.stride, strict=True))
    ):
        return False
    return len(region.kernel) in (2, 3)


def _packed_convolution(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel:
    ops = torch.ops.mkldnn
    how = (region.padding, region.stride, region.dilation, region.groups)
    packed = ops._reorder_convolution_weight(weight, *how, region.in_shape)
    if not region.residual:
        run, activation = ops._convolution_pointwise.default, FUSED[region.activation]
        return lambda x: run(x, packed, bias, *how, *activation)
    # The second tensor is mostly used for the last time, and its memory taken for the sum.
    add = ops._convolution_pointwise_.binary
    fused = region.activation if region.activation in FUSED_AFTER_SUM else None
    after, loop = FUSED_AFTER_SUM[fused], _activation(None if fused else region.activation)
    return lambda x, other: loop(add(other, x, packed, bias, *how, "add", None, *after))


def _packed_transposed(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel:
    ops = torch.ops.mkldnn
    run = ops._convolution_transpose_pointwise.default
    paddings = (region.padding, region.output_padding)
    how = (*paddings, region.stride, region.dilation, region.groups)
    packed = ops._reorder_convolution_transpose_weight(weight, *how, region.in_shape)
    if not region.residual:
        activation = FUSED[region.activation]
        return lambda x: run(x, packed, bias, *how, *activation)
    loop = _activation(region.activation)
    return lambda x, other: _end(loop, run(x, packed, bias, *how, *NO_ACTIVATION), other)


def _packed_linear(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel:
    rows = region.batch * (region.spatial[0] if region.spatial else 1)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    if not region.residual:
        run, activation = torch.ops.mkldnn._linear_pointwise.default, FUSED[region.activation]
        return lambda x: run(x, packed, bias, *activation)
    add, loop = torch.ops.mkldnn._linear_pointwise.binary, _activation(region.activation)
    return lambda x, other: loop(add(x, other, packed, bias, "add"))


def with_loop(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel:
    """PyTorch's own kernel, and the one loop that inductor makes of all that comes after it."""
    plain, loop = _plain(region), _loop(region.activation)
    follows = region.residual or region.activation is not None
    # In half precision a product takes its bias along, whatever follows.
    inside = region.operator == "linear" and not (follows and weight.dtype == torch.float32)
    taken, outside = (bias, []) if inside or bias is None else (None, [bias])
    if region.operator != "linear":
        outside = [b.view(-1, *(1,) * len(region.kernel)) for b in outside]
    if not outside and not follows:
        return lambda x: plain(x, weight, taken)
    return lambda x, *others: loop(plain(x, weight, taken), *outside, *others)


@cache
def _loop(activation: str | None) -> Kernel:
    """Compiled for tensors of any size; without a limit, over which it would run uncompiled."""
    compiled = torch.compile(partial(_end, _activation(activation)), dynamic=True, fullgraph=True)

    @torch._dynamo.config.patch(recompile_limit=MANY, accumulated_recompile_limit=MANY)  # type: ignore[untyped-decorator]
    def run(*tensors: Tensor) -> Tensor:
        result: Tensor = compiled(*tensors)
        return result

    return run  # type: ignore[no-any-return]


def _alone(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel:
    """PyTorch's own kernel, and PyTorch's loops after it."""
    plain, activation = _plain(region), _activation(region.activation)
    return lambda x, *others: _end(activation, plain(x, weight, bias), *others)


def _end(activation: nn.Module, y: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        y = y + other
    result: Tensor = activation(y)
    return result


def _activation(name: str | None) -> nn.Module:
    return ACTIVATIONS[name]() if name else nn.Identity()


def _plain(region: Region) -> Kernel:
    if region.operator == "linear":
        return F.linear
    transposed = region.operator == "conv_transpose"
    outer = region.output_padding if transposed else (0,) * len(region.kernel)
    how = (region.stride, region.padding, region.dilation, transposed, outer, region.groups)
    return lambda x, weight, bias: torch.ops.aten.convolution(x, weight, bias, *how)
