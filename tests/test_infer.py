"""Axis inference on small graphs: which positions go together, and what stays."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxprune
from fxprune.passes.capture import capture
from fxprune.passes.fakes import Fakes
from fxprune.passes.frozen import frozen_places
from fxprune.passes.infer import infer
from fxprune.passes.rules.recurrent import unfused_recurrence
from fxprune.passes.tracker import AxisTracker


def inferred(model, *inputs):
    return infer(capture(model, inputs))


def groups(analysis):
    return {g.name: (g.size, tuple(map(str, g.members))) for g in analysis.groups}


def test_a_chain_has_one_group_per_inner_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
    found = groups(inferred(model, torch.randn(1, 3, 8, 8)))
    norm = tuple(f"1.{name}[0]" for name in ("weight", "bias"))
    statistics = tuple(f"1.running_{name}[0]" for name in ("mean", "var"))
    assert found == {
        "0.weight[0]": (8, ("0.weight[0]", "0.bias[0]", *norm, "3.weight[1]", *statistics))
    }


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.inner(x))


def test_a_residual_connection_couples_producer_and_branch():
    found = groups(inferred(Residual(), torch.randn(1, 3, 8, 8)))
    assert list(found) == ["first.weight[0]"]
    _, members = found["first.weight[0]"]
    assert "inner.weight[0]" in members
    assert "inner.weight[1]" in members
    assert "last.weight[1]" in members


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.last = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.last(torch.cat([self.a(x), self.b(x)], 1))


def test_a_concatenation_keeps_its_parts_apart():
    found = groups(inferred(Concatenated(), torch.randn(1, 3, 4, 4)))
    assert {name: size for name, (size, _) in found.items()} == {"a.weight[0]": 4, "b.weight[0]": 6}
    assert all("last.weight[1]" in members for _, members in found.values())


def test_a_grouped_convolution_has_groups_and_positions_within():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 20, 3, groups=4), nn.Conv2d(20, 2, 1))
    sizes = sorted(g.size for g in inferred(model, torch.randn(1, 3, 8, 8)).groups)
    assert sizes == [3, 4, 5]  # inputs per group, groups, outputs per group


def test_a_depthwise_convolution_needs_no_rule_of_its_own():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    (group,) = inferred(model, torch.randn(1, 3, 8, 8)).groups
    assert {"0.weight[0]", "1.weight[0]", "2.weight[1]"} <= {str(m) for m in group.members}


def test_flattening_makes_places_a_factor_of_the_next_layers_inputs():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4))
    analysis = inferred(model, torch.randn(1, 3, 8, 8))
    (group,) = analysis.groups
    assert group.size == 6
    assert analysis.tensors["2.weight"][1].size == 216


def test_inputs_and_outputs_stay_with_their_reason():
    analysis = inferred(
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(2, 5)
    )
    reasons = {place.reason: place.members for place in frozen_places(analysis)}
    assert reasons["a dimension of the model's input [input at input]"] == ("0.weight[1]",)
    assert reasons["a dimension of the model's output [output at output]"] == (
        "2.weight[0]",
        "2.bias[0]",
    )


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.cdist(self.a(x), self.b(self.a(x)))[..., :1] + self.b(self.a(x)))


def test_an_operator_without_a_rule_freezes_what_it_touches_and_says_so():
    analysis = inferred(Unknown(), torch.randn(2, 3, 4))
    assert analysis.groups == ()
    reasons = " ".join(place.reason for place in frozen_places(analysis))
    assert "no typing rule for this operator [aten._cdist_forward.default at cdist]" in reasons


def test_a_convolution_along_the_channels_keeps_them():
    class AlongChannels(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix = nn.Conv2d(3, 8, 1), nn.Conv1d(1, 1, 3, padding=1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.first(x)
            gate = self.mix(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
            return self.last(x * gate[:, :, None, None].sigmoid())

    assert inferred(AlongChannels(), torch.randn(1, 3, 4, 4)).groups == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_recurrent_layer_is_looked_into_whatever_kernel_the_backend_has_for_it(dtype):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.cell, self.last = (
                nn.Linear(3, 6),
                nn.LSTM(6, 7, batch_first=True),
                nn.Linear(7, 2),
            )

        def forward(self, x):
            return self.last(self.cell(self.first(x))[0])

    analysis = inferred(Recurrent().to(dtype), torch.randn(4, 2, 3, dtype=dtype))
    assert sorted(group.size for group in analysis.groups) == [6, 7]


def test_attention_has_heads_and_two_kinds_of_head_width():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk, self.v, self.out = nn.Linear(6, 24), nn.Linear(6, 20), nn.Linear(20, 6)

        def forward(self, x):
            b, n, _ = x.shape
            q, k = self.qk(x).view(b, n, 2, 4, 3).permute(2, 0, 3, 1, 4)
            v = self.v(x).view(b, n, 4, 5).transpose(1, 2)
            weights = (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1)
            return self.out((weights @ v).transpose(1, 2).reshape(b, n, 20))

    sizes = sorted(g.size for g in inferred(Attention(), torch.randn(2, 7, 6)).groups)
    assert sizes == [3, 4, 5]


def test_counted_multiply_accumulates_are_those_of_the_layers():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )  # fmt: skip
    analysis = inferred(model, torch.randn(2, 3, 8, 8))
    by_hand = 2 * (8 * 3 * 9 * 64 + 8 * 4 * 9 * 36 + 8 * 36 * 5)
    assert (
        sum(
            c.constant * torch.Size([a.size for a in c.axes]).numel() for c in analysis.contractions
        )
        == by_hand
    )


def test_analyze_prints_groups_members_and_frozen_places():
    text = str(fxprune.analyze(Residual(), torch.randn(1, 3, 8, 8)))
    assert "first.weight[0]" in text
    assert "inner.weight[1]" in text
    assert "a dimension of the model's input" in text


def test_the_group_graph_joins_groups_that_meet_in_a_weight():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = fxprune.analyze(model, torch.randn(1, 3)).graph
    assert dict(graph.nodes(data="size")) == {"0.weight[0]": 4, "2.weight[0]": 5}
    assert graph.edges["0.weight[0]", "2.weight[0]"]["tensors"] == ("2.weight",)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_groups_do_not_depend_on_the_batch_size(batch):
    analysis = inferred(Concatenated(), torch.randn(batch, 3, 4, 4))
    assert [g.size for g in analysis.groups] == [4, 6]


@pytest.mark.parametrize(("run", "gates"), [(torch.lstm, 4), (torch.gru, 3)])
def test_the_fused_cells_of_cuda_have_gates_as_wide_as_the_state(run, gates):
    with FakeTensorMode() as mode:
        tracker = AxisTracker(Fakes(mode))
        shapes = ((5, 2, 6), (1, 2, 7), (7 * gates, 6), (7 * gates, 7), (7 * gates,), (7 * gates,))
        x, state, *weights = given = [torch.empty(shape, device="cuda") for shape in shapes]
        for tensor in given:
            tracker.give(tensor, tuple(tracker.unifier.fresh(size) for size in tensor.shape))
        tracker.flow([x, state])
        states = (state, state) if run is torch.lstm else state
        with torch.no_grad(), unfused_recurrence(), tracker:
            run(x, states, weights, True, 1, 0.0, False, False, False)
        (kept,) = set(tracker.axes_of(weights[1])[1].atoms)
        assert [*tracker.axes_of(weights[0])[0].atoms] == [kept] * gates
        assert tracker.unifier.reason(kept) is None
