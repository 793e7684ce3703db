"""Networks to try, by source: a table of names, and what builds each with its example inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Built = tuple[nn.Module, Any]
Build = Callable[[], Built]

# Each module has a `MODELS`; what it needs from the package index stands beside it.
SOURCES: Mapping[str, str] = {
    "unusual": "",
    "timm": "timm",
    "transformers": "transformers",
    "segmentation": "segmentation-models-pytorch",
}


def models_of(source: str) -> Mapping[str, Build]:
    """What can be built of one source, by name.

    Raises:
        ImportError: a package that the source needs is not installed.
    """
    models: Mapping[str, Build] = importlib.import_module(f"benchmarks.zoo.{source}").MODELS
    return models
