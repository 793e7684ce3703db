"""Capture: both ways give the same canonical form, and refuse early what cannot be worked on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.errors import CaptureError, InputError
from fxprune.passes.capture import Captured, capture
from fxprune.passes.export import capture_by_export
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from tests.blocks.sequences import Attention
from tests.properties import plan_of


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.drop(F.relu(self.norm(self.conv(x))))
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    """Python control flow over a shape: symbolic tracing stops, export does not."""

    def __init__(self):
        super().__init__()
        self.net = Residual()

    def forward(self, x):
        if x.shape[2] > 4:
            x = x[:, :, ::2, ::2]
        return self.net(x)


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def image():
    return torch.randn(2, 3, 8, 8)


def test_tracing_comes_first_and_gives_an_independent_copy():
    model = Residual()
    captured = capture(model, image())
    assert captured.capture == "symbolic_trace"
    captured.module.conv.weight.data.zero_()
    assert model.conv.weight.abs().sum() > 0


def test_export_takes_over_where_tracing_stops():
    captured = capture(Branching(), image())
    assert captured.capture == "torch.export"
    assert dict(captured.module.named_modules())["net.conv"].kernel_size == (3, 3)


def test_both_ways_keep_names_modules_and_outputs():
    model = Residual().eval()
    x = image()
    traced = capture(model, x).module
    exported, inputs = capture_by_export(model, (x,), {})
    names = sorted(dict(model.named_parameters()))
    assert sorted(dict(traced.named_parameters())) == names
    assert sorted(dict(exported.named_parameters())) == names
    modules = [type(exported.get_submodule(n)) for n in ("conv", "norm", "drop", "head")]
    assert modules == [nn.Conv2d, nn.BatchNorm2d, nn.Dropout, nn.Linear]
    torch.testing.assert_close(exported(*inputs), traced(x))


def test_an_exported_model_takes_other_batch_sizes_even_if_the_example_has_one_sample():
    exported, _ = capture_by_export(Residual().eval(), (image()[:1],), {})
    assert exported(torch.randn(5, 3, 8, 8)).shape == (5, 4)


class OneSample(nn.Module):
    """Its learned queries have a batch of one, which others do not stretch to."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 8))
        self.encode = nn.Linear(5, 8)

    def forward(self, x):
        if x.shape[2] > 4:
            x = self.encode(x)
        return torch.bmm(self.queries, x.transpose(1, 2))


def test_a_model_that_takes_one_sample_only_is_exported_for_one():
    model, x = OneSample().eval(), torch.randn(1, 6, 5)
    with pytest.warns(UserWarning, match="fixes the batch size of 'x' at 1"):
        captured = capture(model, x)
    assert captured.capture == "torch.export"
    assert torch.equal(captured.module(x), model(x))


@pytest.mark.parametrize("way", ["trace", "export"])
def test_dropout_and_batch_norm_follow_the_mode(way):
    model = Residual().eval()
    x = image()
    module = capture(model, x).module if way == "trace" else capture_by_export(model, (x,), {})[0]
    torch.testing.assert_close(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    assert module.norm.num_batches_tracked == 2
    module.eval()
    torch.testing.assert_close(module(x), module(x))


def test_functional_dropout_follows_the_mode_too():
    class Functional(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=self.training)

    module = capture(Functional(), image()).module
    x = image()
    assert torch.equal(module(x), x)
    module.train()
    assert not torch.equal(module(x), x)


def test_the_mode_and_the_statistics_of_the_given_model_are_left_alone():
    model = Residual().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    captured = capture(model, image())
    captured.module.train()(image())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_arguments_with_defaults_and_keywords_are_bound_by_name():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, mask=None, scale=2.0):
            y = self.a(x) * scale
            return self.b(y if mask is None else y * mask)

    model = Optional()
    x, mask = torch.randn(3, 4), torch.rand(3, 4)
    plain = capture(model, x)
    assert plain.module(x).shape == (3, 4)
    masked = capture(model, {"x": x, "mask": mask})
    torch.testing.assert_close(masked.module(x, mask), model(x, mask))


def test_a_model_that_branches_on_its_data_is_refused_with_both_reasons():
    with pytest.raises(CaptureError, match=r"symbolic_trace: .*torch\.export: "):
        capture(DataDependent(), image())


def test_wrong_example_inputs_are_refused_with_their_shapes():
    with pytest.raises(InputError, match=r"\(2, 5, 8, 8\) float32 on cpu"):
        capture(Residual(), torch.randn(2, 5, 8, 8))


@pytest.mark.parametrize("inputs", ["text", 3, (), {}, None])
def test_example_inputs_without_tensors_are_refused(inputs):
    with pytest.raises(InputError, match="example_inputs"):
        capture(Residual(), inputs)


def test_too_many_inputs_are_refused():
    with pytest.raises(InputError, match="example_inputs"):
        capture(Residual(), (image(), image()))


def test_weights_that_are_not_numbers_are_refused_by_name():
    model = Residual()
    model.head.weight.data[1, 2] = float("nan")
    with pytest.raises(InputError, match=r"head\.weight holds NaN"):
        capture(model, image())


def test_a_buffer_may_hold_infinities():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer(
                "mask",
                torch.full((4,), float("-inf")).masked_fill(
                    torch.tensor([True, False, True, False]), 0.0
                ),
            )

        def forward(self, x):
            return torch.softmax(self.layer(x) + self.mask, -1)

    assert capture(Masked(), torch.randn(2, 4)).capture == "symbolic_trace"


def test_compiled_scripted_wrapped_and_quantised_models_are_refused():
    model = Residual().eval()
    with pytest.raises(InputError, match="compiled"):
        capture(torch.compile(model), image())
    with pytest.raises(InputError, match=r"model\.module"):
        capture(nn.DataParallel(model), image())
    with pytest.raises(InputError, match=r"not a torch\.nn\.Module"):
        capture(lambda x: x, image())


def test_a_model_without_real_weights_is_refused():
    with torch.device("meta"):
        model = Residual()
    with pytest.raises(InputError, match="meta device"):
        capture(model, image())
    with pytest.raises(InputError, match="not initialised"):
        capture(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 3))


def test_one_tensor_given_for_two_arguments_stands_for_both():
    class Two(nn.Module):
        def forward(self, x, y):
            return 2 * x + y

    x, y = torch.tensor([[2.0], [3.0]]), torch.tensor([[5.0], [7.0]])
    module, inputs = capture_by_export(Two(), (x, x), {})
    assert len(inputs) == 2
    assert module(x, y).tolist() == [[9.0], [13.0]]


def test_an_exported_attention_runs_at_other_widths_of_queries_and_values():
    """Its kernel is another one then, whose result a view that was exported would not fit."""
    model = Attention(8, 2, 4, "separate", "sdpa", 3).eval()
    x = torch.randn(2, 3, 8)
    module, inputs = capture_by_export(model, (x,), {})
    captured = Captured(module, inputs, "torch.export")
    analysis = infer(captured)
    keys = next(g for g in analysis.groups if g.size == 4)
    plan = plan_of(analysis, {keys.name: (0, 2, 3)})
    assert verify(captured, analysis, plan, slim(captured, analysis, plan)).max_error < 1e-12
