"""Small edits of a graph module that leave nothing behind that nobody reads."""

from __future__ import annotations

from torch import Tensor, fx, nn


def erase(module: fx.GraphModule, node: fx.Node) -> None:
    """Erase `node`, and the modules and tensors that were there for it alone.

    Dead code elsewhere stays: a node without users may still change a tensor in place.
    """
    sources = [source for source in node.all_input_nodes if source.op == "get_attr"]
    module.graph.erase_node(node)
    freed = [source for source in sources if not source.users]
    for source in freed:
        module.graph.erase_node(source)
    targets = [source.target for source in freed]
    if node.op == "call_module":
        targets.append(node.target)
    for target in map(str, targets):
        if not _is_read(module, target):
            _delete(module, target)


def set_tensor(module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    """Set the parameter or buffer `name`, in the precision and on the device of `like`."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    value = value.to(like.device, like.dtype)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
    else:
        setattr(owner, leaf, nn.Parameter(value, requires_grad=like.requires_grad))


def free_name(module: nn.Module, name: str) -> str:
    """`name`, or with a number behind it if it is taken."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    found, count = leaf, 0
    while hasattr(owner, found):
        count += 1
        found = f"{leaf}_{count}"
    return f"{path}.{found}" if path else found


def _is_read(module: fx.GraphModule, name: str) -> bool:
    """Whether a node reads the module or tensor `name`, something in it, or what it is part of."""
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            if f"{target}.".startswith(f"{name}.") or f"{name}.".startswith(f"{target}."):
                return True
    return False


def _delete(module: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(path), leaf)
