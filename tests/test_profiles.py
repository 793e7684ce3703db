"""From logs of kernels to seconds."""

import gc
import tempfile

import numpy as np
import pytest
import torch

from fxprune.backends import Settings, onnxruntime_log, profiles
from fxprune.backends.onnxruntime_log import LoggedSession, kernel_seconds

INPUTS = (torch.zeros(1, 16, 7, 7),)


def test_a_small_kernel_is_known_better_than_the_clock_counts():
    logged = [1e-6] * 12 + [2e-6] * 28  # 1.7 us, in whole microseconds
    assert profiles.typical(logged) == pytest.approx(1.7e-6)


def test_runs_that_were_disturbed_do_not_count():
    quiet = np.linspace(50e-6, 51e-6, 30)
    assert profiles.typical([*quiet, *[500e-6] * 60]) == pytest.approx(50.5e-6, rel=0.01)


def test_kernels_are_told_without_the_cost_of_the_log(monkeypatch):
    logged = {"conv": [12e-6] * 8, "view": [1e-6] * 8}
    monkeypatch.setattr(LoggedSession, "logged", lambda *_: logged)
    monkeypatch.setattr(onnxruntime_log, "_cost_of_an_entry", lambda: 2e-6)
    told = kernel_seconds(onnxruntime_log._chain(1), Settings(), INPUTS, 2, 8)
    assert told["conv"] == pytest.approx([10e-6] * 16)
    assert told["view"] == [onnxruntime_log.SHORTEST] * 16


def test_every_run_of_every_kernel_is_logged_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = kernel_seconds(onnxruntime_log._chain(3), Settings(), INPUTS, 3, 4)
    layers = [f"layer{i}" for i in range(3)]
    assert [len(told[layer]) for layer in layers] == [12] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_never_made_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = LoggedSession(onnxruntime_log._chain(1), Settings())
    assert len(list(tmp_path.iterdir())) == 1
    del session
    gc.collect()
    with pytest.raises(Exception, match="model"):
        LoggedSession(b"no model", Settings())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_the_log_costs_more_than_a_kernel_that_does_nothing():
    assert 0 < onnxruntime_log._cost_of_an_entry() < 100e-6
