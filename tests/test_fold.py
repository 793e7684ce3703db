"""Folding batch norm: exact for every layer that takes it, and refused wherever it would not be."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.errors import InputError
from fxprune.passes.export import capture_by_export
from fxprune.passes.fold import FoldPass, fold
from tests.linear_networks import Functional, count, gap, lively, noise

SPATIAL = {1: (9,), 2: (7, 9), 3: (5, 4, 6)}


def traced(module: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(lively(module))


def refusals(module: fx.GraphModule, *inputs: Tensor) -> list[str]:
    folding = FoldPass(inputs or None)
    result = folding(module)
    assert not result.modified
    assert count(result.graph_module, _BatchNorm) == count(module, _BatchNorm)
    return [refusal.why for refusal in folding.refusals]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        (nn.Conv1d, nn.BatchNorm1d),
        (nn.Conv2d, nn.BatchNorm2d),
        (nn.Conv3d, nn.BatchNorm3d),
        (nn.ConvTranspose1d, nn.BatchNorm1d),
        (nn.ConvTranspose2d, nn.BatchNorm2d),
        (nn.ConvTranspose3d, nn.BatchNorm3d),
    ],
)
def test_a_norm_folds_exactly_into_any_convolution(kind, norm, groups, bias):
    layer = kind(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    module = traced(nn.Sequential(layer, norm(6)))
    x = noise(2, 4, *SPATIAL[len(layer.kernel_size)])
    folded = fold(module, (x,))
    assert count(folded, _BatchNorm) == 0
    assert gap(folded, module, x) < 1e-12


def test_a_norm_folds_exactly_into_a_linear_layer():
    module = traced(nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU()))
    x = noise(4, 3)
    folded = fold(module, (x,))
    assert count(folded, _BatchNorm) == 0
    assert gap(folded, module, x) < 1e-12


def test_the_layer_keeps_its_parameter_names_and_the_norm_leaves_nothing_behind():
    module = traced(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    assert set(fold(module).state_dict()) == {"0.weight", "0.bias"}


def test_a_norm_without_scale_and_shift_folds():
    module = traced(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1)))
    assert gap(fold(module), module, noise(1, 3, 5, 5)) < 1e-12


def test_other_padding_modes_do_not_hinder_folding():
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    module = traced(nn.Sequential(layer, nn.BatchNorm2d(4)))
    folded = fold(module)
    assert count(folded, _BatchNorm) == 0
    assert gap(folded, module, noise(1, 3, 5, 5)) < 1e-12


def test_two_norms_in_a_row_fold_into_one_layer():
    module = traced(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    folded = fold(module)
    assert count(folded, _BatchNorm) == 0
    assert gap(folded, module, noise(1, 3, 5, 5)) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_functions_fold_like_modules(bias):
    module = traced(Functional(bias))
    x = noise(2, 2, 7, 7)
    folded = fold(module, (x,))
    assert [n.target.__name__ for n in folded.graph.nodes if n.op == "call_function"] == ["conv2d"]
    assert set(folded.state_dict()) == {"weight", "bias"}
    assert gap(folded, module, x) < 1e-12


def test_an_exported_network_folds():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x = noise(2, 3, 7, 7)
    module, _ = capture_by_export(model, (x,), {})
    folded = fold(module)
    assert count(folded, _BatchNorm) == 0
    assert gap(folded, module, x) < 1e-12


def test_a_norm_that_is_called_twice_folds_into_both_of_its_layers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.b(self.norm(self.a(x)).relu()))

    module = traced(Twice())
    folded = fold(module)
    assert count(folded, _BatchNorm) == 0
    assert gap(folded, module, noise(1, 3, 5, 5)) < 1e-12


def test_the_given_module_and_its_mode_stay_as_they_were():
    module = traced(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    before, code = copy.deepcopy(module.state_dict()), module.code
    folded = fold(module)
    assert module.training
    assert module.code == code
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert not folded.training


def test_precision_device_and_trainability_of_the_layer_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    folded = fold(fx.symbolic_trace(model))
    weight = folded.get_parameter("0.weight")
    assert weight.dtype == torch.bfloat16
    assert not weight.requires_grad


def test_dead_code_that_changes_a_tensor_in_place_stays():
    class Inplace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x)) * 1.0
            y.add_(1.0)
            return y

    module = traced(Inplace())
    assert gap(fold(module), module, noise(1, 3, 5, 5)) < 1e-12


def test_it_is_an_fx_pass():
    module = traced(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    result = FoldPass()(module)
    assert result.modified
    assert count(result.graph_module, _BatchNorm) == 0


class _SecondReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class _CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(x).relu()))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.a(x).relu()))


def _with_hook() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def _with_weight_norm() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    return nn.Sequential(layer, nn.BatchNorm2d(3))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (_SecondReader(), "is not the only one to read conv"),
        (_CalledTwice(), "conv_1 shares conv.weight with another place"),
        (_Tied(), "b shares b.weight with another place"),
        (_with_hook(), "has hooks"),
        (_with_weight_norm(), "no plain layer"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "has no running statistics",
        ),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "does not follow"),
        (Functional(bias=True, training=True), "uses the statistics of the batch"),
    ],
)
def test_a_norm_stays_where_folding_would_change_something_else(model, why):
    # Parametrised modules do not trace by themselves: they are not from torch.nn any more.
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))

    model = lively(model)
    module = fx.GraphModule(model, Tracer().trace(model))
    found = refusals(module, noise(2, 2 if isinstance(model, Functional) else 3, 5, 5))
    assert len(found) == 1
    assert why in found[0]


def test_a_weight_that_is_read_twice_stays():
    class ReadTwice(Functional):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            x = F.conv2d(x, weight, groups=2)
            return F.batch_norm(x, self.mean, self.var) + weight.sum()

    module = traced(ReadTwice(bias=False))
    assert sum(node.op == "get_attr" for node in module.graph.nodes) == 3
    assert refusals(module, noise(1, 2, 5, 5)) == [
        "follows a layer that cannot be changed: conv2d shares weight with another place"
    ]


def test_a_norm_over_another_dimension_than_the_features_stays():
    module = traced(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    x = noise(2, 4, 3)  # 4 rows: the norm runs over them, though there are as many features
    assert refusals(module, x) == ["does not normalise the channels that _0 writes"]


def test_a_norm_whose_dimension_cannot_be_told_stays_without_example_inputs():
    module = traced(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    assert refusals(module) == ["takes values of several ranks, and example inputs are not given"]


def test_example_inputs_that_do_not_fit_are_an_error_of_ours():
    module = traced(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    with pytest.raises(InputError, match="does not run on the example inputs"):
        fold(module, (noise(2, 5),))
