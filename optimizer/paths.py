"""Where the store and the runs lie, and how a run is named."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from optimizer.errors import UsageError


def home() -> Path:
    """Return OPTIMIZE_HOME, else `artifacts/` beside the nearest pyproject.toml, else in the current folder."""
    chosen = os.environ.get("OPTIMIZE_HOME")
    if chosen:
        return Path(chosen).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file():
            return folder / "artifacts"
    return here / "artifacts"


def find_run(text: str) -> Path:
    """Return the folder of a run: a folder with report.json, that file itself, `RECIPE/NUMBER` or a number.

    Raises: UsageError when there is none, or when a number stands for several.
    """
    path = Path(text)
    if path.name == "report.json" and path.is_file():
        return path.parent
    if (path / "report.json").is_file():
        return path
    runs = home() / "runs"
    recipe, _, number = text.rpartition("/")
    if not number.isdigit():
        raise UsageError("no report.json there", where=text, hint="Give a run's folder, RECIPE/NUMBER or a number.")
    found = [r for r in sorted(runs.glob(f"{recipe or '*'}/*/report.json")) if int(r.parent.name) == int(number)]
    if len(found) == 1:
        return found[0].parent
    if not found:
        raise UsageError(f"there is no run {text} under {runs}", hint="Build one:  optimize build RECIPE")
    names = ", ".join(f"{r.parent.parent.name}/{r.parent.name}" for r in found)
    raise UsageError(f"several recipes have a run {text}: {names}", hint="Give one of these names.")


def new_run(recipe: str, runs: Path | None = None) -> Path:
    """Make and return the folder of the next run of a recipe; two builds at once get two folders."""
    folder = (runs or home() / "runs") / recipe
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
    while True:
        run = folder / f"{number:04d}"
        try:
            run.mkdir()
        except FileExistsError:
            number += 1
        else:
            return run


def forget_empty(run: Path) -> None:
    """Remove the folder of a run that ended before anything was written into it."""
    with contextlib.suppress(OSError):
        run.rmdir()
