"""Pictures in a folder or a .zip, one folder a class."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
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
        try:
            self._archive = zipfile.ZipFile(folder) if folder.is_file() else None
        except _DAMAGED as error:
            raise StageError(f"is neither a folder nor a .zip: {error}", where=str(folder)) from error
        self._folder = folder
        pattern = re.escape(layout).replace("<split>", re.escape(split)).replace("<class>", "(?P<label>[^/]+)")
        matcher = re.compile(rf"{pattern}/[^/]+")
        found = [(name, m) for name in self._names() if (m := matcher.fullmatch(name))]
        found = sorted((n, m) for n, m in found if n.lower().endswith(_ENDINGS))
        if not found:
            begins = ", ".join(sorted(self._names())[:3]) or "nothing"
            raise StageError(
                f"holds no pictures under '{layout}' for the split '{split}' ({', '.join(_ENDINGS[:3])}, ...)",
                where=str(folder),
                hint=f"It begins with: {begins}.\nCorrect data.layout or the split.",
            )
        self._found = [name for name, _ in found]
        classes = sorted({m["label"] for _, m in found}) if "<class>" in layout else []
        number = {label: i for i, label in enumerate(classes)}
        self._targets = [number[m["label"]] if classes else None for _, m in found]
        self.labels = tuple(classes) or None

    def _names(self) -> list[str]:
        if self._archive is not None:
            return self._archive.namelist()
        return [p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*") if p.is_file()]

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
