"""Ladders: which widths each group may take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fxprune.axes import Atom, Axis, Concat, Product, Reordered
from fxprune.errors import InputError
from fxprune.passes.infer import Analysis, Group

# Groups with few positions still get this many widths, even if those are not aligned.
FEWEST = 4
# Steps finer than 1.6 % of a group cost the solver more than they are worth.
MOST = 64
# Two groups that make up one width between them (norm groups and the channels of each, heads and
# what is in a head) have so many steps each: all combinations of the two come to 256.
MOST_TOGETHER = 16

# The least and the most that a group may keep: counts of positions, or shares of the dense width.
Bound = tuple[float, float]


@dataclass(frozen=True)
class Ladder:
    """The widths that one group may take, ascending; the last is the dense one.

    Attributes:
        whole: whether the dense width may be taken, or is only there to compare with.
    """

    group: Group
    widths: tuple[int, ...]
    whole: bool = True


def build_ladders(
    analysis: Analysis,
    multiple_of: int,
    ignore: Sequence[str] = (),
    bounds: Mapping[str, Bound] | None = None,
) -> dict[Atom, Ladder]:
    """Widths in steps that keep the channels of every member a multiple of `multiple_of`.

    Args:
        analysis: the groups.
        multiple_of: alignment of channel counts that the backend likes.
        ignore: names or patterns (`fnmatch`) of modules or parameters that keep their width.
        bounds: the least and the most that the groups of such modules or parameters may keep. Whole
            numbers count positions, fractions from 0.0 to 1.0 are shares of the dense width.

    Raises:
        InputError: a pattern matches nothing, or a bound makes no sense.
    """
    if multiple_of < 1:
        raise InputError(f"multiple_of is {multiple_of}", fix="Use a whole number from 1 on")
    _check_patterns(analysis, ignore)
    bounds = bounds or {}
    _check_bounds(analysis, bounds)
    return {
        group.atom: Ladder(group, (group.size,))
        if _ignored(group, ignore)
        else _bounded(group, _widths(group, analysis, multiple_of), bounds)
        for group in analysis.groups
    }


def _bounded(group: Group, widths: tuple[int, ...], bounds: Mapping[str, Bound]) -> Ladder:
    """The ladder of `group` within every bound that names it."""
    ranges = [
        _positions(bound, group.size)
        for pattern, bound in bounds.items()
        if any(_matches(pattern, member.tensor) for member in group.members)
    ]
    least = max((least for least, _ in ranges), default=1)
    most = min((most for _, most in ranges), default=group.size)
    if least > most:
        raise InputError(
            f"bounds leave no width for the group {group.name} of {group.size}",
            f"at least {least} and at most {most} positions",
            "Groups are kept together: give their members bounds that overlap",
        )
    within = tuple(width for width in widths if least <= width <= most) or (most,)
    if most == group.size:
        return Ladder(group, within)
    return Ladder(group, (*within, group.size), whole=False)


def _positions(bound: Bound, size: int) -> tuple[int, int]:
    """A bound in positions of a group of `size`, one at least."""
    least, most = bound
    low = least if isinstance(least, int) else math.ceil(least * size - 1e-9)
    high = most if isinstance(most, int) else math.floor(most * size + 1e-9)
    return min(max(1, low), size), min(max(1, high), size)


def _check_bounds(analysis: Analysis, bounds: Mapping[str, Bound]) -> None:
    if not isinstance(bounds, Mapping):
        raise InputError(f"bounds is {bounds!r}", fix='Pass a dict like {"layer1": (0.5, 1.0)}')
    names = {member.tensor for group in analysis.groups for member in group.members}
    for pattern, bound in bounds.items():
        where = f"bounds[{pattern!r}] is {bound!r}"
        if not (isinstance(bound, (tuple, list)) and len(bound) == 2 and all(map(_is_end, bound))):
            raise InputError(
                where,
                fix="Give (least, most): whole numbers of positions, or shares from 0.0 to 1.0",
            )
        if type(bound[0]) is type(bound[1]) and bound[0] > bound[1]:
            raise InputError(f"{where}: the least is more than the most")
        if not any(_matches(pattern, name) for name in names):
            raise InputError(
                f"bounds names {pattern!r}, which matches no module or parameter with a group",
                fix=f"Names look like {next(iter(sorted(names)), 'layer1.conv.weight')!r}",
            )


def _is_end(end: object) -> bool:
    if isinstance(end, bool):
        return False
    return (isinstance(end, int) and end >= 0) or (isinstance(end, float) and 0 <= end <= 1)


def _widths(group: Group, analysis: Analysis, multiple_of: int) -> tuple[int, ...]:
    # One position may stand for several channels (a head, a group of a convolution).
    channels = max(_multiplicity(analysis.tensors[m.tensor][m.dim], group) for m in group.members)
    step = multiple_of // math.gcd(multiple_of, channels)
    # Where there are few positions, half the alignment or a quarter of it, which kernels may like.
    step = max(d for d in range(1, step + 1) if step % d == 0 and d <= max(1, group.size // FEWEST))
    most = MOST_TOGETHER if _is_shared(group, analysis) else MOST
    step *= -(-group.size // (step * most))
    return (*range(step, group.size, step), group.size)


def _is_shared(group: Group, analysis: Analysis) -> bool:
    """Whether some width is a product of this group and another one."""
    free = {other.atom for other in analysis.groups} - {group.atom}
    axes = [analysis.tensors[member.tensor][member.dim] for member in group.members]
    return any(_has_product(axis, group.atom, free) for axis in axes)


def _has_product(axis: Axis, atom: Atom, others: Set[Atom]) -> bool:
    match axis:
        case Atom():
            return False
        case Reordered():
            return _has_product(axis.axis, atom, others)
        case Concat(parts=parts):
            return any(_has_product(part, atom, others) for part in parts)
        case Product():
            inside = set(axis.atoms)
            return atom in inside and not inside.isdisjoint(others)


def _multiplicity(axis: Axis, group: Group) -> int:
    """How many positions of `axis` one position of the group stands for."""
    if axis == group.atom:
        return 1
    match axis:
        case Atom():
            return 0
        case Reordered():
            return _multiplicity(axis.axis, group)
        case Concat(parts=parts):
            return sum(_multiplicity(part, group) for part in parts)
        case Product(factors=factors):
            inside = [f for f in factors if group.atom in set(f.atoms)]
            others = math.prod(f.size for f in factors if f not in inside)
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
