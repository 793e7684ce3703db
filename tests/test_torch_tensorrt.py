"""Torch-TensorRT's real front end on slim networks: every operator converts, in one engine.

`make test-tensorrt` makes the environment that this needs; see `tests.tensorrt_frontend`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

import fxprune
from fxprune.backends import Region, Settings
from fxprune.backends.torch_tensorrt import TorchTensorRtBackend, TorchTensorRtEngine
from fxprune.errors import BackendError
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from tests import tensorrt_frontend
from tests.test_zoo import random_plan

if importlib.util.find_spec("torch_tensorrt") is None:
    pytest.skip("torch_tensorrt is not installed: make test-tensorrt", allow_module_level=True)

torch_tensorrt = tensorrt_frontend.load()

from torch_tensorrt.dynamo import _compiler  # noqa: E402

pytestmark = [
    pytest.mark.tensorrt,
    # Of PyTorch and Torch-TensorRT about each other; nobody here can act upon them.
    pytest.mark.filterwarnings("ignore"),
]


class FrontEnd(TorchTensorRtBackend):
    """The backend as it is, on a CPU."""

    device_types = ("cpu",)

    def unavailable(self) -> str | None:
        return None


class StandInTorchTensorRTModule(nn.Module):
    """What an engine would be made of: the lowered operators, run by PyTorch."""

    def __init__(self, part: fx.GraphModule, inputs: Any, settings: Any) -> None:
        super().__init__()
        self.part, self.inputs, self.settings = part, inputs, settings

    def forward(self, *inputs: Tensor) -> Any:
        return self.part(*inputs)

    def set_output_tensors_as_unowned(self, enabled: bool) -> None:
        assert enabled


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[StandInTorchTensorRTModule]:
    """The engines that were asked for; building them is all that does not happen."""
    built: list[StandInTorchTensorRTModule] = []

    def convert(part: fx.GraphModule, inputs: Any, *, settings: Any, **_: Any) -> nn.Module:
        built.append(StandInTorchTensorRTModule(part, inputs, settings))
        return built[-1]

    monkeypatch.setattr(_compiler, "convert_module", convert)
    return built


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Torch-TensorRT counted while partitioning."""
    reports: list[Any] = []
    monkeypatch.setattr(_compiler, "dryrun_stats_display", lambda found, _: reports.append(found))
    return reports


def transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
    )


def windowed() -> nn.Module:
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4]
    )


def published(name: str) -> Callable[[], nn.Module]:
    extra = {"init_weights": False} if name == "googlenet" else {}
    return lambda: torchvision.models.get_model(name, weights=None, **extra)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": published("resnet18"),
    "mobilenet": published("mobilenet_v3_small"),
    "efficientnet": published("efficientnet_b0"),
    "vgg": published("vgg11_bn"),
    "densenet": published("densenet121"),
    "regnet": published("regnet_y_400mf"),
    "shufflenet": published("shufflenet_v2_x0_5"),
    "convnext": published("convnext_tiny"),
    "googlenet": published("googlenet"),
    "vit": transformer,
    "swin": windowed,
}


def slimmed(model: nn.Module, x: Tensor) -> fx.GraphModule:
    captured = capture(model.eval(), x)
    analysis = infer(captured)
    return slim(captured, analysis, random_plan(analysis)).eval()


def compiled(module: nn.Module, x: Tensor, settings: Settings | None = None) -> Any:
    return fxprune.compile(module, (x,), FrontEnd(), settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operator_of_a_slim_network_converts_in_one_engine(
    family: str, engines: list[StandInTorchTensorRTModule], report: list[Any]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    module = slimmed(FAMILIES[family](), x)
    engine = compiled(module, x)
    (found,) = report
    assert found.total_ops_in_graph == found.supported_ops_in_graph > 20
    assert (found.unsupported_ops, found.to_run_in_torch) == ({}, [])
    assert found.tensorrt_graph_count == len(engines) == 1
    calls = [n for n in engines[0].part.graph.nodes if n.op.startswith("call_")]
    assert len(calls) == found.total_ops_in_graph
    with torch.no_grad():
        torch.testing.assert_close(engine(x), module(x), rtol=1e-3, atol=1e-4)


class Two(nn.Module):
    """Two inputs that share their batch, and a pooling whose windows reach over the border."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        pooled = self.pool(self.conv(x) - 5)
        return {"sum": pooled + self.pool(self.conv(y)), "mean": pooled.mean((2, 3))}


def test_a_range_of_batches_reaches_the_engine(engines: list[StandInTorchTensorRTModule]) -> None:
    x, y = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    module = Two().eval()
    engine = fxprune.compile(module, (x, y), FrontEnd(), Settings(batch_range=(1, 4)))
    assert len(engines) == 1
    for given in engines[0].inputs:
        assert given.shape["min_shape"] == (1, 3, 8, 8)
        assert given.shape["max_shape"] == (4, 3, 8, 8)
    for batch in (1, 2, 4):
        x, y = torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(engine(x, y), module(x, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16)])
def test_half_precision_is_in_the_types_of_the_graph(
    precision: Any, dtype: torch.dtype, engines: list[StandInTorchTensorRTModule]
) -> None:
    x = torch.randn(1, 3, 8, 8)
    fxprune.compile(Two().eval(), (x, x), FrontEnd(), Settings(precision=precision))
    (engine,) = engines
    convolutions = [n for n in engine.part.graph.nodes if "convolution" in n.name]
    assert {node.meta["val"].dtype for node in convolutions} == {dtype}
    assert {tensor.dtype for tensor in engine.part.state_dict().values()} == {dtype}


def test_an_operator_without_a_converter_is_refused(engines: list[Any]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(torch.relu(x))

    with pytest.raises(BackendError, match=r"not fully supported|left operators to PyTorch"):
        fxprune.compile(Odd(), (torch.randn(4, 4),), FrontEnd())
    assert engines == []


def test_the_kernels_of_a_table_are_engines_too(engines: list[Any]) -> None:
    region = Region("conv", 1, 8, 8, spatial=(8, 8), kernel=(3, 3), activation="relu")
    FrontEnd().compile_region(region)
    assert len(engines) == 1


def test_saving_calls_what_there_is(
    engines: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 3, 8, 8)
    settings = Settings(batch_range=(1, 4))
    engine = fxprune.compile(Two().eval(), (x, x), FrontEnd(), settings)
    save = create_autospec(torch_tensorrt.save)
    monkeypatch.setattr(torch_tensorrt, "save", save)
    engine.save(tmp_path / "engine")
    ((module, _), told) = save.call_args
    assert module is engine.module
    # The real one exports the module again, with these.
    again = torch.export.export(
        module, tuple(told["arg_inputs"]), dynamic_shapes=told["dynamic_shapes"]
    )
    ranges = list(again.range_constraints.values())
    assert [(found.lower, found.upper) for found in ranges] == [(1, 4)]
    assert (tmp_path / "engine").is_file()


def test_the_engine_tells_its_layers(engines: list[Any]) -> None:
    x = torch.randn(1, 3, 8, 8)
    engine = fxprune.compile(Two().eval(), (x, x), FrontEnd())
    assert isinstance(engine, TorchTensorRtEngine)
    assert callable(torch_tensorrt.dynamo.runtime.TorchTensorRTModule.get_layer_info)
    engines[0].get_layer_info = lambda: '{"Layers": ["convolution", "pool"]}'
    assert engine.layers() == ["convolution", "pool"]


def test_an_engine_that_was_loaded_does_not_pretend_to_have_no_layers(engines: list[Any]) -> None:
    x = torch.randn(1, 3, 8, 8)
    engine = fxprune.compile(Two().eval(), (x, x), FrontEnd())
    loaded = dataclasses.replace(engine, module=nn.Module())
    assert isinstance(loaded, TorchTensorRtEngine)
    with pytest.raises(fxprune.BackendError, match="compile the module, and ask before"):
        loaded.layers()


def test_what_tensorrt_timed_is_kept(engines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", "/somewhere")
    x = torch.randn(1, 3, 8, 8)
    fxprune.compile(Two().eval(), (x, x), FrontEnd())
    assert engines[0].settings.timing_cache_path == "/somewhere/tensorrt-timing.bin"
