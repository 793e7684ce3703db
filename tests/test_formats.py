"""Number formats and memory layouts: what goes in that way comes out that way."""

import pytest
import torch
from torch import nn

from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from tests.networks import small_resnet
from tests.properties import plan_of


def halved(model, *inputs):
    """The captured dense module and its slim one, every second position of each group kept."""
    captured = capture(model, inputs)
    analysis = infer(captured)
    assert analysis.groups
    plan = plan_of(analysis, {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups})
    module = slim(captured, analysis, plan)
    assert verify(captured, analysis, plan, module).max_error < 1e-9
    return captured.module, module


def image(**options):
    return torch.randn(2, 3, 16, 16).to(**options)


def tokens():
    layers = [
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, 12),
        nn.GLU(),
        nn.RMSNorm(6),
    ]
    return nn.Sequential(*layers, nn.Linear(6, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_parameter_keeps_its_format(dtype):
    torch.manual_seed(0)
    model = small_resnet().to(dtype)
    _, module = halved(model, image(dtype=dtype))
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert {n: t.dtype for n, t in module.state_dict().items()} == kinds
    assert module(image(dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_it_can_be(dtype):
    torch.manual_seed(0)
    model = tokens().to(dtype)
    x = torch.randn(2, 5, 6).to(dtype)
    _, module = halved(model, x)
    with torch.no_grad():
        exact = module.to(torch.float64)(x.double())
        found = module.to(dtype)(x)
    assert found.dtype == dtype
    scale = float(exact.abs().max())
    assert float((found.double() - exact).abs().max()) < 0.05 * scale


def test_mixed_formats_stay_mixed():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4).to(torch.bfloat16)

        def forward(self, x):
            return self.last(self.first(x).relu().to(torch.bfloat16)).float()

    _, module = halved(Mixed(), torch.randn(2, 6))
    assert module.first.weight.dtype == torch.float32
    assert module.last.weight.dtype == torch.bfloat16
    assert module.last.weight.shape == (4, 4)
    assert module(torch.randn(3, 6)).dtype == torch.float32


def test_channels_last_stays_in_weights_and_results():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
    model = model.to(memory_format=torch.channels_last)
    x = image(memory_format=torch.channels_last)
    _, module = halved(model, x)
    for name in ("0.weight", "3.weight"):
        weight = module.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last), name
    assert module.get_parameter("3.weight").shape == (6, 4, 3, 3)
    assert module(x).is_contiguous(memory_format=torch.channels_last)


def test_volumes_in_channels_last_stay_so():
    model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 6, 1))
    model = model.to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 3, 5, 5, 5).to(memory_format=torch.channels_last_3d)
    _, module = halved(model, x)
    weight = module.get_parameter("0.weight")
    assert weight.shape == (4, 3, 3, 3, 3)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_what_takes_no_gradient_still_takes_none():
    model = tokens()
    model[0].weight.requires_grad_(False)
    _, module = halved(model, torch.randn(2, 5, 6))
    assert not module.get_parameter("0.weight").requires_grad
    assert module.get_parameter("3.weight").requires_grad


def test_a_region_under_autocast_keeps_its_formats():
    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.first(x).relu()
            return self.last(x.float())

    model = Autocast().eval()
    dense, module = halved(model, torch.randn(2, 6))
    x = torch.randn(3, 6)
    assert module.get_parameter("first.weight").shape == (4, 6)
    assert module(x).dtype == torch.float32
    assert torch.equal(dense(x), model(x))
