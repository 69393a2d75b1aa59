"""User code: which files and packages a Python file depends on, and how one of its functions is loaded."""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import OptimizerError, StageError, UsageError


@dataclass(frozen=True, slots=True)
class Closure:
    """The local files a Python file imports, itself included, and the top-level names of everything else."""

    root: Path
    files: tuple[Path, ...]
    packages: tuple[str, ...]


def closure(file: Path) -> Closure:
    """Follow the imports of `file` through the modules beside it, without running any of them.

    Raises: UsageError when one of the files is not Python.
    """
    root = file.parent
    seen: dict[Path, None] = {}
    packages: set[str] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen[current] = None
        for name in _imported_names(current, root):
            local = _local_files(root, name)
            waiting += local
            if not local:
                packages.add(name.partition(".")[0])
    outside = sorted(p for p in packages if p not in sys.stdlib_module_names)
    return Closure(root, tuple(sorted(seen)), tuple(outside))


def _imported_names(file: Path, root: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise UsageError(f"is not valid Python: {error.msg}", where=f"{file}:{error.lineno}") from error
    package = file.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*package[: len(package) - node.level + 1], node.module or "")) if node.level else node.module
            )
            stem = (base or "").strip(".")
            if stem:
                yield stem
            for alias in node.names:
                inner = f"{stem}.{alias.name}" if stem else alias.name
                if _module_file(root, inner):
                    yield inner


def _module_file(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _local_files(root: Path, name: str) -> list[Path]:
    """Return the module and the packages around it, because importing runs their `__init__` too."""
    parts = name.split(".")
    found = [_module_file(root, ".".join(parts[: end + 1])) for end in range(len(parts))]
    return [file for file in found if file]


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules of `folder` be imported; a module of the same name from another folder is forgotten first."""
    for file in folder.glob("*.py"):
        _forget(file.stem, folder)
    for init in folder.glob("*/__init__.py"):
        _forget(init.parent.name, folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _forget(name: str, folder: Path) -> None:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if loaded is None or origin is None or Path(origin).is_relative_to(folder):
        return
    if "site-packages" in Path(origin).parts or name in sys.stdlib_module_names:
        return
    for key in [k for k in sys.modules if k == name or k.startswith(f"{name}.")]:
        del sys.modules[key]


@contextmanager
def user_code(where: str, folder: Path) -> Iterator[None]:
    """Call code of the recipe's author from `folder`: whatever it raises is told as its error, not as ours.

    Raises: StageError with the error, and the line of the author's file that raised it.
    """
    try:
        yield
    except OptimizerError:
        raise
    except Exception as error:  # the author's code may raise anything at all
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).is_relative_to(folder)]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""
        text = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {text[0] if text else 'no message'}{place}"
        raise StageError(said, where=where, hint="The error is in the recipe's own code.") from error


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """Run `file` as a module and return its function `name`.

    Raises: StageError when the file fails while it is imported or has no such function.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise StageError("cannot be imported as a Python module", where=str(file))
    module = importlib.util.module_from_spec(spec)
    if file.stem in sys.stdlib_module_names:
        raise StageError("has the name of a module of Python's own", where=str(file), hint="Rename it.")
    with importable(file.parent), user_code(f"importing {file.name}", file.parent):
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise StageError(f"has no function '{name}'", where=str(file))
    return function  # type: ignore[no-any-return]
