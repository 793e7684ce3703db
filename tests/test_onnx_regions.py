"""Regions side by side in one model: whose kernels are whose."""

from dataclasses import replace

import pytest

from fxprune.backends import Region
from fxprune.backends.onnx_regions import SideBySide, described
from fxprune.backends.profiles import OVERHEAD, SHORTEST

CONVOLUTIONS = [
    Region("conv", 1, 4, width, 1, (5, 5), (3, 3), residual=True, activation="silu")
    for width in range(1, 13)
]


def kernels_of(some):
    """The names of all kernels, and a time for each."""
    names = [name for name in some.nodes if not name.endswith("x")]
    return {name: [1e-6 * (place + 1)] * 3 for place, name in enumerate(names)}


def test_every_kernel_counts_for_its_own_region_in_whatever_order_they_are_told():
    some = SideBySide.of(CONVOLUTIONS)
    kernels = kernels_of(some)
    expected = [
        sum(runs[0] for kernel, runs in kernels.items() if kernel.startswith(f"region{place}."))
        for place in range(12)
    ]
    assert len(set(expected)) == 12
    assert some.seconds(kernels) == pytest.approx(expected)
    assert some.seconds(dict(reversed(kernels.items()))) == pytest.approx(expected)


def test_compilers_may_rename_what_they_fuse():
    some = SideBySide.of(CONVOLUTIONS)
    named = {"fused region1.x.Conv": [1e-6], "region10.x.Conv/WithoutBiases": [2e-6]}
    told = some.seconds(named)
    assert (told[1], told[10]) == (1e-6, 2e-6)


def test_what_takes_less_than_a_profile_counts_does_not_take_nothing():
    some = SideBySide.of(CONVOLUTIONS[:2])
    assert some.seconds({"region1.x.Conv": [0.0]}) == [SHORTEST] * 2


def test_neither_the_ends_nor_what_a_call_takes_besides_its_kernels_count():
    some = SideBySide.of(CONVOLUTIONS[:2])
    some = replace(some, nodes={**some.nodes, OVERHEAD: OVERHEAD})
    kernels = {"first.x.Conv": [1e-3], "region0.x.Conv": [1e-6], "last.x.Conv": [1e-3]}
    assert some.seconds({**kernels, OVERHEAD: [1e-3]}) == [1e-6, SHORTEST]


def test_no_kernel_is_lost():
    some = SideBySide.of(CONVOLUTIONS[:2])
    kernels = {"region1.x.Conv": [1e-6], "Reorder_17": [1e-6], "Convolution_42": [1e-6]}
    with pytest.raises(LookupError, match=r"which region \[Convolution_42\] belongs"):
        some.seconds(kernels, outside=("Reorder",))


def test_what_has_no_name_belongs_to_the_only_region_that_there_is():
    some = SideBySide.of(CONVOLUTIONS[:1])
    nameless = {f"Convolution_{number}": [2e-6] for number in (41, 42, 43)}
    assert some.seconds({"region0.x.Conv": [1e-6], **nameless}) == pytest.approx([3e-6])


def test_many_regions_are_described_by_the_first():
    one, two = (f"the region {CONVOLUTIONS[0].signature()}{more}" for more in ("", " and 1 others"))
    assert described(CONVOLUTIONS[:1]) == one
    assert described(CONVOLUTIONS[:2]) == two
