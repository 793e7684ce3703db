"""PyTorch's own compiler, ahead of time (AOTInductor) and with frozen weights; CPU and CUDA.

Ahead of time, because the result is one file that needs neither tracing nor compiling again.
https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.backends import exporting
from fxprune.backends.base import Backend, Engine
from fxprune.backends.devices import cuda_graph, torch_threads
from fxprune.backends.inductor_kernels import Kernel, kernel_of, laid_out
from fxprune.backends.modules import adapted
from fxprune.backends.region import Region
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError, InputError
from fxprune.files import atomic_path

_MANIFEST = "fxprune"


@dataclass(frozen=True)
class InductorEngine(Engine):
    """A loaded package, and its bytes."""

    package: bytes = field(repr=False)
    loaded: Any = field(repr=False)

    def run(self, *inputs: Tensor) -> Any:
        with torch.no_grad(), torch_threads(self.settings.threads):
            return self.loaded(*inputs)

    def save(self, path: str | Path) -> None:
        """Write the package: native code, to be loaded only where it can be trusted."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.package)


@dataclass(frozen=True)
class KernelEngine(Engine):
    """The one kernel that inductor's code would call; inputs are laid out before it is timed.

    It may add to its second input: to a copy, that is, and once more with every call.
    """

    kernel: Kernel = field(repr=False)

    def run(self, *inputs: Tensor) -> Tensor:
        with torch_threads(self.settings.threads):
            return self.bind(*inputs)().to(inputs[0].dtype)

    def bind(self, *inputs: Tensor) -> Callable[[], Tensor]:
        return partial(self.kernel, *(laid_out(tensor, self.settings.dtype) for tensor in inputs))

    def runner(self, *inputs: Tensor) -> Callable[[], object]:
        """On CUDA always one graph: the pauses that Python makes are not the kernel's.

        What the shortest kernels take is then what starting a graph takes.
        """
        self.check(inputs)
        bound = self.bind(*inputs)
        return cuda_graph(bound) if inputs[0].is_cuda else bound

    def save(self, path: str | Path) -> None:
        raise BackendError(
            "a single kernel is called, not compiled, so there is no artefact",
            f"saving to {str(path)!r}",
            "compile its module instead",
        )


class InductorBackend(Backend):
    """Compiles with `torch.export` and AOTInductor; any precision, NCHW or NHWC."""

    name = "inductor"
    rank = 3
    alignment = 16  # 60 channels are slower than 64
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    device_types = ("cpu", "cuda")
    takes_channels_last = True
    frees_engines = False  # native code stays, and weights with it

    def unavailable(self) -> str | None:
        usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        compiler = os.environ.get("CXX", usual)
        if shutil.which(shlex.split(compiler)[0]):  # "ccache g++" will do
            return None
        return f"it needs a C++ compiler, and there is no {compiler!r}; install g++, or set CXX"

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        manifest = {"settings": settings.to_json(), "signature": signature.to_json()}
        options = {"freezing": True, "aot_inductor.metadata": {_MANIFEST: json.dumps(manifest)}}
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            torch.no_grad(),
            torch_threads(settings.threads),  # the loops that it writes run on so many
        ):
            # The compiler warns about its own internals, which no caller of ours can act upon.
            warnings.simplefilter("ignore")
            path = str(Path(folder, "model.pt2"))
            program = exporting.export(adapted(module, settings), inputs, signature)
            torch._inductor.aoti_compile_and_package(
                program, package_path=path, inductor_configs=options
            )
            loaded = torch._inductor.aoti_load_package(path)
            package = Path(path).read_bytes()
        return InductorEngine(self.name, settings, signature, package, loaded)

    def compile_region(
        self, region: Region, settings: Settings | None = None, device: str = "cpu"
    ) -> Engine:
        """The kernel that would be called, in an instant: compiling takes seconds.

        Raises as `compile`.
        """
        settings, inputs = settings or Settings(), region.inputs(device)
        self.require(settings, inputs)

        def engine() -> Engine:
            kernel = kernel_of(region, settings.dtype, device)
            found = KernelEngine(self.name, settings, Signature.of_region(region), kernel)
            found.run(*inputs)  # what cannot run is to fail here
            return found

        return self.attempt(f"run the region {region.signature()}", engine)

    def restore(self, path: Path) -> Engine:
        package = path.read_bytes()
        # Of a path it would want a certain ending.
        loaded = torch._inductor.aoti_load_package(io.BytesIO(package))
        manifest = json.loads(loaded.get_metadata().get(_MANIFEST, "null"))
        if manifest is None:
            raise InputError("the package was not saved by fxprune", str(path))
        settings = Settings.from_json(manifest["settings"])
        signature = Signature.from_json(manifest["signature"])
        return InductorEngine(self.name, settings, signature, package, loaded)


BACKEND = InductorBackend()
