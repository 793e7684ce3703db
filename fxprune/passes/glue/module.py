"""A model whose Python glue runs as it is, around children that are captured as graphs.

Where `forward` depends on data, no single graph can stand for a model: detectors propose boxes,
drop most of them and loop over the rest. Its *glue*, the Python code of the parents, stays what it
is; its children are captured. `GluedModule` holds all of them in one graph, in the order in which
they ran on the example inputs, so that every pass works on it as on any other graph:

* what the glue hands to a child is a placeholder, unless it is the very tensor that came out of
  another child: that is an edge;
* `enter` and `leave` stand around the nodes of one call of one child;
* `Use` stands for glue that reads what a child made, and freezes it.

Calling the module runs the glue, and each child runs its own part of the graph.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputError, VerificationError

# Parts of a module that a `GluedModule` has in common with the model it runs.
SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def enter(path: str, *inputs: Any) -> None:
    """From here to `leave`: one call of the child at `path`, which reads `inputs`."""


def leave(path: str, *outputs: Any) -> tuple[Any, ...]:
    """The end of one call of the child at `path`, which yields `outputs`."""
    return outputs


# Nobody may use what a call yields, and it is a call all the same.
for marker in (enter, leave):
    fx.node.has_side_effect(marker)


@dataclass(frozen=True)
class Use:
    """Glue that reads some dimensions of a tensor (all if `dims` is None)."""

    site: str
    dims: tuple[int, ...] | None = None
    __name__ = "glue"  # fx names nodes after what they call

    @property
    def detail(self) -> str:
        """The reason for keeping these dimensions."""
        return f"read by Python glue that is not captured: {self.site}"

    def dims_of(self, tensor: Tensor) -> Sequence[int]:
        """The dimensions of `tensor` that are read."""
        return range(tensor.dim()) if self.dims is None else self.dims

    def __call__(self, *tensors: Tensor) -> None:
        """Nothing happens: the glue itself runs elsewhere."""


@dataclass(frozen=True)
class Interface:
    """How a child is called: its arguments by name, taken apart into leaves.

    Attributes:
        names: of the arguments, in order.
        spec: how they are put together from leaves.
        constants: the leaves that are no tensors, by their number.
        output: how its result is put together from leaves.
        output_constants: the leaves of the result that are no tensors, by their number.
    """

    names: tuple[str, ...]
    spec: pytree.TreeSpec
    constants: Mapping[int, Any]
    output: pytree.TreeSpec
    output_constants: Mapping[int, Any]

    def tensors(self, path: str, arguments: Mapping[str, Any]) -> list[Tensor]:
        """The tensors among `arguments`, in order.

        Raises:
            InputError: they are put together in another way than when the child was captured.
        """
        leaves, spec = pytree.tree_flatten(list(arguments.values()))
        found = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        if tuple(arguments) != self.names or spec != self.spec or found != self.constants:
            raise InputError(
                f"{path} is called with other kinds of arguments than on the example inputs",
                f"captured with {self.spec}, called with {spec}",
                "Use example inputs for which the model calls it as it will be called later",
            )
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def result(self, outputs: Sequence[Any]) -> Any:
        """The child's result, put together from the tensors in it."""
        count = len(outputs) + len(self.output_constants)
        tensors = iter(outputs)
        leaves = [
            self.output_constants[i] if i in self.output_constants else next(tensors)
            for i in range(count)
        ]
        return pytree.tree_unflatten(leaves, self.output)


def captured_kind(
    kind: type[nn.Module],
    path: str,
    interface: Interface,
    graph: fx.Graph,
    run: Callable[..., Sequence[Any]],
) -> type[nn.Module]:
    """A subclass of `kind`, for one child, with `run` (the code of `graph`) as its `forward`."""

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        arguments = bound_arguments(self, args, kwargs)
        return interface.result(run(self, *interface.tensors(path, arguments)))

    own = {"forward": forward, "captured_graph": graph, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), own)


def captured_graph(module: nn.Module) -> fx.Graph | None:
    """The graph that is the `forward` of a captured child; None for other modules."""
    return vars(type(module)).get("captured_graph")


def bound_arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of the user's own `forward` by name, defaults included."""
    signature = inspect.signature(type(module).forward)
    bound = signature.bind(module, *args, **kwargs)
    bound.apply_defaults()
    _, *given = bound.arguments.items()
    rest = [p.name for p in signature.parameters.values() if p.kind in REST]
    return {name: value for name, value in given if name not in rest or value}


class GluedModule(fx.GraphModule):
    """`owner`, whose children named in `interfaces` run their parts of `graph`.

    It has the parameters, buffers and submodules of `owner` under the same names: they are the same
    objects.
    """

    def __init__(
        self, owner: nn.Module, graph: fx.Graph, interfaces: Mapping[str, Interface]
    ) -> None:
        super().__init__(nn.Module(), fx.Graph(), type(owner).__name__)
        for name in SHARED:
            vars(self)[name] = vars(owner)[name]
        self.training = owner.training
        self.interfaces = dict(interfaces)
        vars(self)["owner"] = owner
        self.graph = graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model computes, its glue included."""
        return vars(self)["owner"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            owner = vars(self).get("owner")
            if owner is None or name.startswith("__"):
                raise
            return getattr(owner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        owner = vars(self).get("owner")
        if owner is not None and name in vars(owner):  # the mode, thresholds, ...
            setattr(owner, name, value)
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> GluedModule:
        owner = copy.deepcopy(vars(self)["owner"], memo)
        twin = GluedModule(owner, copy.deepcopy(self.graph), self.interfaces)
        memo[id(self)] = twin
        twin.meta = copy.deepcopy(self.meta, memo)
        return twin

    def recompile(self) -> fx.graph.PythonCode:
        """Give every captured child the code of its part of the graph."""
        code = self._graph.python_code("self")
        self._code = code.src
        if "owner" in vars(self):
            self._install()
        return code

    def delete_all_unused_submodules(self) -> None:
        """Nothing is deleted: the glue may use whatever no graph does."""

    def _install(self) -> None:
        installed: dict[str, fx.Graph] = {}
        for path, graph in parts(self, self.graph):
            if path in installed:
                if not _alike(installed[path], graph):
                    raise VerificationError(
                        f"{path} is called several times, and would need different code each time",
                        path,
                        "Please report this model; until then, keep this place dense with ignore=",
                        node=path,
                    )
                continue
            installed[path] = graph
            child = self.get_submodule(path)
            if captured_graph(child) is not None:
                child.__class__ = type(child).__mro__[1]
            if any(node.target == "" for node in graph.nodes):  # it runs as it is
                continue
            run = type(fx.GraphModule(child, graph)).forward
            interface = self.interfaces[path]
            child.__class__ = captured_kind(type(child), path, interface, graph, run)


def require_no_glue(module: nn.Module, why: str) -> None:
    """Refuse a module with Python glue where only a graph will do.

    Raises:
        InputError: it has.
    """
    if isinstance(module, GluedModule):
        children = ", ".join(module.interfaces)
        raise InputError(
            f"{type(vars(module)['owner']).__name__} keeps Python glue, but {why}",
            f"captured are its children {children}",
            "Compile these on their own (model.get_submodule(name)); for a budget, use MACs, "
            "parameters or memory, or fxprune.Budget(function, limit) with a function that times "
            "the model as you run it",
        )


def parts(owner: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, fx.Graph]]:
    """Each call of a child, in order: its path, and a graph of its own with names relative to it.

    The graph has a placeholder for each tensor in the arguments and yields the tensors in the
    result.
    """
    path, part = "", fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    within: dict[nn.Module, str] = {}
    inside = False
    for node in graph.nodes:
        if node.target is enter:
            inside, part = True, fx.Graph()
            path, *inputs = node.args
            within = {m: name for name, m in owner.get_submodule(str(path)).named_modules()}
            known = {given: part.placeholder(f"input_{i}") for i, given in enumerate(inputs)}
        elif node.target is leave:
            inside = False
            part.output(tuple(known[made] for made in node.args[1:]))
            yield path, part
        elif inside:
            twin = known[node] = part.node_copy(node, known.__getitem__)
            if node.op == "call_module":
                twin.target = within[owner.get_submodule(str(node.target))]
            elif node.op == "get_attr":
                holder, _, leaf = str(node.target).rpartition(".")
                twin.target = f"{within[owner.get_submodule(holder)]}.{leaf}".lstrip(".")


def _alike(left: fx.Graph, right: fx.Graph) -> bool:
    """Whether two graphs are the same code, names of nodes aside."""
    return _normal(left) == _normal(right)


def _normal(graph: fx.Graph) -> list[Any]:
    number = {node: f"%{i}" for i, node in enumerate(graph.nodes)}
    return [
        (
            node.op,
            "" if node.op in ("placeholder", "output") else node.target,
            fx.node.map_arg((node.args, dict(node.kwargs)), number.__getitem__),
        )
        for node in graph.nodes
    ]
