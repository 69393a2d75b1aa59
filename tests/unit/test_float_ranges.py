"""Streamed ranges: right numbers whatever the batches, in bounded memory, on every sample."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from float16_graphs import Split, model, normal
from numpy.typing import NDArray

from optimizer.calibration.ranges import RunningMagnitudes, measure_graph
from optimizer.errors import StageError
from optimizer.graph.magnitudes import Magnitudes

Floats = NDArray[np.float32]


def quiet(done: int, total: int) -> None:
    del done, total


def measure(folder: Path, source: onnx.ModelProto, x: Floats) -> dict[str, Magnitudes]:
    onnx.save(source, folder / "source.onnx")
    return measure_graph(folder / "source.onnx", Split(x=x), quiet, "float16")


MATMUL = "g (float[batch, 16] x) => (float[batch, 16] y) {"


def test_ranges_are_those_of_all_samples_whatever_the_batches() -> None:
    x = normal(37, 50) * np.float32(10) ** np.linspace(-11, 4, 50, dtype=np.float32)
    x[3, 4] = 0.0
    one, many = RunningMagnitudes(), RunningMagnitudes()
    one.fold(x)
    for part in np.array_split(x, 7):
        many.fold(part)
    a, b = one.result(), many.result()
    assert a is not None
    assert b is not None
    magnitude = np.abs(x.astype(np.float64))
    for found in (a, b):
        assert found.largest == magnitude.max()
        assert found.highest == x.max()
        assert found.nonzero == np.count_nonzero(x)
        assert found.coarse == np.count_nonzero((magnitude > 0) & (magnitude < 2.0**-18))
        assert found.lost == np.count_nonzero((magnitude > 0) & (x.astype(np.float16) == 0))
        assert not found.whole


def test_the_noise_of_small_values_is_that_of_rounding_them() -> None:
    x = normal(1000, scale=1e-6)
    numbers = RunningMagnitudes()
    numbers.fold(x)
    found = numbers.result()
    assert found is not None
    error = x.astype(np.float64) - x.astype(np.float16)
    assert found.small_noise == pytest.approx((error**2).sum() / (x.astype(np.float64) ** 2).sum(), rel=1e-5)
    assert found.rms == pytest.approx(np.sqrt((x.astype(np.float64) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_beyond_float32_are_no_trouble(scale: float) -> None:
    numbers = RunningMagnitudes()
    numbers.fold(normal(100, scale=scale))
    found = numbers.result()
    assert found is not None
    assert found.rms == pytest.approx(scale, rel=0.3)
    assert np.isfinite(found.small_noise)


def test_infinite_values_are_left_out_and_nan_is_told() -> None:
    numbers = RunningMagnitudes()
    assert numbers.fold(np.array([1.5, -np.inf, np.inf], np.float32))
    assert numbers.fold(np.array([np.inf], np.float32))
    assert not numbers.fold(np.array([9.0, np.nan], np.float32))
    found = numbers.result()
    assert found is not None
    assert (found.largest, found.highest) == (1.5, 1.5)
    assert RunningMagnitudes().result() is None


def test_every_float_activation_is_measured_and_no_other(tmp_path: Path) -> None:
    text = MATMUL + " a = MatMul(x, w) s = Shape(a) r = Reshape(a, s) y = Relu(r) }"
    found = measure(tmp_path, model(text, w=np.eye(16)), normal(5, 16))
    assert set(found) == {"x", "a", "r", "y"}


def test_memory_is_one_batch_of_activations_at_any_number_of_samples(tmp_path: Path) -> None:
    text = "g (float[batch, 64, 64] x) => (float[batch, 64, 64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    onnx.save(model(text, w=normal(64, 64)), tmp_path / "source.onnx")

    def peak(count: int) -> int:
        samples = Split(count, x=normal(1, 64, 64))
        tracemalloc.start()
        measure_graph(tmp_path / "source.onnx", samples, quiet, "float16")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)
    assert peak(512) <= 1.1 * peak(32)


@pytest.mark.parametrize("batch", ["batch", "4"])
def test_no_sample_is_dropped_and_lengths_may_differ(batch: str, tmp_path: Path) -> None:
    text = f"g (float[{batch}, n, 8] x) => (float[{batch}, n, 8] y) {{ y = MatMul(x, w) }}"
    onnx.save(model(text, w=np.eye(8)), tmp_path / "source.onnx")
    rows = [np.full((1 + i % 3, 8), i, np.float32) for i in range(11)]
    seen: list[int] = []
    found = measure_graph(tmp_path / "source.onnx", Split(x=rows), lambda done, _: seen.append(done), "float16")
    assert seen[-1] == 11
    assert found["y"].largest == 10


@pytest.mark.parametrize(
    ("count", "what"), [(0, "holds no samples"), (1, "holds one sample: the ranges of others cannot be told from it")]
)
def test_too_few_samples_are_refused(count: int, what: str, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        measure(tmp_path, model(MATMUL + " y = MatMul(x, w) }", w=np.eye(16)), normal(count, 16))
    assert caught.value.what == what


def test_an_activation_that_becomes_nan_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="activation 'y' becomes NaN on sample 0\\n"):
        measure(tmp_path, model(MATMUL + " a = MatMul(x, w) y = Log(a) }", w=np.eye(16)), -np.ones((4, 16), np.float32))
