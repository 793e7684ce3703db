"""How every session of ONNX Runtime is started and fed, to run a network or to log its kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxprune.backends.settings import Settings


def options_for(settings: Settings) -> Any:
    """`SessionOptions` for these settings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    # Idle threads that spin would be charged to the process, whose CPU time is measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    return options


def session_of(model: bytes, options: Any) -> Any:
    """An `InferenceSession` of a serialised ONNX model on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(session: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The inputs by name, as NumPy arrays that share their memory where they can."""
    names = (value.name for value in session.get_inputs())
    arrays = (tensor.detach().contiguous().numpy() for tensor in inputs)
    return dict(zip(names, arrays, strict=True))
