"""Latency tables on a formula in place of a clock."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.backends import Region, Settings
from fxprune.backends.profiles import OVERHEAD
from fxprune.budget import Budget
from fxprune.cache import Cache
from fxprune.errors import BackendError
from fxprune.gauges import LatencyGauge
from fxprune.measurement import Measurement
from fxprune.passes import kernel_clock, kernels, latency, stairs, together
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.layers import find_layers
from fxprune.stopwatch import Times
from tests.networks import images, small_resnet


def seconds_of(region: Region) -> float:
    """Linear in both widths, so that interpolation must be exact."""
    return 1e-6 * (1 + region.in_width * region.out_width / region.groups)


class FormulaBackend:
    """Stands in for a backend: an engine is the region it was made from."""

    name = "formula"

    def __init__(self):
        self.compiled = []

    def device(self, device_type="cpu"):
        return "paper"

    def version(self):
        return "1"

    def region_seconds(self, regions, settings, device):
        return None

    def compile_region(self, region, settings, device):
        self.compiled.append(region)
        return region


@pytest.fixture
def formula(monkeypatch):
    def measured(engine, inputs, timing):
        return SimpleNamespace(seconds=seconds_of(engine), spread=0.0)

    monkeypatch.setattr(kernel_clock, "measure", measured)
    return FormulaBackend()


def prepared(model, x, multiple_of=4):
    captured = capture(model, x)
    analysis = infer(captured)
    layers = find_layers(captured.module, analysis)
    choices = Choices(build_ladders(analysis, multiple_of))
    return captured, analysis, layers, choices


class Telling(FormulaBackend):
    """Tells what regions take in a network, but not what some cannot be asked for."""

    def __init__(self, refused=lambda regions: False):
        super().__init__()
        self.asked, self.refused = [], refused

    def region_seconds(self, regions, settings, device):
        self.asked.append(regions)
        if self.refused(regions):
            raise BackendError("the kernels crashed")
        return [seconds_of(region) for region in regions]


def measured(backend, path, model=None):
    _, _, layers, choices = prepared(model or small_resnet(16), images(1))
    with Cache(path / "cache.sqlite") as cache:
        return kernels.measure_layers(layers, choices, backend, Settings(), "cpu", 4, cache)


def test_regions_fuse_norm_residual_and_activation():
    _, _, layers, _ = prepared(small_resnet(16), images(2))
    found = {layer.weight: layer for layer in layers}
    first = found["blocks.0.conv1.weight"]
    assert first.fused == ("blocks_0_conv1", "blocks_0_norm1", "relu")
    assert (first.region.activation, first.region.residual) == ("relu", False)
    second = found["blocks.0.conv2.weight"]
    assert (second.region.activation, second.region.residual) == ("relu", True)
    # The projection meets the branch in an addition, which runs in the later kernel only.
    both = [found["blocks.1.conv2.weight"], found["blocks.1.project.weight"]]
    assert sorted(layer.region.residual for layer in both) == [False, True]


def test_a_region_knows_its_widths_after_slimming():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, groups=4), nn.Conv2d(24, 2, 1))
    _, analysis, layers, _ = prepared(model, images(1))
    sizes = {g.atom: {4: 3, 3: 2, 6: 5}[g.size] for g in analysis.groups}
    region = layers[1].at(sizes)
    assert (region.in_width, region.out_width, region.groups) == (6, 15, 3)
    assert region == replace(layers[1].region, in_width=6, out_width=15, groups=3)


@pytest.mark.parametrize(
    "model",
    [
        small_resnet(16),
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 2, 1)),
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(32, 2, 1)),
    ],
)
def test_tables_agree_with_the_kernels_at_every_width(model, formula, tmp_path):
    captured, analysis, layers, choices = prepared(model, images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    dense = sum(seconds_of(layer.region) for layer in layers)
    built = latency.build_latency_model(captured.module, analysis, choices, tables, dense, None)
    assert built.tables.at(dict.fromkeys(choices.domains, -1)) == pytest.approx(dense)
    for option in (0, 1):
        sizes = {atom: rung.widths[option] for atom, rung in choices.ladders.items()}
        by_layer = built.by_layer(sizes)
        for layer in layers:
            assert by_layer[layer.node] == pytest.approx(seconds_of(layer.at(sizes)), rel=1e-6)


def test_the_sum_of_kernels_never_exceeds_the_whole_network(formula, tmp_path):
    captured, analysis, layers, choices = prepared(small_resnet(16), images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    alone = sum(seconds_of(layer.region) for layer in layers)
    built = latency.build_latency_model(captured.module, analysis, choices, tables, alone / 2, None)
    assert [inside.scale for inside in built.layers] == pytest.approx([0.5] * len(layers))
    assert sum(built.by_layer({}).values()) == pytest.approx(alone / 2)


def test_what_no_layer_takes_shrinks_with_the_tensors_between(formula, tmp_path):
    captured, analysis, layers, choices = prepared(small_resnet(16), images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    alone = sum(seconds_of(layer.region) for layer in layers)
    built = latency.build_latency_model(captured.module, analysis, choices, tables, 2 * alone, None)
    assert built.tables.constant == 0
    assert built.tables.at(dict.fromkeys(choices.domains, -1)) == pytest.approx(2 * alone)
    narrow = dict.fromkeys(choices.domains, 0)
    sizes = {atom: rung.widths[0] for atom, rung in choices.ladders.items()}
    between = built.tables.at(narrow) - sum(built.by_layer(sizes).values())
    assert 0 < between < 0.5 * alone


def test_a_profile_puts_layers_and_what_lies_between_right(formula, tmp_path):
    captured, analysis, layers, choices = prepared(small_resnet(16), images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    profile = {layer.node: 2 * seconds_of(layer.region) for layer in layers} | {"mean": 3e-6}
    copied = profile | {"[reorder]": 1e-6}
    dense = 1.5 * sum(copied.values())
    built = latency.build_latency_model(captured.module, analysis, choices, tables, dense, copied)
    assert built.tables.at(dict.fromkeys(choices.domains, -1)) == pytest.approx(dense)
    told = {name: 1.5 * seconds for name, seconds in profile.items() if name != "mean"}
    assert built.by_layer({}) == pytest.approx(told)


def test_no_width_changes_what_a_call_takes_besides_its_kernels(formula, tmp_path):
    captured, analysis, layers, choices = prepared(small_resnet(16), images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    profile = {layer.node: seconds_of(layer.region) for layer in layers} | {OVERHEAD: 3e-6}
    dense = 2 * sum(profile.values())
    built = latency.build_latency_model(captured.module, analysis, choices, tables, dense, profile)
    assert built.tables.at(dict.fromkeys(choices.domains, -1)) == pytest.approx(dense)
    narrow = dict.fromkeys(choices.domains, 0)
    sizes = {atom: rung.widths[0] for atom, rung in choices.ladders.items()}
    besides = built.tables.at(narrow) - sum(built.by_layer(sizes).values())
    assert besides == pytest.approx(6e-6)


def test_a_backend_that_tells_kernels_from_networks_is_asked_first(tmp_path):
    class Slow(FormulaBackend):
        def region_seconds(self, regions, settings, device):
            return [2 * seconds_of(region) for region in regions]

    backend = Slow()
    (first, *_) = measured(backend, tmp_path)
    assert backend.compiled == []
    assert first.at({}) == pytest.approx(2 * seconds_of(first.layer.region))


def test_nothing_is_measured_twice(formula, tmp_path):
    _, _, layers, choices = prepared(small_resnet(16), images(1))
    for _ in range(2):
        with Cache(tmp_path / "cache.sqlite") as cache:
            kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    signatures = [region.signature() for region in formula.compiled]
    assert len(signatures) == len(set(signatures))


def test_a_layer_that_keeps_its_widths_is_measured_once(formula, tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    captured = capture(model, torch.randn(1, 3))
    analysis = infer(captured)
    layers = find_layers(captured.module, analysis)
    with Cache(tmp_path / "cache.sqlite") as cache:
        (table,) = kernels.measure_layers(layers, Choices({}), formula, Settings(), "cpu", 4, cache)
    assert len(formula.compiled) == 1
    assert table.at({}) == pytest.approx(seconds_of(layers[0].region))


def test_outside_of_what_was_measured_latency_stays_positive():
    layer = SimpleNamespace(region=SimpleNamespace(groups=1))
    plain = (stairs.none(4),) * 2
    table = kernels.LayerLatency(layer, ((8, 16), (4,)), np.array([[1.0], [9.0]]), plain)
    assert table(np.array([8, 12, 16, 1]), np.array(4), np.array(8)).tolist() == [
        1.0,
        5.0,
        9.0,
        0.1,
    ]


def stepped(region: Region) -> float:
    """Inputs in blocks of 16 channels, outputs in blocks of 8, and a start that costs extra."""
    width_in, width_out = (
        -(-width // block) * block
        for width, block in ((region.in_width, 16), (region.out_width, 8))
    )
    return 1e-6 * (20 + width_in * width_out / region.groups)


def test_stairs_are_found_where_there_are_some_and_nowhere_else():
    widths = stairs.probes(200, 4)
    found = stairs.fit([-(-width // 16) * 16.0 for width in widths], 4)
    assert (found.period, found.step) == (64, 16)
    assert found(np.array([16, 20, 24, 28, 32, 100])).tolist() == [16, 32, 32, 32, 32, 112]
    assert stairs.fit([7.0 + width for width in widths], 4).step == 4
    assert stairs.fit([7.0 for _ in widths], 4).step == 4


def test_noise_makes_no_stairs():
    rng = np.random.default_rng(0)
    widths = np.array(stairs.probes(200, 8))
    for _ in range(50):
        found = stairs.fit((widths * rng.normal(1, 0.007, len(widths))).tolist(), 8)
        assert max(found.extra) < 4


def test_noise_makes_no_large_steps():
    rng = np.random.default_rng(0)
    widths = np.array(stairs.probes(200, 8))
    for _ in range(50):
        found = stairs.fit((widths * rng.normal(1, 0.01, len(widths))).tolist(), 8)
        assert found.step <= 16


def test_measured_widths_lie_apart():
    coordinate = kernels._Coordinate(size=512, least=8, unit=8, free=True, stepped=True)
    corners = coordinate.corners((1 / 64, 1 / 32, 0.5, 1.0), stairs.none(8))
    assert corners[-2:] == (256, 512)
    assert np.diff(corners).min() >= 16


def test_a_width_that_is_slower_than_a_wider_one_is_told():
    seconds = [width * (1.25 if width % 8 else 1.0) for width in stairs.probes(200, 4)]
    found = stairs.fit(seconds, 4)
    assert found.step == 8
    assert found(132) > found(136)


def test_narrow_layers_have_no_room_for_stairs():
    assert stairs.probes(15, 8) == []
    assert stairs.fit([], 8).step == 8
    assert stairs.probes(64, 8) == [64, 56, 48, 40, 32]


@pytest.mark.parametrize("out", [64, 100])
def test_tables_keep_the_stairs_and_need_few_measurements(out, formula, monkeypatch, tmp_path):
    monkeypatch.setattr(
        kernel_clock, "measure", lambda engine, *_: SimpleNamespace(seconds=stepped(engine))
    )
    model = nn.Sequential(nn.Conv2d(3, 160, 1), nn.Conv2d(160, out, 1), nn.Conv2d(out, 2, 1))
    _, _, layers, choices = prepared(model, images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
    for width_in in range(4, 161, 4):
        for width_out in range(4, out + 1, 4):
            told = tables[1](np.array(width_in), np.array(width_out), np.array(width_in))
            region = layers[1].region.with_widths(width_in, width_out)
            assert told == pytest.approx(stepped(region), rel=1e-6), (width_in, width_out)
    assert len(formula.compiled) < 60


def test_more_is_measured_where_a_straight_line_misses(formula, monkeypatch, tmp_path):
    monkeypatch.setattr(
        kernel_clock, "measure", lambda engine, *_: SimpleNamespace(seconds=engine.out_width**1.5)
    )
    model = nn.Sequential(nn.Conv2d(3, 160, 1), nn.Conv2d(160, 2, 1))
    _, _, layers, choices = prepared(model, images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        first, second = kernels.measure_layers(
            layers, choices, formula, Settings(), "cpu", 4, cache
        )
    assert [len(corner) for corner in first.corners] == [1, 5]
    assert [len(corner) for corner in second.corners] == [3, 1]


def test_latencies_that_are_all_noise_still_make_a_table(formula, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        kernel_clock, "measure", lambda *_: SimpleNamespace(seconds=rng.uniform(1e-4, 2e-4))
    )
    model = nn.Sequential(nn.Conv2d(3, 160, 1), nn.Conv2d(160, 64, 1), nn.Conv2d(64, 2, 1))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, _, layers, choices = prepared(model, images(1))
        with Cache(tmp_path / f"{seed}.sqlite") as cache:
            tables = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 4, cache)
        widths = np.arange(4, 65, 4)
        told = tables[1](np.array(80), widths, np.array(80))
        assert (told > 0).all()
        assert (told < 1e-3).all(), "a slope between two corners on one tread"


def test_corners_stand_on_different_treads():
    blurred = stairs.Stairs(
        8, (0.0, 8.0, 0.0, 8.0, 11.7, 13.5, 2.7317073170731736, 10.731707317073157)
    )
    coordinate = kernels._Coordinate(size=24, least=8, unit=8, free=True, stepped=True)
    assert blurred(16) - blurred(8) < 1e-9
    assert coordinate.corners((0.33, 0.67, 1.0), blurred) == (16, 24)


def test_a_layer_is_measured_at_the_narrowest_width_that_it_may_have(formula, tmp_path):
    """With few channels that is less than one step; a line from wider ones leads anywhere."""
    model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 2, 1))
    _, _, layers, choices = prepared(model, images(1), multiple_of=16)
    (ladder,) = (ladder for ladder in choices.ladders.values() if ladder.group.size == 24)
    with Cache(tmp_path / "cache.sqlite") as cache:
        first, _ = kernels.measure_layers(layers, choices, formula, Settings(), "cpu", 16, cache)
    assert ladder.widths[0] == 4
    assert first.corners[1][0] == 4


class ScriptedWatch:
    """Hands out the looks that it is told to have taken, all of them, until that is enough."""

    def __init__(self, *shares_by_time, afterwards=()):
        self.shares_by_time = shares_by_time
        self.afterwards = afterwards
        self.times = 0

    def time(self, slim, enough):
        return self._measured(self.shares_by_time, enough, [])

    def again(self, slim, enough):
        before = [share for some in self.shares_by_time[: self.times] for share in some]
        return self._measured(self.afterwards, enough, before)

    def _measured(self, shares_by_time, enough, shares):
        for some in shares_by_time:
            self.times += 1
            shares += some
            if enough(found := beside_dense(shares)):
                break
        return found


def beside_dense(shares):
    """Looks at a slim network, each beside a dense one that always takes a second."""
    return Times(tuple((turns(1.0), turns(share)) for share in shares))


def turns(seconds):
    """A measurement of several turns that all take as long."""
    return Measurement.of_turns([seconds] * 5, "cpu")


def used(watch, limit=0.6, relative=True):
    timed = SimpleNamespace(seconds=2.0, watch=watch)
    return LatencyGauge(Budget("latency", limit, relative=relative), timed).actual(None, None)


def test_a_latency_in_seconds_is_the_mean_of_what_looks_found():
    assert used(ScriptedWatch([0.5, 0.52] * 8), 0.6, relative=False) == pytest.approx(0.26**0.5)


@pytest.mark.parametrize("share", [0.58, 0.602])
def test_a_clear_latency_outside_of_the_window_is_measured_once(share):
    watch = ScriptedWatch([share] * 8)
    assert used(watch) == pytest.approx(2 * share)
    assert watch.times == 1


def test_a_latency_in_the_window_is_set_up_and_measured_once_more_and_both_count():
    watch = ScriptedWatch([0.59] * 8, afterwards=[[0.585] * 16])
    assert used(watch) == pytest.approx(2 * (8 * 0.59 + 16 * 0.585) / 24, rel=1e-4)
    assert watch.times == 2


def test_a_latency_in_the_window_is_to_be_known_better_the_second_time():
    clear_to_one_per_cent = np.linspace(0.575, 0.605, 16).tolist()
    watch = ScriptedWatch(clear_to_one_per_cent, afterwards=[clear_to_one_per_cent, [0.586] * 99])
    used(watch)
    assert watch.times == 3


def test_a_latency_clearly_outside_of_the_window_is_measured_once():
    watch = ScriptedWatch([0.5, 0.55, 0.45, 0.52] * 2)
    used(watch)
    assert watch.times == 1


def test_an_unclear_latency_is_measured_again_even_where_it_lies_inside():
    watch = ScriptedWatch(np.linspace(0.575, 0.612, 8).tolist(), [0.601] * 300, [0.601] * 9)
    assert used(watch) == pytest.approx(1.202, rel=1e-3)
    assert watch.times == 2


def test_a_latency_that_is_not_clear_yet_is_measured_on():
    watch = ScriptedWatch(*[np.linspace(0.57, 0.68, 8).tolist()] * 2)
    used(watch)
    assert watch.times == 2


def test_kernels_are_timed_side_by_side_as_many_each_time(tmp_path):
    backend = Telling()
    tables = measured(backend, tmp_path)
    references, *asked = backend.asked
    assert {*references} == {*together.REFERENCES}
    assert {len(some) for some in asked} == {together.TOGETHER}
    assert all({*some} > {*references} for some in asked)
    assert tables[0].at({}) == pytest.approx(seconds_of(tables[0].layer.region))


def test_a_kernel_that_is_missing_is_timed_with_those_that_are_known(tmp_path):
    narrow = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1))
    measured(Telling(), tmp_path, narrow)
    again = Telling()
    wider = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1))
    measured(again, tmp_path, wider)
    (asked, *_) = again.asked
    assert {(r.in_width, r.out_width) for r in asked} > {(3, 16), (16, 4)}
    once = Telling()
    measured(once, tmp_path, wider)
    assert once.asked == []


class Slowing(Telling):
    """Takes so many times longer than it should, each time that it is asked."""

    def __init__(self, times, refused=lambda regions: False, depthwise=1.0):
        super().__init__(refused)
        self.times, self.depthwise = itertools.cycle(times), depthwise

    def region_seconds(self, regions, settings, device):
        now = next(self.times)
        told = super().region_seconds(regions, settings, device)
        return [
            seconds * now ** (self.depthwise if region.groups > 1 else 1.0)
            for region, seconds in zip(regions, told, strict=True)
        ]


def slower(table):
    """How many times slower a table is than the formula, at all of its widths."""
    layer = table.layer
    told = [seconds_of(region) for region in kernels._regions(layer.region, table.corners)]
    return table.seconds.ravel() / told


def test_all_kernels_are_told_at_the_pace_at_which_references_were_timed_first(tmp_path):
    backend = Slowing([2.0, 1.0, 3.5, 1.7])
    tables = measured(backend, tmp_path)
    assert len(backend.asked) > 4
    for table in tables:
        assert slower(table) == pytest.approx(2.0)


def test_depthwise_kernels_have_a_pace_of_their_own(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 2, 1))
    _, depthwise, last = measured(Slowing([2.0, 1.0, 3.0], depthwise=2.0), tmp_path, model)
    assert slower(depthwise) == pytest.approx(4.0)
    assert slower(last) == pytest.approx(2.0)


def test_kernels_that_are_missing_are_told_at_the_pace_of_those_that_are_known(tmp_path):
    narrow = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1))
    measured(Telling(), tmp_path, narrow)
    wider = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1))
    for table in measured(Slowing([1.8]), tmp_path, wider):
        assert slower(table) == pytest.approx(1.0)


def test_kernels_that_fail_together_are_told_at_the_pace_at_which_they_ran(tmp_path):
    measured(Telling(), tmp_path, nn.Sequential(nn.Conv2d(3, 2, 1)))
    backend = Slowing([2.0, 1.0, 3.5, 1.7], lambda regions: len(regions) > 20)
    for table in measured(backend, tmp_path):
        assert slower(table) == pytest.approx(1.0)
    assert {len(some) for some in backend.asked} >= {32, 20}


def test_kernels_are_timed_together_where_references_cannot_be_timed(tmp_path, caplog):
    backend = Telling(lambda regions: any(r in together.REFERENCES for r in regions))
    for table in measured(backend, tmp_path):
        assert slower(table) == pytest.approx(1.0)
    assert max(len(some) for some in backend.asked if not backend.refused(some)) == 24
    assert [r.levelname for r in caplog.records].count("WARNING") == 1


def test_a_reference_that_a_network_has_as_well_keeps_its_time(tmp_path):
    class Unsteady(Telling):
        """Takes longer for one of the references, each time."""

        def region_seconds(self, regions, settings, device):
            told = super().region_seconds(regions, settings, device)
            linear = together.REFERENCES[-1]
            return [
                len(self.asked) * seconds if region == linear else seconds
                for region, seconds in zip(regions, told, strict=True)
            ]

    captured = capture(nn.Sequential(nn.Linear(512, 512)), torch.randn(1, 512))
    layers = find_layers(captured.module, infer(captured))
    assert layers[0].region == together.REFERENCES[-1]
    with Cache(tmp_path / "cache.sqlite") as cache:
        (table,) = kernels.measure_layers(
            layers, Choices({}), Unsteady(), Settings(), "cpu", 8, cache
        )
    assert table.at({}) == pytest.approx(seconds_of(layers[0].region))


def test_where_no_reference_of_a_kind_was_timed_the_others_tell_the_pace():
    dense, _, depthwise, *_ = together.REFERENCES
    region = Region("linear", 1, 8, 8)
    known = {dense: 1e-6, depthwise: 1e-6}
    both = [(dense, 2e-6), (region, 9e-6), (depthwise, 5e-6)]
    assert together.slowness(region, both, known) == pytest.approx(2)
    assert together.slowness(region, both[1:], known) == pytest.approx(5)
    assert together.slowness(region, both[1:2], known) == 1


def test_few_kernels_are_timed_with_those_of_the_network_that_they_are_to_run_in(tmp_path):
    network = prepared(small_resnet(16), images(1))[2]
    _, _, layers, choices = prepared(nn.Sequential(nn.Conv2d(3, 2, 1)), images(1))
    backend = Telling()
    with Cache(tmp_path / "cache.sqlite") as cache:
        kernels.measure_layers(
            layers, choices, backend, Settings(), "cpu", 4, cache, beside=network
        )
    references, asked = backend.asked
    assert {*references} == {*together.REFERENCES}
    assert {*asked} - {*references} == {layers[0].region, *(layer.region for layer in network)}


def test_kernels_of_many_numbers_are_timed_with_fewer_others(tmp_path, monkeypatch):
    taken = sum(region.numbers for region in together.REFERENCES)
    room = 4 * max(layer.region.numbers for layer in prepared(small_resnet(16), images(1))[2])
    monkeypatch.setattr(together, "MOST_NUMBERS", taken + room)
    backend = Telling()
    measured(backend, tmp_path)
    _, *asked = backend.asked
    numbers = [sum(region.numbers for region in some) - taken for some in asked]
    assert room / 2 < max(numbers) <= room
    monkeypatch.setattr(together, "MOST_NUMBERS", 1)
    backend = Slowing([2.0, 1.0])
    for table in measured(backend, tmp_path / "other"):
        assert slower(table) == pytest.approx(2.0)
    _, *asked = backend.asked
    assert {len({*some} - {*together.REFERENCES}) for some in asked} == {1}


def test_all_tensors_of_a_kernel_count_for_how_many_are_timed_together():
    region = Region("conv", 1, 4, 6, 2, (8, 8), (3, 3), padding=(1, 1), residual=True)
    assert region.numbers == 4 * 64 + 2 * 6 * 64 + 6 * 2 * 9


def test_of_kernels_that_fail_side_by_side_the_one_that_fails_alone_is_named(tmp_path):
    def crashes(regions):
        return any(region.kernel == (1, 1) and region.in_width == 16 for region in regions)

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3))
    with pytest.raises(BackendError, match=r"the kernels crashed\. layer 1\."):
        measured(Telling(crashes), tmp_path, model)


def test_kernels_that_are_too_many_at_once_are_timed_in_halves(tmp_path):
    backend = Telling(lambda regions: len(regions) > 12)
    tables = measured(backend, tmp_path)
    assert {8 + 24, 8 + 12, 8 + 6, 8 + 3} <= {len(some) for some in backend.asked}
    assert tables[0].at({}) == pytest.approx(seconds_of(tables[0].layer.region))
