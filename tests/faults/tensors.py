"""Faults in the tensors of the slim model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.passes.infer import named_tensors
from fxprune.passes.slimming import Kept
from tests.faults.base import Subject, kind, slimmed_tensors


def _retaken(subject: Subject, choose: Callable[[int, Tensor], Tensor | None]) -> Iterator[Any]:
    """Slim models in which one dimension of one tensor was taken with other indices.

    `choose(size, kept)` gives the wrong positions for the right ones, or None.
    """
    kept = Kept.from_plan(subject.plan, subject.analysis)
    dense = dict(named_tensors(subject.captured.module))
    for name, axes in slimmed_tensors(subject):
        for dim, axis in enumerate(axes):
            if not kept.touches(axis):
                continue
            right = torch.from_numpy(kept.indices(axis))
            wrong = choose(axis.size, right)
            if wrong is None or torch.equal(wrong, right):
                continue
            part = dense[name].detach()
            for other, term in enumerate(axes):
                index = wrong if other == dim else torch.from_numpy(kept.indices(term))
                part = part.index_select(other, index)
            module = subject.damaged()
            dict(named_tensors(module))[name].data = part.contiguous()
            yield f"{name}[{dim}]", replace(subject, slim=module)


@kind
def kept_order_reversed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    yield from _retaken(subject, lambda size, kept: kept.flip(0))


@kind
def first_positions_instead_of_kept_ones(subject: Subject) -> Iterator[tuple[str, Subject]]:
    yield from _retaken(subject, lambda size, kept: torch.arange(len(kept)))


@kind
def one_position_of_the_neighbour(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def off_by_one(size: int, kept: Tensor) -> Tensor:
        wrong = kept.clone()
        wrong[-1] = (wrong[-1] + 1) % size
        return wrong

    yield from _retaken(subject, off_by_one)


@kind
def tensor_not_sliced(subject: Subject) -> Iterator[tuple[str, Subject]]:
    yield from _retaken(subject, lambda size, kept: torch.arange(size))


@kind
def stale_norm_statistics(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Mean and variance of a batch norm left as they are after initialisation."""
    for name, module in subject.slim.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            damaged = subject.damaged()
            damaged.get_submodule(name).reset_running_stats()
            yield name, replace(subject, slim=damaged)


@kind
def norm_of_the_neighbour(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Scale and offset of one norm in another of the same width."""
    norms = [
        (name, module)
        for name, module in subject.slim.named_modules()
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm))
    ]
    for name, module in norms:
        for other, neighbour in norms:
            if other == name or type(module) is not type(neighbour):
                continue
            if module.weight.shape == neighbour.weight.shape:
                damaged = subject.damaged()
                damaged.get_submodule(name).weight = copy.deepcopy(neighbour.weight)
                yield f"{other} in {name}", replace(subject, slim=damaged)


@kind
def bias_lost(subject: Subject) -> Iterator[tuple[str, Subject]]:
    for name, module in subject.slim.named_modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            damaged = subject.damaged()
            damaged.get_submodule(name).register_parameter("bias", None)
            yield name, replace(subject, slim=damaged)


@kind
def weights_drawn_anew(subject: Subject) -> Iterator[tuple[str, Subject]]:
    for name, _ in slimmed_tensors(subject, nn.Parameter):
        damaged = subject.damaged()
        tensor = dict(named_tensors(damaged))[name]
        tensor.data = torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype
        )
        yield name, replace(subject, slim=damaged)


@kind
def weights_rounded(subject: Subject) -> Iterator[tuple[str, Subject]]:
    for name, _ in slimmed_tensors(subject, nn.Parameter):
        damaged = subject.damaged()
        tensor = dict(named_tensors(damaged))[name]
        tensor.data = tensor.data.float().double()
        yield name, replace(subject, slim=damaged)


@kind
def weights_untied(subject: Subject) -> Iterator[tuple[str, Subject]]:
    once = {name for name, _ in subject.slim.named_parameters()}
    for name, tensor in subject.slim.named_parameters(remove_duplicate=False):
        if name not in once:
            damaged = subject.damaged()
            path, _, leaf = name.rpartition(".")
            setattr(damaged.get_submodule(path), leaf, nn.Parameter(tensor.detach().clone()))
            yield name, replace(subject, slim=damaged)
