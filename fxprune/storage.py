"""Saving a slim network and loading it again, with no pickle: nothing in a file can run code.

A file is one safetensors file.  The weights are its tensors; the plan, the report, the versions and
a checksum are text in its header.  The graph is not stored: it is made again by applying the plan
to the user's own model code, so a file holds data only, and other tools can read the weights too.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from fxprune import plain
from fxprune.errors import InputError, PlanMismatch
from fxprune.files import atomic_path
from fxprune.passes.capture import ExampleInputs
from fxprune.plan import Plan
from fxprune.report import META, Report

SCHEMA: Final = 1
# One entry, because safetensors writes several in no fixed order: the checksum, a line break, and
# the manifest as JSON.
_HEADER: Final = "fxprune"


@dataclass(frozen=True)
class Manifest:
    """What a file says beside the weights.

    Attributes:
        schema: version of this layout.
        plan: as `Plan`, in plain JSON values.
        report: as `Report`, likewise; None if the module had none.
        aliases: name -> the name under which a tensor that both share is stored.
        versions: of fxprune and torch, when it was saved.
    """

    schema: int
    plan: Any
    report: Any
    aliases: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """A file's content, checked: plan, report and the state dict of the slim module."""

    plan: Plan
    report: Report | None
    state: Mapping[str, Tensor]


def save(slim: fx.GraphModule, path: str | Path) -> None:
    """Write a slim module's weights, plan and report into one file, or leave no file at all.

    Raises:
        InputError: the module did not come from fxprune, holds state that is not tensors, or the
            path cannot be written.
    """
    found = getattr(slim, "meta", {}).get(META, {})
    if not isinstance(found.get("plan"), Plan):
        raise InputError(
            "This module carries no plan, so it could not be loaded again",
            fix="Save what fxprune.optimize or fxprune.apply returned.",
        )
    state, aliases = _stored_tensors(slim.state_dict())
    manifest = Manifest(
        schema=SCHEMA,
        plan=plain.to_plain(found["plan"]),
        report=plain.to_plain(found.get("report")),
        aliases=aliases,
        versions={"fxprune": _version(), "torch": str(torch.__version__)},
    )
    text = plain.dumps(plain.to_plain(manifest))
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={_HEADER: f"{_checksum(text, state)}\n{text}"})


def load(path: str | Path, model: nn.Module, example_inputs: ExampleInputs) -> fx.GraphModule:
    """The slim module that was saved: `model` slimmed by the stored plan, with stored weights.

    Args:
        path: what `save` wrote.
        model: the dense architecture, built as it was when it was slimmed; its weights do not
            matter, and it is not modified.
        example_inputs: as for `optimize`.

    Raises:
        InputError: the file is missing, damaged, or not of fxprune.
        PlanMismatch: the file is sound, but was made from another architecture.
    """
    from fxprune.optimize import apply  # reading a file needs no pipeline

    artifact = read(path)
    slim = apply(_with_orders(model, artifact), artifact.plan, example_inputs)
    _require_same_state(slim.state_dict(), artifact.state, path)
    slim.load_state_dict(artifact.state)
    slim.meta[META] = {**slim.meta.get(META, {}), "plan": artifact.plan, "report": artifact.report}
    return slim


def _with_orders(model: nn.Module, artifact: Artifact) -> nn.Module:
    """`model` with the index tensors that the plan was made for, which may be drawn at random."""
    state = model.state_dict()
    names = [n for n in artifact.plan.orders if n in state and n in artifact.state]
    stored = {n: artifact.state[n] for n in names if artifact.state[n].shape == state[n].shape}
    if all(torch.equal(state[n].cpu(), tensor) for n, tensor in stored.items()):
        return model
    model = copy.deepcopy(model)
    model.load_state_dict(stored, strict=False)
    return model


def read(path: str | Path) -> Artifact:
    """Read and check a file without building anything.

    Raises:
        InputError: the file is missing, damaged, or not of fxprune.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file") from None
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise _unreadable(path, f"it is damaged or not a safetensors file ({error})") from error
    if header is None:
        raise _unreadable(path, "it was not written by fxprune.save")
    checksum, _, text = header.partition("\n")
    if checksum != _checksum(text, stored):
        raise _unreadable(path, "its checksum is wrong, so it was damaged after it was written")
    return _interpret(text, stored, path)


def _interpret(text: str, stored: dict[str, Tensor], path: str | Path) -> Artifact:
    try:
        raw = plain.loads(text)
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise _unreadable(path, f"its layout is {schema!r}; this fxprune reads {SCHEMA}")
        manifest = plain.from_plain(Manifest, raw)
        report = None
        if manifest.report is not None:
            report = plain.from_plain(Report, manifest.report, "report")
        plan = Plan.from_plain_data(manifest.plan)
    except (plain.Malformed, PlanMismatch) as error:
        raise _unreadable(path, f"its manifest is malformed ({error})") from error
    for name, source in manifest.aliases.items():
        if source not in stored or name in stored:
            raise _unreadable(path, f"its manifest is malformed (aliases.{name})")
    state = stored | {name: stored[source] for name, source in manifest.aliases.items()}
    return Artifact(plan, report, state)


def _stored_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors that share no memory, and which names stand for the same one."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"The state {name!r} is a {type(value).__name__}, not a tensor",
                fix="Keep the slim module's state in parameters and buffers.",
            )
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors, aliases


def _require_same_state(
    built: Mapping[str, Any], stored: Mapping[str, Tensor], path: str | Path
) -> None:
    for name in sorted(built.keys() | stored.keys()):
        here, there = built.get(name), stored.get(name)
        if here is not None and there is not None:
            if (here.shape, here.dtype) == (there.shape, there.dtype):
                continue
            what = f"{name!r} is {_form(here)} in the model but {_form(there)} in the file"
        else:
            owner = "file" if here is None else "model"
            what = f"{name!r} is in the {owner} only"
        raise PlanMismatch(
            what,
            f"File {str(path)!r}",
            "Build the model as it was when it was slimmed, in the same dtype.",
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _checksum(manifest: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the manifest, and every tensor's name, dtype, shape and bytes, in name order."""
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{_form(tensor)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _version() -> str:
    try:
        return metadata.version("fxprune")
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "not installed"


def _unreadable(path: str | Path, why: str) -> InputError:
    return InputError(
        f"{str(path)!r} cannot be loaded: {why}", fix="Give a file that fxprune.save wrote."
    )
