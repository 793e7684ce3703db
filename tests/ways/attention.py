"""Attention, transformers and recurrent layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.blocks import sequences
from tests.ways.base import Built, Model, normal, sequence, vector, way, weights


def projections(width: int = 12, keys: int = 12) -> dict[str, nn.Module]:
    return {
        "query": nn.Linear(5, width),
        "key": nn.Linear(5, keys),
        "value": nn.Linear(5, keys),
        "out": nn.Linear(width, 4),
    }


def heads(part, count, width):
    return part.view(part.shape[0], part.shape[1], count, width).transpose(1, 2)


@way("bias[1]", "query.weight[0]", "value.weight[0]")
def attention_with_a_bias_for_every_head() -> Built:
    def run(s, x):
        query, key, value = (heads(p(x), 4, 3) for p in (s.query, s.key, s.value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=s.bias)
        return s.out(mixed.transpose(1, 2).flatten(2))

    return Model(run, **projections(), bias=weights(1, 4, 6, 6)), sequence()


@way("query.weight[0]", "value.weight[0]")
def attention_with_shared_keys() -> Built:
    def run(s, x):
        query, key, value = heads(s.query(x), 4, 3), heads(s.key(x), 2, 3), heads(s.value(x), 2, 3)
        mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return s.out(mixed.transpose(1, 2).flatten(2))

    return Model(run, **projections(12, 6)), sequence()


@way("query.weight[0]", "value.weight[0]")
def attention_with_repeated_keys() -> Built:
    def run(s, x):
        query, key, value = heads(s.query(x), 4, 3), heads(s.key(x), 2, 3), heads(s.value(x), 2, 3)
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, 1)
        weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
        return s.out((weights @ value).transpose(1, 2).flatten(2))

    return Model(run, **projections(12, 6)), sequence()


@way("qkv.weight[0]")
def attention_with_rotated_queries() -> Built:
    return sequences.Rotary(5, 2, 4, 6), sequence()


@way("latent[1]", "latent[2]", "value.weight[0]")
def attention_of_learned_queries() -> Built:
    def run(s, x):
        query = s.latent.expand(x.shape[0], -1, -1)
        return s.out(F.scaled_dot_product_attention(query, s.key(x), s.value(x)).mean(1))

    parts = {"latent": weights(1, 7, 6), "key": nn.Linear(5, 6), "value": nn.Linear(5, 8)}
    return Model(run, **parts, out=nn.Linear(8, 4)), sequence()


@way("first.weight[0]", "inner.in_proj_weight[0]", "inner.out_proj.weight[0]")
def multihead_attention() -> Built:
    parts = {"first": nn.Linear(5, 8), "inner": nn.MultiheadAttention(8, 2, batch_first=True)}

    def run(s, x):
        y = s.first(x)
        return s.last(s.inner(y, y, y, need_weights=False)[0])

    return Model(run, **parts, last=nn.Linear(8, 4)), sequence()


@way("inner.q_proj_weight[0]", "inner.v_proj_weight[0]", "key.weight[0]", without=("batch",))
def multihead_attention_with_other_keys() -> Built:
    parts = {"key": nn.Linear(5, 6), "inner": nn.MultiheadAttention(8, 2, kdim=6, vdim=5)}
    return Model(
        lambda s, x: s.last(s.inner(s.first(x), s.key(x), x)[0]),
        first=nn.Linear(5, 8),
        **parts,
        last=nn.Linear(8, 4),
    ), (normal(6, 2, 5),)


@way("first.weight[0]", "inner.self_attn.in_proj_weight[0]", "inner.linear1.weight[0]")
def transformer_encoder_layer() -> Built:
    parts = {"first": nn.Linear(5, 8), "last": nn.Linear(8, 4)}
    inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Model(lambda s, x: s.last(s.inner(s.first(x))), **parts, inner=inner), sequence()


@way("first.weight[0]", "read.weight[0]")
def learned_query() -> Built:
    def run(s, x):
        y = s.first(x)
        query, keys = s.read(s.probe), s.read(y)
        weights = (query @ keys.transpose(-1, -2)).softmax(-1)
        return s.last(weights @ y)

    parts = {"first": nn.Linear(5, 8), "read": nn.Linear(8, 6), "last": nn.Linear(8, 4)}
    return Model(run, **parts, probe=weights(1, 3, 8)), sequence()


@way("first.weight[0]", "inner.0.weight[0]", "outer[1]", "mix.weight[0]")
def weights_made_by_a_network() -> Built:
    def run(s, x):
        bias = s.mix(s.inner(s.places)) @ s.outer
        return s.last(s.first(x) + bias)

    inner = nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 8))
    parts = {"first": nn.Linear(5, 8), "last": nn.Linear(8, 4), "inner": inner}
    parts["mix"] = nn.Linear(8, 7)
    return Model(run, **parts, places=normal(6, 2), outer=weights(7, 8)), sequence()


@way("first.weight[0]", "cell.weight_ih_l0[0]")
def lstm() -> Built:
    parts = {"first": nn.Linear(5, 6), "cell": nn.LSTM(6, 7, 2, batch_first=True)}
    return Model(
        lambda s, x: s.last(s.cell(s.first(x))[0][:, -1]), **parts, last=nn.Linear(7, 4)
    ), sequence()


@way("first.weight[0]", "cell.weight_ih_l0[0]")
def gru() -> Built:
    parts = {"first": nn.Linear(5, 6), "cell": nn.GRU(6, 7, batch_first=True, bidirectional=True)}
    return Model(
        lambda s, x: s.last(s.cell(s.first(x))[0][:, -1]), **parts, last=nn.Linear(14, 4)
    ), sequence()


@way("cell.weight_ih[0]")
def recurrent_cell_in_a_loop() -> Built:
    def run(s, x):
        hidden = carry = x.new_zeros(x.shape[0], 7)
        for step in range(3):
            hidden, carry = s.cell(x[:, step], (hidden, carry))
        return s.last(hidden)

    return Model(run, cell=nn.LSTMCell(5, 7), last=nn.Linear(7, 4)), sequence()


@way("read.weight[0]")
def recurrence_by_hand() -> Built:
    def run(s, x):
        state = x.new_zeros(x.shape[0], 7)
        for step in range(6):
            state = torch.tanh(s.read(x[:, step]) + s.carry(state))
        return s.last(state)

    parts = {"read": nn.Linear(5, 7), "carry": nn.Linear(7, 7), "last": nn.Linear(7, 4)}
    return Model(run, **parts), sequence()


@way("first.weight[0]", "up.weight[0]")
def vector_field_in_a_solver_loop() -> Built:
    def run(s, x):
        y = s.first(x)
        for _ in range(4):
            y = y + 0.1 * s.down(torch.tanh(s.up(y)))
        return s.last(y)

    parts = {"first": nn.Linear(5, 7), "up": nn.Linear(7, 9), "down": nn.Linear(9, 7)}
    return Model(run, **parts, last=nn.Linear(7, 4)), vector()
