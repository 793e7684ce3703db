"""Networks that a weaker check would let pass: removing what adds nothing must change nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import fxprune
from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify

DEAD = -1e4  # a bias that no input overcomes: the channel is zero behind a ReLU


def without_every_second_channel(model, x):
    captured, analysis = bake(capture(model, x))
    plan = fxprune.Plan(
        {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups},
        {g.name: g.size for g in analysis.groups},
    )
    module = slim(captured, analysis, plan)
    verify(captured, analysis, plan, module)
    return module


class Standardised(nn.Module):
    """A weight that is computed from another one."""

    def __init__(self, compute):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.weight, self.compute = nn.Parameter(torch.randn(3, 8)), compute

    def forward(self, x):
        return F.linear(F.relu(self.first(x)), self.compute(self.weight))


def sequence(wrap):
    return nn.Sequential(wrap(nn.Linear(4, 8)), nn.ReLU(), wrap(nn.Linear(8, 3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequence(lambda layer: layer),
        lambda: sequence(parametrizations.weight_norm),
        lambda: sequence(parametrizations.spectral_norm),
        lambda: Standardised(lambda w: F.normalize(w, dim=1)),
        lambda: Standardised(lambda w: (w - w.mean(1, True)) / w.std(1, keepdim=True)),
        lambda: Standardised(lambda w: w / w.abs().sum()),
        lambda: Standardised(lambda w: w - F.batch_norm(w[None], None, None, training=True)[0]),
    ],
)
def test_removing_dead_channels_changes_nothing(make):
    torch.manual_seed(0)
    model = make().eval()
    first = model[0] if isinstance(model, nn.Sequential) else model.first
    first.bias.data[1::2] = DEAD
    x = torch.randn(5, 4)
    module = without_every_second_channel(model, x)
    torch.testing.assert_close(module(x), model(x))


class Scaled(nn.Module):
    """Divides by a number that depends on the batch and on a width."""

    def __init__(self, count):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.count = count

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.last(y) * 100 / self.count(y)


@pytest.mark.parametrize(
    "count",
    [
        lambda y: y.numel(),
        lambda y: y.shape[0] * y.shape[1],
        lambda y: y.size(1) ** 0.5,
        lambda y: y.flatten().shape[0],
    ],
)
def test_numbers_from_sizes_follow_the_batch_but_not_the_width(count):
    torch.manual_seed(0)
    model = Scaled(count).eval()
    model.first.bias.data[1::2] = DEAD
    module = without_every_second_channel(model, torch.randn(2, 3, 4, 4))
    assert module.first.out_channels == 4
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 4, 4)
        torch.testing.assert_close(module(x), model(x))


class FoldedHeads(nn.Module):
    """Attention with its heads folded into the batch, as `nn.MultiheadAttention` does."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 36), nn.Linear(12, 6)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, 3).permute(2, 0, 3, 1, 4)
        q, k, v = (t.reshape(b * 4, n, 3) for t in (q, k, v))
        y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        y = y.view(b, y.shape[0] // b, n, 3).transpose(1, 2)
        return self.out(y.reshape(b, n, 12))


@pytest.mark.parametrize("example", [1, 2])
def test_heads_folded_into_the_batch_do_not_fix_it(example):
    torch.manual_seed(0)
    module = without_every_second_channel(FoldedHeads().eval(), torch.randn(example, 5, 6))
    assert module.out.in_features < 12
    samples = torch.randn(4, 5, 6)
    one_by_one = torch.cat([module(sample[None]) for sample in samples])
    torch.testing.assert_close(module(samples), one_by_one)


def test_a_batch_size_that_export_has_to_fix_is_told():
    model = Scaled(lambda y: len(y) * y.size()[1]).eval()
    with pytest.warns(UserWarning, match="fixes the batch size of 'x' at 2"):
        capture(model, torch.randn(2, 3, 4, 4))


def test_a_module_kept_whole_for_its_training_mode_hides_no_shapes():
    class Folding(nn.Module):
        def forward(self, x):
            return x if self.training else x.view(-1, 2, 4).sum(1)

    model = nn.Sequential(nn.Linear(3, 8), Folding(), nn.Linear(4, 2)).eval()
    analysis = infer(capture(model, torch.randn(5, 3)))
    assert analysis.groups == ()
    assert any("out of sight" in str(reason) for reason in analysis.reasons.values())


def test_counters_in_forward_are_not_advanced_by_looking_at_the_model():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return self.layer(x) + self.calls

    model = Counting()
    captured = capture(model, torch.randn(2, 4))
    assert model.calls == 0
    assert captured.module.calls == 0


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Conv2d(3, 4, 1), torch.randn(0, 3, 4, 4), "empty tensor"),
        (
            type("Silent", (nn.Module,), {"forward": lambda self, x: None})(),
            torch.ones(1),
            "no ten",
        ),
    ],
)
def test_models_and_inputs_that_say_nothing_are_refused(model, inputs, message):
    with pytest.raises(fxprune.InputError, match=message):
        capture(model, inputs)


def test_the_default_loss_refuses_regression_targets():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    data = [(torch.randn(8, 4), torch.randn(8, 1))]
    with pytest.raises(fxprune.InputError, match="class numbers"):
        fxprune.optimize(model, "50% MACs", data=data, progress=False)


def test_a_stream_of_data_is_not_used_up_by_looking_at_its_first_batch():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    stream = ((torch.randn(8, 4), torch.arange(8) % 2) for _ in range(1))
    module = fxprune.optimize(model, "70% MACs", data=stream, multiple_of=1, progress=False)
    assert module(torch.randn(3, 4)).shape == (3, 2)


class EvoNorm(nn.Module):
    """Divides channels by the deviation of their group, whose width is computed from a size."""

    def __init__(self, channels, groups):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 2, 1)
        self.groups = groups

    def forward(self, x):
        x = self.first(x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.groups, channels // self.groups, height, width)
        x = x / (x.var((2, 3, 4), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return self.last(x.reshape(batch, channels, height, width))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_group_width_may_be_computed_from_fewer_channels_than_there_were_groups(batch):
    torch.manual_seed(0)
    model = EvoNorm(16, 8).eval()
    x = torch.randn(batch, 3, 4, 4)
    module = without_every_second_channel(model, x)
    assert module.first.out_channels < model.groups
    assert module(x).shape == model(x).shape
