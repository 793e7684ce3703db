"""Measuring: the estimate, its spread, the clocks, and what is refused."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import measure as measure_module
from fxprune import stopwatch
from fxprune.backends import Engine, Region, Settings, get_backend
from fxprune.backends.signature import Signature
from fxprune.errors import BackendError, InputError, MeasurementError
from fxprune.measure import Timing, measure, measure_interleaved
from fxprune.measurement import (
    Interval,
    Measurement,
    estimate,
    interval,
    pooled,
    ratio,
    spread,
)
from fxprune.stopwatch import Stopwatch, measure_networks

INPUTS = (torch.zeros(1),)
QUICK = Timing(tolerance=0.05, max_seconds=2.0, warm_up=0.0)


@dataclass(frozen=True)
class Scripted(Engine):
    """An engine that does as it is told."""

    action: Callable[[], object]

    def run(self, *inputs: Tensor) -> Any:
        return self.action()

    def save(self, path: str | Path) -> None:
        raise NotImplementedError


def scripted(action: Callable[[], object], threads: int = 1) -> Engine:
    signature = Signature(((1,),), (torch.float32,), (False,), None, None)
    return Scripted("scripted", Settings(threads=threads), signature, action)


def spin(seconds: float) -> Callable[[], None]:
    """Burn so much CPU time."""

    def action() -> None:
        stop = time.process_time_ns() + round(seconds * 1e9)
        while time.process_time_ns() < stop:
            pass

    return action


def measurement(samples: tuple[float, ...], seconds: float = 1e-3) -> Measurement:
    return Measurement(seconds, 0.01, samples, "cpu", True)


def test_a_known_amount_of_work_is_measured_right() -> None:
    found = measure(scripted(spin(2e-3)), INPUTS, QUICK)
    assert found.seconds == pytest.approx(2e-3, rel=0.03)
    assert found.converged
    assert found.spread <= 0.05
    assert len(found.samples) >= 30


def test_calls_too_short_for_the_clock_are_timed_several_at_once() -> None:
    found = measure(scripted(spin(20e-6)), INPUTS, QUICK)
    assert found.seconds == pytest.approx(20e-6, rel=0.2)


def test_one_thread_is_charged_for_cpu_time_and_more_threads_for_wall_time() -> None:
    def nap() -> None:
        time.sleep(4e-3)

    asleep = measure(scripted(nap), INPUTS, QUICK)
    assert asleep.clock == "cpu"
    assert asleep.seconds < 1e-3
    waited = measure(scripted(nap, threads=2), INPUTS, QUICK)
    assert waited.clock == "wall"
    assert waited.seconds >= 4e-3


def test_the_clock_can_be_chosen() -> None:
    timing = Timing(tolerance=0.5, min_samples=5, warm_up=0.0, clock="wall")
    found = measure(scripted(lambda: time.sleep(2e-3)), INPUTS, timing)
    assert found.clock == "wall"
    assert found.seconds >= 2e-3


def test_interleaved_engines_get_equally_many_samples_and_a_right_ratio() -> None:
    engines = {"one": (scripted(spin(1e-3)), INPUTS), "two": (scripted(spin(2e-3)), INPUTS)}
    found = measure_interleaved(engines, QUICK)
    assert len(found["one"].samples) == len(found["two"].samples)
    assert found["one"].turns == found["two"].turns >= 5
    halved = ratio(found["one"], found["two"])
    assert halved.value == pytest.approx(0.5, rel=0.03)
    assert halved.low <= halved.value <= halved.high


def test_what_switching_to_an_engine_costs_is_not_counted() -> None:
    last = ""

    def cold(name: str, seconds: float) -> Callable[[], None]:
        def action() -> None:
            nonlocal last
            spin(seconds if last == name else 10 * seconds)()
            last = name

        return action

    engines = {name: (scripted(cold(name, 1e-3)), INPUTS) for name in ("one", "two")}
    found = measure_interleaved(engines, QUICK)
    # Counted, it would be the first one of every turn; a busy machine makes another now and then.
    for measured in found.values():
        firsts = measured.samples[:: len(measured.samples) // measured.turns]
        assert sum(sample > 5e-3 for sample in firsts) < measured.turns / 2


def test_the_interval_of_a_ratio_knows_that_samples_of_a_turn_are_alike() -> None:
    rng = np.random.default_rng(0)
    turns = 1 + 0.1 * rng.random((6, 1))
    drifting = np.broadcast_to(turns, (6, 50)).ravel().tolist()
    whole = Measurement(1.0, 0.01, tuple(drifting), "cpu", True, turns=6)
    steady = Measurement(1.0, 0.01, (1.0,) * 300, "cpu", True, turns=6)
    found = ratio(whole, steady)
    assert found.high - found.low > 0.02


def test_what_slows_both_down_for_a_turn_leaves_their_ratio_alone() -> None:
    slow = np.repeat([1.0, 1.6, 1.0, 1.3, 1.1, 2.0], 5)
    whole, half = (
        Measurement(base, 0.01, tuple(base * slow), "cpu", True, turns=6) for base in (1.0, 0.5)
    )
    found = ratio(half, whole)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_what_slows_one_of_them_down_in_half_of_the_turns_leaves_their_ratio_alone() -> None:
    disturbed = np.repeat([1.0, 1.6, 1.0, 1.3, 1.1, 2.0, 1.0, 1.8], 5)
    whole = Measurement(1.0, 0.01, tuple(disturbed), "cpu", True, turns=8)
    half = Measurement(0.5, 0.01, (0.5,) * 40, "cpu", True, turns=8)
    assert ratio(half, whole).value == 0.5


def test_a_network_compiled_several_times_is_measured_by_all_its_engines() -> None:
    engines = {
        name: (scripted(spin(seconds)), INPUTS)
        for name, seconds in (("slow", 3e-3), ("usual", 1.2e-3), ("another", 1.2e-3))
    }
    found = pooled(list(measure_interleaved(engines, QUICK).values()))
    assert found.seconds == pytest.approx(1.2e-3, rel=0.05)
    assert found.spread > 1
    assert found.turns >= 3 * 5


def test_turns_of_unequal_length_are_cut_to_the_shortest() -> None:
    long = Measurement(1.0, 0.01, (1.0, 1.0, 9.0, 2.0, 2.0, 9.0), "cpu", True, turns=2)
    short = Measurement(1.0, 0.01, (3.0, 3.0, 4.0, 4.0), "cpu", True, turns=2)
    found = pooled([long, short])
    assert found.samples == (1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0)
    assert found.turns == 4
    assert found.seconds == pytest.approx(1.15)


def test_slow_networks_take_two_turns_whatever_the_time() -> None:
    slow = {name: (scripted(spin(5e-3)), INPUTS) for name in ("one", "two")}
    found = measure_interleaved(slow, Timing(max_seconds=1e-3, warm_up=0.0))
    assert found["one"].turns == 2
    assert ratio(found["one"], found["two"]).low > 0.5


@pytest.mark.parametrize(("threads", "waits"), [(1, True), (2, False)])
def test_where_one_thread_works_every_sample_waits_for_half_of_the_time_at_most(
    threads: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    waited: list[float] = []

    class Watched:
        def __init__(self, seconds: float) -> None:
            given.append(seconds)

        def wait(self) -> None:
            waited.append(given[-1])

    monkeypatch.setattr(measure_module, "Patience", Watched)
    engines = {n: (scripted(spin(1e-3), threads), INPUTS) for n in ("one", "two")}
    found = measure_interleaved(engines, QUICK)
    assert len(given) == 2 * found["one"].turns
    assert given[0] * QUICK.turns == QUICK.max_seconds / 2
    assert len(waited) == (2 * len(found["one"].samples) if waits else 0)


def test_networks_are_compared_by_equally_many_engines() -> None:
    slow, fast = (scripted(spin(seconds)) for seconds in (2e-3, 1e-3))
    dense, slim = measure_networks([[slow, slow, slow], [fast, fast]], INPUTS)
    assert ratio(slim, dense).value == pytest.approx(0.5, rel=0.05)


def test_a_kernel_of_twice_the_width_takes_longer_on_a_real_backend() -> None:
    backend = get_backend("onnxruntime")
    narrow = Region("conv", 1, 64, 64, spatial=(14, 14), kernel=(3, 3), padding=(1, 1))
    wide = narrow.with_widths(128, 128)
    engines = {
        region.signature(): (backend.compile_region(region), region.inputs())
        for region in (narrow, wide)
    }
    found = measure_interleaved(engines, QUICK)
    assert ratio(found[wide.signature()], found[narrow.signature()]).low > 2


def test_a_latency_that_will_not_settle_is_marked_and_refused_where_a_figure_is_needed() -> None:
    rng = random.Random(0)
    erratic = scripted(lambda: spin(rng.choice([1e-4, 1e-2]) * rng.random())())
    found = measure(erratic, INPUTS, Timing(tolerance=1e-4, max_seconds=0.4, warm_up=0.0))
    assert not found.converged
    assert str(found).endswith("(not converged)")
    with pytest.raises(MeasurementError, match=r"spreads more than the 0\.5%"):
        found.require(0.005)


def test_a_measurement_that_is_good_enough_is_handed_through() -> None:
    found = measurement((1e-3,))
    assert found.require(0.01) is found


def test_a_measurement_prints_as_a_figure_with_its_spread() -> None:
    assert str(Measurement(3.5214e-3, 0.012, (), "cpu", True)) == "3.52 ms ± 1.2 %"
    assert str(Measurement(0.1, 0.004, (), "cpu", True)) == "100 ms ± 0.4 %"
    assert str(Measurement(2.1e-3, 0.004, (), "cpu", False)) == "2.10 ms ± 0.4 % (not converged)"
    assert str(Interval(0.5, 0.49, 0.512)) == "0.500 [0.490, 0.512]"


def test_the_interval_of_a_latency_comes_from_its_turns() -> None:
    turns = tuple(1.0 + 0.01 * i for i in range(20))
    found = interval(Measurement(1.0095, 0.0, turns, "cpu", True, turns=20))
    assert found.value == 1.0095
    assert 1.0 <= found.low < 1.01 < 1.03 < found.high < 1.08


def test_a_latency_that_was_not_measured_in_turns_has_no_interval() -> None:
    alone = measurement((1.0, 1.1, 1.2))
    with pytest.raises(InputError, match="not measured in turns"):
        interval(alone)
    with pytest.raises(InputError, match="not measured in turns"):
        ratio(alone, alone)


def test_networks_are_measured_in_turn_until_that_is_enough() -> None:
    asked: list[int] = []

    def enough(times: stopwatch.Times) -> bool:
        asked.append(times.slim.turns)
        return len(asked) == 2

    slow, fast = (scripted(spin(seconds)) for seconds in (4e-4, 2e-4))
    found = stopwatch.race([slow], [fast], INPUTS, enough, most=6)
    assert len(asked) == 2
    assert asked[1] > asked[0] >= 2
    assert found.dense.turns == found.slim.turns == asked[1]
    assert stopwatch.race([slow], [fast], INPUTS, lambda times: False, most=1).slim.turns >= 2


def test_median_and_ninetieth_percentile_come_from_the_samples() -> None:
    found = measurement(tuple(float(i) for i in range(11)))
    assert found.median == 5.0
    assert found.p90 == 9.0


def test_a_measurement_survives_json() -> None:
    found = Measurement(3e-3, 0.01, (3e-3, 0.1 + 0.2), "wall", False, 2)
    assert Measurement.from_json(found.to_json()) == found


def test_the_spread_encloses_the_true_quantile_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    true = 1 - np.log(0.9)  # the 10th percentile of one plus a unit exponential
    held = 0
    for _ in range(400):
        samples = (1 + rng.exponential(size=60)).tolist()
        held += abs(estimate(samples, 1) - true) <= spread(samples, 1) * estimate(samples, 1)
    assert held >= 0.95 * 400


def test_a_ratio_needs_samples_that_were_taken_together() -> None:
    with pytest.raises(InputError, match="3 and 2 samples"):
        ratio(measurement((1.0, 1.0, 1.0)), measurement((1.0, 1.0)))


def test_nothing_to_measure_and_unequal_thread_counts_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        measure_interleaved({})
    with pytest.raises(InputError, match=r"thread counts|clocks"):
        measure_interleaved(
            {"a": (scripted(int), INPUTS), "b": (scripted(int, threads=2), INPUTS)},
            Timing(clock="wall"),
        )


def test_threads_and_garbage_collection_are_put_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        assert torch.get_num_threads() == before + 1
        assert not gc.isenabled()
        raise RuntimeError("as told")

    with pytest.raises(BackendError, match=r"as told\. backend scripted"):
        measure(scripted(fail, threads=before + 1), INPUTS)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


@pytest.mark.parametrize(("width", "engines"), [(8, 3), (100, 2), (200, 1)])
def test_large_networks_are_set_up_less_often(
    width: int, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopwatch, "WEIGHTS", 100_000)
    x = torch.randn(1, width)
    model = fx.symbolic_trace(nn.Linear(width, width))
    made = stopwatch.compiled(get_backend("eager"), Settings(), model, (x,))
    assert len(made) == engines


class _SetUps:
    """Stands for a compiler, and counts what is compiled."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, *_: Any) -> tuple[Engine, ...]:
        self.made += 1
        return (scripted(spin(2e-4)),)


@pytest.fixture
def set_ups(monkeypatch: pytest.MonkeyPatch) -> _SetUps:
    found = _SetUps()
    monkeypatch.setattr(stopwatch, "NETWORK_TIMING", QUICK)
    monkeypatch.setattr(stopwatch, "compiled", found)
    return found


def test_a_network_that_two_budgets_ask_for_is_set_up_once(set_ups: _SetUps) -> None:
    dense, slim, another = (fx.symbolic_trace(nn.Linear(1, 1)) for _ in range(3))
    watch = Stopwatch.start(get_backend("eager"), Settings(), dense, INPUTS)
    first = watch.time(slim, lambda times: True)
    assert watch.time(slim, lambda times: True) is first
    more = watch.time(slim, lambda times: times.slim.turns > first.slim.turns)
    assert more.slim.turns > first.slim.turns
    assert watch.times[slim] is more
    assert set_ups.made == 2
    watch.time(another, lambda times: True)
    assert set_ups.made == 3


def test_a_few_turns_are_not_enough_whatever_they_seem_to_tell(
    set_ups: _SetUps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopwatch, "NETWORK_TIMING", replace(QUICK, turns=2, min_samples=2))
    monkeypatch.setattr(stopwatch, "LEAST_TURNS", 9)
    monkeypatch.setattr(stopwatch, "MOST_TIMES", 9)
    dense, slim = (fx.symbolic_trace(nn.Linear(1, 1)) for _ in range(2))
    watch = Stopwatch.start(get_backend("eager"), Settings(), dense, INPUTS)
    told = watch.time(slim, lambda times: True)
    assert told.slim.turns == told.dense.turns >= 9


def test_a_network_that_is_looked_at_again_is_set_up_afresh_and_measured_further(
    set_ups: _SetUps,
) -> None:
    dense, slim = (fx.symbolic_trace(nn.Linear(1, 1)) for _ in range(2))
    watch = Stopwatch.start(get_backend("eager"), Settings(), dense, INPUTS)
    first = watch.time(slim, lambda times: True)
    both = watch.again(slim, lambda times: True)
    assert set_ups.made == 3
    assert both.slim.samples[: first.slim.turns] == first.slim.samples[: first.slim.turns]
    assert both.slim.turns > first.slim.turns
    assert watch.times[slim] is both
