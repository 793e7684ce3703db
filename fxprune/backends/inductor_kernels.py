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
FUSED_AFTER_SUM = (None, "relu")
"""The activations that a kernel applies after adding a second tensor."""


def kernel_of(region: Region, dtype: torch.dtype, device: str) -> Kernel:
    """What runs a region on inputs that `laid_out` made."""
    arrays = region.weights()
    weight, bias = (None if a is None else torch.from_numpy(a).to(device, dtype) for a in arrays)
    assert weight is not None
    if device != "cpu":
        return with_loop(region, laid_out(weight, dtype), bias)
    fused = _fused_linear if region.operator == "linear" else _fused_convolution
    call = fused(region, weight, bias) if _is_packed(region, dtype) else None
    return call or _alone(region, weight, bias)


def laid_out(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it comes from the layer before: in the network's precision and layout."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = layouts.get(tensor.dim(), torch.contiguous_format)
    return tensor.detach().to(dtype).contiguous(memory_format=layout)


def _is_packed(region: Region, dtype: torch.dtype) -> bool:
    """Whether weights are brought into oneDNN's own layout."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
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


def _fused_convolution(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel | None:
    ops = torch.ops.mkldnn
    paddings = [region.padding]
    pack, run = ops._reorder_convolution_weight, ops._convolution_pointwise
    if region.operator == "conv_transpose":
        paddings.append(region.output_padding)
        pack, run = ops._reorder_convolution_transpose_weight, ops._convolution_transpose_pointwise
    how = (*paddings, region.stride, region.dilation, region.groups)
    packed = pack(weight, *how, region.in_shape)
    if not region.residual:
        activation = FUSED[region.activation]
        return lambda x: run(x, packed, bias, *how, *activation)
    if region.operator == "conv_transpose" or region.activation not in FUSED_AFTER_SUM:
        return None
    after = FUSED[region.activation] if region.activation else (None, [], None)
    return lambda x, other: run.binary(x, other, packed, bias, *how, "add", None, *after)


def _fused_linear(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel | None:
    run, width = torch.ops.mkldnn._linear_pointwise, region.in_width
    rows = region.batch * (region.spatial[0] if region.spatial else 1)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    if not region.residual:
        activation = FUSED[region.activation]
        return lambda x: run(x.view(rows, width), packed, bias, *activation).view(region.out_shape)
    if region.activation is not None:
        return None
    sides = (rows, width), (rows, region.out_width)
    return lambda x, other: run.binary(
        x.view(sides[0]), other.view(sides[1]), packed, bias, "add"
    ).view(region.out_shape)


def with_loop(region: Region, weight: Tensor, bias: Tensor | None) -> Kernel:
    """PyTorch's own kernel, and the one loop that inductor makes of all that comes after it."""
    plain, loop = _plain(region), _loop(region.activation)
    if region.operator == "linear":
        inside, outside = bias, []
    else:
        inside, outside = None, [] if bias is None else [bias.view(-1, *(1,) * len(region.kernel))]
    if not outside and not region.residual and region.activation is None:
        return lambda x: plain(x, weight, inside)
    return lambda x, *others: loop(plain(x, weight, inside), *outside, *others)


@cache
def _loop(activation: str | None) -> Kernel:
    """Compiled once, for tensors of any size."""
    compiled: Kernel = torch.compile(partial(_end, _activation(activation)), dynamic=True)
    return compiled


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
