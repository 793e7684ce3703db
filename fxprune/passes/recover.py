"""Fine-tuning after slimming: a plain PyTorch loop, with distillation from the dense network.

The slim module is an ordinary trainable module; whoever has a training recipe should use that, with
a fresh optimizer (one made before slimming holds the dense parameters).  This loop is for the rest:
SGD with Nesterov momentum, one cosine from `lr` to zero (Loshchilov & Hutter 2017, SGDR) after a
short linear warm-up, and soft targets when a teacher is given (Hinton et al. 2015, "Distilling the
Knowledge in a Neural Network", section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias, TypeVar

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fxprune import batches
from fxprune.batches import DATA_FIX, Batch, Data
from fxprune.errors import FxpruneError, InputError

Loss: TypeAlias = Callable[[Any, Any], Tensor]
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
M = TypeVar("M", bound=nn.Module)

_TEMPERATURE = 2.0
_WARM_UP = 0.05  # of all steps


def soft_targets(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance from the teacher's class probabilities, softened by a temperature T = 2.

    Args:
        student, teacher: logits, [batch, classes, ...].

    Returns:
        T**2 KL(teacher / T || student / T), averaged over the batch; T**2 keeps the gradient's size
        comparable with that of a hard-target loss (Hinton et al. 2015, section 2.1).
    """
    log_student = F.log_softmax(student / _TEMPERATURE, dim=1)
    log_teacher = F.log_softmax(teacher / _TEMPERATURE, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(dim=1).mean() * _TEMPERATURE**2


def finetune(
    slim: M,
    data: Data,
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    distillation: Loss | None = None,
    epochs: int = 10,
    lr: float = 0.01,
    weight_decay: float = 1e-4,
    optimizer: OptimizerFactory | None = None,
    seed: int = 0,
    progress: bool = True,
) -> M:
    """Train `slim` in place, as PyTorch loops do, and return it.

    Args:
        slim: any trainable module; its parameters change, its train/eval mode comes back as it was.
        data: (inputs, targets) batches, gone through once per epoch.  Inputs are a tensor, or a
            tuple of the module's arguments; they are moved to the module's device.
        teacher: the dense network; the objective is then the mean of `loss` and `distillation`.
            It is run in eval mode, without gradients, and left as it was.
        loss: (output, targets) -> scalar; cross entropy when not given.
        distillation: (output, teacher's output) -> scalar; `soft_targets` when not given.
        epochs: passes over the data, at least 1.
        lr: the highest learning rate, and `weight_decay`, of the default optimizer.
        optimizer: parameters -> optimizer, such as `lambda p: torch.optim.AdamW(p, lr=1e-3)`; its
            learning rates are the highest ones.
        seed: of PyTorch's generators during the call; they are as before afterwards.
        progress: show a progress bar.

    Raises:
        InputError: a setting, the data or the teacher does not fit; nothing has changed then.
        FxpruneError: the loss stopped being finite; the weights are back to where they began.
    """
    _check_settings(slim, data, teacher, epochs, lr)
    objective = _objective(loss or F.cross_entropy, teacher, distillation or soft_targets)
    device = batches.device_of(slim)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(batches.cuda_devices(slim)))
        torch.manual_seed(seed)
        modules: list[nn.Module] = [slim] if teacher is None else [slim, teacher]
        for module in modules:
            stack.enter_context(batches.modes_restored(module))
            module.eval()
        first, whole_epoch = batches.first_of(data)
        _check_fit(slim, objective, batches.on_device(first, device))

        initial = {name: value.clone() for name, value in slim.state_dict().items()}
        train = _make_optimizer(slim, optimizer, lr, weight_decay)
        peaks = [group["lr"] for group in train.param_groups]
        bar = stack.enter_context(_progress_bar(progress))
        per_epoch = batches.length(data)
        task = bar.add_task("training", total=per_epoch and per_epoch * epochs, loss=math.nan)
        slim.train()
        for done, batch in _epochs(data, whole_epoch, epochs):
            for group, peak in zip(train.param_groups, peaks, strict=True):
                group["lr"] = peak * _schedule(done)
            value = objective(slim, *batches.on_device(batch, device))
            if not torch.isfinite(value):
                slim.load_state_dict(initial)
                raise _diverged(value.item(), done)
            train.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            train.step()
            bar.update(task, advance=1, loss=value.item())
    return slim


@torch.no_grad()
def evaluate(module: nn.Module, data: Data) -> float:
    """Top-1 accuracy in [0, 1], in eval mode; the module's mode comes back as it was.

    Args:
        module: inputs -> class logits [batch, classes].
        data: (inputs, labels [batch]) batches.

    Raises:
        InputError: the data is empty, or labels and logits do not pair up.
    """
    device = batches.device_of(module)
    correct = total = 0
    with batches.modes_restored(module):
        module.eval()
        for batch in batches.first_of(data)[1]:
            inputs, labels = batches.on_device(batch, device)
            predicted = module(*batches.arguments(inputs)).argmax(dim=1)
            if predicted.shape != labels.shape:
                raise InputError(
                    f"The module predicts classes of shape {list(predicted.shape)}, "
                    f"but the labels have shape {list(labels.shape)}",
                    fix="Accuracy needs one label per row of logits.",
                )
            correct += int((predicted == labels).sum())
            total += labels.numel()
    return correct / total


def _objective(loss: Loss, teacher: nn.Module | None, distillation: Loss) -> Callable[..., Tensor]:
    """(module, inputs, targets) -> the scalar to minimise."""
    if teacher is None:
        return lambda slim, inputs, targets: loss(slim(*batches.arguments(inputs)), targets)

    def taught(slim: nn.Module, inputs: Any, targets: Any) -> Tensor:
        with torch.no_grad():
            reference = teacher(*batches.arguments(inputs))
        output = slim(*batches.arguments(inputs))
        return (loss(output, targets) + distillation(output, reference)) / 2

    return taught


def _make_optimizer(
    slim: nn.Module, factory: OptimizerFactory | None, lr: float, weight_decay: float
) -> Optimizer:
    parameters = [p for p in slim.parameters() if p.requires_grad]
    if factory is not None:
        return factory(parameters)
    return torch.optim.SGD(
        parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )


def _epochs(data: Data, first_epoch: Iterator[Batch], epochs: int) -> Iterator[tuple[float, Batch]]:
    """(share of the training done, batch); in steps of an epoch where the length is unknown."""
    per_epoch = batches.length(data)
    for epoch in range(epochs):
        for i, batch in enumerate(data if epoch else first_epoch):
            within = i / per_epoch if per_epoch else 0.0
            yield (epoch + within) / epochs, batches.pair(batch)


def _schedule(done: float) -> float:
    """The learning rate's share of its peak after the share `done` of the training."""
    warm = min(1.0, 0.1 + 0.9 * done / _WARM_UP)
    return warm * 0.5 * (1 + math.cos(math.pi * done))


def _check_settings(
    slim: nn.Module, data: Data, teacher: nn.Module | None, epochs: int, lr: float
) -> None:
    if not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"epochs should be an integer of at least 1, not {epochs!r}")
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr should be a positive number, not {lr!r}")
    if isinstance(data, Iterator) and epochs > 1:
        raise InputError(
            f"The data can be gone through only once, but epochs is {epochs}", fix=DATA_FIX
        )
    if not any(p.requires_grad for p in slim.parameters()):
        raise InputError("No parameter of the module requires a gradient, so none can be trained")
    own = {id(p) for p in slim.parameters()}
    if teacher is not None and any(id(p) in own for p in teacher.parameters()):
        raise InputError(
            "The teacher shares parameters with the module that is trained",
            fix="Use the dense model, or a deep copy, as the teacher.",
        )


@torch.no_grad()
def _check_fit(slim: nn.Module, objective: Callable[..., Tensor], batch: Batch) -> None:
    """One step without gradients, in eval mode, so that nothing changes if it cannot be done."""
    try:
        value = objective(slim, *batch)
    except Exception as error:
        raise InputError(
            f"The first batch does not go through the module and the loss: {error}",
            f"Inputs {batches.describe(batch[0])}, targets {batches.describe(batch[1])}",
            DATA_FIX,
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(
            f"The loss should be a scalar tensor, not {batches.describe(value)}",
            fix="Reduce it, with .mean() for example.",
        )


def _diverged(value: float, done: float) -> FxpruneError:
    return FxpruneError(
        f"The loss became {value} after {100 * done:.0f} % of the training",
        "The weights are back to where they began",
        "Use a lower learning rate, and look for NaN in the data.",
    )


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        disable=not shown,
    )
