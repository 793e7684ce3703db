"""From logs of kernels to seconds."""

import numpy as np
import pytest
import torch

from fxprune.backends import Settings, onnxruntime_log, profiles
from fxprune.backends.onnxruntime_log import LoggedSession


def test_a_small_kernel_is_known_better_than_the_clock_counts():
    logged = [1e-6] * 12 + [2e-6] * 28  # 1.7 us, in whole microseconds
    assert profiles.typical(logged) == pytest.approx(1.7e-6)


def test_runs_that_were_disturbed_do_not_count():
    quiet = np.linspace(50e-6, 51e-6, 30)
    assert profiles.typical([*quiet, *[500e-6] * 60]) == pytest.approx(50.5e-6, rel=0.01)


def test_kernels_are_told_without_the_cost_of_the_log(monkeypatch):
    log = LoggedSession.start(onnxruntime_log._chain(3), Settings())
    monkeypatch.setattr(onnxruntime_log, "_cost_of_an_entry", lambda: 1.0)
    told = log.kernel_seconds((torch.zeros(1, 16, 7, 7),), 8)
    assert {"layer0", "layer1", "layer2"} <= told.keys()
    assert told["layer1"] == [onnxruntime_log.SHORTEST] * 8


def test_the_log_costs_more_than_a_kernel_that_does_nothing():
    assert 0 < onnxruntime_log._cost_of_an_entry() < 100e-6
