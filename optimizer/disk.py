"""What can be wrong with the place where the store and the runs lie, how much lies there, and files written whole."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from optimizer.errors import StageError, UsageError


def disk_error(error: OSError, place: Path) -> Exception:
    """Turn a full disk, or a `place` that cannot be written, into an error that says so; any other OSError stays."""
    named = _named(error, place)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(named)
    if error.filename is None or not (place in (named, *named.parents) or named in place.parents):
        return error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) or (
        error.errno in (errno.EEXIST, errno.ENOTDIR) and _in_the_way(named) is not None
    ):
        return unusable(error, place)
    return error


def unusable(error: OSError, place: Path) -> UsageError:
    """Return the error of a `place`, OPTIMIZE_HOME or below it, that cannot be made or written."""
    named = _named(error, place)
    return UsageError(
        f"cannot be written: {error.strerror or error}",
        where=str(_in_the_way(named) or named),
        hint=f"Set OPTIMIZE_HOME to a folder that can be written; it leads to {place} now.",
    )


def _named(error: OSError, place: Path) -> Path:
    return Path(error.filename).absolute() if isinstance(error.filename, str) else place


def _in_the_way(path: Path) -> Path | None:
    """Return the file that lies where a folder should."""
    for part in (path, *path.parents):
        with suppress(OSError):
            part.lstat()  # also a symbolic link that leads nowhere
            return None if part.is_dir() else part
    return None


def _full(place: Path) -> StageError:
    place = next(p for p in (place, *place.parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    return StageError(
        f"the disk is full ({free / 1e6:.0f} MB free); nothing of this step was stored",
        where=str(place),
        hint="Free some space (optimize cache prune), or set OPTIMIZE_HOME to a larger disk, and run it again.",
    )


def folder_size(folder: Path) -> int:
    """Return the bytes of a folder's files, without those that vanish meanwhile."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its name, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
