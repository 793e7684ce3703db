"""Transformers as vision networks write them: heads, head widths, tables, tokens, windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.blocks import images, sequences
from tests.ways.base import Built, Model, image, normal, sequence, way, weights


def fused(layout: str, kernel: str) -> Built:
    inner = sequences.Attention(8, 4, 3, layout, kernel, 6)
    parts = {"first": nn.Linear(5, 8), "norm": nn.LayerNorm(8), "last": nn.Linear(8, 4)}

    def run(s, x):
        x = s.first(x)
        return s.last(x + s.inner(s.norm(x)))

    return Model(run, inner=inner, **parts), sequence()


# Of the fused rows 3 * heads * width, the heads are one group, and the width of queries and keys
# and the width of values are groups of their own.
@way("first.weight[0]", "inner.qkv.weight[0]", "inner.out.weight[1]")
def fused_projection_and_the_kernel() -> Built:
    return fused("fused", "sdpa")


@way("first.weight[0]", "inner.qkv.weight[0]", "inner.out.weight[1]")
def fused_projection_in_three_chunks() -> Built:
    return fused("fused chunk", "causal")


@way("first.weight[0]", "inner.qkv.weight[0]", "inner.out.weight[1]")
def fused_projection_unbound() -> Built:
    return fused("fused unbind", "einsum")


@way("qkv.weight[0]", "table[1]", frozen={"table[0]": "index tensor"})
def table_of_relative_positions() -> Built:
    def run(s, x):
        b, t, _ = x.shape
        query, key, value = s.qkv(x).reshape(b, t, 3, 4, 3).permute(2, 0, 3, 1, 4)
        bias = s.table[s.index.view(-1)].view(t, t, -1).permute(2, 0, 1).contiguous()
        scores = (query * 3**-0.5) @ key.transpose(-2, -1) + bias.unsqueeze(0)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(b, t, 12)
        return s.out(mixed)

    places = torch.arange(6)
    return Model(
        run,
        qkv=nn.Linear(5, 36),
        table=weights(11, 4),
        index=places[:, None] - places[None] + 5,
        out=nn.Linear(12, 4),
    ), sequence()


@way(
    "temperature[0]",
    "qkv.weight[0]",
    "table.0.weight[0]",
    "table.2.weight[0]",
)
def continuous_positions_and_cosine_attention() -> Built:
    def run(s, x):
        b, t, _ = x.shape
        query, key, value = s.qkv(x).view(b, t, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        bias = s.table(s.offsets).view(-1, 4)[s.index.view(-1)].view(t, t, 4).permute(2, 0, 1)
        scores = scores * s.temperature.exp() + 16 * bias.sigmoid()
        return s.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    places = torch.arange(6)
    return Model(
        run,
        qkv=nn.Linear(5, 36),
        table=nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)),
        offsets=normal(11, 1),
        index=places[:, None] - places[None] + 5,
        temperature=weights(4, 1, 1),
        out=nn.Linear(12, 4),
    ), sequence()


@way("tokens.embed.weight[0]", "up.weight[0]")
def class_token_and_position_table() -> Built:
    def run(s, x):
        x = s.tokens(x)
        x = x + s.down(F.gelu(s.up(s.norm(x))))
        return s.last(x[:, 0])

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 2, 2)
            self.token, self.places = weights(1, 1, 8), weights(1, 10, 8)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places

    parts = {"up": nn.Linear(8, 12), "down": nn.Linear(12, 8), "norm": nn.LayerNorm(8)}
    return Model(run, tokens=Tokens(), **parts, last=nn.Linear(8, 4)), image()


@way("stem.weight[0]", "inner.qkv.weight[0]", "inner.out.weight[1]")
def shifted_windows_of_an_image() -> Built:
    def run(s, x):
        x = s.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(s.norm(x), (-1, -1), (1, 2))
        y = y.view(b, h // 3, 3, w // 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, c)
        y = s.inner(y).view(b, h // 3, w // 3, 3, 3, c).permute(0, 1, 3, 2, 4, 5)
        y = torch.roll(y.reshape(b, h, w, c), (1, 1), (1, 2))
        return s.last((x + y).mean((1, 2)))

    parts = {"stem": nn.Conv2d(3, 8, 1), "norm": nn.LayerNorm(8), "last": nn.Linear(8, 4)}
    return Model(run, **parts, inner=sequences.Attention(8, 2, 4, "fused", "sdpa", 9)), image()


@way("embed.weight[0]", "encoder.layers.0.self_attn.in_proj_weight[0]")
def encoder_of_torch() -> Built:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
    parts = {
        "embed": nn.Linear(5, 8),
        "encoder": nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), False),
    }
    return Model(lambda s, x: s.last(s.encoder(s.embed(x))), **parts, last=nn.Linear(8, 4)), (
        sequence()
    )


@way("embed.weight[0]", "inner.multihead_attn.in_proj_weight[0]", "inner.linear1.weight[0]")
def decoder_layer_of_torch() -> Built:
    parts = {
        "embed": nn.Linear(5, 8),
        "inner": nn.TransformerDecoderLayer(8, 2, 12, batch_first=True),
    }

    def run(s, x):
        x = s.embed(x)
        return s.last(s.inner(x, x.flip(1)))

    return Model(run, **parts, last=nn.Linear(8, 4)), sequence()


@way("turned.inner.weight[0]")
def pairs_turned_as_complex_numbers() -> Built:
    model = sequences.Turned(5, 8, 6)
    return Model(lambda s, x: s.last(s.turned(x)), turned=model, last=nn.Linear(8, 4)), sequence()


@way("stem.weight[0]", "inner.kernels.weight[0]")
def kernels_made_from_each_place() -> Built:
    parts = {"stem": nn.Conv2d(3, 8, 1), "inner": images.Involution(8, 4)}
    return Model(lambda s, x: s.last(s.inner(s.stem(x))), **parts, last=nn.Conv2d(8, 4, 1)), image()


@way("stem.weight[0]")
def windows_cut_out_and_added_up() -> Built:
    parts = {"stem": nn.Conv2d(3, 8, 1), "inner": images.Folded(), "last": nn.Conv2d(8, 4, 1)}
    return Model(lambda s, x: s.last(s.inner(s.stem(x))), **parts), image()


@way(
    "encoder.layers.0.linear1.weight[0]",
    "decoder.layers.0.linear1.weight[0]",
    "into.weight[0]",
    "encoder.layers.0.self_attn.in_proj_weight[0]",
)
def encoder_and_decoder_with_causal_masks() -> Built:
    def run(s, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        x = s.into(x)
        return s.out(s.decoder(x, s.encoder(x, mask), tgt_mask=mask))

    settings = {"dim_feedforward": 12, "batch_first": True}
    return Model(
        run,
        into=nn.Linear(5, 8),
        encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, **settings), 1),
        decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, **settings), 1),
        out=nn.Linear(8, 4),
    ), sequence()
