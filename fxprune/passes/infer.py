"""Axis inference: type every tensor of a captured model with the axes of its dimensions.

The graph is interpreted once with fake tensors (no arithmetic, no memory). A dispatch mode sees
every ATen call that the nodes make, whatever the capture was, and applies the typing rule of the
operator; the interpreter ties the axes of each result to its fx node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only

from fxprune.axes import (
    Atom,
    Axes,
    Axis,
    Reason,
)
from fxprune.errors import CaptureError
from fxprune.passes.capture import Captured
from fxprune.passes.fakes import Fakes, storage_of
from fxprune.passes.glue.module import Use
from fxprune.passes.hooks import HookWatch, attributes_restored
from fxprune.passes.indices import Numbers, digest, numbers_in
from fxprune.passes.modules import chooses, contracts, is_resizable, renormalises
from fxprune.passes.regions import OpenRegions
from fxprune.passes.rules import Contraction, tensors
from fxprune.passes.rules.recurrent import TELLING_BY_WIDTH, told_by_width, unfused_recurrence
from fxprune.passes.trace import is_opaque, unfused_attention
from fxprune.passes.tracker import AxisTracker


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that shrinks with a group."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True)
class Group:
    """Positions that are kept or removed together everywhere, one by one.

    `name` is the first member in the order of the model's parameters, so it is the same for every
    model of the same architecture.
    """

    name: str
    atom: Atom
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Number of positions in the dense model."""
        return self.atom.size


@dataclass(frozen=True)
class Analysis:
    """What inference found out about one captured model.

    Attributes:
        groups: what may shrink, in the order of the model's parameters.
        tensors: axes of every parameter and buffer, by qualified name.
        values: axes of every tensor in the result of a node, by node name, in pytree order.
        scalars: results of nodes that hold no tensor (sizes and what is computed from them).
        reasons: why frozen atoms are frozen.
        contractions: every multiply-accumulate of the model.
        writes: nodes that change a tensor in place, and so matter even if nobody uses their result.
        storages: for every tensor in the result of a node, what tells its memory apart.
        indices: what index tensors hold, by the node that yields them, where that is constant.
        orders: a digest of each index buffer that axes depend on.
        dtypes: of every tensor in the result of a node.
        weights: parameters and buffers that some contraction multiplies, as they are or after
            arithmetic among weights.
    """

    groups: tuple[Group, ...]
    tensors: Mapping[str, Axes]
    values: Mapping[str, tuple[Axes, ...]]
    scalars: Mapping[str, Any]
    reasons: Mapping[Atom, Reason]
    contractions: tuple[Contraction, ...]
    writes: frozenset[str]
    storages: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, Numbers]
    orders: Mapping[str, str]
    dtypes: Mapping[str, tuple[torch.dtype, ...]]
    weights: frozenset[str]
    _group_of: dict[Atom, Group] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_group_of", {group.atom: group for group in self.groups})

    def group_of(self, atom: Atom) -> Group | None:
        """The group that `atom` is the positions of, if it is free and has members."""
        return self._group_of.get(atom)

    def groups_in(self, axis: Axis) -> tuple[Group, ...]:
        """The groups that `axis` is made of, each once."""
        found = (self._group_of.get(atom) for atom in dict.fromkeys(axis.atoms))
        return tuple(group for group in found if group is not None)


class _TypedInterpreter(fx.Interpreter):
    """Interprets the graph under a tracker, and collects what each node yields."""

    def __init__(self, module: fx.GraphModule, tracker: AxisTracker) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.tracker = tracker
        self.regions = OpenRegions()
        self.values: dict[str, tuple[Tensor, ...]] = {}
        self.scalars: dict[str, Any] = {}
        self.indices: dict[str, Numbers] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.tracker.node = n.name
        self.tracker.mixing.clear()
        self.tracker.renormalises = renormalises(self.submodules, n)
        self.tracker.contracts = contracts(self.submodules, n)
        self.tracker.chooses = chooses(n)
        result = super().run_node(n)
        self.regions.see(n, result)
        if n.op == "call_function" and is_opaque(self.submodules, n):
            name = getattr(n.target, "__name__", str(n.target))
            reason = Reason(name, n.name, f"{name} is a function that cannot be looked into")
            given = self.map_nodes_to_values((n.args, n.kwargs), n)
            self.tracker.freeze([given, result], reason)
        if isinstance(n.target, Use):
            self._keep_read(n, n.target)
        self._keep_told(n)
        self.values[n.name] = self.tracker.yielded(result)
        self._keep_numbers(n, self.values[n.name])
        if not self.values[n.name]:
            self.scalars[n.name] = result
        if n.op == "output":
            self.tracker.freeze(
                result, Reason("output", n.name, "a dimension of the model's output")
            )
        return result

    def _keep_numbers(self, node: fx.Node, values: tuple[Tensor, ...]) -> None:
        """Remember the numbers that an index holds now; it may be written to later."""
        numbers = self.tracker.indices.of(values[0]) if len(values) == 1 else None
        if numbers is not None:
            self.indices[node.name] = numbers

    def _keep_read(self, node: fx.Node, use: Use) -> None:
        """Keep the dimensions that glue reads."""
        reason = Reason("glue", node.name, use.detail)
        for tensor in tensors(self.map_nodes_to_values(node.args, node)):
            axes = self.tracker.axes_of(tensor)
            for dim in use.dims_of(tensor):
                self.tracker.unifier.freeze(axes[dim], reason)

    def _keep_told(self, node: fx.Node) -> None:
        """Keep the dimensions by whose widths a kernel tells what it has to do."""
        name = getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")
        if name not in TELLING_BY_WIDTH:
            return
        args: Any = self.map_nodes_to_values(node.args, node)
        for tensor, dim in told_by_width(name, args):
            reason = Reason(name, node.name, f"{name} tells a projection by this width")
            self.tracker.unifier.freeze(self.tracker.axes_of(tensor)[dim], reason)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        for tensor in tensors(value):
            reason = Reason("input", str(target), "a dimension of the model's input")
            fresh = self.tracker.unifier.fresh
            self.tracker.flow([tensor])
            self.tracker.give(tensor, tuple(fresh(size, reason) for size in tensor.shape))
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        with HookWatch(module) as hooks:
            result = super().call_module(target, args, kwargs)
        if hooks.changed(args, result):
            reason = Reason("hook", str(target), f"a forward hook changes what {target} works on")
            self.tracker.freeze([args, kwargs, result, hooks.seen, hooks.made], reason)
            self.tracker.freeze([*module.parameters(), *module.buffers()], reason)
        if not type(module).__module__.startswith("torch.nn") and self.tracker.mixing:
            reason = Reason(
                type(module).__name__,
                str(target),
                f"{target} calls {self.tracker.mixing[0]} out of sight",
            )
            self.tracker.freeze([args, kwargs, result], reason)
        if not is_resizable(module):
            kind = type(module).__name__
            reason = Reason(kind, str(target), f"{kind} is a module that cannot be resized")
            self.tracker.freeze(list(module.parameters()), reason)
            self.tracker.freeze(list(module.buffers()), reason)
        return result


class _Runner(nn.Module):
    """Lets `functional_call` swap the parameters of a captured module while it is interpreted."""

    def __init__(self, interpreter: _TypedInterpreter) -> None:
        super().__init__()
        self.module = interpreter.module
        self._interpreter = interpreter

    def forward(self, *args: Any) -> Any:
        return self._interpreter.run(*args, enable_io_processing=False)


def infer(captured: Captured) -> Analysis:
    """Type every tensor of `captured`; well under a second even for large models."""
    module = captured.module
    known = {name: numbers_in(tensor) for name, tensor in module.named_buffers()}
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        fakes = Fakes(fake)
        tracker = AxisTracker(fakes)
        interpreter = _TypedInterpreter(module, tracker)
        state = fakes.of_state(dict(named_tensors(module)))
        inputs = tree_map_only(Tensor, fake.from_tensor, captured.example_inputs)
        for tensor in state.values():
            tracker.give(tensor, tuple(tracker.unifier.fresh(size) for size in tensor.shape))
            tracker.weigh(tensor)
        for name, numbers in known.items():
            if numbers is not None:
                tracker.indices.know(state[name], numbers)
        runner = _Runner(interpreter)
        fake_of = {id(tensor): state[name] for name, tensor in named_tensors(module)}
        swapped = {f"module.{place}": fake_of[id(t)] for place, t in _places(module)}
        try:
            kernels = unfused_attention(), unfused_recurrence()
            left = attributes_restored(module)
            with torch.no_grad(), left, kernels[0], kernels[1], interpreter.regions, tracker:
                torch.func.functional_call(runner, swapped, tuple(inputs), tie_weights=False)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise CaptureError(
                f"{error.func} yields a shape that depends on the values of a tensor",
                f"node {tracker.node}",
                "Write it with a fixed shape (an index tensor in place of a mask, for example)",
            ) from error
    orders = {
        name: digest(numbers)
        for name, numbers in known.items()
        if numbers is not None and tracker.indices.relied_on(state[name])
    }
    return _collect(tracker, interpreter, state, orders)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of `module` by name, tied ones once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _places(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place that holds a parameter or buffer: once for each module, whatever its names.

    `functional_call` finds tied tensors by itself, but puts fakes back into a module that has two
    names.
    """
    for path, part in module.named_modules():
        for leaf, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield f"{path}.{leaf}" if path else leaf, tensor


def _collect(
    tracker: AxisTracker,
    interpreter: _TypedInterpreter,
    state: Mapping[str, Tensor],
    orders: Mapping[str, str],
) -> Analysis:
    for name, tensor in state.items():
        if id(tensor) not in tracker.read:
            tracker.freeze(tensor, Reason("unused", name, "nothing in the graph reads it"))
    typed = {name: tracker.axes_of(tensor) for name, tensor in state.items()}
    values = {
        node: tuple(tracker.axes_of(t) for t in found) for node, found in interpreter.values.items()
    }
    contractions = tuple(
        Contraction(c.node, tuple(map(tracker.unifier.resolve, c.axes)), c.constant)
        for c in tracker.contractions
    )
    reasons = {
        atom: reason
        for atom in dict.fromkeys(_every_atom(typed.values(), *values.values()))
        if (reason := tracker.unifier.reason(atom)) is not None
    }
    return Analysis(
        groups=_groups(typed, reasons),
        tensors=typed,
        values=values,
        scalars=interpreter.scalars,
        reasons=reasons,
        contractions=contractions,
        writes=frozenset(tracker.writes),
        storages={n: tuple(map(storage_of, found)) for n, found in interpreter.values.items()},
        indices=interpreter.indices,
        orders=orders,
        dtypes={n: tuple(t.dtype for t in found) for n, found in interpreter.values.items()},
        weights=frozenset(n for n, tensor in state.items() if id(tensor) in tracker.multiplied),
    )


def _every_atom(*collections: Iterable[Axes]) -> Iterator[Atom]:
    # Many tensors share their axes, each of which has to be looked at once.
    every = {id(axis): axis for axes in chain.from_iterable(collections) for axis in axes}
    return chain.from_iterable(axis.atoms for axis in every.values())


def _groups(typed: Mapping[str, Axes], reasons: Mapping[Atom, Reason]) -> tuple[Group, ...]:
    members: dict[Atom, list[Member]] = defaultdict(list)
    for name, axes in typed.items():
        for dim, axis in enumerate(axes):
            for atom in dict.fromkeys(axis.atoms):
                if atom not in reasons:
                    members[atom].append(Member(name, dim))
    taken: dict[str, int] = defaultdict(int)
    groups = []
    for atom, places in members.items():
        name = str(places[0])
        taken[name] += 1
        # A dimension that was cut or factored holds several groups: number all but the first.
        label = name if taken[name] == 1 else f"{name}.{taken[name]}"
        groups.append(Group(label, atom, tuple(places)))
    return tuple(groups)
