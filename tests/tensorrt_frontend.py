"""Torch-TensorRT's real front end on a machine without a GPU and without TensorRT's libraries.

    python -m tests.tensorrt_frontend .venv-tensorrt

makes an environment on top of the one that runs this: the `torch-tensorrt` wheel and TensorRT's
Python bindings, 20 MB in all. The libraries that they load, more than a gigabyte, are replaced by
three empty ones made with the C compiler. Converters, lowering and partitioning then run as they
do for users; only building an engine fails, in the call that would ask the library for a builder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

WHEELS = (
    "torch-tensorrt==2.14.0",
    "tensorrt-cu13==11.1.0.106",
    "tensorrt-cu13-bindings==11.1.0.106",
)
# Their other requirements would bring TensorRT's libraries and another PyTorch.
NEEDED = ("dllist", "psutil", "filelock", "packaging")
MAJOR = 11

POINTERS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry",
        "getLogger", "getInferLibVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": (
        "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}  # fmt: skip
"""The functions that the bindings look for in each library; all of ours return nothing."""

LOADER = """
import ctypes
import pathlib

for name in {names!r}:
    ctypes.CDLL(str(pathlib.Path(__file__).with_name(name)), mode=ctypes.RTLD_GLOBAL)
"""


def install(environment: Path) -> None:
    """Make the environment on top of the running one."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc"))), None)
    if compiler is None:
        raise SystemExit("a C compiler is needed; run: apt-get install gcc")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, *WHEELS, *NEEDED], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    for library in (packages / "torch_tensorrt" / "lib").glob("*.so"):
        library.unlink()  # they need TensorRT's; without them the Python runtime is taken
    _make_libraries(packages / "tensorrt_libs", compiler)
    below = [path for path in sys.path if Path(path).name == "site-packages"]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in below]
    (packages / "below.pth").write_text("".join(lines))


def _make_libraries(folder: Path, compiler: str) -> None:
    folder.mkdir(exist_ok=True)
    names = []
    for library, functions in POINTERS.items():
        names.append(f"lib{library}.so.{MAJOR}")
        code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions)
        with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
            source.write(code)
            source.flush()
            shared = ["-shared", "-fPIC", f"-Wl,-soname,{names[-1]}", source.name]
            subprocess.run([compiler, *shared, "-o", str(folder / names[-1])], check=True)
    (folder / "__init__.py").write_text(LOADER.format(names=names))


def load() -> ModuleType:
    """Import `torch_tensorrt`; where there is no GPU, with what it asks of one made up."""
    if not torch.cuda.is_available():
        answers: dict[str, Any] = {
            "get_device_capability": (9, 0),
            "current_device": 0,
            "mem_get_info": (2**36, 2**36),
        }
        for name, answer in answers.items():
            setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_tensorrt

    return torch_tensorrt


if __name__ == "__main__":
    install(Path(sys.argv[1]))
