"""Operators that are told where to read or write: by indices, by a grid, by frequency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.ways.base import Built, Model, image, sequence, way

# Edges of a graph with six nodes.
SOURCE = torch.tensor([0, 1, 2, 3, 4, 5, 0, 3, 3])
TARGET = torch.tensor([1, 2, 0, 4, 5, 3, 3, 0, 3])


def graph(run, **parts) -> Built:
    """A model of nodes with edges between them."""
    found = {"first": nn.Linear(5, 8), "last": nn.Linear(8, 4), **parts}
    return Model(run, source=SOURCE, target=TARGET, **found), sequence()


@way("first.weight[0]", "message.weight[0]")
def messages_added_at_nodes() -> Built:
    def run(s, x):
        x = s.first(x)
        sent = s.message(torch.cat([x[:, s.source], x[:, s.target]], -1)).relu()
        return s.last(x + torch.zeros_like(x).index_add(1, s.target, sent))

    return graph(run, message=nn.Linear(16, 8))


@way("first.weight[0]")
def messages_added_in_place() -> Built:
    def run(s, x):
        x = s.first(x)
        total = x.new_zeros(x.shape)
        total.index_add_(1, s.target, x.index_select(1, s.source))
        return s.last(total)

    return graph(run)


@way("first.weight[0]")
def scattered_sum() -> Built:
    def run(s, x):
        x = s.first(x)
        index = s.target[None, :, None].expand(x.shape[0], -1, x.shape[-1])
        return s.last(torch.zeros_like(x).scatter_add(1, index, x[:, s.source]))

    return graph(run)


@way("first.weight[0]")
def scattered_maximum() -> Built:
    def run(s, x):
        x = s.first(x)
        index = s.target[None, :, None].expand(x.shape[0], -1, x.shape[-1])
        return s.last(x.scatter_reduce(1, index, x[:, s.source], "amax", include_self=False))

    return graph(run)


@way("first.weight[0]")
def rows_overwritten() -> Built:
    def run(s, x):
        x = s.first(x)
        return s.last(x.index_copy(1, s.source[:3], x[:, 3:]))

    return graph(run)


@way("first.weight[0]")
def rows_assigned() -> Built:
    def run(s, x):
        x = s.first(x) * 1
        x[:, s.source[:3]] = x[:, 3:].relu()
        return s.last(x)

    return graph(run)


@way(frozen={"first.weight[0]": "chosen by an index tensor"})
def channels_scattered() -> Built:
    def run(s, x):
        x = s.first(x)
        index = s.source[:8].expand(x.shape[0], x.shape[1], -1)
        return s.last(torch.zeros_like(x).scatter_add(2, index, x))

    return graph(run)


@way("stem.weight[0]", "body.weight[0]")
def sampled_by_a_grid() -> Built:
    def run(s, x):
        x = s.stem(x)
        theta = s.locate(x.mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 1, 5, 5], align_corners=False)
        return s.last(s.body(F.grid_sample(x, grid, align_corners=False)))

    parts = {"stem": nn.Conv2d(3, 8, 3), "locate": nn.Linear(8, 6), "body": nn.Conv2d(8, 7, 3)}
    return Model(run, **parts, last=nn.Conv2d(7, 2, 1)), image()


@way("stem.weight[0]", "body.weight[0]")
def pooled_and_put_back() -> Built:
    def run(s, x):
        pooled, where = F.max_pool2d(s.stem(x), 2, return_indices=True)
        return s.last(F.max_unpool2d(s.body(pooled), where, 2))

    parts = {"stem": nn.Conv2d(3, 8, 1), "body": nn.Conv2d(8, 8, 1), "last": nn.Conv2d(8, 2, 1)}
    return Model(run, **parts), image()


@way("first.weight[0]", "second.weight[0]")
def mixed_in_the_spectrum() -> Built:
    def run(s, x):
        spectrum = torch.fft.rfft(s.first(x.transpose(1, 2)))
        low = torch.einsum("bix,iox->box", spectrum[:, :, :3], torch.view_as_complex(s.mix))
        return s.last(s.second(torch.fft.irfft(low, n=x.shape[1])).relu())

    parts = {"first": nn.Conv1d(5, 8, 1), "second": nn.Conv1d(8, 7, 1), "last": nn.Conv1d(7, 2, 1)}
    mix = nn.Parameter(torch.randn(8, 8, 3, 2))
    return Model(run, **parts, mix=mix), sequence()


@way("first.weight[0]", "spectral[1]")
def complex_weights() -> Built:
    def run(s, x):
        spectrum = torch.fft.fft2(s.first(x))
        mixed = torch.einsum("bihw,io->bohw", spectrum, s.spectral)
        return s.last(torch.fft.ifft2(mixed).real)

    spectral = nn.Parameter(torch.randn(8, 7, dtype=torch.complex128))
    parts = {"first": nn.Conv2d(3, 8, 1), "last": nn.Conv2d(7, 2, 1)}
    return Model(run, **parts, spectral=spectral), image()


@way(frozen={"first.weight[0]": "transformed along"})
def transformed_along_the_channels() -> Built:
    def run(s, x):
        return s.last(torch.fft.fft(s.first(x), dim=-1).real)

    return Model(run, first=nn.Linear(5, 8), last=nn.Linear(8, 4)), sequence()
