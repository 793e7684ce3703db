"""Residual blocks: branches that an addition adds to a skip, and that can be left out.

Without its branch an addition yields the skip, as if the branch had yielded zeros. Leaving out
blocks never cuts the network apart: whatever input reaches an addition reaches it through the skip
as well, so that any choice of blocks may go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile

from torch import fx, nn

from fxprune.errors import PlanMismatch
from fxprune.passes.constants import operation
from fxprune.passes.infer import Analysis, named_tensors

ADDITIONS = frozenset({"add", "add_", "iadd"})


@dataclass(frozen=True)
class Block:
    """One branch that may be left out. All names are those of nodes in the captured graph.

    Attributes:
        addition: adds the branch to the skip; also the name of the block.
        branch: yields what is added.
        skip: what remains without the branch.
        nodes: whatever is needed for the branch only.
        tensors: parameters and buffers that nothing else uses, by qualified name.
        place: the module that these belong to, for people.
        copies: somebody writes into the sum, and must not write into the skip instead.
    """

    addition: str
    branch: str
    skip: str
    nodes: frozenset[str]
    tensors: frozenset[str]
    place: str
    copies: bool

    @property
    def name(self) -> str:
        """Tells blocks apart."""
        return self.addition

    @property
    def gone(self) -> frozenset[str]:
        """Every node that goes with the block."""
        return self.nodes | {self.addition}

    def __str__(self) -> str:
        return f"{self.place} ({self.addition})" if self.place else self.addition


def find_blocks(module: fx.GraphModule, analysis: Analysis) -> tuple[Block, ...]:
    """Every block of `module` that holds no smaller one, in graph order; no two overlap."""
    finder = _Finder(module, analysis)
    sides = {node.name: tuple(finder.at(node)) for node in module.graph.nodes}
    closing = {name for name, found in sides.items() if found}
    innermost = [
        [block for block in found if closing.isdisjoint(block.nodes)] for found in sides.values()
    ]
    # Where both operands could go, the larger one is the block, and the other one the skip.
    return tuple(max(found, key=finder.parameters) for found in innermost if found)


def dropped_blocks(
    module: fx.GraphModule, analysis: Analysis, names: Sequence[str]
) -> tuple[Block, ...]:
    """The blocks with the given names.

    Raises:
        PlanMismatch: the model has no such block.
    """
    if not names:
        return ()
    blocks = {block.addition: block for block in find_blocks(module, analysis)}
    for name in names:
        if name not in blocks:
            raise PlanMismatch(
                f"The plan drops the block {name!r}, which the model does not have",
                fix="Apply a plan to the architecture that it was made for, built the same.",
            )
    return tuple(blocks[name] for name in names)


def drop_blocks(module: fx.GraphModule, analysis: Analysis, blocks: Iterable[Block]) -> None:
    """Take `blocks` out of `module`, which has the nodes of the analysed one; in place."""
    gone: set[str] = set()
    for block in blocks:
        nodes = {node.name: node for node in module.graph.nodes}
        addition, branch = nodes[block.addition], nodes[block.branch]
        # What the addition reads now: where the skip was the sum of a block that is gone, its skip.
        (skip,) = (node for node in addition.all_input_nodes if node is not branch)
        if block.copies:
            with module.graph.inserting_after(addition):
                skip = module.graph.call_method("clone", (skip,))
        addition.replace_all_uses_with(skip)
        gone |= block.gone
    module.graph.eliminate_dead_code(
        lambda node: node.name not in gone and (node.is_impure() or node.name in analysis.writes)
    )
    _delete_unused(module, {name for block in blocks for name in block.tensors})


def _delete_unused(module: nn.Module, names: Set[str]) -> None:
    """Delete tensors, and the modules that are left with nothing."""
    for name in names:
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)
        while owner:
            emptied = module.get_submodule(owner)
            if any(True for _ in emptied.children()) or any(True for _ in _own(emptied)):
                break
            parent, _, last = owner.rpartition(".")
            delattr(module.get_submodule(parent), last)
            owner = parent


def _own(module: nn.Module) -> Iterator[object]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


class _Finder:
    """Looks for blocks in one graph."""

    def __init__(self, module: fx.GraphModule, analysis: Analysis) -> None:
        self.module, self.analysis = module, analysis
        self.order = list(module.graph.nodes)
        self.place = {node: i for i, node in enumerate(self.order)}
        self.sources = _sources(self.order)
        self.sizes = {name: tensor.numel() for name, tensor in named_tensors(module)}
        self.names = {id(tensor): name for name, tensor in named_tensors(module)}

    def parameters(self, block: Block) -> int:
        """How many numbers go with `block`."""
        return sum(self.sizes[name] for name in block.tensors)

    def at(self, addition: fx.Node) -> Iterator[Block]:
        """The blocks that `addition` may close: with either of its operands as the branch."""
        if operation(addition) not in ADDITIONS or len(addition.args) != 2 or addition.kwargs:
            return
        left, right = addition.args
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right:
            return
        for branch, skip in ((left, right), (right, left)):
            block = self._block(addition, branch, skip)
            if block is not None:
                yield block

    def _block(self, addition: fx.Node, branch: fx.Node, skip: fx.Node) -> Block | None:
        if not self._replaces(skip, addition) or not self._connects(skip, branch):
            return None
        nodes = self._needed_for(branch, addition)
        tensors = self._tensors(nodes)
        if not tensors or self._writes_outside(nodes, branch, addition):
            return None
        return Block(
            addition=addition.name,
            branch=branch.name,
            skip=skip.name,
            nodes=frozenset(node.name for node in nodes),
            tensors=tensors,
            place=_common_module(tensors),
            copies=self._is_written(addition, skip),
        )

    def _replaces(self, skip: fx.Node, addition: fx.Node) -> bool:
        """Whether the value of `skip` has the form of the sum."""
        mine, sums = (self.analysis.values.get(node.name, ()) for node in (skip, addition))
        return (
            len(mine) == len(sums) == 1
            and tuple(a.size for a in mine[0]) == tuple(a.size for a in sums[0])
            and self.analysis.dtypes[skip.name] == self.analysis.dtypes[addition.name]
        )

    def _connects(self, skip: fx.Node, branch: fx.Node) -> bool:
        """Whether the branch follows inputs of the model, and the skip follows all of these."""
        return bool(self.sources[branch]) and self.sources[branch] <= self.sources[skip]

    def _needed_for(self, branch: fx.Node, addition: fx.Node) -> set[fx.Node]:
        """Nodes that nobody needs but the branch."""
        found: set[fx.Node] = set()
        for node in reversed(self.order[: self.place[addition]]):
            if node.op == "placeholder" or not node.users:
                continue
            if all(user in found or (user is addition and node is branch) for user in node.users):
                found.add(node)
        return found

    def _tensors(self, nodes: Set[fx.Node]) -> frozenset[str]:
        inside = {name for node in nodes for name in self._used(node)}
        outside = {name for node in self.order if node not in nodes for name in self._used(node)}
        return frozenset(inside - outside)

    def _used(self, node: fx.Node) -> Iterator[str]:
        """Names of the tensors that `node` uses."""
        if node.op == "call_module":
            owner = self.module.get_submodule(str(node.target))
            yield from (self.names[id(tensor)] for _, tensor in named_tensors(owner))
        elif node.op == "get_attr":
            path, _, last = str(node.target).rpartition(".")
            tensor = getattr(self.module.get_submodule(path), last)
            if id(tensor) in self.names:
                yield self.names[id(tensor)]

    def _storages(self, nodes: Iterable[fx.Node]) -> set[int]:
        return {s for node in nodes for s in self.analysis.storages.get(node.name, ())}

    def _writes_outside(self, nodes: Set[fx.Node], branch: fx.Node, addition: fx.Node) -> bool:
        """Whether the branch changes a value that somebody else may look at."""
        before = self.order[: self.place[addition]]
        others = self._storages(node for node in before if node not in nodes)
        writers = {node for node in nodes if node.name in self.analysis.writes}
        if addition.name in self.analysis.writes and addition.args[0] is branch:
            writers.add(branch)
        return not others.isdisjoint(self._storages(writers))

    def _is_written(self, addition: fx.Node, skip: fx.Node) -> bool:
        """Whether somebody writes into the sum, but not into the skip."""
        sums = self._storages([addition])
        later = self.order[self.place[addition] + 1 :]
        writers = (node for node in later if node.name in self.analysis.writes)
        return sums != self._storages([skip]) and not sums.isdisjoint(self._storages(writers))


def _sources(order: Sequence[fx.Node]) -> Mapping[fx.Node, frozenset[fx.Node]]:
    """For every node, the inputs of the model that its value follows."""
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in order:
        own = frozenset({node} if node.op == "placeholder" else ())
        sources[node] = own.union(*(sources[used] for used in node.all_input_nodes))
    return sources


def _common_module(tensors: Iterable[str]) -> str:
    """The innermost module that holds all of `tensors`."""
    paths = [name.split(".")[:-1] for name in tensors]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)
