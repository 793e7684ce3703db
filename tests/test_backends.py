"""The deployment compilers behind their one protocol."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.backends import (
    Backend,
    Engine,
    Region,
    Settings,
    available,
    backends,
    exporting,
    get_backend,
    inductor_kernels,
)
from fxprune.backends.base import missing
from fxprune.backends.modules import adapted, deployable
from fxprune.backends.profiles import OVERHEAD
from fxprune.backends.region import ACTIVATIONS
from fxprune.backends.signature import Signature
from fxprune.backends.torch_tensorrt import refuse_fall_back
from fxprune.errors import BackendError, BackendUnavailable, InputError
from fxprune.measure import Timing, measure
from tests.linear_networks import lively

ONNX_BACKENDS = ["onnxruntime", "openvino"]
CPU_BACKENDS = ["eager", *ONNX_BACKENDS, "inductor"]
INPUTS = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)


class Net(nn.Module):
    """A residual network with what compilers fuse: norms, activations and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.conv(x) + x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        net(torch.randn(8, 3, 16, 16) + 1)  # statistics that differ from those of one input
        return net.eval()


@pytest.fixture(scope="module")
def engines(net: Net) -> dict[str, Engine]:
    """One engine per backend that can run here, compiled once since inductor takes seconds."""
    return {name: get_backend(name).compile(net, INPUTS) for name in CPU_BACKENDS if runs(name)}


@pytest.fixture
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    if request.param not in engines:
        pytest.skip(f"{request.param} cannot run here")
    return engines[request.param]


def runs(name: str) -> bool:
    return backends()[name].unavailable() is None


def needs(name: str) -> Backend:
    if not runs(name):
        pytest.skip(f"{name} cannot run here")
    return get_backend(name)


every_engine = pytest.mark.parametrize("engine", CPU_BACKENDS, indirect=True)
every_onnx_backend = pytest.mark.parametrize("name", ONNX_BACKENDS)


@every_engine
def test_an_engine_gives_what_the_module_gives(engine: Engine, net: Net) -> None:
    with torch.no_grad():
        torch.testing.assert_close(engine(*INPUTS), net(*INPUTS), rtol=1e-4, atol=1e-5)


@every_engine
def test_the_runner_that_is_timed_takes_the_same_inputs(engine: Engine) -> None:
    run = engine.runner(*INPUTS)
    run()
    with pytest.raises(InputError, match="shape"):
        engine.runner(torch.randn(1, 3, 8, 8))


@every_engine
def test_inputs_that_do_not_fit_are_refused_with_what_was_compiled_for(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"\(2, 3, 16, 16\), compiled for \(1, 3, 16, 16\)"):
        engine(torch.randn(2, 3, 16, 16))
    with pytest.raises(InputError, match="float64"):
        engine(INPUTS[0].double())
    with pytest.raises(InputError, match="1 inputs expected, 2 given"):
        engine(*INPUTS, *INPUTS)


@pytest.mark.parametrize("engine", [*ONNX_BACKENDS, "inductor"], indirect=True)
def test_a_saved_engine_gives_the_same_after_loading(
    engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "engine"
    engine.save(path)
    loaded = get_backend(engine.name).load(path)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(loaded(*INPUTS), engine(*INPUTS))
    assert (loaded.settings, loaded.signature) == (engine.settings, engine.signature)
    assert [file.name for file in tmp_path.iterdir()] == ["engine"]


def test_what_openvino_has_compiled_is_set_up_again_without_compiling(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = needs("openvino")
    engine = openvino.compile(net, INPUTS)
    monkeypatch.setattr("fxprune.backends.openvino._compiled", None)
    copier = openvino.copier(engine)
    assert copier is not None
    for copy in (copier(), copier()):
        assert copy is not engine
        torch.testing.assert_close(copy(*INPUTS), engine(*INPUTS))


def test_eager_has_no_artefact_and_says_so(engines: dict[str, Engine], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"fxprune\.save"):
        engines["eager"].save(tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


@every_onnx_backend
def test_a_foreign_file_is_not_loaded(name: str, tmp_path: Path) -> None:
    backend = needs(name)
    path = tmp_path / "engine.onnx"
    with pytest.raises(InputError, match="no file"):
        backend.load(path)
    path.write_bytes(b"\xffnothing")
    with pytest.raises(BackendError, match=r"engine\.onnx"):
        backend.load(path)


@every_onnx_backend
def test_an_artefact_tells_no_paths_of_this_machine(
    name: str, engines: dict[str, Engine], tmp_path: Path
) -> None:
    needs(name)
    engines[name].save(tmp_path / "engine.onnx")
    data = (tmp_path / "engine.onnx").read_bytes()
    assert b"site-packages" not in data
    assert str(Path.cwd()).encode() not in data


@every_onnx_backend
def test_compiling_prints_nothing(name: str, net: Net, capfd: pytest.CaptureFixture[str]) -> None:
    needs(name).compile(net, INPUTS)(*INPUTS)
    assert capfd.readouterr() == ("", "")


def test_compiling_leaves_the_module_as_it_was() -> None:
    module = Net().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    get_backend("eager").compile(module, INPUTS)(*INPUTS)
    get_backend("onnxruntime").compile(module, INPUTS)(*INPUTS)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@every_onnx_backend
def test_a_range_of_batches_is_accepted_and_nothing_outside_of_it(name: str, net: Net) -> None:
    engine = needs(name).compile(net, INPUTS, Settings(batch_range=(1, 4)))
    for batch in (1, 2, 4):
        x = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(engine(x), net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"1\.\.4"):
        engine(torch.randn(5, 3, 16, 16))


def test_a_module_that_fixes_its_batch_cannot_have_a_range_of_batches() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 8) * 2

    with pytest.raises(InputError, match="fixes its batch"):
        get_backend("onnxruntime").compile(
            Fixed(), (torch.randn(2, 8),), Settings(batch_range=(1, 4))
        )


class Several(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, x * y


class Named(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": x + y, "product": x * y}


@pytest.mark.parametrize("name", ["eager", *ONNX_BACKENDS])
def test_tuples_and_dicts_of_outputs_keep_their_structure(name: str) -> None:
    backend = needs(name)
    inputs = (torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0]))
    total, product = backend.compile(Several(), inputs)(*inputs)
    named = backend.compile(Named(), inputs)(*inputs)
    assert total.tolist() == [7.0, 10.0]
    assert product.tolist() == [10.0, 21.0]
    assert {key: value.tolist() for key, value in named.items()} == {
        "sum": [7.0, 10.0],
        "product": [10.0, 21.0],
    }


@pytest.mark.parametrize("name", ["eager", *ONNX_BACKENDS])
def test_one_tensor_given_as_two_examples_stands_for_two_inputs(name: str) -> None:
    x, y = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    total, product = needs(name).compile(Several(), (x, x))(x, y)
    assert (total.tolist(), product.tolist()) == ([7.0, 10.0], [10.0, 21.0])


@pytest.mark.parametrize("name", ["eager", *ONNX_BACKENDS])
def test_an_input_that_nothing_depends_on_is_taken_all_the_same(name: str) -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return y * 2

    x, y = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    engine = needs(name).compile(Deaf(), (x, x))
    assert engine(x, y).tolist() == [10.0, 14.0]
    engine.runner(x, y)()


def test_a_convolution_in_three_dimensions_without_bias_runs_on_onnxruntime() -> None:
    module = nn.Conv3d(2, 4, 3, bias=False).eval()
    x = torch.randn(1, 2, 5, 5, 5)
    engine = get_backend("onnxruntime").compile(module, (x,))
    assert module.bias is None
    with torch.no_grad():
        torch.testing.assert_close(engine(x), module(x), rtol=1e-4, atol=1e-5)


def unsuitable() -> Iterator[tuple[str, Any]]:
    yield "already compiled", lambda: torch.compile(nn.Linear(2, 2))
    in_place = nn.Linear(2, 2)
    in_place.compile()
    yield "already compiled", lambda: nn.Sequential(in_place)
    yield "parallel training", lambda: nn.DataParallel(nn.Linear(2, 2))
    yield "not initialised", lambda: nn.LazyLinear(2)
    yield "not builtin_function", lambda: torch.relu


@pytest.mark.parametrize(("words", "make"), list(unsuitable()))
def test_what_cannot_be_compiled_is_refused_by_name(words: str, make: Any) -> None:
    with pytest.raises(InputError, match=words):
        get_backend("eager").compile(make(), (torch.randn(1, 2),))


def test_a_quantised_module_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that these tensors will go
        scales = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("scales", scales)
    with pytest.raises(InputError, match="quantised"):
        get_backend("eager").compile(module, (torch.randn(1, 2),))


def test_a_scripted_module_is_refused() -> None:
    class Scripted(torch.jit.ScriptModule):
        pass

    with pytest.raises(InputError, match="TorchScript"):
        get_backend("eager").compile(Scripted(), (torch.randn(1, 2),))


def test_example_inputs_that_the_module_cannot_take_are_refused(net: Net) -> None:
    with pytest.raises(InputError, match=r"fails on the example inputs.*\(1, 4, 16, 16\)"):
        get_backend("eager").compile(net, (torch.randn(1, 4, 16, 16),))
    with pytest.raises(InputError, match="tuple of tensors"):
        get_backend("eager").compile(net, INPUTS[0])  # type: ignore[arg-type]


def test_outputs_that_are_no_tensors_are_refused() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(x, x)]

    with pytest.raises(InputError, match="not tensors"):
        get_backend("eager").compile(Nested(), INPUTS)


def test_what_the_compiler_raises_becomes_an_error_of_ours_with_its_cause() -> None:
    class DataDependent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(BackendError, match="onnxruntime") as caught:
        get_backend("onnxruntime").compile(DataDependent(), (torch.ones(2),))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_computes_coarsely_and_keeps_the_dtypes_outside(
    precision: Any, net: Net
) -> None:
    engine = get_backend("eager").compile(net, INPUTS, Settings(precision=precision))
    with torch.no_grad():
        error = (engine(*INPUTS) - net(*INPUTS)).abs().max().item()
    assert engine(*INPUTS).dtype == torch.float32
    assert 1e-6 < error < 2e-2


def test_half_precision_is_exported_in_evaluation_mode_with_its_nodes_known(net: Net) -> None:
    settings = Settings(precision="bf16", batch_range=(1, 4))
    signature = Signature.of(net, INPUTS, settings)
    copy = deployable(fx.symbolic_trace(net), INPUTS)
    program = exporting.export(adapted(copy, settings), INPUTS, signature)
    with torch.no_grad():
        error = (program.module()(*INPUTS) - net(*INPUTS)).abs().max().item()
    assert error < 5e-2
    stacks = [node.meta.get("nn_module_stack", {}) for node in program.graph.nodes]
    found = {exporting.node_of([path for path, _ in stack.values()]) for stack in stacks}
    assert {"stem", "norm", "conv", "add", "relu_1", "head"} <= found


def test_openvino_computes_in_full_precision_unless_asked_otherwise(net: Net) -> None:
    backend = needs("openvino")
    with torch.no_grad():
        expected = net(*INPUTS)
    full = backend.compile(net, INPUTS)
    assert (full(*INPUTS) - expected).abs().max().item() < 1e-5
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(BackendError, match="choose precision fp32"):
            backend.compile(net, INPUTS, Settings(precision="bf16"))
        return
    half = backend.compile(net, INPUTS, Settings(precision="bf16"))
    assert 1e-5 < (half(*INPUTS) - expected).abs().max().item() < 5e-2


def test_channels_last_changes_the_layout_but_not_the_values(net: Net) -> None:
    engine = get_backend("eager").compile(net, INPUTS, Settings(channels_last=True))
    with torch.no_grad():
        torch.testing.assert_close(engine(*INPUTS), net(*INPUTS), rtol=1e-4, atol=1e-5)


def test_settings_that_a_backend_does_not_have_are_refused(net: Net) -> None:
    backend = get_backend("onnxruntime")
    with pytest.raises(InputError, match="choose from fp32"):
        backend.compile(net, INPUTS, Settings(precision="fp16"))
    with pytest.raises(InputError, match="channels_last"):
        backend.compile(net, INPUTS, Settings(channels_last=True))


def test_settings_are_checked_when_they_are_made() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Settings(threads=0)
    with pytest.raises(InputError, match="int8"):
        Settings(precision="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(4, 2\)"):
        Settings(batch_range=(4, 2))


def test_settings_survive_json() -> None:
    settings = Settings("bf16", 3, channels_last=True, batch_range=(1, 8), cuda_graphs=True)
    assert Settings.from_json(settings.to_json()) == settings


def test_double_precision_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"float64 .* \.float\(\)"):
        get_backend("eager").compile(nn.Linear(2, 2).double(), (torch.randn(1, 2).double(),))


def test_running_an_engine_leaves_the_thread_count_as_it_was(net: Net) -> None:
    before = torch.get_num_threads()
    get_backend("eager").compile(net, INPUTS, Settings(threads=before + 1))(*INPUTS)
    assert torch.get_num_threads() == before


def test_the_default_on_a_cpu_is_onnxruntime() -> None:
    assert get_backend("auto").name == "onnxruntime"
    assert get_backend().name == "onnxruntime"


@pytest.mark.parametrize(
    ("device_type", "order"),
    [
        ("cpu", ["onnxruntime", "openvino", "inductor", "eager"]),
        ("cuda", ["torch_tensorrt", "tensorrt", "inductor", "eager"]),
        ("mps", ["eager"]),
    ],
)
def test_the_default_is_the_best_that_can_run(
    device_type: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = backends()
    for backend in known.values():
        monkeypatch.setattr(type(backend), "unavailable", lambda self: None)
    found = []
    for _ in order:
        found.append(get_backend("auto", device_type).name)
        monkeypatch.setattr(type(known[found[-1]]), "unavailable", lambda self: "not here")
    assert found == order


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'xnnpack'.*eager, inductor, onnxruntime, openvino"):
        get_backend("xnnpack")


class Absent(Backend):
    name = "absent"

    def unavailable(self) -> str | None:
        return "the package 'absent' is not installed; run: pip install absent"

    def version(self) -> str:
        return "0"

    def build(self, *arguments: Any) -> Engine:
        raise NotImplementedError

    def restore(self, path: Path) -> Engine:
        raise NotImplementedError


def test_a_backend_of_ones_own_is_taken_and_one_that_is_absent_says_how_to_get_it() -> None:
    with pytest.raises(BackendUnavailable, match=r"'absent'.*pip install absent") as caught:
        get_backend(Absent())
    assert caught.value.backend == "absent"
    eager = get_backend("eager")
    assert get_backend(eager) is eager


def partitioned(*kinds: str) -> fx.GraphModule:
    """A graph that calls one child after the other, of classes with these names."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    children = nn.Module()
    for index, kind in enumerate(kinds):
        children.add_module(f"part_{index}", type(kind, (nn.Identity,), {})())
        value = graph.call_module(f"part_{index}", (value,))
    graph.output(value)
    return fx.GraphModule(children, graph)


def test_torch_tensorrt_may_leave_nothing_to_pytorch() -> None:
    refuse_fall_back(partitioned("TorchTensorRTModule"))
    with pytest.raises(BackendError, match="part_1"):
        refuse_fall_back(partitioned("TorchTensorRTModule", "GraphModule"))
    with pytest.raises(BackendError, match="left operators to PyTorch"):
        refuse_fall_back(fx.symbolic_trace(nn.ReLU()))
    with pytest.raises(BackendError, match="all of them"):
        refuse_fall_back(partitioned())


@pytest.mark.parametrize("name", ["tensorrt", "torch_tensorrt"])
def test_an_absent_tensorrt_says_how_to_get_it(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(BackendUnavailable, match=r"pip install 'fxprune\[tensorrt\]'"):
        get_backend(name)


def test_available_lists_every_backend_with_its_version_or_the_reason() -> None:
    rows = {row.name: row for row in available()}
    assert {*CPU_BACKENDS, "tensorrt", "torch_tensorrt"} <= set(rows)
    assert rows["eager"].version == f"torch {torch.__version__}"
    assert all((row.version is None) == (row.reason is not None) for row in rows.values())


@every_onnx_backend
def test_a_profile_tells_the_seconds_of_the_nodes_of_a_captured_graph(name: str, net: Net) -> None:
    backend = needs(name)
    captured = fx.symbolic_trace(net)
    inputs = (torch.randn(1, 3, 96, 96),)
    seconds = backend.profile(backend.compile(captured, inputs), inputs)
    assert seconds is not None
    assert all(0 < value < 1 for value in seconds.values())
    named = {key for key in seconds if not key.startswith("[")}
    assert named <= {node.name for node in captured.graph.nodes}
    assert named & {"stem", "norm", "relu"}
    assert named & {"conv", "add", "relu_1"}
    kernels = sum(seconds.values()) - seconds.get(OVERHEAD, 0.0)
    assert sum(seconds[key] for key in named) > 0.5 * kernels


def test_what_an_engine_raises_while_it_is_measured_becomes_an_error_of_ours() -> None:
    class Full(nn.Module):
        full = False

        def forward(self, x):
            if self.full:
                raise torch.OutOfMemoryError("out of memory, tried to allocate 4 GiB\nmore")
            return x + 1

    engine = get_backend("eager").compile(Full(), INPUTS)
    Full.full = True
    with pytest.raises(BackendError, match=r"4 GiB\. backend eager\. .*smaller batch"):
        measure(engine, INPUTS)


def test_inductor_writes_loops_for_the_threads_that_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = needs("inductor")
    compiled_with = []

    def stop(*_: object, **__: object) -> None:
        compiled_with.append(torch.get_num_threads())
        raise RuntimeError("far enough")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", stop)
    before = torch.get_num_threads()
    with pytest.raises(BackendError, match="far enough"):
        backend.compile(nn.ReLU(), INPUTS, Settings(threads=before + 1))
    assert compiled_with == [before + 1]
    assert torch.get_num_threads() == before


def test_examples_outside_of_the_range_of_batches_are_refused() -> None:
    x = torch.randn(16, 4)
    with pytest.raises(InputError, match=r"batch of 16 lies outside of batch_range 1\.\.8"):
        get_backend("eager").compile(nn.Linear(4, 2), (x,), Settings(batch_range=(1, 8)))


def test_a_package_that_cannot_be_imported_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_installed.py").write_text("raise OSError('no libhalf.so')")
    monkeypatch.syspath_prepend(tmp_path)
    told = missing("half_installed", "pip install half")
    assert told == (
        "the package 'half_installed' cannot be imported (no libhalf.so); run: pip install half"
    )


def test_a_profile_knows_the_kernels_that_hardswish_is_made_of() -> None:
    backend = get_backend("onnxruntime")
    captured = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish()).eval())
    seconds = backend.profile(backend.compile(captured, INPUTS), INPUTS)
    assert seconds is not None
    assert {key for key in seconds if "Reorder" not in key} == {"_0", "_1"}


class _Normalised(nn.Module):
    """Normalises what it copies first, and has layers that are fused in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.linear = nn.Linear(64, 64)
        self.linear_1 = nn.Linear(64, 64)
        self.stem = nn.Conv2d(64, 64, 1)
        self.batch_norm = nn.BatchNorm2d(64)
        self.convolution = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.linear(y[:, 0, 0]) + F.relu(self.linear_1(y[:, 1, 1]))
        x = self.batch_norm(F.relu(self.stem(x)))
        return self.convolution(F.relu(x)) + y[:, :, None, None]


@every_onnx_backend
def test_a_profile_counts_every_kernel_once_and_finds_its_node(name: str) -> None:
    backend = needs(name)
    captured = fx.symbolic_trace(_Normalised().eval())
    inputs = (torch.randn(1, 64, 48, 48),)
    seconds = backend.profile(backend.compile(captured, inputs), inputs)
    assert seconds is not None
    unnumbered = [re.sub(r"\d+", "", kernel) for kernel in seconds if kernel.startswith("[")]
    generated = [kernel for kernel in unnumbered if "Reorder" not in kernel]
    assert len(generated) == len(set(generated))
    assert {"linear", "convolution"} <= seconds.keys()
    assert not [kernel for kernel in generated if "_bn" in kernel or "Gemm" in kernel]


@every_onnx_backend
def test_batch_norms_are_folded_before_a_graph_is_exported(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = needs(name)
    exported: list[set[str]] = []
    export = exporting.export

    def spy(module: nn.Module, *rest: Any) -> torch.export.ExportedProgram:
        exported.append({type(child).__name__ for child in module.modules()})
        return export(module, *rest)

    monkeypatch.setattr(exporting, "export", spy)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    captured = fx.symbolic_trace(lively(net).float())
    inputs = (torch.randn(1, 3, 32, 32),)
    engine = backend.compile(captured, inputs)
    assert [kinds & {"Conv2d", "BatchNorm2d"} for kinds in exported] == [{"Conv2d"}]
    torch.testing.assert_close(engine(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)
    assert type(captured.get_submodule("1")) is nn.BatchNorm2d


def test_openvino_tells_what_a_call_takes_besides_its_kernels() -> None:
    backend = needs("openvino")
    module, inputs = nn.Conv2d(3, 8, 3), (torch.randn(1, 3, 8, 8),)
    engine = backend.compile(module, inputs)
    told = backend.profile(engine, inputs)
    assert told is not None
    whole = measure(engine, inputs, Timing(tolerance=0.05)).seconds
    assert 0 < told[OVERHEAD] < 3 * whole
    # Of a network that is as small as this, it is most of it.
    assert told[OVERHEAD] > sum(told.values()) / 2


@every_onnx_backend
def test_a_region_in_a_network_is_told_apart_from_the_changes_of_layout_around_it(
    name: str,
) -> None:
    backend = needs(name)
    region = Region("conv", 1, 64, 64, spatial=(14, 14), kernel=(1, 1), residual=True)
    told = backend.region_seconds([region, region.with_widths(128, 128)])
    assert told is not None
    alone = measure(backend.compile_region(region), region.inputs(), Timing(tolerance=0.05))
    assert 0.1 * alone.seconds < told[0] < 0.9 * alone.seconds
    assert told[1] > 2 * told[0]


def test_what_a_compiler_raises_while_a_kernel_is_timed_becomes_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fxprune.backends.onnxruntime_log import LoggedSession

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LoggedSession, "logged", fail)
    linear = Region("linear", 1, 8, 8)
    for some, named in ([linear], r"linear .* bias"), ([linear] * 3, r"linear .* and 2 others"):
        with pytest.raises(BackendError, match=f"cannot time the region {named}: out of memory"):
            get_backend("onnxruntime").region_seconds(some)


def test_a_residual_is_added_within_the_convolution_as_in_a_network() -> None:
    backend = get_backend("onnxruntime")
    region = Region("conv", 1, 16, 16, spatial=(8, 8), kernel=(1, 1), residual=True)
    seconds = backend.profile(backend.compile_region(region), region.inputs())
    assert seconds is not None
    if not any("Reorder" in key for key in seconds):
        pytest.skip("ONNX Runtime has no blocked layout for this kind of CPU")
    kernels = {key for key in seconds if "Reorder" not in key}
    assert kernels == {"[x.Conv]", "[pool.residual]"}


def test_a_backend_that_cannot_tell_says_so() -> None:
    region = Region("linear", 1, 8, 8)
    assert get_backend("eager").region_seconds([region]) is None


def regions() -> Iterator[Region]:
    for operator, dims in itertools.product(("conv", "conv_transpose"), (1, 2, 3)):
        yield Region(
            operator,  # type: ignore[arg-type]
            batch=2,
            in_width=8,
            out_width=12,
            groups=2,
            spatial=(7,) * dims,
            kernel=(3,) * dims,
            stride=(2,) * dims,
            padding=(1,) * dims,
            bias=dims != 2,
            output_padding=(1,) * dims if operator == "conv_transpose" else (),
        )
    for activation, residual in itertools.product((None, *ACTIVATIONS), (False, True)):
        ending = {"activation": activation, "residual": residual}
        yield Region("conv", 1, 4, 4, 4, (5, 5), (3, 3), **ending)  # type: ignore[arg-type]
        yield Region("linear", 1, 4, 8, spatial=(3,), **ending)  # type: ignore[arg-type]
    for residual in (False, True):
        yield Region("conv_transpose", 1, 4, 8, 1, (5, 5), (3, 3), residual=residual)
    for spatial, bias in itertools.product(((), (5,)), (True, False)):
        yield Region("linear", 2, 8, 12, spatial=spatial, bias=bias, activation="gelu")


@every_onnx_backend
def test_every_kind_of_region_is_told_among_the_others(name: str) -> None:
    told = needs(name).region_seconds(list(regions()))
    assert told is not None
    assert len(told) == len(list(regions()))


@pytest.mark.parametrize("name", [*ONNX_BACKENDS, "inductor"])
@pytest.mark.parametrize("region", list(regions()), ids=Region.signature)
def test_a_region_written_directly_is_the_region_in_pytorch(name: str, region: Region) -> None:
    backend = needs(name)
    module, inputs = region.as_module()
    with torch.no_grad():
        expected = module(*inputs)
    assert tuple(expected.shape) == region.out_shape
    actual = backend.compile_region(region)(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_inductor_calls_the_kernel_of_a_region_with_its_inputs_laid_out() -> None:
    engine = needs("inductor").compile_region(Region("conv", 1, 8, 8, 1, (5, 5), (3, 3)))
    x = torch.randn(1, 8, 5, 5)
    called = engine.runner(x)()
    assert isinstance(called, Tensor)
    assert called.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(engine(x), called)
    with pytest.raises(BackendError, match="no artefact"):
        engine.save("engine")


def test_bias_residual_and_activation_follow_a_kernel_in_one_loop() -> None:
    """As on CUDA, where inductor's code has no kernel that takes them."""
    needs("inductor")
    region = Region("conv", 1, 4, 8, 1, (5, 5), (3, 3), residual=True, activation="relu")
    module, inputs = region.as_module()
    weight, bias = (None if a is None else torch.from_numpy(a) for a in region.weights())
    assert weight is not None
    with torch.no_grad():
        expected = module(*inputs)
        actual = inductor_kernels.with_loop(region, weight, bias)(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_loops_are_compiled_for_as_many_kinds_of_tensors_as_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The compiler's front end alone, which keeps the count.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    inductor_kernels._loop.cache_clear()
    loop = inductor_kernels._loop("relu")
    inductor_kernels._loop.cache_clear()
    for dtype, rank in itertools.product((torch.float32, torch.float16), range(1, 8)):
        tensors = [torch.randn((2,) * rank).to(dtype) for _ in range(2)]
        torch.testing.assert_close(loop(*tensors), torch.relu(sum(tensors)))


def test_a_region_draws_nothing_from_the_random_generator() -> None:
    before = torch.get_rng_state()
    Region("conv", 1, 4, 4, spatial=(5, 5), kernel=(3, 3)).as_module()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_signature_of_a_region_tells_all_of_it() -> None:
    region = Region("conv", 1, 8, 8, spatial=(9, 9), kernel=(3, 3))
    changes: dict[str, Any] = {
        "operator": "conv_transpose",
        "batch": 2,
        "in_width": 16,
        "out_width": 16,
        "groups": 2,
        "spatial": (9, 10),
        "kernel": (3, 1),
        "stride": (1, 2),
        "padding": (0, 1),
        "dilation": (2, 1),
        "output_padding": (1, 0),
        "bias": False,
        "activation": "relu",
        "residual": True,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Region)}
    variants = [dataclasses.replace(region, **{name: new}) for name, new in changes.items()]
    assert len({variant.signature() for variant in (region, *variants)}) == 15


def test_defaults_and_their_explicit_form_are_the_same_region() -> None:
    short = Region("conv", 1, 8, 8, spatial=(9, 9), kernel=(3, 3))
    long = dataclasses.replace(short, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    assert short == long
    assert short.signature() == long.signature()


def test_macs_of_regions() -> None:
    conv = Region("conv", 2, 64, 128, 4, (56, 56), (3, 3), (2, 2), (1, 1))
    assert conv.out_shape == (2, 128, 28, 28)
    assert conv.macs() == 2 * 28 * 28 * 16 * 128 * 9
    transposed = Region("conv_transpose", 1, 8, 4, spatial=(7,), kernel=(2,), stride=(2,))
    assert transposed.out_shape == (1, 4, 14)
    assert transposed.macs() == 7 * 8 * 4 * 2
    assert Region("linear", 2, 768, 3072, spatial=(197,)).macs() == 2 * 197 * 768 * 3072


def test_other_widths_of_a_region_keep_everything_else() -> None:
    region = Region("conv", 1, 8, 8, 8, (9, 9), (3, 3), activation="relu")
    slim = region.with_widths(6, 6, groups=6)
    assert (slim.in_width, slim.out_width, slim.groups) == (6, 6, 6)
    assert dataclasses.replace(slim, in_width=8, out_width=8, groups=8) == region


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("not divisible by 3", {"groups": 3}),
        ("positive", {"in_width": 0}),
        ("larger than the padded input", {"spatial": (2, 2)}),
        ("activation 'swiglu'", {"activation": "swiglu"}),
        ("stride needs 2 values", {"stride": (1,)}),
        ("1, 2 or 3 kernel", {"kernel": ()}),
    ],
)
def test_a_region_that_is_no_layer_is_refused(words: str, wrong: dict[str, Any]) -> None:
    right = Region("conv", 1, 8, 8, spatial=(9, 9), kernel=(3, 3))
    with pytest.raises(InputError, match=words):
        dataclasses.replace(right, **wrong)
