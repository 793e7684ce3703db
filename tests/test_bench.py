"""What the cache keeps of slim networks that were profiled."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch import nn

from fxprune import bench, prepare, rehearse
from fxprune.backends import Settings, get_backend
from fxprune.bench import Bench
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.seen import Seen
from fxprune.prepare import Options
from tests.networks import images, small_resnet


def quiet(what, done, total):
    del what, done, total


def understood(model, *inputs):
    captured = capture(model, inputs)
    return captured, infer(captured)


@pytest.fixture
def place(tmp_path):
    path = str(tmp_path / "cache")
    return Bench(get_backend("onnxruntime"), Settings(), "cpu", 4, path, quiet)


def seen(analysis, width):
    sizes = {group.atom: min(width, group.size) for group in analysis.groups}
    kernels = ((("conv1",), 0.5), (("layer1_0_conv1", "layer1_0_conv2"), 0.25))
    nodes = frozenset({"conv1", "mean"})
    return Seen(sizes, kernels, {"mean": 0.125}, 0.0625, nodes, overhead=0.03125)


def test_what_was_seen_is_recalled_at_the_pace_of_the_dense_network(place):
    captured, analysis = understood(small_resnet(16), images(1))
    found = seen(analysis, 8)
    place.keep_seen(captured, analysis, 2.0, found)
    again, fresh = understood(small_resnet(16), images(1))
    (recalled,) = place.recall_seen(again, fresh, 4.0)
    names = {group.name: recalled.sizes[group.atom] for group in fresh.groups}
    assert names == {group.name: found.sizes[group.atom] for group in analysis.groups}
    assert recalled.kernels == found.scaled(2.0).kernels
    assert (recalled.between, recalled.left) == ({"mean": 0.25}, 0.125)
    assert recalled.overhead == 0.0625
    assert recalled.nodes == found.nodes


def test_of_networks_with_like_latencies_the_latest_are_kept_each_once(place, monkeypatch):
    monkeypatch.setattr(bench, "KEPT", 2)
    captured, analysis = understood(small_resnet(16), images(1))
    four, eight, twelve = (seen(analysis, width) for width in (4, 8, 12))
    faster = seen(analysis, 4).scaled(0.5)
    faster = replace(faster, nodes=frozenset({"conv1"}))
    for found in (faster, four, eight, four, twelve):
        place.keep_seen(captured, analysis, 1.0, found)
    assert place.recall_seen(captured, analysis, 1.0) == (faster, four, twelve)


def test_networks_that_another_version_took_apart_otherwise_tell_nothing(place):
    captured, analysis = understood(small_resnet(16), images(1))
    place.keep_seen(captured, analysis, 1.0, seen(analysis, 8))
    fewer = SimpleNamespace(groups=analysis.groups[1:])
    assert place.recall_seen(captured, fewer, 1.0) == ()


def test_nothing_is_recalled_of_a_network_of_another_structure(place):
    captured, analysis = understood(small_resnet(16), images(1))
    place.keep_seen(captured, analysis, 1.0, seen(analysis, 8))
    assert place.recall_seen(*understood(small_resnet(8), images(1)), 1.0) == ()


def test_rehearsals_are_there_for_the_next_one_who_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearse, "SHARES", (0.9, 1e-9))
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3), nn.Conv2d(128, 2, 3))
    options = Options(importance="magnitude", backend="onnxruntime", cache=str(tmp_path / "cache"))

    def timed():
        return prepare.prepare(model.eval(), images(1), options, [None], quiet)

    first = timed()
    assert first.timed[None].seen == ()
    rehearse.rehearse(first, quiet)
    (kept,) = timed().timed[None].seen
    dense = sum(group.size for group in first.analysis.groups)
    assert 0 < sum(kept.sizes.values()) < dense
