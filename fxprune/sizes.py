"""How large a module is."""

from __future__ import annotations

from torch import nn

from fxprune.passes.infer import named_tensors


def count_params(module: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, tied ones once."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(module))
