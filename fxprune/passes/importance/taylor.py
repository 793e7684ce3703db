"""First-order Taylor: how much the loss would change if a weight were zero.

Setting `w` to zero changes the loss by `-w dL/dw` to first order (Molchanov et al. 2019,
"Importance estimation for neural network pruning"). Contributions of one channel are added up over
everything that goes with it, batch norm included, and only then taken absolute (HALP, section 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune import batches
from fxprune.batches import Data
from fxprune.errors import InputError
from fxprune.passes.importance.base import (
    Importance,
    Saliency,
    by_score,
    coupled_scores,
    judged,
    over_places,
)
from fxprune.passes.infer import Analysis

Loss = Callable[[Any, Any], Tensor]
Step = Callable[[int], None]


def taylor(
    module: fx.GraphModule,
    analysis: Analysis,
    data: Data,
    loss: Loss,
    *,
    limit: int = 32,
    step: Step | None = None,
) -> Importance:
    """Accumulate `|w dL/dw|` over up to `limit` batches of `data`, in evaluation mode.

    Args:
        module: the captured model; not modified.
        analysis: its axes.
        data: batches of (inputs, targets).
        loss: `loss(outputs, targets)`, a scalar tensor.
        limit: number of batches at most.
        step: called with the number of batches done, for progress.

    Raises:
        InputError: data that does not fit the model, or a loss that is not finite.
    """
    model = copy.deepcopy(module).eval()
    device = batches.device_of(model)
    names = set(judged(module, analysis))
    parameters = {
        name: parameter.requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }
    weights: dict[str, Saliency] = {}
    scores = {group.atom: np.zeros(group.size) for group in analysis.groups}
    _, stream = batches.first_of(data)
    done = 0
    for inputs, targets in stream:
        if done == limit:
            break
        with torch.enable_grad():
            value = _loss(model, inputs, targets, loss, device, done)
        changes = _changes(value, parameters)
        for name in names & changes.keys():
            weights[name] = weights.get(name, np.zeros(1, np.float32)) + np.abs(changes[name])
        # Absolute per batch: over many batches the gradient of a trained network averages to zero.
        for atom, score in coupled_scores(changes, analysis).items():
            scores[atom] += score
        done += 1
        if step is not None:
            step(done)
    if not any(score.any() for score in scores.values()):
        raise InputError(
            "No weight changes the loss on this data", fix="Check that loss and targets fit"
        )
    mean = {name: total / np.float32(done) for name, total in weights.items()}
    return by_score(mean, {atom: total / done for atom, total in scores.items()})


def _loss(
    model: fx.GraphModule, inputs: Any, targets: Any, loss: Loss, device: torch.device, index: int
) -> Tensor:
    arguments = batches.arguments(batches.on_device(inputs, device))
    try:
        outputs = model(*arguments)
        value = loss(outputs, batches.on_device(targets, device))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The model or the loss does not take the data: {type(error).__name__}: {error}",
            f"batch {index}, inputs {batches.describe(inputs)}, targets "
            f"{batches.describe(targets)}",
            "Batches are (inputs, targets); loss(outputs, targets) gives a scalar",
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise InputError(
            "The loss is not a scalar tensor with a gradient",
            f"batch {index}, loss {batches.describe(value)}",
            "Return the mean over the batch",
        )
    if not bool(torch.isfinite(value)):
        raise InputError(
            f"The loss is {float(value.detach())}",
            f"batch {index}",
            "Look for inputs or targets that are not finite",
        )
    return value


def _changes(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Saliency]:
    """`w dL/dw` of every parameter that the loss depends on, summed over a kernel's places."""
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True
    )
    changes: dict[str, Saliency] = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None:
            continue
        change = over_places(parameter.detach() * gradient)
        if not np.isfinite(change).all():
            raise InputError(
                f"The gradient of {name} is not finite", fix="Look for overflow in the loss"
            )
        changes[name] = change
    if not changes:
        raise InputError(
            "No parameter has a gradient", fix="The loss must depend on the model's outputs"
        )
    return changes
