"""The command line: what it says, and how it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune import cli
from fxprune.errors import InputError
from fxprune.plan import Plan
from fxprune.report import Report

FACTORY = """
from torch import nn

def build():
    return nn.Linear(3, 2)

def two():
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

def network():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)
    )

ready = nn.ReLU()

def number():
    return 5
"""


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current folder."""
    (tmp_path / "own_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["fxprune", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_backends_lists_every_backend_with_its_version():
    result = CliRunner().invoke(cli.app, ["backends"])
    assert result.exit_code == 0
    assert f"torch {torch.__version__}" in result.output
    assert "onnxruntime" in result.output


def test_help_names_every_command():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for command in ("backends", "analyze", "optimize", "table"):
        assert command in result.output


def test_a_torchvision_model_is_built_in_eval_mode():
    model = cli.build("torchvision:squeezenet1_1")
    assert type(model).__name__ == "SqueezeNet"
    assert not model.training


def test_a_factory_in_the_current_folder_is_called(own_models):
    assert cli.build("own_models:build").weight.shape == (2, 3)
    assert "" not in sys.path


def test_a_module_may_stand_there_ready(own_models):
    assert isinstance(cli.build("own_models:ready"), nn.ReLU)


def test_weights_are_loaded_into_the_model(own_models, tmp_path):
    state = {"weight": torch.full((2, 3), 7.0), "bias": torch.zeros(2)}
    save_file(state, tmp_path / "weights")
    assert cli.build("own_models:build", tmp_path / "weights").weight.eq(7).all()


def test_weights_of_another_model_are_refused(own_models, tmp_path):
    save_file({"weight": torch.zeros(5)}, tmp_path / "weights")
    with pytest.raises(InputError, match="cannot be loaded"):
        cli.build("own_models:build", tmp_path / "weights")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "does not name a model"),
        ("torchvision:", "does not name a model"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'"),
        ("no_such_package:build", "cannot be imported"),
        ("own_models:absent", "has no 'absent'"),
        ("own_models:number", "gave int, not a torch.nn.Module"),
    ],
)
def test_a_specification_that_names_nothing_is_refused(own_models, spec, message):
    with pytest.raises(InputError, match=message):
        cli.build(spec)


def test_example_inputs_have_the_shapes_asked_for_and_repeat():
    first, again = cli.examples(["1x3x8x8", "2x5"]), cli.examples(["1x3x8x8", "2x5"])
    assert [list(x.shape) for x in first] == [[1, 3, 8, 8], [2, 5]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", ["", "1x", "1x-3", "1,3,8", "1x0", "axb", "1x3.5"])
def test_a_shape_that_does_not_parse_is_refused(shape):
    with pytest.raises(InputError, match="does not parse"):
        cli.examples([shape])


def test_analyze_shows_groups_and_what_stays_dense(own_models):
    result = CliRunner().invoke(cli.app, ["analyze", "own_models:two", "--input", "1x3"])
    assert result.exit_code == 0
    assert "0.weight[0]" in result.output
    assert "output" in result.output


def test_optimize_writes_the_slim_network_and_all_about_it(own_models, monkeypatch, tmp_path):
    out = tmp_path / "made" / "slim"
    code = run_main(
        monkeypatch,
        *("optimize", "own_models:two", "--input", "1x3"),
        *("--budget", "60% params", "--budget", "90% MACs", "--out", str(out)),
    )
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("layers.png", "plan.json", "report.json", "report.md", "slim.safetensors"),
    ]
    report = Report.from_json((out / "report.json").read_bytes())
    assert report.slim.params <= 0.6 * report.dense.params
    assert report.slim.macs <= 0.9 * report.dense.macs
    plan = Plan.from_json((out / "plan.json").read_bytes())
    slim = fxprune.load(out / "slim.safetensors", cli.build("own_models:two"), torch.rand(1, 3))
    assert slim.meta["fxprune"]["plan"] == plan
    assert slim(torch.rand(4, 3)).shape == (4, 2)


def test_a_table_that_is_carried_along_is_all_that_another_machine_needs(
    own_models, tmp_path, monkeypatch, capsys
):
    exported, out = tmp_path / "latencies.json", tmp_path / "slim"
    model = ("own_models:network", "--input", "1x3x16x16")
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "there"))
    assert run_main(monkeypatch, "table", "build", *model, "--backend", "onnxruntime") == 0
    assert run_main(monkeypatch, "table", "export", str(exported)) == 0
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "here"))
    elsewhere = ("--backend", "onnxruntime@", "--budget", "60% latency", "--out", str(out))
    assert run_main(monkeypatch, "optimize", *model, *elsewhere) == 2
    assert "fxprune table import" in capsys.readouterr().err
    assert run_main(monkeypatch, "table", "import", str(exported)) == 0
    assert run_main(monkeypatch, "optimize", *model, *elsewhere) == 0
    assert json.loads((out / "report.json").read_text())["tabled"][0] > 0


def test_settings_of_the_engine_reach_the_measurements(own_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "there"))
    model = ("own_models:network", "--input", "1x3x16x16", "--backend", "eager")
    settings = ("--precision", "bf16", "--threads", "2", "--channels-last")
    assert run_main(monkeypatch, "table", "build", *model, *settings) == 0
    exported = tmp_path / "latencies.json"
    assert run_main(monkeypatch, "table", "export", str(exported)) == 0
    entries = json.loads(exported.read_text())["entries"]
    told = {json.dumps(entry["key"]["settings"], sort_keys=True) for entry in entries}
    (found,) = map(json.loads, told)
    assert found["precision"] == "bf16"
    assert found["threads"] == 2
    assert found["channels_last"]
    assert not found["cuda_graphs"]


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused(own_models, monkeypatch, capsys, tmp_path, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = ("own_models:network", "--input", "1x3x16x16", "--device", device)
    assert run_main(monkeypatch, "table", "build", *model) == 2
    assert f"no device '{device}'" in capsys.readouterr().err


def test_a_table_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "here"))
    (tmp_path / "table.json").write_text("no table")
    assert run_main(monkeypatch, "table", "import", str(tmp_path / "table.json")) == 2
    assert capsys.readouterr().err.startswith("fxprune: ")


def test_an_error_of_ours_is_one_line_and_exit_code_2(monkeypatch, capsys):
    code = run_main(monkeypatch, "analyze", "torchvision:resnet19", "--input", "1x3x8x8")
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("fxprune: torchvision has no model 'resnet19'.")
    assert captured.err.count("\n") == 1


def test_a_budget_is_checked_before_anything_is_built(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"
    code = run_main(
        monkeypatch,
        *("optimize", "no_such_package:build", "--input", "1x3x8x8"),
        *("--budget", "fast", "--out", str(out)),
    )
    assert code == 2
    assert "The budget 'fast' does not parse" in capsys.readouterr().err
    assert not out.exists()
