"""Finalising: whole networks stay what they are, with fewer nodes and no more arithmetic."""

from __future__ import annotations

import copy
import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.errors import InputError
from fxprune.finalize import finalize
from fxprune.passes.capture import Captured, capture
from fxprune.passes.chains import Span, find_chains, spans_within
from fxprune.passes.infer import infer
from fxprune.passes.linear.observed import observe
from fxprune.passes.lossless import cheapest_spans, saves_arithmetic
from fxprune.passes.merge import MERGED, SPANS, drop_activations, spans_of
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from fxprune.plan import Plan
from tests.linear_networks import CONVOLUTIONS, Skip, Sum, count, gap, lively, noise

LAYERS = (*CONVOLUTIONS.values(), nn.Linear)
NETWORKS = (
    "resnet18", "resnet34", "resnet50", "vgg19", "mobilenet_v2", "mnasnet0_5", "regnet_y_400mf",
    "efficientnet_b0",
)  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Captured:
    """A network of torchvision in float64, with norms that do something."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, request.param)(weights=None)
    if request.param == "vgg19":
        model.classifier = nn.Linear(512 * 7 * 7, 10)  # 120 million weights that never merge
    model = lively(model)
    return capture(model, (noise(2, 3, 48, 48),))


def traced(*parts: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(lively(nn.Sequential(*parts)))


def conv(width: int, out: int, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, **settings)


def test_a_module_that_was_not_captured_is_refused():
    with pytest.raises(InputError, match="Linear is none"):
        finalize(nn.Linear(2, 2))


def test_a_network_stays_what_it_is(network):
    final = finalize(network.module)
    assert count(final, _BatchNorm) == 0
    assert gap(final, network.module, *network.example_inputs) < 1e-10


def test_a_network_with_dropped_activations_stays_what_it_is(network):
    observed = observe(network.module, network.example_inputs)
    chains = find_chains(network.module, observed)
    spans = [span for chain in chains for span in spans_within(chain, largest_kernel=5)]
    random.Random(0).shuffle(spans)
    chosen: list[Span] = []
    for span in spans:
        small = span.geometry.weights < 1_000_000  # only to be quick
        if small and not any(set(span.nodes) & set(other.nodes) for other in chosen):
            chosen.append(span)
    assert sum(len(span.activations) for span in chosen) >= 2
    dropped = drop_activations(network.module, chosen)
    final = finalize(dropped)
    merged = sum(len(span.convolutions) - 1 for span in chosen)
    assert count(final, *LAYERS) <= count(network.module, *LAYERS) - merged
    assert gap(final, dropped, *network.example_inputs) < 1e-10


def test_a_network_that_is_slimmed_after_dropping_is_verified_and_merged():
    torch.manual_seed(0)
    inner = nn.Sequential(conv(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6(), conv(16, 8, padding=1))
    model = nn.Sequential(conv(3, 8, padding=1), nn.ReLU(), Skip(inner), nn.ReLU(), conv(8, 5))
    dense = capture(lively(model), (noise(2, 3, 9, 9),))
    (chain,) = find_chains(dense.module)
    span = next(s for s in spans_within(chain) if s.skips and len(s.convolutions) == 3)
    dropped = replace(dense, module=drop_activations(dense.module, [span]))
    analysis = infer(dropped)
    sizes = {group.name: group.size for group in analysis.groups}
    plan = Plan({name: tuple(range(0, size, 2)) for name, size in sizes.items()}, sizes)
    thin = slim(dropped, analysis, plan)
    assert verify(dropped, analysis, plan, thin).max_error < 1e-10
    final = finalize(thin)
    assert gap(final, thin, *dense.example_inputs) < 1e-10
    assert [m["geometry"]["out_width"] for m in final.meta[MERGED]] == [4]


def test_float32_and_channels_last_survive():
    torch.manual_seed(0)
    model = lively(torchvision.models.mnasnet0_5(weights=None)).float()
    module = fx.symbolic_trace(model.to(memory_format=torch.channels_last))
    final = finalize(module)
    assert {p.dtype for p in final.parameters()} == {torch.float32}
    assert final.get_parameter("layers.0.weight").is_contiguous(memory_format=torch.channels_last)
    assert gap(final, module, noise(1, 3, 48, 48).float()) < 1e-4


def test_the_given_module_stays_as_it_was():
    module = traced(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4)).train()
    dropped = drop_activations(module, [find_chains(module)[0].span])
    code, state, meta = (
        dropped.code,
        copy.deepcopy(dropped.state_dict()),
        copy.deepcopy(dropped.meta),
    )
    final = finalize(dropped)
    assert dropped.code == code
    assert dropped.meta == meta
    assert dropped.training
    assert not final.training
    assert all(torch.equal(state[k], v) for k, v in dropped.state_dict().items())


def test_meta_is_carried_over_and_says_what_was_merged():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4))
    module.meta["fxprune"] = {"plan": "kept"}
    dropped = drop_activations(module, [find_chains(module)[0].span])
    final = finalize(dropped)
    assert final.meta["fxprune"] == {"plan": "kept"}
    assert SPANS not in final.meta
    assert [span["nodes"] for span in final.meta[MERGED]] == [["_0", "_2"]]


def test_finalising_twice_changes_nothing_more():
    module = traced(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4))
    final = finalize(drop_activations(module, [find_chains(module)[0].span]))
    again = finalize(final)
    assert again.code == final.code
    assert again.meta == final.meta
    assert all(torch.equal(v, final.state_dict()[k]) for k, v in again.state_dict().items())


def test_example_inputs_let_norms_behind_linear_layers_fold():
    module = traced(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    x = noise(5, 3)
    assert count(finalize(module), _BatchNorm) == 1
    final = finalize(module, (x,))
    assert count(final, _BatchNorm) == 0
    assert gap(final, module, x) < 1e-12


def test_a_recorded_span_that_was_edited_away_is_refused():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4))
    dropped = drop_activations(module, [find_chains(module)[0].span])
    dropped.set_submodule("2", nn.MaxPool2d(2))
    with pytest.raises(InputError, match="_2 is a MaxPool2d"):
        finalize(dropped)


# -- which lossless spans are merged ---------------------------------------------------------------


def merged_in(module: fx.GraphModule) -> list[tuple[str, ...]]:
    return [tuple(span["convolutions"]) for span in finalize(module).meta[MERGED]]


def test_a_pair_is_merged_where_that_saves_arithmetic():
    assert merged_in(traced(conv(4, 32, 1), conv(32, 4, 1))) == [("_0", "_1")]


def test_a_bottleneck_is_left_alone():
    assert merged_in(traced(conv(32, 4, 1), conv(4, 32, 1))) == []


def test_a_pair_that_saves_for_large_inputs_only_is_left_alone():
    # 64 against 16 + 16 s^2, where the stride of 2 leaves s^2 = 4 positions, or 1 of an input of 1.
    assert merged_in(traced(conv(8, 2, 1), conv(2, 8, 1, stride=2))) == []


def test_a_larger_kernel_is_not_made_for_its_own_sake():
    assert merged_in(traced(conv(4, 4), conv(4, 4))) == []


def test_a_block_of_parallel_branches_becomes_one_layer():
    block = Sum(conv(4, 4, padding=1), conv(4, 4, 1), nn.BatchNorm2d(4))
    module = traced(block, nn.ReLU())
    final = finalize(module)
    assert count(final, *LAYERS) == 1
    assert gap(final, module, noise(1, 4, 6, 6)) < 1e-12


def test_a_skip_around_one_layer_goes_into_it_because_that_is_one_kernel_less():
    module = traced(Skip(conv(4, 4, padding=1, groups=4)), nn.ReLU())
    final = finalize(module)
    assert [n.op for n in final.graph.nodes] == [
        "placeholder",
        "call_module",
        "call_module",
        "output",
    ]
    assert final.get_submodule("0.inner").groups == 4
    assert gap(final, module, noise(1, 4, 6, 6)) < 1e-12


def test_branches_of_a_fork_that_stays_are_looked_into():
    branch = nn.Sequential(conv(4, 32, 1), conv(32, 4, 1), nn.ReLU(), conv(4, 4, 1))
    assert merged_in(traced(Skip(branch))) == [("_0_inner_0", "_0_inner_1")]


@pytest.mark.parametrize("seed", range(20))
def test_the_cheapest_segmentation_is_found(seed):
    draw = random.Random(seed)
    widths = [draw.choice((2, 3, 5, 8, 13)) for _ in range(6)]
    module = traced(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    chosen = cheapest_spans(find_chains(module))
    count_of = len(widths) - 1
    inner = {name for span in chosen for name in span.nodes[1:]}
    starts = [i for i in range(count_of) if f"_{i}" not in inner]
    assert _cost(widths, starts) == min(
        cost
        for size in range(count_of)
        for cuts in itertools.combinations(range(1, count_of), size)
        if (cost := _cost(widths, [0, *cuts])) is not None
    )


def _cost(widths: list[int], starts: list[int]) -> tuple[int, int] | None:
    """Weights and layers of a segmentation; None if a merged layer has more than its parts."""
    total = 0
    for start, stop in itertools.pairwise([*starts, len(widths) - 1]):
        merged = widths[start] * widths[stop]
        parts = sum(widths[i] * widths[i + 1] for i in range(start, stop))
        if merged > parts:
            return None
        total += merged
    return total, len(starts)


def test_what_saves_arithmetic_does_so_for_every_size():
    draw = random.Random(0)
    saving = 0
    for _ in range(300):
        widths = [draw.choice((2, 4, 16, 64)) for _ in range(draw.randint(3, 4))]
        layers = [
            conv(a, b, draw.choice((1, 2, 3)), stride=draw.choice((1, 2)), padding=0, device="meta")
            for a, b in itertools.pairwise(widths)
        ]
        layers[0].padding = (draw.choice((0, 1, 2)),) * 2
        (chain,) = find_chains(fx.symbolic_trace(nn.Sequential(*layers)))
        merged = chain.span.geometry
        if not saves_arithmetic(chain.path, merged):
            continue
        saving += 1
        for size in range(1, 30):
            positions, parts = (size, size), 0
            for item in chain.path:
                positions = item.geometry.out_spatial(positions)
                parts += item.geometry.weights * math.prod(positions)
            if min(positions) > 0:
                assert merged.out_spatial((size, size)) == positions
                assert merged.weights * math.prod(positions) <= parts
    assert saving > 30


def macs(module: fx.GraphModule, x: Tensor) -> int:
    shapes = observe(module, (x,)).shapes
    total = 0
    for node in module.graph.nodes:
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, LAYERS):
            total += math.prod(shapes[node.name][2:]) * layer.weight.numel()
    return total


def test_the_bound_counts_layers_at_a_higher_resolution():
    # A 2x2 kernel of stride 2 reads four positions of the layer before for each that it writes.
    module = traced(conv(4, 16, 1), conv(16, 4, 2, stride=2))
    assert merged_in(module) == [("_0", "_1")]
    final = finalize(module)
    x = noise(1, 4, 9, 9)
    assert macs(module, x) == 81 * 64 + 16 * 256
    assert macs(final, x) == 16 * 64
    assert spans_of(final) == ()
