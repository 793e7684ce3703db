"""The dispatch mode that types every ATen call: it applies rules and remembers what came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.axes import Axes, Reason
from fxprune.passes.fakes import Fakes, storage_of
from fxprune.passes.indices import Indices, written_by
from fxprune.passes.rules import RULES, Contraction, Op, broadcast, tensors
from fxprune.unifier import Unifier

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
# A weight that is scaled by what flows is still that weight, as modulated convolutions have it.
SCALING = frozenset({"mul", "div"})
REARRANGED = ".views"


class AxisTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the typing rule of every ATen call and remembers the axes of every tensor."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fakes = fakes
        self.unifier = Unifier()
        self.contractions: list[Contraction] = []
        self.node = ""
        self.renormalises = False
        self.contracts = False
        """Whether the present node is nothing but a contraction; see `_keep_summed`."""
        self.indices = Indices()
        self.chooses = False
        """Whether numbers of positions in the arguments of the present node can be rewritten."""
        self._axes: dict[int, tuple[int, Axes]] = {}
        """By tensor: its axes, and up to which change of the unifier they are resolved."""
        self._alive: list[Tensor] = []
        self._yielded: set[int] = set()
        self._flowing: set[int] = set()
        self._made_of: dict[int, frozenset[int]] = {}
        """By tensor: the parameters and buffers that it is computed from, if it is a weight."""
        self.multiplied: set[int] = set()
        """Parameters and buffers that a contraction multiplies, by the number of their tensor."""
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
        """A statistic of parameters alone is taken of all their positions, whatever stays.

        A contraction in a node of its own is not: the verifier's reference masks what it is given.
        """
        left = {
            atom for axes in results for axis in axes for atom in self.unifier.resolve(axis).atoms
        }
        reason = op.reason("a statistic of parameters is taken over these positions")
        for tensor in tensors([op.args, op.kwargs]):
            for axis in self.axes_of(tensor):
                for atom in axis.atoms:
                    if atom not in left:
                        self.unifier.freeze(atom, reason)

    def _keep_relying(self, written: Iterable[Tensor]) -> None:
        """Positions that correspond only as long as a tensor stays as it is are kept."""
        reason = Reason("in-place", self.node, "what they are chosen by is written to")
        for axis in self.indices.written(written):
            self.unifier.freeze(axis, reason)

    def weigh(self, tensor: Tensor) -> None:
        """`tensor` is a parameter or buffer of the model."""
        self._made_of[id(tensor)] = frozenset((id(tensor),))

    def _weights_in(self, given: Iterable[Tensor]) -> frozenset[int]:
        return frozenset().union(*(self._made_of.get(id(t), ()) for t in given))

    def _carry(self, given: Sequence[Tensor], results: Iterable[Tensor]) -> None:
        """What is computed of weights is made of them."""
        found = self._weights_in(given)
        if found:
            self._made_of.update((id(result), found) for result in results)

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
        results = tensors(out)
        if func._schema.is_mutable:
            self.writes.add(self.node)
            self._keep_relying(written_by(func, args, kwargs))
        self.indices.follow(func, given, results)
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
                self.indices,
                self.chooses,
                self.contractions,
            )
            rule = RULES.find(func)
            if rule is not broadcast:
                self.mixing.append(func)
            known = len(self.contractions)
            found = rule(op)
            if len(self.contractions) > known:
                self.multiplied.update(self._weights_in(given))
            typed = found if isinstance(found, list) else [found]
            name = func.overloadpacket.__name__
            flows = name in ZEROS or not self._flowing.isdisjoint(map(storage_of, given))
            if flows:
                self.flow(results)
            elif rule.__module__.endswith(STATISTICS) and not self.contracts:
                self._keep_summed(op, typed)
            if not flows or name in SCALING or rule.__module__.endswith(REARRANGED):
                self._carry(given, results)
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
