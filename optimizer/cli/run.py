"""`optimize run`: infer once with a bundle; needs numpy, click and the bundle's runtime."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optimizer.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimizer.runtime.session import Array

_ROWS = 8  # samples shown of each output
_VALUES = 4  # values shown of each sample


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="The model's inputs by name, preprocessed, with their batch axis.",
)
@click.option(
    "-o",
    "--out",
    "destination",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Write the outputs there instead of printing them.",
)
@click.option("--device", metavar="cpu|cuda:N", help="Default: where the bundle was measured.")
def command(bundle: Path, source: Path, destination: Path | None, device: str | None) -> None:
    """Infer once with a bundle, without torch."""
    from optimizer.runtime import load

    feed = _read(source)
    _refuse_not_finite(feed, source)
    with load(bundle, device=device) as deployment:
        outputs = deployment.infer(feed)
        if destination is not None:
            _write(destination, outputs)
            click.echo(destination)
            return
        for name, array in outputs.items():
            click.echo(f"{name}: {array.dtype.name}{list(array.shape)}")
            for line in _lines(array, deployment.labels):
                click.echo(f"  {line}")


def _read(path: Path) -> dict[str, Array]:
    import numpy as np

    if not path.is_file():
        raise UsageError("there is no such file", where=str(path))
    try:
        archive: Any = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError("is a single array", where=str(path), hint="save it by name:  np.savez(FILE, image=array)")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"is no .npz of plain arrays: {error}", where=str(path), hint="write it with:  np.savez(FILE, image=array)"
        ) from error


def _refuse_not_finite(feed: dict[str, Array], source: Path) -> None:
    """Refuse NaN and infinity in any input: a network can answer them with plausible, finite numbers."""
    import numpy as np

    wrong = []
    for name, array in feed.items():
        if array.dtype.kind not in "fc":
            continue
        bad = ~np.isfinite(array)
        if bad.any():
            first = [int(place) for place in np.argwhere(bad)[0]]
            wrong.append(f"'{name}' has {int(bad.sum())} of {array.size} values NaN or infinite, the first at {first}")
    if wrong:
        raise UsageError(
            "; ".join(wrong),
            where=str(source),
            hint="The answer could look right and mean nothing: mend the data. Where such values are meant, "
            "infer() of optimizer.runtime.load takes them.",
        )


def _write(path: Path, outputs: dict[str, Any]) -> None:
    """Write beside the destination and rename: a file that is there is whole."""
    import numpy as np

    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **outputs)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StageError(f"could not be written: {error.strerror or error}", where=str(path)) from error


def _lines(array: Array, labels: Sequence[str] | None) -> list[str]:
    """One line a sample: its first values and, where the last axis are the classes, the top one's label."""
    import numpy as np

    samples = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(-1, 1)
    named = labels is not None and array.ndim == 2 and array.shape[1] == len(labels) and array.dtype.kind == "f"
    lines = []
    for row in samples[:_ROWS]:
        text = " ".join(f"{value:.5g}" for value in row[:_VALUES].tolist()) + (" ..." if row.size > _VALUES else "")
        if named and labels is not None:
            top = int(np.argmax(row))
            text = f"{labels[top]} ({row[top]:.5g})   {text}"
        lines.append(text)
    return [*lines, f"... {len(samples) - _ROWS} more"] if len(samples) > _ROWS else lines
