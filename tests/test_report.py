"""Reports: the figures, their text forms, and the picture."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import struct
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from fxprune.errors import InputError
from fxprune.measurement import Interval, Measurement
from fxprune.plot import DENSE, SLIM, layers_figure
from fxprune.report import (
    Certificate,
    FrozenPlace,
    LayerRow,
    Report,
    Side,
    Verification,
    report,
)
from fxprune.rounds import Round


def measured(seconds: float) -> Measurement:
    samples = (seconds, 1.01 * seconds)
    return Measurement(seconds, 0.012, samples, "cpu", converged=True, in_turn=True)


LAYERS = (
    LayerRow("stem.0", "Conv2d", 1, 48, 1, 32, 0.25, 0.30),
    LayerRow("stages.0.conv1", "Conv2d", 48, 64, 32, 16, 0.50, 0.40),
    LayerRow("head", "Linear", 64, 10, 16, 10, 0.25, 0.30),
)
FULL = Report(
    dense=Side(1_560_000, 236_000_000, 6_240_000, measured(4.0e-3)),
    slim=Side(390_000, 100_000_000, 1_560_000, measured(1.6e-3)),
    layers=LAYERS,
    budget="latency <= 50 % of dense",
    backend="onnxruntime 1.31.1, one thread",
    frozen=(FrozenPlace("head.weight, dimension 0", "it is an output of the model"),),
    certificate=Certificate(93.4, 93.41, 1.07e-4, (2.5,)),
    verification=Verification(3.1e-15, 21, "stages.0.conv1"),
    share=Interval(0.4, 0.395, 0.407),
)
UNTIMED = dataclasses.replace(
    FULL,
    dense=dataclasses.replace(FULL.dense, latency=None),
    slim=dataclasses.replace(FULL.slim, latency=None),
    share=None,
    layers=tuple(LayerRow(*dataclasses.astuple(layer)[:6]) for layer in LAYERS),
)


def test_the_speed_up_is_dense_over_slim_as_measured_in_turn():
    assert FULL.speedup == pytest.approx(2.5)


def test_there_is_no_speed_up_without_measurements():
    assert UNTIMED.speedup is None
    assert [row[0] for row in UNTIMED.rows()] == ["parameters", "MACs", "weights"]


def test_the_rows_show_both_sides_and_their_ratio():
    assert FULL.rows() == (
        ("parameters", "1.56 M", "390 k", "0.250"),
        ("MACs", "236 M", "100 M", "0.424"),
        ("weights", "6.24 MB", "1.56 MB", "0.250"),
        ("latency", "4.00 ms ± 1.2 %", "1.60 ms ± 1.2 %", "0.400"),
        ("speed-up", "", "2.50x", ""),
    )


def test_a_measurement_that_did_not_converge_says_so():
    unsteady = dataclasses.replace(measured(4.0e-3), converged=False)
    case = dataclasses.replace(FULL, dense=dataclasses.replace(FULL.dense, latency=unsteady))
    assert case.rows()[-2][1] == "4.00 ms ± 1.2 % (not converged)"


def test_printing_shows_figures_layers_and_facts():
    text = str(FULL)
    for part in (
        "2.50x",
        "stages.0.conv1",
        "64 → 16",
        "50.0 % → 40.0 %",
        "no choice is worth more than 93.41 (gap 0.011 %)",
        "largest relative error 3.1e-15 over 21 nodes (at stages.0.conv1)",
        "Frozen: head.weight, dimension 0: it is an output of the model.",
    ):
        assert part in text, part


def test_brackets_in_names_are_shown_as_they_are():
    row = dataclasses.replace(LAYERS[0], name="block[red]")
    text = str(dataclasses.replace(FULL, layers=(row,), frozen=(FrozenPlace("a[b]", "[i]"),)))
    assert "block[red]" in text
    assert "Frozen: a[b]: [i]." in text


def test_print_goes_to_the_console_given():
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    FULL.print(console)
    console.file.close()
    assert console.export_text().rstrip() == str(FULL)


def test_markdown_holds_the_same_rows():
    lines = FULL.to_markdown().splitlines()
    assert lines[:3] == [
        "|  | dense | slim | slim / dense |",
        "| --- | ---: | ---: | ---: |",
        "| parameters | 1.56 M | 390 k | 0.250 |",
    ]
    assert "| stages.0.conv1 | Conv2d | 48 → 32 | 64 → 16 | 50.0 % → 40.0 % |" in lines
    assert "- Budget: latency <= 50 % of dense." in lines


@pytest.mark.parametrize("case", [FULL, UNTIMED, dataclasses.replace(FULL, certificate=None)])
def test_json_brings_back_the_same_report(case):
    assert Report.from_json(case.to_json()) == case


def test_an_unbounded_certificate_survives_json():
    case = dataclasses.replace(FULL, certificate=Certificate(1.0, float("inf"), float("inf")))
    assert Report.from_json(case.to_json()) == case


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("dense", "params"), "many", "dense.params: should be an integer"),
        (("dense", "macs"), 1.5, "dense.macs: should be an integer"),
        (("layers", 1, "kind"), None, r"layers\[1\].kind: should be text"),
        (("layers", 0, "dense_latency_share"), "high", r"layers\[0\].dense_latency_share"),
        (("certificate", "gap"), True, "certificate.gap: should be a number"),
        (("slim", "latency", "clock"), "sun", "slim.latency.clock: should be one of 'cpu'"),
        (("slim", "latency", "extra"), 1, "slim.latency.extra: is not a known field"),
    ],
)
def test_json_that_is_no_report_is_refused_with_the_path(path, value, message):
    data = json.loads(FULL.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError, match=message):
        Report.from_json(json.dumps(data))


def test_a_slim_module_gives_its_report():
    slim = torch.fx.symbolic_trace(nn.Linear(2, 2))
    slim.meta["fxprune"] = {"report": FULL}
    assert report(slim) is FULL


@pytest.mark.parametrize("module", [nn.Linear(2, 2), torch.fx.symbolic_trace(nn.Linear(2, 2))])
def test_a_module_without_a_report_is_refused(module):
    with pytest.raises(InputError, match="carries no report"):
        report(module)


def bars(panel, colour: str) -> list[float]:
    from matplotlib.colors import to_rgba

    return [p.get_width() for p in panel.patches if p.get_facecolor() == to_rgba(colour)]


def test_the_picture_shows_widths_before_and_after_from_input_to_output():
    panel = layers_figure(FULL).axes[0]
    assert bars(panel, DENSE) == [48, 64, 10]
    assert bars(panel, SLIM) == [32, 16, 10]
    assert [label.get_text() for label in panel.get_yticklabels()] == [x.name for x in LAYERS]
    assert [text.get_text() for text in panel.texts] == ["48 → 32", "64 → 16", "10"]
    bottom, top = panel.get_ylim()
    assert bottom > top  # the first row, the input, is at the top


def test_the_picture_scales_slim_latency_to_the_dense_network():
    panel = layers_figure(FULL).axes[1]
    assert bars(panel, DENSE) == pytest.approx([25, 50, 25])
    assert bars(panel, SLIM) == pytest.approx([12, 16, 12])  # 30, 40, 30 % of 0.4 of dense


def test_the_picture_has_no_latency_without_measurements():
    assert len(layers_figure(UNTIMED).axes) == 1


def test_sixty_layers_keep_readable_labels():
    rows = tuple(dataclasses.replace(LAYERS[1], name=f"stages.{i}.conv") for i in range(60))
    figure = layers_figure(dataclasses.replace(FULL, layers=rows))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for upper, lower in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_a_network_without_layers_still_gives_a_picture(tmp_path):
    dataclasses.replace(FULL, layers=()).plot(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_a_png_is_written_whole(tmp_path):
    path = tmp_path / "layers.png"
    FULL.plot(path)
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    assert width == 1900
    assert height > 300
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_kind_of_picture_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="cannot be written as 'bmpx'"):
        FULL.plot(tmp_path / "layers.bmpx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, path, **options):
        Path(path).write_bytes(b"half")
        raise RuntimeError("out of ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(RuntimeError, match="out of ink"):
        FULL.plot(tmp_path / "layers.png")
    assert list(tmp_path.iterdir()) == []


def test_what_a_rehearsal_did_not_measure_survives_json() -> None:
    looked_at = Round((1.0, 2.0), (0.5, math.nan), (0, 0), rehearsal=True)
    again = Report.from_json(dataclasses.replace(FULL, rounds=(looked_at,)).to_json())
    (found,) = again.rounds
    assert (found.measured[0], found.rehearsal) == (0.5, True)
    assert math.isnan(found.measured[1])
