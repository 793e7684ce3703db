"""Merging: what dropping activations changes, and that merging changes nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.errors import InputError
from fxprune.passes.chains import Span, find_chains, lossless_spans, spans_within
from fxprune.passes.export import capture_by_export
from fxprune.passes.linear.observed import observe
from fxprune.passes.merge import (
    SPANS,
    DropActivationsPass,
    MergePass,
    drop_activations,
    merge_spans,
    spans_of,
)
from tests.linear_networks import (
    CONVOLUTIONS,
    Functional,
    Grower,
    Skip,
    Sum,
    count,
    gap,
    lively,
    noise,
)

LAYERS = (*CONVOLUTIONS.values(), nn.Linear)
SIZES = {1: (57,), 2: (26, 31), 3: (20, 18, 19)}


def traced(*parts: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(lively(nn.Sequential(*parts)))


def whole(module: fx.GraphModule) -> Span:
    (chain,) = find_chains(module)
    return chain.span


def conv(width: int, out: int, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, **settings)


def merged(module: fx.GraphModule, spans: Sequence[Span]) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Both steps."""
    dropped = drop_activations(module, spans)
    return dropped, merge_spans(dropped, spans_of(dropped))


# -- random chains ---------------------------------------------------------------------------------


def random_chain(seed: int) -> tuple[fx.GraphModule, Tensor]:
    dims = 1 + seed % 3
    grower = Grower(seed, dims)
    torch.manual_seed(seed)
    model, _ = grower.chain(4, grower.random.randint(2, 4))
    return fx.symbolic_trace(lively(model, seed)), noise(2, 4, *SIZES[dims], seed=seed)


@pytest.mark.parametrize("seed", range(45))
def test_any_chain_becomes_one_layer(seed):
    module, x = random_chain(seed)
    (chain,) = find_chains(module, observe(module, (x,)))
    dropped, one = merged(module, [chain.span])
    assert count(one, *LAYERS) == 1
    assert len(one.graph.nodes) == len(module.graph.nodes) - len(chain.span.nodes) + 1
    assert gap(one, dropped, x) < 1e-10
    (layer,) = (m for m in one.modules() if isinstance(m, LAYERS))
    shape = chain.span.geometry
    assert (layer.kernel_size, layer.stride, layer.padding) == (
        shape.kernel, shape.stride, shape.padding
    )  # fmt: skip
    assert (layer.dilation, layer.groups) == (shape.dilation, shape.groups)


@pytest.mark.parametrize("seed", range(45))
def test_any_disjoint_spans_merge_together(seed):
    module, x = random_chain(seed)
    (chain,) = find_chains(module, observe(module, (x,)))
    spans = list(spans_within(chain, largest_kernel=99))
    random.Random(seed).shuffle(spans)
    chosen: list[Span] = []
    for span in spans:
        if not any(set(span.nodes) & set(other.nodes) for other in chosen):
            chosen.append(span)
    dropped, few = merged(module, chosen)
    layers = sum(len(span.convolutions) - 1 for span in chosen)
    assert count(few, *LAYERS) == count(module, *LAYERS) - layers
    assert gap(few, dropped, x) < 1e-10


@pytest.mark.parametrize("seed", range(45))
def test_any_lossless_span_merges_without_the_first_step(seed):
    module, x = random_chain(seed)
    (chain,) = find_chains(module, observe(module, (x,)))
    for span in lossless_spans(chain):
        assert gap(merge_spans(module, [span]), module, x) < 1e-10


# -- the first step --------------------------------------------------------------------------------


def test_dropping_leaves_layers_norms_and_parameter_names():
    block = Skip(nn.Sequential(conv(4, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, padding=2)))
    module = traced(conv(3, 4, padding=1), nn.ReLU(), block)
    dropped = drop_activations(module, [whole(module)])
    assert list(dropped.state_dict()) == list(module.state_dict())
    assert count(dropped, nn.ReLU) == 0
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in dropped.state_dict().items())


def test_the_given_module_stays_as_it_was():
    module = traced(conv(3, 4, padding=1), nn.ReLU(), conv(4, 4, padding=1)).train()
    code, state = module.code, copy.deepcopy(module.state_dict())
    dropped, one = merged(module, [whole(module)])
    assert module.code == code
    assert module.meta == {}
    assert module.get_submodule("0").padding == (1, 1)
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    assert dropped.training
    assert not one.training


def test_all_padding_moves_to_the_front():
    module = traced(
        conv(3, 4, stride=2, padding=1), nn.ReLU(), conv(4, 4, padding=1), conv(4, 4, 5, padding=2)
    )
    dropped = drop_activations(module, [whole(module)])
    paddings = [dropped.get_submodule(name).padding for name in ("0", "2", "3")]
    assert paddings == [(1 + 2 * (1 + 2),) * 2, (0, 0), (0, 0)]


def test_the_interior_keeps_its_values_when_only_padding_moves():
    module = traced(conv(3, 4, padding=1), nn.BatchNorm2d(4), conv(4, 5, padding=1))
    span = whole(module)
    assert span.activations == ()
    assert span.moves_padding
    dropped = drop_activations(module, [span])
    x = noise(1, 3, 9, 9)
    with torch.no_grad():
        before, after = module(x), dropped(x)
    changed = (before - after).abs().amax(dim=(0, 1)) > 1e-12
    border = torch.ones(9, 9, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert torch.equal(changed, border)


def test_a_span_that_is_exact_without_its_activations_keeps_its_padding():
    module = traced(conv(3, 4, 1, bias=False), nn.ReLU(), conv(4, 4, padding=1))
    span = whole(module)
    assert not span.moves_padding
    dropped = drop_activations(module, [span])
    assert dropped.get_submodule("2").padding == (1, 1)
    plain = nn.Sequential(module.get_submodule("0"), module.get_submodule("2"))
    assert gap(dropped, plain, noise(1, 3, 7, 7)) == 0.0


def test_a_fork_at_the_front_pads_in_each_branch_and_crops_nothing():
    module = traced(Skip(nn.Sequential(conv(4, 4, padding=1), nn.ReLU(), conv(4, 4, padding=1))))
    dropped = drop_activations(module, [whole(module)])
    assert not [n for n in dropped.graph.nodes if n.target is F.pad]


def test_a_skip_inside_is_cropped_by_what_its_branch_reads():
    block = Skip(nn.Sequential(conv(4, 4, padding=1), nn.ReLU(), conv(4, 4, 5, padding=2)))
    module = traced(conv(3, 4, padding=1), block)
    dropped = drop_activations(module, [whole(module)])
    (pad,) = (n for n in dropped.graph.nodes if n.target is F.pad)
    assert pad.args[1] == [-3, -3, -3, -3]
    assert dropped.get_submodule("0").padding == (4, 4)


def test_the_result_of_the_first_step_can_be_trained_and_then_merged():
    block = Skip(nn.Sequential(conv(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, padding=1)))
    module = traced(conv(3, 4, padding=1), nn.BatchNorm2d(4), nn.ReLU(), block)
    dropped = drop_activations(module, [whole(module)]).train()
    optimizer = torch.optim.SGD(dropped.parameters(), lr=0.1)
    x = noise(4, 3, 6, 6)
    losses = []
    for _ in range(5):
        loss = (dropped(x) - x.mean()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    one = merge_spans(dropped, spans_of(dropped))
    assert count(one, *LAYERS) == 1
    assert gap(one, dropped, x) < 1e-10


def test_what_waits_is_recorded_and_adds_up_over_calls():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4), nn.MaxPool2d(2), conv(4, 4), conv(4, 4))
    first, second = (chain.span for chain in find_chains(module))
    once = drop_activations(module, [first])
    twice = drop_activations(once, [second])
    assert [span.source for span in spans_of(twice)] == ["input_1", "_3"]
    assert spans_of(module) == ()


# -- the second step -------------------------------------------------------------------------------


def test_the_merged_layer_has_the_name_of_the_first_convolution():
    module = traced(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4))
    _, one = merged(module, [whole(module)])
    assert set(one.state_dict()) == {"0.weight", "0.bias"}


def test_spans_that_follow_each_other_merge_together():
    module = traced(*(conv(3, 3) for _ in range(6)))
    (chain,) = find_chains(module)
    by_start = {span.nodes: span for span in spans_within(chain)}
    pairs = [by_start["_0", "_1"], by_start["_2", "_3"], by_start["_4", "_5"]]
    few = merge_spans(module, pairs)
    assert count(few, *LAYERS) == 3
    assert gap(few, module, noise(1, 3, 15, 15)) < 1e-12


def test_functions_merge_into_a_module():
    module = traced(Functional(bias=False), nn.ReLU(), conv(4, 4))
    x = noise(2, 2, 9, 9)
    (chain,) = find_chains(module, observe(module, (x,)))
    dropped, one = merged(module, [chain.span])
    assert set(one.state_dict()) == {"conv2d.weight", "conv2d.bias"}
    assert gap(one, dropped, x) < 1e-12


def test_linear_layers_merge_over_any_leading_dimensions():
    block = Skip(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(), nn.Linear(6, 4)))
    module = traced(block, nn.Linear(4, 2, bias=False))
    dropped, one = merged(module, [whole(module)])
    assert count(one, nn.Linear) == 1
    assert gap(one, dropped, noise(3, 5, 4)) < 1e-12


def test_linear_layers_with_a_norm_between_them_merge():
    module = traced(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    x = noise(5, 4)
    (chain,) = find_chains(module, observe(module, (x,)))
    dropped, one = merged(module, [chain.span])
    assert count(one, nn.BatchNorm1d) == 0
    assert gap(one, dropped, x) < 1e-12


def test_explicit_zero_padding_merges():
    pads = (nn.ZeroPad2d(1), nn.ZeroPad2d((2, 2, 1, 1)))
    module = traced(conv(3, 4, bias=False), nn.ReLU(), pads[0], conv(4, 4), pads[1], conv(4, 4))
    dropped, one = merged(module, [whole(module)])
    assert count(one, nn.ZeroPad2d) == 0
    assert not [n for n in one.graph.nodes if n.target is F.pad]
    assert gap(one, dropped, noise(1, 3, 9, 9)) < 1e-12


def test_a_block_of_three_parallel_branches_merges():
    # As in RepVGG (Ding et al., CVPR 2021): 3x3, 1x1 and a norm alone, each with its norm.
    main = nn.Sequential(conv(4, 4, padding=1, bias=False), nn.BatchNorm2d(4))
    point = nn.Sequential(conv(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    module = traced(Sum(main, point, nn.BatchNorm2d(4)), nn.ReLU())
    one = merge_spans(module, [whole(module)])
    assert count(one, *LAYERS) == 1
    assert one.get_submodule("0.branches.0.0").kernel_size == (3, 3)
    assert gap(one, module, noise(2, 4, 6, 6)) < 1e-12


def test_a_mode_for_padding_that_was_not_used_does_not_come_alive():
    module = traced(conv(3, 4, 1, padding_mode="reflect"), nn.ReLU(), conv(4, 4, padding=1))
    dropped, one = merged(module, [whole(module)])
    x = noise(1, 3, 7, 7)
    assert gap(one, dropped, x) < 1e-12
    parts = copy.deepcopy([module.get_submodule("0"), module.get_submodule("2")])
    parts[0].padding_mode, parts[0].padding, parts[1].padding = "zeros", (1, 1), (0, 0)
    assert gap(dropped, nn.Sequential(*parts), x) < 1e-12


def test_a_value_overwritten_elsewhere_is_read_before():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 3, 1), conv(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            y = self.a(x)
            z = torch.relu_(x)
            return torch.cat([self.b(y), z], 1)

    module = fx.symbolic_trace(lively(Overwriting()))
    assert gap(merge_spans(module, [whole(module)]), module, noise(1, 3, 5, 5)) < 1e-12


def test_an_exported_network_merges():
    model = lively(nn.Sequential(Skip(conv(4, 4, padding=1), inplace=True), nn.ReLU(), conv(4, 4)))
    x = noise(2, 4, 8, 8)

    module, _ = capture_by_export(model, (x,), {})
    dropped, one = merged(module, [whole(module)])
    assert gap(one, dropped, x) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_layout_and_trainability_stay(dtype):
    module = traced(conv(3, 4), conv(4, 4)).to(dtype).to(memory_format=torch.channels_last)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    weight = merge_spans(module, [whole(module)]).get_parameter("0.weight")
    assert weight.dtype == dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.requires_grad


def test_float32_is_merged_as_well_as_float32_can_be():
    module = traced(conv(16, 16), conv(16, 16), conv(16, 16))
    single = copy.deepcopy(module).float()
    one = merge_spans(single, [whole(single)])
    exact = merge_spans(copy.deepcopy(single).double(), [whole(module)])
    found, best = one.get_parameter("0.weight"), exact.get_parameter("0.weight")
    assert torch.equal(found, best.float())


def test_merging_draws_no_random_numbers():
    module = traced(conv(3, 4), conv(4, 4))
    state = torch.random.get_rng_state()
    merge_spans(module, [whole(module)])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_both_steps_are_fx_passes():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4))
    dropped = DropActivationsPass([whole(module)])(module)
    assert dropped.modified
    result = MergePass()(dropped.graph_module)
    assert result.modified
    assert count(result.graph_module, *LAYERS) == 1
    assert not MergePass()(module).modified


# -- refusals --------------------------------------------------------------------------------------


def test_overlapping_spans_are_refused():
    module = traced(conv(3, 3), conv(3, 3), conv(3, 3))
    (chain,) = find_chains(module)
    first, *_, last = spans_within(chain)
    with pytest.raises(InputError, match="both hold _1"):
        drop_activations(module, [first, last])


def test_a_span_that_waits_cannot_be_chosen_again():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4), conv(4, 4))
    (chain,) = find_chains(module)
    first = spans_within(chain)[0]
    once = drop_activations(module, [first])
    with pytest.raises(InputError, match="overlap"):
        drop_activations(once, [find_chains(once)[0].span])


def test_only_activations_are_dropped_whatever_a_span_says():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4))
    forged = replace(whole(module), activations=("_0",))
    assert count(drop_activations(module, [forged]), *LAYERS) == 2


def test_a_span_of_another_graph_is_refused():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4))
    other = traced(conv(3, 4), nn.MaxPool2d(2), conv(4, 4))
    with pytest.raises(InputError, match="_1 is a MaxPool2d"):
        drop_activations(other, [whole(module)])
    with pytest.raises(InputError, match="there is no node _2"):
        drop_activations(traced(conv(3, 4), nn.ReLU()), [whole(module)])


def test_a_span_with_activations_is_not_merged():
    module = traced(conv(3, 4), nn.ReLU(), conv(4, 4))
    with pytest.raises(InputError, match="cannot be merged exactly"):
        merge_spans(module, [whole(module)])


def test_a_span_whose_padding_has_not_moved_is_not_merged():
    module = traced(conv(3, 4), conv(4, 4, padding=1))
    with pytest.raises(InputError, match="cannot be merged exactly"):
        merge_spans(module, [whole(module)])


def test_a_damaged_record_is_refused():
    module = traced(conv(3, 4), conv(4, 4))
    module.meta[SPANS] = [{"source": 3}]
    with pytest.raises(InputError, match="malformed at"):
        spans_of(module)
