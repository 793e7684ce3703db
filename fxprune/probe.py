"""Damage measured once: kept in the cache, with a short training before it where one is asked for.

Judging the spans of a large network takes as many runs as it has spans. So what was measured is
kept: a run that was interrupted goes on where it stopped, and several processes that are started
alike share the work, each beginning at another place.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.backends.settings import Settings
from fxprune.batches import Data
from fxprune.cache import Cache, Key
from fxprune.errors import InputError
from fxprune.passes.depth_value import Damage, Loss, few
from fxprune.passes.infer import named_tensors
from fxprune.passes.recover import finetune

PROTOCOL = "damage 1"

Variant = Callable[[], fx.GraphModule]


@dataclass(frozen=True)
class Probe:
    """A short training of every network that is judged, before it is judged.

    The published value of a span is the accuracy after such a training (Kim et al., ICML 2023).

    Args:
        epochs: passes over the data, at least 1.
        lr: the highest learning rate.
    """

    epochs: int = 1
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.lr > 0:
            raise InputError(f"{self} trains nothing", fix="Use epochs >= 1 and lr > 0")

    def before(self, damage: Damage, data: Data, loss: Loss) -> Damage:
        """`damage` after this training."""

        def trained(variant: fx.GraphModule) -> float:
            epochs, lr = self.epochs, self.lr
            finetune(variant, data, loss=loss, epochs=epochs, lr=lr, progress=False)
            return damage(variant)

        return trained


@dataclass(frozen=True)
class Memory:
    """Where damages are kept.

    Attributes:
        path: of the cache; None is the user's.
        key: everything that they depend on but the variant.
    """

    path: str | None
    key: Key

    @staticmethod
    def of(module: fx.GraphModule, data: Data, way: str, path: str | None) -> Memory:
        """For variants of `module`, judged in a `way` on the first batches of `data`."""
        hasher = hashlib.sha256(str(module.graph).encode())
        for name, tensor in named_tensors(module):
            hasher.update(name.encode())
            _update(hasher, tensor)
        for leaf in tree_leaves(few(data)):
            if isinstance(leaf, Tensor):
                _update(hasher, leaf)
        key = Key("any", "damage", torch.__version__, Settings(), hasher.hexdigest(), "")
        return Memory(path, replace(key, protocol=f"{PROTOCOL} {way}"))

    def measured(
        self,
        variants: Mapping[str, Variant],
        damage: Damage,
        step: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """The damage of every variant; measured only where nobody has before."""
        found: dict[str, float] = {}
        for name in _from_elsewhere(variants):
            key = replace(self.key, subject=f"{self.key.subject} {name}")
            with Cache(self.path) as store:
                known = store.get(key)
            if known is None:
                known = {"damage": damage(variants[name]())}
                with Cache(self.path) as store:
                    store.put(key, known)
            found[name] = float(known["damage"])
            if step is not None:
                step(len(found))
        return {name: found[name] for name in variants}


def name_of(loss: Loss) -> str:
    """Tells losses apart: by name where the name leads to it, else no two are ever the same."""
    if isinstance(loss, nn.Module):
        return repr(loss)
    name = f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', '<')}"
    return f"{name} {uuid.uuid4()}" if "<" in name else name


def _from_elsewhere(names: Iterable[str]) -> list[str]:
    """`names` from a place on that is another one in every process."""
    listed = list(names)
    start = os.getpid() % len(listed) if listed else 0
    return [*listed[start:], *listed[:start]]


def _update(hasher: hashlib._Hash, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    hasher.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
    hasher.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
