"""Where a captured model computes a weight from its parameters, and the value that it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.passes.bake.hooked import norm_of, norms_of, weight_by
from fxprune.passes.constants import operation
from fxprune.passes.linear.nodes import tensor_at
from fxprune.passes.modules import CONTRACTIONS
from fxprune.passes.reference import following_inputs
from fxprune.passes.trace import is_opaque

# Operators with a weight, whatever they call it.
PARAMETRIC = CONTRACTIONS | {"embedding", "prelu", "batch_norm", "layer_norm", "group_norm"}
# Between a computed weight and the operator that reads it: they only turn it round.
TURNING = frozenset({"t", "transpose", "permute", "numpy_T", "swapaxes", "swapdims", "movedim"})


@dataclass(frozen=True)
class Made:
    """A weight that nodes of the graph compute.

    Attributes:
        node: the one that yields it.
        interior: all that it is computed by, `node` and parameters included, in graph order.
    """

    node: fx.Node
    interior: tuple[fx.Node, ...]


@dataclass(frozen=True)
class _InLayer:
    """A weight that a layer computes by itself.

    Attributes:
        path: of the layer.
        leaf: the name of the weight in it.
    """

    path: str
    leaf: str

    @property
    def name(self) -> str:
        """The qualified name of the weight."""
        return f"{self.path}.{self.leaf}" if self.path else self.leaf


class Parametrized(_InLayer):
    """It does so in a parametrization."""


class Hooked(_InLayer):
    """It does so in a hook, as `torch.nn.utils` used to."""


Computed = Made | Parametrized | Hooked


def computed_weights(module: fx.GraphModule) -> tuple[Computed, ...]:
    """Every weight of a parametric operator that is computed from parameters, each once."""
    found: dict[Computed, None] = dict.fromkeys(_inside_layers(module))
    flowing = following_inputs(module.graph)
    submodules = dict(module.named_modules())
    for node in module.graph.nodes:
        if node not in flowing or operation(node) not in PARAMETRIC:
            continue
        for given in node.all_input_nodes:
            if given in flowing or given.op not in ("call_function", "call_method", "call_module"):
                continue
            made = _made(module, _unturned(given))
            if made is not None and not any(_may_vary(submodules, n) for n in made.interior):
                found[made] = None
    return tuple(found)


def value_of(module: fx.GraphModule, weight: Computed) -> Tensor | None:
    """What `weight` is in evaluation mode; None if it is no plain function of the model's state."""
    try:
        with torch.no_grad(), _Pure():  # type: ignore[no-untyped-call]
            if isinstance(weight, Made):
                value = _run(module, weight)
            else:
                layer = module.get_submodule(weight.path)
                if isinstance(weight, Hooked):
                    value = weight_by(norm_of(layer, weight.leaf), layer)
                else:
                    value = getattr(layer, weight.leaf)
    except _ImpureError:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    return value.detach().clone()


def _inside_layers(module: fx.GraphModule) -> Iterator[Parametrized | Hooked]:
    called = {
        module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module"
    }
    for path, layer in module.named_modules():
        if layer not in called:
            continue
        yield from (Hooked(path, norm.name) for norm in norms_of(layer))
        if parametrize.is_parametrized(layer):
            held = layer.parametrizations
            assert isinstance(held, nn.ModuleDict)
            for leaf, computing in held.items():
                if any(True for _ in computing.parameters()):
                    yield Parametrized(path, leaf)


def _unturned(node: fx.Node) -> fx.Node:
    """The computed weight that `node` is turned from."""
    while operation(node) in TURNING and isinstance(source := node.args[0], fx.Node):
        if source.op == "get_attr":
            break
        node = source
    return node


def _made(module: fx.GraphModule, node: fx.Node) -> Made | None:
    interior = {node}
    for earlier in reversed(list(_before(node))):
        if not interior.isdisjoint(earlier.users):
            interior.add(earlier)
    held = [tensor_at(module, str(n.target)) for n in interior if n.op == "get_attr"]
    if not any(isinstance(tensor, nn.Parameter) for tensor in held):
        return None
    return Made(node, tuple(n for n in module.graph.nodes if n in interior))


def _before(node: fx.Node) -> Iterator[fx.Node]:
    for earlier in node.graph.nodes:
        if earlier is node:
            return
        yield earlier


def _may_vary(submodules: Mapping[str, nn.Module], node: fx.Node) -> bool:
    """Whether a node may yield something else next time, or in training, than this time."""
    if node.op == "call_module":
        module = submodules[str(node.target)]
        ours = type(module).__module__.startswith("torch.nn")
        return not ours or isinstance(module, _DropoutNd)
    return is_opaque(submodules, node)


def _run(module: fx.GraphModule, weight: Made) -> Any:
    interpreter = fx.Interpreter(module)
    interpreter.extra_traceback = False
    for node in weight.interior:
        interpreter.env[node] = interpreter.run_node(node)
    return interpreter.env[weight.node]


class _ImpureError(Exception):
    """A call draws random numbers, or writes into what others may read."""


class _Pure(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets only calls through that yield the same every time, and change nothing."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable:
            raise _ImpureError
        return func(*args, **(kwargs or {}))
