"""Benchmarks and examples are programs: all can be imported."""

import importlib
import pkgutil

import pytest

import benchmarks
import examples

PROGRAMS = [
    f"{package.__name__}.{info.name}"
    for package in (benchmarks, examples)
    for info in pkgutil.iter_modules(package.__path__)
    if not info.ispkg
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_imported(name):
    assert importlib.import_module(name).__doc__
