"""Networks within networks: one has nothing that the other lacks, neither width nor block.

A span that is merged is neither more nor less than one that is not, so nested networks merge the
same. What a group of a dropped block is wide means nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fxprune.passes.allocation.widths import Choices
from fxprune.passes.blocks import Block

Options = Mapping[str, int]
"""The option of every choice."""


def options_between(
    choices: Choices, least: Options | None, most: Options | None
) -> dict[str, Collection[int]]:
    """The options of widths and forms of networks that lie between two.

    Args:
        least: a network that lies within them; None for any.
        most: a network within which they lie; None for any.
    """
    allowed: dict[str, Collection[int]] = {**choices.forms.between(least, most)}
    open_below = set() if least is None else _idle(choices, least)
    open_above = set() if most is None else _idle(choices, most)
    for ladder in choices.ladders.values():
        name = ladder.group.name
        first = 0 if least is None or name in open_below else least[name]
        last = len(ladder.widths) - 1 if most is None or name in open_above else most[name]
        allowed[name] = range(first, last + 1)
    return allowed


def lies_within(choices: Choices, one: Options, other: Options) -> bool:
    """Whether `one` has nothing that `other` lacks, and merges the same."""
    allowed, idle = options_between(choices, None, other), _idle(choices, one)
    return all(one[name] in options for name, options in allowed.items() if name not in idle)


def _idle(choices: Choices, options: Options) -> set[str]:
    """The groups all of whose tensors go with dropped blocks."""
    parts = choices.forms.of_options(options)
    tensors = frozenset().union(*(part.tensors for part in parts if isinstance(part, Block)))
    groups = (ladder.group for ladder in choices.ladders.values())
    return {g.name for g in groups if all(member.tensor in tensors for member in g.members)}
