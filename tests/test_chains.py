"""Chains: what could become one layer, where it ends, and why."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from fxprune import plain
from fxprune.passes.capture import capture
from fxprune.passes.chains import (
    Chain,
    Span,
    find_chains,
    lossless_spans,
    span_of,
    spans_within,
)
from fxprune.passes.export import capture_by_export
from fxprune.passes.linear.geometry import Geometry
from fxprune.passes.linear.observed import observe
from tests.linear_networks import Functional, Skip, Sum, lively, noise


def traced(*parts: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(lively(nn.Sequential(*parts)))


def chains_of(module: nn.Module, *shape: int) -> tuple[Chain, ...]:
    inputs = (torch.zeros(shape, dtype=next(module.parameters()).dtype),)
    captured = capture(module.eval(), inputs)
    return find_chains(captured.module, observe(captured.module, captured.example_inputs))


def conv(width: int, out: int, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, **settings)


def test_convolutions_norms_and_activations_make_one_chain():
    module = traced(
        conv(3, 8, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), conv(8, 4)
    )
    (chain,) = find_chains(module)
    assert chain.source == "input_1"
    assert chain.span == Span(
        source="input_1",
        nodes=("_0", "_1", "_2", "_3", "_4"),
        convolutions=("_0", "_4"),
        activations=("_2",),
        transparent=("_3",),
        skips=(),
        geometry=Geometry(3, 4, (7, 7), (2, 2), (1, 1), (1, 1), 1, True),
        moves_padding=False,
    )
    assert chain.span.target == "_4"
    assert chain.begins == "input_1 is an input"
    assert chain.ends == "output returns it"


def test_what_surrounds_the_convolutions_is_left_out():
    module = traced(nn.ReLU(), nn.BatchNorm2d(3), conv(3, 3), nn.ReLU(), conv(3, 3), nn.ReLU())
    (chain,) = find_chains(module)
    assert chain.source == "_1"
    assert chain.span.nodes == ("_2", "_3", "_4")


def test_linear_layers_make_chains_too():
    (chain,) = find_chains(traced(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)))
    assert chain.span.geometry == Geometry(3, 2, (), (), (), (), 1, True)


def test_a_linear_layer_over_the_last_dimension_does_not_go_on_from_a_convolution():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 3, 1), conv(3, 3, 1)
            self.c, self.d = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.b(self.a(x))))

    first, second = find_chains(fx.symbolic_trace(Mixed()))
    assert first.span.nodes == ("a", "b")
    assert first.ends == "c works on other dimensions"
    assert second.span.nodes == ("c", "d")


def test_functions_count_like_modules():
    module = traced(Functional(bias=True), nn.ReLU(), conv(4, 4))
    (chain,) = find_chains(module, observe(module, (noise(1, 2, 9, 9),)))
    assert chain.span.convolutions == ("conv2d", "_2")
    assert chain.span.nodes[1] == "batch_norm"


def test_an_exported_network_has_the_same_chains():
    model = nn.Sequential(
        conv(3, 8, 1), nn.ReLU6(inplace=True), Skip(conv(8, 8, padding=1), inplace=True), nn.SiLU()
    )
    x = torch.randn(2, 3, 8, 8)
    exported, _ = capture_by_export(model.eval(), (x,), {})
    (there,), (here,) = find_chains(exported), find_chains(fx.symbolic_trace(model))
    assert there.span.geometry == here.span.geometry
    assert len(there.span.activations) == len(here.span.activations) == 1
    assert there.span.skips == ("identity",)


# -- where chains end ------------------------------------------------------------------------------


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, 1), conv(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x)))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, 1), conv(3, 3, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class _Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, 1), conv(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return y, self.b(y)


class _Computed(nn.Module):
    """A weight that is computed: standardised."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight = conv(3, 3, 1), nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.a(x), self.weight - self.weight.mean())


class _Broadcast(nn.Module):
    """An addition that is none of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = conv(3, 3, 1), conv(3, 3, 1), nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + self.shift)


class _Scaled(nn.Module):
    """An addition that scales one of its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, 1), conv(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.add(x, self.b(x), alpha=2)


class _Overwritten(nn.Module):
    """A value that is read again after an addition in place has changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 3, 1), conv(3, 3, 1), conv(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x.add_(self.a(x)) + self.b(x)


def _hooked() -> nn.Module:
    model = nn.Sequential(conv(3, 3, 1), conv(3, 3, 1))
    model[1].register_forward_pre_hook(lambda module, args: None)
    return model


@pytest.mark.parametrize(
    "model",
    [
        _Twice(),
        _Tied(),
        _Returned(),
        _Computed(),
        _Broadcast(),
        _Scaled(),
        _Overwritten(),
        _hooked(),
        nn.Sequential(conv(3, 3, 1), nn.MaxPool2d(2), conv(3, 3, 1)),
        nn.Sequential(conv(3, 3, 1), nn.Sigmoid(), conv(3, 3, 1)),
        nn.Sequential(conv(3, 3, 1), nn.ConvTranspose2d(3, 3, 2)),
        nn.Sequential(conv(3, 3, 1), conv(3, 3, padding=1, padding_mode="circular")),
        nn.Sequential(conv(3, 3, 1), conv(3, 3, 2, padding="same")),
        nn.Sequential(conv(3, 3, 1), nn.GroupNorm(3, 3), conv(3, 3, 1)),
        nn.Sequential(conv(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), conv(3, 3, 1)),
        nn.Sequential(conv(3, 3, 1), nn.ReplicationPad2d(1), conv(3, 3, 1)),
        nn.Sequential(conv(3, 3, 1), nn.ZeroPad2d((0, 1, 0, 1)), conv(3, 3, 1)),
    ],
)
def test_what_cannot_be_one_layer_is_no_chain(model):
    assert find_chains(fx.symbolic_trace(model.eval())) == ()


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (nn.MaxPool2d(2), "_2 is a MaxPool2d, which is not linear"),
        (nn.ConvTranspose2d(3, 3, 2), "_2 is a transposed convolution"),
        (conv(3, 3, 2, padding="same"), "_2 pads one side more than the other"),
        (
            conv(3, 3, padding=1, padding_mode="reflect"),
            "_2 pads with reflect, not with zeros",
        ),
    ],
)
def test_a_chain_says_why_it_ends(last, why):
    (chain,) = find_chains(traced(conv(3, 3, 1), conv(3, 3, 1), last))
    assert chain.ends == why


def test_a_chain_says_why_it_begins():
    (chain,) = find_chains(traced(nn.MaxPool2d(2), nn.ReLU(), conv(3, 3, 1), conv(3, 3, 1)))
    assert chain.begins == "_0 is a MaxPool2d, which is not linear"


def test_a_norm_over_another_dimension_ends_a_chain():
    module = traced(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    assert len(find_chains(module, observe(module, (noise(4, 3),)))) == 1
    assert find_chains(module, observe(module, (noise(4, 3, 3),))) == ()
    assert find_chains(module) == ()


def test_modules_that_do_nothing_in_evaluation_mode_are_seen_through():
    model = nn.Sequential(conv(3, 3, 1), StochasticDepth(0.2, "row"), conv(3, 3, 1))
    (chain,) = chains_of(model, 1, 3, 4, 4)
    assert chain.span.transparent == ("_1",)


def test_an_activation_in_place_is_not_taken_for_the_identity():
    model = nn.Sequential(conv(3, 3, 1), nn.ReLU(inplace=True), conv(3, 3, 1))
    (chain,) = chains_of(model, 1, 3, 4, 4)
    assert chain.span.activations == ("_1",)


# -- skip connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
def test_an_identity_skip_closes_inside(inplace):
    block = Skip(nn.Sequential(conv(4, 8, 1), nn.ReLU(), conv(8, 4, padding=1)), inplace)
    (chain,) = find_chains(traced(conv(3, 4, 1), block, nn.ReLU(), conv(4, 5, 1)))
    assert chain.span.skips == ("identity",)
    assert len(chain.span.convolutions) == 4
    assert chain.span.geometry == Geometry(3, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, True)


def test_a_projection_skip_closes_inside():
    main = nn.Sequential(conv(4, 8, stride=2, padding=1), nn.ReLU(), conv(8, 8, padding=1))
    block = Sum(main, nn.Sequential(conv(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)))
    (chain,) = find_chains(traced(block))
    assert chain.span.skips == ("projection",)
    assert chain.span.geometry == Geometry(4, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1, True)


def test_three_parallel_branches_close_inside():
    block = Sum(conv(4, 4, padding=1), conv(4, 4, 5, padding=2), nn.BatchNorm2d(4))
    (chain,) = find_chains(traced(block))
    assert sorted(chain.span.skips) == ["identity", "parallel"]
    assert chain.span.geometry.kernel == (5, 5)
    assert chain.span.lossless


def test_a_skip_around_a_depthwise_convolution_keeps_it_depthwise():
    (chain,) = find_chains(traced(Skip(conv(4, 4, padding=1, groups=4))))
    assert chain.span.geometry.groups == 4


def test_a_chain_may_begin_at_one_of_several_readers():
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 4, 1), conv(4, 4, 1), conv(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.b(self.a(x)), self.c(x)], 1)

    (chain,) = find_chains(fx.symbolic_trace(Branched()))
    assert chain.span.nodes == ("a", "b")
    assert chain.begins == "x is an input"


def test_a_fork_with_a_gate_inside_leaves_the_chains_of_its_branches():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gate = conv(4, 4, 1), conv(4, 4, 1), conv(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x).relu())
            return x + y * torch.sigmoid(self.gate(y))

    (chain,) = find_chains(traced(Gated()))
    assert chain.span.nodes == ("_0_a", "relu", "_0_b")


@pytest.mark.parametrize(
    "block",
    [
        Sum(conv(4, 4, 2, stride=2), conv(4, 4, 1, stride=2)),  # alike for even sizes only
        Sum(conv(4, 4, 1), conv(4, 4, 3)),  # broadcasts for one size only
        Sum(nn.ReLU(), nn.Identity()),
    ],
)
def test_branches_that_do_not_add_up_for_every_size_are_no_fork(block):
    assert find_chains(traced(block)) == ()


def test_a_value_added_to_itself_is_no_fork():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(4, 4, 1), conv(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y + y)

    assert find_chains(fx.symbolic_trace(Doubled())) == ()


# -- spans -----------------------------------------------------------------------------------------


def test_the_spans_of_a_plain_chain_are_its_intervals():
    parts = [part for _ in range(5) for part in (conv(4, 4, padding=1), nn.ReLU())]
    (chain,) = find_chains(traced(*parts))
    assert len(spans_within(chain, largest_kernel=99)) == 10
    assert {span.geometry.kernel[0] for span in spans_within(chain, 7)} == {5, 7}
    assert len(spans_within(chain, 7)) == 4 + 3


def test_spans_lie_inside_of_a_fork_or_hold_all_of_it():
    block = Skip(nn.Sequential(conv(4, 4, 1), nn.ReLU(), conv(4, 4, 1)))
    (chain,) = find_chains(traced(conv(4, 4, 1), block))
    found = {span.convolutions for span in spans_within(chain)}
    assert found == {
        ("_1_inner_0", "_1_inner_2"),
        ("_0", "_1_inner_0", "_1_inner_2"),
    }
    assert len(spans_within(chain)) == 3  # the fork alone has the convolutions of its branch


def test_a_span_takes_the_norms_behind_its_last_convolution():
    (chain,) = find_chains(
        traced(
            conv(3, 4), nn.BatchNorm2d(4), conv(4, 4), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()
        )
    )
    assert chain.span.target == "_4"


@pytest.mark.parametrize(
    ("parts", "lossless"),
    [
        ((conv(3, 4, padding=1), conv(4, 4)), True),
        ((conv(3, 4, padding=1), conv(4, 4, padding=1)), False),
        ((conv(3, 4, 1), conv(4, 4, padding=1)), False),  # its bias would be padded with zeros
        ((conv(3, 4, 1, bias=False), conv(4, 4, padding=1)), True),
        ((conv(3, 4, 1, bias=False), nn.BatchNorm2d(4), conv(4, 4, padding=1)), False),
        ((conv(3, 4, bias=False, padding=1), conv(4, 4, padding=1)), False),
        ((conv(3, 4, bias=False, padding=2), conv(4, 4, padding=1)), True),
        ((conv(3, 4), nn.ReLU(), conv(4, 4)), False),
        ((nn.ZeroPad2d(1), conv(3, 4), conv(4, 4)), True),
        ((Skip(conv(3, 3, padding=1)),), True),
        ((conv(3, 3, 1), Skip(conv(3, 3, padding=1))), False),
        ((conv(3, 3, 1, bias=False), Skip(conv(3, 3, padding=1))), True),
    ],
)
def test_a_span_is_lossless_only_if_nothing_changes_at_the_border_either(parts, lossless):
    (chain,) = find_chains(traced(*parts))
    assert chain.span.lossless is lossless


def test_lossless_spans_are_as_large_as_they_can_be():
    module = traced(
        conv(3, 4),
        conv(4, 4, 1),
        nn.ReLU(),
        conv(4, 4),
        conv(4, 4),
        conv(4, 4),
        nn.ReLU(),
        conv(4, 4),
    )
    (chain,) = find_chains(module)
    assert [span.convolutions for span in lossless_spans(chain)] == [
        ("_0", "_1"),
        ("_3", "_4", "_5"),
    ]


def test_a_span_survives_json():
    block = Skip(nn.Sequential(conv(4, 4, 1), nn.ReLU(), conv(4, 4, padding=1)))
    (chain,) = find_chains(traced(block))
    text = json.dumps(plain.to_plain(chain.span))
    assert plain.from_plain(Span, json.loads(text)) == chain.span


def test_a_single_convolution_is_nothing_to_merge():
    (chain,) = find_chains(traced(conv(3, 3), conv(3, 3)))
    assert span_of(chain.source, chain.path[:1]) is None


# -- real networks ---------------------------------------------------------------------------------


def test_vgg19_has_the_spans_of_the_published_table():
    # Kim et al. (ICML 2023) list 36 spans for VGG19: 16 single convolutions and 20 merged ones.
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features
    chains = find_chains(fx.symbolic_trace(features.eval()))
    assert [len(chain.span.convolutions) for chain in chains] == [2, 2, 4, 4, 4]
    assert sum(len(spans_within(chain, largest_kernel=9)) for chain in chains) == 20


def test_mobilenet_v2_is_one_chain_with_ten_skips():
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2(weights=None)
    (chain,) = find_chains(fx.symbolic_trace(model.eval()))
    assert len(chain.span.convolutions) == 52
    assert chain.span.skips == ("identity",) * 10
    assert chain.ends == "adaptive_avg_pool2d is adaptive_avg_pool2d, which is not linear"


def test_resnet18_is_one_chain_behind_its_pool():
    with torch.device("meta"):
        model = torchvision.models.resnet18(weights=None)
    (chain,) = find_chains(fx.symbolic_trace(model.eval()))
    assert chain.begins == "maxpool is a MaxPool2d, which is not linear"
    assert sorted(chain.span.skips) == ["identity"] * 5 + ["projection"] * 3
    assert chain.span.geometry.stride == (8, 8)


def test_no_two_chains_have_a_node_in_common():
    with torch.device("meta"):
        model = torchvision.models.efficientnet_b0(weights=None)
    chains = find_chains(fx.symbolic_trace(model.eval()))
    names = [name for chain in chains for name in chain.span.nodes]
    assert len(chains) > 30
    assert len(names) == len(set(names))
