"""The table of ways, and the module that most of them are written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError

Built = tuple[nn.Module, Any]


@dataclass(frozen=True)
class Way:
    """One way to write a model.

    Attributes:
        build: makes the model and its example inputs, in double precision.
        slim: members of groups, as `name[dim]`: every other group is a surprise.
        frozen: dimensions that stay, and a piece of the reason that is given.
        without: checks of `tests.properties` that make no sense for it.
    """

    build: Callable[[], Built]
    slim: tuple[str, ...]
    frozen: Mapping[str, str]
    without: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """A way that is refused, with the error and a piece of its message."""

    build: Callable[[], Built]
    error: type[FxpruneError]
    message: str


WAYS: dict[str, Way] = {}
REFUSED: dict[str, Refused] = {}


def way(
    *slim: str, frozen: Mapping[str, str] | None = None, without: tuple[str, ...] = ()
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Decorator: a way, the members of its groups, and what stays dense in it."""

    def add(build: Callable[[], Built]) -> Callable[[], Built]:
        assert build.__name__ not in WAYS
        WAYS[build.__name__] = Way(build, slim, frozen or {}, without)
        return build

    return add


def refused(
    error: type[FxpruneError], message: str
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Decorator: a way that is refused."""

    def add(build: Callable[[], Built]) -> Callable[[], Built]:
        REFUSED[build.__name__] = Refused(build, error, message)
        return build

    return add


class Model(nn.Module):
    """A model written as one function of itself and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | Tensor):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def normal(*shape: int) -> Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64)


def weights(*shape: int) -> nn.Parameter:
    """A bare parameter."""
    return nn.Parameter(normal(*shape))


def image(channels: int = 3, size: int = 6) -> tuple[Tensor]:
    """Inputs of a model for images."""
    return (normal(2, channels, size, size),)


def vector(width: int = 5) -> tuple[Tensor]:
    """Inputs of a model for vectors."""
    return (normal(2, width),)


def sequence(tokens: int = 6, width: int = 5) -> tuple[Tensor]:
    """Inputs of a model for sequences."""
    return (normal(2, tokens, width),)
