"""What slimming did: dense beside slim, layer by layer, with the proofs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import nn

from fxprune import plain
from fxprune.errors import InputError
from fxprune.files import atomic_path
from fxprune.measurement import Interval, Measurement
from fxprune.rounds import Round
from fxprune.units import format_bytes, format_count, format_seconds

META: Final = "fxprune"
"""Where a slim module keeps its plan and report: `slim.meta["fxprune"]`."""


@dataclass(frozen=True)
class Side:
    """One network, dense or slim: parameters, MACs of one forward pass on the example inputs, bytes
    of all weights, and measured latency where the backend was asked for it."""

    params: int
    macs: int
    weight_bytes: int
    latency: Measurement | None = None


@dataclass(frozen=True)
class LayerRow:
    """One layer: its channels before and after, and its share of each whole network's latency.

    A layer of a dropped block has no channels after.
    Shares are fractions in [0, 1] of the side they belong to; None where not known.
    """

    name: str
    kind: str
    dense_in: int
    dense_out: int
    slim_in: int
    slim_out: int
    dense_latency_share: float | None = None
    slim_latency_share: float | None = None


@dataclass(frozen=True)
class FrozenPlace:
    """A place that could not be slimmed, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Certificate:
    """How good the solver's choice is at least, measured in its own model of value and cost.

    Attributes:
        value: of the choice.
        bound: no choice within the budget is worth more.
        gap: (bound - value) relative to the larger of the two.
        prices: per budget, what one more unit of it would be worth.
    """

    value: float
    bound: float
    gap: float
    prices: tuple[float, ...] = ()


@dataclass(frozen=True)
class Verification:
    """Slim against the masked original in float64: the largest relative error of all nodes."""

    max_relative_error: float
    nodes: int
    worst_node: str


@dataclass(frozen=True)
class Report:
    """Everything that one optimisation found out; plain data.

    `dropped` are the residual blocks that went, `merged` the layers that become one on deployment,
    span by span; the slim side is the network as deployed. `calls` tells how often a budget that is
    a function was called, the dense network included. `baked` are the parameters that hold what the
    dense network computes from others in each call. `tabled` are the seconds of both sides on
    another machine, as tables measured there tell. `share` is slim over dense latency, as measured
    in turn: the quotient of both sides' may differ a little. `limits` is what each budget comes to,
    in the units of `rounds`: a share of the dense network is one of what it used before the first
    round.
    """

    dense: Side
    slim: Side
    layers: tuple[LayerRow, ...]
    budget: str
    backend: str
    frozen: tuple[FrozenPlace, ...] = ()
    certificate: Certificate | None = None
    verification: Verification | None = None
    rounds: tuple[Round, ...] = ()
    limits: tuple[float, ...] = ()
    dropped: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    calls: int = 0
    baked: tuple[str, ...] = ()
    tabled: tuple[float, float] | None = None
    share: Interval | None = None

    @property
    def speedup(self) -> float | None:
        """Dense over slim latency, as measured in turn; None if they were not measured."""
        return None if self.share is None else 1 / self.share.value

    def print(self, console: Console | None = None) -> None:
        """Show the whole report as tables in the terminal."""
        (console or Console()).print(self)

    def __rich__(self) -> Group:
        return Group(self.summary(), self.layer_table(), *(Text(line) for line in self.facts()))

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=100, color_system=None).print(self)
        return buffer.getvalue().rstrip()

    def summary(self) -> Table:
        """Dense beside slim, as a table for `rich`."""
        table = Table(title="fxprune")
        table.add_column("")
        for heading in ("dense", "slim", "slim / dense"):
            table.add_column(heading, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def rows(self) -> tuple[tuple[str, str, str, str], ...]:
        """(quantity, dense, slim, ratio) as text: the lines of the summary."""
        rows = [
            _row("parameters", self.dense.params, self.slim.params, format_count),
            _row("MACs", self.dense.macs, self.slim.macs, format_count),
            _row("weights", self.dense.weight_bytes, self.slim.weight_bytes, format_bytes),
        ]
        if self.share is not None and self.dense.latency and self.slim.latency:
            sides = format_latency(self.dense.latency), format_latency(self.slim.latency)
            rows.append(("latency", *sides, f"{self.share.value:.3f}"))
            rows.append(("speed-up", "", f"{self.speedup:.2f}x", ""))
        if self.tabled is not None:
            rows.append(_row("latency by tables", *self.tabled, format_seconds))
        return tuple(rows)

    def layer_table(self) -> Table:
        """One line per layer, as a table for `rich`."""
        table = Table()
        table.add_column("layer", overflow="fold")
        table.add_column("kind")
        for heading in ("in", "out", "latency share"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            # A name may hold brackets, which rich would take for markup in a plain string.
            table.add_row(*map(Text, _layer_cells(layer)))
        return table

    def facts(self) -> tuple[str, ...]:
        """One sentence each: what was asked for, how sure the answer is, what went and stayed."""
        lines = [f"Budget: {self.budget}."]
        if self.backend:  # only latency needs one
            lines.append(f"Backend: {self.backend}.")
        if (certificate := self.certificate) is not None:
            lines.append(
                f"Certificate: value {certificate.value:.6g}, no choice is worth more than "
                f"{certificate.bound:.6g} (gap {100 * certificate.gap:.2g} %)."
            )
        if (proof := self.verification) is not None:
            lines.append(
                f"Verified: largest relative error {proof.max_relative_error:.1e} over "
                f"{proof.nodes} nodes (at {proof.worst_node})."
            )
        if self.tabled is not None:
            lines.append(
                "Latency is what tables of another machine tell; the slim network was not measured."
            )
        if self.calls:
            lines.append(f"The budget's function was called {self.calls} times.")
        if self.dropped:
            lines.append(f"Dropped blocks: {', '.join(self.dropped)}.")
        lines += [f"Merged on deployment: {span}." for span in self.merged]
        if self.baked:
            lines.append(baked_fact(self.baked))
        lines += [f"Frozen: {place.place}: {place.reason}." for place in self.frozen]
        return tuple(lines)

    def to_markdown(self) -> str:
        """The report as Markdown tables."""
        summary = _markdown(("", "dense", "slim", "slim / dense"), self.rows())
        headings = ("layer", "kind", "in", "out", "latency share")
        layers = _markdown(headings, [_layer_cells(layer) for layer in self.layers])
        facts = "\n".join(f"- {line}" for line in self.facts())
        return f"{summary}\n\n{layers}\n\n{facts}\n"

    def to_json(self) -> str:
        """The report as JSON; `from_json` reads it back."""
        return plain.dumps(plain.to_plain(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read what `to_json` wrote.

        Raises:
            InputError: the text is no report; the message gives the path of the first fault.
        """
        try:
            return plain.from_plain(cls, plain.loads(text))
        except plain.Malformed as error:
            raise InputError(
                f"The report is malformed at {error.path}: {error.what}",
                fix="Write reports with Report.to_json.",
            ) from error

    def plot(self, path: str | Path) -> None:
        """Draw every layer's width and share of latency, before and after, into a picture.

        The file's ending chooses the format (png, pdf, svg).

        Raises:
            InputError: the file cannot be written, or not in that format.
        """
        from fxprune.plot import layers_figure  # matplotlib is slow to import

        figure = layers_figure(self)
        ending = Path(path).suffix.lstrip(".").lower() or "png"
        known = figure.canvas.get_supported_filetypes()
        if ending not in known:
            raise InputError(
                f"Pictures cannot be written as {ending!r}", fix=f"Use one of {', '.join(known)}."
            )
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=ending)


def report(slim: nn.Module) -> Report:
    """The report that a slim module carries.

    Raises:
        InputError: it carries none.
    """
    found = getattr(slim, "meta", {}).get(META, {}).get("report")
    if not isinstance(found, Report):
        raise InputError(
            "This module carries no report", fix="Ask for that of what fxprune.optimize returned."
        )
    return found


def baked_fact(names: Sequence[str]) -> str:
    """What became of weights that the dense network computes in each call."""
    return (
        f"Computed once: {', '.join(names)}; fine-tuning trains these weights themselves, not what "
        "the dense network computes them from."
    )


def format_latency(latency: Measurement) -> str:
    """A measurement with its spread, such as `4.31 ms ± 1.2 %`, and a note if it is unsteady."""
    note = "" if latency.converged else " (not converged)"
    return f"{format_seconds(latency.seconds)} ± {100 * latency.spread:.1f} %{note}"


def _row(
    name: str, dense: float, slim: float, show: Callable[[float], str]
) -> tuple[str, str, str, str]:
    return name, show(dense), show(slim), f"{slim / dense:.3f}" if dense else "-"


def _layer_cells(layer: LayerRow) -> tuple[str, str, str, str, str]:
    return (
        layer.name,
        layer.kind,
        _change(str(layer.dense_in), str(layer.slim_in)),
        _change(str(layer.dense_out), str(layer.slim_out)),
        _change(_percent(layer.dense_latency_share), _percent(layer.slim_latency_share)),
    )


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _markdown(headings: tuple[str, ...], rows: object) -> str:
    assert isinstance(rows, list | tuple)
    rule = ["---", *["---:"] * (len(headings) - 1)]
    lines = [headings, tuple(rule), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
