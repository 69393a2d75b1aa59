"""Pictures in a folder or a .zip, one folder a class."""

from __future__ import annotations

import io
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from optimizer.data.samples import Sample, Samples
from optimizer.errors import StageError

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# A wrong checksum, compressed data that breaks off, an encrypted member, a compression that Python does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class Pictures(Samples):
    """Decoded on access to height x width x 3 uint8 (RGB); the target is the index of the class folder, sorted by name.

    `layout` is the path of a class's pictures below the folder, e.g. `cifar10/<split>/<class>`.
    """

    def __init__(self, folder: Path, layout: str, split: str) -> None:
        self._archive = _open_archive(folder) if folder.is_file() else None
        self._folder = folder
        found = sorted(_pictures(self._names(fixed_part(layout, split)), layout, split))
        if not found:
            begins = ", ".join(sorted(self._names())[:3]) or "nothing"
            raise StageError(
                f"holds no pictures under '{layout}' for the split '{split}' ({', '.join(_ENDINGS[:3])}, ...)",
                where=str(folder),
                hint=f"It begins with: {begins}.\nCorrect data.layout or the split.",
            )
        self._found = [name for name, _ in found]
        classes = sorted({label for _, label in found}) if "<class>" in layout else []
        number = {label: i for i, label in enumerate(classes)}
        self._targets = [number[label] if classes else None for _, label in found]
        self.labels = tuple(classes) or None

    def _names(self, below: str = "") -> list[str]:
        if self._archive is not None:
            return self._archive.namelist()
        return list(_files(self._folder / below, self._folder))

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        from PIL import Image, UnidentifiedImageError

        name = self._found[index]
        data = self._read(name)
        try:
            with Image.open(io.BytesIO(data)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise StageError(f"cannot be decoded as a picture: {error}", where=name) from error
        return Sample({"": pixels}, self._targets[index], name)

    def _read(self, name: str) -> bytes:
        try:
            return self._archive.read(name) if self._archive else (self._folder / name).read_bytes()
        except _DAMAGED as error:
            raise StageError(
                f"'{name}' cannot be read: {error}", where=str(self._folder), hint="Copy or download it again."
            ) from error


def count_pictures(folder: Path, layout: str, enough: Mapping[str, int]) -> dict[str, int]:
    """Count the pictures of splits without opening one; of each split no more than are `enough`.

    Raises: StageError for a file that is no .zip.
    """
    names: list[str] | None = None
    if folder.is_file():
        with _open_archive(folder) as archive:
            names = archive.namelist()
    found = {}
    for split, most in enough.items():
        those = _files(folder / fixed_part(layout, split), folder) if names is None else names
        found[split] = len(list(itertools.islice(_pictures(those, layout, split), most)))
    return found


def fixed_part(layout: str, split: str) -> str:
    """Return the folder below which all of a split lies: the part of the layout that comes before the class."""
    return layout.replace("<split>", split).partition("<class>")[0].rpartition("/")[0]


def _pictures(names: Iterable[str], layout: str, split: str) -> Iterator[tuple[str, str]]:
    """Yield the names that are pictures of the split, each with its class; empty where the layout has none."""
    pattern = re.escape(layout).replace("<split>", re.escape(split)).replace("<class>", "(?P<label>[^/]+)")
    matcher = re.compile(rf"{pattern}/[^/]+")
    for name in names:
        found = matcher.fullmatch(name) if name.lower().endswith(_ENDINGS) else None
        if found:
            yield name, found.groupdict().get("label", "")


def _files(below: Path, root: Path) -> Iterator[str]:
    return (p.relative_to(root).as_posix() for p in below.rglob("*") if p.is_file())


def _open_archive(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except _DAMAGED as error:
        raise StageError(f"is neither a folder nor a .zip: {error}", where=str(file)) from error
