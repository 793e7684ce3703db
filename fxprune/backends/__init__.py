"""The deployment compilers: one file each, found by looking into this package.

>>> engine = get_backend("onnxruntime").compile(module, (x,))
>>> engine(x)
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from fxprune.backends.base import Backend, Engine
from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.errors import InputError

__all__ = ["Availability", "Backend", "Engine", "Region", "Settings", "available", "get_backend"]


@dataclass(frozen=True, slots=True)
class Availability:
    """One row of `available()`: `reason` says why the backend cannot run here, or is None."""

    name: str
    version: str | None
    reason: str | None


def backends() -> dict[str, Backend]:
    """Every backend of this package by name, whether it can run here or not."""
    found: dict[str, Backend] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        backend = getattr(module, "BACKEND", None)
        if isinstance(backend, Backend):
            found[backend.name] = backend
    return found


def available() -> list[Availability]:
    """Which backends can run on this machine, and what is missing for the others."""
    rows = []
    for name, backend in backends().items():
        reason = backend.unavailable()
        rows.append(Availability(name, None if reason else backend.version(), reason))
    return rows


def get_backend(name: str | Backend = "auto", device_type: str = "cpu") -> Backend:
    """The backend of that name, ready to use; an instance of one's own is handed through.

    "auto" is the best one that can run here, for a model on a device of `device_type`.
    Raises `InputError` for an unknown name, `BackendUnavailable` for one that cannot run here.
    """
    if isinstance(name, Backend):
        name.require()
        return name
    known = backends()
    if name == "auto":
        there = [backend for backend in known.values() if device_type in backend.device_types]
        order = sorted(there, key=lambda backend: backend.rank)
        usable = (backend for backend in order if backend.unavailable() is None)
        return next(usable, known["eager"])
    if name not in known:
        choices = ", ".join(["auto", *sorted(known)])
        raise InputError(f"there is no backend {name!r}", fix=f"choose from {choices}")
    known[name].require()
    return known[name]
