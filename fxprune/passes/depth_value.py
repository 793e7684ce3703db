"""What dropping the activations of a span costs, before any training: the value of a span.

Three estimates, from the best informed to the least. All are 0 for a span that changes nothing,
and grow with the damage.

- `loss_rise`: by how much the loss on calibration data rises;
- `disagreement`: how far the outputs on calibration data move from the dense network's;
- `expected_errors`: how far the span's activations are from the identity, if what enters them is
  Gaussian with the mean and variance that the batch norm before them gives it (the data model of
  Horton et al. 2020, arXiv 2011.09058). No data, no run of the network: a guess.

The published measure (Kim et al., ICML 2023) trains every variant for an epoch first and takes the
fall of its accuracy. Here only the running statistics of batch norms are taken anew: training would
adapt them within its first steps, and where they do not fit they hide everything else.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from fxprune import batches
from fxprune.batches import DATA_FIX, Batch, Data
from fxprune.errors import InputError
from fxprune.passes.chains import Span
from fxprune.passes.linear.nodes import Nodes, Norm
from fxprune.passes.recalibrate import recalibrate

Loss = Callable[[Any, Any], Tensor]
Damage = Callable[[fx.GraphModule], float]
"""How much worse a changed network is, which it may recalibrate in place."""

LIMIT = 8  # batches that damage is measured on, unless told
_POINTS = 65  # of the Gauss-Hermite quadrature; kinks converge slowly, but four digits are plenty


def loss_rise(module: fx.GraphModule, data: Data, loss: Loss, *, limit: int = LIMIT) -> Damage:
    """Measures the mean loss of a changed network minus that of `module`.

    Args:
        module: a captured model; not modified.
        data: (inputs, targets) batches.
        loss: `loss(outputs, targets)`, a scalar.
        limit: how many batches to use at most.

    Raises:
        InputError: data or loss do not fit the model, or a loss is not finite.
    """
    used = few(data, limit)

    def mean_loss(variant: fx.GraphModule) -> float:
        outputs = _outputs(recalibrate(variant, used), used)
        values = (_scalar(loss, output, batch) for output, batch in zip(outputs, used, strict=True))
        return sum(values) / len(used)

    dense = mean_loss(copy.deepcopy(module).eval())
    return lambda variant: mean_loss(variant) - dense


def disagreement(module: fx.GraphModule, data: Data, *, limit: int = LIMIT) -> Damage:
    """Measures the squared change of the outputs over the squared outputs of `module`.

    0 is no change; 1 is as far off as an output of zeros.  Arguments and errors as of `loss_rise`.
    """
    used = few(data, limit)
    dense = [
        tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, output)
        for output in _outputs(recalibrate(copy.deepcopy(module).eval(), used), used)
    ]
    whole = sum(_squares(output) for output in dense)
    if not whole > 0:
        raise InputError(
            "The dense network's outputs on the data are zero, or not finite",
            fix="Judge spans with a loss, or with other data",
        )

    def measured(variant: fx.GraphModule) -> float:
        pairs = zip(_outputs(recalibrate(variant, used), used), dense, strict=True)
        return sum(_distance(here, there) for here, there in pairs) / whole

    return measured


def expected_errors(module: fx.GraphModule, spans: Sequence[Span]) -> dict[str, float]:
    """For each activation f inside of a span, by node name, E (f(x) - x)^2 / E f(x)^2.

    The expectation is over channels and a Gaussian x with the mean and variance of the batch norm
    before f; where several are added up before f, theirs are added up; 0 and 1 where there is none.
    """
    judge = _GaussianJudge(module)
    names = dict.fromkeys(name for span in spans for name in span.activations)
    return {name: judge.error(name) for name in names}


def few(data: Data, limit: int = LIMIT) -> list[Batch]:
    """The first batches of `data`: those that damage is measured on."""
    if limit < 1:
        raise InputError(f"limit should be at least 1, not {limit}")
    return list(itertools.islice(batches.first_of(data)[1], limit))


@torch.no_grad()
def _outputs(module: fx.GraphModule, data: Sequence[Batch]) -> list[Any]:
    device = batches.device_of(module)
    return [module(*batches.arguments(batches.on_device(inputs, device))) for inputs, _ in data]


def _scalar(loss: Loss, output: Any, batch: Batch) -> float:
    targets = batches.on_device(batch[1], _device(output))
    try:
        value = float(loss(output, targets).detach())
    except Exception as error:
        raise InputError(
            f"The loss does not take the data: {type(error).__name__}: {error}",
            f"targets {batches.describe(batch[1])}",
            DATA_FIX,
        ) from error
    if not math.isfinite(value):
        raise InputError(f"The loss is {value}", fix="Look for values that are not finite")
    return value


def _device(output: Any) -> torch.device:
    tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _squares(output: Any) -> float:
    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return float(sum(leaf.double().square().sum() for leaf in leaves))


def _distance(here: Any, there: Any) -> float:
    pairs = zip(tree_leaves(here), tree_leaves(there), strict=True)
    return sum(_squares(a.double().cpu() - b.double()) for a, b in pairs if isinstance(a, Tensor))


class _GaussianJudge:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.reader = Nodes(module)
        points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
        self.points = torch.from_numpy(points)
        self.weights = torch.from_numpy(weights / weights.sum())

    def error(self, name: str) -> float:
        """E (f(x) - x)^2 / E f(x)^2 of the activation `name`."""
        node = self.nodes[name]
        mean, variance = self.moments(node.all_input_nodes[0])
        x = mean + variance.sqrt() * self.points[:, None]  # [points, channels]
        x = x.expand(-1, max(x.shape[1], self._slopes(node))).contiguous()
        y = self._applied(node, x.clone())
        change, size = (self.weights @ v.square().mean(dim=1) for v in (y - x, y))
        return float(change / size) if float(size) else math.inf

    def moments(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel of what `node` yields."""
        norm = self.reader.norm(node)
        if isinstance(norm, Norm) and norm.names[2] is not None and norm.names[3] is not None:
            scale, shift = self.reader.numbers(norm.names[2]), self.reader.numbers(norm.names[3])
            return shift, scale.square()
        addition = self.reader.addition(node)
        if addition is not None:
            (mean, variance), (other_mean, other_variance) = map(self.moments, addition.operands)
            return mean + other_mean, variance + other_variance
        zero = torch.zeros(1, dtype=torch.float64)
        return zero, zero + 1

    def _slopes(self, node: fx.Node) -> int:
        """How many channels the activation tells apart by parameters of its own."""
        if node.op == "call_module":
            owner = self.module.get_submodule(str(node.target))
            return max((parameter.numel() for parameter in owner.parameters()), default=1)
        weights = [source for source in node.all_input_nodes if source.op == "get_attr"]
        return max((self.reader.numbers(str(w.target)).numel() for w in weights), default=1)

    @torch.no_grad()
    def _applied(self, node: fx.Node, x: Tensor) -> Tensor:
        """The activation `node` on values [points, channels]."""
        if node.op == "call_module":
            owner = copy.deepcopy(self.module.get_submodule(str(node.target)))
            result: Tensor = owner.to("cpu", torch.float64).eval()(x)
            return result
        rest = [self._value(arg) for arg in node.args[1:]]
        named = {name: self._value(arg) for name, arg in node.kwargs.items() if name != "input"}
        if node.op == "call_method":
            found: Tensor = getattr(x, str(node.target))(*rest, **named)
            return found
        assert callable(node.target)
        value: Tensor = node.target(x, *rest, **named)
        return value

    def _value(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.reader.numbers(str(arg.target))
        return arg
