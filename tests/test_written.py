"""Tables that benchmarks write row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.latency_budget import COLUMNS, clear, summary
from benchmarks.written import WrittenTable
from fxprune.measurement import Measurement
from fxprune.stopwatch import Times


def table(path: Path) -> WrittenTable:
    return WrittenTable(path, "# Title\n\nWhat it is.", ("network", "backend", "seconds"), keys=2)


def test_a_table_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    table(path).add("resnet18", "onnxruntime", "3")
    again = table(path)
    assert again.has("resnet18", "onnxruntime")
    assert not again.has("resnet18", "openvino")
    again.add("resnet18", "openvino", "4")
    assert table(path).column("seconds") == ["3", "4"]


def test_rows_that_were_made_elsewhere_are_not_passed_off_as_ones_from_here(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    table(path).add("resnet18", "onnxruntime", "3")
    before = path.read_text()
    with pytest.raises(SystemExit, match=r"(?s)What it is\..*Another machine\..*another file"):
        WrittenTable(path, "# Title\n\nAnother machine.", ("network", "backend", "seconds"), 2)
    assert path.read_text() == before


def test_figures_do_not_come_to_stand_under_other_headings(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    table(path).add("resnet18", "onnxruntime", "3")
    before = path.read_text()
    with pytest.raises(SystemExit, match="other columns"):
        WrittenTable(path, "# Title\n\nWhat it is.", ("network", "backend", "ms"), 2)
    assert path.read_text() == before


def test_other_words_above_the_conditions_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    table(path).add("resnet18", "onnxruntime", "3")
    heading = "# Another title\n\nMore words.\n\nWhat\nit is."
    again = WrittenTable(path, heading, ("network", "backend", "seconds"), 2)
    assert again.has("resnet18", "onnxruntime")


def test_the_file_is_whole_after_every_row(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    made = table(path)
    made.add("resnet18", "onnxruntime", "3")
    made.write("The end.")
    assert path.read_text() == (
        "# Title\n\nWhat it is.\n\n| network | backend | seconds |\n| --- | --- | --- |\n"
        "| resnet18 | onnxruntime | 3 |\n\nThe end.\n"
    )


def test_without_a_file_rows_are_only_printed(capsys) -> None:
    made = WrittenTable(None, "", ("network", "seconds"), keys=1)
    made.add("resnet18", "3")
    assert capsys.readouterr().out == "resnet18 | 3\n"


def test_the_summary_counts_windows_refusals_and_errors() -> None:
    made = WrittenTable(None, "", COLUMNS, keys=3)
    cells = dict.fromkeys(COLUMNS, "-") | {"seconds": "60"}
    rows = [
        ("59.0 %", "58.0 to 60.1", "+1.0 %", "yes"),
        ("57.9 %", "57.4 to 58.4", "-3.0 %", "no"),
        ("61.5 %", "60.5 to 62.5", "+2.0 %", "no"),
        ("-", "-", "-", "refused: 2 ms"),
    ]
    for measured, interval, error, verdict in rows:
        found = {"measured": measured, "interval": interval, "error": error, "in window": verdict}
        made.add(*(cells | {"requested": "60 %"} | found).values())
    told = summary(made)
    assert "4 rows: 1 in the window" in told
    assert "2 outside by 0.9 points in the median, 1.5 at most, 1 of these" in told
    assert "with all of the interval, 1 refused" in told
    assert "2.0 % in the median" in told
    assert "4 minutes" in told


@pytest.mark.parametrize(
    ("share", "spread", "is_clear"),
    [
        (0.59, 0.001, True),
        (0.61, 0.001, True),
        (0.5995, 0.001, False),  # meets a limit
        (0.5825, 0.001, False),
        (0.591, 0.01, False),  # within the window, but hardly known
    ],
)
def test_what_was_measured_is_clear_where_it_is_known_and_meets_no_limit(
    share: float, spread: float, is_clear: bool
) -> None:
    def taking(seconds: float) -> Measurement:
        return Measurement.of_turns([seconds] * 5, "cpu")

    shares = (share * (1 - spread), share * (1 + spread)) * 4
    times = Times(tuple((taking(1.0), taking(each)) for each in shares))
    assert clear(60, times) is is_clear
