"""Faults in the analysis: slimmed and verified with the same wrong axes, as a wrong rule would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from fxprune.axes import Atom, Axis, Concat, Product, Reordered
from fxprune.passes.infer import Analysis, Group, named_tensors
from fxprune.passes.slim import slim
from fxprune.plan import Plan
from tests.faults.base import Subject, kind, slimmed_tensors


def _resliced(subject: Subject, analysis: Analysis, plan: Plan) -> Subject | None:
    """The slim model that a wrong analysis leads to; None if it cannot even be built."""
    try:
        module = slim(subject.captured, analysis, plan)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
        return None
    return Subject(subject.captured, analysis, plan, module)


def _retyped(subject: Subject, change: Callable[[Axis], Axis]) -> Iterator[tuple[str, Subject]]:
    """Wrong axes for one dimension of one tensor."""
    for name, axes in slimmed_tensors(subject):
        for dim, axis in enumerate(axes):
            wrong = change(axis)
            if wrong == axis:
                continue
            typed = (*axes[:dim], wrong, *axes[dim + 1 :])
            analysis = replace(subject.analysis, tensors={**subject.analysis.tensors, name: typed})
            found = _resliced(subject, analysis, subject.plan)
            if found is not None and not _same_tensors(found.slim, subject.slim):
                yield f"{name}[{dim}]", found


def _same_tensors(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(named_tensors(left), named_tensors(right), strict=True)
    return all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)


@kind
def pieces_in_the_wrong_order(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(axis: Axis) -> Axis:
        return Concat(tuple(reversed(axis.parts))) if isinstance(axis, Concat) else axis

    yield from _retyped(subject, change)


@kind
def factors_in_the_wrong_order(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(axis: Axis) -> Axis:
        match axis:
            case Product(factors=factors):
                return Product(tuple(reversed(factors)))
            case Concat(parts=parts):
                return Concat(tuple(map(change, parts)))
            case _:
                return axis

    yield from _retyped(subject, change)


@kind
def coupling_missed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """One member of a group goes its own way: as many positions, but others."""
    for group in subject.analysis.groups:
        kept = subject.plan.kept[group.name]
        if len(group.members) < 2 or len(kept) == group.size:
            continue
        stranger = Atom(-1, group.size)
        others = tuple(sorted((group.size - 1 - p) for p in kept))
        if others == kept:
            others = tuple(range(len(kept)))
        for member in group.members:
            axes = subject.analysis.tensors[member.tensor]
            typed = tuple(
                _exchanged(axis, group.atom, stranger) if dim == member.dim else axis
                for dim, axis in enumerate(axes)
            )
            analysis = replace(
                subject.analysis,
                tensors={**subject.analysis.tensors, member.tensor: typed},
                groups=(*subject.analysis.groups, Group("stranger", stranger, (member,))),
            )
            plan = Plan(
                {**subject.plan.kept, "stranger": others},
                {**subject.plan.sizes, "stranger": group.size},
            )
            found = _resliced(subject, analysis, plan)
            if found is not None:
                yield str(member), found


@kind
def frozen_positions_removed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Positions that depend on each other, taken for free ones."""
    places: dict[Atom, str] = {}
    for name, axes in subject.analysis.tensors.items():
        for axis in axes:
            for atom in axis.atoms:
                if atom in subject.analysis.reasons:
                    places.setdefault(atom, name)
    for atom, name in places.items():
        analysis = replace(
            subject.analysis,
            groups=(*subject.analysis.groups, Group("frozen", atom, ())),
        )
        plan = Plan(
            {**subject.plan.kept, "frozen": tuple(range(1, atom.size))},
            {**subject.plan.sizes, "frozen": atom.size},
        )
        found = _resliced(subject, analysis, plan)
        if found is not None:
            yield f"{name}: {subject.analysis.reasons[atom].detail}", found


def _exchanged(axis: Axis, old: Atom, new: Atom) -> Axis:
    match axis:
        case Atom():
            return new if axis == old else axis
        case Product(factors=factors):
            return Product(tuple(_exchanged(f, old, new) for f in factors))
        case Concat(parts=parts):
            return Concat(tuple(_exchanged(p, old, new) for p in parts))
        case Reordered():
            return Reordered(_exchanged(axis.axis, old, new), axis.order)
