"""Regions side by side in one ONNX model, to be profiled as a network is.

Alone, a kernel finds all that it needs in the nearest cache, run after run, and where its tensors
happen to lie makes it much faster or slower. Among others it runs as it does in a network
(`python -m benchmarks.side_by_side`), and it costs less: most of what setting a model up takes does
not depend on how much the model holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from torch import Tensor

from fxprune.backends import onnx_model
from fxprune.backends.profiles import OVERHEAD, SHORTEST, by_node
from fxprune.backends.region import Region

ENDS = ("first", "last")
"""Names of regions that do not count. On OpenVINO whatever runs first takes longer; in whatever
order a backend runs them, that is one of these."""


@dataclass(frozen=True)
class SideBySide:
    """Some regions in one model.

    Attributes:
        model: serialised.
        inputs: of all regions, in order.
        regions: by the names that they have in the model.
        nodes: these names, by those of ONNX nodes and of the values that these give.
    """

    model: bytes = field(repr=False)
    inputs: tuple[Tensor, ...]
    regions: Mapping[str, Region]
    nodes: Mapping[str, str]

    @staticmethod
    def of(
        regions: Sequence[Region],
        write: Callable[[Region, str], onnx.ModelProto] = onnx_model.region_model,
    ) -> SideBySide:
        """All of these, each as often as it is given.

        Args:
            write: gives the model of one region. All names in it begin with a prefix, but those of
                nodes that stand for what a network has outside of the region.
        """
        named = {f"region{place}": region for place, region in enumerate(regions)}
        smallest = min(regions, key=lambda region: region.numbers)
        first, last = ENDS
        written = {first: smallest, **named, last: smallest}
        model = onnx_model.side_by_side([write(r, f"{name}.") for name, r in written.items()])
        nodes = {
            value: name
            for node in model.graph.node
            for value in (node.name, *node.output)
            if (name := node.name.partition(".")[0]) in written
        }
        inputs = tuple(tensor for region in written.values() for tensor in region.inputs())
        return SideBySide(onnx_model.serialize(model), inputs, named, nodes)

    def seconds(
        self, kernels: Mapping[str, Sequence[float]], outside: Sequence[str] = ()
    ) -> list[float]:
        """Those of every region.

        Args:
            kernels: seconds of every kernel of the model, again and again.
            outside: beginnings of the names of kernels that belong to no region.

        Raises:
            LookupError: it is not known to which of several regions some other kernel belongs.
        """
        told = by_node(kernels, self.nodes)
        lost = told.keys() - self.regions.keys() - {OVERHEAD, *ENDS}
        lost = {k for k in lost if told[k] and not k.removeprefix("[").startswith((*outside,))}
        if lost and len(self.regions) > 1:
            raise LookupError(f"it is not known to which region {min(lost)} belongs")
        # A single region and its copies at both ends have each as much of it.
        nameless = sum(told[kernel] for kernel in lost) / (1 + len(ENDS))
        return [max(told.get(name, 0.0) + nameless, SHORTEST) for name in self.regions]


def described(regions: Sequence[Region]) -> str:
    """In one line: the first one, and how many more there are."""
    first, *others = (region.signature() for region in regions)
    return f"the region {first}" + (f" and {len(others)} others" if others else "")
