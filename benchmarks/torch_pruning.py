"""fxprune and Torch-Pruning side by side, on the same networks, with random unbalanced choices.

    python -m benchmarks.torch_pruning                     torchvision classifiers and small ways
    python -m benchmarks.torch_pruning resnet18 vit_b_16   these only
    python -m benchmarks.torch_pruning --out docs/torch_pruning.md

Three tools take each network: fxprune; Torch-Pruning's dependency graph, where every group loses a
random half of its positions (`DependencyGraph.get_pruning_group(...).prune()`); and its
`MagnitudePruner` at a pruning ratio of one half. Layers that make the outputs are handed to
Torch-Pruning as `ignored_layers`; nothing else is told to either tool.

The result is compared, in float64 and with weights drawn so that the signal stays alive, with the
original whose removed channels are set to zero where they are read; layer norms leave them out. For
Torch-Pruning, the channels that each layer loses are those that its own groups list. A network is

* exact:   the largest difference is under 1e-9 of the largest output;
* wrong:   there was no error, and the results differ by more;
* crashed: the tool raised an error, or what it made does not run;
* late:    not done within the time limit (a crash is also what needs more than about 8 GB);
* nothing: the tool found nothing to prune;
* unjudged: it changed a layer (attention, recurrence, group norm) that this reference cannot mask.
"""

from __future__ import annotations

import argparse
import copy
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.frozen import prunable_share
from fxprune.passes.infer import infer
from fxprune.passes.rules import tensors
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from fxprune.plan import Plan
from tests.generate import enliven
from tests.test_models import built
from tests.ways import WAYS

CLASSIFIERS = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
    "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s",
    "regnet_x_400mf", "regnet_y_400mf", "squeezenet1_1", "googlenet", "inception_v3",
    "densenet121", "shufflenet_v2_x0_5", "convnext_tiny", "vit_b_32", "swin_t", "swin_v2_t",
    "maxvit_t",
)  # fmt: skip
TOLERANCE = 1e-9
MEMORY = 12 * 2**30  # of address space, of which the libraries take about four
TOOLS = ("fxprune", "torch-pruning groups", "torch-pruning pruner")


@dataclass(frozen=True)
class Row:
    """What one tool did with one network.

    Attributes:
        seconds: for capture or tracing, and for finding all groups.
        error: largest difference from the masked original, relative to the largest output.
        share: of the parameters that lie in some group.
    """

    network: str
    tool: str
    outcome: str
    seconds: float | None = None
    error: float | None = None
    share: float | None = None
    detail: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return (
            self.network,
            self.tool,
            self.outcome,
            "" if self.error is None else f"{self.error:.1e}",
            "" if self.share is None else f"{self.share:.0%}",
            "" if self.seconds is None else f"{self.seconds:.2f}",
            self.detail.replace("|", "/")[:70],
        )


def network(name: str) -> tuple[nn.Module, Any]:
    """A classifier of torchvision, or one of the ways of `tests.ways`, in float64; and inputs."""
    torch.manual_seed(0)
    if name in WAYS:
        model, inputs = built(WAYS[name].build)
        return model.eval(), inputs
    side = {"inception_v3": 107, "maxvit_t": 224}.get(name, 64)
    extra: dict[str, Any] = {"image_size": side} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        extra |= {"init_weights": False, "aux_logits": False}
    model = torchvision.models.get_model(name, weights=None, **extra).double().eval()
    enliven(model)
    return model, (torch.randn(2, 3, side, side, dtype=torch.float64),)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What `model` returns for positional or named inputs."""
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [tensor for tensor in tensors(found) if tensor.is_floating_point()]


def difference(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    worst = 0.0
    for left, right in zip(mine, theirs, strict=True):
        if left.shape != right.shape:
            return float("inf")
        gap = float((left - right).abs().max()) / max(1e-12, float(left.abs().max()))
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def judged(error: float) -> str:
    return "exact" if error < TOLERANCE else "wrong"


# -- fxprune ---------------------------------------------------------------------------------------


def by_fxprune(name: str) -> Row:
    """A random half of every group, verified against the masked original."""
    model, inputs = network(name)
    started = time.perf_counter()
    captured, analysis = bake(capture(model, inputs))
    seconds = time.perf_counter() - started
    share = prunable_share(analysis)
    if not analysis.groups:
        return Row(name, TOOLS[0], "nothing", seconds, None, share)
    rng = random.Random(0)
    kept = {
        g.name: tuple(sorted(rng.sample(range(g.size), max(1, g.size // 2))))
        for g in analysis.groups
    }
    plan = Plan(kept, {g.name: g.size for g in analysis.groups})
    error = verify(captured, analysis, plan, slim(captured, analysis, plan)).max_error
    return Row(name, TOOLS[0], judged(error), seconds, error, share)


# -- Torch-Pruning ---------------------------------------------------------------------------------


def output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The layers whose channels are the model's outputs, and so must stay."""
    analysis = infer(capture(model, inputs))
    found = []
    for name, module in model.named_modules():
        axes = analysis.tensors.get(f"{name}.weight" if name else "weight")
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and axes:
            dim = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
            details = [str(r) for a, r in analysis.reasons.items() if a == axes[dim]]
            if any("model's output" in detail for detail in details):
                found.append(module)
    return found


class Masked:
    """The original, with every channel that was removed set to zero where a layer reads it."""

    def __init__(self, model: nn.Module, graph: Any) -> None:
        self.model = copy.deepcopy(model)
        self.graph = graph
        self.names = {module: name for name, module in model.named_modules()}
        self.alive: dict[tuple[str, bool], list[int]] = {}
        self.gone: dict[tuple[str, bool], set[int]] = {}
        self.unjudged: set[str] = set()

    def note(self, group: Any) -> None:
        """Remember what a group is about to remove, in positions of the original."""
        for dep, idxs in group:
            module = dep.target.module
            if not isinstance(module, nn.Module) or module not in self.names:
                continue
            name = self.names[module]
            reads = self.graph.is_in_channel_pruning_fn(dep.handler) and isinstance(
                module, (nn.Linear, nn.modules.conv._ConvNd)
            )
            depthwise = getattr(module, "groups", 1) > 1 and module.groups == module.in_channels
            if isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.GroupNorm)):
                self.unjudged.add(type(module).__name__)
            if not (isinstance(module, nn.LayerNorm) or (reads and not depthwise)):
                continue
            size = (
                module.normalized_shape[-1]
                if isinstance(module, nn.LayerNorm)
                else (module.in_features if isinstance(module, nn.Linear) else module.in_channels)
            )
            alive = self.alive.setdefault((name, reads), list(range(size)))
            lost = {alive[int(i)] for i in idxs}
            self.gone.setdefault((name, reads), set()).update(lost)
            self.alive[name, reads] = [i for i in alive if i not in lost]

    def outputs(self, inputs: Any) -> list[Tensor]:
        """What the masked original returns."""
        for (name, _), lost in self.gone.items():
            module = self.model.get_submodule(name)
            index = torch.tensor(sorted(lost), dtype=torch.long)
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(_normalised_without(index))
            else:
                dim = -1 if isinstance(module, nn.Linear) else 1
                module.register_forward_pre_hook(_zeroed(index, dim))
        return outputs(self.model, inputs)


def _zeroed(index: Tensor, dim: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].index_fill(dim, index, 0.0), *args[1:])

    return hook


def _normalised_without(index: Tensor) -> Callable[..., Any]:
    """A layer norm over the channels that stay, which are the last dimension or the second."""

    def hook(module: nn.LayerNorm, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        (x,) = args
        size = module.normalized_shape[-1]
        dim = -1 if type(module) is nn.LayerNorm else 1
        stays = torch.ones(size, dtype=torch.bool)
        stays[index] = False
        values = x.movedim(dim, -1)[..., stays]
        weight = module.weight[stays] if module.weight is not None else None
        bias = module.bias[stays] if module.bias is not None else None
        found = nn.functional.layer_norm(values, values.shape[-1:], weight, bias, module.eps)
        whole = torch.zeros_like(out.movedim(dim, -1))
        whole[..., stays] = found
        return whole.movedim(-1, dim)

    return hook


def by_dependency_graph(name: str) -> Row:
    """A random half of every group, one group after the other."""
    import torch_pruning as tp

    model, inputs = network(name)
    ignored = output_layers(model, inputs)
    parameters = {p: p.numel() for p in model.parameters()}
    started = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(model, inputs, verbose=False)
    roots = [
        (group[0].dep.target.module, group[0].dep.handler, len(group[0].idxs), list(group))
        for group in graph.get_all_groups(ignored_layers=ignored)
    ]
    seconds = time.perf_counter() - started
    held = {
        p
        for *_, members in roots
        for dep, _ in members
        for p in _parameters(dep.target.module)
        if p in parameters
    }
    share = sum(parameters[p] for p in held) / max(1, sum(parameters.values()))
    if not roots:
        return Row(name, TOOLS[1], "nothing", seconds, None, share)
    masked, rng = Masked(model, graph), random.Random(0)
    for module, handler, size, _ in roots:
        if size < 2:
            continue
        group = graph.get_pruning_group(module, handler, sorted(rng.sample(range(size), size // 2)))
        if not graph.check_pruning_group(group):
            continue
        masked.note(group)
        group.prune()
    return _compared(name, TOOLS[1], model, inputs, masked, seconds, share)


def by_pruner(name: str) -> Row:
    """Half of the channels, as its high-level interface chooses them."""
    import torch_pruning as tp

    model, inputs = network(name)
    ignored = output_layers(model, inputs)
    before = sum(p.numel() for p in model.parameters())
    started = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )
    seconds = time.perf_counter() - started
    masked = Masked(model, pruner.DG)
    for group in pruner.step(interactive=True):
        masked.note(group)
        group.prune()
    if sum(p.numel() for p in model.parameters()) == before:
        return Row(name, TOOLS[2], "nothing", seconds)
    return _compared(name, TOOLS[2], model, inputs, masked, seconds, None)


def _parameters(module: Any) -> list[nn.Parameter]:
    return list(module.parameters()) if isinstance(module, nn.Module) else [module]


def _compared(
    name: str,
    tool: str,
    model: nn.Module,
    inputs: Any,
    masked: Masked,
    seconds: float,
    share: float | None,
) -> Row:
    found = outputs(model, inputs)
    error = difference(masked.outputs(inputs), found)
    if masked.unjudged:
        return Row(name, tool, "unjudged", seconds, None, share, ", ".join(sorted(masked.unjudged)))
    return Row(name, tool, judged(error), seconds, error, share)


# -- the table -------------------------------------------------------------------------------------

WAYS_OF: dict[str, Callable[[str], Row]] = dict(
    zip(TOOLS, (by_fxprune, by_dependency_graph, by_pruner), strict=True)
)


def row(name: str, tool: str) -> Row:
    """What `tool` does with the network `name`; an error of the tool is an outcome."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return WAYS_OF[tool](name)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return Row(name, tool, "crashed", detail=f"{type(error).__name__}: {first}")


def _run(connection: Connection, name: str, tool: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    connection.send(row(name, tool))


def limited(name: str, tool: str, limit: float) -> Row:
    """`row` in a process of its own, which ends after `limit` seconds."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, name, tool))
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(limit) else Row(name, tool, "late")
    except EOFError:
        found = Row(name, tool, "crashed", detail="the process ended (memory?)")
    process.kill()
    process.join()
    return found


def text(rows: list[Row], command: str) -> str:
    """The document: what was counted, and every row."""
    import torch_pruning as tp

    lines = [
        "# fxprune and Torch-Pruning, side by side",
        "",
        f"Made by `{command}` with torch {torch.__version__}, torchvision {torchvision.__version__}"
        f" and torch-pruning {tp.__version__} (as it names itself). The program says how each tool",
        "is used and what is compared.",
        "",
        "| tool | networks | exact | wrong | crashed | late | nothing | unjudged | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tool in TOOLS:
        mine = [r for r in rows if r.tool == tool]
        count = Counter(r.outcome for r in mine)
        kinds = ("exact", "wrong", "crashed", "late", "nothing", "unjudged")
        numbers = " | ".join(str(count[kind]) for kind in kinds)
        seconds = sum(r.seconds or 0.0 for r in mine)
        lines.append(f"| {tool} | {len(mine)} | {numbers} | {seconds:.1f} |")
    lines += [
        "",
        "| network | tool | outcome | error | parameters in groups | seconds | detail |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(r.cells())} |" for r in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="fxprune beside Torch-Pruning.")
    parser.add_argument("names", nargs="*", help="torchvision classifiers, or names in tests.ways")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one network")
    parser.add_argument("--out", type=Path, help="write the table here")
    options = parser.parse_args()
    names = options.names or [*CLASSIFIERS, *WAYS]
    for tool in TOOLS:
        row("several_inputs", tool)  # so that no row pays for what is loaded at the first use
    command = " ".join(["python -m benchmarks.torch_pruning", *sys.argv[1:]])
    rows: list[Row] = []
    for name in names:
        for tool in TOOLS:
            rows.append(limited(name, tool, options.limit))
            print("  ".join(rows[-1].cells()), flush=True)
        if options.out:
            options.out.write_text(text(rows, command))
    print(text(rows, command).split("| network")[0])


if __name__ == "__main__":
    main()
