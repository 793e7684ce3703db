"""Computed weights that become parameters: which ones, under which names, and what stays."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn.utils import parametrizations, parametrize

import fxprune
from fxprune.passes.bake import bake
from fxprune.passes.capture import Captured, capture, normal_inputs
from fxprune.passes.export import capture_by_export
from fxprune.passes.slim import SlimPass
from fxprune.passes.trace import capture_by_tracing
from fxprune.passes.verify import VerifyPass
from tests.ways.layers import StandardisedConv

CAPTURES = {"symbolic_trace": capture_by_tracing, "torch.export": capture_by_export}
spectral = parametrizations.spectral_norm


def images(size=8):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def built(*layers):
    return nn.Sequential(*layers).eval()


def normalised():
    """Two layers of spectral norm, and a plain one."""
    torch.manual_seed(0)
    model = built(spectral(nn.Conv2d(3, 8, 3)), nn.ReLU(), spectral(nn.Conv2d(8, 8, 3)), nn.ReLU())
    return model.append(nn.Conv2d(8, 4, 3))


def standardised():
    """An NFNet in small."""
    torch.manual_seed(0)
    first, second = StandardisedConv(3, 8), StandardisedConv(8, 8)
    return built(first, nn.SiLU(), second, nn.SiLU(), nn.Conv2d(8, 4, 3))


MODELS = {"normalised": normalised, "standardised": standardised}


def taken(model, how):
    args, kwargs = normal_inputs(images())
    return Captured(*CAPTURES[how](copy.deepcopy(model), args, kwargs), how)


def names(captured):
    return [parameter.name for parameter in captured.baked]


@pytest.mark.parametrize("how", CAPTURES)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_the_model_with_parameters_computes_the_same_bit_for_bit(build, how):
    model = build()
    plain = taken(model, how)
    before = [node.format_node() for node in plain.module.graph.nodes], plain.module.state_dict()
    captured, _ = bake(plain)
    with torch.no_grad():
        assert torch.equal(captured.module(images()), model(images()))
    after = [node.format_node() for node in plain.module.graph.nodes], plain.module.state_dict()
    assert before[0] == after[0], "what was given is not changed"
    assert before[1].keys() == after[1].keys()
    assert "2.weight" in names(captured)


@pytest.mark.parametrize("how", CAPTURES)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_only_the_parameters_stay_of_what_weights_were_computed_from(build, how):
    captured, _ = bake(taken(build(), how))
    state = captured.module.state_dict()
    assert {name for name in state if name.startswith("2.")} == {"2.weight", "2.bias"}
    assert all(isinstance(p, nn.Parameter) for p in captured.module.parameters())


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_every_layer_is_slimmed_and_the_model_is_left_alone(build):
    model = build()
    before, parametrized = copy.deepcopy(model.state_dict()), parametrize.is_parametrized(model[0])
    with torch.no_grad():
        expected = model(images())
    slim = fxprune.optimize(
        model, "40% MACs", images(), importance="magnitude", multiple_of=1, progress=False
    )
    report = fxprune.report(slim)
    assert all(layer.slim_in < layer.dense_in for layer in report.layers[1:])
    assert report.verification.max_relative_error < 1e-9
    assert "2.weight" in report.baked
    assert any(fact.startswith("Computed once: ") for fact in report.facts())
    assert parametrize.is_parametrized(model[0]) == parametrized
    assert list(before) == list(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_the_slim_network_can_be_trained_saved_and_loaded(build, tmp_path):
    model = build()
    slim = fxprune.optimize(model, "50% MACs", images(), importance="magnitude", progress=False)
    slim.train()
    slim(images()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())
    fxprune.save(slim, tmp_path / "slim.fxprune")
    again = fxprune.load(tmp_path / "slim.fxprune", build(), images())
    assert list(again.state_dict()) == list(slim.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), slim.eval()(images()))
    assert fxprune.report(again).baked == fxprune.report(slim).baked


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("pattern", ["0.weight", "0", "0.*"])
def test_parameters_can_be_ignored_by_name(build, pattern):
    slim = fxprune.optimize(
        build(),
        "90% MACs",
        images(),
        ignore=[pattern],
        importance="magnitude",
        multiple_of=1,
        progress=False,
    )
    outputs, inputs = slim.get_parameter("2.weight").shape[:2]
    assert inputs == 8 > outputs


def test_the_passes_take_what_was_captured_as_it_is():
    captured = capture(standardised(), images())
    _, analysis = bake(captured)
    kept = {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups}
    plan = fxprune.Plan(kept, {g.name: g.size for g in analysis.groups})
    verification = VerifyPass(captured.module, plan, captured.example_inputs)
    passes = [SlimPass(plan, captured.example_inputs), verification]
    slim = PassManager(passes)(captured.module).graph_module
    assert slim.get_parameter("2.weight").shape[:2] == (4, 4)
    assert verification.verification.max_error < 1e-9


def test_what_gains_nothing_stays_a_function():
    """Its statistics are over the input's channels, which nobody may remove."""
    norm = parametrizations.weight_norm
    captured = capture(built(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3)), images())
    same, analysis = bake(captured)
    assert same is captured
    assert [group.size for group in analysis.groups] == [8]


def test_analyze_tells_what_is_computed_once():
    found = fxprune.analyze(normalised(), images())
    assert next(str(each) for each in found.baked).startswith(
        "0.weight (computed from 0.parametrizations.weight.original, "
    )
    assert "Computed once: 0.weight, 2.weight" in str(found)


class Computing(nn.Module):
    """A layer whose weight is a function of a matrix."""

    def __init__(self, compute):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.matrix, self.compute = nn.Parameter(torch.randn(3, 8)), compute

    def forward(self, x):
        return F.linear(F.relu(self.first(x)), self.compute(self))


def centred(model):
    return model.matrix - model.matrix.mean(1, keepdim=True)


def dropped(model):
    return F.dropout(centred(model), training=model.training)


def written(model):
    return centred(model).mul_(2)


def noisy(model):
    return centred(model) + 0 * torch.rand_like(model.matrix)


@pytest.mark.parametrize(
    ("compute", "expected"), [(centred, ["matrix"]), (dropped, []), (written, []), (noisy, [])]
)
def test_a_weight_that_may_be_another_next_time_stays_a_function(compute, expected):
    captured, analysis = bake(capture(Computing(compute).eval(), torch.randn(2, 4)))
    assert names(captured) == expected
    assert len(analysis.groups) == len(expected)


def test_a_frozen_weight_stays_frozen():
    model = standardised()
    model.requires_grad_(False)
    captured, _ = bake(capture(model, images()))
    assert captured.baked
    assert not any(parameter.requires_grad for parameter in captured.module.parameters())


def test_low_precision_stays():
    model = standardised().bfloat16()
    captured, _ = bake(capture(model, images().bfloat16()))
    assert {parameter.dtype for parameter in captured.module.parameters()} == {torch.bfloat16}


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


class Two(nn.Module):
    """A layer under two names, the later one called first."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.a = spectral(nn.Conv2d(8, 8, 3, padding=1))
        self.b = self.a

    def forward(self, x):
        return self.last(self.a(self.b(self.stem(x)).relu()))


@pytest.mark.parametrize("how", CAPTURES)
def test_a_layer_of_two_names(how):
    model = Two().eval()
    captured, analysis = bake(taken(model, how))
    assert "a.weight" in names(captured)
    with torch.no_grad():
        assert torch.equal(captured.module(images()), model(images()))
    assert all(group.size == 8 for group in analysis.groups)


def test_other_parametrizations_of_a_layer_stay():
    torch.manual_seed(0)
    model = normalised()
    parametrize.register_parametrization(model[2], "bias", Halved())
    captured, _ = bake(capture(model, images()))
    layer = captured.module.get_submodule("2")
    assert [name for name, _ in layer.named_parameters()] == [
        "weight",
        "parametrizations.bias.original",
    ]
    with torch.no_grad():
        assert torch.equal(captured.module(images()), model(images()))
    assert parametrize.is_parametrized(model[2], "weight")
    assert parametrize.is_parametrized(model[2], "bias")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute_can_be_trained_and_saved(norm, tmp_path):
    """Also right after a call that left its graph on the layers."""

    def build():
        torch.manual_seed(0)
        layers = [norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 8, 3)), nn.ReLU()]
        return built(*layers, nn.Flatten(), nn.Linear(128, 4))

    model = build()
    model(images()).sum().backward()
    data = [(images(), torch.tensor([0, 3]))]
    slim = fxprune.optimize(model, "50% MACs", data=data, multiple_of=1, progress=False)
    assert "2.weight" in fxprune.report(slim).baked
    fxprune.finetune(slim, data, epochs=1, progress=False)
    fxprune.save(slim, tmp_path / "slim")
    again = fxprune.load(tmp_path / "slim", build(), images())
    with torch.no_grad():
        assert torch.equal(again(images()), slim.eval()(images()))
