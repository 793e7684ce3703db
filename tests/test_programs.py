"""Benchmarks and examples are programs: all can be imported."""

import importlib
import pkgutil

import pytest
import torch
from torch import nn

import benchmarks
import examples
from examples import depth

PROGRAMS = [
    f"{package.__name__}.{info.name}"
    for package in (benchmarks, examples)
    for info in pkgutil.iter_modules(package.__path__)
    if not info.ispkg
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_imported(name):
    assert importlib.import_module(name).__doc__


def test_the_example_of_depth_compares_latencies(monkeypatch):
    monkeypatch.setattr(depth, "SECONDS", 0.0)
    model, slim = (nn.Sequential(nn.Conv2d(3, width, 3)).eval() for width in (256, 16))
    image = torch.randn(1, 3, 32, 32)
    assert 0.0 < depth.latency_share(model, torch.fx.symbolic_trace(slim), image) < 1.0
