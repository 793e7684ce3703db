"""Shapes, slices, indices, reductions, statements that write in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.ways.base import Built, Model, image, normal, sequence, vector, way, weights


def between(run, width: int = 8, after: int = 8) -> Built:
    """A model of vectors with `run` between two linear layers."""
    model = Model(
        lambda s, x: s.last(run(s, s.first(x))), first=nn.Linear(5, width), last=nn.Linear(after, 4)
    )
    return model, vector()


def between_images(run, width: int = 8, after: int = 8) -> Built:
    """A model of images with `run` between two convolutions."""
    model = Model(
        lambda s, x: s.last(run(s, s.first(x))),
        first=nn.Conv2d(3, width, 1),
        last=nn.Conv2d(after, 4, 1),
    )
    return model, image()


@way("first.weight[0]")
def halves_that_gate_each_other() -> Built:
    def run(s, y):
        left, right = y.chunk(2, dim=1)
        y = torch.cat([left * right.sigmoid(), F.glu(y, 1)], 1)
        left, right = torch.hsplit(y, 2)
        return left + right

    return between(run, 16, 8)


@way("first.weight[0]")
def uneven_pieces() -> Built:
    def run(s, y):
        first, second, third = y.chunk(3, 1)
        fourth, fifth = torch.tensor_split(y, (3,), dim=1)
        return torch.cat([third, fifth, first + fourth, second], dim=1)

    return between(run, 8, 13)


@way("first.weight[0]")
def pixel_shuffle() -> Built:
    return between_images(lambda s, y: F.pixel_shuffle(y, 2).relu(), 12, 3)


@way("first.weight[0]")
def pixel_unshuffle() -> Built:
    return between_images(lambda s, y: F.pixel_unshuffle(y, 2), 4, 16)


@way("first.weight[0]")
def space_to_depth_by_strided_slices() -> Built:
    def run(s, y):
        rows = [y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]]
        return torch.cat(rows, dim=1)

    return between_images(run, 8, 32)


@way("first.weight[0]")
def shuffle_by_reshape_as_einops_does() -> Built:
    def run(s, y):
        b, c, h, w = y.shape
        y = y.reshape(b, 2, 4, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4, 6)
        return y.reshape(b, (h // 2) * (w // 2), c * 4).transpose(1, 2).unsqueeze(-1)

    return between_images(run, 8, 32)


@way("first.weight[0]")
def every_other_channel() -> Built:
    def run(s, y):
        gated = y[:, ::2] * y[:, 1::2].sigmoid()
        return torch.cat([gated, y[:, 5:6:2]], dim=1)

    return between(run, 12, 7)


@way("first.weight[0]")
def every_third_channel() -> Built:
    return between(lambda s, y: y[:, 2::3] * y[:, 0:7:3] + y[:, 1:9:3], 9, 3)


@way("first.weight[0]")
def stride_that_does_not_divide() -> Built:
    return between(lambda s, y: torch.cat([y[:, ::5], y[:, 8:]], 1), 12, 7)


@way("first.weight[0]", "last.weight[1]")
def channels_in_a_written_order() -> Built:
    return between(lambda s, y: y[:, [0, 3, 5]], 8, 3)


@way("first.weight[0]", "last.weight[1]", frozen={"order[0]": "index tensor"})
def channels_in_the_order_of_a_buffer() -> Built:
    def run(s, y):
        return y[:, s.order] + y.index_select(1, s.order)

    model, inputs = between(run, 8, 3)
    model.register_buffer("order", torch.tensor([6, 1, 3]))
    return model, inputs


@way("first.weight[0]", "last.weight[1]", frozen={"order[1]": "index tensor"}, without=("batch",))
def gather() -> Built:
    model, inputs = between(lambda s, y: torch.gather(y, 1, s.order.expand(2, -1)), 8, 3)
    model.register_buffer("order", torch.tensor([[6, 1, 3]]))
    return model, inputs


@way("first.weight[0]", "second.weight[0]", frozen={"order[0]": "index", "back[0]": "index"})
def channels_permuted_and_put_back() -> Built:
    def run(s, y):
        return y + s.second(y[:, s.order]).index_select(1, s.back)

    model, inputs = between_images(run)
    model.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    model.register_buffer("order", torch.tensor([3, 0, 6, 1, 7, 2, 5, 4]))
    model.register_buffer("back", model.order.argsort())
    return model, inputs


@way("first.weight[0]", "last.weight[1]")
def channels_listed_more_than_once() -> Built:
    def run(s, y):
        return torch.cat([y[:, [0, 0, 1, 1, -2, 6]], y[:, [5, 2, 5, 2, 3]]], dim=1)

    return between(run, 8, 11)


@way("first.weight[0]", "inner.weight[0]")
def channels_shuffled_by_a_list_between_groups() -> Built:
    shuffled = torch.arange(12).view(3, 4).t().flatten().tolist()
    model, inputs = between_images(lambda s, y: s.inner(y[:, shuffled]), 12, 8)
    model.inner = nn.Conv2d(12, 8, 3, padding=1, groups=4)
    return model, inputs


@way("first.weight[0]", "last.weight[1]")
def chosen_channels_flattened_with_their_places() -> Built:
    model = Model(
        lambda s, x: s.last(s.first(x)[:, [4, 1, 6]].flatten(1)),
        first=nn.Conv2d(3, 8, 3),
        last=nn.Linear(48, 4),
    )
    return model, image()


@way("first.weight[0]")
def channels_flipped() -> Built:
    return between(lambda s, y: y.flip(1)[:, :5], 8, 5)


@way(frozen={"first.weight[0]": "no common factorisation"})
def channels_added_to_themselves_in_another_order() -> Built:
    return between(lambda s, y: y + y.flip(1))


@way(frozen={"first.weight[0]": "written to", "order[0]": "index tensor"}, without=("training",))
def order_that_is_written_to() -> Built:
    def run(s, y):
        y = y[:, s.order]
        s.order.clamp_(0, 7)
        return y

    model, inputs = between(run, 8, 3)
    model.register_buffer("order", torch.tensor([6, 1, 3]))
    return model, inputs


@way(frozen={"first.weight[0]": "written to"})
def strided_channels_written_in_place() -> Built:
    def run(s, y):
        y = y * 1
        y[:, ::5].mul_(2)
        return y

    return between(run, 12, 12)


@way("first.weight[0]")
def dimensions_of_one() -> Built:
    def run(s, y):
        y = y.mean((2, 3), keepdim=True).squeeze(3).squeeze(2).squeeze(1)
        return y[:, :, None, None].unsqueeze(2).squeeze(2)

    return between_images(run)


@way("first.weight[0]", without=("batch",))
def all_dimensions_of_one_dropped() -> Built:
    def run(s, y):
        return y.mean((2, 3), keepdim=True).squeeze().unsqueeze(-1).unsqueeze(-1)

    return between_images(run)


@way("first.weight[0]")
def channels_padded_and_cut() -> Built:
    def run(s, y):
        y = F.pad(y, (0, 0, 0, 0, -2, -1))
        return F.pad(y, (0, 0, 0, 0, 1, 2), value=0.5)

    return between_images(run, 8, 8)


@way("first.weight[0]", frozen={"last.weight[1]": "copies made by repeat"})
def channels_repeated() -> Built:
    return between(lambda s, y: torch.cat([y.repeat(1, 2), torch.tile(y, (1, 2))], 1), 8, 32)


@way("first.weight[0]", frozen={"last.weight[1]": "tensors stacked"})
def tensors_stacked() -> Built:
    return between(lambda s, y: torch.stack([y, -y], dim=1).flatten(1), 8, 16)


@way("first.weight[0]")
def sizes_taken_from_a_tensor() -> Built:
    def run(s, y):
        b, c = y.shape
        y = y + torch.full((b, c), 0.5, dtype=y.dtype) + y.new_ones(b, c)
        y = y.view(b, c, 1).expand(-1, c, 3).sum(-1).view_as(y).reshape_as(y)
        return y / c**0.5

    return between(run)


@way(frozen={"first.weight[0]": "values of their own"})
def positions_counted() -> Built:
    return between(lambda s, y: y * torch.arange(y.shape[1]))


@way("first.weight[0]")
def maxout() -> Built:
    return between(lambda s, y: y.view(y.shape[0], 4, 2).amax(-1), 8, 4)


@way("first.weight[0]")
def maxout_by_values() -> Built:
    return between(lambda s, y: y.view(y.shape[0], 4, 2).max(-1).values, 8, 4)


@way("first.weight[0]")
def largest_and_smallest_channel() -> Built:
    def run(s, y):
        return y * (torch.max(y, 1, keepdim=True)[0] - y.min(dim=1, keepdim=True)[0]).tanh()

    return between(run)


@way("first.weight[0]", frozen={"first.weight[0]": "reduced by max"})
def maxout_with_indices() -> Built:
    def run(s, y):
        largest, places = y.view(y.shape[0], 4, 2).max(-1)
        return largest * (1 + places)

    return between(run, 8, 4)


@way(frozen={"first.weight[0]": "depend on each other"})
def softmax_over_the_channels() -> Built:
    return between(lambda s, y: y.softmax(1))


@way(frozen={"first.weight[0]": "mixed by pooling"})
def response_norm() -> Built:
    return between_images(lambda s, y: F.local_response_norm(y, 3))


@way(frozen={"first.weight[0]": "spatial position"})
def convolution_along_the_channels() -> Built:
    model, inputs = between_images(
        lambda s, y: y * s.along(y.mean((2, 3)).unsqueeze(1)).view(-1, 8, 1, 1).sigmoid()
    )
    model.along = nn.Conv1d(1, 1, 3, padding=1)
    return model, inputs


@way("first.weight[0]")
def written_in_place() -> Built:
    def run(s, y):
        y = y * 2
        y.add_(1)
        y *= 0.5
        y.clamp_(-3, 3)
        return y

    return between(run)


@way("first.weight[0]")
def pieces_written_into_zeros() -> Built:
    def run(s, y):
        together = torch.zeros(y.shape[0], 12, dtype=y.dtype)
        together[:, :8] = y
        together[:, 8:] = y[:, :4]
        together[:, 0] = 1
        return together

    return between(run, 8, 12)


@way("first.weight[0]", without=("training",))
def written_into_a_given_tensor() -> Built:
    def run(s, y):
        made = torch.empty_like(y)
        torch.add(y, 1, out=made)
        return made

    return between(run)


@way("first.weight[0]")
def inputs_written_in_place() -> Built:
    model = Model(
        lambda s, x: s.last(s.first(x.mul_(2)).relu_()),
        first=nn.Linear(5, 8),
        last=nn.Linear(8, 4),
    )
    return model, vector()


@way(frozen={"first.weight[0]": "dimensions changed in place"})
def transposed_in_place() -> Built:
    model = Model(
        lambda s, x: s.last(s.first(x).transpose_(1, 2).transpose(1, 2)),
        first=nn.Linear(5, 8),
        last=nn.Linear(8, 4),
    )
    return model, sequence()


@way("first.weight[0]", "second.weight[0]")
def spectrum() -> Built:
    def run(s, y):
        spectrum = torch.fft.rfft2(s.second(y.relu()))
        return torch.fft.irfft2(spectrum, s=(6, 6))

    model, inputs = between_images(run, 8, 6)
    model.second = nn.Conv2d(8, 6, 1)
    return model, inputs


@way("first.weight[0]")
def unlike_sizes_resampled() -> Built:
    def run(s, y):
        small = s.inner(F.max_pool2d(y, 2))
        up = F.interpolate(small, size=y.shape[2:], mode="bilinear", align_corners=False)
        rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
        places = torch.stack([rows, columns]).expand(y.shape[0], -1, -1, -1)
        return torch.cat([y + up, places.to(y.dtype)], dim=1)

    model, inputs = between_images(run, 8, 10)
    model.inner = nn.Conv2d(8, 8, 1)
    return model, inputs


@way("first.weight[0]")
def nothing_to_concatenate() -> Built:
    return between(lambda s, y: torch.cat([y, y[:, :0], normal(0)], dim=1))


@way()
def one_channel() -> Built:
    return nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 4)), vector()


@way("first.weight[0]")
def width_that_is_asserted() -> Built:
    def run(s, x):
        y = s.first(x)
        torch._assert(y.shape[1] % 4 == 0, "four groups")
        return s.last(y.relu())

    return Model(run, first=nn.Linear(5, 8), last=nn.Linear(8, 4)), vector()


@way("first.weight[0]", "token[2]")
def tokens_gathered_by_places_repeated_over_the_channels() -> Built:
    def run(s, x):
        x = s.first(x)
        places = s.places.view(1, 3, 1).repeat(x.shape[0], 1, x.shape[-1])
        kept = torch.gather(x, 1, places)
        filled = torch.cat([kept, s.token.tile(x.shape[0], 3, 1)], 1)
        return s.last(filled)

    return Model(
        run,
        first=nn.Linear(5, 8),
        places=torch.tensor([4, 0, 2]),
        token=weights(1, 1, 8),
        last=nn.Linear(8, 4),
    ), sequence()
