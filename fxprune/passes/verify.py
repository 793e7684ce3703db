"""Verification: the slim model must equal the masked original, at every node, in float64.

The masked original is the dense model with every removed position set to zero, in parameters and in
every intermediate result, and zeros for what a dropped block yields. Both models are interpreted in
lockstep; what the masked original yields at a node, restricted to the positions that stay, must be
what the slim model yields there. Norms over channels are computed over the positions that stay
(`reference.py`).

Every node of the slim model starts from what the masked original yielded: once a result has been
found equal, its round-off is taken off. Two runs that are left to themselves drift apart as fast as
the network magnifies any small difference, and in a badly conditioned one round-off alone exceeds
every fixed tolerance. From the same inputs a node's error is its own, whatever the network's depth;
and functions that agree node by node from the same inputs are, put together, the same function.

A fault behind a zero-initialised scale, or in a network whose activations have died out, would be
invisible. So both models run with weights drawn to keep the signal alive at every depth (He et al.
2015, with batch-norm statistics taken from the run itself), and beforehand every tensor of the slim
model must be, bit for bit, the part of the original tensor that its axes say. Equal programs on
equal parts are equal on the model's own weights too, which are run themselves only where no drawn
weights give finite values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils._pytree import tree_map_only

from fxprune.axes import Axes
from fxprune.errors import VerificationError
from fxprune.passes.bake import bake
from fxprune.passes.blocks import Block, dropped_blocks
from fxprune.passes.capture import Captured, cloned
from fxprune.passes.constants import operation
from fxprune.passes.glue.verify import whole_error
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.precision import in_double
from fxprune.passes.reference import MaskedInterpreter
from fxprune.passes.refresh import calibrate_batch_norm, drawn_weights, scaled_weights
from fxprune.passes.rules import tensors
from fxprune.passes.slimming import Kept
from fxprune.passes.trace import unfused_attention
from fxprune.plan import Plan

TOLERANCE = 1e-9
# What is left when large numbers cancel is round-off: sizes below this share of the largest value
# that went into a result do not count as its size.
ROUND_OFF = 1e-5
# Memory that nobody has written to yet.
UNINITIALISED = frozenset({"empty", "empty_like", "new_empty"})
SEED = 0


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        max_error: largest error of any node, from the masked original's inputs to it, relative to
            the largest value of that node.
        worst_node: the node where it was met.
        nodes: how many results were compared.
        slimmed: how many of those lost positions.
        silent: slimmed nodes that were zero everywhere, where no fault could be seen.
        whole_error: largest relative error of what a model with Python glue returns; None for
            others, and where round-off decides what the glue does.
    """

    max_error: float
    worst_node: str
    nodes: int
    slimmed: int
    silent: tuple[str, ...]
    whole_error: float | None = None


def verify(
    captured: Captured, analysis: Analysis, plan: Plan, slim: fx.GraphModule
) -> Verification:
    """Compare `slim` with the masked original.

    Raises:
        VerificationError: at the first node that differs by more than 1e-9 relative, or has another
            shape; at the first tensor that is not the part of the original it should be.
    """
    kept = Kept.from_plan(plan, analysis)
    dropped = dropped_blocks(captured.module, analysis, plan.dropped)
    _same_parts(captured.module, slim, analysis, kept)
    dense64, slim64 = in_double(captured.module), in_double(slim)
    with torch.no_grad(), unfused_attention(), double_by_default():
        for draw in (drawn_weights, scaled_weights):
            draw(dense64, captured.module, SEED)
            _copy_parts(dense64, slim64, analysis, kept)
            noise = tree_map_only(Tensor, as_noise, captured.example_inputs)
            run = _lockstep(dense64, slim64, noise, analysis, kept, dropped, calibrate=True)
            if run.finite:
                break
        else:
            dense64, slim64 = in_double(captured.module), in_double(slim)
            inputs = tree_map_only(Tensor, _as_double, captured.example_inputs)
            run = _lockstep(dense64, slim64, inputs, analysis, kept, dropped, calibrate=False)
        whole = whole_error(captured, analysis, kept, dropped, dense64, slim64)
    return replace(_judge(run), whole_error=whole)


class VerifyPass(PassBase):
    """`verify` as an fx pass: takes the slim module, returns it unchanged or raises."""

    def __init__(
        self, original: fx.GraphModule, plan: Plan, example_inputs: tuple[Any, ...]
    ) -> None:
        super().__init__()
        self.original = original
        self.plan = plan
        self.example_inputs = example_inputs
        self.verification: Verification | None = None

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """The given module; `verification` holds what was compared."""
        captured, analysis = bake(Captured(self.original, self.example_inputs, "given"))
        self.verification = verify(captured, analysis, self.plan, graph_module)
        return PassResult(graph_module, False)


@dataclass(frozen=True)
class _Comparison:
    node: str
    error: float
    slimmed: bool
    scale: float


@dataclass(frozen=True)
class _Run:
    comparisons: tuple[_Comparison, ...]
    finite: bool


def _judge(run: _Run) -> Verification:
    every = run.comparisons
    worst = max(every, key=lambda c: c.error, default=_Comparison("", 0.0, False, 0.0))
    return Verification(
        max_error=worst.error,
        worst_node=worst.node,
        nodes=len(every),
        slimmed=sum(c.slimmed for c in every),
        silent=tuple(c.node for c in every if c.slimmed and not c.scale),
    )


def _lockstep(
    dense: fx.GraphModule,
    slim: fx.GraphModule,
    inputs: tuple[Any, ...],
    analysis: Analysis,
    kept: Kept,
    dropped: Sequence[Block],
    calibrate: bool,
) -> _Run:
    """Run both models node by node; raises at the first difference."""
    # Each model gets inputs of its own: some write into what they are given.
    reference = MaskedInterpreter(dense, analysis, kept, dropped, cloned(inputs))
    candidate = fx.Interpreter(slim)
    candidate.extra_traceback = False
    candidate.args_iter = iter(cloned(inputs))
    partner = {node.name: node for node in slim.graph.nodes}
    last_use = _last_uses(slim.graph)
    pending = iter(slim.graph.nodes)
    comparisons: list[_Comparison] = []
    floors: dict[fx.Node, float] = {}
    finite = True
    for node in dense.graph.nodes:
        if calibrate:
            calibrate_batch_norm(reference, candidate, node, analysis, kept)
        expected = reference.step(node)
        if node.name not in partner:
            continue
        found = _run_until(candidate, pending, partner[node.name])
        if operation(node) in UNINITIALISED:
            continue
        _same_count(node, tensors(expected), tensors(found))
        floor = floors[node] = max((floors.get(n, 0.0) for n in node.all_input_nodes), default=0.0)
        for want, got, axes in zip(
            tensors(expected), tensors(found), analysis.values[node.name], strict=True
        ):
            want = kept.restrict(want, axes)
            comparison = _compare(node, want, got, axes, kept, floor)
            take_round_off(got, want)
            finite = finite and comparison is not None
            if comparison is not None:
                comparisons.append(comparison)
                floors[node] = max(floors[node], ROUND_OFF * comparison.scale)
        for gone in last_use.get(partner[node.name], ()):
            candidate.env.pop(gone, None)
    return _Run(tuple(comparisons), finite)


def _run_until(candidate: fx.Interpreter, pending: Iterator[fx.Node], last: fx.Node) -> Any:
    """Run nodes of the slim model up to `last`; the slim graph may hold nodes of its own."""
    for node in pending:
        try:
            candidate.env[node] = candidate.run_node(node)
        except VerificationError:
            raise
        except Exception as error:
            raise VerificationError(
                f"the slim model does not run: {type(error).__name__}: {error}",
                describe(node),
                "Please report this model; until then, keep this place dense with ignore=",
                node=node.name,
            ) from error
        if node is last:
            return candidate.env[node]
    raise VerificationError(
        "the slim graph lost a node of the original", describe(last), node=last.name
    )


def _same_count(node: fx.Node, expected: list[Tensor], found: list[Tensor]) -> None:
    if len(expected) != len(found):
        raise VerificationError(
            f"the slim model yields {len(found)} tensors instead of {len(expected)}",
            describe(node),
            node=node.name,
        )


def _compare(
    node: fx.Node, want: Tensor, found: Tensor, axes: Axes, kept: Kept, floor: float
) -> _Comparison | None:
    """One result of a node; None if it holds values that are not finite, which say nothing.

    The error is relative to the largest value, or to `floor` where that is larger.
    """
    if want.shape != found.shape:
        raise VerificationError(
            f"the slim model yields shape {tuple(found.shape)} instead of {tuple(want.shape)}",
            describe(node),
            "Please report this model; until then, keep this place dense with ignore=",
            node=node.name,
        )
    slimmed = any(map(kept.touches, axes))
    if slimmed and node.op == "output":
        raise VerificationError("the slim model's output has lost positions", node=node.name)
    if want.numel() == 0:
        return _Comparison(node.name, 0.0, slimmed, 0.0)
    if not all(t.is_floating_point() or t.is_complex() for t in (want, found)):
        error = 0.0 if torch.equal(want, found.to(want.dtype)) else float("inf")
        return _accept(node, _Comparison(node.name, error, slimmed, 1.0))
    infinite = torch.isinf(want)
    if bool(infinite.any()) and torch.equal(want[infinite], found[infinite]):
        # As attention masks do; what is finite still has to agree.
        want, found = want[~infinite], found[~infinite]
    if want.numel() == 0:
        return _Comparison(node.name, 0.0, slimmed, 0.0)
    scale = float(want.abs().amax())
    if not math.isfinite(scale):
        alike = torch.allclose(want, found, rtol=TOLERANCE, atol=0.0, equal_nan=True)
        if alike:
            return None
        return _accept(node, _Comparison(node.name, float("inf"), slimmed, scale))
    gap = float((want - found).abs().amax())
    size = max(scale, floor)
    return _accept(node, _Comparison(node.name, gap / size if size else gap, slimmed, scale))


def take_round_off(found: Tensor, want: Tensor) -> None:
    """Make an accepted result of the slim model what the masked original yielded, bit for bit.

    In place, because others may be views of the same memory. An expanded tensor, of which one
    number stands in many places, keeps its own: it only differs if several nodes have run since
    the last comparison, and what it holds has been accepted too.
    """
    expanded = any(s == 0 and n > 1 for s, n in zip(found.stride(), found.shape, strict=True))
    if not expanded and not bool((found == want).all()):
        found.copy_(want)


def _accept(node: fx.Node, comparison: _Comparison) -> _Comparison:
    if comparison.error <= TOLERANCE:
        return comparison
    raise VerificationError(
        f"the slim model differs from the masked original by {comparison.error:.3g} relative",
        describe(node),
        "Please report this model; until then, keep this place dense with ignore=",
        node=node.name,
    )


def describe(node: fx.Node) -> str:
    """Where `node` is in the user's model."""
    place = f"node {node.name} ({node.op} {node.target})"
    trace = (node.stack_trace or "").strip().splitlines()
    source = next((line.strip() for line in reversed(trace) if line.strip().startswith("File")), "")
    return f"{place}, {source}" if source else place


def _same_parts(dense: nn.Module, slim: fx.GraphModule, analysis: Analysis, kept: Kept) -> None:
    """Every tensor of the slim model is, bit for bit, the part of the original that stays."""
    found = dict(named_tensors(slim))
    for name, tensor in named_tensors(dense):
        if name not in found:
            continue
        part = tensor.detach()
        for dim, axis in enumerate(analysis.tensors[name]):
            if not kept.touches(axis):
                continue
            mask = torch.zeros(axis.size, dtype=torch.bool)
            mask[torch.from_numpy(kept.indices(axis))] = True
            part = part.movedim(dim, 0)[mask.to(part.device)].movedim(0, dim)
        twin = found[name].detach()
        alike = part.shape == twin.shape and bool(((part == twin) | (part != part)).all())
        if not alike:
            raise VerificationError(
                f"parameter {name} of the slim model is not the part of the original that stays",
                "Please report this model; until then, keep it dense with ignore=",
                node=name,
            )


def _copy_parts(
    dense: fx.GraphModule, slim: fx.GraphModule, analysis: Analysis, kept: Kept
) -> None:
    found = dict(named_tensors(slim))
    for name, tensor in named_tensors(dense):
        if name in found:
            found[name].detach().copy_(kept.restrict(tensor.detach(), analysis.tensors[name]))


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the nodes whose value nobody needs once it has run."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        uses.setdefault(node, []).append(used)
    return uses


def _as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def as_noise(tensor: Tensor) -> Tensor:
    """Standard normal numbers in place of a floating-point tensor."""
    if not tensor.is_floating_point():
        return tensor.clone()
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return noise.to(tensor.device)


@contextmanager
def double_by_default() -> Iterator[None]:
    """Tensors that the graph creates are float64 too, or they would hide differences."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
