"""The private copy of a module that a compiler gets, and what cannot be compiled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fxprune.backends.settings import Settings
from fxprune.errors import InputError


def deployable(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A deep copy in evaluation mode without gradients, made after checking what was given.

    Raises `InputError` for a module that `refuse_unsuitable` refuses, inputs that are not a tuple
    of tensors, and tensors that lie on several devices.
    """
    refuse_unsuitable(module)
    if not isinstance(inputs, tuple) or not all(isinstance(t, Tensor) for t in inputs):
        found = type(inputs).__name__
        if isinstance(inputs, tuple):
            found = f"a tuple of {', '.join(type(t).__name__ for t in inputs)}"
        raise InputError(
            f"A backend runs on a tuple of tensors, not on {found}",
            "example_inputs",
            "Pass (x,) for a model that takes one tensor; wrap a model that takes something else "
            "in a module whose forward takes the tensors one by one",
        )
    devices = {t.device for t in (*module.parameters(), *module.buffers(), *inputs)}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise InputError(
            f"the model and its inputs lie on several devices: {names}", fix="move them to one"
        )
    return copy.deepcopy(module).eval().requires_grad_(False)


def refuse_unsuitable(module: object) -> None:
    """Raise `InputError` unless this is a plain module with initialised floating-point weights."""
    if not isinstance(module, nn.Module):
        raise InputError(f"a torch.nn.Module is needed, not {type(module).__name__}")
    for path, child in module.named_modules():
        if refusal := _refusal(child):
            what, fix = refusal
            name = f"{type(child).__name__} at {path!r}" if path else type(child).__name__
            raise InputError(f"the model is {what}", name, fix)


def _refusal(module: nn.Module) -> tuple[str, str] | None:
    """What makes one module unsuitable, and what to do; its children are not looked at."""
    family = type(module).__module__
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    # By name: importing torch._dynamo, torch.distributed.fsdp or torchao only to ask is slow.
    if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
        return "already compiled", "pass the module that torch.compile was given"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted or traced by TorchScript", "pass the original nn.Module"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "wrapped for parallel training", "pass its .module"
    if any(base.__module__.startswith("torch.distributed.fsdp") for base in type(module).__mro__):
        return "sharded by FSDP", "gather the full module first"
    if any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in tensors):
        return "not initialised yet (lazy modules)", "run it once on an example first"
    foreign = [family, *(type(tensor).__module__ for tensor in tensors)]
    if (
        any(tensor.is_quantized for tensor in tensors)
        or any(origin.startswith("torchao") for origin in foreign)
        or (family.startswith("torch.ao.nn") and "quantized" in family)
    ):
        return "quantised", "pass the floating-point model, and quantise the result"
    return None


def adapted(module: nn.Module, settings: Settings) -> nn.Module:
    """The module (changed in place) made to compute in the precision and layout of the settings.

    Its inputs and outputs keep their dtypes, as engines promise.  Raises `InputError` for weights
    that are neither float32 nor of the precision asked for.
    """
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if strange := dtypes - {torch.float32, settings.dtype}:
        raise InputError(
            f"weights of {', '.join(map(str, strange))} cannot run as {settings.precision}",
            fix="convert the model with .float() first",
        )
    if settings.precision == "fp32" and not settings.channels_last:
        return module
    return Adapter(module, settings)


class Adapter(nn.Module):
    """Compute in another dtype or layout; outputs get the dtype of the first floating input."""

    def __init__(self, module: nn.Module, settings: Settings) -> None:
        super().__init__()
        layout = torch.channels_last if settings.channels_last else torch.preserve_format
        self.module = module.to(dtype=settings.dtype).to(memory_format=layout)
        self.dtype = settings.dtype
        self.channels_last = settings.channels_last
        self.train(module.training)

    def forward(self, *inputs: Tensor) -> Any:
        outer = next((t.dtype for t in inputs if t.is_floating_point()), torch.float32)
        result = self.module(*(self._inward(tensor) for tensor in inputs))
        if isinstance(result, Mapping):
            return {key: _outward(tensor, outer) for key, tensor in result.items()}
        if isinstance(result, tuple | list):
            return tuple(_outward(tensor, outer) for tensor in result)
        return _outward(result, outer)

    def _inward(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        if self.channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def _outward(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
