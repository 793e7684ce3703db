"""OpenVINO on the CPU, fed through ONNX.

https://docs.openvino.ai/2026/api/api_reference.html
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.backends.base import Backend, Engine, missing
from fxprune.backends.profiles import OVERHEAD, by_node
from fxprune.backends.region import Region
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError
from fxprune.files import atomic_path

PROFILED_ENGINES = 12
REGION_ENGINES = 6
"""Whether a kernel's tensors lie well is luck, and a neighbour may come at any time: many engines
that are run a few times tell more of a kernel than a few that are run often."""
RUNS_OF_AN_ENGINE = 4
"""After one that does not count."""
FEWEST_ENGINES = 4
PROFILING = 8.0
"""Seconds after which no further engine is profiled, but for the fewest."""


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
        request = _request(self.compiled, self.arrays(inputs))
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
        from fxprune.backends import onnx_model

        settings = settings or Settings()
        self.require(settings)
        signature = Signature.of_region(region)
        model = onnx_model.pack(onnx_model.region_model(region), settings, signature)
        return self.attempt(
            f"compile the region {region.signature()}",
            lambda: self._engine(model, settings, signature),
        )

    def region_seconds(
        self, regions: Sequence[Region], settings: Settings | None = None, device: str = "cpu"
    ) -> list[float]:
        """Seconds of each region's own kernels, by the counters of a model with all of them.

        A region turns its input into the layout that its kernel reads and its result back, which
        takes longer than many a kernel, and which a network does once for all of its layers. These
        changes do not count.
        """
        from fxprune.backends.onnx_regions import SideBySide, described

        settings = settings or Settings()
        self.require(settings, (torch.empty(0, device=device),))

        def seconds() -> list[float]:
            some = SideBySide.of(regions)
            first = _compiled(some.model, settings, profiled=True)
            arrays = [tensor.numpy() for tensor in some.inputs]
            engines = _set_up(first, settings, REGION_ENGINES)
            means = _means_of_all(engines, arrays, {"Reorder"})
            return replace(some, nodes=_nodes(first, some.nodes)).seconds(means)

        return self.attempt(f"time {described(regions)}", seconds)

    def restore(self, path: Path) -> Engine:
        from fxprune.backends import onnx_model

        data = path.read_bytes()
        return self._engine(data, *onnx_model.unpack(data, str(path)))

    def _engine(self, model: bytes, settings: Settings, signature: Signature) -> OpenVinoEngine:
        compiled = _compiled(model, settings)
        used = _used_inputs(compiled, model, len(signature.shapes))
        return OpenVinoEngine(self.name, settings, signature, model, compiled, used)

    def copier(self, engine: Engine) -> Callable[[], Engine]:
        """Loading compiles the ONNX model anew; this keeps and takes what was compiled."""
        assert isinstance(engine, OpenVinoEngine)
        exported = cache(engine.compiled.export_model)

        def copy() -> Engine:
            return replace(engine, compiled=_imported(exported(), engine.settings))

        return lambda: self.attempt("set the model up once more", copy)

    def profile(self, engine: Engine, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """Seconds by fx node, from OpenVINO's performance counters."""
        from fxprune.backends import onnx_model

        assert isinstance(engine, OpenVinoEngine)
        first = _compiled(engine.model, engine.settings, profiled=True)
        engines = _set_up(first, engine.settings, PROFILED_ENGINES)
        means = _means_of_all(engines, engine.arrays(inputs))
        # What was fused into others is told as well, with no time of its own.
        ran = {kernel: some for kernel, some in means.items() if any(some)}
        return by_node(ran, _nodes(first, onnx_model.nodes_by_kernel(engine.model)))


def _set_up(compiled: Any, settings: Settings, count: int) -> Iterator[Any]:
    """A model with performance counters, set up so many times, as luck differs between these.

    It is not compiled anew: that takes longer, and numbers the kernels anew that no node gives a
    name to, so that each would count as several. Of what takes long to run, there are fewer.
    """
    yield compiled
    exported = compiled.export_model()
    stop = time.perf_counter() + PROFILING
    for done in range(1, count):
        if done >= FEWEST_ENGINES and time.perf_counter() > stop:
            break
        yield _imported(exported, settings, profiled=True)


def _means_of_all(
    engines: Iterable[Any], arrays: list[Any], without: Set[str] = frozenset()
) -> dict[str, list[float]]:
    """What `_kernel_means` tells of engines of one model, by kernel."""
    found = defaultdict[str, list[float]](list)
    for compiled in engines:
        for kernel, mean in _kernel_means(compiled, arrays, without).items():
            found[kernel].append(mean)
    return found


def _kernel_means(
    compiled: Any, arrays: list[Any], without: Set[str] = frozenset()
) -> dict[str, float]:
    """Mean seconds of each kernel over a few runs, and of what a run takes besides.

    OpenVINO tells the average over all runs so far, so that of the first is taken off.

    Args:
        without: types of kernels to leave out.
    """
    request = _request(compiled, arrays)

    def totals(count: int) -> dict[tuple[str, str], float]:
        return {
            (kernel.node_name, kernel.node_type): kernel.real_time.total_seconds() * count
            for kernel in request.profiling_info
        }

    request.infer()
    before, taken = totals(1), 0.0
    for _ in range(RUNS_OF_AN_ENGINE):
        start = time.perf_counter()
        request.infer()
        taken += time.perf_counter() - start
    after = totals(1 + RUNS_OF_AN_ENGINE)
    spent = {kernel: max(total - before[kernel], 0.0) for kernel, total in after.items()}
    seconds = {name: total for (name, kind), total in spent.items() if kind not in without}
    seconds[OVERHEAD] = max(taken - sum(spent.values()), 0.0)
    return {name: total / RUNS_OF_AN_ENGINE for name, total in seconds.items()}


def _request(compiled: Any, arrays: list[Any]) -> Any:
    """An inference request that reads these arrays where they are."""
    import openvino

    request = compiled.create_infer_request()
    for index, array in enumerate(arrays):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
    return request


def _nodes(compiled: Any, by_origin: Mapping[str, str]) -> dict[str, str]:
    """The nodes of kernels, by name: of the first that was fused into each and has one.

    The overhead of a call stands for itself.

    Args:
        by_origin: nodes by what ONNX calls them.
    """
    found = {**by_origin, OVERHEAD: OVERHEAD}
    for kernel in compiled.get_runtime_model().get_ordered_ops():
        info = kernel.get_rt_info()
        if "originalLayersNames" not in info:
            continue
        for origin in reversed(info["originalLayersNames"].astype(str).split(",")):
            if node := by_origin.get(origin) or by_origin.get(origin.partition("/")[0]):
                found[kernel.get_friendly_name()] = node
    return found


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


def _imported(exported: Any, settings: Settings, *, profiled: bool = False) -> Any:
    """What `export_model` gave, set up once more."""
    import openvino

    return openvino.Core().import_model(exported, "CPU", _options(settings, profiled=profiled))


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
