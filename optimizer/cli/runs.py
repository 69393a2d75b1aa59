"""A run's folder by what a person writes for it; a run that failed is told from one that is not there."""

from __future__ import annotations

from pathlib import Path

from optimizer.errors import UsageError


def open_run_folder(text: str) -> Path:
    """Return the folder of a run that has a report.

    Raises: UsageError when there is none, saying of one that failed where its logs lie.
    """
    from optimizer.paths import find_run

    try:
        return find_run(text)
    except UsageError as error:
        failed = _failed(text)
        if failed is None:
            raise
        logs = sorted(str(file) for file in failed.glob("logs/*.log"))
        hint = "\n".join([*(f"log: {file}" for file in logs), "Build it again:  optimize build RECIPE"])
        raise UsageError("this run failed or was interrupted, and left no report", where=str(failed), hint=hint) from (
            error
        )


def _failed(text: str) -> Path | None:
    """Return the one folder of a run without a report that `text` stands for."""
    from optimizer.paths import home

    path = Path(text)
    if (path / "logs").is_dir():
        return path
    recipe, _, number = text.rpartition("/")
    if not number.isdigit():
        return None
    folders = [p.parent for p in (home() / "runs").glob(f"{recipe or '*'}/*/logs") if p.parent.name.isdigit()]
    found = [folder for folder in folders if int(folder.name) == int(number)]
    return found[0] if len(found) == 1 else None
