"""Capture: a user's model becomes one canonical `torch.fx.GraphModule`, whatever way it was traced.

Canonical form: parametric operators are `nn` modules under their original names wherever the model
has them so, dropout and batch norm follow `.train()` / `.eval()`, every placeholder is one input.
No later pass asks how the model was captured. The model that was handed in is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.errors import CaptureError, InputError
from fxprune.passes.differences import first_difference
from fxprune.passes.dynamic import ValueWatch
from fxprune.passes.export import capture_by_export
from fxprune.passes.glue.capture import capture_with_glue
from fxprune.passes.glue.module import GluedModule
from fxprune.passes.rules import tensors
from fxprune.passes.trace import capture_by_tracing, is_opaque

WAYS = (("symbolic_trace", capture_by_tracing), ("torch.export", capture_by_export))

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Baked:
    """A parameter that holds what the model computed anew in each call.

    Attributes:
        name: of the parameter.
        sources: names of what it was computed from.
    """

    name: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (computed from {', '.join(self.sources)})"


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Attributes:
        module: an independent copy, in evaluation mode, as a `GraphModule` in canonical form.
        example_inputs: one value per placeholder, in order.
        capture: "symbolic_trace", "torch.export" or "children of Python glue".
        call: what a model with glue is itself called with, args and kwargs; None for others, whose
            placeholders are their arguments.
        baked: parameters that hold what the model itself computes from others; see `passes.bake`.
    """

    module: fx.GraphModule
    example_inputs: tuple[Any, ...]
    capture: str
    call: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    baked: tuple[Baked, ...] = ()


def capture(model: nn.Module, example_inputs: ExampleInputs) -> Captured:
    """Capture `model` as it runs on `example_inputs` in evaluation mode.

    `torch.fx.symbolic_trace` comes first, because it keeps the user's modules; `torch.export` is
    the way out where Python control flow or unsupported calls stop it, or where the trace holds
    opaque calls (functions under `fx.wrap`, recurrent or attention modules) that export looks into.
    Where neither takes the whole model, its children are captured and its own code keeps running.

    Args:
        model: any `nn.Module`; not modified.
        example_inputs: what `model` is called with: a tensor, a tuple of positional arguments, or a
            dict of keyword arguments.

    Raises:
        InputError: the model cannot be worked on (compiled, quantised, NaN weights, ...) or does
            not run on `example_inputs`.
        CaptureError: neither way captures the model; the message holds both reasons.
    """
    check_model(model)
    args, kwargs = cloned(normal_inputs(example_inputs))
    original = copied(model).eval()
    with buffers_restored(original):
        expected = run_once(original, args, kwargs)
    if not tensors(expected):
        raise InputError(
            f"{type(model).__name__} returns no tensor", fix="Return what the model computes"
        )
    failures: list[str] = []
    opaque: Captured | None = None
    dynamic: Captured | None = None
    for name, way in () if isinstance(original, GluedModule) else WAYS:
        try:
            module, inputs = way(original, args, kwargs)
            with buffers_restored(module):
                with ValueWatch() as values:
                    found = call_quietly(module, inputs)
                difference = first_difference(expected, found)
        except InputError:
            raise
        except Exception as error:  # any failure of a tracer is a reason to try the next one
            failures.append(f"{name}: {type(error).__name__}: {_first_line(error)}")
            continue
        if difference is not None:
            failures.append(f"{name}: the captured graph computes something else ({difference})")
            continue
        captured = Captured(module, inputs, name)
        submodules = dict(module.named_modules())
        if values.found is not None:
            dynamic = dynamic or captured
        elif any(is_opaque(submodules, node) for node in module.graph.nodes):
            opaque = opaque or captured
        else:
            return captured
    if opaque is not None:
        return opaque
    try:
        return _with_glue(original, args, kwargs, expected)
    except CaptureError as error:
        failures.append(f"its children: {error.what}")
    if dynamic is not None:  # inference will say where it depends on values
        return dynamic
    raise CaptureError(
        f"{type(model).__name__} cannot be captured as a graph",
        "; ".join(failures),
        "Move data-dependent Python out of forward, or optimise the traceable submodules alone",
    )


def _with_glue(
    original: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], expected: Any
) -> Captured:
    """The model as captured children and the Python code around them."""
    with buffers_restored(original):
        glued = capture_with_glue(original, args, kwargs, expected)
    with buffers_restored(glued.module):
        difference = first_difference(expected, run_once(glued.module, args, kwargs))
    if difference is not None:
        raise CaptureError(f"they compute something else ({difference})")
    return Captured(glued.module, glued.inputs, "children of Python glue", (args, kwargs))


def check_model(model: nn.Module) -> None:
    """Refuse early what no pass could work on."""
    if torch.is_inference_mode_enabled():
        raise InputError("fxprune runs under torch.inference_mode", fix="Call it outside of that")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is a {type(model).__name__}, not a torch.nn.Module",
            fix="Pass the module itself",
        )
    if hasattr(model, "_orig_mod"):
        raise InputError(
            "the model is already compiled by torch.compile",
            fix="Pass the module it was compiled from (model._orig_mod), and compile the slim one",
        )
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise InputError(
            "the model is a TorchScript module", fix="Pass the Python module it was made from"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(
            f"the model is wrapped in {type(model).__name__}", fix="Pass model.module instead"
        )
    for name, module in model.named_modules():
        origin = type(module).__module__
        if ".quantized" in origin or "quantization.fake" in origin:
            raise InputError(
                "the model is already quantised",
                f"{name or 'model'} is a {origin}.{type(module).__name__}",
                "Slim first, then quantise the slim model",
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise InputError(
                f"{name} is not initialised", fix="Run the model once before it is slimmed"
            )
        if tensor.is_meta:
            raise InputError(f"{name} is on the meta device", fix="Load real weights first")
        if tensor.is_quantized:
            raise InputError(f"{name} is quantised", fix="Slim first, then quantise the slim model")
        # Other buffers may hold infinities on purpose, as attention masks do.
        trained = isinstance(tensor, nn.Parameter) or name.endswith(("_mean", "_var"))
        if trained and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name} holds NaN or infinite values",
                fix="Their importance cannot be judged; reload or retrain the weights",
            )


def normal_inputs(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call of the model."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}",
            fix="Pass a tensor, a tuple of arguments or a dict of keyword arguments",
        )
    found = tensors((args, kwargs))
    if not found:
        raise InputError("example_inputs holds no tensor", fix="Pass what the model is called with")
    for tensor in found:
        if tensor.numel() == 0:
            raise InputError(
                f"example_inputs holds an empty tensor of shape {tuple(tensor.shape)}",
                fix="Pass at least one sample",
            )
    return args, kwargs


@contextmanager
def buffers_restored(module: nn.Module) -> Iterator[None]:
    """Undo what running `module` writes into its buffers, as counters in `forward` do."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def cloned(inputs: Any) -> Any:
    """Inputs with tensors of their own: some models write into what they are given."""
    return tree_map_only(Tensor, torch.clone, inputs)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model`; what a tensor was computed by, as hooks leave it, is not copied."""
    held = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in held if not t.is_leaf})
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied",
            f"{type(error).__name__}: {_first_line(error)}",
            "Detach tensors that are stored on the model and carry a graph",
        ) from error


def run_once(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What `model` returns for the example inputs; an `InputError` if it does not run on them."""
    try:
        with torch.no_grad():
            args, kwargs = cloned((args, kwargs))
            return model(*args, **kwargs)
    except Exception as error:
        shapes = [
            f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')} on {leaf.device}"
            for leaf in tree_leaves((args, dict(kwargs)))
            if isinstance(leaf, Tensor)
        ]
        raise InputError(
            f"{type(model).__name__} does not run on example_inputs ({', '.join(shapes)})",
            f"{type(error).__name__}: {_first_line(error)}",
            "Pass inputs that model(*example_inputs) takes",
        ) from error


def call_quietly(module: fx.GraphModule, inputs: tuple[Any, ...]) -> Any:
    """The outputs of a captured module, without gradients."""
    with torch.no_grad():
        return module(*cloned(inputs))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
