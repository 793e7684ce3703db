"""What needs a CUDA device: the backends, the clock and the closed loop on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.backends import Backend, Region, Settings, backends, get_backend
from fxprune.backends.settings import Precision
from fxprune.measure import measure
from fxprune.measurement import ratio
from fxprune.turns import measure_interleaved
from tests.networks import images, small_resnet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA_BACKENDS = ["eager", "inductor", "tensorrt", "torch_tensorrt"]
TOLERANCE: dict[Precision, float] = {"fp32": 1e-2, "fp16": 3e-2}  # TF32 counts as fp32


@pytest.fixture
def net() -> nn.Module:
    return small_resnet(64).cuda()


@pytest.fixture
def inputs() -> tuple[Tensor, ...]:
    return (images(8).cuda(),)


def needs(name: str) -> Backend:
    if reason := backends()[name].unavailable():
        pytest.skip(f"{name}: {reason}")
    return get_backend(name)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", CUDA_BACKENDS)
def test_an_engine_gives_what_the_module_gives(
    name: str, precision: Precision, net: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    engine = needs(name).compile(net, inputs, Settings(precision=precision))
    with torch.no_grad():
        expected = net(*inputs)
    tolerance = TOLERANCE[precision]
    torch.testing.assert_close(engine(*inputs), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CUDA_BACKENDS[1:])
def test_a_saved_engine_gives_the_same_after_loading(
    name: str, net: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    backend = needs(name)
    engine = backend.compile(net, inputs)
    engine.save(tmp_path / "engine")
    loaded = backend.load(tmp_path / "engine")
    torch.testing.assert_close(loaded(*inputs), engine(*inputs))


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("name", CUDA_BACKENDS)
def test_events_time_what_runs_on_the_device(
    name: str, cuda_graphs: bool, net: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    engine = needs(name).compile(net, inputs, Settings(cuda_graphs=cuda_graphs))
    found = measure(engine, inputs)
    assert found.clock == "cuda"
    assert 1e-6 < found.seconds < 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "region",
    [
        Region("conv", 8, 64, 32, 1, (16, 16), (3, 3), residual=True, activation="relu"),
        Region("conv", 8, 64, 64, 64, (16, 16), (3, 3), activation="silu"),
        Region("conv", 8, 64, 32, 1, (16, 16), (1, 1), bias=False),
        Region("conv_transpose", 8, 64, 32, 1, (16, 16), (2, 2), (2, 2)),
        Region("linear", 8, 64, 32, spatial=(16,), activation="gelu"),
    ],
    ids=Region.signature,
)
def test_inductor_calls_the_kernel_of_a_region(region: Region, precision: Precision) -> None:
    engine = needs("inductor").compile_region(region, Settings(precision=precision), "cuda")
    module, inputs = region.as_module("cuda")
    with torch.no_grad():
        expected = module(*inputs)
    tolerance = TOLERANCE[precision]
    torch.testing.assert_close(engine(*inputs), expected, rtol=tolerance, atol=tolerance)
    assert measure(engine, inputs).clock == "cuda"


@pytest.mark.parametrize("name", CUDA_BACKENDS[1:])
def test_a_slim_network_keeps_its_budget_as_measured(name: str, tmp_path: Path) -> None:
    needs(name)
    model, x = small_resnet(256).cuda(), torch.randn(32, 3, 56, 56, device="cuda")
    settings = Settings(precision="fp16", cuda_graphs=True)
    slim = fxprune.optimize(
        model,
        "60% latency",
        (x,),
        backend=name,
        settings=settings,
        cache=tmp_path / "cache.sqlite",
        progress=False,
    )
    networks = {"dense": model, "slim": slim}
    engines = {n: [fxprune.compile(m, (x,), name, settings)] for n, m in networks.items()}
    found = measure_interleaved(engines, (x,), 5.0)
    assert 0.5 < ratio(found["slim"], found["dense"]) < 0.65
