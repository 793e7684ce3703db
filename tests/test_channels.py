"""Which channels stay: by their order, or refined, which is never worth less."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.passes.allocation.channels import ordered, refined, worth
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.importance.base import by_score, coupled_scores
from fxprune.passes.infer import infer
from tests.networks import images, labelled, small_resnet


def judged(model, x, seed):
    """A model's groups, with importance drawn at random."""
    captured = capture(model, x)
    analysis = infer(captured)
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.gamma(0.3, 1.0, saliency.shape)
        for name, saliency in magnitude(captured.module, analysis).weights.items()
    }
    return analysis, by_score(weights, coupled_scores(weights, analysis))


def concatenated():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(10, 6, 1)
            self.last = nn.Linear(6 * 4, 2)

        def forward(self, x):
            y = self.c(torch.cat([self.a(x), self.b(x)], 1))
            return self.last((y + self.a(x))[..., :2, :2].flatten(1))

    return Joined()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("build", [small_resnet, concatenated])
def test_refined_is_never_worth_less_than_ordered(build, seed):
    analysis, importance = judged(build(), images(), seed)
    rng = np.random.default_rng(seed)
    sizes = {g.atom: int(rng.integers(1, g.size + 1)) for g in analysis.groups}
    plain = ordered(analysis, importance, sizes)
    better = refined(analysis, importance, sizes)
    assert all(len(kept) == sizes[atom] for atom, kept in better.items())
    assert all((np.diff(kept) > 0).all() for kept in better.values())
    assert worth(analysis, importance, better) >= worth(analysis, importance, plain)


def test_refined_finds_more_where_channels_depend_on_each_other():
    gains = []
    for seed in range(10):
        analysis, importance = judged(small_resnet(), images(), seed)
        sizes = {g.atom: g.size // 2 for g in analysis.groups}
        found = [
            worth(analysis, importance, f(analysis, importance, sizes)) for f in (ordered, refined)
        ]
        gains.append(found[1] / found[0] - 1)
    assert min(gains) >= 0
    assert np.median(gains) > 0.005


def test_refined_is_the_best_for_one_group_beside_the_others():
    analysis, importance = judged(
        nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), torch.ones(2, 3), 1
    )
    (group,) = analysis.groups
    kept = refined(analysis, importance, {group.atom: 3})
    best = max(
        worth(analysis, importance, {group.atom: np.array(some)})
        for some in combinations(range(6), 3)
    )
    assert worth(analysis, importance, kept) == pytest.approx(best)


def test_refined_comes_close_to_the_best_of_all_choices():
    layers = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    shares = []
    for seed in range(10):
        analysis, importance = judged(layers, torch.ones(2, 3), seed)
        first, second = (group.atom for group in analysis.groups)
        kept = refined(analysis, importance, {first: 3, second: 3})
        choices = list(combinations(range(6), 3))
        best = max(
            worth(analysis, importance, {first: np.array(a), second: np.array(b)})
            for a, b in product(choices, choices)
        )
        shares.append(worth(analysis, importance, kept) / best)
    assert max(shares) <= 1 + 1e-12
    assert min(shares) > 0.9


def test_dropped_blocks_do_not_count():
    analysis, importance = judged(small_resnet(), images(), 0)
    sizes = {g.atom: g.size // 2 for g in analysis.groups}
    gone = frozenset(n for n in importance.weights if n.startswith("blocks.1"))
    with_block = refined(analysis, importance, sizes)
    without = refined(analysis, importance, sizes, gone)
    assert any((with_block[atom] != without[atom]).any() for atom in sizes)


def test_optimize_takes_refined_channels():
    module = fxprune.optimize(
        small_resnet(),
        "50% MACs",
        data=labelled(),
        channels="refined",
        multiple_of=2,
        progress=False,
    )
    assert fxprune.report(module).slim.macs <= 0.5 * fxprune.report(module).dense.macs


def test_an_unknown_way_is_refused():
    with pytest.raises(fxprune.InputError, match="channels='best'"):
        fxprune.optimize(small_resnet(), "50% MACs", (images(),), channels="best")
