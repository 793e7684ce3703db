"""The comparison with Torch-Pruning: each tool's row on a network of a few layers."""

import pytest
import torch
from torch import nn

from benchmarks.torch_pruning import TOOLS, Masked, Row, difference, outputs, row, text

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # its own, of which nobody here is to know


@pytest.mark.parametrize("tool", TOOLS)
def test_a_plain_network_is_exact_for_every_tool(tool):
    found = row("links_of_hardnet", tool)
    assert found.outcome == "exact", found
    assert found.error < 1e-12
    assert found.seconds > 0


def test_unbalanced_halves_are_exact_here_and_silently_wrong_there():
    assert row("halves_that_gate_each_other", TOOLS[0]).outcome == "exact"
    assert row("halves_that_gate_each_other", TOOLS[1]).outcome == "wrong"


def test_an_error_of_a_tool_is_an_outcome():
    found = row("lstm", TOOLS[1])
    assert found.outcome == "crashed"
    assert found.detail


def chain():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(*layers).double(), (torch.randn(3, 5, dtype=torch.float64),)


def pruned(lost):
    model, inputs = chain()
    graph = tp.DependencyGraph().build_dependency(model, inputs, verbose=False)
    masked = Masked(model, graph)
    group = graph.get_pruning_group(model[0], tp.prune_linear_out_channels, lost)
    masked.note(group)
    group.prune()
    return masked, model, inputs


def test_the_masked_original_is_what_pruning_gives():
    masked, model, inputs = pruned([1, 4, 5])
    assert difference(masked.outputs(inputs), outputs(model, inputs)) < 1e-12


def test_the_masked_original_sees_a_channel_that_is_taken_for_another():
    masked, model, inputs = pruned([1, 4, 5])
    model[3].weight.data = model[3].weight.data.flip(1)
    assert difference(masked.outputs(inputs), outputs(model, inputs)) > 1e-3


def test_the_document_counts_outcomes():
    rows = [Row("a", TOOLS[0], "exact", 0.5, 1e-16, 0.9), Row("b", TOOLS[0], "wrong", 0.5, 0.1)]
    assert f"| {TOOLS[0]} | 2 | 1 | 1 | 0 | 0 | 0 | 0 | 1.0 |" in text(rows, "command")
