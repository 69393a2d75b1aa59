from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from quantization_graphs import Arrays, build

from optimizer.calibration.collect import collect, refuse_noise
from optimizer.calibration.noise import NoiseTest
from optimizer.errors import StageError

Rng = np.random.Generator


def law(samples: np.ndarray, batch: int = 16) -> str | None:
    test = NoiseTest()
    for start in range(0, len(samples), batch):
        test.fold(samples[start : start + batch])
    return test.law()


def smooth(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """An autoregression of 0.9 along the last axis: the faintest of audio."""
    steps = rng.normal(size=shape)
    for i in range(1, shape[-1]):
        steps[..., i] += 0.9 * steps[..., i - 1]
    return steps.astype(np.float32)


def words(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return np.minimum(rng.zipf(1.3, size=shape), 30_521)


def hashed(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return (words(rng, shape) * 2_654_435_761) % 30_522


NOISE: dict[str, Callable[[Rng], np.ndarray]] = {
    "normal pictures": lambda r: r.normal(size=(16, 3, 32, 32)).astype(np.float32),
    "uniform pictures": lambda r: r.random(size=(16, 3, 32, 32)).astype(np.float32),
    "uniform bytes, normalised": lambda r: (
        (r.integers(0, 256, size=(16, 32, 32, 3)) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.22]
    ).astype(np.float32),
    "normal audio": lambda r: r.normal(size=(4, 16_000)).astype(np.float32),
    "normal features over time": lambda r: r.normal(size=(16, 20, 64)).astype(np.float32),
    "token ids": lambda r: r.integers(0, 30_522, size=(32, 128)),
    "token ids of a small vocabulary": lambda r: r.integers(0, 256, size=(64, 64)),
}
DATA: dict[str, Callable[[Rng], np.ndarray]] = {
    "autoregressive audio": lambda r: smooth(r, (8, 4000)),
    "normal features": lambda r: r.normal(size=(2000, 30)).astype(np.float32),
    "features over time, faintly smooth": lambda r: smooth(r, (16, 20, 64)),
    "one-hot": lambda r: np.eye(64, dtype=np.float32)[r.integers(0, 64, size=(16, 100))],
    "words": lambda r: words(r, (512, 64)),
    "hashed words": lambda r: hashed(r, (512, 64)),
    "positions": lambda r: np.tile(np.arange(128), (64, 1)),
    "labels": lambda r: r.integers(0, 10, size=(4096, 1)),
    "mask of ones": lambda r: np.ones((512, 64), dtype=np.int64),
    "noise on one channel only": lambda r: np.stack([r.normal(size=(16, 32, 32)), smooth(r, (16, 32, 32))], axis=1),
    "noise, brighter in some samples": lambda r: r.normal(size=(16, 3, 32, 32)) + 0.3 * r.normal(size=(16, 1, 1, 1)),
    "noise, brighter in the middle": lambda r: r.normal(size=(16, 1, 32, 32)) * np.hanning(32),
    "noise with heavy tails": lambda r: r.standard_t(5, size=(16, 3, 32, 32)),
    "zeros": lambda r: np.zeros((16, 3, 32, 32), dtype=np.float32),
    "few values": lambda r: r.normal(size=(1, 3, 32, 32)).astype(np.float32),
}


@pytest.mark.parametrize("kind", NOISE)
def test_random_numbers_are_told(kind: str) -> None:
    assert all(law(NOISE[kind](np.random.default_rng(seed))) in ("normal", "uniform") for seed in range(5))


@pytest.mark.parametrize("kind", DATA)
def test_data_is_not_taken_for_noise(kind: str) -> None:
    assert {law(DATA[kind](np.random.default_rng(seed))) for seed in range(5)} == {None}


def test_real_digits_are_not_taken_for_noise() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits().images.astype(np.float32)
    assert law(digits[:, None]) is None
    assert law(np.kron(digits[:200, None], np.ones((1, 1, 4, 4), dtype=np.float32))) is None
    flat = digits.reshape(len(digits), -1)
    assert law((flat - flat.mean(0)) / (flat.std(0) + 1e-6)) is None


@pytest.mark.skipif("OPTIMIZE_DATA" not in os.environ, reason="OPTIMIZE_DATA does not say where the pictures are")
def test_real_pictures_are_not_taken_for_noise() -> None:
    from PIL import Image

    archive = zipfile.ZipFile(Path(os.environ["OPTIMIZE_DATA"]) / "cifar10" / "images.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::40][:256]
    pictures = np.stack([np.asarray(Image.open(archive.open(name)), dtype=np.float32) for name in names]) / 255
    assert law(pictures.transpose(0, 3, 1, 2)) is None
    assert all(law(pictures[start : start + 8].transpose(0, 3, 1, 2)) is None for start in range(0, 256, 8))


def test_a_pass_over_noise_is_refused_with_the_way_out() -> None:
    text = (
        "g (float[batch, 3, 32, 32] image) => (float[batch, 2, 32, 32] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w) }"
    )
    model = build(text, {"w": (2, 3, 3, 3)})
    noise = list(np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32))
    found = collect(model, ["image"], Arrays(noise), lambda done, total: None)
    with pytest.raises(StageError) as caught:
        refuse_noise(found)
    assert str(caught.value) == (
        "calibration data: input 'image' is random numbers (normal, alike at every position and unrelated to their "
        "neighbours): ranges found from them say nothing about real inputs\n"
        "  Give real samples. Where the model is fed noise in use, too: data.calibration.synthetic: true."
    )
