"""How a model is called, what it returns, and what hangs on it."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from fxprune.errors import CaptureError, InputError
from tests.ways.base import Built, Model, image, normal, refused, vector, way


@dataclass
class Answer:
    logits: Tensor
    given: Tensor


Pair = namedtuple("Pair", ["logits", "given"])


class TwoLayers(nn.Module):
    """The layers that the models below share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)


@way("first.weight[0]")
def several_inputs() -> Built:
    class Several(TwoLayers):
        def forward(self, x, y, scale=2.0, absent=None):
            return self.last(self.first(x) * self.first(y)) * scale

    return Several(), (normal(2, 5), normal(2, 5))


@way("first.weight[0]")
def keyword_inputs() -> Built:
    class Keywords(TwoLayers):
        def forward(self, x, *, y=None):
            return self.last(self.first(x) * self.first(y))

    return Keywords(), {"x": normal(2, 5), "y": normal(2, 5)}


@way("first.weight[0]")
def a_list_and_a_dict_as_input() -> Built:
    class Nested(TwoLayers):
        def forward(self, pair, named):
            return self.last(self.first(pair[0]) + self.first(pair[1]) * self.first(named["z"]))

    return Nested(), ([normal(2, 5), normal(2, 5)], {"z": normal(2, 5)})


@way("first.weight[0]")
def nested_output() -> Built:
    class Nested(TwoLayers):
        def forward(self, x) -> Any:
            return {"a": [self.last(self.first(x)), (x, None)], "b": 3}

    return Nested(), vector()


@way("first.weight[0]")
def dataclass_output() -> Built:
    class Answering(TwoLayers):
        def forward(self, x) -> Any:
            return Answer(self.last(self.first(x)), given=x)

    return Answering(), vector()


@way("first.weight[0]")
def named_tuple_output() -> Built:
    class Pairing(TwoLayers):
        def forward(self, x) -> Any:
            return Pair(self.last(self.first(x)), x)

    return Pairing(), vector()


@way(frozen={"first.weight[0]": "model's output"})
def inner_tensor_as_output() -> Built:
    class Showing(TwoLayers):
        def forward(self, x) -> Any:
            y = self.first(x)
            return self.last(y), y

    return Showing(), vector()


@way("first.weight[0]")
def modules_called_by_keyword() -> Built:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.last, self.layer = nn.Linear(8, 4), nn.LayerNorm(8)

        def forward(self, x):
            x = self.norm(input=self.first(input=x))
            x = torch.mean(input=x, dim=(2, 3))
            return self.last(input=self.layer(input=x))

    return Keywords(), image()


@way("layers.0.weight[0]", "named.second.weight[0]")
def lists_and_dicts_of_modules() -> Built:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(5, 8)])
            self.named = nn.ModuleDict({"second": nn.Linear(8, 6), "third": nn.Linear(6, 4)})

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            for layer in self.named.values():
                x = layer(x)
            return x

    return Listed(), vector()


@way("0.weight[0]")
def hook_that_only_looks() -> Built:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    seen: list[Any] = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    return model, vector()


@way(frozen={"0.weight[0]": "a forward hook changes"})
def hook_that_changes_a_result() -> Built:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, args, out: out.view(-1, 8) * 2)
    return model, vector()


@way("0.0.weight[0]")
def hook_on_a_container() -> Built:
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    return model, vector()


@way("0.weight[0]")
def hook_on_the_model() -> Built:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    model.register_forward_hook(lambda module, args, out: out * 2)
    return model, vector()


@fx.wrap
def sorted_channels(x):
    return x.sort(1).values


@way("second.weight[0]", frozen={"first.weight[0]": "depend on each other"})
def function_that_is_not_traced() -> Built:
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 6)
            self.last = nn.Linear(6, 4)

        def forward(self, x):
            return self.last(self.second(sorted_channels(self.first(x))).relu())

    return Wrapping(), vector()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


@way("first.weight[0]")
def autograd_function() -> Built:
    return Model(
        lambda s, x: s.last(Doubled.apply(s.first(x))),
        first=nn.Linear(5, 8),
        last=nn.Linear(8, 4),
    ), vector()


@way("first.0.weight[0]")
def checkpointed_block() -> Built:
    return Model(
        lambda s, x: s.last(checkpoint(s.first, x, use_reentrant=False)),
        first=nn.Sequential(nn.Linear(5, 8), nn.ReLU()),
        last=nn.Linear(8, 4),
    ), vector()


@way("0.weight[0]")
def traced_already() -> Built:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    return fx.symbolic_trace(model), vector()


@way("0.weight[0]", frozen={"0.weight[2]": "kernel of a convolution"})
def dropout_of_every_kind() -> Built:
    layers = [nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.Dropout(0.1), nn.AlphaDropout(0.1)]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1)), image()


@refused(CaptureError, "other values")
def random_numbers() -> Built:
    class Noisy(TwoLayers):
        def forward(self, x):
            return self.last(self.first(x) + torch.randn(8))

    return Noisy(), vector()


@refused(InputError, "does not run")
def inputs_of_the_wrong_shape() -> Built:
    return nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4)), vector(6)


@refused(InputError, "compiled")
def compiled_already() -> Built:
    return torch.compile(nn.Linear(5, 4)), vector()


@refused(InputError, "not initialised")
def lazy_modules() -> Built:
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4)), vector()


@way("0.weight_orig[0]")
def masks_of_torch_pruning() -> Built:
    layer = nn.Linear(5, 8)
    prune.random_unstructured(layer, "weight", 0.5)
    return nn.Sequential(layer, nn.Linear(8, 4)), vector()
