"""The protocol through which every deployment compiler is spoken to.

A `Backend` compiles a module (or one `Region` of it) into an `Engine`: a callable that takes and
gives the tensors that the module takes and gives, and that can be measured, saved and loaded.
A new backend is one file in this package that defines a subclass of `Backend` and an instance of it
named `BACKEND`; nothing else needs to know about it.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fxprune.backends.devices import cpu_name, cuda_graph, cuda_name
from fxprune.backends.modules import deployable
from fxprune.backends.region import Region
from fxprune.backends.settings import Precision, Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError, BackendUnavailable, FxpruneError, InputError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Engine(ABC):
    """A compiled module: call it with tensors as the module is called.

    `name` is the backend's name, `settings` what it was compiled with, and `signature` the shapes
    and dtypes of its inputs and the structure of its outputs.
    """

    name: str
    settings: Settings
    signature: Signature

    @abstractmethod
    def run(self, *inputs: Tensor) -> Any:
        """Run on inputs that are known to fit the signature."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the compiled artefact, complete and self-describing, or leave no file at all."""

    def __call__(self, *inputs: Tensor) -> Any:
        """Run; gives a tensor, tuple or dict of tensors as the module does.  Raises as `check`."""
        self.check(inputs)
        return self.run(*inputs)

    def check(self, inputs: tuple[Tensor, ...]) -> None:
        """Raise `InputError` if the inputs do not fit what the engine was compiled for."""
        self.signature.check(inputs, where=f"engine of backend {self.name!r}")

    def bind(self, *inputs: Tensor) -> Callable[[], object]:
        """`run` on these inputs with as little around it as can be; the outputs may be dropped."""
        return partial(self.run, *inputs)

    def runner(self, *inputs: Tensor) -> Callable[[], object]:
        """One inference on these inputs as a callable: what gets timed.  Raises as `check`."""
        self.check(inputs)
        bound = self.bind(*inputs)
        on_cuda = any(tensor.is_cuda for tensor in inputs)
        return cuda_graph(bound) if self.settings.cuda_graphs and on_cuda else bound


class Backend(ABC):
    """A deployment compiler; stateless, so one instance serves everybody."""

    name: str
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    device_types: ClassVar[tuple[str, ...]] = ("cpu",)
    takes_channels_last: ClassVar[bool] = False
    rank: ClassVar[int] = 5
    """How early "auto" tries it, among the backends for a device; the lowest is tried first."""
    alignment: int = 8
    """Channel counts that are a multiple of this run well; others can be slower than wider ones."""

    frees_engines: ClassVar[bool] = True
    """Whether nothing is left in memory of an engine that nobody uses any more."""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine and how to change that; None if it can."""

    @abstractmethod
    def version(self) -> str:
        """The compiler's version, as it keys measurements."""

    def device(self, device_type: str = "cpu") -> str:
        """The processor that engines on such a device run on, as it keys measurements."""
        return cuda_name() if device_type == "cuda" else cpu_name()

    @abstractmethod
    def build(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        settings: Settings,
        signature: Signature,
    ) -> Engine:
        """Compile a private evaluation-mode copy; the compiler's own exceptions may leave it."""

    @abstractmethod
    def restore(self, path: Path) -> Engine:
        """Load what `Engine.save` wrote; the compiler's own exceptions may leave it."""

    def compile(
        self,
        module: nn.Module,
        example_inputs: tuple[Tensor, ...],
        settings: Settings | None = None,
    ) -> Engine:
        """Compile a module for inference on inputs like the examples; the module is not touched.

        Raises `BackendUnavailable`, `InputError` (module, inputs or settings that this backend
        cannot take) or `BackendError` (the compiler failed).
        """
        settings = settings or Settings()
        copy = deployable(module, example_inputs)
        self.require(settings, example_inputs)
        signature = Signature.of(copy, example_inputs, settings)
        return self.attempt(
            "compile the model", lambda: self.build(copy, example_inputs, settings, signature)
        )

    def compile_region(
        self, region: Region, settings: Settings | None = None, device: str = "cpu"
    ) -> Engine:
        """Compile one region by itself, as tables need it where `region_seconds` cannot tell.

        Run it on `region.inputs(device)`.
        """
        module, inputs = region.as_module(device)
        # Its first dimension may be another one than the network's batch.
        return self.compile(module, inputs, replace(settings or Settings(), batch_range=None))

    def region_seconds(
        self, regions: Sequence[Region], settings: Settings | None = None, device: str = "cpu"
    ) -> list[float] | None:
        """What each of these takes inside a network, seconds: all are set up and run together.

        That is without the changes of layout at its borders, which a network mostly spares and
        which can cost more than a small region itself.  Where a backend cannot tell, this is None:
        measure the engine of `compile_region`.  Version of the procedure: `profiles.PROTOCOL`.
        """
        del regions, settings, device
        return None

    def load(self, path: str | Path) -> Engine:
        """Load a saved engine; raises `InputError` if there is no such file."""
        self.require()
        path = Path(path)
        if not path.is_file():
            raise InputError(f"there is no file {str(path)!r}", f"backend {self.name!r}")
        return self.attempt(f"load {str(path)!r}", lambda: self.restore(path))

    def copier(self, engine: Engine) -> Callable[[], Engine] | None:
        """What sets a compiled engine up once more, where that takes less than to load it.

        None: it is saved and loaded, or compiled again.
        """
        del engine
        return None

    def profile(self, engine: Engine, inputs: tuple[Tensor, ...]) -> dict[str, float] | None:
        """Seconds by kernel for one inference, in execution order; None where it cannot be told."""
        del engine, inputs
        return None

    def require(self, settings: Settings | None = None, inputs: tuple[Tensor, ...] = ()) -> None:
        """Raise unless the backend is here and can serve these settings and inputs."""
        where = f"backend {self.name!r}"
        if reason := self.unavailable():
            raise BackendUnavailable(f"{where} is unavailable: {reason}", backend=self.name)
        settings = settings or Settings()
        if settings.precision not in self.precisions:
            raise InputError(
                f"precision {settings.precision!r} is not supported",
                where,
                f"choose from {', '.join(self.precisions)}",
            )
        if settings.channels_last and not self.takes_channels_last:
            raise InputError(
                "channels_last cannot be set: the compiler chooses the layout",
                where,
                "leave it off",
            )
        for index, tensor in enumerate(inputs):
            if tensor.device.type not in self.device_types:
                raise InputError(
                    f"example input {index} is on {tensor.device.type}",
                    where,
                    f"move model and inputs to {' or '.join(self.device_types)}",
                )

    def attempt(self, action: str, call: Callable[[], Made]) -> Made:
        """Call; whatever a compiler raises becomes a `BackendError` that says what was tried."""
        try:
            return call()
        except FxpruneError:
            raise
        except Exception as error:
            raise failure(action, f"backend {self.name!r} {self.version()}", error) from error


def failure(action: str, where: str, error: Exception) -> BackendError:
    """The error for what a compiler or its engine raised: what was tried, and on which backend."""
    text = str(error).strip().splitlines()
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "allocate memory", "out of memory")
    )
    fix = "the compiler's full message is the cause of this error"
    if no_memory:
        fix = "free memory on the device, or take a smaller batch"
    return BackendError(f"cannot {action}: {text[0] if text else type(error).__name__}", where, fix)


def missing(package: str, install: str) -> str | None:
    """Why a backend that needs this package is unavailable, or None if it can be imported."""
    if importlib.util.find_spec(package) is None:
        return f"the package {package!r} is not installed; run: {install}"
    try:
        importlib.import_module(package)
    except Exception as error:  # a package without its libraries fails in many ways
        return f"the package {package!r} cannot be imported ({error}); run: {install}"
    return None
