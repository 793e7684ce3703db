"""Weights for verification that let the signal through a network of any depth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.passes.infer import Analysis
from fxprune.passes.reference import MaskedInterpreter
from fxprune.passes.slimming import Kept

POOL = 1_000_003


def drawn_weights(module: nn.Module, original: nn.Module, seed: int) -> None:
    """Draw every parameter of `module` anew, in place.

    Matrices and kernels are normal with variance 2 / fan-in (He et al. 2015), scales uniform in
    [0.5, 1.5], offsets normal with deviation 0.1.
    """
    del original
    for (name, parameter), normal in _with_noise(module, seed):
        if parameter.dim() > 1:
            parameter.copy_(normal * math.sqrt(2.0 / max(1, parameter[0].numel())))
        else:
            parameter.copy_(normal * 0.1 if name.endswith("bias") else _uniform(normal))


def scaled_weights(module: nn.Module, original: nn.Module, seed: int) -> None:
    """Give `module` the parameters of `original`, in place, each times a number in [0.5, 1.5].

    For models that only stay finite near their own weights.
    """
    known = dict(original.named_parameters())
    for (name, parameter), normal in _with_noise(module, seed):
        parameter.copy_(known[name].detach().double().cpu() * _uniform(normal))


def _with_noise(module: nn.Module, seed: int) -> Iterator[tuple[tuple[str, Tensor], Tensor]]:
    """Every floating-point parameter with as many standard normal numbers."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = 0
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            start = (start + 7919) % POOL
            normal = _cycle(pool, start, parameter.numel()).reshape(parameter.shape)
            yield (name, parameter.detach()), normal


def _cycle(pool: Tensor, start: int, count: int) -> Tensor:
    """`count` numbers from `pool`, round and round. Its length is prime, so that no row of a weight
    equals another; drawing every number would take most of the time of a verification."""
    if start + count <= len(pool):
        return pool[start : start + count]
    rounds = -(-(start + count) // len(pool))
    return pool.repeat(rounds)[start : start + count]


def _uniform(normal: Tensor) -> Tensor:
    """Standard normal numbers as uniform ones in [0.5, 1.5]."""
    uniform: Tensor = torch.special.ndtr(normal)
    return uniform + 0.5


def calibrate_batch_norm(
    reference: MaskedInterpreter,
    candidate: fx.Interpreter,
    node: fx.Node,
    analysis: Analysis,
    kept: Kept,
) -> None:
    """Before `node` runs: if it is a batch norm, give both models the statistics of its input."""
    if node.op != "call_module":
        return
    norm = reference.submodules[str(node.target)]
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = reference.env[source]
    dims = [d for d in range(value.dim()) if d != 1]
    # Less its own mean, a single value per channel would be gone, and only round-off left of it.
    single = value.numel() == value.shape[1]
    mean = torch.zeros_like(value[0].flatten()) if single else value.mean(dims)
    # The floor keeps channels that hardly vary from blowing the signal up.
    variance = value.square().flatten() if single else value.var(dims, correction=0)
    variance = variance + 0.1 * variance.mean() + 1e-3
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    twin = candidate.submodules.get(str(node.target))
    if twin is None:  # the block that it belongs to was dropped
        return
    axes = analysis.values[source.name][0][1:2]
    for theirs, statistic in ((twin.running_mean, mean), (twin.running_var, variance)):
        assert isinstance(theirs, Tensor)
        theirs.copy_(kept.restrict(statistic, axes))
