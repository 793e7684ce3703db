"""Changes to ONNX models that let ONNX Runtime show what it does to each part of them."""

from __future__ import annotations

import onnx
from onnx import helper


def expand_hardswish(model: onnx.ModelProto) -> None:
    """Write hard-swish as x * hardsigmoid(x), as ONNX Runtime itself does, but with names.

    ONNX Runtime has no kernel for it, and the nodes that it puts in its place cannot be told
    apart in a profile.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "HardSwish":
            nodes.append(node)
            continue
        gate = f"{node.output[0]}/gate"
        nodes.append(
            helper.make_node(
                "HardSigmoid", node.input, [gate], f"{node.name}/gate", alpha=1 / 6, beta=0.5
            )
        )
        product = helper.make_node("Mul", [node.input[0], gate], node.output, node.name)
        product.metadata_props.extend(node.metadata_props)
        nodes.append(product)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def pool_input(model: onnx.ModelProto, name: str, dims: int) -> None:
    """Pass one of the inputs through a pooling of size 1, called "pool.<name>".

    ONNX Runtime adds a residual within a convolution only if it comes in the blocked layout, as it
    does in a network but not from outside.
    """
    pooled = f"pool.{name}"
    for node in model.graph.node:
        node.input[:] = [pooled if value == name else value for value in node.input]
    pool = helper.make_node("MaxPool", [name], [pooled], pooled, kernel_shape=[1] * dims)
    model.graph.node.insert(0, pool)
