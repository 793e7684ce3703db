"""Whole architectures in small, beyond plain chains: dense links, fusion units, dynamics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.ways.base import Built, Model, image, normal, sequence, vector, way


def unit(inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@way("stem.0.weight[0]", "a.0.weight[0]", "b.0.weight[0]", "c.0.weight[0]")
def links_of_densenet() -> Built:
    def run(s, x):
        features = [s.stem(x)]
        for layer in (s.a, s.b, s.c):
            features.append(layer(torch.cat(features, 1)))
        return s.last(torch.cat(features, 1).mean((2, 3)))

    parts = {"stem": unit(3, 6), "a": unit(6, 4), "b": unit(10, 4), "c": unit(14, 4)}
    return Model(run, **parts, last=nn.Linear(18, 4)), image()


class HarmonicBlock(nn.Module):
    """Layer k reads the layers k - 2**n for every 2**n that divides k (Chao et al. 2019)."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.links: list[list[int]] = []
        widths, made = [inputs], []
        for k in range(1, layers + 1):
            links = [k - 2**n for n in range(4) if k % 2**n == 0 and k >= 2**n]
            width = int(growth * 1.7 ** (len(links) - 1)) // 2 * 2
            made.append(unit(sum(widths[i] for i in links), width))
            widths.append(width)
            self.links.append(links)
        self.layers = nn.ModuleList(made)
        self.outputs = [i for i in range(1, layers + 1) if i == layers or i % 2 == 1]
        self.width = sum(widths[i] for i in self.outputs)

    def forward(self, x):
        made = [x]
        for layer, links in zip(self.layers, self.links, strict=True):
            inputs = [made[i] for i in links]
            made.append(layer(torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0]))
        return torch.cat([made[i] for i in self.outputs], 1)


@way("stem.0.weight[0]", *(f"block.layers.{i}.0.weight[0]" for i in range(4)))
def links_of_hardnet() -> Built:
    block = HarmonicBlock(6, 4, 4)
    parts = {"stem": unit(3, 6), "block": block, "last": nn.Linear(block.width, 4)}
    return Model(lambda s, x: s.last(s.block(s.stem(x)).mean((2, 3))), **parts), image()


@way("stem.weight[0]", "narrow.weight[0]")
def dimension_wise_fusion() -> Built:
    """Depthwise along channels, height and width in turn, then grouped fusion (DiCE units)."""

    def run(s, x):
        y = s.stem(x)
        height = s.height(y.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        width = s.width(y.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        y = torch.cat([s.channel(y), height, width], 1)
        b, c, h, w = y.shape
        y = y.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        y = s.fuse(y).relu()
        return s.last(s.narrow(y) * s.gate(y.mean((2, 3), keepdim=True)).sigmoid())

    parts = {
        "stem": nn.Conv2d(3, 8, 1),
        "channel": nn.Conv2d(8, 8, 3, padding=1, groups=8),
        "height": nn.Conv2d(6, 6, (1, 3), padding=(0, 1), groups=6),
        "width": nn.Conv2d(6, 6, (3, 1), padding=(1, 0), groups=6),
        "fuse": nn.Conv2d(24, 8, 1, groups=8),
        "narrow": nn.Conv2d(8, 6, 1),
        "gate": nn.Conv2d(8, 6, 1),
    }
    return Model(run, **parts, last=nn.Conv2d(6, 4, 1)), image()


class Butterfly(nn.Module):
    """A product of sparse matrices: pairs at distance 1, 2, 4, ... are mixed (Dao et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.twiddles = nn.ParameterList()
        stride = 1
        while stride < width:
            shape = (width // (2 * stride), stride, 2, 2)
            self.twiddles.append(nn.Parameter(torch.randn(shape)))
            stride *= 2

    def forward(self, x):
        for twiddle in self.twiddles:
            blocks, stride = twiddle.shape[:2]
            pairs = x.view(-1, blocks, 2, stride)
            x = torch.einsum("nbis,bsoi->nbos", pairs, twiddle).reshape(x.shape)
        return x


@way("0.weight[0]", "2.weight[0]")
def butterfly_of_all_distances() -> Built:
    layers = nn.Sequential(nn.Linear(5, 8), Butterfly(8), nn.Linear(8, 6), nn.ReLU())
    layers.append(nn.Linear(6, 4))
    return layers, vector()


@way("body.0.weight[0]", "body.2.weight[0]")
def policy_with_a_value_and_an_action() -> Built:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
            self.action, self.value = nn.Linear(6, 3), nn.Linear(6, 1)
            self.deviation = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            features = self.body(x)
            mean = self.action(features)
            return {
                "mean": mean.tanh(),
                "deviation": self.deviation.exp().expand_as(mean),
                "value": self.value(features).squeeze(-1),
            }

    return Policy(), vector()


@way("field.0.weight[0]", "lift.weight[0]")
def differential_equation_of_fourth_order() -> Built:
    def run(s, x):
        y, step = s.lift(x), 0.25
        for _ in range(3):
            a = s.field(y)
            b = s.field(y + step / 2 * a)
            c = s.field(y + step / 2 * b)
            y = y + step / 6 * (a + 2 * b + 2 * c + s.field(y + step * c))
        return s.last(y)

    field = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6))
    return Model(run, lift=nn.Linear(5, 6), field=field, last=nn.Linear(6, 4)), vector()


def recurrent(cell: nn.Module, width: int) -> Built:
    return Model(
        lambda s, x: s.last(s.cell(s.first(x))[0]),
        first=nn.Linear(5, 6),
        cell=cell,
        last=nn.Linear(width, 4),
    ), sequence()


@way("first.weight[0]", "cell.weight_ih_l0[0]", "cell.weight_ih_l1[0]")
def plain_recurrent_layers() -> Built:
    return recurrent(nn.RNN(6, 7, 2, batch_first=True), 7)


@way(
    "first.weight[0]",
    *(f"cell.weight_ih_l{layer}{way}[0]" for layer in (0, 1) for way in ("", "_reverse")),
)
def stacked_lstm_in_both_directions() -> Built:
    return recurrent(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.1), 10)


# Its kernel knows a projection by a width that differs from that of the cell.
@way(
    "first.weight[0]", "cell.weight_hr_l0[0]", frozen={"cell.weight_ih_l0[0]": "tells a projection"}
)
def lstm_with_a_projection() -> Built:
    return recurrent(nn.LSTM(6, 8, proj_size=5, batch_first=True), 5)


@way("first.weight[0]", "cell.weight_ih_l0[0]")
def lstm_with_the_time_first() -> Built:
    def run(s, x):
        states, (hidden, _) = s.cell(s.first(x).transpose(0, 1))
        return s.last(states.transpose(0, 1) + hidden[-1].unsqueeze(1))

    parts = {"first": nn.Linear(5, 6), "cell": nn.LSTM(6, 7), "last": nn.Linear(7, 4)}
    return Model(run, **parts), sequence()


@way("cell.weight_ih[0]")
def gated_cell_in_a_loop() -> Built:
    def run(s, x):
        state = x.new_zeros(x.shape[0], 7)
        for step in range(3):
            state = s.cell(x[:, step], state)
        return s.last(state)

    return Model(run, cell=nn.GRUCell(5, 7), last=nn.Linear(7, 4)), sequence()


@way("first.weight[0]", "second.weight[0]")
def region_under_autocast() -> Built:
    def run(s, x):
        with torch.autocast("cpu", enabled=False):
            y = s.second(s.first(x).relu())
        return s.last(y)

    parts = {"first": nn.Linear(5, 8), "second": nn.Linear(8, 6), "last": nn.Linear(6, 4)}
    return Model(run, **parts), vector()


@way("first.weight[0]")
def region_without_gradients() -> Built:
    def run(s, x):
        y = s.first(x)
        with torch.no_grad():
            size = y.abs().amax(1, keepdim=True)
        return s.last(y / (size + 1))

    return Model(run, first=nn.Linear(5, 8), last=nn.Linear(8, 4)), vector()


@way("first.weight[0]", "second.weight[0]", "inner.weight[0]")
def region_of_several_layers() -> Built:
    def run(s, x):
        y = s.first(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = s.inner(s.norm(y).view(y.shape[0], 2, 4).transpose(1, 2).flatten(1)).relu()
            with torch.autocast("cpu", enabled=False):
                z = s.second(s.drop(z))
            mean = z.mean(1, keepdim=True)
        return s.last(z - mean), y[:, :1] * 0 + mean

    parts = {"first": nn.Linear(5, 8), "norm": nn.LayerNorm(8), "inner": nn.Linear(8, 6)}
    parts |= {"second": nn.Linear(6, 7), "last": nn.Linear(7, 4), "drop": nn.Dropout(0.2)}
    return Model(run, **parts), vector()


@way("first.weight[0]", "second.weight[0]")
def region_that_views() -> Built:
    def run(s, x):
        y = s.first(x) if x.shape[1] > 2 else x
        with torch.autocast("cpu", dtype=torch.float16, enabled=True):
            y = y.view(-1, 2, 4).float().transpose(1, 2).reshape(-1, 8).double()
        return s.last(s.second(y))

    parts = {"first": nn.Linear(5, 8), "second": nn.Linear(8, 6), "last": nn.Linear(6, 4)}
    return Model(run, **parts), vector()


@way("first.0.weight[0]", "second.0.weight[0]")
def blocks_recomputed() -> Built:
    def run(s, x):
        y = checkpoint(s.first, x, use_reentrant=False)
        return s.last(checkpoint(s.second, y, use_reentrant=False))

    parts = {
        "first": nn.Sequential(nn.Linear(5, 8), nn.ReLU()),
        "second": nn.Sequential(nn.Linear(8, 6), nn.ReLU()),
    }
    return Model(run, **parts, last=nn.Linear(6, 4)), vector()


@way("first.weight[0]")
def inputs_and_weights_in_odd_strides() -> Built:
    model = Model(
        lambda s, x: s.last(s.first(x).transpose(2, 3).relu()[..., ::2]),
        first=nn.Conv2d(3, 8, 1),
        last=nn.Conv2d(8, 4, 1),
    )
    model.first.weight = nn.Parameter(normal(3, 8, 1, 1).transpose(0, 1))
    return model, (normal(2, 6, 6, 3).permute(0, 3, 2, 1),)


@way("first.weight[0]")
def tensors_without_elements() -> Built:
    def run(s, x):
        y = s.first(x)
        nothing = y[:, :, :0]
        together = torch.cat([nothing, y, nothing.relu()], 2)
        return s.last(together + y.new_zeros(0, 8, 1, 1).sum())

    return Model(run, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1)), image()


@way("second.weight[0]", frozen={"first.weight[0]": "depend on each other"})
def graph_module_with_a_leaf_of_its_own() -> Built:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.scale * x.sort(1).values

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, Sorting) or super().is_leaf_module(m, name)

    model = Model(
        lambda s, x: s.last(s.second(s.own(s.first(x))).relu()),
        first=nn.Linear(5, 8),
        own=Sorting(),
        second=nn.Linear(8, 6),
        last=nn.Linear(6, 4),
    )
    return torch.fx.GraphModule(model, Tracer().trace(model)), vector()


@way("line.weight[0]", "deep.weight[0]")
def convolutions_in_one_and_three_dimensions() -> Built:
    def run(s, x):
        line = s.line(x.flatten(2))
        deep = s.deep(line.view(-1, 8, 4, 3, 3)).relu()
        return s.last(F.avg_pool3d(deep, 2, 1))

    parts = {"line": nn.Conv1d(3, 8, 3, padding=1), "deep": nn.Conv3d(8, 6, 3, padding=1)}
    return Model(run, **parts, last=nn.ConvTranspose3d(6, 4, 2)), image()
