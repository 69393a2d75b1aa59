"""ISBI 2012 electron microscopy as tiles of 128 x 128: pictures 0 to 23 train, 24 to 29 test."""

import io
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
TILE = 128
SPLITS = {"train": range(24), "test": range(24, 30)}


class Tiles(Sequence):
    """Pairs of a tile [1, 128, 128] with values around 0, and its mask: 1 is membrane."""

    def __init__(self, images: np.ndarray, masks: np.ndarray) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {"image": self.images[index]}, self.masks[index]


def pictures(split: str, archive: str) -> tuple[np.ndarray, np.ndarray]:
    """Return grey values [n, 512, 512] about 0 and the masks, float32; the archive marks membranes black."""
    with zipfile.ZipFile(HERE / archive) as opened:

        def read(kind: str, number: int) -> np.ndarray:
            name = next(n for n in opened.namelist() if n.endswith(f"{kind}/{number}.png"))
            return np.asarray(Image.open(io.BytesIO(opened.read(name))).convert("L"), dtype=np.float32) / 255

        images = np.stack([read("image", i) for i in SPLITS[split]])
        masks = np.stack([read("label", i) for i in SPLITS[split]])
    return (images - 0.5) / 0.25, (masks < 0.5).astype(np.float32)


def tiles(split: str, archive: str) -> Tiles:
    """Return all tiles of a split, side by side."""

    def cut(whole: np.ndarray) -> np.ndarray:
        count, height, width = whole.shape
        parts = whole.reshape(count, height // TILE, TILE, width // TILE, TILE).transpose(0, 1, 3, 2, 4)
        return np.ascontiguousarray(parts.reshape(-1, 1, TILE, TILE))

    images, masks = pictures(split, archive)
    return Tiles(cut(images), cut(masks))
