"""ONNX Runtime on the CPU: the default there, since it is fast, predictable and cheap to build.

https://onnxruntime.ai/docs/api/python/api_summary.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.backends.base import Backend, Engine, missing
from fxprune.backends.onnxruntime_session import feed, options_for, session_of
from fxprune.backends.profiles import by_node
from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.backends.signature import Signature
from fxprune.files import atomic_path

if TYPE_CHECKING:
    from onnx import ModelProto

SESSIONS = 4
"""Whether a kernel's tensors lie well is luck, so that models are set up some times to be timed."""
PROFILED_RUNS = 10
REGION_RUNS = 4
BORDERS = ("ReorderInput", "ReorderOutput", "pool.", "gemm_input_reshape", "gemm_output_reshape")
"""What the names of kernels begin with that change the layout around a region."""


@dataclass(frozen=True)
class OnnxRuntimeEngine(Engine):
    """A session, and the serialised ONNX model that it was made from."""

    model: bytes = field(repr=False)
    session: Any = field(repr=False)

    def run(self, *inputs: Tensor) -> Any:
        outputs = self.session.run(None, feed(self.session, inputs))
        return self.signature.restore([torch.from_numpy(array) for array in outputs])

    def bind(self, *inputs: Tensor) -> Callable[[], object]:
        from onnxruntime import OrtValue

        binding = self.session.io_binding()
        for name, array in feed(self.session, inputs).items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for value in self.session.get_outputs():
            binding.bind_output(value.name)
        session = self.session
        return lambda: session.run_with_iobinding(binding)

    def save(self, path: str | Path) -> None:
        """Write the ONNX model; loading builds the session again."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model)


class OnnxRuntimeBackend(Backend):
    """Compiles by exporting to ONNX; fp32 on the CPU."""

    name = "onnxruntime"
    rank = 1

    def unavailable(self) -> str | None:
        return missing("onnxruntime", "pip install onnxruntime")

    def version(self) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        from fxprune.backends import onnx_model, onnx_rewrites

        model = onnx_model.export(module, inputs, signature)
        onnx_rewrites.expand_hardswish(model)
        return self._engine(onnx_model.pack(model, settings, signature), settings, signature)

    def compile_region(
        self, region: Region, settings: Settings | None = None, device: str = "cpu"
    ) -> Engine:
        from fxprune.backends import onnx_model

        settings = settings or Settings()
        self.require(settings, region.inputs(device))
        signature = Signature.of_region(region)
        model = onnx_model.pack(_written(region), settings, signature)
        return self.attempt(
            f"compile the region {region.signature()}",
            lambda: self._engine(model, settings, signature),
        )

    def region_seconds(
        self, regions: Sequence[Region], settings: Settings | None = None, device: str = "cpu"
    ) -> list[float]:
        """Seconds of each region's own kernels, from the log of sessions with all of them."""
        from fxprune.backends.onnx_regions import SideBySide, described
        from fxprune.backends.onnxruntime_log import kernel_seconds

        settings = settings or Settings()
        self.require(settings, (torch.empty(0, device=device),))

        def seconds() -> list[float]:
            some = SideBySide.of(regions, _written)
            kernels = kernel_seconds(some.model, settings, some.inputs, SESSIONS, REGION_RUNS)
            return some.seconds(kernels, BORDERS)

        return self.attempt(f"time {described(regions)}", seconds)

    def copier(self, engine: Engine) -> Callable[[], Engine]:
        """Loading looks for what was recorded in the model, past all of its weights."""
        assert isinstance(engine, OnnxRuntimeEngine)
        model, settings, signature = engine.model, engine.settings, engine.signature
        again = partial(self._engine, model, settings, signature)
        return lambda: self.attempt("set the model up once more", again)

    def restore(self, path: Path) -> Engine:
        from fxprune.backends import onnx_model

        data = path.read_bytes()
        return self._engine(data, *onnx_model.unpack(data, str(path)))

    def _engine(self, model: bytes, settings: Settings, signature: Signature) -> OnnxRuntimeEngine:
        session = session_of(model, options_for(settings))
        return OnnxRuntimeEngine(self.name, settings, signature, model, session)

    def profile(self, engine: Engine, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """Seconds by fx node, from ONNX Runtime's own log of every run of every kernel."""
        from fxprune.backends import onnx_model
        from fxprune.backends.onnxruntime_log import kernel_seconds

        assert isinstance(engine, OnnxRuntimeEngine)
        model, settings = engine.model, engine.settings
        seconds = kernel_seconds(model, settings, inputs, SESSIONS, PROFILED_RUNS)
        return by_node(seconds, onnx_model.nodes_by_kernel(model))


def _written(region: Region, prefix: str = "") -> ModelProto:
    """The model of a region, as ONNX Runtime meets it within a network."""
    from fxprune.backends import onnx_model, onnx_rewrites

    model = onnx_model.region_model(region, prefix)
    onnx_rewrites.expand_hardswish(model)
    if region.residual and region.operator == "conv":
        onnx_rewrites.pool_input(model, f"{prefix}residual", len(region.kernel))
    return model


BACKEND = OnnxRuntimeBackend()
