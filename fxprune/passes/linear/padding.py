"""Move the padding inside of a path to its front, without merging anything.

Every value inside gets a halo: h more positions on either side than it had, computed by its own
convolution from a wider input instead of being padded with zeros. A convolution of stride s and
padding p whose result needs the halo h needs p + s h in its input, a fork the most that one of its
branches needs. What a value has too much of is cropped before the branch that needs less.

Positions that the old paddings did not reach into keep their values. Positions near the border now
see what the layers before make of the padding, which is their bias where they have one, in place of
zeros.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

from fxprune.passes.constants import set_argument
from fxprune.passes.linear.editing import erase
from fxprune.passes.linear.tree import Fork, Link, Path

Halo = tuple[int, ...]


def move_padding(module: fx.GraphModule, source: str, path: Path, dims: int) -> None:
    """Move the padding of `path`, which reads the value of `source`, in place."""
    mover = _Mover(module)
    mover.move(path, mover.nodes[source], (0,) * dims, (0,) * dims, closing=None)


def needed(path: Path, halo: Halo) -> Halo:
    """The halo that the input of `path` must have for its result to have `halo`."""
    for item in reversed(path):
        halo = _needed_by(item, halo)
    return halo


def _needed_by(item: Link | Fork, halo: Halo) -> Halo:
    if isinstance(item, Fork):
        most = [needed(branch, halo) for branch in item.branches]
        return tuple(map(max, *most))
    if item.kind == "convolution" and item.geometry is not None:
        places = zip(item.geometry.padding, item.geometry.stride, halo, strict=True)
        return tuple(p + s * h for p, s, h in places)
    if item.pad is not None:
        return tuple(p + h for p, h in zip(item.pad, halo, strict=True))
    return halo


class _Mover:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes = {node.name: node for node in module.graph.nodes}

    def move(
        self, path: Path, value: fx.Node, has: Halo, gives: Halo, closing: fx.Node | None
    ) -> None:
        """Let `path`, whose input has the halo `has`, yield one with the halo `gives`.

        closing: the addition behind an (empty) branch.
        """
        if not path and closing is not None:
            self._pad(value, closing, _difference(gives, has))
        for place, item in enumerate(path):
            after = needed(path[place + 1 :], gives)
            node = self.nodes[item.node]
            if isinstance(item, Fork):
                for branch in item.branches:
                    self.move(branch, value, has, after, closing=node)
            else:
                self._settle(item, node, value, _difference(_needed_by(item, after), has))
            value, has = node, after

    def _settle(self, item: Link, node: fx.Node, value: fx.Node, missing: Halo) -> None:
        """Let `node` itself pad by `missing` (crop where negative), and by nothing else."""
        if item.kind == "convolution" and item.geometry is not None:
            crop = tuple(min(m, 0) for m in missing)
            self._pad(value, node, crop)
            if item.geometry.dims:
                self._set_padding(node, tuple(max(m, 0) for m in missing))
        elif item.kind == "pad":
            self._pad(value, node, missing)
            node.replace_all_uses_with(node.all_input_nodes[0])
            erase(self.module, node)
        else:
            self._pad(value, node, missing)

    def _set_padding(self, node: fx.Node, padding: Halo) -> None:
        if node.op != "call_module":
            set_argument(node, 4, "padding", list(padding))
            return
        owner: Any = self.module.get_submodule(str(node.target))
        owner.padding = padding
        # One that did not pad may have another mode; and what PyTorch keeps for those must fit.
        owner.padding_mode = "zeros"
        owner._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]

    def _pad(self, value: fx.Node, reader: fx.Node, amount: Halo) -> None:
        if not any(amount):
            return
        with self.module.graph.inserting_before(reader):
            amounts = [p for p in reversed(amount) for _ in range(2)]
            padded = self.module.graph.call_function(F.pad, (value, amounts))
        reader.replace_input_with(value, padded)


def _difference(a: Halo, b: Halo) -> Halo:
    return tuple(x - y for x, y in zip(a, b, strict=True))
