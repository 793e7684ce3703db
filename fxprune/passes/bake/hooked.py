"""Weights that a hook computes before each call, as `torch.nn.utils.weight_norm` has them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Hook = WeightNorm | SpectralNorm


def norms_of(layer: nn.Module) -> Iterator[Hook]:
    """The hooks of `layer` that compute a weight and are known here."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            yield hook


def norm_of(layer: nn.Module, leaf: str) -> Hook:
    """The hook that computes the tensor `leaf` of `layer`."""
    return next(hook for hook in norms_of(layer) if hook.name == leaf)


def sources_of(layer: nn.Module, leaf: str) -> dict[str, Tensor]:
    """What `leaf` is computed from, by the names that these hooks give."""
    names = (f"{leaf}_{ending}" for ending in ("orig", "g", "u", "v"))
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


def weight_by(hook: Hook, layer: nn.Module) -> Tensor:
    """The weight, as the hook computes it in evaluation mode."""
    if isinstance(hook, SpectralNorm):
        found: Tensor = hook.compute_weight(layer, do_power_iteration=False)
    else:
        found = hook.compute_weight(layer)
    return found


def kept_by(hook: Hook, rank: int) -> frozenset[int]:
    """The dimensions that the hook takes statistics over, of a weight of `rank` dimensions."""
    alone = hook.dim if isinstance(hook, WeightNorm) else -1
    return frozenset(range(rank)) - {alone}


def remove(layer: nn.Module, leaf: str) -> None:
    """Take the hook off, and what it computes from; `leaf` becomes a parameter."""
    if isinstance(norm_of(layer, leaf), WeightNorm):
        remove_weight_norm(layer, leaf)
    else:
        remove_spectral_norm(layer, leaf)
        _forget_state_hooks(layer, leaf)


def _forget_state_hooks(layer: nn.Module, leaf: str) -> None:
    """Those that ask state dicts for what is gone, and that PyTorch itself does not find."""
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            norm = getattr(getattr(hook, "hook", hook), "fn", None)
            if isinstance(norm, SpectralNorm) and norm.name == leaf:
                del hooks[key]
