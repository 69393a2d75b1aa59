"""Where the store and the runs lie, and how a run is named."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import UsageError

REPORT = "report.json"
LOGS = "logs"
MARK = ".optimizer"  # in a folder of logs, or in that of a run which is not all written: it is ours to replace
FAILED = ".failed"  # beside it, in the logs of a run that ended with an error


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

    Raises: UsageError when there is none, when it left no report, or when a number stands for several.
    """
    path = Path(text)
    if path.name == REPORT and path.is_file():
        return path.parent
    if (path / REPORT).is_file():
        return path
    if (path / LOGS / MARK).is_file():
        raise _unfinished(path)
    runs = home() / "runs"
    recipe, _, number = text.rpartition("/")
    if not number.isdecimal():
        raise UsageError("no report.json there", where=text, hint="Give a run's folder, RECIPE/NUMBER or a number.")
    found = [run for run in sorted(runs.glob(f"{recipe or '*'}/*")) if _is_run(run) and int(run.name) == int(number)]
    if not found:
        raise UsageError(f"there is no run {text} under {runs}", hint="Build one:  optimize build RECIPE")
    if len(found) > 1:
        names = ", ".join(f"{r.parent.name}/{r.name}{'' if (r / REPORT).is_file() else ' (no report)'}" for r in found)
        raise UsageError(f"several recipes have a run {text}: {names}", hint="Give one of these names.")
    if not (found[0] / REPORT).is_file():
        raise _unfinished(found[0])
    return found[0]


def _is_run(folder: Path) -> bool:
    return folder.name.isdecimal() and any((folder / name).is_file() for name in (REPORT, f"{LOGS}/{MARK}"))


def _unfinished(run: Path) -> UsageError:
    """Say what became of a run without a report, and where its logs lie."""
    if (run / LOGS / FAILED).is_file():
        what, hint = "this run failed, and left no report", "Build it again:  optimize build RECIPE"
    else:
        what = "this run was interrupted, or is still under way: it has no report"
        hint = "Build it again, and it goes on from there:  optimize build RECIPE"
    logs = [file for file in sorted(run.glob(f"{LOGS}/*.log")) if file.stat().st_size]
    return UsageError(what, where=str(run), hint="\n".join([*(f"log: {file}" for file in logs), hint]))


def new_run(recipe: str, runs: Path | None = None) -> Path:
    """Make and return the folder of the next run of a recipe; two builds at once get two folders."""
    folder = (runs or home() / "runs") / recipe
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
    while True:
        run = folder / f"{number:04d}"
        try:
            run.mkdir()
        except FileExistsError:
            number += 1
        else:
            return run


@contextlib.contextmanager
def begun(run: Path) -> Iterator[None]:
    """Tidy the folder of a run that ends early: one with nothing in it goes, and after Ctrl-C one of logs alone.

    One that failed is marked so, and keeps its logs: the error names them.
    """
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            if [entry.name for entry in run.iterdir()] == [LOGS] and (run / LOGS / MARK).is_file():
                shutil.rmtree(run / LOGS)
        raise
    except Exception:
        with contextlib.suppress(OSError):
            (run / LOGS / FAILED).touch()
        raise
    finally:
        with contextlib.suppress(OSError):
            run.rmdir()
