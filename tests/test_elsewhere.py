"""Slimming for a machine that is elsewhere: from its latencies alone."""

import json

import pytest
import torch

import fxprune
from fxprune import elsewhere
from fxprune.backends import Settings, get_backend
from fxprune.cache import Cache, Key
from tests.networks import SmallResNet


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A model, its inputs, and a cache with what it takes here, said to be on another machine."""
    folder = tmp_path_factory.mktemp("latencies")
    torch.manual_seed(0)
    model, x = SmallResNet(64).eval(), torch.randn(1, 3, 32, 32)
    here, there = str(folder / "here"), str(folder / "there")
    fxprune.optimize(model, 0.7, (x,), backend="onnxruntime", cache=here, progress=False)
    carried = folder / "table.json"
    with Cache(here) as cache:
        cache.export(carried)
    document = json.loads(carried.read_text())
    with Cache(there) as cache:
        for entry in document["entries"]:
            key = cache_key(entry["key"] | {"device": "Orin of somebody"})
            cache.put(key, entry["value"])
    return model, x, there


def cache_key(fields):
    return Key(**{**fields, "settings": Settings(**fields["settings"])})


def test_a_network_is_slimmed_by_the_tables_of_another_machine(measured, monkeypatch):
    model, x, cache = measured
    monkeypatch.setattr(
        type(get_backend("onnxruntime")), "build", lambda *_: pytest.fail("compiled here")
    )
    slim = fxprune.optimize(
        model, 0.7, (x,), backend="onnxruntime@Orin", cache=cache, progress=False
    )
    report = fxprune.report(slim)
    dense, narrow = report.tabled
    assert 0.6 * dense < narrow <= 0.7 * dense
    assert report.slim.latency is None
    assert "another machine" in str(report)
    assert slim.meta["fxprune"]["plan"].meta["device"] == ["Orin of somebody"]


def test_what_is_left_alone_does_not_change_what_has_to_be_known(measured):
    """Stairs are told by the widest layer of a kind, here one that keeps its width."""
    model, x, cache = measured
    slim = fxprune.optimize(
        model,
        0.85,
        (x,),
        backend="onnxruntime@Orin",
        cache=cache,
        ignore=["blocks.2.*"],
        progress=False,
    )
    assert fxprune.report(slim).tabled[1] <= 0.85 * fxprune.report(slim).tabled[0]


def test_a_front_comes_from_another_machine_too(measured):
    model, x, cache = measured
    front = fxprune.pareto(
        model, (x,), points=5, backend="onnxruntime@Orin", cache=cache, progress=False
    )
    assert front[-1].value == pytest.approx(100.0)
    assert front[0].share < 0.5


def test_a_kernel_that_was_not_measured_there_is_named_with_its_layer(measured):
    model, x, cache = measured
    with pytest.raises(fxprune.MeasurementError, match=r"layer \w+.*fxprune table build"):
        fxprune.optimize(
            model,
            "60% latency",
            (x,),
            backend="onnxruntime@Orin",
            multiple_of=3,
            cache=cache,
            progress=False,
        )


def test_what_was_not_measured_there_is_named(measured):
    _, _, cache = measured
    other = SmallResNet(32).eval()
    with pytest.raises(fxprune.MeasurementError, match="fxprune table build"):
        fxprune.optimize(
            other,
            0.7,
            (torch.randn(1, 3, 32, 32),),
            backend="onnxruntime@Orin",
            cache=cache,
            progress=False,
        )


@pytest.mark.parametrize("place", ["onnxruntime@Xavier", "openvino@Orin"])
def test_machines_that_nothing_is_known_of_are_refused(measured, place):
    with pytest.raises(fxprune.InputError, match="fxprune table import"):
        elsewhere.elsewhere(place, measured[2])


def test_an_unknown_backend_elsewhere_is_refused(measured):
    with pytest.raises(fxprune.InputError, match="choose from"):
        elsewhere.elsewhere("tensort@Orin", measured[2])


def test_two_machines_that_fit_are_listed(measured, tmp_path):
    cache = tmp_path / "two"
    with Cache(measured[2]) as source, Cache(cache) as target:
        source.export(tmp_path / "table.json")
        for entry in json.loads((tmp_path / "table.json").read_text())["entries"][:1]:
            for device in ("Orin NX", "Orin AGX"):
                target.put(cache_key(entry["key"] | {"device": device}), entry["value"])
    with pytest.raises(fxprune.InputError, match=r"Orin AGX, .*Orin NX"):
        elsewhere.elsewhere("onnxruntime@Orin", str(cache))
    assert elsewhere.elsewhere("onnxruntime@NX", str(cache)).device() == "Orin NX"
