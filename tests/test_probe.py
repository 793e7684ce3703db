"""Measured damage: kept, shared between processes, and measured after a short training if asked."""

import itertools

import pytest
import torch.nn.functional as F
from torch import nn

from fxprune import probe
from fxprune.cache import Cache
from fxprune.errors import InputError
from fxprune.passes.capture import capture
from fxprune.passes.depth_value import loss_rise
from fxprune.probe import Memory, Probe, name_of
from tests.networks import images, labelled, small_resnet


def captured(shift=0.0):
    module = capture(small_resnet(8), images(1)).module
    module.get_parameter("head.bias").data += shift
    return module


class Counted:
    """A damage that tells how often it was measured; the networks are numbers."""

    def __init__(self, stop_after=None):
        self.seen = []
        self.stop_after = stop_after

    def __call__(self, variant):
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(variant)
        return variant / 10


VARIANTS = {f"span {i}": (lambda i=i: i) for i in range(6)}


def memory(path, data=None, way="loss"):
    return Memory.of(captured(), data or labelled(2), way, str(path))


def test_nothing_is_measured_twice(tmp_path):
    first, second = Counted(), Counted()
    found = memory(tmp_path / "cache").measured(VARIANTS, first)
    assert found == {f"span {i}": i / 10 for i in range(6)}
    assert memory(tmp_path / "cache").measured(VARIANTS, second) == found
    assert (sorted(first.seen), second.seen) == ([0, 1, 2, 3, 4, 5], [])


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    first, second = Counted(stop_after=4), Counted()
    with pytest.raises(KeyboardInterrupt):
        memory(tmp_path / "cache").measured(VARIANTS, first)
    memory(tmp_path / "cache").measured(VARIANTS, second)
    assert sorted(first.seen + second.seen) == [0, 1, 2, 3, 4, 5]


def test_processes_begin_at_different_places(tmp_path, monkeypatch):
    orders = []
    for process in (10, 11):
        monkeypatch.setattr(probe.os, "getpid", lambda process=process: process)
        damage = Counted()
        memory(tmp_path / f"cache {process}").measured(VARIANTS, damage)
        orders.append(damage.seen)
    assert orders == [[4, 5, 0, 1, 2, 3], [5, 0, 1, 2, 3, 4]]


def test_other_weights_data_or_ways_are_measured_anew(tmp_path):
    path = tmp_path / "cache"
    others = [
        memory(path),
        memory(path, way="outputs"),
        memory(path, data=labelled(3)),
        Memory.of(captured(shift=1e-3), labelled(2), "loss", str(path)),
    ]
    for number, each in enumerate(others, start=1):
        damage = Counted()
        each.measured(VARIANTS, damage)
        assert len(damage.seen) == 6
        with Cache(str(path)) as store:
            assert len(store) == 6 * number


def test_progress_is_told(tmp_path):
    told = []
    memory(tmp_path / "cache").measured(VARIANTS, Counted(), told.append)
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_probe_trains_before_it_measures():
    module, data = captured(), labelled(4)
    damage = loss_rise(module, data, F.cross_entropy)
    trained = Probe(epochs=8, lr=0.05).before(damage, data, F.cross_entropy)
    assert trained(captured()) < damage(captured()) - 0.05


@pytest.mark.parametrize("options", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_a_probe_that_trains_nothing_is_refused(options):
    with pytest.raises(InputError, match="trains nothing"):
        Probe(**options)


def test_only_losses_with_a_name_are_taken_for_the_same():
    assert name_of(F.cross_entropy) == name_of(F.cross_entropy)
    assert name_of(F.cross_entropy) != name_of(F.mse_loss)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert name_of(smooth) == name_of(smooth)
    unnamed = [lambda y, t: y.sum(), lambda y, t: y.mean()]
    for one, other in itertools.product(unnamed, unnamed):
        assert name_of(one) != name_of(other)
