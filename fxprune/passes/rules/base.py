"""What a typing rule sees of one ATen call, and the table that rules register themselves in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from fxprune.axes import ONE, Axes, Axis, Positions, Reason
from fxprune.passes.indices import Indices
from fxprune.unifier import Unifier

Outputs = Axes | list[Axes]
Rule = Callable[["Op"], Outputs]


@dataclass(frozen=True)
class Contraction:
    """Multiply-accumulates of one ATen call: `constant` times the sizes of all `axes`."""

    node: str
    axes: Axes
    constant: int


@dataclass
class Op:
    """One ATen call, with fake tensors for arguments and results, and the axes known so far.

    `renormalises` says that the node is nothing but this call, a norm or a reduction, and that the
    verifier's reference computes it over the positions that are kept. `chooses` says that numbers
    of positions in the node's arguments can be rewritten.
    """

    func: OpOverload
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any
    node: str
    renormalises: bool
    unifier: Unifier
    axes_of: Callable[[Tensor], Axes]
    indices: Indices
    chooses: bool
    contractions: list[Contraction] = field(default_factory=list)

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Argument `name`, whether it came by position or by keyword."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of `tensor`, in normal form."""
        return self.axes_of(tensor)

    def reason(self, detail: str) -> Reason:
        """A reason that names this call."""
        return Reason(str(self.func), self.node, detail)

    def unify(self, left: Axis, right: Axis) -> None:
        """Make two axes one; where they have no common form, both stay dense."""
        self.unifier.unify(left, right, self.reason("axes with no common factorisation"))

    def freeze(self, axis: Axis, detail: str) -> None:
        """Keep every position of `axis`, because of `detail`."""
        self.unifier.freeze(axis, self.reason(detail))

    def frozen(self, size: int, detail: str) -> Axis:
        """A new axis that keeps every position."""
        return self.unifier.fresh(size, self.reason(detail))

    def factor(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        """`axis` as a row-major product of factors with the given `sizes`."""
        return self.unifier.factor(axis, sizes, self.reason("view across channel boundaries"))

    def pieces(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        """`axis` cut into consecutive pieces of the given `sizes`."""
        return self.unifier.pieces(axis, sizes, self.reason("cut across channels in another order"))

    def pick(self, axis: Axis, index: Positions) -> Axis:
        """The positions of `axis` that `index` lists."""
        return self.unifier.pick(axis, index, self.reason("picked across channel boundaries"))

    def contract(self, axes: Sequence[Axis], constant: int = 1) -> None:
        """Record the multiply-accumulates of this call."""
        self.contractions.append(Contraction(self.node, tuple(axes), constant))


def tensors(values: Any) -> list[Tensor]:
    """Every tensor in the (nested) arguments `values`, in order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [t for value in values for t in tensors(value)]
    if values is None or isinstance(values, (bool, int, float, str)):
        return []
    if isinstance(values, Mapping):
        return [t for value in values.values() for t in tensors(value)]
    if is_dataclass(values):
        return [t for part in fields(values) for t in tensors(getattr(values, part.name))]
    return []


class RuleTable:
    """Rules by operator. Registered while the rule modules are imported, only read afterwards."""

    def __init__(self) -> None:
        self._rules: dict[OpOverloadPacket[..., Any], Rule] = {}

    def register(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorator: the rule for the ATen operators `names`, all overloads and in-place forms."""

        def add(rule: Rule) -> Rule:
            for name in names:
                for variant in (name, name + "_"):
                    packet = getattr(torch.ops.aten, variant, None)
                    if packet is None:
                        if variant == name:
                            raise LookupError(f"no ATen operator is called {name!r}")
                        continue
                    if packet in self._rules:
                        raise LookupError(f"two rules for the ATen operator {variant!r}")
                    self._rules[packet] = rule
            return rule

        return add

    def __iter__(self) -> Iterator[Rule]:
        """Every rule that may be found, each once."""
        return iter(dict.fromkeys((*self._rules.values(), broadcast, unknown)))

    def find(self, func: OpOverload) -> Rule:
        """The rule for `func`; the frozen rule where there is none."""
        rule = self._rules.get(func.overloadpacket)
        if rule is not None:
            return rule
        return broadcast if _is_pointwise(func) else unknown


@functools.cache
def _is_pointwise(func: OpOverload) -> bool:
    """PyTorch's own tag; some in-place forms lack the tag that their plain form has."""
    if torch.Tag.pointwise in func.tags:
        return True
    plain = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    overloads = plain.overloads() if plain is not None else ()
    return any(torch.Tag.pointwise in getattr(plain, name).tags for name in overloads)


RULES = RuleTable()
rule = RULES.register


def broadcast(op: Op) -> Outputs:
    """Pointwise operators: dimensions aligned from the right agree wherever they are not 1 wide."""
    operands = tensors([op.args, op.kwargs])
    return [
        broadcast_axes(op, [op.axes(t) for t in operands], tuple(result.shape))
        for result in tensors(op.out)
    ]


def broadcast_axes(op: Op, operands: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """The axes of a result of `shape` that all `operands` are broadcast to."""
    result: list[Axis] = []
    for from_right in range(len(shape), 0, -1):
        size = shape[-from_right]
        aligned = [axes[-from_right] for axes in operands if len(axes) >= from_right]
        same = [axis for axis in aligned if axis.size == size and size != 1]
        for axis in same[1:]:
            op.unify(same[0], axis)
        result.append(same[0] if same else (ONE if size == 1 else op.unifier.fresh(size)))
    return tuple(op.unifier.resolve(axis) for axis in result)


def unknown(op: Op) -> Outputs:
    """No rule: nothing that this call reads or writes may lose positions."""
    for tensor in tensors([op.args, op.kwargs]):
        for axis in op.axes(tensor):
            op.freeze(axis, "no typing rule for this operator")
    return [
        tuple(op.frozen(size, "no typing rule for this operator") for size in result.shape)
        for result in tensors(op.out)
    ]
