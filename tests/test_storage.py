"""Saving and loading: data only, checked, atomic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import fx, nn

from fxprune import storage
from fxprune.errors import InputError, PlanMismatch
from fxprune.optimize import apply, optimize
from fxprune.plan import Plan
from fxprune.storage import load, read, save

PLAN = Plan({"0.weight[0]": (0, 2, 3)}, {"0.weight[0]": 5}, {"torch": "2.15.0"})
X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def dense_net(width: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 3)
    )


def slim_net(dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """A traced module of the slim width, carrying the plan: what `apply` gives, in short."""
    torch.manual_seed(0)
    module = fx.symbolic_trace(dense_net(width=3).to(dtype))
    module.meta["fxprune"] = {"plan": PLAN, "report": None}
    return module


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "slim.safetensors"
    save(slim_net(), path)
    return path


def rewrite(path: Path, change: dict[str, object], checksum: bool = True) -> None:
    """Change the manifest, with a checksum that is right for it unless told otherwise."""
    with safe_open(path, "pt") as file:
        digest, _, text = file.metadata()["fxprune"].partition("\n")
    tensors = load_file(path)
    text = json.dumps({**json.loads(text), **change})
    if checksum:
        digest = storage._checksum(text, tensors)
    save_file(tensors, path, metadata={"fxprune": f"{digest}\n{text}"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_read_is_what_was_saved_bitwise(tmp_path, dtype):
    slim = slim_net(dtype)
    save(slim, tmp_path / "slim")
    found = read(tmp_path / "slim")
    assert found.plan == PLAN
    assert found.report is None
    assert found.state.keys() == slim.state_dict().keys()
    assert all(torch.equal(found.state[k], v) for k, v in slim.state_dict().items())


def test_loading_replays_the_plan_and_brings_the_weights_back(tmp_path):
    torch.manual_seed(1)
    slim = apply(dense_net(), PLAN, X).train()
    slim(X)  # moves the batch norm's statistics
    save(slim, tmp_path / "slim")
    model = dense_net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loaded = load(tmp_path / "slim", model, X)
    assert torch.equal(loaded.eval()(X), slim.eval()(X))
    assert loaded.meta["fxprune"] == {"plan": PLAN, "report": None}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_saving_changes_nothing_in_the_module(tmp_path):
    slim = slim_net()
    before = {k: v.clone() for k, v in slim.state_dict().items()}
    save(slim, tmp_path / "slim")
    assert all(torch.equal(before[k], v) for k, v in slim.state_dict().items())


def test_tied_weights_are_stored_once_and_come_back_under_both_names(tmp_path):
    slim = slim_net()
    slim.register_buffer("again", slim.get_parameter("0.weight").detach())
    save(slim, tmp_path / "slim")
    assert len({"again", "0.weight"} & load_file(tmp_path / "slim").keys()) == 1
    state = read(tmp_path / "slim").state
    assert torch.equal(state["again"], state["0.weight"])


def test_overlapping_and_strided_tensors_are_stored_whole(tmp_path):
    slim, base = slim_net(), torch.arange(12.0)
    slim.register_buffer("head", base[:8])
    slim.register_buffer("tail", base[4:])
    slim.register_buffer("columns", base.view(3, 4).t())
    slim.register_buffer("image", torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
    save(slim, tmp_path / "slim")
    state = read(tmp_path / "slim").state
    for name in ("head", "tail", "columns", "image"):
        assert torch.equal(state[name], slim.get_buffer(name)), name


def test_the_weights_open_with_plain_safetensors(saved):
    assert torch.equal(load_file(saved)["0.weight"], slim_net().get_parameter("0.weight"))


def test_a_saved_file_has_the_permissions_of_any_new_file(saved, tmp_path):
    (tmp_path / "new").touch()
    assert saved.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_the_same_module_gives_the_same_bytes(saved, tmp_path):
    save(slim_net(), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_a_module_without_a_plan_is_refused(tmp_path):
    with pytest.raises(InputError, match="carries no plan"):
        save(fx.symbolic_trace(nn.Linear(2, 2)), tmp_path / "slim")
    assert list(tmp_path.iterdir()) == []


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Odd(nn.Module):
        def get_extra_state(self) -> object:
            return "anything"

    slim = slim_net()
    slim.add_module("odd", Odd())
    with pytest.raises(InputError, match=r"'odd\._extra_state' is a str, not a tensor"):
        save(slim, tmp_path / "slim")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        save(slim_net(), tmp_path / "nowhere" / "slim")


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr("fxprune.storage.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save(slim_net(), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent' cannot be loaded: there is no such file"):
        read(tmp_path / "absent")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        read(tmp_path)


def test_a_file_cut_off_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), 37):
        saved.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be loaded"):
            read(saved)


def test_a_flipped_bit_anywhere_is_noticed(saved):
    whole = saved.read_bytes()
    original = read(saved)
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        saved.write_bytes(damaged)
        try:
            found = read(saved)
        except InputError:
            continue
        # A flip in the padding of the header is no damage, if all that is read is the same.
        assert found.plan == original.plan, position
        assert found.state.keys() == original.state.keys(), position
        assert all(torch.equal(found.state[k], v) for k, v in original.state.items()), position


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95", b"{}", b"\xff" * 64])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        read(path)


def test_safetensors_of_others_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(InputError, match=r"not written by fxprune\.save"):
        read(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "its layout is 2; this fxprune reads 1"),
        ({"plan": {"kept": {"a": [5]}, "sizes": {"a": 2}}}, r"kept\.a\[0\]"),
        ({"report": {}}, r"report\.dense: is missing"),
        ({"aliases": {"x": "absent"}}, r"aliases\.x"),
        ({"aliases": {"0.weight": "0.bias"}}, r"aliases\.0\.weight"),
        ({"surprise": 1}, "surprise: is not a known field"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_with_its_path(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        read(saved)


def test_a_manifest_that_was_edited_is_noticed(saved):
    rewrite(saved, {"versions": {}}, checksum=False)
    with pytest.raises(InputError, match="checksum is wrong"):
        read(saved)


def test_another_width_is_refused(saved):
    with pytest.raises(PlanMismatch, match=r"'0\.weight\[0\]' has 6 positions in the model but 5"):
        load(saved, dense_net(width=6), X)


def test_another_architecture_around_the_same_groups_is_refused(saved):
    model = dense_net()
    model[3] = nn.Conv2d(5, 4, 3)
    with pytest.raises(PlanMismatch, match=r"'3\.bias' is float32\[4\] in the model but .*\[2\]"):
        load(saved, model, X)


def test_state_that_only_the_model_has_is_named(saved):
    model = dense_net()
    model[3] = nn.Sequential(nn.Conv2d(5, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(PlanMismatch, match=r"'3\.0\.bias' is in the model only"):
        load(saved, model, X)


def test_another_dtype_is_refused_rather_than_cast(saved):
    with pytest.raises(PlanMismatch, match=r"float64\[3\] in the model but float32\[3\]"):
        load(saved, dense_net().double(), X.double())


def test_nothing_is_executed_or_unpickled_while_reading(saved):
    script = """
import sys
from fxprune.storage import read
read(sys.argv[1])  # imports what it needs
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event))
read(sys.argv[1])
bad = {"exec", "compile", "import", "pickle.find_class", "os.system", "subprocess.Popen"}
print(sorted(bad & set(seen)), "open" in seen or len(seen))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[] "), done.stdout


class Shuffled(nn.Module):
    """Channels in an order that is drawn anew for every instance, and kept in the state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(5, 2, 3)
        self.register_buffer("order", torch.randperm(8)[:5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x)[:, self.order])


def test_an_order_that_is_drawn_at_random_is_that_of_the_file(tmp_path):
    slim = optimize(Shuffled(0).eval(), "50% params", (X,), importance="magnitude")
    save(slim, tmp_path / "slim.safetensors")
    other = Shuffled(1).eval()
    order = other.order.clone()
    again = load(tmp_path / "slim.safetensors", other, (X,))
    assert torch.equal(again(X), slim(X))
    assert torch.equal(other.order, order)


def test_a_plan_is_not_applied_to_a_model_with_another_order():
    plan = optimize(Shuffled(0).eval(), "50% params", (X,), importance="magnitude").meta["fxprune"]
    apply(Shuffled(0).eval(), plan["plan"], (X,))
    with pytest.raises(PlanMismatch, match="'order' holds other numbers"):
        apply(Shuffled(1).eval(), plan["plan"], (X,))
