"""The backend of another machine, known by the latencies that were measured there.

`fxprune table build` and `fxprune table export` there, `fxprune table import` here: then
`backend="tensorrt@Orin"` asks for what TensorRT takes on the machine whose name holds "Orin".
Nothing can be compiled for it here, so what is promised is what the tables say.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from fxprune.backends import Backend, Engine, Region, Settings, backends
from fxprune.backends.signature import Signature
from fxprune.cache import Cache
from fxprune.errors import InputError, MeasurementError


class Elsewhere(Backend):
    """Has the name, version and device of a backend elsewhere, and can only be looked up."""

    def __init__(self, backend: Backend, device: str, version: str) -> None:
        self.name, self.alignment = backend.name, backend.alignment
        self._device, self._version = device, version

    def unavailable(self) -> str | None:
        return None

    def version(self) -> str:
        return self._version

    def device(self, device_type: str = "cpu") -> str:
        del device_type
        return self._device

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        raise unknown(self, "the network")

    def restore(self, path: Path) -> Engine:
        raise unknown(self, f"what is saved in {str(path)!r}")

    def compile_region(
        self, region: Region, settings: Settings | None = None, device: str = "cpu"
    ) -> NoReturn:
        raise unknown(self, f"the kernel {region.signature()}")


def unknown(backend: Backend, what: str) -> MeasurementError:
    """The error for what was not measured on the other machine."""
    return MeasurementError(
        f"No latency of {what} is known",
        f"{backend.name} on {backend.device()}, {backend.version()}",
        "Run `fxprune table build` for this model there, with the same settings and alignment, "
        "then `fxprune table export`, and `fxprune table import` here",
    )


def elsewhere(place: str, cache: str | None) -> Elsewhere:
    """The backend that `place` names: "tensorrt@Orin", with any part of the machine's name.

    Raises:
        InputError: no machine in the cache fits, or more than one.
    """
    name, _, part = place.partition("@")
    known = backends()
    if name not in known:
        raise InputError(f"there is no backend {name!r}", fix=f"choose from {', '.join(known)}")
    with Cache(cache) as store:
        machines = sorted((d, v) for b, d, v in store.machines() if b == name)
    fitting = [(d, v) for d, v in machines if part in f"{d}, {v}"]
    if len(fitting) == 1:
        return Elsewhere(known[name], *fitting[0])
    listed = "; ".join(f"{d}, {v}" for d, v in fitting or machines) or "none yet"
    raise InputError(
        f"{len(fitting) or 'No'} machines with {name} have {part!r} in their names",
        f"backend {place!r}",
        f"Known: {listed}. `fxprune table import` adds what was measured elsewhere",
    )
