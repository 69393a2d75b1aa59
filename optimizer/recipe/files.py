"""The files that a recipe names: are they there, and do they define what it calls? Nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from optimizer.graph.builder_options import UNLOCK
from optimizer.recipe.count_checks import check_counts
from optimizer.recipe.model import Data, ModelSource
from optimizer.recipe.sections import Draft
from optimizer.recipe.vocabulary import Vocabulary
from optimizer.recipe.wording import KeyPath, Problems, listed, nearest, shown, unknown

_ONLY_STATE_DICT = ("factory", "arguments", "files", "key", "strip_prefix", "trust")
_ONLY_TORCH = ("key", "trust")
_WITHOUT_EFFECT: Mapping[str, Sequence[str]] = {
    "onnx": _ONLY_STATE_DICT,
    "exported_program": tuple(key for key in _ONLY_STATE_DICT if key != "trust"),
}


def check(draft: Draft, folder: Path, words: Vocabulary, problems: Problems, *, model_files: bool = True) -> None:
    """Check everything that the recipe names beside itself, in `folder`."""
    if draft.model is not None and model_files:
        _model(draft.model, folder, words, problems)
    if draft.data is not None:
        _data(draft.data, folder, problems)
        check_counts(draft, folder, words, problems, to_build=model_files)
    for name, target in draft.targets.items():
        cache = target.options.get("timing_cache")
        honoured = not words.lists_capabilities(name)  # ahead of time nothing is timed, which another check says
        if honoured and cache is not None and cache.locked and not (folder / cache.path).is_file():
            text = f"there is no timing cache at {cache.path}. {UNLOCK}"
            problems.cross(("targets", name, "timing_cache", "path"), text)


def _model(model: ModelSource, folder: Path, words: Vocabulary, problems: Problems) -> None:
    path = Path(model.checkpoint)
    here: KeyPath = ("model", "checkpoint")
    kind = words.checkpoints.get(path.suffix)
    if kind is None:
        text = unknown("kind of checkpoint", path.suffix or path.name, tuple(words.checkpoints))
        problems.cross(here, f"{shown(path.name)}: {text}")
    elif kind == "state_dict" and not (folder / path).exists() and (folder / path).with_name("train.py").is_file():
        absent = _absent(folder / path, model.checkpoint)
        problems.cross(here, f"{absent}{' Or' if absent.endswith('?') else ';'} run train.py beside it first?")
    else:
        _file(folder, model.checkpoint, here, problems)
    if kind == "state_dict" and model.factory is None:
        text = f"missing: {path.suffix} holds weights only; say FILE.py:FUNCTION, a callable that returns the nn.Module"
        problems.cross(("model", "factory"), text, here, at_key=True)
    without_effect = _WITHOUT_EFFECT.get(kind or "", ())
    if path.suffix == ".safetensors":
        without_effect = _ONLY_TORCH
    for key in without_effect:
        if getattr(model, key):
            problems.cross(("model", key), f"has no effect on a {path.suffix} checkpoint: remove it", here, at_key=True)
    if model.factory is not None and kind in ("state_dict", None):
        _function(folder, model.factory, ("model", "factory"), problems)
        root = (folder / model.factory.partition(":")[0]).parent.resolve()
        for index, name in enumerate(model.files):
            _file(folder, name, ("model", "files", index), problems)
            if not (folder / name).resolve().is_relative_to(root):
                text = f"{shown(name)} lies outside the factory's folder, so a run that is copied would lack it"
                problems.cross(("model", "files", index), text, ("model", "factory"))


def _data(data: Data, folder: Path, problems: Problems) -> None:
    if data.source is not None and data.folder is None:
        _function(folder, data.source, ("data", "source"), problems)
        for index, name in enumerate(data.files):
            _file(folder, name, ("data", "files", index), problems)
    if data.folder is not None and data.source is None:
        path = folder / data.folder
        if path.is_file() and path.suffix != ".zip":
            problems.cross(("data", "folder"), f"{shown(data.folder)} is neither a folder nor a .zip")
        elif not path.exists():
            problems.cross(("data", "folder"), _absent(path, data.folder))


def _function(folder: Path, spec: str, path: KeyPath, problems: Problems) -> None:
    wrong = wrong_function(folder, spec)
    if wrong is not None:
        problems.cross(path, wrong)


def _file(folder: Path, name: str, path: KeyPath, problems: Problems) -> None:
    file = folder / name
    if file.is_dir():
        problems.cross(path, f"{shown(name)} is a folder, not a file")
    elif not file.is_file():
        problems.cross(path, _absent(file, name))


def _absent(file: Path, name: str) -> str:
    """Say that a file is absent: from which folder on, or what lies there under a name like it."""
    said = f"no such file: {shown(name)}"
    if not file.parent.is_dir():
        folder = file.parent
        while not folder.parent.is_dir():
            folder = folder.parent
        return f"{said}; there is no folder '{folder.name}' in {_from_here(folder.parent)}"
    near = nearest(file.name, sorted(p.name for p in file.parent.iterdir()))
    beside = "" if near.name or Path(name).is_absolute() else " (paths begin at the recipe's folder)"
    return said + near.asked + beside


def _from_here(folder: Path) -> str:
    """Return a folder as seen from the current one, where that is shorter to read."""
    here = Path.cwd()
    if folder == here:
        return "the current folder"
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def wrong_function(folder: Path, spec: str) -> str | None:
    """Return what is wrong with a `FILE.py:FUNCTION`, or None. The file is parsed, not run."""
    name, colon, function = spec.rpartition(":")
    if not colon or not name.endswith(".py") or not function.isidentifier():
        return f"needs FILE.py:FUNCTION, got {shown(spec)}"
    file = folder / name
    if not file.is_file():
        return _absent(file, name)
    try:
        tree = ast.parse(file.read_bytes(), name)
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        return f"{name}{line} is not valid Python: {getattr(error, 'msg', error)}"
    defined = list(dict.fromkeys(_names(tree.body)))
    if function in defined or "*" in defined:
        return None
    own = [n for n in dict.fromkeys(_callables(tree.body)) if not n.startswith("_")]
    return f"{name} defines no '{function}'{nearest(function, own).asked} {listed(own)}"


def _names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield what a module's statements may bind; `*` stands for a star import."""
    yield from _callables(body)
    for node in _statements(body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


def _callables(body: Sequence[ast.stmt]) -> Iterator[str]:
    for node in _statements(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, also those under `if`, `try`, `with` and loops."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for name in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)
