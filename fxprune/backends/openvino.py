"""OpenVINO on the CPU, fed through ONNX.

https://docs.openvino.ai/2026/api/api_reference.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.backends.base import Backend, Engine, missing
from fxprune.backends.profiles import PATIENCE_OF_A_RUN, PROFILED_RUNS, by_node, typical
from fxprune.backends.region import Region
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError
from fxprune.files import atomic_path
from fxprune.quiet import Patience

PROFILE_ROUNDS = 4
PROFILE_WARM_UP = 2
REGION_ROUNDS = 2
REGION_RUNS = 8


@dataclass(frozen=True)
class OpenVinoEngine(Engine):
    """A compiled model, and the serialised ONNX model that it was made from.

    `used` are the places of the inputs that the outputs depend on; OpenVINO drops the others.
    """

    model: bytes = field(repr=False)
    compiled: Any = field(repr=False)
    used: tuple[int, ...] = ()

    def run(self, *inputs: Tensor) -> Any:
        results = self.compiled(self.arrays(inputs), share_inputs=True)
        return self.signature.restore([torch.from_numpy(array) for array in results.to_tuple()])

    def bind(self, *inputs: Tensor) -> Callable[[], object]:
        import openvino

        request = self.compiled.create_infer_request()
        for index, array in enumerate(self.arrays(inputs)):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        return lambda: request.infer()

    def arrays(self, inputs: tuple[Tensor, ...]) -> list[Any]:
        """The inputs that are used, as NumPy arrays that share their memory where they can."""
        return [inputs[index].detach().contiguous().numpy() for index in self.used]

    def save(self, path: str | Path) -> None:
        """Write the ONNX model, which OpenVINO reads directly; loading compiles it again."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model)


class OpenVinoBackend(Backend):
    """Compiles by exporting to ONNX; fp32, and bf16 where the CPU computes in it."""

    name = "openvino"
    rank = 2
    alignment = 16  # 65 channels take as long as 80
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16")

    def unavailable(self) -> str | None:
        return missing("openvino", "pip install 'fxprune[openvino]'")

    def version(self) -> str:
        import openvino

        return f"openvino {openvino.__version__}"

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        from fxprune.backends import onnx_model

        model = onnx_model.export(module, inputs, signature)
        return self._engine(onnx_model.pack(model, settings, signature), settings, signature)

    def compile_region(
        self, region: Region, settings: Settings | None = None, device: str = "cpu"
    ) -> Engine:
        settings = settings or Settings()
        self.require(settings)
        return self._region_engine(region, _region_model(region, settings), settings)

    def region_timer(
        self, region: Region, settings: Settings | None = None, device: str = "cpu"
    ) -> Callable[[], float]:
        """Tells the region's own kernels, by the counters of a network with nothing else.

        Alone, a region turns its input into the layout that its kernel reads and its result back,
        which takes longer than many a kernel, and which a network does once for all of its layers.
        """
        settings = settings or Settings()
        self.require(settings)
        model, inputs = _region_model(region, settings), region.inputs(device)
        engine = self._region_engine(region, model, settings, profiled=True)
        copies = self.attempt(
            f"set the region {region.signature()} up",
            lambda: [*_set_up(engine.compiled, settings, REGION_ROUNDS)],
        )

        def seconds() -> float:
            means = _means_of_all(copies, engine.arrays(inputs), REGION_RUNS, {"Reorder"})
            return sum(map(typical, means.values()))

        return lambda: self.attempt(f"time the region {region.signature()}", seconds)

    def _region_engine(
        self, region: Region, model: bytes, settings: Settings, *, profiled: bool = False
    ) -> OpenVinoEngine:
        signature = Signature.of_region(region)
        return self.attempt(
            f"compile the region {region.signature()}",
            lambda: self._engine(model, settings, signature, profiled=profiled),
        )

    def restore(self, path: Path) -> Engine:
        from fxprune.backends import onnx_model

        data = path.read_bytes()
        return self._engine(data, *onnx_model.unpack(data, str(path)))

    def _engine(
        self, model: bytes, settings: Settings, signature: Signature, *, profiled: bool = False
    ) -> OpenVinoEngine:
        compiled = _compiled(model, settings, profiled=profiled)
        used = _used_inputs(compiled, model, len(signature.shapes))
        return OpenVinoEngine(self.name, settings, signature, model, compiled, used)

    def profile(self, engine: Engine, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """Seconds by fx node, from OpenVINO's performance counters."""
        from fxprune.backends import onnx_model

        assert isinstance(engine, OpenVinoEngine)
        first = _compiled(engine.model, engine.settings, profiled=True)
        copies = _set_up(first, engine.settings, PROFILE_ROUNDS)
        runs = PROFILED_RUNS // PROFILE_ROUNDS
        seconds = _means_of_all(copies, engine.arrays(inputs), runs)
        by_origin = onnx_model.nodes_by_kernel(engine.model)
        nodes = {
            kernel: by_origin[origin]
            for kernel, origins in _origins(first).items()
            for origin in reversed(origins)
            if origin in by_origin
        }
        return by_node(seconds, by_origin | nodes)


def _region_model(region: Region, settings: Settings) -> bytes:
    from fxprune.backends import onnx_model

    return onnx_model.pack(onnx_model.region_model(region), settings, Signature.of_region(region))


def _set_up(compiled: Any, settings: Settings, count: int) -> Iterator[Any]:
    """A model with performance counters, set up so many times, as luck differs between these.

    It is not compiled anew: that takes longer, and numbers the kernels anew that no node gives a
    name to, so that each would count as several.
    """
    import openvino

    yield compiled
    exported = compiled.export_model()
    for _ in range(count - 1):
        yield openvino.Core().import_model(exported, "CPU", _options(settings, profiled=True))


def _means_of_all(
    copies: Iterable[Any], arrays: list[Any], runs: int, without: Set[str] = frozenset()
) -> dict[str, list[float]]:
    """What `_kernel_means` tells of each copy of a model, by kernel."""
    found = defaultdict[str, list[float]](list)
    for compiled in copies:
        for kernel, mean in _kernel_means(compiled, arrays, runs, without).items():
            found[kernel].append(mean)
    return found


def _kernel_means(
    compiled: Any, arrays: list[Any], runs: int, without: Set[str] = frozenset()
) -> dict[str, float]:
    """Mean seconds of each kernel over so many runs after warming up.

    OpenVINO tells the average over all runs so far, so that of the warm-up is taken off.

    Args:
        without: types of kernels to leave out.
    """
    request, patience = compiled.create_infer_request(), Patience(runs * PATIENCE_OF_A_RUN)
    totals: list[dict[str, float]] = []
    done = 0
    for more in (PROFILE_WARM_UP, runs):
        for _ in range(more):
            patience.wait()
            request.infer(arrays)
        done += more
        totals.append(
            {
                kernel.node_name: kernel.real_time.total_seconds() * done
                for kernel in request.profiling_info
                if kernel.node_type not in without
            }
        )
    before, after = totals
    means = {name: (after[name] - before[name]) / runs for name in after}
    return {name: mean for name, mean in means.items() if mean > 0.0}


def _origins(compiled: Any) -> dict[str, list[str]]:
    """The ONNX nodes that were fused into each kernel."""
    kernels = compiled.get_runtime_model().get_ordered_ops()
    infos = {kernel.get_friendly_name(): kernel.get_rt_info() for kernel in kernels}
    return {
        name: info["originalLayersNames"].astype(str).split(",")
        for name, info in infos.items()
        if "originalLayersNames" in info
    }


def _used_inputs(compiled: Any, model: bytes, count: int) -> tuple[int, ...]:
    if len(compiled.inputs) == count:
        return tuple(range(count))
    import onnx

    names = [value.name for value in onnx.load_from_string(model).graph.input]
    return tuple(names.index(port.any_name) for port in compiled.inputs)


def _compiled(model: bytes, settings: Settings, *, profiled: bool = False) -> Any:
    import openvino

    core, options = openvino.Core(), _options(settings, profiled=profiled)
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != options["INFERENCE_PRECISION_HINT"]:
        raise BackendError(
            f"this CPU computes in {used} when asked for {settings.precision}",
            fix="choose precision fp32",
        )
    return compiled


def _options(settings: Settings, *, profiled: bool) -> dict[str, Any]:
    return {
        # Without this OpenVINO computes in bf16 wherever the CPU can, whatever the model holds.
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[settings.precision],
        "INFERENCE_NUM_THREADS": settings.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profiled,
    }


BACKEND = OpenVinoBackend()
