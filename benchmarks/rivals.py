"""How others spend a latency budget: our own implementations, to compare allocations with.

Each takes an `Instance` (ladders of widths, tables of value and latency per layer) and a budget in
the tables' unit, and returns the option of every choice, or None where the method finds nothing or
does not apply.  Values and latencies are the instance's: what is compared is the selection alone,
without the training that the papers do in between.  Every result is counted with the true joint
latency, both ends of every layer at their new widths, and never over the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from benchmarks.instance import FloatArray, Instance, IntArray
from benchmarks.silence import without_lines
from benchmarks.solver_networks import rungs

Widths: TypeAlias = dict[str, int]
Side: TypeAlias = Literal["reads", "writes"]

BINS = 4000  # of the knapsacks' capacity; costs are rounded up to whole bins
HALP_STEPS = 30
HALP_CHUNKS = (1, 2, 4, 8)  # options per chunk
SMCP_STEPS = 55
MDP_GAP = 1e-4


def uniform(instance: Instance, budget: int) -> Widths | None:
    """The largest share of channels, the same in every group, that meets the budget."""
    ladders = {group: instance.ladders[group] for group in instance.groups()}
    shares = np.unique(np.concatenate([widths / widths[-1] for widths in ladders.values()]))
    best = None
    for share in shares.tolist():
        fitting = {g: np.searchsorted(w, share * w[-1] + 1e-9, "right") for g, w in ladders.items()}
        widths = instance.complete({g: max(0, int(n) - 1) for g, n in fitting.items()})
        if instance.count(widths)[1] > budget:
            break
        best = widths
    return best


def greedy(instance: Instance, budget: int) -> Widths | None:
    """From dense, always the step down that loses least value per latency saved.

    Producers and consumers of a group are both counted, and a step may skip options, so that the
    stairs of the latency are no obstacle.  (With concatenations, which make a step dear to count,
    it goes to the next option only.)
    """
    widths = instance.complete(instance.dense())
    value, latency = instance.count(widths)
    while latency > budget:
        best: tuple[float, str, int] | None = None
        for group in instance.groups():
            options, values, latencies = _steps_down(instance, widths, group, value, latency)
            saved = latency - latencies
            useful = saved > 0
            if useful.any():
                ratio = (value - values[useful]) / saved[useful]
                step = (float(ratio.min()), group, int(options[useful][ratio.argmin()]))
                best = step if best is None else min(best, step)
        if best is None:
            return None
        widths = instance.complete(widths | {best[1]: best[2]})
        value, latency = instance.count(widths)
    return widths


def halp(instance: Instance, budget: int) -> Widths | None:
    """Shen et al., Structural Pruning via Latency-Saliency Knapsack, NeurIPS 2022 (HALP).

    Every group is charged for the layers that produce it, at their present input widths; chunks of
    channels enter a knapsack, most important first, each only after the one before it; 30 steps
    whose budgets fall exponentially; what is pruned does not return.  The paper picks chunks as
    long as the stairs of the latency; here four lengths are tried and the best result counts.

    The paper's recurrence is no exact solver of its knapsack, see `halp_exact`.
    """
    tried = [_halp(instance, budget, partial(recurrence, length)) for length in HALP_CHUNKS]
    found = [widths for widths in tried if widths is not None]
    return max(found, key=lambda widths: instance.count(widths)[0], default=None)


def halp_exact(instance: Instance, budget: int) -> Widths | None:
    """HALP with an exact multiple-choice knapsack in place of the paper's recurrence."""
    return _halp(instance, budget, exact_knapsack)


Knapsack: TypeAlias = Callable[[Instance, Widths, float], Widths | None]


def _halp(instance: Instance, budget: int, knapsack: Knapsack) -> Widths | None:
    if instance.ties:
        return None
    widths = instance.dense()
    dense = instance.count(widths)[1]
    # A layer with two choices on one side (groups, and channels of a group) may need more steps.
    for step in range(1, 2 * HALP_STEPS + 1):
        if instance.count(widths)[1] <= budget:
            break
        share = min(1.0, step / HALP_STEPS)
        target = math.exp(share * math.log(budget) + (1 - share) * math.log(dense))
        chosen = knapsack(instance, widths, target)
        if chosen is None:
            return None
        widths = chosen
    return widths if instance.count(widths)[1] <= budget else None


def smcp(instance: Instance, budget: int) -> Widths | None:
    """Humble et al., Soft Masking for Cost-Constrained Channel Pruning, ECCV 2022 (SMCP).

    Every group is charged for the layers that consume it, at their present output widths; one
    option per group, by an exact multiple-choice knapsack; the pruned share rises as 1 - exp(-t/20)
    over 55 steps; channels may return.  Since widths then move on both sides at once, the capacity
    is lowered further until the true latency is within the budget.
    """
    if instance.ties:
        return None
    widths = instance.dense()
    dense = instance.count(widths)[1]
    capacity = float(budget)
    best: tuple[float, Widths] | None = None
    for step in range(1, 2 * SMCP_STEPS + 1):
        ramp = min(1.0, -math.expm1(-0.05 * step) / -math.expm1(-0.05 * SMCP_STEPS))
        values, costs, rest = _one_sided(instance, widths, "reads")
        chosen = _mckp(values, costs, dense - (dense - capacity) * ramp - rest)
        if chosen is None:
            break
        widths = chosen
        value, latency = instance.count(widths)
        if latency <= budget and (best is None or value > best[0]):
            best = (value, widths)
        if step >= SMCP_STEPS and latency > budget:
            capacity *= budget / latency
    return None if best is None else best[1]


def mdp(instance: Instance, budget: int) -> Widths | None:
    """Sun et al., MDP: Multidimensional Vision Model Pruning, CVPR 2025, linearised exactly.

    The published program has products of one-hot vectors and is solved by outer approximation,
    without a guarantee.  Here every product becomes a variable, and HiGHS solves the program to a
    gap of 1e-4, but on a ladder of 8 options per group: it does not survive fine ones.
    """
    if instance.ties:
        return None
    kept = {group: rungs(len(widths)) for group, widths in instance.ladders.items()}
    first, width = {}, 0
    for group, options in kept.items():
        first[group] = width
        width += len(options)
    rows = [np.repeat(np.arange(len(kept)), [len(options) for options in kept.values()])]
    columns, entries = [np.arange(width)], [np.ones(width)]
    height, binary = len(kept), width
    gain, cost = [np.zeros(width)], [np.zeros(width)]
    for term in instance.terms:
        cut = np.ix_(*(kept[name] for name in term.scope))
        value, latency = term.value[cut], term.cost[0][cut]
        for axis, name in enumerate(term.scope):
            option = np.indices(value.shape)[axis].ravel()
            size = value.shape[axis]
            rows += [height + option, height + np.arange(size)]
            columns += [width + np.arange(value.size), first[name] + np.arange(size)]
            entries += [np.ones(value.size), -np.ones(size)]
            height += size
        gain.append(value.ravel())
        cost.append(latency.ravel())
        width += value.size
    matrix = csr_array(
        (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))),
        shape=(height, width),
    )
    right = (np.arange(height) < len(kept)).astype(float)
    scale = 1e-3 * budget
    room = budget - instance.fixed[0]
    with without_lines(b"HighsMipSolverData::"):
        result = milp(
            -np.concatenate(gain),
            integrality=(np.arange(width) < binary).astype(np.int64),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(matrix, right, right),
                LinearConstraint(np.concatenate(cost)[None] / scale, -np.inf, room / scale),
            ],
            options={"mip_rel_gap": MDP_GAP, "time_limit": 120.0},
        )
    if result.x is None:
        return None
    widths = {
        group: int(options[result.x[first[group] :][: len(options)].argmax()])
        for group, options in kept.items()
    }
    return widths if instance.count(widths)[1] <= budget else None


RIVALS: dict[str, Callable[[Instance, int], Widths | None]] = {
    "uniform": uniform,
    "greedy": greedy,
    "HALP": halp,
    "HALP exact": halp_exact,
    "SMCP": smcp,
    "MDP": mdp,
}


def _steps_down(
    instance: Instance, widths: Widths, group: str, value: float, latency: int
) -> tuple[IntArray, FloatArray, IntArray]:
    """Smaller options of a group, and value and latency of the network with each."""
    option = widths[group]
    if instance.ties and option:
        after = instance.complete(widths | {group: option - 1})
        changed = [name for name, now in after.items() if now != widths[name]]
        for term in {t.name: t for name in changed for t in instance.around[name]}.values():
            here, there = term.place(widths), term.place(after)
            value += float(term.value[there] - term.value[here])
            latency += int(term.cost[(0, *there)] - term.cost[(0, *here)])
        return np.array([option - 1]), np.array([value]), np.array([latency])
    values, latencies = np.full(option, value), np.full(option, latency)
    for term in instance.around[group]:
        here, line = term.place(widths), term.line(widths, group)
        values += term.value[line][:option] - term.value[here]
        latencies += term.cost[0][line][:option] - term.cost[(0, *here)]
    return np.arange(option), values, latencies


def _one_sided(
    instance: Instance, widths: Widths, side: Side
) -> tuple[dict[str, FloatArray], dict[str, IntArray], int]:
    """Value and latency of each group's options, other widths frozen, and the rest's latency.

    A layer is charged to what it reads, or to what it writes; if these are several choices, to each
    of them, and what is counted too often is taken off the rest.
    """
    values = {group: np.zeros(len(ladder)) for group, ladder in instance.ladders.items()}
    costs = {group: np.zeros(len(ladder), np.int64) for group, ladder in instance.ladders.items()}
    rest = instance.fixed[0]
    for term in instance.terms:
        owners = term.reads if side == "reads" else term.writes
        rest -= (len(owners) - 1) * int(term.cost[(0, *term.place(widths))])
        for owner in owners:
            line = term.line(widths, owner)
            values[owner] += term.value[line]
            costs[owner] += term.cost[0][line]
    return values, costs, rest


def exact_knapsack(instance: Instance, widths: Widths, target: float) -> Widths | None:
    """The exact knapsack over options up to the present ones, charged to the producers."""
    values, costs, rest = _one_sided(instance, widths, "writes")
    return _mckp(
        {group: values[group][: option + 1] for group, option in widths.items()},
        {group: costs[group][: option + 1] for group, option in widths.items()},
        target - rest,
    )


def recurrence(length: int, instance: Instance, widths: Widths, target: float) -> Widths | None:
    """The paper's knapsack over chunks of `length` options."""
    values, costs, rest = _one_sided(instance, widths, "writes")
    capacity = target - rest - sum(int(cost[0]) for cost in costs.values())
    if capacity < 0:
        return None
    unit = max(capacity / BINS, 1e-9)
    chunks = []
    for group, option in widths.items():
        stops = sorted({0, *range(length - 1, option, length), option})
        for low, high in pairwise(stops):
            gain = float(values[group][high] - values[group][low])
            price = math.ceil(int(costs[group][high] - costs[group][low]) / unit)
            chunks.append((group, high, gain, price))
    # Stairs may go down; the paper's code then enlarges the capacity by what they give back.
    bins = BINS + sum(-price for *_, price in chunks if price < 0)
    table = np.zeros(bins + 1)
    taken = np.zeros((len(chunks), bins + 1), dtype=bool)
    for i, (group, _, gain, price) in enumerate(chunks):
        if price > bins:
            continue
        into = slice(max(0, price), bins + 1 + min(0, price))
        from_ = slice(max(0, -price), bins + 1 + min(0, -price))
        better = table[from_] + gain > table[into]
        if i and chunks[i - 1][0] == group:
            better &= taken[i - 1, from_]
        taken[i, into] = better
        table[into] = np.where(better, table[from_] + gain, table[into])
    chosen = dict.fromkeys(widths, 0)
    left = bins
    for i in reversed(range(len(chunks))):
        if taken[i, left]:
            group, high, _, price = chunks[i]
            chosen[group] = max(chosen[group], high)
            left -= price
    return chosen


def _mckp(
    values: Mapping[str, FloatArray], costs: Mapping[str, IntArray], capacity: float
) -> Widths | None:
    """One option per group, most value within the capacity, costs rounded up to whole bins."""
    unit = capacity / BINS
    if unit <= 0:
        return None
    bins = {group: np.ceil(cost / unit).astype(np.int64) for group, cost in costs.items()}
    table = np.zeros(BINS + 1)
    picks = {}
    for group in values:
        grown = np.full(BINS + 1, -np.inf)
        pick = np.zeros(BINS + 1, dtype=np.int64)
        for option, (gain, price) in enumerate(zip(values[group], bins[group], strict=True)):
            if price <= BINS:
                offered = table[: BINS + 1 - price] + gain
                better = offered > grown[price:]
                grown[price:] = np.where(better, offered, grown[price:])
                pick[price:] = np.where(better, option, pick[price:])
        table, picks[group] = grown, pick
    if table[-1] == -np.inf:
        return None
    chosen, left = dict.fromkeys(values, 0), BINS
    for group in reversed(list(values)):
        chosen[group] = int(picks[group][left])
        left -= int(bins[group][chosen[group]])
    return chosen
