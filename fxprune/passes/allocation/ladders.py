"""Ladders: which widths each group may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fxprune.axes import Atom, Axis, atoms
from fxprune.errors import InputError
from fxprune.passes.infer import Analysis, Group

# Groups with few positions still get this many widths, even if those are not aligned.
FEWEST = 4
# Steps finer than 1.6 % of a group cost the solver more than they are worth.
MOST = 64


@dataclass(frozen=True)
class Ladder:
    """The widths that one group may take, ascending; the last is the dense one."""

    group: Group
    widths: tuple[int, ...]


def build_ladders(
    analysis: Analysis, multiple_of: int, ignore: Sequence[str] = ()
) -> dict[Atom, Ladder]:
    """Widths in steps that keep the channels of every member a multiple of `multiple_of`.

    Args:
        analysis: the groups.
        multiple_of: alignment of channel counts that the backend likes.
        ignore: names or patterns (`fnmatch`) of modules or parameters that keep their width.

    Raises:
        InputError: a pattern of `ignore` matches nothing.
    """
    if multiple_of < 1:
        raise InputError(f"multiple_of is {multiple_of}", fix="Use a whole number from 1 on")
    _check_patterns(analysis, ignore)
    return {
        group.atom: Ladder(
            group,
            (group.size,) if _ignored(group, ignore) else _widths(group, analysis, multiple_of),
        )
        for group in analysis.groups
    }


def _widths(group: Group, analysis: Analysis, multiple_of: int) -> tuple[int, ...]:
    # One position may stand for several channels (a head, a group of a convolution).
    channels = max(_multiplicity(analysis.tensors[m.tensor][m.dim], group) for m in group.members)
    step = multiple_of // math.gcd(multiple_of, channels)
    step = max(1, min(step, group.size // FEWEST))
    step *= -(-group.size // (step * MOST))
    return (*range(step, group.size, step), group.size)


def _multiplicity(axis: Axis, group: Group) -> int:
    """How many positions of `axis` one position of the group stands for."""
    if axis == group.atom:
        return 1
    match axis:
        case Atom():
            return 0
        case _ if hasattr(axis, "parts"):
            return sum(_multiplicity(part, group) for part in axis.parts)
        case _:
            inside = [f for f in axis.factors if group.atom in set(atoms(f))]
            others = math.prod(f.size for f in axis.factors if f not in inside)
            return others * math.prod(_multiplicity(f, group) for f in inside) if inside else 0


def is_ignored(tensor: str, patterns: Sequence[str]) -> bool:
    """Whether some pattern names `tensor` or a module that it belongs to."""
    return any(_matches(pattern, tensor) for pattern in patterns)


def _matches(pattern: str, tensor: str) -> bool:
    parts = tensor.split(".")
    prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return any(fnmatchcase(prefix, pattern) for prefix in prefixes)


def _ignored(group: Group, ignore: Sequence[str]) -> bool:
    return any(is_ignored(member.tensor, ignore) for member in group.members)


def _check_patterns(analysis: Analysis, ignore: Sequence[str]) -> None:
    for pattern in ignore:
        if not any(_matches(pattern, name) for name in analysis.tensors):
            raise InputError(
                f"ignore={pattern!r} matches no module or parameter",
                fix=f"Names look like {next(iter(analysis.tensors), 'layer1.conv.weight')!r}",
            )
