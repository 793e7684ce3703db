"""The whole of a model with glue, run as it is called, against the masked original.

Node by node, the children are compared like any other model. What remains is the glue: here it runs
on the example inputs, once around the masked children and once around the slim ones, and what the
model returns must be the same.

Glue chooses: it sorts, cuts off and compares. Where round-off alone makes it choose otherwise, two
runs cannot be compared. So if they differ, the masked original is run again with as much noise on
what its children yield; if that changes its result as well, nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from fxprune.errors import VerificationError
from fxprune.passes.blocks import Block
from fxprune.passes.capture import Captured, cloned
from fxprune.passes.glue.module import GluedModule, Interface, bound_arguments, enter, leave
from fxprune.passes.infer import Analysis
from fxprune.passes.reference import MaskedInterpreter
from fxprune.passes.rules import tensors
from fxprune.passes.slimming import Kept

TOLERANCE = 1e-6
NOISE = 1e-13
SEEDS = (1, 2, 3)


def whole_error(
    captured: Captured,
    analysis: Analysis,
    kept: Kept,
    dropped: Sequence[Block],
    dense: fx.GraphModule,
    slim: fx.GraphModule,
) -> float | None:
    """The largest relative error of what the slim model returns; None if it cannot be judged.

    Args:
        dense: the original in float64, with the weights to compare with.
        slim: the slim model in float64, with the part of them that stays.

    Raises:
        VerificationError: the slim model does not run, or returns something else.
    """
    if captured.call is None or not isinstance(dense, GluedModule):
        return None
    args, kwargs = tree_map_only(Tensor, _as_double, (captured.call[0], dict(captured.call[1])))
    masked = _Masked(dense, analysis, kept, dropped)
    try:
        expected = masked.run(args, kwargs)
    except Exception:  # glue that does not run in float64 cannot be judged
        return None
    try:
        found = slim(*cloned(args), **cloned(kwargs))
    except Exception as failure:
        raise VerificationError(
            f"the slim model does not run: {type(failure).__name__}: {failure}",
            fix="Please report this model; until then, keep parts of it dense with ignore=",
        ) from failure
    error = _error(expected, found)
    if error <= TOLERANCE:
        return error
    for seed in SEEDS:
        if _error(expected, masked.run(args, kwargs, seed)) > TOLERANCE:
            return None
    raise VerificationError(
        f"the slim model's result differs from the masked original's by {error:.3g} relative",
        "every captured child is the same, so glue depends on a width in a way that was not seen",
        "Please report this model; until then, keep parts of it dense with ignore=",
    )


@dataclass
class _Masked:
    """The original with its glue, around children that run masked."""

    dense: GluedModule
    analysis: Analysis
    kept: Kept
    dropped: Sequence[Block]
    noise: torch.Generator | None = field(default=None, init=False)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int | None = None) -> Any:
        """What it returns; with a seed, children yield round-off."""
        self.noise = None if seed is None else torch.Generator().manual_seed(seed)
        module = self.dense
        interpreter = MaskedInterpreter(module, self.analysis, self.kept, self.dropped, ())
        calls = iter(_calls(module.graph))
        for path, interface in module.interfaces.items():
            child = module.get_submodule(path)
            vars(child)["forward"] = _Child(self, path, child, interface, interpreter, calls)
        return module(*cloned(args), **cloned(dict(kwargs)))

    def disturbed(self, values: Sequence[Tensor]) -> list[Tensor]:
        """`values`, with noise if there is to be any."""
        if self.noise is None:
            return list(values)
        return [
            v * (1 + NOISE * torch.randn(v.shape, generator=self.noise, dtype=v.dtype).to(v.device))
            if v.is_floating_point()
            else v
            for v in values
        ]


@dataclass
class _Child:
    """Stands in for the `forward` of one child: the next call in the graph, masked."""

    whole: _Masked
    path: str
    module: nn.Module
    interface: Interface
    interpreter: MaskedInterpreter
    calls: Any
    running: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.running:  # a module that is its own graph
            return type(self.module).forward(self.module, *args, **kwargs)
        path, inputs, nodes = next(self.calls)
        if path != self.path:
            raise ValueError(f"glue called {self.path}, not {path} as when it was captured")
        arguments = bound_arguments(self.module, args, kwargs)
        given = self.interface.tensors(self.path, arguments)
        self.interpreter.env.update(zip(inputs, given, strict=True))
        self.running = True
        try:
            yielded = [self.interpreter.step(node) for node in nodes][-1]
        finally:
            self.running = False
        return self.interface.result(self.whole.disturbed(yielded))


def _calls(graph: fx.Graph) -> list[tuple[str, list[fx.Node], list[fx.Node]]]:
    """Every call in the graph: path, nodes that it reads, nodes that it runs up to `leave`."""
    found: list[tuple[str, list[fx.Node], list[fx.Node]]] = []
    inside = False
    for node in graph.nodes:
        if node.target is enter:
            inside = True
            found.append((str(node.args[0]), list(node.all_input_nodes), []))
        elif inside:
            found[-1][2].append(node)
            inside = node.target is not leave
    return found


def _error(expected: Any, found: Any) -> float:
    """The largest difference, relative to the largest value of each tensor."""
    left, right = tensors(expected), tensors(found)
    if [t.shape for t in left] != [t.shape for t in right]:
        return float("inf")
    worst = 0.0
    for mine, theirs in zip(left, right, strict=True):
        if mine.numel() == 0 or torch.equal(mine, theirs):
            continue
        gap = float((mine.double() - theirs.double()).abs().max())
        worst = max(worst, gap / (float(mine.double().abs().max()) or 1.0))
    return worst


def _as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()
