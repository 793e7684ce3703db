"""Convolution, matrix products and attention: operators that sum over an axis.

A summed axis may lose positions: a removed position adds nothing, exactly as in the original with
that position set to zero. Each rule also records its multiply-accumulates as a product of axes, so
that the cost of any choice of widths is exact.
"""

from __future__ import annotations

from fxprune.axes import ONE, Axes, Axis, product
from fxprune.passes.rules.base import Op, Outputs, broadcast_axes, rule, tensors

SPATIAL = "spatial position of a convolution"


@rule("convolution")
def convolution(op: Op) -> Outputs:
    """Weight `(G*O, I, kernel)`, input `G*I`, output `G*O`; transposed: weight `(G*I, O)`."""
    value, weight, bias, stride, padding, dilation, transposed, _, groups = op.args
    batch, channels, *places = op.axes(value)
    first, second, *kernel = op.axes(weight)
    for axis in kernel:
        op.freeze(axis, "kernel of a convolution")
    (group, inner) = op.factor(first, (groups, first.size // groups))
    inputs, outputs = (inner, second) if transposed else (second, inner)
    op.unify(channels, product((group, inputs)))
    out_channels = product((group, outputs))
    if bias is not None:
        op.unify(out_channels, op.axes(bias)[0])
    out_places: list[Axis] = []
    for dim, place in enumerate(places):
        sizes = (kernel[dim].size, stride[dim], dilation[dim])
        if sizes == (1, 1, 1) and padding[dim] == 0:
            out_places.append(place)
        else:
            op.freeze(place, SPATIAL)
            out_places.append(op.frozen(op.out.shape[2 + dim], SPATIAL))
    # A transposed convolution multiplies once for every *input* place, any other for every output.
    swept = places if transposed else out_places
    op.contract((batch, group, inputs, outputs, *swept), product(kernel).size)
    return (batch, out_channels, *out_places)


@rule("_trilinear")
def trilinear(op: Op) -> Outputs:
    """Three tensors, brought to one rank by new dimensions, multiplied and summed over some."""
    rank = op.args[0].dim() + len(op.args[3])
    factors = []
    for tensor, new in zip(op.args[:3], op.args[3:6], strict=True):
        axes = iter(op.axes(tensor))
        factors.append(tuple(ONE if dim in new else next(axes) for dim in range(rank)))
    shape = [max(axes[dim].size for axes in factors) for dim in range(rank)]
    whole = broadcast_axes(op, factors, shape)
    op.contract(whole)
    return tuple(axis for dim, axis in enumerate(whole) if dim not in op.args[6])


@rule("mm", "mv", "dot", "vdot")
def matrix_product(op: Op) -> Outputs:
    """`(m, k) @ (k, n)`, either side possibly a vector."""
    left, right = (op.axes(t) for t in op.args)
    op.unify(left[-1], right[0])
    out = left[:-1] + right[1:]
    op.contract((*out, left[-1]))
    return out


@rule("bmm")
def batched_product(op: Op) -> Outputs:
    """`(b, m, k) @ (b, k, n)`."""
    left, right = (op.axes(t) for t in op.args)
    op.unify(left[0], right[0])
    op.unify(left[2], right[1])
    op.contract((left[0], left[1], right[2], left[2]))
    return (left[0], left[1], right[2])


@rule("addmm", "addmv", "addbmm", "baddbmm")
def biased_product(op: Op) -> Outputs:
    """A matrix product added to a broadcast first argument."""
    bias, first, second = op.args[:3]
    left, right = op.axes(first), op.axes(second)
    summed: Axes
    out: Axes
    if op.func.overloadpacket.__name__.startswith("addbmm"):
        op.unify(left[0], right[0])
        op.unify(left[2], right[1])
        summed, out = (left[0], left[2]), (left[1], right[2])
    elif len(left) == 3:
        op.unify(left[0], right[0])
        op.unify(left[2], right[1])
        summed, out = (left[2],), (left[0], left[1], right[2])
    else:
        op.unify(left[-1], right[0])
        summed, out = (left[-1],), left[:-1] + right[1:]
    op.contract((*out, *summed))
    return broadcast_axes(op, [out, op.axes(bias)], op.out.shape)


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def attention(op: Op) -> Outputs:
    """`softmax(q k^T * scale + mask) v`: q and k share a head width, k and v share the tokens.

    Where several query heads share a head of k and v, the query heads are `shared * copies`.
    """
    query, key, value = (op.axes(t) for t in op.args[:3])
    op.unify(query[0], key[0])
    op.unify(query[0], value[0])
    op.unify(key[1], value[1])
    shared, copies = op.factor(query[1], (key[1].size, query[1].size // key[1].size))
    op.unify(shared, key[1])
    op.unify(query[3], key[3])
    op.unify(key[2], value[2])
    op.freeze(key[2], "softmax over the tokens")
    heads = product((shared, copies))
    lead = (query[0], heads, query[2], key[2])
    masks = [op.axes(mask) for mask in tensors([op.args[3:], op.kwargs])]
    broadcast_axes(op, [lead, *masks], [axis.size for axis in lead])
    op.contract((*lead, query[3]))
    op.contract((*lead, value[3]))
    out = (query[0], heads, query[2], value[3])
    extras = op.out[1:] if isinstance(op.out, (list, tuple)) else ()
    rest = [
        tuple(op.frozen(size, "statistics of attention") for size in extra.shape)
        for extra in extras
        if hasattr(extra, "shape")
    ]
    return [out, *rest]


@rule("linear")
def linear(op: Op) -> Outputs:
    """Input `(..., I)`, weight `(O, I)`, bias `(O,)`."""
    value, weight = op.axes(op.args[0]), op.axes(op.args[1])
    bias = op.arg(2, "bias")
    op.unify(value[-1], weight[-1])
    out = weight[0] if len(weight) == 2 else ONE
    if bias is not None and bias.dim():
        op.unify(out, op.axes(bias)[0])
    op.contract((*value[:-1], out, value[-1]))
    return (*value[:-1], out) if len(weight) == 2 else value[:-1]
