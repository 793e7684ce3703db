"""What faults are put into, and the table of their kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from fxprune.axes import Axes
from fxprune.passes.capture import Captured
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.slimming import Kept
from fxprune.plan import Plan


@dataclass(frozen=True)
class Subject:
    """A model, and its slim form; or one of the two with a fault in it."""

    captured: Captured
    analysis: Analysis
    plan: Plan
    slim: fx.GraphModule

    def damaged(self) -> fx.GraphModule:
        """A copy of the slim model, for a fault to be put in."""
        return copy.deepcopy(self.slim)


Kind = Callable[[Subject], Iterator[tuple[str, Subject]]]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    """Decorator: registers a kind of fault under the name of its function."""
    KINDS[make.__name__] = make
    return make


def slimmed_tensors(subject: Subject, kinds: type = Tensor) -> Iterator[tuple[str, Axes]]:
    """Names and axes of the tensors that lose positions."""
    kept = Kept.from_plan(subject.plan, subject.analysis)
    for name, tensor in named_tensors(subject.slim):
        axes = subject.analysis.tensors.get(name, ())
        if any(map(kept.touches, axes)) and isinstance(tensor, kinds):
            yield name, axes
