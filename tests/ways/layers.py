"""Layers and parameters: shared, tied, bare, parametrized, normalised."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.ways.base import Built, Model, image, normal, sequence, vector, way, weights

KERNEL = "kernel of a convolution"


@way("first.weight[0]", "again.weight[0]")
def module_called_twice() -> Built:
    parts = {"first": nn.Linear(5, 8), "again": nn.Linear(8, 8), "last": nn.Linear(8, 4)}
    return Model(lambda s, x: s.last(s.again(s.again(s.first(x)).relu())), **parts), vector()


@way("first.weight[0]", "shared.weight[0]")
def grouped_convolution_called_twice() -> Built:
    parts = {
        "first": nn.Conv2d(3, 12, 1),
        "shared": nn.Conv2d(12, 12, 3, padding=1, groups=4),
        "last": nn.Conv2d(12, 4, 1),
    }
    return Model(lambda s, x: s.last(s.shared(s.shared(s.first(x)).relu())), **parts), image()


@way("first.weight[0]", "shared.weight[0]")
def depthwise_convolution_called_twice() -> Built:
    parts = {
        "first": nn.Conv2d(3, 8, 1),
        "shared": nn.Conv2d(8, 8, 3, padding=1, groups=8),
        "last": nn.Conv2d(8, 4, 1),
    }
    return Model(lambda s, x: s.last(s.shared(s.shared(s.first(x)).relu())), **parts), image()


@way("embed.weight[1]", frozen={"embed.weight[0]": "index tensor"})
def embedding_tied_to_the_head() -> Built:
    parts = {"embed": nn.Embedding(10, 8), "inner": nn.Linear(8, 8)}
    model = Model(lambda s, x: F.linear(s.inner(s.embed(x)).tanh(), s.embed.weight), **parts)
    return model.double(), (torch.randint(0, 10, (2, 5)),)


@way("added.weight[1]", frozen={"added.weight[0]": "index tensor"})
def embeddings_of_bags() -> Built:
    parts = {
        "added": nn.EmbeddingBag(10, 8, mode="sum"),
        "largest": nn.EmbeddingBag(10, 8, mode="max"),
        "last": nn.Linear(8, 4),
    }
    model = Model(lambda s, x: s.last(s.added(x) * s.largest(x)), **parts)
    return model.double(), (torch.randint(0, 10, (2, 5)),)


@way("first.weight[0]", "blur[0]")
def blur_in_as_many_groups_as_channels() -> Built:
    def run(s, x):
        x = s.first(x)
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return s.last(F.conv2d(padded, s.blur, stride=2, groups=x.shape[1]))

    parts = {"first": nn.Conv2d(3, 8, 1), "last": nn.Conv2d(8, 4, 1)}
    return Model(run, blur=weights(8, 1, 3, 3), **parts), image()


@way("first.weight[0]", frozen={"turned[2]": "turned by quarters"})
def kernels_turned_by_quarters() -> Built:
    def run(s, x):
        return s.last(F.conv2d(s.first(x), torch.rot90(s.turned, 1, (2, 3)), padding=1))

    parts = {"first": nn.Conv2d(3, 8, 1), "last": nn.Conv2d(8, 4, 1)}
    return Model(run, turned=weights(8, 8, 3, 3), **parts), image()


@way("first.weight[0]", "first.weight[1]")
def weights_tied() -> Built:
    model = Model(
        lambda s, x: s.last(s.second(s.first(s.stem(x)).relu())),
        stem=nn.Linear(5, 8),
        first=nn.Linear(8, 8),
        second=nn.Linear(8, 8),
        last=nn.Linear(8, 4),
    )
    model.second.weight = model.first.weight
    return model, vector()


@way("kernel[0]")
def functional_convolution_with_bare_parameters() -> Built:
    def run(s, x):
        y = F.conv2d(x, s.kernel, s.bias, padding=1)
        y = F.conv2d(y.relu(), s.depthwise, padding=1, groups=8)
        return F.conv2d(y, s.last)

    parts = {"kernel": weights(8, 3, 3, 3), "bias": weights(8), "depthwise": weights(8, 1, 3, 3)}
    return Model(run, **parts, last=weights(4, 8, 1, 1)), image()


@way("matrix[1]", "left.0[0]")
def matrices_without_modules() -> Built:
    def run(s, x):
        y = torch.addmm(s.offset, x, s.matrix).relu() @ s.left[0].T
        return y @ s.left[1]

    left = nn.ParameterList([weights(7, 8), weights(7, 4)])
    return Model(run, matrix=weights(5, 8), offset=weights(8), left=left), vector()


@way("first[1]", "heads[0]", "heads[2]")
def einsum() -> Built:
    def run(s, x):
        y = torch.einsum("btc,cd->btd", x, s.first)
        y = torch.einsum("btd,hde->bhte", y, s.heads)
        return torch.einsum("bhte,heo->bto", y.relu(), s.last)

    return Model(
        run, first=weights(5, 8), heads=weights(3, 8, 4), last=weights(3, 4, 2)
    ), sequence()


@way("experts[2]", frozen={"experts[0]": "depend on each other", "gate.weight[0]": "depend"})
def mixture_of_experts() -> Built:
    def run(s, x):
        made = torch.einsum("bi,eio->beo", x, s.experts)
        return s.last((s.gate(x).softmax(-1).unsqueeze(-1) * made).sum(1))

    parts = {"experts": weights(3, 5, 8), "gate": nn.Linear(5, 3), "last": nn.Linear(8, 4)}
    return Model(run, **parts), vector()


@way("a.weight[0]", "b.weight[0]", "c.weight[1]", "d.weight[0]")
def convolutions_of_every_kind() -> Built:
    def run(s, x):
        y = s.b(s.a(x)).relu()
        y = s.c(y).relu()
        z = s.d(y.flatten(2)).unsqueeze(2).unsqueeze(2)
        return s.e(z).flatten(2).mean(2)

    parts = {
        "a": nn.Conv2d(3, 8, 3, padding=2, dilation=2),
        "b": nn.Conv2d(8, 6, 3, stride=2, padding=1),
        "c": nn.ConvTranspose2d(6, 8, 2, stride=2),
        "d": nn.Conv1d(8, 6, 3),
        "e": nn.Conv3d(6, 4, (1, 1, 3)),
    }
    return Model(run, **parts), image()


@way("0.weight[1]", "2.weight[1]")
def grouped_transposed_convolution() -> Built:
    layers = [nn.ConvTranspose2d(3, 8, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 1, 0)]
    layers[2] = nn.ConvTranspose2d(8, 12, 2, groups=2)
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(12, 4, 1)), image()


@way("kernels.weight[0]")
def convolution_with_a_computed_kernel() -> Built:
    def run(s, x):
        b, c, h, w = x.shape
        kernels = s.kernels(x.mean((2, 3))).view(b * 8, 3, 1, 1)
        y = F.conv2d(x.reshape(1, b * c, h, w), kernels, groups=b).view(b, 8, h, w)
        return s.last(y)

    return Model(run, kernels=nn.Linear(3, 24), last=nn.Conv2d(8, 4, 1)), image()


@way("0.parametrizations.weight.original0[0]")
def weight_norm() -> Built:
    norm = parametrizations.weight_norm
    return nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3)), image()


@way("0.parametrizations.weight.original0[0]", "2.weight[1]", "2.weight[0]")
def weight_norms_in_a_row() -> Built:
    norm = parametrizations.weight_norm
    layers = [norm(nn.Linear(5, 8)), nn.ReLU(), norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 4)]
    return nn.Sequential(*layers), vector()


@way("0.weight[0]")
def weight_norm_over_everything() -> Built:
    layer = parametrizations.weight_norm(nn.Linear(5, 8), dim=None)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4)), vector()


@way("0.weight[0]", "2.weight[0]")
def spectral_norm() -> Built:
    norm = parametrizations.spectral_norm
    layers = [norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 6, 3)), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers), image()


@way("0.weight[0]", "2.weight[0]")
def spectral_norm_by_hooks() -> Built:
    norm = nn.utils.spectral_norm
    layers = [norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 6, 3)), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers), image()


@way("0.weight_g[0]", "2.weight[0]")
def weight_norm_by_hooks() -> Built:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm = nn.utils.weight_norm
        first, second = norm(nn.Conv2d(3, 8, 3)), norm(nn.Conv2d(8, 6, 3))
    return nn.Sequential(first, nn.ReLU(), second, nn.Conv2d(6, 4, 1)), image()


@way("1.weight[0]")
def orthogonal_parametrization() -> Built:
    layer = parametrizations.orthogonal(nn.Linear(8, 8))
    return nn.Sequential(nn.Linear(5, 8), layer, nn.ReLU(), nn.Linear(8, 4)), vector()


class StandardisedConv(nn.Conv2d):
    """A convolution of a standardised weight with a gain, as in NFNets (Brock et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **settings: Any):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, **settings)
        self.gain = nn.Parameter(torch.full((outputs, 1, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        made = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True)
        made = made.reshape_as(self.weight)
        return F.conv2d(x, made, self.bias, self.stride, self.padding, self.dilation, self.groups)


@way("0.weight[0]", "2.weight[0]", "2.weight[1]")
def standardised_weights() -> Built:
    layers = [StandardisedConv(3, 8), nn.SiLU(), StandardisedConv(8, 6, groups=2), nn.SiLU()]
    return nn.Sequential(*layers, StandardisedConv(6, 4)), image()


@way("stem.weight[0]", "conv.weight[0]")
def standardised_weight_read_twice() -> Built:
    parts = {"stem": nn.Conv2d(3, 8, 1), "conv": StandardisedConv(8, 8), "last": nn.Conv2d(8, 4, 1)}
    return Model(lambda s, x: s.last(s.conv(s.conv(s.stem(x)).relu())), **parts), image()


@way("stem.weight[0]", "a.weight[0]", "b.weight[0]")
def standardised_weights_of_one_tensor() -> Built:
    model = Model(
        lambda s, x: s.last(s.a(y := s.stem(x)).relu() + s.b(y)),
        stem=nn.Conv2d(3, 8, 1),
        a=StandardisedConv(8, 6),
        b=StandardisedConv(8, 6),
        last=nn.Conv2d(6, 4, 1),
    )
    model.b.weight = model.a.weight
    nn.init.uniform_(model.b.gain)
    return model, image()


@way("weight[0]", "weight_1[0]")
def weight_as_it_is_and_standardised() -> Built:
    def run(s, x):
        y = F.linear(x, s.weight)
        y = y + F.linear(x, s.weight - s.weight.mean(0, keepdim=True)).relu()
        return s.last(y)

    return Model(run, weight=weights(8, 5), last=nn.Linear(8, 4)), vector()


@way("first.weight[0]", "matrix[0]")
def normalised_matrix_turned_round() -> Built:
    def run(s, x):
        return s.last(s.first(x) @ F.normalize(s.matrix, dim=1).t())

    return Model(run, first=nn.Linear(5, 8), matrix=weights(6, 8), last=nn.Linear(6, 4)), vector()


@way(frozen={"first.weight[0]": "statistic of parameters"})
def standardised_weight_that_is_written_to() -> Built:
    def run(s, x):
        weight = s.weight / s.weight.norm()
        weight.mul_(2)
        return F.linear(s.first(x), weight)

    return Model(run, first=nn.Linear(5, 8), weight=weights(4, 8)), vector()


@way("0.weight[0]", "1.bias[0]")
def parametrization_of_ones_own() -> Built:
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    inner = nn.Linear(8, 8)
    parametrize.register_parametrization(inner, "weight", Doubled())
    return nn.Sequential(nn.Linear(5, 8), inner, nn.ReLU(), nn.Linear(8, 4)), vector()


@way("0.weight[0]")
def symmetric_parametrization() -> Built:
    class Symmetric(nn.Module):
        def forward(self, weight):
            return weight.triu() + weight.triu(1).T

    inner = nn.Linear(8, 8)
    parametrize.register_parametrization(inner, "weight", Symmetric())
    return nn.Sequential(inner, nn.ReLU(), nn.Linear(8, 4)), vector(8)


@way("0.weight[0]", frozen={"0.weight[2]": KERNEL})
def norms_of_every_kind() -> Built:
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.InstanceNorm2d(8, affine=True),
        nn.LayerNorm((8, 6, 6), elementwise_affine=False),
        nn.GroupNorm(1, 8),
        nn.SyncBatchNorm(8),
        nn.Conv2d(8, 4, 1),
    ]
    return nn.Sequential(*layers), image()


@way("first.weight[0]", "scale[0]")
def functional_norms() -> Built:
    def run(s, x):
        y = s.first(x)
        y = F.batch_norm(y, s.mean, s.var, training=False)
        y = F.layer_norm(y, y.shape[1:])
        y = F.group_norm(s.second(y), 4, s.scale)
        return s.last(F.rms_norm(y.relu().mean((2, 3)), (8,)))

    parts = {"first": nn.Conv2d(3, 8, 1), "second": nn.Conv2d(8, 8, 1), "scale": weights(8)}
    return Model(
        run, **parts, mean=torch.zeros(8), var=torch.ones(8), last=nn.Linear(8, 4)
    ), image()


@way("0.weight[0]", "2.weight[0]")
def norms_by_hand() -> Built:
    class LayerNorm2d(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight, self.bias = weights(channels), weights(channels)

        def forward(self, x):
            mean = x.mean(1, keepdim=True)
            variance = (x - mean).pow(2).mean(1, keepdim=True)
            x = (x - mean) / torch.sqrt(variance + 1e-6)
            return self.weight[:, None, None] * x + self.bias[:, None, None]

    class RmsNorm(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight = weights(channels)

        def forward(self, x):
            mean = x.pow(2).mean(-1, keepdim=True)
            return self.weight * (x * torch.rsqrt(mean + 1e-6))

    first = [nn.Conv2d(3, 8, 1), LayerNorm2d(8), nn.Conv2d(8, 6, 1)]
    rest = [nn.Flatten(2), nn.Unflatten(2, (6, 6)), RmsNorm(6), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*first, *rest), image()


@way(frozen={"0.weight[0]": "reduced by var"})
def unbiased_variance() -> Built:
    class Standardised(nn.Module):
        def forward(self, x):
            return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()

    return nn.Sequential(nn.Linear(5, 8), Standardised(), nn.Linear(8, 4)), vector()


@way("first.weight[0]")
def statistics_over_the_channels() -> Built:
    def run(s, x):
        y = s.first(x)
        seen = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], dim=1)
        variance, mean = torch.var_mean(y, dim=1, correction=0, keepdim=True)
        return s.last(y * s.gate(seen).sigmoid() + (y - mean) / (variance + 1e-5).sqrt())

    parts = {"first": nn.Conv2d(3, 8, 1), "gate": nn.Conv2d(2, 1, 3, padding=1)}
    return Model(run, **parts, last=nn.Conv2d(8, 4, 1)), image()


@way("first.weight[0]")
def buffers_that_follow_the_channels() -> Built:
    def run(s, x):
        y = (s.first(x) - s.mean[:, None, None]) * s.deviation.view(1, -1, 1, 1)
        return s.last(y.masked_fill(s.mask, 0.3))

    model = Model(
        run,
        first=nn.Conv2d(3, 8, 1),
        mean=normal(8),
        mask=torch.arange(8).remainder(3).eq(0).view(8, 1, 1),
        last=nn.Conv2d(8, 4, 1),
    )
    model.register_buffer("deviation", normal(8), persistent=False)
    return model, image()


@way("first.weight[0]")
def tensor_that_is_no_buffer() -> Built:
    model = Model(
        lambda s, x: s.last(s.first(x) * s.scale), first=nn.Linear(5, 8), last=nn.Linear(8, 4)
    )
    model.__dict__["scale"] = normal(8)
    return model, vector()


@way("first.weight[0]")
def unused_parameters() -> Built:
    parts = {"first": nn.Linear(5, 8), "last": nn.Linear(8, 4), "dead": nn.Linear(6, 6)}
    return Model(lambda s, x: s.last(s.first(x)), **parts, lonely=weights(7)), vector()


@way("left.weight[0]", "right.weight[0]", "mix.weight[0]")
def bilinear_layer() -> Built:
    parts = {"left": nn.Linear(5, 8), "right": nn.Linear(5, 6), "mix": nn.Bilinear(8, 6, 7)}
    return Model(
        lambda s, x: s.last(s.mix(s.left(x), s.right(x))), **parts, last=nn.Linear(7, 4)
    ), vector()


@way("factors[0]", "factors[1]", "factors[2]", "first.weight[0]")
def butterfly_structured_layer() -> Built:
    def run(s, x):
        y = s.first(x).view(-1, 4, 3)
        return s.last(torch.einsum("bgi,goi->bgo", y, s.factors).flatten(1))

    parts = {"first": nn.Linear(5, 12), "factors": weights(4, 2, 3), "last": nn.Linear(8, 4)}
    return Model(run, **parts), vector()
