"""Where latencies are measured, and what the cache keeps of kernels and whole networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fxprune import batches, turns
from fxprune.axes import Atom
from fxprune.backends import Backend, Engine, Settings, profiles
from fxprune.cache import Cache, Key
from fxprune.elsewhere import unknown
from fxprune.measure import PROTOCOL
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import Captured
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.kernels import LayerLatency, measure_layers
from fxprune.passes.layers import Layer
from fxprune.passes.seen import Seen
from fxprune.progress import Tell

SEEN = "seen/4"
"""Version of what is kept of slim networks; others are not read."""

KEPT = 3
ALIKE = 0.03
"""So many slim versions of a network are kept whose shares of its latency are so close."""


@dataclass(frozen=True)
class Bench:
    """Where and how kernels are measured.

    Attributes:
        alignment: of the widths at which they are measured.
        cache: path of the latency cache.
    """

    backend: Backend
    settings: Settings
    device: str
    alignment: int
    cache: str | None
    tell: Tell

    def tables(
        self,
        layers: Sequence[Layer],
        ladders: Mapping[Atom, Ladder],
        beside: Iterable[Layer] = (),
    ) -> tuple[LayerLatency, ...]:
        """The latency of every layer over the widths that `ladders` leave free.

        Args:
            beside: as in `measure_layers`.
        """
        with Cache(self.cache) as store:
            return measure_layers(
                layers,
                Choices(ladders),
                self.backend,
                self.settings,
                self.device,
                self.alignment,
                store,
                partial(self.tell, "Measuring kernels"),
                beside,
            )

    def profile(self, engine: Engine, inputs: tuple[Tensor, ...]) -> dict[str, float] | None:
        """Seconds of every node of a network, where the backend can tell.

        Raises:
            BackendError: the engine fails.
        """
        return self.backend.attempt(
            "profile the network", lambda: self.backend.profile(engine, inputs)
        )

    def remember(
        self, captured: Captured, seconds: float, profile: Mapping[str, float] | None
    ) -> None:
        """Keep what a network takes as a whole, for machines to which the cache is carried."""
        with Cache(self.cache) as store:
            store.put(self._key(captured), {"seconds": seconds, "profile": profile})

    def recall(self, captured: Captured) -> tuple[float, Mapping[str, float] | None]:
        """What was kept of a network: its seconds and its profile.

        Raises:
            MeasurementError: it was not measured.
        """
        with Cache(self.cache) as store:
            kept = store.get(self._key(captured))
        if kept is None:
            raise unknown(self.backend, "this network")
        return float(kept["seconds"]), kept["profile"]

    def keep_seen(
        self, captured: Captured, analysis: Analysis, seconds: float, found: Seen
    ) -> None:
        """Keep what was seen of a slim version of a network that takes `seconds` itself.

        Of versions with about the same latency the latest are kept.
        """
        groups = {group.atom: group.name for group in analysis.groups}
        new = found.scaled(1 / seconds)

        def with_new(entry: Mapping[str, Any] | None) -> Mapping[str, Any]:
            kept = _seen(entry, analysis)
            others = [some for some in kept if (some.sizes, some.nodes) != (new.sizes, new.nodes)]
            alike = [some for some in others if abs(some.seconds - new.seconds) < ALIKE]
            oldest = alike[: max(len(alike) + 1 - KEPT, 0)]
            networks = [some.to_json(groups) for some in (*others, new) if some not in oldest]
            return {"networks": networks}

        with Cache(self.cache) as store:
            store.change(self._key(captured, "slim versions of", SEEN), with_new)

    def recall_seen(
        self, captured: Captured, analysis: Analysis, seconds: float
    ) -> tuple[Seen, ...]:
        """What was kept of slim versions of a network, which now takes `seconds` itself."""
        with Cache(self.cache) as store:
            entry = store.get(self._key(captured, "slim versions of", SEEN))
        return tuple(some.scaled(seconds) for some in _seen(entry, analysis))

    def _key(self, captured: Captured, what: str = "", *protocols: str) -> Key:
        backend = self.backend
        device, version = backend.device(self.device), backend.version()
        subject = f"{what} network {_structure(captured)}".lstrip()
        protocol = " ".join([PROTOCOL, turns.PROTOCOL, profiles.PROTOCOL, *protocols])
        return Key(device, backend.name, version, self.settings, subject, protocol)


def _seen(entry: Mapping[str, Any] | None, analysis: Analysis) -> list[Seen]:
    """What the cache has of slim versions of a network, as shares of its latency."""
    atoms = {group.name: group.atom for group in analysis.groups}
    return [
        Seen.from_json(some, atoms)
        for some in (entry or {"networks": []})["networks"]
        if some["sizes"].keys() <= atoms.keys()  # told by another version, perhaps
    ]


def bench_of(
    backend: Backend,
    settings: Settings | None,
    captured: Captured,
    alignment: int,
    cache: str | None,
    tell: Tell,
) -> Bench:
    """The bench on which the kernels of a captured model are measured."""
    device = batches.device_of(captured.module).type
    return Bench(backend, settings or Settings(), device, alignment, cache, tell)


def _structure(captured: Captured) -> str:
    """Everything that a network's latency depends on but the numbers in its tensors."""
    module = captured.module
    lines = [
        str(module.graph),
        *(f"{name} {part!r}" for name, part in module.named_modules() if not [*part.children()]),
        *(f"{name} {t.dtype} {tuple(t.shape)}" for name, t in named_tensors(module)),
        *(f"{t.dtype} {tuple(t.shape)}" for t in captured.example_inputs if isinstance(t, Tensor)),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
