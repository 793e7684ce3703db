"""Verification of merging: the merged network must equal the one that is trained, in float64.

As in `verify`, weights are drawn so that the signal stays alive at every depth, since a fault
behind a scale of zero would be invisible; and every node is compared from the trained network's
inputs to it, since a badly conditioned network magnifies what round-off differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.errors import VerificationError
from fxprune.passes.chains import Span
from fxprune.passes.merge import merge_spans, spans_of
from fxprune.passes.precision import in_double
from fxprune.passes.recalibrate import recalibrate
from fxprune.passes.refresh import drawn_weights
from fxprune.passes.verify import SEED, TOLERANCE, as_noise, double_by_default, take_round_off


def verify_merged(module: fx.GraphModule, example_inputs: tuple[Any, ...]) -> float:
    """Compare `module` with itself after the spans that wait in it are merged.

    Returns:
        The largest error of any node, from the trained network's inputs to it, relative to the
        largest value of that node; 0.0 if no span waits.

    Raises:
        VerificationError: it exceeds 1e-9.
    """
    spans = spans_of(module)
    if not spans:
        return 0.0
    with torch.no_grad(), double_by_default():
        trained = in_double(module)
        drawn_weights(trained, module, SEED)
        inputs = tree_map_only(Tensor, as_noise, tuple(example_inputs))
        recalibrate(trained, [(inputs, None)])
        merged = merge_spans(trained, spans)
        wanted = _Recording(trained.eval())
        wanted.run(*_own(inputs))
        compared = _Comparing(merged, wanted.values, spans)
        compared.run(*_own(inputs))
    if not compared.error <= TOLERANCE:
        raise VerificationError(
            f"the merged network differs from the one that is trained by {compared.error:.3g} "
            f"relative, at {compared.worst}",
            f"spans {', '.join(map(str, spans))}",
            "Please report this model; until then, use merge_layers=False",
        )
    return compared.error


class _Recording(fx.Interpreter):
    """Keeps a copy of what every node yields: some are written into later."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n.name] = _own(result)
        return result


class _Comparing(fx.Interpreter):
    """Compares what nodes yield with what is wanted, and goes on with that.

    Attributes:
        error: the largest one met, or the first above the tolerance.
        worst: the node that it was met at.
    """

    def __init__(
        self, module: fx.GraphModule, wanted: Mapping[str, Any], spans: Sequence[Span]
    ) -> None:
        super().__init__(module)
        self.error, self.worst = 0.0, ""
        inside = {name for span in spans for name in span.nodes}
        # The merged layer is compared in what reads it.
        self._wanted = {name: value for name, value in wanted.items() if name not in inside}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self._wanted:
            return result
        pairs = zip(tree_leaves(self._wanted.pop(n.name)), tree_leaves(result), strict=True)
        for want, found in pairs:
            if isinstance(want, Tensor):
                error = _error(want, found)
                # What goes wrong first is what others go wrong by.
                if not error <= self.error and self.error <= TOLERANCE:
                    self.error, self.worst = error, n.name
                if error <= TOLERANCE:
                    take_round_off(found, want)
        return result


def _own(value: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, value)


def _error(want: Tensor, found: Tensor) -> float:
    if want.shape != found.shape:
        return float("inf")
    if not (want.is_floating_point() or want.is_complex()):
        return 0.0 if torch.equal(want, found) else float("inf")
    if not want.numel():
        return 0.0
    # Masks hold infinities on purpose, whose difference would be no number.
    apart = torch.where(want == found, 0.0, want - found).abs().amax()
    scale = want[torch.isfinite(want)].abs().amax() if bool(torch.isfinite(want).any()) else 1.0
    return float(apart) / (float(scale) or 1.0)
