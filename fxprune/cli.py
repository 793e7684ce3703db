"""The `fxprune` command: a thin layer over the Python interface.

fxprune backends
fxprune analyze torchvision:resnet18 --input 1x3x224x224
fxprune optimize my_package.models:build --input 1x3x224x224 --budget "60% latency" --out slim/
fxprune table build torchvision:resnet18 --input 1x3x224x224 --backend tensorrt --device cuda
fxprune table export latencies.json
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fxprune.backends.settings import Settings
from fxprune.errors import FxpruneError, InputError

app = typer.Typer(
    help="Slim trained PyTorch networks to a latency budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
table_app = typer.Typer(help="Share measured latencies between machines.", no_args_is_help=True)
app.add_typer(table_app, name="table")

Spec = Annotated[
    str, typer.Argument(help='"torchvision:resnet18", or "package.module:factory" of your own.')
]
Inputs = Annotated[
    list[str], typer.Option("--input", help="Shape of an input, like 1x3x224x224; repeatable.")
]
Weights = Annotated[
    Path | None, typer.Option(help="safetensors file with the model's trained weights.")
]
Alignment = Annotated[
    int | None, typer.Option(help="Alignment of channel counts; if not given, the backend's.")
]
Device = Annotated[str, typer.Option(help='Where the model runs: "cpu" or "cuda".')]
Precision = Annotated[str, typer.Option(help='What engines compute in: "fp32", "fp16", "bf16".')]
Threads = Annotated[int, typer.Option(help="CPU threads of an engine.")]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Keep activations in NHWC, where that is free.")
]
CudaGraphs = Annotated[
    bool, typer.Option("--cuda-graphs", help="Measure one CUDA graph per inference.")
]


def main() -> None:
    """Run the command line; errors of fxprune print as one line and exit with code 2."""
    try:
        app()
    except FxpruneError as error:
        print(f"fxprune: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


@app.command()
def backends() -> None:
    """Show which backends can be used here, and how to install the others."""
    from fxprune.backends import available

    table = Table()
    for heading in ("backend", "available", "version, or how to get it"):
        table.add_column(heading, overflow="fold")
    for row in available():
        note = Text(row.reason or row.version or "")
        table.add_row(row.name, "no" if row.reason else "yes", note)
    Console().print(table)


@app.command()
def analyze(spec: Spec, input: Inputs) -> None:
    """Show which channels of a model can be slimmed together, and what is frozen and why."""
    import fxprune

    model, inputs = build(spec), examples(input)
    Console().print(fxprune.analyze(model, inputs))


@app.command()
def optimize(
    spec: Spec,
    input: Inputs,
    budget: Annotated[
        list[str], typer.Option(help='Like "60% latency" or "12 ms"; repeat it: all must hold.')
    ],
    out: Annotated[Path, typer.Option(help="Folder for the slim network and its report.")],
    weights: Weights = None,
    backend: Annotated[
        str, typer.Option(help='Where latency is measured; "tensorrt@Orin": on another machine.')
    ] = "auto",
    drop_blocks: Annotated[
        bool, typer.Option(help="Whether whole residual blocks may go as well.")
    ] = True,
    merge_layers: Annotated[
        bool, typer.Option(help="Whether layers may be merged; without data, a guess says which.")
    ] = False,
    multiple_of: Alignment = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Layer that keeps its width; repeatable.")
    ] = None,
    bound: Annotated[
        list[str] | None,
        typer.Option(help='Least and most that stays: "layer1.*=0.5:1.0", "conv1=16:64".'),
    ] = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    threads: Threads = 1,
    channels_last: ChannelsLast = False,
    cuda_graphs: CudaGraphs = False,
) -> None:
    """Slim a model to a budget, by the magnitude of its weights, and write it with its report."""
    import fxprune
    from fxprune.budget import parse
    from fxprune.files import write_text

    budgets = parse(budget)
    settings = _settings(precision, threads, channels_last, cuda_graphs)
    inputs = examples(input, device)
    model = build(spec, weights).to(device)
    slim = fxprune.optimize(
        model,
        budgets,
        inputs,
        backend=backend,
        settings=settings,
        importance="magnitude",
        drop_blocks=drop_blocks,
        merge_layers=merge_layers,
        multiple_of=multiple_of,
        ignore=ignore or (),
        bounds=dict(map(_bound, bound or ())),
    )
    report = fxprune.report(slim)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be made a folder: {error.strerror}") from error
    fxprune.save(slim, out / "slim.safetensors")
    write_text(out / "plan.json", slim.meta["fxprune"]["plan"].to_json())
    write_text(out / "report.json", report.to_json())
    write_text(out / "report.md", report.to_markdown())
    report.plot(out / "layers.png")
    report.print()
    Console().print(f"Written to {out}", markup=False)


@table_app.command("build")
def build_table(
    spec: Spec,
    input: Inputs,
    backend: Annotated[str, typer.Option(help="Where latency is measured.")] = "auto",
    multiple_of: Alignment = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    threads: Threads = 1,
    channels_last: ChannelsLast = False,
    cuda_graphs: CudaGraphs = False,
) -> None:
    """Measure all that slimming a model asks for, so that it can be slimmed on another machine.

    That is the model itself, its kernels, and a few slim versions of it.
    """
    from fxprune.cache import Cache
    from fxprune.prepare import Options, prepare
    from fxprune.progress import shown
    from fxprune.rehearse import rehearse

    options = Options(
        backend=backend,
        settings=_settings(precision, threads, channels_last, cuda_graphs),
        importance="magnitude",
        multiple_of=multiple_of,
        merge_layers=True,
    )
    inputs = examples(input, device)
    with shown(True) as tell:
        rehearse(prepare(build(spec).to(device), inputs, options, [None], tell), tell)
    with Cache() as cache:
        Console().print(f"{len(cache)} latencies in {cache.path}", markup=False)


@table_app.command("export")
def export_table(path: Path) -> None:
    """Write all latencies measured on this machine into a file."""
    from fxprune.cache import Cache

    with Cache() as cache:
        Console().print(f"{cache.export(path)} latencies written to {path}", markup=False)


@table_app.command("import")
def import_table(path: Path) -> None:
    """Add the latencies in a file to those known on this machine."""
    from fxprune.cache import Cache

    with Cache() as cache:
        Console().print(f"{cache.import_(path)} latencies read from {path}", markup=False)


def build(spec: str, weights: Path | None = None) -> nn.Module:
    """The model that a specification names, in eval mode.

    Raises:
        InputError: there is no such model, or the weights are not its own.
    """
    source, colon, name = spec.partition(":")
    if not (source and colon and name):
        raise InputError(
            f"{spec!r} does not name a model",
            fix='Write "torchvision:resnet18", or "package.module:factory".',
        )
    model = _torchvision_model(name) if source == "torchvision" else _own_model(source, name)
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec!r} gave {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def examples(shapes: list[str], device: str = "cpu") -> tuple[Tensor, ...]:
    """Random inputs, the same every time, for shapes written as 1x3x224x224.

    Raises:
        InputError: a shape does not parse, or there is no such device.
    """
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(
            f"There is no device {device!r} that PyTorch can use",
            fix='Choose "cpu", or "cuda" with a GPU and a PyTorch that was built for it.',
        )
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(_shape(text), generator=generator).to(device) for text in shapes)


def _settings(precision: str, threads: int, channels_last: bool, cuda_graphs: bool) -> Settings:
    checked = cast(Any, precision)  # other names are refused there
    return Settings(checked, threads, channels_last, cuda_graphs=cuda_graphs)


def _bound(text: str) -> tuple[str, tuple[float, float]]:
    """A pattern with its least and most, written as layer1.*=0.5:1.0."""
    pattern, _, ends = text.rpartition("=")
    least, _, most = ends.partition(":")
    try:
        return pattern, (_number(least), _number(most))
    except ValueError as error:
        raise InputError(
            f"The bound {text!r} does not parse", fix='Write "layer1.*=0.5:1.0".'
        ) from error


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"The input shape {text!r} does not parse", fix="Write 1x3x224x224.")
    return tuple(int(part) for part in parts)


def _torchvision_model(name: str) -> Any:
    from torchvision import models

    if name not in models.list_models():
        raise InputError(
            f"torchvision has no model {name!r}",
            fix="torchvision.models.list_models() lists them.",
        )
    return models.get_model(name, weights=None)


def _own_model(source: str, name: str) -> Any:
    sys.path.insert(0, "")  # the user's own module is most often in the current folder
    try:
        module = importlib.import_module(source)
    except ImportError as error:
        raise InputError(f"The module {source!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, name):
        raise InputError(f"The module {source!r} has no {name!r}")
    found = getattr(module, name)
    return found if isinstance(found, nn.Module) else found()


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"The weights in {str(path)!r} cannot be loaded: {error}",
            fix="Save the model's state_dict() with safetensors.torch.save_file.",
        ) from error
