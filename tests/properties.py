"""What must hold for every network and every choice of kept positions.

Each check is independent of the others and raises `AssertionError` (or the project's own error)
with what it saw. `CHECKS` lists them by name; `examine` runs them all on one case.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.axes import Atom, Axes, kept_positions
from fxprune.passes.bake import bake
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import Captured, capture
from fxprune.passes.infer import Analysis, Group, infer, named_tensors
from fxprune.passes.regions import SWITCHES
from fxprune.passes.rules import tensors
from fxprune.passes.slim import slim
from fxprune.passes.verify import UNINITIALISED, Verification, verify
from fxprune.plan import Plan

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A model, captured and analysed, with a plan, the slim model and the verifier's report.

    Attributes:
        samples: `samples(n)` gives inputs of n samples, the same for the same n.
    """

    model: nn.Module
    captured: Captured
    analysis: Analysis
    plan: Plan
    slim: fx.GraphModule
    verification: Verification
    samples: Callable[[int], tuple[Any, ...]]
    rng: random.Random


def random_plan(analysis: Analysis, rng: random.Random, least: int = 1) -> Plan:
    """Random positions of every group, at least `least` of them; one group in six stays whole."""
    kept: dict[str, tuple[int, ...]] = {}
    for group in analysis.groups:
        count = (
            group.size if rng.random() < 1 / 6 else rng.randint(min(least, group.size), group.size)
        )
        kept[group.name] = tuple(sorted(rng.sample(range(group.size), count)))
    return plan_of(analysis, kept)


def plan_of(analysis: Analysis, kept: Mapping[str, tuple[int, ...]]) -> Plan:
    """A plan that keeps the given positions, and everything of the groups that are not named."""
    return Plan(
        {g.name: kept.get(g.name, tuple(range(g.size))) for g in analysis.groups},
        {g.name: g.size for g in analysis.groups},
    )


def make_case(
    model: nn.Module,
    inputs: Any,
    seed: int,
    samples: Callable[[int], Any],
    how: Callable[[nn.Module, Any], Captured] = capture,
) -> Case:
    """Capture, infer, slim at random and verify."""
    rng = random.Random(seed)
    plain = how(model, inputs)
    captured, analysis = bake(plain)
    if captured.baked:
        for mine, theirs in zip(
            outputs(plain.module, plain.example_inputs),
            outputs(captured.module, plain.example_inputs),
            strict=True,
        ):
            close(mine, theirs, f"with {captured.baked}")
    plan = random_plan(analysis, rng)
    module = slim(captured, analysis, plan)
    verification = verify(captured, analysis, plan, module)
    return Case(model, captured, analysis, plan, module, verification, samples, rng)


# -- the checks ------------------------------------------------------------------------------------


def keeping_everything_changes_no_bit(case: Case) -> None:
    """A plan that keeps all positions gives the captured model, bit for bit."""
    whole = slim(case.captured, case.analysis, plan_of(case.analysis, {}))
    inputs = case.captured.example_inputs
    for mine, theirs in zip(
        outputs(case.captured.module, inputs), outputs(whole, inputs), strict=True
    ):
        assert torch.equal(mine, theirs), "the unslimmed model computes something else"


def one_position_of_each_group_is_enough(case: Case) -> None:
    """The narrowest model there is still runs, and is the masked original."""
    kept = {g.name: (case.rng.randrange(g.size),) for g in case.analysis.groups}
    plan = plan_of(case.analysis, kept)
    narrow = slim(case.captured, case.analysis, plan)
    verify(case.captured, case.analysis, plan, narrow)
    for out in outputs(narrow, case.captured.example_inputs):
        assert bool(torch.isfinite(out).all()), "the narrowest model yields NaN or infinity"


def permuting_positions_changes_nothing(case: Case) -> None:
    """Positions of a group have no order: permuted everywhere alike, they permute every value."""
    generator = np.random.default_rng(case.rng.getrandbits(32))
    order = {group.atom: generator.permutation(group.size) for group in case.analysis.groups}
    permuted = copy.deepcopy(case.captured.module)
    for (name, before), (_, after) in zip(
        named_tensors(case.captured.module), named_tensors(permuted), strict=True
    ):
        after.data.copy_(_reordered(before.detach(), case.analysis.tensors[name], order))
    pairs = _lockstep(case.captured.module, permuted, case.captured.example_inputs)
    largest: dict[fx.Node, float] = {}
    for node, before, after in pairs:
        largest[node] = max(map(_largest, tensors(before)), default=0.0)
        # A mean of what was centred before is nothing but the round-off of its inputs.
        least = max([1e-6, *(1e-3 * largest[given] for given in node.all_input_nodes)])
        if _name(node) in UNINITIALISED:
            continue
        for old, new, axes in zip(
            tensors(before), tensors(after), case.analysis.values[node.name], strict=True
        ):
            if _name(node) in ("max", "min") and not old.is_floating_point():
                continue  # where it was found
            close(_reordered(old, axes, order), new, f"permuted at {node.name}", least)


def slimming_twice_is_slimming_once(case: Case) -> None:
    """Slimming by A and the result by B gives what slimming by both at once gives."""
    first = random_plan(case.analysis, case.rng, least=2)
    once = slim(case.captured, case.analysis, first)
    again = Captured(once, case.captured.example_inputs, case.captured.capture)
    analysis = infer(again)
    # Groups are named in the order of their places, which slimming may change.
    shared = sorted(analysis.tensors.keys() & case.analysis.tensors.keys())
    slimmed = {_holdings(analysis, g, shared, {}): g.name for g in analysis.groups}
    kept_first = {g.atom: np.array(first.kept[g.name]) for g in case.analysis.groups}
    named = {g.name: _holdings(case.analysis, g, shared, kept_first) for g in case.analysis.groups}
    assert slimmed.keys() == set(named.values()), "the slim model has other groups"
    assert len(named) == len(slimmed)
    second = random_plan(analysis, case.rng)
    both = {
        name: tuple(kept[i] for i in second.kept[slimmed[named[name]]])
        for name, kept in first.kept.items()
    }
    at_once = slim(case.captured, case.analysis, plan_of(case.analysis, both))
    step_by_step = slim(again, analysis, second)
    left, right = at_once.state_dict(), step_by_step.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), f"{name} differs"
    for mine, theirs in zip(
        outputs(at_once, case.captured.example_inputs),
        outputs(step_by_step, case.captured.example_inputs),
        strict=True,
    ):
        close(mine, theirs, "slimmed in two steps")


def _holdings(
    analysis: Analysis, group: Group, names: Sequence[str], kept: Mapping[Atom, Any]
) -> tuple[bytes, ...]:
    """Where the first position of a group lies, and how many it has, when only `kept` is left."""
    own = kept.get(group.atom, np.arange(group.size))
    less = {**kept, group.atom: own[1:]}
    found = [len(own).to_bytes(8)]
    for name in names:
        for axis in analysis.tensors[name]:
            there = kept_positions(axis, kept)
            found.append(np.isin(there, kept_positions(axis, less)).tobytes())
    return tuple(found)


def taint_spreads_as_predicted(case: Case) -> None:
    """NaN in one position of a group reaches exactly the values that the axes say."""
    for group in case.rng.sample(case.analysis.groups, min(3, len(case.analysis.groups))):
        position = case.rng.randrange(group.size)
        _taint(case, group, position)


def slim_trains(case: Case) -> None:
    """In training mode every parameter gets a finite gradient."""
    module = copy.deepcopy(case.slim).train()
    dense = copy.deepcopy(case.captured.module).train()
    for trained in (module, dense):
        found = outputs(trained, case.samples(3), grad=True)
        losses = [out.square().mean() for out in found if out.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()
    used = {n for n, p in dense.named_parameters() if p.grad is not None}
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == (name in used), f"gradient of {name}"
        if parameter.grad is not None:
            assert bool(torch.isfinite(parameter.grad).all()), f"gradient of {name} is not finite"


def slim_takes_any_batch(case: Case) -> None:
    """Samples stay apart: a batch of five is a batch of one and a batch of four."""
    many = case.samples(5)
    together = outputs(case.slim, many)
    one = outputs(case.slim, tree_map_only(Tensor, lambda x: x[:1], many))
    four = outputs(case.slim, tree_map_only(Tensor, lambda x: x[1:], many))
    for whole, first, rest in zip(together, one, four, strict=True):
        close(whole, torch.cat([first, rest]), "batch of five")


def names_stay(case: Case) -> None:
    """Parameters and buffers of the slim model are called as in the original, but baked ones."""
    extra = set(case.slim.state_dict()) - set(case.model.state_dict())
    extra -= {parameter.name for parameter in case.captured.baked}
    assert not extra, f"new names: {sorted(extra)}"
    captured, slim = (dict(m.named_parameters()) for m in (case.captured.module, case.slim))
    assert captured.keys() == slim.keys(), f"lost: {sorted(captured.keys() - slim.keys())}"


def blocks_can_be_dropped(case: Case) -> None:
    """Without some of its residual blocks the model is the original with their branches at zero."""
    blocks = find_blocks(case.captured.module, case.analysis)
    dropped = tuple(block.addition for block in blocks if case.rng.random() < 0.6)
    plan = replace(random_plan(case.analysis, case.rng), dropped=dropped)
    module = slim(case.captured, case.analysis, plan)
    verify(case.captured, case.analysis, plan, module)
    left = dict(named_tensors(module))
    for block in blocks:
        gone = block.addition in dropped
        assert all((name not in left) == gone for name in block.tensors), f"tensors of {block}"
    outputs(module, case.samples(3))


CHECKS: Mapping[str, Callable[[Case], None]] = {
    "identity": keeping_everything_changes_no_bit,
    "narrowest": one_position_of_each_group_is_enough,
    "permutation": permuting_positions_changes_nothing,
    "commutation": slimming_twice_is_slimming_once,
    "taint": taint_spreads_as_predicted,
    "training": slim_trains,
    "batch": slim_takes_any_batch,
    "names": names_stay,
    "blocks": blocks_can_be_dropped,
}


def examine(
    model: nn.Module,
    inputs: Any,
    seed: int,
    samples: Callable[[int], Any],
    how: Callable[[nn.Module, Any], Captured] = capture,
    without: Sequence[str] = (),
) -> Case:
    """Every check but `without` on one model; model and inputs must come out untouched."""
    before = copy.deepcopy(model.state_dict())
    given = tree_map_only(Tensor, torch.clone, inputs)
    modes = [module.training for module in model.modules()]
    case = make_case(model, inputs, seed, samples, how)
    for name, check in CHECKS.items():
        if name in without:
            continue
        try:
            check(case)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    after = model.state_dict()
    assert list(before) == list(after), "the original has other tensors than before"
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), f"{name} of the original was changed"
    assert modes == [module.training for module in model.modules()], "the mode was changed"
    for mine, theirs in zip(tree_leaves(given), tree_leaves(inputs), strict=True):
        if isinstance(mine, Tensor):
            assert torch.equal(mine, theirs), "the example inputs were changed"
    return case


# -- how they look into a model --------------------------------------------------------------------


def outputs(module: nn.Module, inputs: tuple[Any, ...], grad: bool = False) -> list[Tensor]:
    """Every tensor that `module` returns. The inputs are copied: some models write into them."""
    with torch.set_grad_enabled(grad), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = module(*tree_map_only(Tensor, torch.clone, inputs))
    return tensors(found)


def close(want: Tensor, got: Tensor, what: str, least: float = 1e-6) -> None:
    """Equal up to round-off, relative to the largest value, but to no less than `least`."""
    assert want.shape == got.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if want.numel() == 0:
        return
    if not (want.is_floating_point() or want.is_complex()):
        assert torch.equal(want, got), f"{what}: other values"
        return
    scale = max(least, _largest(want))
    # Masks hold infinities on purpose, whose difference would be no number.
    gaps = torch.where(want == got, 0.0, want - got).detach().abs()
    gap = float(gaps.max()) / scale
    assert gap < TOLERANCE, f"{what}: differs by {gap:.3g} relative"


def _largest(tensor: Tensor) -> float:
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0.0
    return float(tensor.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())


def _reordered(tensor: Tensor, axes: Axes, order: Mapping[Atom, Any]) -> Tensor:
    for dim, axis in enumerate(axes):
        if any(atom in order for atom in axis.atoms):
            index = torch.from_numpy(kept_positions(axis, order))
            tensor = tensor.index_select(dim, index)
    return tensor


class _Runner(fx.Interpreter):
    """Leaves autocast alone: graphs that are run in turns would switch it for each other."""

    def run_node(self, n: fx.Node) -> Any:
        return None if n.target in SWITCHES else super().run_node(n)


def _lockstep(
    left: fx.GraphModule, right: fx.GraphModule, inputs: tuple[Any, ...]
) -> Iterator[tuple[fx.Node, Any, Any]]:
    """Both modules node by node; they have the same graph."""
    runners = [_Runner(module) for module in (left, right)]
    for runner in runners:
        runner.args_iter = iter(tree_map_only(Tensor, torch.clone, inputs))
    for mine, theirs in zip(left.graph.nodes, right.graph.nodes, strict=True):
        with torch.no_grad():
            runners[0].env[mine] = runners[0].run_node(mine)
            runners[1].env[theirs] = runners[1].run_node(theirs)
        yield mine, runners[0].env[mine], runners[1].env[theirs]


# -- taint -----------------------------------------------------------------------------------------

# Operations that mix positions of one axis, by their own definition and not by the typing rules:
# what they taint further is washed off, so that the next operation starts from known positions.
MIXING_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
)
MIXING = frozenset(
    """
    conv1d conv2d conv3d conv_transpose2d linear bilinear matmul bmm mm einsum sum
    norm linalg_vector_norm normalize layer_norm group_norm rms_norm weight_norm
    scaled_dot_product_attention
    mean var std var_mean std_mean amax amin max min cosine_similarity
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell
    """.split()  # noqa: SIM905  (a list of names reads better in rows)
)
# Copies, padding, points outside of an image and tensors of equal numbers have places that nothing
# flows into: it starts there.
CREATING = frozenset(
    """
    zeros ones full zeros_like ones_like full_like empty empty_like new_zeros new_ones new_empty
    expand expand_as broadcast_to repeat tile repeat_interleave masked_fill unfold max_unpool2d
    im2col grid_sample grid_sampler grid_sampler_2d
    """.split()  # noqa: SIM905
)


def _mixes(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), MIXING_MODULES)
    return _name(node) in MIXING


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return packet if isinstance(packet, str) else getattr(packet, "__name__", "")


def _taint(case: Case, group: Group, position: int) -> None:
    module = case.captured.module
    tainted = copy.deepcopy(module)
    for name, tensor in named_tensors(tainted):
        if tensor.is_floating_point() or tensor.is_complex():
            spot = predicted(tuple(tensor.shape), case.analysis.tensors[name], group, position)
            tensor.data[spot] = _nan(tensor)
    clean, dirty = _Runner(module), _Runner(tainted)
    for runner in (clean, dirty):
        runner.args_iter = iter(tree_map_only(Tensor, torch.clone, case.captured.example_inputs))
    for mine, theirs in zip(module.graph.nodes, tainted.graph.nodes, strict=True):
        with torch.no_grad():
            good = clean.env[mine] = clean.run_node(mine)
            # Copies that share memory, as `expand` makes them, could not be washed one by one.
            bad = tree_map_only(Tensor, _apart, dirty.run_node(theirs))
            dirty.env[theirs] = bad
        if mine.op == "output":
            continue
        what = f"NaN at position {position} of {group.name}, at {mine.name}"
        for index, axes in enumerate(case.analysis.values[mine.name]):
            want, got = tensors(good)[index], tensors(bad)[index]
            if not (got.is_floating_point() or got.is_complex()):
                continue
            spot = predicted(tuple(got.shape), axes, group, position)
            if _name(mine) in CREATING or _mixes(module, mine):
                got.masked_fill_(spot, _nan(got))
            found = got.isnan()
            assert bool((found | ~spot).all()), f"{what}: missing"
            if _mixes(module, mine):
                got[found & ~spot] = want[found & ~spot]
            else:
                assert not bool((found & ~spot).any()), f"{what}: spread further"


def _nan(tensor: Tensor) -> Any:
    nan = float("nan")
    return complex(nan, nan) if tensor.is_complex() else nan


def _apart(tensor: Tensor) -> Tensor:
    return tensor.clone() if 0 in tensor.stride() else tensor


def predicted(shape: tuple[int, ...], axes: Axes, group: Group, position: int) -> Tensor:
    """True at every place of a tensor that holds `position` of `group` in some dimension."""
    spot = torch.zeros(shape, dtype=torch.bool)
    others = np.delete(np.arange(group.size), position)
    for dim, axis in enumerate(axes):
        held = torch.ones(axis.size, dtype=torch.bool)
        held[torch.from_numpy(kept_positions(axis, {group.atom: others}))] = False
        spot |= held.reshape(-1, *(1,) * (len(shape) - dim - 1))
    return spot
