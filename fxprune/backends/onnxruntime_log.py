"""ONNX Runtime's own log of kernels, less what writing it costs.

Every entry of the log takes a microsecond or two that are counted as the kernel's own: as much as a
small kernel takes.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fxprune.backends.onnx_model import IR_VERSION, OPSET
from fxprune.backends.onnxruntime_session import options_for, session_of
from fxprune.backends.profiles import typical
from fxprune.backends.settings import Settings

# What is left of a kernel of which the log tells no more than its own cost.
SHORTEST = 1e-7
# Nodes of the network that does next to nothing, its runs, and how often it is tried.
CHAIN = 100
RUNS = 200
TRIALS = 3


def kernel_seconds(
    model: bytes, settings: Settings, inputs: Mapping[str, Any], runs: int
) -> dict[str, list[float]]:
    """Seconds of every run of every kernel, in a session of its own.

    Args:
        inputs: NumPy arrays by name.
    """
    cost = _cost_of_an_entry()
    logged = _logged(model, settings, inputs, runs)
    return {kernel: [max(s - cost, SHORTEST) for s in runs] for kernel, runs in logged.items()}


def _logged(
    model: bytes, settings: Settings, inputs: Mapping[str, Any], runs: int
) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        options = options_for(settings)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = session_of(model, options)
        for _ in range(runs):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seconds: dict[str, list[float]] = {}
    for event in events:
        if event["cat"] == "Node":
            # Convolutions in the blocked layout are named after the value that they give.
            kernel = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
            seconds.setdefault(kernel, []).append(event["dur"] * 1e-6)
    return seconds


@cache
def _cost_of_an_entry() -> float:
    """Seconds: kernels that do next to nothing, by the log and by the clock, at their quietest."""
    return max(min(_logged_in_excess() for _ in range(TRIALS)), 0.0)


def _logged_in_excess() -> float:
    inputs = {"x": np.zeros(1, dtype=np.float32)}
    kernel = (_call_seconds(CHAIN, inputs) - _call_seconds(1, inputs)) / (CHAIN - 1)
    logged = _logged(_chain(CHAIN), Settings(), inputs, RUNS)
    return fmean(map(typical, logged.values())) - kernel


def _call_seconds(nodes: int, inputs: Mapping[str, Any]) -> float:
    session = session_of(_chain(nodes), options_for(Settings()))
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(None, inputs)
        taken.append(time.perf_counter() - start)
    return float(np.quantile(taken, 0.1))


def _chain(nodes: int) -> bytes:
    """One number, through so many hyperbolic tangents."""
    values = ["x", *(f"tanh{i}" for i in range(nodes))]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in (values[0], values[-1])
    ]
    graph = helper.make_graph(
        [helper.make_node("Tanh", [a], [b], name=b) for a, b in itertools.pairwise(values)],
        "chain",
        ends[:1],
        ends[1:],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    data: bytes = model.SerializeToString()
    return data
