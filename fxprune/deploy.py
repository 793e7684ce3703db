"""From a module to the deployment compiler's engine, and to its latency."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxprune import batches
from fxprune.backends import Backend, Engine, Settings, get_backend
from fxprune.errors import InputError
from fxprune.finalize import finalize
from fxprune.measure import Timing, measure
from fxprune.measurement import Measurement
from fxprune.passes.capture import ExampleInputs, normal_inputs
from fxprune.passes.glue.module import require_no_glue
from fxprune.report import META


def compile(
    module: nn.Module,
    example_inputs: ExampleInputs,
    backend: str | Backend = "auto",
    settings: Settings | None = None,
) -> Engine:
    """The backend's engine for `module`: call it like the module; `.save(path)` writes it.

    What `fxprune.optimize` returned goes through `fxprune.finalize` first.

    Args:
        module: slim or dense; not modified, compiled in evaluation mode.
        example_inputs: positional arguments, whose shapes the engine is compiled for.
        backend: a name of `fxprune backends`, or "auto" for the best one here.
        settings: precision, threads, range of batch sizes.

    Raises:
        BackendUnavailable, BackendError, InputError: see `fxprune.backends.Backend.compile`.
    """
    require_no_glue(module, "backends compile graphs")
    chosen = get_backend(backend, batches.device_of(module).type)
    inputs = _positional(example_inputs)
    if isinstance(module, fx.GraphModule) and META in module.meta:
        module = finalize(module, inputs)
    return chosen.compile(module, inputs, settings)


def benchmark(
    module: nn.Module,
    example_inputs: ExampleInputs,
    backend: str | Backend = "auto",
    settings: Settings | None = None,
    timing: Timing | None = None,
) -> Measurement:
    """Latency of `module` on the backend, with its spread, measured as every table entry is."""
    inputs = _positional(example_inputs)
    return measure(compile(module, inputs, backend, settings), inputs, timing)


def _positional(example_inputs: ExampleInputs) -> tuple[Any, ...]:
    args, kwargs = normal_inputs(example_inputs)
    if kwargs:
        raise InputError(
            "An engine takes positional inputs",
            f"example_inputs names {', '.join(kwargs)}",
            "Pass a tuple in the order of forward's arguments",
        )
    return args
