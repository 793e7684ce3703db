"""Frozen dataclasses to JSON and back, strictly: what does not fit is refused with its path.

Nothing read here can run code, and nothing is guessed: unknown, missing, doubled and mistyped
fields are all errors.  Text is deterministic: the same value gives the same bytes.
"""

from __future__ import annotations

import functools
import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_DEEPEST = 50
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Malformed(ValueError):  # noqa: N818 - reads as a statement about the data
    """Plain data does not have the form asked for; `path` leads to the place."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path = path or "the top level"
        self.what = what

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def to_plain(value: object) -> Any:
    """Dataclasses, mappings and sequences as dicts, lists and scalars that JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def dumps(value: object, indent: str = "") -> str:
    """JSON with sorted keys; a container of scalars stays on one line, so that diffs read well."""
    deeper = indent + "  "
    if not any(isinstance(child, dict | list) for child in _children(value)):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    if isinstance(value, dict):
        lines = [f"{json.dumps(k)}: {dumps(item, deeper)}" for k, item in sorted(value.items())]
    else:
        lines = [dumps(child, deeper) for child in _children(value)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = f",\n{deeper}".join(lines)
    return f"{opening}\n{deeper}{body}\n{indent}{closing}"


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def loads(text: str | bytes) -> Any:
    """Read JSON; doubled keys, NaN, and nesting deep enough to exhaust the stack are refused."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except Malformed:
        raise
    except RecursionError:
        raise Malformed("", "nested too deeply") from None
    except ValueError as error:  # includes bytes that are not UTF-8, and integers far too long
        raise Malformed("", f"not JSON ({error})") from error
    # How deep the parser itself goes depends on the Python version; what follows recurses too.
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for item in level for child in _children(item)]
    if level:
        raise Malformed("", "nested too deeply")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise Malformed(doubled, "occurs twice")
    return result


def _no_constant(name: str) -> Any:
    raise Malformed("", f"{name} is not JSON")


def from_plain(kind: type[T], value: object, path: str = "") -> T:
    """Build `kind` (a dataclass, a scalar, or tuples, mappings and optionals of them).

    Raises:
        Malformed: with the path of the first place that does not fit.
    """
    return cast(T, _build(kind, value, path))


def _build(kind: Any, value: object, path: str) -> object:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _build_dataclass(cast(type, kind), value, path)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (kind,) = (arg for arg in args if arg is not type(None))
        return _build(kind, value, path)
    if origin is Literal:
        if value not in args:
            raise Malformed(
                path, f"should be one of {', '.join(map(repr, args))}, not {value!r:.60}"
            )
        return value
    if origin is tuple:
        items = _require(list, value, path)
        return tuple(_build(args[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        entries = _require(dict, value, path)
        return {key: _build(args[1], item, _join(path, key)) for key, item in entries.items()}
    return _build_scalar(kind, value, path)


def _build_dataclass(kind: type, value: object, path: str) -> object:
    given = dict(_require(dict, value, path))
    hints = _hints(kind)
    arguments = {}
    for f in fields(kind):
        if f.name in given:
            arguments[f.name] = _build(hints[f.name], given.pop(f.name), _join(path, f.name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise Malformed(_join(path, f.name), "is missing")
    if given:
        raise Malformed(_join(path, min(given)), "is not a known field")
    return kind(**arguments)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _build_scalar(kind: type, value: object, path: str) -> object:
    if kind is float:
        if isinstance(value, str) and value in _NON_FINITE:
            return _NON_FINITE[value]
        # JSON does not tell 1 from 1.0; an integer beyond the range of a float is refused.
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023:
            return float(value)
    return _require(kind, value, path)


def _require(kind: type[T], value: object, path: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Malformed(path, f"should be {_WORDS.get(kind, kind.__name__)}, not {value!r:.60}")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_WORDS: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}
