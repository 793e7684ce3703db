"""What one run of a graph on fake tensors tells about it: shapes, and which nodes do nothing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from fxprune.errors import InputError


@dataclass(frozen=True)
class Observed:
    """What is known about nodes that yield one tensor, by name.

    Attributes:
        ranks: how many dimensions the tensor has.
        shapes: their sizes, for the inputs that were given.
        identities: nodes that hand their one input on, untouched, in evaluation mode.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    identities: frozenset[str] = frozenset()


NOTHING = Observed()
"""For graphs whose inputs are not known: less is found in them, never anything wrong."""


def observe(module: fx.GraphModule, inputs: tuple[Any, ...]) -> Observed:
    """Run `module` in evaluation mode on fake tensors; it is not changed.

    Raises:
        InputError: it does not run on `inputs`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        tensors = itertools.chain(module.parameters(), module.buffers())
        double = copy.deepcopy(module, {id(t): mode.from_tensor(t) for t in tensors})
        watcher = _Watcher(double.eval())
        fake = tree_map_only(Tensor, mode.from_tensor, tuple(inputs))
        try:
            watcher.run(*fake)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                "The module does not run on the example inputs",
                f"{type(error).__name__}: {reason}",
                "Pass one value per placeholder of the graph, as the module is called with",
            ) from error
    ranks = {name: len(shape) for name, shape in watcher.shapes.items()}
    return Observed(ranks, watcher.shapes, frozenset(watcher.identities))


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.identities: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        source: Any = self.env.get(n.all_input_nodes[0]) if len(n.all_input_nodes) == 1 else None
        # In-place operators hand their input on too, but not untouched.
        version = source._version if isinstance(source, Tensor) else 0
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = tuple(result.shape)
            if result is source and result._version == version:
                self.identities.add(n.name)
        return result
