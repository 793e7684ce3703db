"""Merged spans in the whole pipeline: found, weighed, chosen, replayed, verified."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune import judge, prepare, stopwatch
from fxprune.backends import Backend
from fxprune.compiled import Compiled
from fxprune.errors import PlanMismatch, VerificationError
from fxprune.measurement import Measurement
from fxprune.passes import kernel_clock, verify_merged
from fxprune.passes.allocate import plan_of
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import capture
from fxprune.passes.depth_value import loss_rise
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import infer
from fxprune.passes.layers import find_layers
from fxprune.passes.merge import MERGED, merge_spans, spans_of
from fxprune.passes.merges import find_merges, spans_named, without_activations
from fxprune.passes.slim import slim
from fxprune.passes.verify_merged import verify_merged as verify
from fxprune.probe import Memory
from tests.networks import images, labelled, small_resnet

QUIET = lambda what, done, total: None  # noqa: E731


def analysed(model, x):
    captured = capture(model, x)
    analysis = infer(captured)
    layers = find_layers(captured.module, analysis)
    return captured, analysis, layers, find_merges(captured, analysis, layers)


class Launches(Backend):
    """On paper, a kernel takes a millisecond to start, and a microsecond per thousand weights."""

    name = "launches"

    def unavailable(self):
        return None

    def version(self):
        return "1"

    def device(self, device_type="cpu"):
        return "paper"

    def compile(self, module, example_inputs, settings=None):
        return module

    def build(self, module, inputs, settings, signature):
        raise NotImplementedError

    def restore(self, path):
        raise NotImplementedError


def seconds(module):
    kernels = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(1e-3 + 1e-9 * kernel.weight.numel() for kernel in kernels)


@pytest.fixture
def paper(monkeypatch, tmp_path):
    """`optimize` on a backend whose latencies are a formula."""

    def told(engine, *rest):
        return Measurement(seconds(engine), 0.0, (seconds(engine),) * 2, "cpu", True, in_turn=True)

    def in_turn(networks, *rest):
        return {name: told(engines[0]) for name, engines in networks.items()}

    monkeypatch.setattr(kernel_clock, "measure", told)
    monkeypatch.setattr(stopwatch, "measure_interleaved", in_turn)
    monkeypatch.setattr(
        stopwatch.Compiled, "of", lambda backend, settings, module, *rest: Compiled(module, None, 0)
    )
    monkeypatch.setattr(stopwatch, "set_up", lambda *networks: [(n.engine,) for n in networks])
    monkeypatch.setattr(sys.modules["fxprune.optimize"], "summarise", lambda *found: None)

    def run(model, budget, **options):
        options = {"merge_layers": True, "progress": False} | options
        path = str(tmp_path / "cache")
        return fxprune.optimize(
            model, budget, (images(1),), backend=Launches(), cache=path, **options
        )

    return run


def merged_convolutions(module):
    return [part for span in spans_of(module) for part in span.convolutions]


def test_layers_are_merged_where_fewer_kernels_are_faster(paper):
    module = paper(small_resnet(8), "70% latency", drop_blocks=False)
    assert merged_convolutions(module)
    assert seconds(fxprune.finalize(module)) <= 0.7 * seconds(small_resnet(8))


def test_what_is_returned_can_be_trained_and_finalised(paper):
    module = paper(small_resnet(8), "70% latency", drop_blocks=False)
    names = dict(small_resnet(8).named_parameters())
    assert set(dict(module.named_parameters())) <= set(names)
    x, y = labelled(1)[0]
    F.cross_entropy(module.train()(x), y).backward()
    assert all(p.grad is not None for p in module.parameters())
    final = fxprune.finalize(module.eval().double())
    assert final.meta[MERGED]
    torch.testing.assert_close(final(x.double()), module(x.double()), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.* stay whatever is slimmed")
def test_layers_are_merged_only_if_they_may(paper):
    assert not merged_convolutions(paper(small_resnet(8), "70% latency", merge_layers=False))
    kept = paper(small_resnet(8), "80% latency", drop_blocks=False, ignore=["blocks.0.*"])
    assert merged_convolutions(kept)
    assert not any("blocks_0" in name for name in merged_convolutions(kept))


def test_without_data_nothing_is_merged_unless_asked_for(paper):
    assert not merged_convolutions(paper(small_resnet(8), "70% latency", merge_layers=None))


def test_depth_alone_can_be_chosen(paper):
    model = small_resnet(8)
    module = paper(model, "80% latency", narrow_layers=False, drop_blocks=False)
    assert merged_convolutions(module)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in module.named_parameters()} == shapes


def test_a_plan_with_merged_layers_is_replayed(paper):
    model = small_resnet(8)
    first = paper(model, "70% latency")
    plan = fxprune.Plan.from_json(first.meta["fxprune"]["plan"].to_json())
    again = fxprune.apply(model, plan, (images(1),))
    assert plan.merged
    assert spans_of(again) == spans_of(first)
    x = images(2)
    torch.testing.assert_close(fxprune.finalize(again)(x), fxprune.finalize(first)(x))


def test_a_network_with_merged_layers_can_be_saved_and_loaded(paper, tmp_path):
    model = small_resnet(8)
    plan = paper(model, "70% latency").meta["fxprune"]["plan"]
    module = fxprune.apply(model, plan, (images(1),))
    fxprune.save(module, tmp_path / "slim.safetensors")
    loaded = fxprune.load(tmp_path / "slim.safetensors", small_resnet(8), (images(1),))
    assert spans_of(loaded) == spans_of(module) != ()
    torch.testing.assert_close(loaded.eval()(images(2)), module.eval()(images(2)))


def test_a_plan_for_another_chain_is_refused():
    captured = capture(small_resnet(8), images(1))
    with pytest.raises(PlanMismatch, match="no chain here"):
        spans_named(captured, [("blocks_0_conv1", "nothing_like_it")])


def test_a_span_behind_a_dropped_block_reads_what_the_block_read():
    captured, analysis, _, merges = analysed(small_resnet(8), images(1))
    blocks = find_blocks(captured.module, analysis)
    (merge,) = [
        m
        for m in merges
        if m.span.convolutions == ("blocks_1_conv1", "blocks_1_conv2", "blocks_1_project")
    ]
    sizes = {group.atom: max(1, group.size // 2) for group in analysis.groups}
    importance = magnitude(captured.module, analysis)
    plan = plan_of(sizes, analysis, importance, {}, blocks[:1], [merge])
    module = without_activations(slim(captured, analysis, plan), [merge.span])
    assert verify(module, (images(1),)) < 1e-9
    assert len(spans_of(module)) == 1


def test_the_merged_kernel_is_that_of_the_merged_layer():
    """At any widths, and with the activation and the residual that follow."""
    captured, analysis, _, merges = analysed(small_resnet(8), images(2))
    sizes = {group.atom: max(1, group.size - 3) for group in analysis.groups}
    plan = plan_of(sizes, analysis, magnitude(captured.module, analysis), {})
    for merge in merges:
        module = without_activations(slim(captured, analysis, plan), [merge.span])
        final = merge_spans(module, spans_of(module))
        region = merge.layer.at(sizes)
        layer = final.get_submodule(merge.layer.weight.removesuffix(".weight"))
        assert (region.in_width, region.out_width) == (layer.in_channels, layer.out_channels)
        assert (region.kernel, region.stride) == (layer.kernel_size, layer.stride)
        assert (region.padding, region.groups) == (layer.padding, layer.groups)
        assert region.activation in (None, "relu")


def test_a_wrong_merge_is_noticed(monkeypatch):
    captured, analysis, _, merges = analysed(small_resnet(8), images(1))
    plan = plan_of({g.atom: g.size for g in analysis.groups}, analysis, None, {}, choose=whole)
    module = without_activations(slim(captured, analysis, plan), [merges[0].span])

    def wrong(module, spans):
        result = merge_spans(module, spans)
        next(m for m in result.modules() if isinstance(m, nn.Conv2d)).weight.data[0, 0] += 1e-6
        return result

    monkeypatch.setattr(verify_merged, "merge_spans", wrong)
    with pytest.raises(VerificationError, match="merged network differs"):
        verify(module, (images(1),))


class Chaotic(nn.Module):
    """Pairs of layers that become one; each pair magnifies what differs in its input, round-off
    too, some ten times."""

    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.LayerNorm(12))
            for _ in range(14)
        )

    def forward(self, x):
        for pair in self.pairs:
            x = torch.sin(20 * pair(x))
        return x


def all_merged(model, x):
    captured, _, _, merges = analysed(model, x)
    return without_activations(captured.module, [merge.span for merge in merges])


def test_round_off_that_grows_through_the_network_is_no_fault_of_the_merge():
    torch.manual_seed(0)
    x = torch.randn(4, 12)
    module = all_merged(Chaotic().eval(), x)
    assert len(spans_of(module)) == 14
    assert verify(module, (x,)) < 1e-12


def test_a_wrong_merge_in_such_a_network_is_noticed_right_behind_it(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(4, 12)
    module = all_merged(Chaotic().eval(), x)

    def wrong(module, spans):
        result = merge_spans(module, spans)
        result.get_submodule("pairs.7.0").bias.data[3] += 1e-6
        return result

    monkeypatch.setattr(verify_merged, "merge_spans", wrong)
    with pytest.raises(VerificationError, match="at pairs_7_3"):
        verify(module, (x,))


def whole(analysis, importance, sizes, gone):
    return {group.atom: torch.arange(group.size).numpy() for group in analysis.groups}


# -- what a span loses -----------------------------------------------------------------------------


def linear_at_places(model):
    """`model` with its first block's inner activation far from its kink: dropping it is free."""
    model = copy.deepcopy(model)
    nn.init.constant_(model.blocks[0].norm1.bias, 50.0)
    return model


def judged_by_loss(model, tmp_path):
    captured, analysis, _, merges = analysed(model.eval(), images(2))
    data = labelled(2)
    return judge.by_damage(
        merges,
        captured,
        analysis,
        magnitude(captured.module, analysis),
        loss_rise(captured.module, data, F.cross_entropy),
        Memory.of(captured.module, data, "loss", str(tmp_path / "cache")),
        QUIET,
    )


def inner(merges, block):
    names = (f"blocks_{block}_conv1", f"blocks_{block}_conv2")
    return next(m.loss for m in merges if m.span.convolutions == names)


def test_an_activation_that_does_nothing_is_free_by_every_measure(tmp_path):
    model = linear_at_places(small_resnet(8))
    captured, analysis, layers, merges = analysed(model, images(2))
    importance = magnitude(captured.module, analysis)
    guessed = judge.by_guess(merges, captured.module, layers, importance)
    assert inner(guessed, 0) == pytest.approx(0, abs=1e-9)
    assert inner(guessed, 2) > 1
    assert inner(judged_by_loss(model, tmp_path), 0) == pytest.approx(0, abs=0.05)


def test_damage_is_read_in_points_off_narrower_networks():
    hurt, points = [0.0, 1.0, 3.0], [0.0, 20.0, 40.0]
    found = [judge._read(damage, hurt, points) for damage in (0.0, 0.5, 2.0, 6.0)]
    assert found == [0.0, 10.0, 30.0, 80.0]


def test_lossless_spans_are_not_judged():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    captured, analysis, layers, merges = analysed(model.eval(), torch.zeros(1, 3, 4, 4))
    importance = magnitude(captured.module, analysis)
    found = judge.by_guess(merges, captured.module, layers, importance)
    losses = {m.span.convolutions: m.loss for m in found}
    assert losses["_0", "_1"] == 0
    assert losses["_1", "_3"] > 0


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "loss"), ({"importance": "magnitude"}, "outputs")]
)
def test_with_data_spans_are_judged_by_the_loss_or_the_outputs(
    monkeypatch, paper, options, expected
):
    seen = []
    for name, told in (("loss_rise", "loss"), ("disagreement", "outputs")):
        real = getattr(prepare, name)

        def noted(*args, real=real, told=told, **kwargs):
            seen.append(told)
            return real(*args, **kwargs)

        monkeypatch.setattr(prepare, name, noted)
    paper(small_resnet(8), "80% latency", data=labelled(2), **options)
    assert seen == [expected]
