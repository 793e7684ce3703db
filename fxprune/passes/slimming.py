"""What a choice of kept positions does to axes, tensors and numbers of a captured model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxprune.axes import Atom, Axes, Axis, Positions, kept_positions, kept_size
from fxprune.passes.infer import Analysis
from fxprune.plan import Plan

CHANNELS_LAST = ((4, torch.channels_last), (5, torch.channels_last_3d))


@dataclass(frozen=True)
class Kept:
    """Positions that stay, by atom; atoms that are not named keep all of theirs."""

    positions: Mapping[Atom, Positions]

    @staticmethod
    def from_plan(plan: Plan, analysis: Analysis) -> Kept:
        """The positions of `plan` on the atoms of `analysis`.

        Raises:
            PlanMismatch: the plan was made for a model with other groups.
        """
        plan.check({group.name: group.size for group in analysis.groups}, analysis.orders)
        return Kept(
            {
                group.atom: np.asarray(plan.kept[group.name], dtype=np.int64)
                for group in analysis.groups
                if len(plan.kept[group.name]) < group.size
            }
        )

    def touches(self, axis: Axis) -> bool:
        """Whether `axis` loses positions."""
        return any(atom in self.positions for atom in axis.atoms)

    def size(self, axis: Axis) -> int:
        """How many positions of `axis` stay."""
        return kept_size(axis, {atom: len(kept) for atom, kept in self.positions.items()})

    def indices(self, axis: Axis) -> Positions:
        """Which positions of `axis` stay, in order."""
        return kept_positions(axis, self.positions)

    def before(self, axis: Axis, position: int) -> int:
        """How many positions of `axis` before `position` stay."""
        return int(np.searchsorted(self.indices(axis), position))

    def runs(self, axis: Axis, length: int) -> int:
        """How many runs of `length` neighbouring positions of `axis` keep any position."""
        return len(np.unique(self.indices(axis) // length))

    def restrict(self, tensor: Tensor, axes: Axes) -> Tensor:
        """The part of `tensor` that stays; the memory format is kept, the data is copied."""
        part = tensor
        for dim, axis in enumerate(axes):
            if self.touches(axis):
                index = torch.from_numpy(self.indices(axis)).to(tensor.device)
                part = part.index_select(dim, index)
        if part is tensor:
            return tensor.clone()
        for rank, layout in CHANNELS_LAST:
            if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout):
                return part.contiguous(memory_format=layout)
        return part.contiguous()
