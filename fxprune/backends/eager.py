"""PyTorch eager: the module itself, run as it is.  The reference that needs nothing installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.backends.base import Backend, Engine
from fxprune.backends.devices import torch_threads
from fxprune.backends.modules import adapted
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError

_NOTHING_SAVED = "eager compiles nothing, so there is no artefact"


@dataclass(frozen=True)
class EagerEngine(Engine):
    """The module, called without gradients."""

    module: nn.Module

    def run(self, *inputs: Tensor) -> Any:
        with torch.inference_mode(), torch_threads(self.settings.threads):
            return self.module(*inputs)

    def save(self, path: str | Path) -> None:
        raise BackendError(
            _NOTHING_SAVED, f"saving to {str(path)!r}", "save the module with fxprune.save instead"
        )


class EagerBackend(Backend):
    name = "eager"
    rank = 9
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    device_types = ("cpu", "cuda")
    takes_channels_last = True

    def unavailable(self) -> str | None:
        return None

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        return EagerEngine(self.name, settings, signature, adapted(module, settings))

    def restore(self, path: Path) -> Engine:
        raise BackendError(_NOTHING_SAVED, f"loading {str(path)!r}", "use fxprune.load instead")


BACKEND = EagerBackend()
