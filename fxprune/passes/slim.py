"""Slimming: rewrite a captured model so that only what the plan keeps of it remains."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.axes import Axes
from fxprune.passes.bake import bake
from fxprune.passes.blocks import drop_blocks, dropped_blocks
from fxprune.passes.capture import Captured
from fxprune.passes.constants import rewrite_constants
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.modules import Widths, resize
from fxprune.passes.slimming import Kept
from fxprune.plan import Plan


def slim(captured: Captured, analysis: Analysis, plan: Plan) -> fx.GraphModule:
    """The slim model: an independent, trainable module with the original parameter names.

    Raises:
        PlanMismatch: the plan was made for a model with other groups or blocks.
    """
    blocks = dropped_blocks(captured.module, analysis, plan.dropped)
    kept = Kept.from_plan(plan, analysis)
    module = copy.deepcopy(captured.module, _slices(captured.module, analysis, kept))
    _resize_modules(module, analysis, kept)
    rewrite_constants(module.graph, analysis, kept)
    drop_blocks(module, analysis, blocks)
    module.graph.lint()
    module.recompile()
    return module


class SlimPass(PassBase):
    """`slim` as an fx pass: takes a captured `GraphModule`, infers its axes and applies `plan`."""

    def __init__(self, plan: Plan, example_inputs: tuple[object, ...]) -> None:
        super().__init__()
        self.plan = plan
        self.example_inputs = example_inputs

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """A new slim module; the given one is not changed."""
        captured, analysis = bake(Captured(graph_module, self.example_inputs, "given"))
        modified = bool(Kept.from_plan(self.plan, analysis).positions or self.plan.dropped)
        return PassResult(slim(captured, analysis, self.plan), modified)


def _slices(module: nn.Module, analysis: Analysis, kept: Kept) -> dict[int, Tensor]:
    """For `deepcopy`: what to take in place of each tensor that loses positions, ties included."""
    slices: dict[int, Tensor] = {}
    for name, tensor in named_tensors(module):
        axes = analysis.tensors[name]
        if any(map(kept.touches, axes)):
            part = kept.restrict(tensor.detach(), axes)
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, requires_grad=tensor.requires_grad)
            slices[id(tensor)] = part
    return slices


def _resize_modules(module: fx.GraphModule, analysis: Analysis, kept: Kept) -> None:
    done: set[nn.Module] = set()
    for node in module.graph.nodes:
        if node.op != "call_module" or not isinstance(node.args[0], fx.Node):
            continue
        owner = module.get_submodule(str(node.target))
        if owner in done:  # called again: its group count is no longer that of the dense model
            continue
        done.add(owner)
        values = analysis.values[node.args[0].name]
        if values:
            resize(owner, _widths(owner, values[0], kept))


def _channel_dim(owner: nn.Module, rank: int) -> int:
    """Which dimension of its input `owner` calls channels."""
    if isinstance(owner, (nn.LayerNorm, nn.RMSNorm, nn.Linear)) or rank == 1:
        return -1
    if isinstance(owner, _ConvNd):
        return -len(owner.kernel_size) - 1
    return 1


def _widths(owner: nn.Module, axes: Axes, kept: Kept) -> Widths:
    channels = axes[_channel_dim(owner, len(axes))]
    groups = getattr(owner, "num_groups", 1) if isinstance(owner, nn.GroupNorm) else 1
    if isinstance(owner, (_ConvNd, _ConvTransposeNd)):
        groups = owner.groups
    return Widths(
        shape=tuple(map(kept.size, axes)),
        channels=kept.size(channels),
        groups=kept.runs(channels, channels.size // groups) if groups > 1 else 1,
    )
