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
from fxprune.backends.region import Region
from fxprune.errors import BackendError

SHORTEST = 1e-7
"""Seconds of a region whose kernels take less than a profile counts."""


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
            write: gives the model of one region, all of whose names begin with a prefix; nodes that
                are called otherwise do not count.
        """
        named = {f"region{place}": region for place, region in enumerate(regions)}
        model = onnx_model.side_by_side([write(r, f"{name}.") for name, r in named.items()])
        nodes = {
            value: name
            for node in model.graph.node
            for value in (node.name, *node.output)
            if (name := node.name.partition(".")[0]) in named
        }
        inputs = tuple(tensor for region in regions for tensor in region.inputs())
        return SideBySide(onnx_model.serialize(model), inputs, named, nodes)

    def __str__(self) -> str:
        first, *others = (region.signature() for region in self.regions.values())
        return f"the region {first}" + (f" and {len(others)} others" if others else "")

    def seconds(self, profile: Mapping[str, float]) -> list[float]:
        """Those of every region, from a profile by `nodes`.

        Raises:
            BackendError: it tells nothing of a region.
        """
        for name, region in self.regions.items():
            if name not in profile:
                raise BackendError(f"the profile does not tell the region {region.signature()}")
        return [max(profile[name], SHORTEST) for name in self.regions]
