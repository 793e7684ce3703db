"""Torch-TensorRT, ahead of time: `torch.export`, then `torch_tensorrt.dynamo`.

https://docs.pytorch.org/TensorRT/py_api/dynamo.html
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import _config as symbolic_shapes

from fxprune.backends import exporting
from fxprune.backends.base import Backend, Engine, failure
from fxprune.backends.modules import adapted
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.backends.tensorrt import cuda_package
from fxprune.cache import default_path
from fxprune.errors import BackendError
from fxprune.files import atomic_path

_MANIFEST = "fxprune.json"


@dataclass(frozen=True)
class TorchTensorRtEngine(Engine):
    """The compiled graph module, in which every operator runs in a TensorRT engine.

    `examples` are inputs to trace the module with, which saving does.
    """

    module: Any = field(repr=False)
    examples: tuple[Tensor, ...] = field(repr=False)

    def run(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return self.module(*inputs)

    def layers(self) -> list[Any]:
        """What TensorRT tells of the layers that it made of the module, in order of execution.

        Raises `BackendError` for an engine that was loaded, whose layers are out of reach.
        """
        engines = engines_of(self.module)
        if not engines:
            raise BackendError(
                "the layers of an engine that was loaded cannot be told",
                f"backend {self.name!r}",
                "compile the module, and ask before it is saved",
            )
        return [
            layer
            for engine in engines.values()
            for layer in json.loads(engine.get_layer_info())["Layers"]
        ]

    def save(self, path: str | Path) -> None:
        """Write an exported program with its engines, as `torch_tensorrt.load` takes it.

        The file holds native code: load it only if trusted.
        """
        import torch_tensorrt

        manifest = {"settings": self.settings.to_json(), "signature": self.signature.to_json()}
        with atomic_path(path) as temporary:
            try:
                torch_tensorrt.save(
                    self.module,
                    str(temporary),
                    output_format="exported_program",
                    arg_inputs=list(self.examples),
                    # Told in one go, since the batch of all inputs is the same.
                    dynamic_shapes=exporting.free_batch(self.signature),
                    extra_files={_MANIFEST: json.dumps(manifest)},
                )
            except Exception as error:
                raise failure("save the engine", f"backend {self.name!r}", error) from error


class TorchTensorRtBackend(Backend):
    """Compiles the whole module or nothing; fp32 (with TF32), fp16 and bf16."""

    name = "torch_tensorrt"
    rank = 1
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    device_types = ("cuda",)

    def unavailable(self) -> str | None:
        return cuda_package("torch_tensorrt")

    def version(self) -> str:
        import tensorrt
        import torch_tensorrt

        return f"torch_tensorrt {torch_tensorrt.__version__}, tensorrt {tensorrt.__version__}"

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        import torch_tensorrt

        # Without this PyTorch records a smallest batch of 1 as 2, and the engine would refuse 1.
        with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = exporting.export(adapted(module, settings), inputs, signature)
        pad_ceil_pools(program)
        compiled = torch_tensorrt.dynamo.compile(
            program, arg_inputs=compiler_inputs(inputs, signature), **compiler_options()
        )
        refuse_fall_back(compiled)
        examples = exporting.two_samples(inputs, signature)
        return TorchTensorRtEngine(self.name, settings, signature, compiled, examples)

    def restore(self, path: Path) -> Engine:
        import torch_tensorrt

        extra = {_MANIFEST: ""}
        module = torch_tensorrt.load(str(path), extra_files=extra).module()
        manifest = json.loads(extra[_MANIFEST])
        settings = Settings.from_json(manifest["settings"])
        signature = Signature.from_json(manifest["signature"])
        zeros = zip(signature.shapes, signature.dtypes, strict=True)
        inputs = tuple(torch.zeros(shape, dtype=dtype, device="cuda") for shape, dtype in zeros)
        examples = exporting.two_samples(inputs, signature)
        return TorchTensorRtEngine(self.name, settings, signature, module, examples)


def compiler_inputs(inputs: tuple[Tensor, ...], signature: Signature) -> list[Any]:
    """Inputs as Torch-TensorRT takes them: tensors, or ranges of shapes where the batch varies."""
    import torch_tensorrt

    if signature.batch_range is None:
        return list(inputs)
    low, high = signature.batch_range
    return [
        torch_tensorrt.Input(
            min_shape=(low, *tensor.shape[1:]),
            opt_shape=tuple(tensor.shape),
            max_shape=(high, *tensor.shape[1:]),
            dtype=tensor.dtype,
        )
        if batched
        else tensor
        for tensor, batched in zip(inputs, signature.batched, strict=True)
    ]


def compiler_options() -> dict[str, Any]:
    """Everything in TensorRT or an error, and precision as the graph's own dtypes say.

    What TensorRT timed of its tactics is kept beside our own measurements: a second build of the
    same layers takes a fraction of the time, and chooses the same tactics.
    """
    import torch_tensorrt

    options: dict[str, Any] = {
        "require_full_compilation": True,
        "min_block_size": 1,  # by default a module of less than five operators is left to PyTorch
        "timing_cache_path": str(default_path().with_name("tensorrt-timing.bin")),
    }
    settings = torch_tensorrt.dynamo.CompilationSettings
    # Newer releases are always strongly typed and do not have the option any more.
    if "use_explicit_typing" in {field.name for field in fields(settings)}:
        options["use_explicit_typing"] = True
    return options


def refuse_fall_back(compiled: fx.GraphModule) -> None:
    """Raise `BackendError` unless all operators run in engines; PyTorch would run the rest."""
    engines = engines_of(compiled)
    left = [
        node.name
        for node in compiled.graph.nodes
        if (node.op == "call_module" and node.target not in engines)
        or (node.op in ("call_function", "call_method") and node.target is not operator.getitem)
    ]
    if left or not engines:
        raise BackendError(
            f"Torch-TensorRT left operators to PyTorch: {', '.join(left) or 'all of them'}",
            fix="replace them in the model, or use the inductor backend",
        )


def engines_of(compiled: nn.Module) -> dict[str, Any]:
    """The children of a compiled module that are TensorRT engines, by name."""
    return {
        name: child
        for name, child in compiled.named_children()
        if type(child).__name__.endswith("TorchTensorRTModule")
    }


def pad_ceil_pools(program: torch.export.ExportedProgram) -> None:
    """Write max pooling with `ceil_mode`, which Torch-TensorRT does not convert, with padding.

    The windows that `ceil_mode` adds reach over the far borders, and what lies there counts as
    nothing: as it does when minus infinity is put there. A pooling that pads on its own pads both
    sides alike, so what is missing is put on the far side only.
    """
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.max_pool2d.default):
        image, kernel, stride, padding, dilation, ceil = _pool_arguments(node)
        if not ceil:
            continue
        missing = [
            max((out - 1) * step + apart * (window - 1) + 1 - (size + 2 * pad), 0)
            for out, size, window, step, pad, apart in zip(
                node.meta["val"].shape[-2:],
                image.meta["val"].shape[-2:],
                kernel,
                stride,
                padding,
                dilation,
                strict=True,
            )
        ]
        with graph.inserting_before(node):
            pads = [0, missing[1], 0, missing[0]]
            padded = graph.call_function(
                torch.ops.aten.constant_pad_nd.default, (image, pads, -math.inf)
            )
        *batch, height, width = image.meta["val"].shape
        shape = (*batch, height + missing[0], width + missing[1])
        padded.meta = {**image.meta, "val": image.meta["val"].new_empty(shape)}
        node.args = (padded, kernel, stride, padding, dilation)
    program.graph_module.recompile()


def _pool_arguments(node: fx.Node) -> tuple[fx.Node, Any, Any, Any, Any, bool]:
    """The arguments of a pooling, with those that were left out."""
    left_out: tuple[Any, ...] = (None, None, [], [0, 0], [1, 1], False)
    given: tuple[Any, ...] = (*node.args, *left_out[len(node.args) :])
    image, kernel, stride, padding, dilation, ceil = given
    return image, kernel, stride or kernel, padding, dilation, bool(ceil)


BACKEND = TorchTensorRtBackend()
