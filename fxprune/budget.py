"""What a budget can say: how much of a resource the slim network may use.

0.6                    at most 60 % of the dense latency
"12 ms"                an absolute latency (s, ms, us)
"60% latency"          of dense; likewise "50% MACs", "50% params", "50% memory"
"1.2 GMACs"            multiply-accumulates of one forward pass on the example inputs
"5M params"            parameters
"20 MB"                of weights (kB, MB, GB decimal; KiB, MiB, GiB binary)
"2 MB activations"     alive at once; likewise "50% activations"
Budget(f, limit)       any function of the slim module: f(slim) <= limit
a list of these        all must hold
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Final, TypeAlias, cast, get_args

from torch import nn

from fxprune.errors import BudgetError
from fxprune.units import BASE_UNITS, FACTORS, NAMES, Resource, format_resource

Metric: TypeAlias = Callable[[nn.Module], float]
BudgetLike: TypeAlias = "float | str | Budget | Sequence[float | str | Budget]"

EXAMPLES: Final = (
    'Write for example 0.6 (60 % of the dense latency), "12 ms", "850 us", "60% latency", '
    '"1.2 GMACs", "50% MACs", "5M params", "50% params", "20 MB" (of weights), '
    "Budget(function, limit), or a list of these."
)

_TEXT: Final = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?))"
    r"\s*(?P<percent>%)?\s*(?:of\s+)?(?P<unit>.*)",
    re.IGNORECASE | re.DOTALL,
)
_RELATIVE: Final[dict[str, Resource]] = {
    "": "latency",
    "latency": "latency",
    "macs": "macs",
    "params": "params",
    "parameters": "params",
    "memory": "memory",
    "weights": "memory",
    "activations": "activations",
}


@dataclass(frozen=True)
class Budget:
    """At most `limit` of `resource`.

    Args:
        resource: "latency" (seconds), "macs", "params", "memory" (bytes of weights), "activations"
            (bytes of intermediate results alive at once), or any function of the slim module that
            returns a number.
        limit: in the resource's own unit; with `relative`, a fraction of the dense value.
        relative: whether `limit` is a fraction, in (0, 1], of what the dense network uses.
        backend: where latency is measured, if not where `optimize` measures it: with several
            budgets, a network can be fast on several backends.

    Raises:
        BudgetError: the resource is unknown, or no network could ever use `limit` of it.
    """

    resource: Resource | Metric
    limit: float
    relative: bool = False
    backend: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.resource) and self.resource not in get_args(Resource):
            known = ", ".join(get_args(Resource))
            raise BudgetError(
                f"{self.resource!r} is no resource that a budget can limit",
                fix=f"Use one of {known}, or a function of the slim module.",
            )
        if self.backend is not None and self.resource != "latency":
            what = "a function" if callable(self.resource) else NAMES[self.resource]
            raise BudgetError(
                f"A budget on {what} has no backend", fix="Only latency is measured on one."
            )
        if not _is_number(self.limit):
            raise BudgetError(f"The limit of a budget must be a number, not {self.limit!r}")
        object.__setattr__(self, "limit", float(self.limit))
        self._require_sensible_limit()

    def _require_sensible_limit(self) -> None:
        shown = f"{100 * self.limit:g} %" if self.relative else f"{self.limit:g} {self.unit}"
        if not math.isfinite(self.limit):
            raise self._refused(f"A budget must be finite, not {shown.strip()}")
        # A black-box function may well be negative; what is counted in units may not.
        if self.limit <= 0 and (self.relative or not callable(self.resource)):
            raise self._refused(f"A budget must be above zero, not {shown.strip()}")
        if self.relative and self.limit > 1:
            raise self._refused(
                f"A budget of {shown} is above the dense network itself",
                "A relative budget is a fraction in (0, 1], or a percentage up to 100 %.",
            )

    def _refused(self, what: str, fix: str = EXAMPLES) -> BudgetError:
        return BudgetError(what, fix=fix, requested=self.limit, unit=self.unit)

    @property
    def name(self) -> str:
        """What is limited, in words: the resource, or the name of the function."""
        if isinstance(self.resource, str):
            return NAMES[self.resource] + (f" on {self.backend}" if self.backend else "")
        return getattr(self.resource, "__name__", type(self.resource).__name__)

    @property
    def unit(self) -> str:
        """The unit of a resolved limit: s, MACs, parameters or bytes; empty for a function."""
        return BASE_UNITS[self.resource] if isinstance(self.resource, str) else ""

    def resolve(self, dense: float) -> float:
        """The absolute limit, given what the dense network uses (both in `unit`).

        Raises:
            BudgetError: the dense network already keeps the budget, so there is nothing to slim
                (not asked of a function, whose dense value need not be comparable), or `dense` is
                not a positive finite number to take a fraction of.
        """
        if not math.isfinite(dense) or (dense <= 0 and (self.relative or self.unit)):
            raise self._refused(
                f"The dense network's {self.name} came out as {dense:g} {self.unit}".rstrip(),
                "A budget needs a positive, finite dense value to be compared with.",
            )
        limit = self.limit * dense if self.relative else self.limit
        if isinstance(self.resource, str) and limit > dense:
            raise self._refused(
                f"The budget of {format_resource(self.resource, limit)} is above what the dense "
                f"network uses, {format_resource(self.resource, dense)}",
                "There is nothing to slim; ask for less than that.",
            )
        return limit

    def describe(self) -> str:
        """One phrase for tables and messages, such as `latency <= 60 % of dense`."""
        if self.relative:
            return f"{self.name} <= {100 * self.limit:g} % of dense"
        if isinstance(self.resource, str):
            return f"{self.name} <= {format_resource(self.resource, self.limit)}"
        return f"{self.name} <= {self.limit:g}"

    __str__ = describe


def parse(budget: BudgetLike) -> tuple[Budget, ...]:
    """Read anything that a user may write as a budget; all the budgets returned must hold.

    Raises:
        BudgetError: it cannot be read, or asks for nothing, less than nothing, or more than dense.
    """
    if isinstance(budget, Sequence) and not isinstance(budget, str | bytes):
        if not budget:
            raise BudgetError("The list of budgets is empty", fix=EXAMPLES)
        return tuple(_parse_one(item) for item in budget)
    return (_parse_one(budget),)


def _parse_one(budget: object) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, str):
        return _parse_text(budget)
    if _is_number(budget):
        return Budget("latency", float(cast(float, budget)), relative=True)
    raise BudgetError(f"A budget cannot be {budget!r}", fix=EXAMPLES)


def _parse_text(text: str) -> Budget:
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise BudgetError(f"The budget {text!r} does not parse", fix=EXAMPLES)
    number = float(match["number"])
    unit = "".join(match["unit"].lower().split())
    if match["percent"] and unit in _RELATIVE:
        return Budget(_RELATIVE[unit], number / 100, relative=True)
    if not match["percent"] and not unit:
        return Budget("latency", number, relative=True)
    if not match["percent"] and unit in FACTORS:
        resource, factor = FACTORS[unit]
        return Budget(resource, number * factor)
    fix = EXAMPLES
    if unit.endswith("flops"):
        fix = f"Count multiply-accumulates: one MAC is two FLOPs. {EXAMPLES}"
    raise BudgetError(f"The budget {text!r} does not parse", fix=fix)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
