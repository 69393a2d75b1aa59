"""A `.pt2` as an nn.Module. What would run code while it loads is refused unless the recipe trusts it."""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import StageError
from optimizer.imports import first_line
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import torch

_INSTEAD = "Export and save it again from code that you know."
_TRUST = "If you trust the file's author completely: model: {trust: true}."
# What torch raises on files that are damaged, or that a far older or newer torch wrote.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    OSError,
    AssertionError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    zipfile.BadZipFile,
)
_COMPILED = "data/aotinductor/"  # shared libraries, which torch loads along with the program
_OBJECTS = ("custom_obj_", "opaque_obj_")  # pickles that torch loads without weights_only
_IMPORTING = ("__enum__", "default_factory_module")  # keys whose value torch imports as a module
# Torch evaluates many of a program's texts as Python: sizes, guards, the names that its generated code has.
_PLAIN = re.compile(r"[\w.:/+\-]*")
_VALUE = re.compile(r"[\w.,:/<>+\-*=&|!?@%^~ ]*")  # of a text argument: no quote that ends it, no bracket that calls
_FUNCTION = re.compile(r"[A-Z]\w*|floor|ceiling|max|min|abs|int|float|bool")  # sympy's classes and what guards call
_METHODS = re.compile(r"size|stride|storage_offset|floor|ceil|trunc|sqrt|isnan|sym_(max|min|float|int|sqrt|not|sum)")
_SHAPED = (ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.Subscript)
_LEAVES = (ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.expr_context)
_SIGNS = (ast.operator, ast.boolop, ast.unaryop, ast.cmpop)


def load_exported(path: Path, inputs: tuple[TensorSpec, ...], *, trust: bool) -> torch.nn.Module:
    """Open a `.pt2`; a program that was exported with fixed shapes cannot serve named axes, whatever it is told.

    Raises: StageError when it cannot be read, wants to run code, or has other inputs.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            older = "version" in archive.namelist()  # torch reads these in another way
        if not trust:
            _check_archive(path, older)
        with _quiet(), nullcontext() if trust else _weights_only():
            program = torch.export.load(path)
        _check_inputs(path, program, inputs)
        module: torch.nn.Module = program.module()
    except pickle.UnpicklingError as error:
        raise unpickling_refused(error, path.name, _INSTEAD) from error
    except _UNREADABLE as error:
        raise StageError(
            f"cannot be read as an exported program: {first_line(error)}",
            where=path.name,
            hint="Save it with torch.export.save(torch.export.export(...), 'model.pt2').",
        ) from error
    return module


def unpickling_refused(error: pickle.UnpicklingError, where: str, instead: str) -> StageError:
    """Name the class that a pickle wants to call while it loads."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"(?:import|Unsupported class) ([\w.]+)", str(error))
    if found is None:
        return StageError(f"cannot be read: {first_line(error)}", where=where)
    return _refused(f"wants to run '{found[1]}' while it loads, which plain weights never need", where, instead)


def _refused(what: str, where: str, instead: str = _INSTEAD) -> StageError:
    return StageError(f"{what}; refused", where=where, hint=f"{instead} {_TRUST}")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make every torch.load refuse what is more than weights; torch.export.load falls back to full unpickling."""
    force, forbid = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, forbid)}
    os.environ[force] = "1"
    try:
        yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging tracebacks of what is raised, and told, anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_archive(path: Path, older: bool) -> None:
    """Refuse what torch.load's weights_only does not guard: compiled code, pickled objects, code among the texts."""
    from torch.export.pt2_archive import PT2ArchiveReader

    if older:
        raise _refused("has the format of torch 2.7 or older, which unpickles whatever it holds", path.name)
    with PT2ArchiveReader(str(path)) as archive:  # the reader that torch.export.load uses: it sees the same members
        for name in archive.get_file_names():
            if name.startswith(_COMPILED):
                raise _refused(f"holds compiled code ({name})", path.name)
            if name.startswith("models/") or (name.startswith("data/") and name.endswith(".json")):
                _check_value(json.loads(archive.read_bytes(name)), f"{path.name}, {name}")


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_item(key, item, where)


def _check_item(key: str, value: Any, where: str) -> None:
    if key in _IMPORTING:
        raise _refused(f"wants to import what '{key}' names while it loads", where)
    if key == "path_name" and isinstance(value, str) and value.startswith(_OBJECTS):
        raise _refused(f"holds a pickled object ({value})", where)
    _check_text(key, where)
    if key in ("as_string", "as_strings"):
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and _VALUE.fullmatch(text) for text in texts):
            raise _refused(f"has a text argument that may be code: {str(value)[:80]!r}", where)
    elif key != "metadata":  # where each node came from: stack traces, never evaluated
        _check_value(value, where)


def _check_text(text: str, where: str) -> None:
    """Let names, JSON and arithmetic on sizes through."""
    if _PLAIN.fullmatch(text):
        return
    try:
        if text[:1] in '[{"':
            _check_value(json.loads(text), where)
            return
    except json.JSONDecodeError:
        pass  # then it is read as Python below
    if not _is_arithmetic(text):
        raise _refused(f"has text that would run as code: {text[:80]!r}", where)


def _is_arithmetic(text: str) -> bool:
    if any(sign in text for sign in "\n\r#\\"):
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTION.fullmatch(name) is not None
        case ast.Call(func=ast.Attribute(attr=name)):
            return _METHODS.fullmatch(name) is not None
        case ast.Call():
            return False
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return "__" not in name
        case ast.Constant(value=str(text)):
            return _PLAIN.fullmatch(text) is not None
    return isinstance(node, _SHAPED + _LEAVES + _SIGNS)


def _check_inputs(path: Path, program: Any, inputs: tuple[TensorSpec, ...]) -> None:
    names = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if len(placeholders) != len(inputs):
        raise StageError(
            f"takes {len(placeholders)} inputs, the recipe names {len(inputs)}",
            where=path.name,
            hint="Name each input.",
        )
    for spec, node in zip(inputs, placeholders, strict=True):
        _check_axes(path, spec, tuple(node.meta["val"].shape))


def _check_axes(path: Path, spec: TensorSpec, shape: tuple[Any, ...]) -> None:
    if len(shape) != len(spec.shape):
        raise StageError(
            f"input '{spec.name}' has {len(shape)} axes, the recipe gives {len(spec.shape)}", where=path.name
        )
    fixed = [a for a, s in zip(spec.shape, shape, strict=True) if isinstance(a, str) and isinstance(s, int)]
    if fixed:
        axes = ", ".join(f"'{a}'" for a in fixed)
        raise StageError(
            f"was exported with input '{spec.name}' fixed to {list(shape)}; the recipe names the dynamic axis {axes}",
            where=path.name,
            hint="Export it again with dynamic_shapes for that axis, or write the fixed size into the recipe's shape.",
        )
