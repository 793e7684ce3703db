"""Axis inference: type every tensor of a captured model with the axes of its dimensions.

The graph is interpreted once with fake tensors (no arithmetic, no memory). A dispatch mode sees
every ATen call that the nodes make, whatever the capture was, and applies the typing rule of the
operator; the interpreter ties the axes of each result to its fx node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fxprune.axes import (
    Atom,
    Axes,
    Axis,
    Reason,
    Unifier,
    atoms,
)
from fxprune.errors import CaptureError
from fxprune.passes.capture import Captured
from fxprune.passes.fakes import Fakes, storage_of
from fxprune.passes.glue.module import Use
from fxprune.passes.hooks import HookWatch
from fxprune.passes.modules import is_resizable, renormalises
from fxprune.passes.rules import RULES, Contraction, Op, broadcast, tensors
from fxprune.passes.rules.recurrent import TELLING_BY_WIDTH, told_by_width
from fxprune.passes.trace import is_opaque, unfused_attention

# Operators that change the dimensions of the tensor they are called on.
REARRANGING = frozenset(
    {"transpose_", "t_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "as_strided_"}
)

# A change of the unifier that is before all others.
NEVER = -1

# Zeros add nothing to a sum, whichever positions stay: they are as good as an input.
ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
# Families of rules that sum over positions; see `AxisTracker._keep_summed`.
STATISTICS = (".reduction", ".contraction", ".normalisation")


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
        dtypes: of every tensor in the result of a node.
    """

    groups: tuple[Group, ...]
    tensors: Mapping[str, Axes]
    values: Mapping[str, tuple[Axes, ...]]
    scalars: Mapping[str, Any]
    reasons: Mapping[Atom, Reason]
    contractions: tuple[Contraction, ...]
    writes: frozenset[str]
    storages: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, tuple[torch.dtype, ...]]
    _group_of: dict[Atom, Group] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_group_of", {group.atom: group for group in self.groups})

    def group_of(self, atom: Atom) -> Group | None:
        """The group that `atom` is the positions of, if it is free and has members."""
        return self._group_of.get(atom)

    def groups_in(self, axis: Axis) -> tuple[Group, ...]:
        """The groups that `axis` is made of, each once."""
        found = (self._group_of.get(atom) for atom in dict.fromkeys(atoms(axis)))
        return tuple(group for group in found if group is not None)


class AxisTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the typing rule of every ATen call and remembers the axes of every tensor."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fakes = fakes
        self.unifier = Unifier()
        self.contractions: list[Contraction] = []
        self.node = ""
        self.renormalises = False
        self._axes: dict[int, tuple[int, Axes]] = {}
        """By tensor: its axes, and up to which change of the unifier they are resolved."""
        self._alive: list[Tensor] = []
        self._yielded: set[int] = set()
        self._flowing: set[int] = set()
        self.mixing: list[OpOverload] = []
        """Calls of the present node that are not pointwise."""
        self.writes: set[str] = set()
        self.read: set[int] = set()

    def give(self, tensor: Tensor, axes: Axes) -> None:
        """Set the axes of `tensor`; one that already has axes (an in-place result) unifies them."""
        known = self._axes.get(id(tensor))
        if known is not None and len(known[1]) == len(axes):
            reason = Reason("in-place", self.node, "axes with no common factorisation")
            for old, new in zip(known[1], axes, strict=True):
                self.unifier.unify(old, new, reason)
            return
        self._axes[id(tensor)] = NEVER, axes
        self._alive.append(tensor)

    def rearrange(self, tensor: Tensor, axes: Axes) -> None:
        """New dimensions for `tensor` itself, after `transpose_` and the like.

        If a node of the graph yielded it before, nobody can tell which of its forms is meant from
        now on, so both stay dense.
        """
        if id(tensor) in self._yielded:
            reason = Reason("in-place", self.node, "dimensions changed in place")
            for axis in (*self.axes_of(tensor), *axes):
                self.unifier.freeze(axis, reason)
        self._axes[id(tensor)] = NEVER, axes

    def yielded(self, values: Any) -> tuple[Tensor, ...]:
        """The tensors in `values`, which a node of the graph yields."""
        found = tuple(tensors(values))
        self._yielded.update(map(id, found))
        return found

    def flow(self, values: Iterable[Tensor]) -> None:
        """These tensors depend on an input of the model."""
        self._flowing.update(map(storage_of, values))

    def _keep_summed(self, op: Op, results: Iterable[Axes]) -> None:
        """A statistic of parameters alone is taken of all their positions, whatever stays."""
        left = {
            atom for axes in results for axis in axes for atom in atoms(self.unifier.resolve(axis))
        }
        reason = op.reason("a statistic of parameters is taken over these positions")
        for tensor in tensors([op.args, op.kwargs]):
            for axis in self.axes_of(tensor):
                for atom in atoms(axis):
                    if atom not in left:
                        self.unifier.freeze(atom, reason)

    def axes_of(self, tensor: Tensor) -> Axes:
        """The axes of `tensor` as far as they are known now; those of an unknown constant stay."""
        if id(tensor) not in self._axes:
            reason = Reason("constant", self.node, "a tensor that is not part of the graph")
            self.give(tensor, tuple(self.unifier.fresh(size, reason) for size in tensor.shape))
        when, axes = self._axes[id(tensor)]
        if when != self.unifier.changes:
            axes = tuple([self.unifier.resolve(axis) for axis in axes])
            self._axes[id(tensor)] = self.unifier.changes, axes
        return axes

    def freeze(self, values: Any, reason: Reason) -> None:
        """Freeze every dimension of every tensor in `values`."""
        for tensor in tensors(values):
            for axis in self.axes_of(tensor):
                self.unifier.freeze(axis, reason)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out, given = self.fakes.run(func, args, kwargs)
        self.read.update(map(id, given))
        if func._schema.is_mutable:
            self.writes.add(self.node)
        results = tensors(out)
        if results:
            op = Op(
                func,
                args,
                kwargs,
                out,
                self.node,
                self.renormalises,
                self.unifier,
                self.axes_of,
                self.contractions,
            )
            rule = RULES.find(func)
            if rule is not broadcast:
                self.mixing.append(func)
            found = rule(op)
            typed = found if isinstance(found, list) else [found]
            name = func.overloadpacket.__name__
            if name in ZEROS or not self._flowing.isdisjoint(map(storage_of, given)):
                self.flow(results)
            elif rule.__module__.endswith(STATISTICS):
                self._keep_summed(op, typed)
            for result, axes in zip(results, typed, strict=True):
                if [axis.size for axis in axes] != list(result.shape):
                    raise AssertionError(
                        f"rule of {func}: {axes} for a result {tuple(result.shape)}"
                    )
                if name in REARRANGING:
                    self.rearrange(result, axes)
                else:
                    self.give(result, axes)
        return out


class _TypedInterpreter(fx.Interpreter):
    """Interprets the graph under a tracker, and collects what each node yields."""

    def __init__(self, module: fx.GraphModule, tracker: AxisTracker) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.tracker = tracker
        self.values: dict[str, tuple[Tensor, ...]] = {}
        self.scalars: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.tracker.node = n.name
        self.tracker.mixing.clear()
        self.tracker.renormalises = renormalises(self.submodules, n)
        result = super().run_node(n)
        if n.op == "call_function" and is_opaque(self.submodules, n):
            name = getattr(n.target, "__name__", str(n.target))
            reason = Reason(name, n.name, f"{name} is a function that cannot be looked into")
            given = self.map_nodes_to_values((n.args, n.kwargs), n)
            self.tracker.freeze([given, result], reason)
        if isinstance(n.target, Use):
            self._keep_read(n, n.target)
        self._keep_told(n)
        self.values[n.name] = self.tracker.yielded(result)
        if not self.values[n.name]:
            self.scalars[n.name] = result
        if n.op == "output":
            self.tracker.freeze(
                result, Reason("output", n.name, "a dimension of the model's output")
            )
        return result

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
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        fakes = Fakes(fake)
        tracker = AxisTracker(fakes)
        interpreter = _TypedInterpreter(module, tracker)
        state = fakes.of_state(dict(named_tensors(module)))
        inputs = tree_map_only(Tensor, fake.from_tensor, captured.example_inputs)
        for tensor in state.values():
            tracker.give(tensor, tuple(tracker.unifier.fresh(size) for size in tensor.shape))
        runner = _Runner(interpreter)
        fake_of = {id(tensor): state[name] for name, tensor in named_tensors(module)}
        swapped = {f"module.{place}": fake_of[id(t)] for place, t in _places(module)}
        try:
            with torch.no_grad(), unfused_attention(), tracker:
                torch.func.functional_call(runner, swapped, tuple(inputs), tie_weights=False)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise CaptureError(
                f"{error.func} yields a shape that depends on the values of a tensor",
                f"node {tracker.node}",
                "Write it with a fixed shape (an index tensor in place of a mask, for example)",
            ) from error
    return _collect(tracker, interpreter, state)


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
    tracker: AxisTracker, interpreter: _TypedInterpreter, state: Mapping[str, Tensor]
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
        for axis in _every_axis(typed.values(), *values.values())
        for atom in atoms(axis)
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
        dtypes={n: tuple(t.dtype for t in found) for n, found in interpreter.values.items()},
    )


def _every_axis(*collections: Iterable[Axes]) -> Iterator[Axis]:
    for collection in collections:
        for axes in collection:
            yield from axes


def _groups(typed: Mapping[str, Axes], reasons: Mapping[Atom, Reason]) -> tuple[Group, ...]:
    members: dict[Atom, list[Member]] = defaultdict(list)
    for name, axes in typed.items():
        for dim, axis in enumerate(axes):
            for atom in dict.fromkeys(atoms(axis)):
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
