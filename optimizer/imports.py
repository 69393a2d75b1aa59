"""User code: which files and packages a Python file depends on, and how one of its functions is loaded."""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from optimizer.errors import OptimizerError, StageError, UsageError

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_OURS = (Path(sysconfig.get_path("stdlib")), Path(__file__).parent)
_PRIVATE = "_recipe_"  # in front of a file's name that an installed package has too
# Loaded modules of user code by folder, while another folder's have their names.
_ASIDE: dict[Path, dict[str, ModuleType]] = {}


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
    """Let modules of `folder` be imported; those of the same names from another folder are set aside meanwhile."""
    folder = folder.resolve()
    for name in _own_names(folder, folder.stat().st_mtime_ns) if folder.is_dir() else ():
        _give_way(name, folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # user code may have taken it out itself
            sys.path.remove(str(folder))


@lru_cache(maxsize=64)
def _own_names(folder: Path, _changed_ns: int) -> tuple[str, ...]:
    """Return the top-level names in a folder, read anew when it changes: every sample that is read asks for them."""
    modules = [file.stem for file in folder.glob("*.py")]
    return (
        *modules,
        *(f"{_PRIVATE}{name}" for name in modules),
        *(p.parent.name for p in folder.glob("*/__init__.py")),
    )


def _give_way(name: str, folder: Path) -> None:
    """Put what `folder` has loaded under `name` into sys.modules, and another folder's aside until that is used again.

    Its modules keep their state and their classes: nothing is executed twice.
    """
    home = _home(name)
    if home == folder:
        return
    if home is not None:
        _move(sys.modules, name, _ASIDE.setdefault(home, {}))
    if name not in sys.modules:
        _move(_ASIDE.get(folder, {}), name, sys.modules)


def _move(source: dict[str, ModuleType], name: str, destination: dict[str, ModuleType]) -> None:
    for key in [k for k in source if k == name or k.startswith(f"{name}.")]:
        destination[key] = source.pop(key)


def _home(name: str) -> Path | None:
    """Return the folder of user code that the loaded module `name` is from; None for installed ones."""
    origin = getattr(sys.modules.get(name), "__file__", None)
    if origin is None or not _is_users(origin):
        return None
    file = Path(origin).resolve()
    return file.parent.parent if file.name == "__init__.py" else file.parent


def _is_users(filename: str) -> bool:
    """Tell user code from installed packages, the standard library and this package."""
    path = Path(filename)
    return _INSTALLED.isdisjoint(path.parts) and not any(path.is_relative_to(place) for place in _OURS)


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """Run `file` as a module and return its function `name`.

    The modules beside it can import it, unless its name is an installed package's: that one stays what it is.
    Raises: StageError when the file fails while it is imported, has no such function or a name of Python's own.
    """
    if file.stem in sys.stdlib_module_names:
        raise StageError("has the name of a module of Python's own", where=str(file), hint="Rename it.")
    stem = f"{_PRIVATE}{file.stem}" if _is_installed(file.stem) else file.stem
    spec = importlib.util.spec_from_file_location(stem, file)
    if spec is None or spec.loader is None:
        raise StageError("cannot be imported as a Python module", where=str(file))
    module = importlib.util.module_from_spec(spec)
    with importable(file.parent), user_code(f"importing {file.name}", file.parent):
        sys.modules[stem] = module
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise StageError(f"has no function '{name}'", where=str(file))
    return function  # type: ignore[no-any-return]


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return _home(name) is None
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and not _is_users(spec.origin)


@contextmanager
def user_code(where: str, folder: Path) -> Iterator[None]:
    """Call code of the recipe's author from `folder`: whatever it raises is told as its error, not as ours.

    Raises: StageError with the error, and the line of the author's file that raised it.
    """
    try:
        yield
    except OptimizerError:
        raise
    # The author's code may raise anything at all, and a script's sys.exit() is no exit of this program.
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
        line = users_line(error, folder)
        raise StageError(said + line, where=where, hint="The error is in the recipe's own code.") from error


def users_line(error: BaseException, folder: Path) -> str:
    """Return the last line of the author's code that an error went through, in brackets; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).resolve().is_relative_to(folder.resolve()) and _is_users(f.filename)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, without torch's numbered advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
