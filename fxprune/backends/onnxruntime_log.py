"""ONNX Runtime's own log of kernels, less what writing it costs.

Every entry of the log takes two or three microseconds that are counted as the kernel's own: as much
as a small kernel takes.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx
import torch
from onnx import helper
from onnx.numpy_helper import from_array
from torch import Tensor

from fxprune.backends.onnx_model import IR_VERSION, OPSET
from fxprune.backends.onnxruntime_session import feed, options_for, session_of
from fxprune.backends.profiles import SHORTEST, typical
from fxprune.backends.settings import Settings
from fxprune.quiet import quiet_moments

# Layers of a network that does next to nothing, their channels and the size of what they see; its
# turns, and how often it is tried.
LAYER = "layer"
CHAIN = 60
CHANNELS = 16
SIZE = 7
TURNS = 100
TRIALS = 3


class LoggedSession:
    """A session that logs its kernels, to be run once.

    Args:
        model: a serialised ONNX model.
    """

    def __init__(self, model: bytes, settings: Settings) -> None:
        folder = tempfile.mkdtemp()
        # Whether it is run or not.
        self._clear = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        options = options_for(settings)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        self._session = session_of(model, options)

    def logged(
        self, inputs: tuple[Tensor, ...], moments: Iterable[object]
    ) -> dict[str, list[float]]:
        """Seconds of every run of every kernel, with what the log costs.

        Args:
            moments: of which each is followed by a run.
        """
        arrays = feed(self._session, inputs)
        for _ in moments:
            self._session.run(None, arrays)
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        self._clear()
        seconds: dict[str, list[float]] = {}
        for event in events:
            if event["cat"] == "Node":
                # Convolutions in the blocked layout are named after the value that they give.
                kernel = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
                seconds.setdefault(kernel, []).append(event["dur"] * 1e-6)
        return seconds


def kernel_seconds(
    model: bytes, settings: Settings, inputs: tuple[Tensor, ...], sessions: int, runs: int
) -> dict[str, list[float]]:
    """Seconds of every run of every kernel in so many sessions, without what the log costs."""
    cost = _cost_of_an_entry()
    seconds = defaultdict[str, list[float]](list)
    for _ in range(sessions):
        logged = LoggedSession(model, settings).logged(inputs, range(runs))
        for kernel, taken in logged.items():
            seconds[kernel] += [max(s - cost, SHORTEST) for s in taken]
    return seconds


@cache
def _cost_of_an_entry() -> float:
    """Seconds: kernels that do next to nothing, by the log and by the clock, at their quietest."""
    return max(min(_logged_in_excess() for _ in range(TRIALS)), 0.0)


def _logged_in_excess() -> float:
    """A turn each of one layer, of many and of many that are logged, all in one quiet moment."""
    inputs = (torch.zeros(1, CHANNELS, SIZE, SIZE, dtype=torch.float32, device="cpu"),)
    sessions = [session_of(_chain(layers), options_for(Settings())) for layers in (1, CHAIN)]
    arrays = feed(sessions[0], inputs)
    calls: list[list[float]] = [[] for _ in sessions]

    def turns() -> Iterator[int]:
        for moment in quiet_moments(TURNS):
            for session, taken in zip(sessions, calls, strict=True):
                start = time.perf_counter()
                session.run(None, arrays)
                taken.append(time.perf_counter() - start)
            yield moment

    logged = LoggedSession(_chain(CHAIN), Settings()).logged(inputs, turns())
    # Not what the changes of layout at both ends take.
    layers = [typical(runs) for name, runs in logged.items() if name.startswith(LAYER)]
    one, many = (float(np.quantile(taken, 0.1)) for taken in calls)
    return fmean(layers) - (many - one) / (CHAIN - 1)


def _chain(layers: int) -> bytes:
    """So many 1x1 convolutions: entries of the log tell the shapes of what kernels read."""
    values = ["x", *(f"{LAYER}{i}" for i in range(layers))]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])
        for name in (values[0], values[-1])
    ]
    weight = np.zeros((CHANNELS, CHANNELS, 1, 1), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [a, "weight", "bias"], [b], name=b)
            for a, b in itertools.pairwise(values)
        ],
        "chain",
        ends[:1],
        ends[1:],
        [from_array(weight, "weight"), from_array(weight[:, 0, 0, 0], "bias")],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    data: bytes = model.SerializeToString()
    return data
