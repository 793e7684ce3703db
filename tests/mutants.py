"""Faults put into slimming on purpose, to see whether the verifier notices.

A `Subject` is a model that was slimmed correctly. Each kind below is a generator of mutants: it
yields, for every place where the fault can be put, what must be verified instead: a damaged slim
model, or a slim model made from a damaged analysis, as a wrong typing rule would have made it.
Faults that change nothing (a concatenation of equal parts turned around) are not yielded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.axes import Atom, Axes, Axis, Concat, Product, atoms
from fxprune.passes.capture import Captured, capture
from fxprune.passes.constants import operation
from fxprune.passes.infer import Analysis, Group, infer, named_tensors
from fxprune.passes.slim import slim
from fxprune.passes.slimming import Kept
from fxprune.plan import Plan
from tests import blocks
from tests.generate import enliven
from tests.properties import plan_of


@dataclass(frozen=True)
class Subject:
    """A model, and its slim form; or one of the two with a fault in it."""

    captured: Captured
    analysis: Analysis
    plan: Plan
    slim: fx.GraphModule

    def damaged(self) -> fx.GraphModule:
        """A copy of the slim model, for a fault to be put in."""
        return copy.deepcopy(self.slim)


@dataclass(frozen=True)
class Mutant:
    """A fault: its kind, where it is, and what has to be verified."""

    kind: str
    place: str
    subject: Subject


Kind = Callable[[Subject], Iterator[tuple[str, Subject]]]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    """Decorator: registers a kind of fault under the name of its function."""
    KINDS[make.__name__] = make
    return make


def mutants(subject: Subject, name: str) -> Iterator[Mutant]:
    """Every mutant of one kind."""
    for place, damaged in KINDS[name](subject):
        yield Mutant(name, place, damaged)


# -- subjects --------------------------------------------------------------------------------------


class Convolutional(nn.Module):
    """Residual, concatenated, grouped, depthwise, shuffled, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.right = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.shuffle = blocks.Shuffle(4, 16, "numbers")
        self.gate = blocks.SqueezeExcite(16, 6, "linear")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Conv2d(16, 8, 1)
        self.split = blocks.Halves(nn.Conv2d(4, 4, 3, padding=1), "chunk", 4, 8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.left(x)
        y = torch.cat([x, self.right(x)], dim=1)
        y = self.gate(self.shuffle(self.norm(self.grouped(y))))
        y = self.last(torch.relu(self.depthwise(y)))
        z = torch.cat([self.split(y), x], dim=1)
        return self.head(z.mean((2, 3)))


class Transforming(nn.Module):
    """Patches, class token, two ways of attention, a gated MLP, a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.tokens = blocks.Tokens(8, 9, class_token=True, position=True)
        self.first = blocks.Residual(
            nn.Sequential(nn.LayerNorm(8), blocks.Attention(8, 3, 4, "fused chunk", "sdpa", 10))
        )
        self.second = blocks.Residual(
            nn.Sequential(nn.RMSNorm(8), blocks.Attention(8, 2, 4, "separate", "biased", 10))
        )
        self.third = blocks.Residual(
            nn.Sequential(nn.LayerNorm(8), blocks.Attention(8, 2, 4, "fused", "shape", 10))
        )
        self.mlp = blocks.Residual(nn.Sequential(nn.LayerNorm(8), blocks.SwiGlu(8, 12, True)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.patches(x))
        return self.head(self.mlp(self.third(self.second(self.first(x))))[:, 0])


class Assorted(nn.Module):
    """Gated halves, strides, tied weights, a shared layer, frozen channels, an outer product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.second = blocks.Functional(12, 16, 3, 2, bias=True)
        self.up = nn.PixelShuffle(2)
        self.third = nn.Conv2d(4, 12, 3, padding=1)
        self.tied = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.tied[1].weight = self.tied[0].weight
        self.shared = nn.Linear(6, 6)
        self.along = nn.Linear(6, 8)
        self.after = nn.Linear(8, 6)
        self.outer = blocks.Outer(6, 3, 4, "einsum")
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.first(x).chunk(2, dim=1)
        x = self.up(self.second(value * torch.sigmoid(gate)))
        x = self.third(x)
        v = (x[:, ::2] * x[:, 1::2].tanh()).mean((2, 3))
        v = self.shared(torch.relu(self.tied[0](v)))
        v = v + self.shared(torch.tanh(self.tied[1](v)))
        v = v + self.after(torch.softmax(self.along(v), dim=1))
        return self.head(self.outer(v))


def subjects() -> list[Subject]:
    """The three models, each with its groups cut to about two thirds."""
    found = []
    for build, size in ((Convolutional, 8), (Transforming, 6), (Assorted, 6)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build().double().eval()
            enliven(model)
            captured = capture(model, (torch.randn(8, 3, size, size, dtype=torch.float64),))
        analysis = infer(captured)
        some = {g.name: _some(g.size, i) for i, g in enumerate(analysis.groups)}
        plan = plan_of(analysis, some)
        found.append(Subject(captured, analysis, plan, slim(captured, analysis, plan)))
    return found


def _some(size: int, group: int) -> tuple[int, ...]:
    """About two thirds of the positions, other ones for every group."""
    return tuple(p for p in range(size) if size == 2 or (p + group) % 3 != 1)


# -- faults in the tensors of the slim model -------------------------------------------------------


def _tensors(subject: Subject, kinds: type = Tensor) -> Iterator[tuple[str, Axes]]:
    """Names and axes of the tensors that lose positions."""
    kept = Kept.from_plan(subject.plan, subject.analysis)
    for name, tensor in named_tensors(subject.slim):
        axes = subject.analysis.tensors[name]
        if any(map(kept.touches, axes)) and isinstance(tensor, kinds):
            yield name, axes


def _retaken(subject: Subject, choose: Callable[[int, Tensor], Tensor | None]) -> Iterator[Any]:
    """Slim models in which one dimension of one tensor was taken with other indices.

    `choose(size, kept)` gives the wrong positions for the right ones, or None.
    """
    kept = Kept.from_plan(subject.plan, subject.analysis)
    dense = dict(named_tensors(subject.captured.module))
    for name, axes in _tensors(subject):
        for dim, axis in enumerate(axes):
            if not kept.touches(axis):
                continue
            right = torch.from_numpy(kept.indices(axis))
            wrong = choose(axis.size, right)
            if wrong is None or torch.equal(wrong, right):
                continue
            part = dense[name].detach()
            for other, term in enumerate(axes):
                index = wrong if other == dim else torch.from_numpy(kept.indices(term))
                part = part.index_select(other, index)
            module = subject.damaged()
            dict(named_tensors(module))[name].data = part.contiguous()
            yield f"{name}[{dim}]", replace(subject, slim=module)


@kind
def kept_order_reversed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    yield from _retaken(subject, lambda size, kept: kept.flip(0))


@kind
def first_positions_instead_of_kept_ones(subject: Subject) -> Iterator[tuple[str, Subject]]:
    yield from _retaken(subject, lambda size, kept: torch.arange(len(kept)))


@kind
def one_position_of_the_neighbour(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def off_by_one(size: int, kept: Tensor) -> Tensor:
        wrong = kept.clone()
        wrong[-1] = (wrong[-1] + 1) % size
        return wrong

    yield from _retaken(subject, off_by_one)


@kind
def tensor_not_sliced(subject: Subject) -> Iterator[tuple[str, Subject]]:
    yield from _retaken(subject, lambda size, kept: torch.arange(size))


@kind
def stale_norm_statistics(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Mean and variance of a batch norm left as they are after initialisation."""
    for name, module in subject.slim.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            damaged = subject.damaged()
            damaged.get_submodule(name).reset_running_stats()
            yield name, replace(subject, slim=damaged)


@kind
def norm_of_the_neighbour(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Scale and offset of one norm in another of the same width."""
    norms = [
        (name, module)
        for name, module in subject.slim.named_modules()
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm))
    ]
    for name, module in norms:
        for other, neighbour in norms:
            if other == name or type(module) is not type(neighbour):
                continue
            if module.weight.shape == neighbour.weight.shape:
                damaged = subject.damaged()
                damaged.get_submodule(name).weight = copy.deepcopy(neighbour.weight)
                yield f"{other} in {name}", replace(subject, slim=damaged)


@kind
def bias_lost(subject: Subject) -> Iterator[tuple[str, Subject]]:
    for name, module in subject.slim.named_modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            damaged = subject.damaged()
            damaged.get_submodule(name).register_parameter("bias", None)
            yield name, replace(subject, slim=damaged)


@kind
def weights_drawn_anew(subject: Subject) -> Iterator[tuple[str, Subject]]:
    for name, _ in _tensors(subject, nn.Parameter):
        damaged = subject.damaged()
        tensor = dict(named_tensors(damaged))[name]
        tensor.data = torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype
        )
        yield name, replace(subject, slim=damaged)


@kind
def weights_rounded(subject: Subject) -> Iterator[tuple[str, Subject]]:
    for name, _ in _tensors(subject, nn.Parameter):
        damaged = subject.damaged()
        tensor = dict(named_tensors(damaged))[name]
        tensor.data = tensor.data.float().double()
        yield name, replace(subject, slim=damaged)


@kind
def weights_untied(subject: Subject) -> Iterator[tuple[str, Subject]]:
    once = {name for name, _ in subject.slim.named_parameters()}
    for name, tensor in subject.slim.named_parameters(remove_duplicate=False):
        if name not in once:
            damaged = subject.damaged()
            path, _, leaf = name.rpartition(".")
            setattr(damaged.get_submodule(path), leaf, nn.Parameter(tensor.detach().clone()))
            yield name, replace(subject, slim=damaged)


# -- faults in the modules and the graph of the slim model -----------------------------------------


def _edited(
    subject: Subject, edit: Callable[[fx.GraphModule, fx.Node], bool | None]
) -> Iterator[tuple[str, Subject]]:
    """One slim model for each node that `edit` changes; it returns False where it does not."""
    for number, node in enumerate(subject.slim.graph.nodes):
        damaged = subject.damaged()
        twin = list(damaged.graph.nodes)[number]
        if edit(damaged, twin) is False:
            continue
        damaged.graph.lint()
        damaged.recompile()
        yield node.name, replace(subject, slim=damaged)


def _with_module(types: type | tuple[type, ...], change: Callable[[Any], bool | None]) -> Kind:
    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if node.op != "call_module":
            return False
        owner = module.get_submodule(str(node.target))
        return change(owner) if isinstance(owner, types) else False

    return lambda subject: _edited(subject, edit)


def _with_call(names: set[str], change: Callable[[fx.Node], bool | None]) -> Kind:
    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        return change(node) if operation(node) in names else False

    return lambda subject: _edited(subject, edit)


@kind
def wrong_group_count(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(conv: nn.Conv2d) -> bool | None:
        if conv.groups == 1:
            return False
        conv.groups = 1
        return None

    yield from _with_module(nn.Conv2d, change)(subject)


@kind
def norm_groups_merged(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(norm: nn.GroupNorm) -> None:
        norm.num_groups = 1

    yield from _with_module(nn.GroupNorm, change)(subject)


@kind
def norm_epsilon_changed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(norm: Any) -> None:
        norm.eps = 1e-3

    yield from _with_module((nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), change)(
        subject
    )


@kind
def stride_or_padding_changed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(conv: nn.Conv2d) -> bool | None:
        if conv.kernel_size == (1, 1):
            return False
        conv.padding_mode = "circular"
        conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
        return None

    yield from _with_module(nn.Conv2d, change)(subject)


@kind
def activation_dropped(subject: Subject) -> Iterator[tuple[str, Subject]]:
    names = {"relu", "sigmoid", "tanh", "silu", "softmax"}

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        is_module = node.op == "call_module" and isinstance(
            module.get_submodule(str(node.target)), (nn.ReLU, nn.SiLU)
        )
        if not is_module and operation(node) not in names:
            return False
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
        return None

    yield from _edited(subject, edit)


@kind
def concatenation_turned_around(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        node.args = (list(reversed(node.args[0])), *node.args[1:])

    yield from _with_call({"cat"}, change)(subject)


@kind
def halves_swapped(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> bool | None:
        source, index = node.args
        if operation(source) not in {"split", "chunk", "unbind"}:
            return False
        node.args = (source, (index + 1) % 2)
        return None

    yield from _with_call({"getitem"}, change)(subject)


@kind
def wrong_branch(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """One operand of a sum or a product is the other one."""

    def change(node: fx.Node) -> bool | None:
        left, right = node.args[:2]
        shapes = [subject.analysis.values[n.name][0] for n in (left, right) if _is_tensor(n)]
        if len(shapes) < 2 or len(shapes[0]) != len(shapes[1]):
            return False
        node.args = (left, left)
        return None

    def _is_tensor(value: Any) -> bool:
        return isinstance(value, fx.Node) and bool(subject.analysis.values[value.name])

    yield from _with_call({"add", "mul"}, change)(subject)


@kind
def sizes_exchanged(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Two neighbouring numbers of a shape change places, as with heads and their width."""

    def change(node: fx.Node) -> bool | None:
        shape = list(node.args[1:])
        pairs = [
            i
            for i, (a, b) in enumerate(pairwise(shape))
            if isinstance(a, int) and isinstance(b, int) and a != b and min(a, b) > 0
        ]
        if not pairs:
            return False
        i = pairs[-1]
        shape[i], shape[i + 1] = shape[i + 1], shape[i]
        node.args = (node.args[0], *shape)
        return None

    yield from _with_call({"view", "reshape"}, change)(subject)


@kind
def size_off_by_one(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> bool | None:
        place = next((i for i, a in enumerate(node.args) if isinstance(a, int) and a > 1), None)
        if place is None:
            return False
        node.args = tuple(a + 1 if i == place else a for i, a in enumerate(node.args))
        return None

    yield from _with_call({"view", "reshape", "expand"}, change)(subject)


@kind
def split_moved(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        first, second, *rest = node.args[1]
        node.args = (node.args[0], [first + 1, second - 1, *rest], *node.args[2:])

    yield from _with_call({"split"}, change)(subject)


@kind
def slice_moved(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Every other position, but starting at the wrong one; or another token."""

    def change(node: fx.Node) -> bool | None:
        source, index = node.args
        if not isinstance(index, tuple):
            return False
        moved = tuple(_moved(entry) for entry in index)
        node.args = (source, moved)
        return moved != index

    def _moved(entry: Any) -> Any:
        if isinstance(entry, slice) and entry.step == 2:
            return slice(1 - (entry.start or 0), None, 2)
        return entry + 1 if isinstance(entry, int) else entry

    yield from _with_call({"getitem"}, change)(subject)


@kind
def attention_scale_dropped(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "scale"}

    yield from _with_call({"scaled_dot_product_attention"}, change)(subject)


@kind
def number_follows_the_width(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """A number that came from a dense width is taken from the slim one."""

    def change(node: fx.Node) -> bool | None:
        if not isinstance(node.args[1], (int, float)):
            return False
        node.args = (node.args[0], node.args[1] * (3 / 4) ** 0.5)
        return None

    yield from _with_call({"mul", "truediv"}, change)(subject)


@kind
def order_of_dimensions(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """A permutation of dimensions is left out."""

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if operation(node) not in {"transpose", "permute"}:
            return False
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
        return None

    yield from _edited(subject, edit)


@kind
def reduced_the_wrong_dimension(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        wrong = (1, 2) if isinstance(dim, tuple) else -2 if dim == -1 else 0
        node.args, node.kwargs = (node.args[0], wrong), {}

    yield from _with_call({"mean", "softmax"}, change)(subject)


@kind
def layers_exchanged(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """A layer is run with the weights of another of the same shape."""

    def shape(module: nn.Module) -> Any:
        return type(module), [tuple(p.shape) for p in module.parameters()]

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if node.op != "call_module" or not isinstance(
            module.get_submodule(str(node.target)), (nn.Linear, nn.Conv2d)
        ):
            return False
        mine = module.get_submodule(str(node.target))
        for other in module.graph.nodes:
            if other.op != "call_module" or other.target == node.target:
                continue
            if shape(module.get_submodule(str(other.target))) == shape(mine):
                node.target = other.target
                return None
        return False

    yield from _edited(subject, edit)


# -- faults in the analysis: slimmed and verified with the same wrong axes -------------------------


def _resliced(subject: Subject, analysis: Analysis, plan: Plan) -> Subject | None:
    """The slim model that a wrong analysis leads to; None if it cannot even be built."""
    try:
        module = slim(subject.captured, analysis, plan)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
        return None
    return Subject(subject.captured, analysis, plan, module)


def _retyped(subject: Subject, change: Callable[[Axis], Axis]) -> Iterator[tuple[str, Subject]]:
    """Wrong axes for one dimension of one tensor."""
    for name, axes in _tensors(subject):
        for dim, axis in enumerate(axes):
            wrong = change(axis)
            if wrong == axis:
                continue
            typed = (*axes[:dim], wrong, *axes[dim + 1 :])
            analysis = replace(subject.analysis, tensors={**subject.analysis.tensors, name: typed})
            found = _resliced(subject, analysis, subject.plan)
            if found is not None and not _same_tensors(found.slim, subject.slim):
                yield f"{name}[{dim}]", found


def _same_tensors(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(named_tensors(left), named_tensors(right), strict=True)
    return all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)


@kind
def pieces_in_the_wrong_order(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(axis: Axis) -> Axis:
        return Concat(tuple(reversed(axis.parts))) if isinstance(axis, Concat) else axis

    yield from _retyped(subject, change)


@kind
def factors_in_the_wrong_order(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(axis: Axis) -> Axis:
        match axis:
            case Product(factors=factors):
                return Product(tuple(reversed(factors)))
            case Concat(parts=parts):
                return Concat(tuple(map(change, parts)))
            case _:
                return axis

    yield from _retyped(subject, change)


@kind
def coupling_missed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """One member of a group goes its own way: as many positions, but others."""
    for group in subject.analysis.groups:
        kept = subject.plan.kept[group.name]
        if len(group.members) < 2 or len(kept) == group.size:
            continue
        stranger = Atom(-1, group.size)
        others = tuple(sorted((group.size - 1 - p) for p in kept))
        if others == kept:
            others = tuple(range(len(kept)))
        for member in group.members:
            axes = subject.analysis.tensors[member.tensor]
            typed = tuple(
                _exchanged(axis, group.atom, stranger) if dim == member.dim else axis
                for dim, axis in enumerate(axes)
            )
            analysis = replace(
                subject.analysis,
                tensors={**subject.analysis.tensors, member.tensor: typed},
                groups=(*subject.analysis.groups, Group("stranger", stranger, (member,))),
            )
            plan = Plan(
                {**subject.plan.kept, "stranger": others},
                {**subject.plan.sizes, "stranger": group.size},
            )
            found = _resliced(subject, analysis, plan)
            if found is not None:
                yield str(member), found


@kind
def frozen_positions_removed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Positions that depend on each other, taken for free ones."""
    places: dict[Atom, str] = {}
    for name, axes in subject.analysis.tensors.items():
        for axis in axes:
            for atom in atoms(axis):
                if atom in subject.analysis.reasons:
                    places.setdefault(atom, name)
    for atom, name in places.items():
        analysis = replace(
            subject.analysis,
            groups=(*subject.analysis.groups, Group("frozen", atom, ())),
        )
        plan = Plan(
            {**subject.plan.kept, "frozen": tuple(range(1, atom.size))},
            {**subject.plan.sizes, "frozen": atom.size},
        )
        found = _resliced(subject, analysis, plan)
        if found is not None:
            yield f"{name}: {subject.analysis.reasons[atom].detail}", found


def _exchanged(axis: Axis, old: Atom, new: Atom) -> Axis:
    match axis:
        case Atom():
            return new if axis == old else axis
        case Product(factors=factors):
            return Product(tuple(_exchanged(f, old, new) for f in factors))
        case Concat(parts=parts):
            return Concat(tuple(_exchanged(p, old, new) for p in parts))
