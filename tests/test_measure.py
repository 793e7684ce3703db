"""Measuring: the estimate, its spread, the clocks, and what is refused."""

from __future__ import annotations

import gc
import random
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import compiled, sampler, stopwatch, turns
from fxprune.backends import Backend, Engine, Region, Settings, get_backend
from fxprune.backends.onnxruntime import OnnxRuntimeBackend
from fxprune.backends.signature import Signature
from fxprune.compiled import Compiled, set_up
from fxprune.errors import BackendError, InputError, MeasurementError
from fxprune.measure import Timing, measure
from fxprune.measurement import STEADY, Interval, Measurement, mean_of, pooled, ratio
from fxprune.stopwatch import Stopwatch
from fxprune.turns import measure_interleaved

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


class Clock:
    """Tells what time it is said to be, and takes a microsecond to read."""

    def __init__(self) -> None:
        self.now = 0

    def read(self) -> int:
        self.now += 1000
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        """Something that takes so long."""

        def action() -> None:
            self.now += round(seconds * 1e9)

        return action


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sampler, "CPU_CLOCKS", {"cpu": found.read, "wall": found.read})
    return found


def test_a_known_amount_of_work_is_measured_right(clock: Clock) -> None:
    found = measure(scripted(clock.work(2e-3)), INPUTS, QUICK)
    assert found.seconds == pytest.approx(2e-3, rel=1e-3)
    assert found.converged
    assert found.spread <= 0.05
    assert len(found.samples) >= 30


def test_calls_too_short_for_the_clock_are_timed_several_at_once(clock: Clock) -> None:
    found = measure(scripted(clock.work(2e-6)), INPUTS, QUICK)
    assert found.seconds == pytest.approx(2e-6, rel=0.01)


def test_work_is_measured_by_the_clock_of_the_machine() -> None:
    found = measure(scripted(spin(2e-3)), INPUTS, QUICK)
    assert 2e-3 <= found.seconds < 4e-3


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


def in_turn(*engines: Engine, seconds: float = 0.5) -> list[Measurement]:
    """These measured in turn, for so long."""
    networks = {f"{place}": [engine] for place, engine in enumerate(engines)}
    return [*measure_interleaved(networks, INPUTS, seconds).values()]


def test_interleaved_engines_get_equally_many_samples_and_a_right_ratio(clock: Clock) -> None:
    engines = [scripted(clock.work(seconds)) for seconds in (1e-3, 2e-3)]
    one, two = in_turn(*engines, seconds=1e-3)
    assert len(one.samples) == len(two.samples) > 2
    assert ratio(one, two) == pytest.approx(0.5, rel=1e-3)


def test_what_switching_to_an_engine_costs_is_not_counted(clock: Clock) -> None:
    last = ""

    def cold(name: str, seconds: float) -> Callable[[], None]:
        def action() -> None:
            nonlocal last
            clock.work(seconds if last == name else 10 * seconds)()
            last = name

        return action

    engines = [scripted(cold(name, 1e-3)) for name in ("one", "two")]
    for found in in_turn(*engines, seconds=1e-3):
        assert found.median == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("seconds", "uncounted"), [(2e-3, True), (3e-2, False)])
def test_only_fast_networks_are_warmed_up_before_a_turn(seconds: float, uncounted: bool) -> None:
    calls = 0

    def action() -> None:
        nonlocal calls
        calls += 1
        spin(seconds)()

    (found,) = in_turn(scripted(action), seconds=1e-3)
    beforehand = 3  # to see how many calls make a sample, and how many samples a turn
    each = 3 if uncounted else 1
    assert calls - beforehand == len(found.samples) * (each + uncounted)


def test_engines_of_networks_meet_one_by_one() -> None:
    calls: list[str] = []
    one, two = (
        [scripted(lambda name=f"{network}{place}": calls.append(name)) for place in range(3)]
        for network in "ab"
    )
    measure_interleaved({"a": one, "b": two}, INPUTS, 0.1)
    order = [name for place, name in enumerate(calls) if calls[place - 1 : place] != [name]]
    last = {frozenset(pair) for pair in zip(order[-12::2], order[-11::2], strict=True)}
    assert last == {frozenset({f"a{place}", f"b{place}"}) for place in range(3)}


def test_what_slows_both_down_for_a_turn_leaves_their_ratio_alone() -> None:
    slow = np.array([1.0, 1.6, 1.0, 1.3, 1.1, 2.0])
    whole, half = (
        Measurement(base, 0.01, tuple(base * slow), "cpu", True, in_turn=True)
        for base in (1.0, 0.5)
    )
    assert ratio(half, whole) == pytest.approx(0.5)


def test_what_slows_one_of_them_down_in_some_turns_leaves_their_ratio_alone() -> None:
    disturbed = [1.0, 1.6, 1.0, 1.3, 1.0, 2.0, 1.0, 1.0]
    whole = Measurement(1.0, 0.01, tuple(disturbed), "cpu", True, in_turn=True)
    half = Measurement(0.5, 0.01, (0.5,) * 8, "cpu", True, in_turn=True)
    assert ratio(half, whole) == 0.5


def test_looks_at_a_network_are_pooled_and_spread_as_their_mean_does() -> None:
    looks = [Measurement.of_turns([seconds] * 20, "cpu") for seconds in (1.0, 1.02, 1.04)]
    found = pooled(looks)
    assert len(found.samples) == 60
    mean = mean_of([1.0, 1.02, 1.04])
    assert found.seconds == mean.value == pytest.approx(1.02, rel=1e-3)
    assert found.spread == pytest.approx(mean.high / mean.value - 1)
    assert not found.converged
    assert pooled([looks[0]] * 3).converged


def test_one_look_tells_nothing_of_how_well_a_latency_is_known() -> None:
    found = pooled([Measurement.of_turns([1.0] * 20, "cpu")])
    assert not found.converged
    assert found.spread == np.inf


def test_slow_networks_take_some_turns_whatever_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LEAST_TURNS", 7)
    one, two = in_turn(scripted(spin(5e-3)), scripted(spin(5e-3)), seconds=1e-3)
    assert len(one.samples) == len(two.samples) == 7
    assert ratio(one, two) > 0.5


def test_a_latency_has_converged_where_its_spread_is_small() -> None:
    rng = random.Random(0)
    assert Measurement.of_turns([1.0, 1.0 + STEADY] * 20, "cpu").converged
    assert not Measurement.of_turns([rng.random() for _ in range(40)], "cpu").converged


def test_a_kernel_of_twice_the_width_takes_longer_on_a_real_backend() -> None:
    backend = get_backend("onnxruntime")
    narrow = Region("conv", 1, 64, 64, spatial=(14, 14), kernel=(3, 3), padding=(1, 1))
    regions = {"narrow": narrow, "wide": narrow.with_widths(64, 128)}
    networks = {name: [backend.compile_region(region)] for name, region in regions.items()}
    found = measure_interleaved(networks, narrow.inputs(), 0.5)
    assert ratio(found["wide"], found["narrow"]) > 1.4


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


def test_a_latency_that_was_not_measured_in_turns_is_not_compared() -> None:
    alone = measurement((1.0, 1.1, 1.2))
    with pytest.raises(InputError, match="not measured in turns"):
        ratio(alone, alone)


def network(seconds: float) -> Compiled:
    """One that takes so long."""
    return Compiled(scripted(int), lambda: scripted(spin(seconds)), 1)


def test_networks_are_looked_at_until_that_is_enough() -> None:
    asked: list[int] = []

    def enough(times: stopwatch.Times) -> bool:
        asked.append(len(times.looks))
        return len(asked) == 3

    slow, fast = network(4e-4), network(2e-4)
    first = stopwatch.race(slow, fast, INPUTS, lambda times: True, 9.0)
    assert len(first.looks) == stopwatch.LEAST_LOOKS
    found = stopwatch.race(slow, fast, INPUTS, enough, 9.0, first)
    assert asked[0] == 2 * stopwatch.LEAST_LOOKS
    assert len(found.looks) == asked[-1] == asked[0] + 2
    assert found.looks[: len(first.looks)] == first.looks
    assert 0.3 < found.share.value < 0.8


def test_a_network_that_never_is_known_well_enough_is_looked_at_for_so_long() -> None:
    never = partial(stopwatch.race, network(2e-4), network(2e-4), INPUTS, lambda times: False)
    assert len(never(0.0).looks) == stopwatch.LEAST_LOOKS
    assert len(never(10 * stopwatch.LOOK_SECONDS).looks) > stopwatch.LEAST_LOOKS


@pytest.mark.parametrize(("setting_up", "seconds"), [(0.01, 0.2), (0.3, 0.6)])
def test_every_look_has_new_engines_and_takes_as_long_as_setting_these_up(
    setting_up: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, made = 0.0, 0
    took: list[float] = []

    def another() -> Engine:
        nonlocal now, made
        now, made = now + setting_up, made + 1
        return scripted(int)

    def look(engines: object, inputs: object, seconds: float) -> None:
        took.append(seconds)

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(stopwatch, "measure_interleaved", look)
    monkeypatch.setattr(stopwatch, "LOOK_SECONDS", 0.2)
    looks = stopwatch.looks({"some": Compiled(scripted(int), another, 1)}, INPUTS)
    counts = [made for _ in islice(looks, 3)]
    assert counts == [compiled.ENGINES * (look + 1) for look in range(3)]
    assert took == pytest.approx([seconds] * 3)


def test_engines_are_gone_before_others_are_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[int] = []
    alive = weakref.WeakSet[Any]()

    class Circle(nn.Module):
        """Refers to itself, as graphs of modules do."""

        def __init__(self) -> None:
            super().__init__()
            self.itself = [self]
            alive.add(self)

        def forward(self) -> None:
            spin(1e-4)()

    def another() -> Engine:
        here.append(len(alive))
        return scripted(Circle())

    looks = stopwatch.looks({"some": Compiled(scripted(int), another, 1)}, INPUTS)
    for _ in islice(looks, 3):
        pass
    assert here == [*range(compiled.ENGINES)] * 3


def test_networks_do_not_take_their_turns_in_the_same_order_in_every_look() -> None:
    orders = set()
    for _ in range(20):
        calls: list[str] = []
        networks = {name: [scripted(partial(calls.append, name))] for name in "ab"}
        measure_interleaved(networks, INPUTS, 0.0)
        orders.add("".join(name for name, _ in groupby(calls)))
    assert len(orders) > 1


def test_median_and_ninetieth_percentile_come_from_the_samples() -> None:
    found = measurement(tuple(float(i) for i in range(11)))
    assert found.median == 5.0
    assert found.p90 == 9.0


def test_the_spread_encloses_the_true_quantile_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    true = 1 - np.log(0.9)  # the 10th percentile of one plus a unit exponential
    held = 0
    for _ in range(400):
        samples = (1 + rng.exponential(size=60)).tolist()
        found = Measurement.of(samples, "cpu", converged=True)
        held += abs(found.seconds - true) <= found.spread * found.seconds
    assert held >= 0.95 * 400


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_of_a_mean_holds_the_true_one_about_as_often_as_it_claims(count: int) -> None:
    rng = np.random.default_rng(0)
    looks = 0.6 * rng.lognormal(sigma=0.05, size=(400, count))
    held = sum(found.low <= 0.6 <= found.high for found in map(mean_of, looks))
    assert 0.92 * 400 <= held <= 0.98 * 400


def test_a_ratio_needs_samples_that_were_taken_together() -> None:
    with pytest.raises(InputError, match="3 and 2 samples"):
        ratio(measurement((1.0, 1.0, 1.0)), measurement((1.0, 1.0)))


def test_nothing_to_measure_and_unequal_thread_counts_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        measure_interleaved({}, INPUTS, 1.0)
    with pytest.raises(InputError, match=r"thread counts|clocks"):
        in_turn(scripted(int), scripted(int, threads=2))


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


def networks_of(*widths: int) -> tuple[list[str], list[Compiled]]:
    """Networks with so many weights, and the list to which every set-up adds its network."""
    made: list[str] = []

    def another(name: str) -> Engine:
        made.append(name)
        return scripted(int)

    return made, [
        Compiled(scripted(int), partial(another, "ab"[place]), width)
        for place, width in enumerate(widths)
    ]


def test_networks_that_are_compared_are_set_up_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "ENGINES", 3)
    made, networks = networks_of(1, 2)
    assert [len(engines) for engines in set_up(*networks)] == [3, 3]
    assert [{*made[at : at + 2]} for at in (0, 2, 4)] == [{"a", "b"}] * 3
    for _ in range(20):
        set_up(*networks)
    assert {*made[::2]} == {"a", "b"}


@pytest.mark.parametrize(("width", "engines"), [(8, 8), (400, 2), (600, 1)])
def test_large_networks_are_set_up_less_often(
    width: int, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "WEIGHTS", 1000)
    monkeypatch.setattr(compiled, "ENGINES", 8)
    made, networks = networks_of(width, 1)
    found = set_up(*networks)
    assert [len(some) for some in found] == [engines] * 2
    assert len(made) == (0 if engines == 1 else 2 * engines)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_a_compiled_network_can_be_set_up_again(name: str) -> None:
    x = torch.randn(1, 4)
    network = Compiled.of(get_backend(name), Settings(), nn.Linear(4, 4), (x,))
    again = network.another()
    assert again is not network.engine
    torch.testing.assert_close(again(x), network.engine(x))


def test_where_engines_stay_in_memory_few_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "frees_engines", False)
    monkeypatch.setattr(OnnxRuntimeBackend, "copier", Backend.copier)  # it is loaded again
    monkeypatch.setattr(compiled, "KEPT", 3)
    backend = get_backend("onnxruntime")
    network = Compiled.of(backend, Settings(), nn.Linear(4, 4), (torch.randn(1, 4),))
    made = [network.another() for _ in range(7)]
    assert len({*map(id, made)}) == 3
    assert made[0] is made[3] is made[6]
    monkeypatch.setattr(compiled, "WEIGHTS", 2 * network.weights)
    large = Compiled.of(backend, Settings(), nn.Linear(4, 4), (torch.randn(1, 4),))
    assert len({id(engine) for engine in [large.another() for _ in range(7)]}) == 2


def test_nothing_is_left_of_a_compiled_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(OnnxRuntimeBackend, "copier", Backend.copier)  # it is loaded again
    for name in ("eager", "onnxruntime"):
        Compiled.of(get_backend(name), Settings(), nn.Linear(4, 4), (torch.randn(1, 4),))
    assert not [*tmp_path.iterdir()]


class _SetUps:
    """Stands for a compiler, and counts what is compiled."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, *_: Any) -> Compiled:
        self.made += 1
        return Compiled(scripted(spin(2e-4)), lambda: scripted(spin(2e-4)), 1)


@pytest.fixture
def set_ups(monkeypatch: pytest.MonkeyPatch) -> _SetUps:
    found = _SetUps()
    monkeypatch.setattr(Compiled, "of", found)
    return found


def test_a_network_that_two_budgets_ask_for_is_set_up_once(set_ups: _SetUps) -> None:
    dense, slim, another = (fx.symbolic_trace(nn.Linear(1, 1)) for _ in range(3))
    watch = Stopwatch.start(get_backend("eager"), Settings(), dense, INPUTS)
    first = watch.time(slim, lambda times: True)
    assert watch.time(slim, lambda times: True) is first
    more = watch.time(slim, lambda times: len(times.looks) > len(first.looks))
    assert more.looks[: len(first.looks)] == first.looks
    assert len(more.looks) == len(first.looks) + stopwatch.LEAST_LOOKS
    assert watch.times[slim] is more
    assert set_ups.made == 2
    watch.time(another, lambda times: True)
    assert set_ups.made == 3


def test_a_network_that_is_looked_at_again_is_set_up_afresh_and_measured_further(
    set_ups: _SetUps,
) -> None:
    dense, slim = (fx.symbolic_trace(nn.Linear(1, 1)) for _ in range(2))
    watch = Stopwatch.start(get_backend("eager"), Settings(), dense, INPUTS)
    first = watch.time(slim, lambda times: True)
    both = watch.again(slim, lambda times: True)
    assert set_ups.made == 3
    assert both.looks[: len(first.looks)] == first.looks
    assert len(both.looks) == len(first.looks) + stopwatch.LEAST_LOOKS
    assert watch.times[slim] is both
