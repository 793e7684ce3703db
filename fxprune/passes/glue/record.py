"""One graph for all captured children of a model, written down while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.passes.differences import first_difference
from fxprune.passes.glue.children import PLAIN, Child, cloned_tensors, state_of
from fxprune.passes.glue.module import (
    GluedModule,
    Interface,
    Use,
    bound_arguments,
    enter,
    leave,
)
from fxprune.passes.glue.watch import Dims, GlueWatch
from fxprune.passes.rules import tensors
from fxprune.passes.trace import LEAF

# Samples in place of none, as where nothing was detected on the example inputs.
SAMPLES = 2


@dataclass(frozen=True)
class Glued:
    """A model with glue: the module, and one value for each placeholder of its graph."""

    module: GluedModule
    inputs: tuple[Any, ...]


class UnfaithfulError(Exception):
    """The graph of the child at `path` computes something else than the child."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass
class _Made:
    """A tensor that a child yielded: its node, and how it looked then."""

    tensor: Tensor
    node: fx.Node
    version: int
    example: Tensor
    consumed: bool = False


@dataclass
class Recorder:
    """Runs a model and writes down, as one graph, what its captured children do.

    `unseen` names a part of the model that did not run, if there is one.
    """

    owner: nn.Module
    children: Mapping[str, Child]
    plain_shapes: bool
    unseen: str | None
    graph: fx.Graph = field(default_factory=fx.Graph)
    inputs: list[Tensor] = field(default_factory=list)
    made: dict[int, _Made] = field(default_factory=dict)
    interfaces: dict[str, Interface] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._watch = GlueWatch(self._seen, self._shows_shape)
        self._names = {
            id(tensor): name
            for name, tensor in (*self.owner.named_parameters(), *self.owner.named_buffers())
        }
        self._first_names = {module: name for name, module in self.owner.named_modules()}
        self._used: set[tuple[fx.Node, Dims]] = set()
        self._top = self.graph.call_function(enter, ("",))

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the model, watched."""
        for path, child in self.children.items():
            vars(child.module)["forward"] = _Recorded(self, path, child)
        try:
            with torch.no_grad(), self._watch.watching():
                return self.owner(*cloned_tensors(args), **cloned_tensors(dict(kwargs)))
        finally:
            for child in self.children.values():
                vars(child.module).pop("forward")

    def finish(self, returned: Any) -> Glued:
        """The module, after the run that returned `returned`."""
        leaving = {id(tensor) for tensor in tensors(returned)}
        hidden = any(
            not isinstance(leaf, (Tensor, *PLAIN, int, float))
            for leaf in pytree.tree_leaves(returned)
        )
        for made in list(self.made.values()):
            if self.unseen is not None:
                site = f"{self.unseen} is not called, so it may do more than was seen"
                self._freeze(made.node, None, site)
            elif id(made.tensor) in leaving or hidden:
                self._freeze(made.node, None, "returned by the model")
            elif not made.consumed:
                self._freeze(made.node, None, "no captured child reads it")
        self.graph.erase_node(self._top)
        self.graph.output(())
        self.graph.lint()
        for path, child in self.children.items():
            _adopt(self.owner, path, child)
        return Glued(GluedModule(self.owner, self.graph, self.interfaces), tuple(self.inputs))

    def call(self, path: str, child: Child, args: Any, kwargs: Any) -> Any:
        """One call of the child at `path`: run it, and append its nodes to the graph."""
        with self._watch.looking_away():
            if state_of(child.module) != child.state:  # a graph would not see what is stored there
                raise UnfaithfulError(path)
            arguments = bound_arguments(child.module, args, kwargs)
            given = tensors_of(list(arguments.values()))
            examples = self._examples(given)
            nodes = [self._node(path, t, e) for t, e in zip(given, examples, strict=True)]
            if any(e is not t for t, e in zip(given, examples, strict=True)):
                made = _both(path, child, examples)
            else:
                made = None
            before = [tensor.clone() for tensor in given]
            result = child.forward(*args, **kwargs)
            if state_of(child.module) != child.state:
                raise UnfaithfulError(path)
            _require_same(path, child, before, result)
            self._append(path, child, nodes, result, made)
            return result

    def _examples(self, given: Sequence[Tensor]) -> list[Tensor]:
        """What the tensors `given` are in the graph: of no samples, as of a few."""
        return [
            self.made[id(t)].example
            if id(t) in self.made
            else torch.randn([n or SAMPLES for n in t.shape]).to(t)
            if t.numel() == 0
            else t
            for t in given
        ]

    def _node(self, path: str, tensor: Tensor, example: Tensor) -> fx.Node:
        made = self.made.get(id(tensor))
        if made is not None:
            made.consumed = True
            if made.version == tensor._version:
                return made.node
            self._freeze(made.node, None, f"changed in place before {path} reads it")
        elif id(tensor) in self._names:
            self._seen(tensor, None, f"it is given to {path}")
        with self.graph.inserting_before(self._top):
            node = self.graph.placeholder(f"from_glue_to_{path.replace('.', '_')}")
        self.inputs.append(example.clone())
        return node

    def _append(
        self,
        path: str,
        child: Child,
        nodes: Sequence[fx.Node],
        result: Any,
        made: Sequence[Tensor] | None,
    ) -> None:
        taken = self._apart(path, nodes)
        self.graph.call_function(enter, (path, *taken))
        places = [n for n in child.traced.graph.nodes if n.op == "placeholder"]
        known = dict(zip(places, taken, strict=True))
        for node in child.traced.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            twin = known[node] = self.graph.node_copy(node, known.__getitem__)
            if node.op == "call_module":
                twin.target = self._name(path if node.target == LEAF else f"{path}.{node.target}")
            elif node.op == "get_attr":
                holder, _, leaf = f"{path}.{node.target}".rpartition(".")
                twin.target = f"{self._name(holder)}.{leaf}"
        outputs = [known[n] for n in _outputs(child.traced.graph) if isinstance(n, fx.Node)]
        self.graph.call_function(leave, (path, *outputs))
        yielded = tensors_of(result)
        for tensor, node, example in zip(yielded, outputs, made or yielded, strict=True):
            self.made[id(tensor)] = _Made(tensor, node, tensor._version, example)
        self.interfaces.setdefault(path, _interface(child, result))

    def _name(self, path: str) -> str:
        """The first name of the module at `path`, which may have several."""
        try:
            return str(self._first_names[self.owner.get_submodule(path)])
        except AttributeError:  # made by tracing
            return path

    def _apart(self, path: str, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """`nodes`, each once: a tensor that is given twice need not be the same one next time."""
        taken: list[fx.Node] = []
        for node in nodes:
            if node not in taken:
                taken.append(node)
                continue
            self._freeze(node, None, f"given to {path} twice")
            made = next(m for m in self.made.values() if m.node is node)
            with self.graph.inserting_before(self._top):
                taken.append(self.graph.placeholder(f"from_glue_to_{path.replace('.', '_')}"))
            self.inputs.append(made.example.clone())
        return taken

    def _shows_shape(self, tensor: Tensor) -> bool:
        """Whether it does not matter how glue reads the shape of `tensor`."""
        return self.plain_shapes or not (id(tensor) in self.made or id(tensor) in self._names)

    def _seen(self, tensor: Tensor, dims: Dims, site: str) -> None:
        """Glue reads `tensor`."""
        made = self.made.get(id(tensor))
        if made is not None:
            if dims is not None:
                dims = tuple(sorted({dim % tensor.dim() for dim in dims}))
            self._freeze(made.node, dims, site)
        elif id(tensor) in self._names:
            with self.graph.inserting_before(self._top):
                node = self.graph.get_attr(self._names[id(tensor)])
                self.graph.call_function(Use(site), (node,))

    def _freeze(self, node: fx.Node, dims: Dims, site: str) -> None:
        if dims != () and not {(node, dims), (node, None)} & self._used:
            self._used.add((node, dims))
            self.graph.call_function(Use(site, dims), (node,))


@dataclass(frozen=True)
class _Recorded:
    """Stands in for the `forward` of a child while it is recorded."""

    recorder: Recorder
    path: str
    child: Child

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorder.call(self.path, self.child, args, kwargs)


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors among the leaves of `values`, in order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _interface(child: Child, result: Any) -> Interface:
    leaves, spec = pytree.tree_flatten(result)
    return Interface(
        names=child.call.names,
        spec=child.call.spec,
        constants={i: leaf for i, leaf in enumerate(child.call.leaves) if leaf is not PH},
        output=spec,
        output_constants={i: x for i, x in enumerate(leaves) if not isinstance(x, Tensor)},
    )


def _outputs(graph: fx.Graph) -> list[Any]:
    return list(pytree.tree_leaves(graph.output_node().args[0]))


def _both(path: str, child: Child, examples: Sequence[Tensor]) -> list[Tensor]:
    """What the child yields for `examples`, which its graph must yield too."""
    values = iter(examples)
    leaves = [next(values).clone() if leaf is PH else leaf for leaf in child.call.leaves]
    arguments = dict(
        zip(child.call.names, pytree.tree_unflatten(leaves, child.call.spec), strict=True)
    )
    try:
        result = child.forward(**arguments)
    except Exception as error:
        raise UnfaithfulError(path) from error
    _require_same(path, child, [example.clone() for example in examples], result)
    return tensors_of(result)


def _require_same(path: str, child: Child, given: Sequence[Tensor], result: Any) -> None:
    """The graph of a child must yield, in the same order, what the child does."""
    if child.leaf and isinstance(result, Tensor):
        return
    leaves: list[Any] = pytree.tree_leaves(result)
    try:
        found: list[Any] = pytree.tree_leaves(child.traced(*given))
    except Exception as error:
        raise UnfaithfulError(path) from error
    alike = len(leaves) == len(found) and all(
        isinstance(node, fx.Node)
        if isinstance(mine, Tensor)
        else isinstance(mine, PLAIN) and mine == theirs and not isinstance(node, fx.Node)
        for mine, theirs, node in zip(leaves, found, _outputs(child.traced.graph), strict=False)
    )
    if not alike or first_difference(tensors_of(leaves), tensors_of(found)) is not None:
        raise UnfaithfulError(path)


def _adopt(owner: nn.Module, path: str, child: Child) -> None:
    """Modules and tensors that tracing made become part of `owner`, outside of its state dict."""
    for node in child.traced.graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target == LEAF:
            continue
        *holders, leaf = str(node.target).split(".")
        holder = owner.get_submodule(".".join([path, *holders]))
        value: Any = child.traced
        for part in (*holders, leaf):
            value = getattr(value, part)
        known = {**holder._modules, **holder._parameters, **holder._buffers}
        if leaf in known:
            if known[leaf] is not value:
                raise CaptureError(f"tracing {path} makes a second {leaf}")
            continue
        if isinstance(value, Tensor):
            vars(holder).pop(leaf, None)
            holder.register_buffer(leaf, value, persistent=False)
        elif isinstance(value, nn.Module):
            holder.add_module(leaf, value)
