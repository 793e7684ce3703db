"""TensorRT through ONNX, with the plain `tensorrt` package; strongly typed networks.

https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.backends.base import Backend, Engine, missing
from fxprune.backends.modules import adapted
from fxprune.backends.profiles import by_node
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError
from fxprune.files import atomic_path

INSTALL = "pip install 'fxprune[tensorrt]'"
PROFILED_RUNS = 40
_MANIFEST, _PLAN = "fxprune.json", "engine.plan"


@dataclass(frozen=True)
class TensorRtEngine(Engine):
    """A serialised plan, its engine and execution context, and the fx nodes of its layers."""

    plan: bytes = field(repr=False)
    engine: Any = field(repr=False)
    context: Any = field(repr=False)
    nodes: Mapping[str, str] = field(repr=False)

    def run(self, *inputs: Tensor) -> Any:
        return self.signature.restore(self.bind(*inputs)())

    def bind(self, *inputs: Tensor) -> Callable[[], list[Tensor]]:
        # The context keeps addresses only, so the tensors live as long as the function returned.
        given = dict(
            zip(self._names("INPUT"), (tensor.contiguous() for tensor in inputs), strict=True)
        )
        for name, tensor in given.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
        results = {name: self._empty(name, inputs[0].device) for name in self._names("OUTPUT")}
        tensors = given | results

        def enqueue() -> list[Tensor]:
            for name, tensor in tensors.items():
                self.context.set_tensor_address(name, tensor.data_ptr())
            if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise BackendError("TensorRT refused to run the engine", ", ".join(tensors))
            return list(results.values())

        return enqueue

    def _names(self, mode: str) -> list[str]:
        import tensorrt

        wanted = getattr(tensorrt.TensorIOMode, mode)
        names = (self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors))
        return [name for name in names if self.engine.get_tensor_mode(name) == wanted]

    def _empty(self, name: str, device: torch.device) -> Tensor:
        import tensorrt

        dtypes = {
            tensorrt.DataType.FLOAT: torch.float32,
            tensorrt.DataType.HALF: torch.float16,
            tensorrt.DataType.BF16: torch.bfloat16,
            tensorrt.DataType.INT32: torch.int32,
            tensorrt.DataType.INT64: torch.int64,
            tensorrt.DataType.BOOL: torch.bool,
        }
        shape = tuple(self.context.get_tensor_shape(name))
        return torch.empty(shape, dtype=dtypes[self.engine.get_tensor_dtype(name)], device=device)

    def save(self, path: str | Path) -> None:
        """Write a zip file with the plan, as every TensorRT runtime takes it, and a manifest.

        A plan is code for one kind of GPU and one TensorRT version: load it only if trusted.
        """
        manifest = {
            "settings": self.settings.to_json(),
            "signature": self.signature.to_json(),
            "nodes": dict(self.nodes),
        }
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest))
            archive.writestr(_PLAN, self.plan)


class TensorRtBackend(Backend):
    """Builds a plan from the exported ONNX model; fp32 (with TF32), fp16 and bf16."""

    name = "tensorrt"
    rank = 2
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    device_types = ("cuda",)

    def unavailable(self) -> str | None:
        return cuda_package("tensorrt")

    def version(self) -> str:
        import tensorrt

        return f"tensorrt {tensorrt.__version__}"

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        from fxprune.backends import onnx_model

        model = onnx_model.export(adapted(module, settings), inputs, signature)
        data = onnx_model.pack(model, settings, signature)
        plan = _plan(data, [value.name for value in model.graph.input], signature)
        return self._engine(plan, onnx_model.nodes_by_kernel(data), settings, signature)

    def restore(self, path: Path) -> Engine:
        with zipfile.ZipFile(path) as archive:
            manifest, plan = json.loads(archive.read(_MANIFEST)), archive.read(_PLAN)
        settings = Settings.from_json(manifest["settings"])
        signature = Signature.from_json(manifest["signature"])
        return self._engine(plan, manifest["nodes"], settings, signature)

    def _engine(
        self, plan: bytes, nodes: Mapping[str, str], settings: Settings, signature: Signature
    ) -> TensorRtEngine:
        import tensorrt

        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                "TensorRT cannot load the plan",
                f"this machine has {self.version()} and {self.device('cuda')}",
                "compile again here: a plan serves one GPU and one version",
            )
        context = engine.create_execution_context()
        return TensorRtEngine(self.name, settings, signature, plan, engine, context, nodes)

    def profile(self, engine: Engine, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """Seconds by fx node; a fused layer counts for the first node that it came from."""
        import tensorrt

        class Profiler(tensorrt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.seconds: dict[str, list[float]] = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.seconds.setdefault(layer_name, []).append(ms * 1e-3)

        assert isinstance(engine, TensorRtEngine)
        profiled = self._engine(engine.plan, engine.nodes, engine.settings, engine.signature)
        profiler = Profiler()
        profiled.context.profiler = profiler
        run = profiled.bind(*inputs)
        for _ in range(PROFILED_RUNS):
            run()
            torch.cuda.synchronize()
        nodes = {
            layer: engine.nodes[part]
            for layer in profiler.seconds
            for part in reversed(layer.split(" + "))
            if part in engine.nodes
        }
        return by_node(profiler.seconds, nodes)


def cuda_package(package: str) -> str | None:
    """Why a backend that needs this package and a CUDA device is unavailable; None if it is not."""
    if importlib.util.find_spec(package) is not None and not torch.cuda.is_available():
        return "there is no CUDA device that PyTorch can use"
    return missing(package, INSTALL)


def _plan(model: bytes, input_names: list[str], signature: Signature) -> bytes:
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    flag = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise BackendError(f"TensorRT cannot read the ONNX model: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    if signature.batch_range is not None:
        profile = builder.create_optimization_profile()
        low, high = signature.batch_range
        for name, shape, batched in zip(
            input_names, signature.shapes, signature.batched, strict=True
        ):
            if batched:
                batches = (low, shape[0], high)
                profile.set_shape(name, *((batch, *shape[1:]) for batch in batches))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError("TensorRT cannot build an engine for this model")
    return bytes(plan)


BACKEND = TensorRtBackend()
