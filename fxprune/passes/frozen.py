"""What stays dense, and why: silence about it would be a bug."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.passes.infer import Analysis

# A kernel's height and width are no channels: nobody asks why they are not slimmed.
NOT_CHANNELS = "kernel of a convolution"


@dataclass(frozen=True)
class Frozen:
    """Dimensions of parameters that keep some position for one reason.

    Attributes:
        members: the dimensions, as `name[dim]`.
        reason: the sentence, the rule and the node.
    """

    members: tuple[str, ...]
    reason: str


def frozen_places(analysis: Analysis) -> tuple[Frozen, ...]:
    """Every reason that keeps channels of a parameter, with the dimensions that it keeps."""
    found: dict[str, dict[str, None]] = {}
    for name, axes in analysis.tensors.items():
        for dim, axis in enumerate(axes):
            for atom in axis.atoms:
                reason = analysis.reasons.get(atom)
                if reason is not None and reason.detail != NOT_CHANNELS:
                    found.setdefault(str(reason), {})[f"{name}[{dim}]"] = None
    return tuple(Frozen(tuple(members), reason) for reason, members in found.items())


def prunable_share(analysis: Analysis) -> float:
    """Share of all elements of typed tensors that lie in some group."""
    total = inside = 0
    for axes in analysis.tensors.values():
        count = 1
        for axis in axes:
            count *= axis.size
        total += count
        if any(analysis.groups_in(axis) for axis in axes):
            inside += count
    return inside / total if total else 0.0
