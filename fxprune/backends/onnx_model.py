"""ONNX models, for every backend that reads them: whole modules by export, regions by hand.

A region's graph is written directly, operator for operator as the exporter would write it, because
exporting takes about a hundred times longer and a latency table has thousands of regions.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from fxprune.backends import exporting
from fxprune.backends.modules import Adapter
from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError, InputError
from fxprune.passes.fold import fold_in_place
from fxprune.passes.linear.observed import NOTHING

OPSET = 20
IR_VERSION = 10
PROTOBUF_LIMIT = 2**31
_MANIFEST = "fxprune"


def export(module: nn.Module, inputs: tuple[Tensor, ...], signature: Signature) -> onnx.ModelProto:
    """Export a module in evaluation mode, which may be changed; raises as `exporting.export`."""
    _give_bias_to_conv3d(module)
    _fold(module)
    program = exporting.export(module, inputs, signature)
    with warnings.catch_warnings():
        # The exporter warns about its own internals, which no caller of ours can act upon.
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            input_names=exporting.input_names(module, len(inputs)),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if exported is None:
        raise BackendError("the ONNX exporter returned nothing")
    model = exported.model_proto
    for node in model.graph.node:
        _strip(node)
    return model


def _strip(node: onnx.NodeProto) -> None:
    """Drop the stack traces: they name files of this machine, and an artefact travels."""
    kept = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]
    del node.metadata_props[:]
    node.metadata_props.extend(kept)


def _fold(module: nn.Module) -> None:
    # As the exporter does at the end: this takes a third off the time, since all that it does
    # before grows with the number of operators.
    graph = module.module if isinstance(module, Adapter) else module
    if isinstance(graph, fx.GraphModule):
        fold_in_place(graph, NOTHING)


def _give_bias_to_conv3d(module: nn.Module) -> None:
    # Exporters up to torch 2.14 write a convolution without bias in three dimensions such that
    # ONNX Runtime rejects it.
    for child in module.modules():
        if type(child) is nn.Conv3d and child.bias is None:
            child.bias = nn.Parameter(child.weight.new_zeros(child.out_channels), False)


def nodes_by_kernel(data: bytes) -> dict[str, str]:
    """The captured graph's fx node behind each name of an ONNX node or of a value that it gives.

    For a model that was not exported from a `GraphModule`, the module path instead.
    """
    found: dict[str, str] = {}
    for node in onnx.load_from_string(data).graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(metadata.get("pkg.torch.onnx.name_scopes", "[]"))
        if source := exporting.node_of(scopes):
            found |= dict.fromkeys((node.name, *node.output), source)
    return found


def pack(model: onnx.ModelProto, settings: Settings, signature: Signature) -> bytes:
    """Serialise a model with what is needed to load it as an engine again."""
    manifest = {"settings": settings.to_json(), "signature": signature.to_json()}
    helper.set_model_props(model, {_MANIFEST: json.dumps(manifest, sort_keys=True)})
    return serialize(model)


def serialize(model: onnx.ModelProto) -> bytes:
    """The model in one file; raises `BackendError` where it is too large for that."""
    if (size := model.ByteSize()) >= PROTOBUF_LIMIT:
        raise BackendError(
            f"the ONNX model has {size / 1e9:.1f} GB, more than the 2 GB that one file may have",
            fix="use the inductor or eager backend for this model",
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def unpack(data: bytes, where: str) -> tuple[Settings, Signature]:
    """What `pack` recorded; raises `InputError` for anything else."""
    properties = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    if _MANIFEST not in properties:
        raise InputError("the model was not saved by fxprune", where, "give what Engine.save wrote")
    manifest = json.loads(properties[_MANIFEST])
    return Settings.from_json(manifest["settings"]), Signature.from_json(manifest["signature"])


def region_model(region: Region, prefix: str = "") -> onnx.ModelProto:
    """A region holding `region.weights()`; its inputs are those of `region.inputs()`, in order.

    All names begin with `prefix`.
    """
    weight, bias = region.weights()
    # Rows of a batch are multiplied by a transposed constant; a plain batch is one Gemm.
    matmul = region.operator == "linear" and len(region.spatial) == 1
    constants = {"weight": np.ascontiguousarray(weight.T) if matmul else weight}
    if bias is not None:
        constants["bias"] = bias
    if region.activation == "relu6":
        constants |= {"low": np.zeros((), np.float32), "high": np.full((), 6.0, np.float32)}
    nodes = _layer(region, matmul)
    if region.residual:
        nodes.append(_node("Add", [nodes[-1].output[0], "residual"]))
    if region.activation:
        nodes += _activation(region.activation, nodes[-1].output[0])
    shapes = {"x": region.in_shape} | ({"residual": region.out_shape} if region.residual else {})
    for node in nodes:
        node.name = prefix + node.name
        for names in (node.input, node.output):
            names[:] = [prefix + name for name in names]
    return _model(
        nodes,
        [_value(prefix + name, shape) for name, shape in shapes.items()],
        [_value(nodes[-1].output[0], region.out_shape)],
        [numpy_helper.from_array(array, prefix + name) for name, array in constants.items()],
    )


def side_by_side(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model that does what all of these do; no name may occur in two of them."""
    graphs = [model.graph for model in models]
    return _model(
        [node for graph in graphs for node in graph.node],
        [value for graph in graphs for value in graph.input],
        [value for graph in graphs for value in graph.output],
        [constant for graph in graphs for constant in graph.initializer],
    )


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "region", inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _layer(region: Region, matmul: bool) -> list[onnx.NodeProto]:
    inputs = ["x", "weight", "bias"] if region.bias else ["x", "weight"]
    if matmul:
        product = _node("MatMul", ["x", "weight"])
        return [product, _node("Add", [product.output[0], "bias"])] if region.bias else [product]
    if region.operator == "linear":
        return [_node("Gemm", inputs, transB=1)]
    attributes = {
        "kernel_shape": region.kernel,
        "strides": region.stride,
        "pads": (*region.padding, *region.padding),
        "dilations": region.dilation,
        "group": region.groups,
    }
    if region.operator == "conv":
        return [_node("Conv", inputs, **attributes)]
    return [_node("ConvTranspose", inputs, output_padding=region.output_padding, **attributes)]


_ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "relu": ("Relu", {}),
        "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
        "hardswish": ("HardSwish", {}),
        "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        "sigmoid": ("Sigmoid", {}),
        "tanh": ("Tanh", {}),
        "gelu": ("Gelu", {"approximate": "none"}),
        "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    }
)


def _activation(name: str, source: str) -> list[onnx.NodeProto]:
    if name == "silu":
        gate = _node("Sigmoid", [source])
        return [gate, _node("Mul", [source, gate.output[0]])]
    if name == "relu6":
        return [_node("Clip", [source, "low", "high"])]
    operator, attributes = _ACTIVATIONS[name]
    return [_node(operator, [source], **attributes)]


def _node(operator: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    """A node that is named after the value it gives, which is named after its own input."""
    output = f"{inputs[0]}.{operator}"
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
