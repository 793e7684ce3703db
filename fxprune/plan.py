"""The decision as plain data: which positions stay, which blocks go, which spans are merged.

A plan is made on one model and can be replayed on any model with the same groups, whatever its
weights.  It travels as JSON; nothing in it can run code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from fxprune import plain
from fxprune.errors import PlanMismatch

VERSION: Final = 1


@dataclass(frozen=True)
class Plan:
    """All choices for one model.

    Args:
        kept: group name -> the positions that stay, strictly increasing, at least one.
        sizes: group name -> how many positions the dense model has; the same names as `kept`.
        meta: where the plan comes from (versions, backend, budget); plain JSON values.
        version: of this format.
        dropped: residual blocks that go, by the node of their addition.
        merged: spans that become one layer each, by their nodes in the captured model.
        orders: index tensor -> a digest of its numbers, where the groups depend on them.

    Raises:
        PlanMismatch: the parts do not fit together; the message gives the path of the first.
    """

    kept: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    meta: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION
    dropped: tuple[str, ...] = ()
    merged: tuple[tuple[str, ...], ...] = ()
    orders: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise _refused("version", f"is {self.version!r}; this fxprune reads version {VERSION}")
        # Own copies, in one order: the caller's mappings may change later, the plan may not.
        object.__setattr__(self, "kept", {k: tuple(v) for k, v in sorted(self.kept.items())})
        object.__setattr__(self, "sizes", dict(sorted(self.sizes.items())))
        object.__setattr__(self, "dropped", tuple(sorted(self.dropped)))
        object.__setattr__(self, "merged", tuple(sorted(map(tuple, self.merged))))
        object.__setattr__(self, "orders", dict(sorted(self.orders.items())))
        object.__setattr__(self, "meta", plain.to_plain(self.meta))
        for name in sorted(self.kept.keys() ^ self.sizes.keys()):
            missing = "sizes" if name in self.kept else "kept"
            raise _refused(f"{missing}.{name}", "is missing")
        for name, positions in self.kept.items():
            _check_group(name, positions, self.sizes[name])
        for before, after in pairwise(self.dropped):
            if before == after:
                raise _refused("dropped", f"names {after!r} twice")
        _check_plain(self.meta, "meta")

    @property
    def slim_sizes(self) -> dict[str, int]:
        """Group name -> how many positions stay."""
        return {name: len(positions) for name, positions in self.kept.items()}

    def check(self, sizes: Mapping[str, int], orders: Mapping[str, str] | None = None) -> None:
        """Refuse a model whose groups, given with their sizes, are not those of the plan.

        Raises:
            PlanMismatch: naming the first group, in alphabetical order, that differs, or the first
                index tensor that holds other numbers.
        """
        for name, digest in self.orders.items():
            if orders is not None and orders.get(name) != digest:
                raise PlanMismatch(
                    f"The index tensor {name!r} holds other numbers than when the plan was made",
                    fix="Load the model's own state before applying the plan.",
                )
        for name in sorted(self.sizes.keys() | sizes.keys()):
            here, there = self.sizes.get(name), sizes.get(name)
            if here == there:
                continue
            if there is None:
                what = f"The model has no group {name!r}, which the plan slims"
            elif here is None:
                what = f"The plan says nothing about the model's group {name!r}"
            else:
                what = f"Group {name!r} has {there} positions in the model but {here} in the plan"
            raise PlanMismatch(
                what, fix="Apply a plan to the architecture that it was made for, built the same."
            )

    def to_json(self) -> str:
        """The plan as text: the same plan gives the same bytes, one line per group."""
        return plain.dumps(plain.to_plain(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan; the inverse of `to_json`.

        Raises:
            PlanMismatch: the text is not a plan; the message gives the path of the first fault.
        """
        return cls.from_plain_data(_loads(text))

    @classmethod
    def from_plain_data(cls, data: object) -> Plan:
        """Read a plan from parsed JSON.

        Raises:
            PlanMismatch: as `from_json`.
        """
        # The version comes first: another version may well have other fields.
        if isinstance(data, dict) and data.get("version", VERSION) != VERSION:
            raise _refused(
                "version", f"is {data['version']!r}; this fxprune reads version {VERSION}"
            )
        try:
            return plain.from_plain(cls, data)
        except plain.Malformed as error:
            raise _refused(error.path, error.what) from error


def _loads(text: str | bytes) -> object:
    try:
        return plain.loads(text)
    except plain.Malformed as error:
        raise _refused(error.path, error.what) from error


def _check_group(name: str, positions: tuple[int, ...], size: int) -> None:
    if not _is_int(size) or size < 1:
        raise _refused(f"sizes.{name}", f"should be a positive integer, not {size!r}")
    if not positions:
        raise _refused(f"kept.{name}", "is empty; every group keeps at least one position")
    previous = -1
    for i, position in enumerate(positions):
        if not _is_int(position) or not previous < position < size:
            raise _refused(
                f"kept.{name}[{i}]",
                f"should be an integer above {previous} and below {size}, not {position!r}",
            )
        previous = position


def _check_plain(value: object, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_plain(item, f"{path}[{i}]")
    elif not (value is None or isinstance(value, str | bool | int | float)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise _refused(path, f"is not plain JSON: {value!r:.60}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refused(path: str, what: str) -> PlanMismatch:
    return PlanMismatch(
        f"The plan is malformed at {path}: {what}",
        fix="Write plans with Plan.to_json, and read them with the same version of fxprune.",
    )
