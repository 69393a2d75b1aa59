from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization_graphs import Arrays, build, infer, pictures, small_cnn

from optimizer.calibration import collect as collecting
from optimizer.calibration.collect import collect
from optimizer.calibration.histogram import RunningHistogram
from optimizer.errors import StageError
from optimizer.graph.quantize import activations


def ignore(done: int, total: int) -> None:
    del done, total


def collected(model: onnx.ModelProto, samples: Arrays) -> dict[str, RunningHistogram]:
    return collect(model, activations(model), samples, ignore).histograms


def test_ranges_are_those_of_the_activations(tmp_path: Path) -> None:
    arrays = pictures(37)
    found = collected(small_cnn(), Arrays(arrays))
    probe = small_cnn()
    del probe.graph.output[:]
    names = [n for n in activations(small_cnn()) if n != "image"]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    expected = dict(zip(names, infer(probe, {"image": np.stack(arrays)}, tmp_path), strict=True))
    expected["image"] = np.stack(arrays)
    assert set(found) == set(expected)
    # What a pool drops reaches nothing: where it alone reads a tensor, the range is that of what leaves it.
    expected |= {before: expected[behind] for before, behind in (("r1", "p1"), ("r2", "p2")) if before in expected}
    for name, values in expected.items():
        assert found[name].total == values.size
        assert found[name].minimum == pytest.approx(float(values.min()), rel=1e-5, abs=1e-6)
        assert found[name].maximum == pytest.approx(float(values.max()), rel=1e-5, abs=1e-6)


def test_the_batch_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = pictures(19)
    whole = collected(small_cnn(), Arrays(arrays))
    monkeypatch.setattr(collecting, "BATCH", 3)
    parts = collected(small_cnn(), Arrays(arrays))
    np.testing.assert_array_equal(whole["image"].counts, parts["image"].counts)
    for name, histogram in whole.items():
        # Another batch may round another way: a value at an edge moves to the bin beside it.
        moved = np.abs(np.cumsum(histogram.counts) - np.cumsum(parts[name].counts)).max()
        assert moved <= max(2, histogram.total * 1e-3)


def test_large_activations_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_BUDGET_BYTES", 40_000)
    seen: list[int] = []
    collect(small_cnn(), activations(small_cnn()), Arrays(pictures(12)), lambda done, total: seen.append(done))
    assert len(seen) > 1
    assert seen[-1] == 12


def test_the_number_of_workers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "BATCH", 4)
    found = []
    for workers in (1, 2):
        monkeypatch.setattr(collecting, "_MOST_WORKERS", workers)
        found.append(collected(small_cnn(), Arrays(pictures(30)))["image"])
    np.testing.assert_array_equal(found[0].counts, found[1].counts)
    assert found[0].total == 30 * 192


def test_the_first_bad_sample_is_named_whichever_worker_meets_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "BATCH", 1)
    arrays = pictures(20)
    for index in (3, 4, 5, 6):
        arrays[index] = np.full_like(arrays[index], 3e38)
    for _ in range(5):
        with pytest.raises(StageError, match="on sample picture-3"):
            collected(small_cnn(), Arrays(arrays))


def test_samples_of_mixed_shapes_are_all_counted() -> None:
    text = "g (float[batch, 1, h, w] image) => (float[batch, 2, h, w] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"
    model = build(text, {"w0": (2, 1, 3, 3)})
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, s, s + 1)).astype(np.float32) for s in (4, 4, 7, 4, 9)]
    found = collected(model, Arrays(arrays))
    assert found["image"].total == sum(a.size for a in arrays)


def test_a_fixed_batch_is_filled_up_and_told() -> None:
    text = "g (float[4, 3, 8, 8] image) => (float[4, 2, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"
    model = build(text, {"w0": (2, 3, 3, 3)})
    found = collect(model, ["image", "y"], Arrays(pictures(10)), ignore)
    assert (found.samples, found.repeated) == (10, 2)
    assert found.histograms["y"].total == 12 * 2 * 64


def test_nan_in_a_sample_names_it() -> None:
    arrays = pictures(20)
    arrays[17][0, 3, 3] = np.nan
    with pytest.raises(StageError, match=r"sample picture-17: input 'image' holds NaN or infinite"):
        collected(small_cnn(), Arrays(arrays))


def test_an_activation_that_overflows_names_itself_and_the_sample() -> None:
    model = small_cnn()
    arrays = pictures(20)
    arrays[5] *= np.float32(1e38)
    with pytest.raises(StageError, match=r"activation '\w+' becomes NaN or infinite on sample picture-5"):
        collected(model, Arrays(arrays))


REFUSED = {
    "none": (
        Arrays([]),
        "calibration data: holds no samples\n  Check data.calibration: the split's name, its place.",
    ),
    "fewer than asked": (
        Arrays(pictures(5), announced=9),
        (
            "calibration data: announced 9 samples and yielded 5\n"
            "  The source ended early: correct its length, or ask for fewer samples."
        ),
    ),
    "one": (
        Arrays(pictures(1)),
        (
            "calibration data: holds one sample: ranges found from it say nothing about other inputs\n"
            "  Give real, varied samples; 128 to 512 are usual."
        ),
    ),
    "constant": (
        Arrays(pictures(1) * 6),
        (
            "calibration data: all 6 samples are identical: ranges found from it say nothing about other inputs\n"
            "  Give real, varied samples; 128 to 512 are usual."
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_calibrate_is_refused(case: str) -> None:
    samples, text = REFUSED[case]
    with pytest.raises(StageError) as caught:
        collected(small_cnn(), samples)
    assert str(caught.value) == text
    assert caught.value.exit_code == 4


def test_a_tensor_inside_a_fused_operator_is_still_read() -> None:
    """onnxruntime fuses Conv and Relu, but not away what was asked for."""
    model = small_cnn()
    found = collect(model, ["c1"], Arrays(pictures(4)), ignore).histograms["c1"]
    assert found.minimum < 0


def test_the_graph_on_disk_is_not_the_callers(tmp_path: Path) -> None:
    model = small_cnn()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    collected(model, Arrays(pictures(4)))
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight)
    assert not list(tmp_path.iterdir())


def test_mixed_shapes_come_in_batches_that_fit_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sample is the smallest: by its measure the large ones, 64 times its size, would come 16 together."""
    text = "g (float[batch, 1, h, w] image) => (float[batch, 2, h, w] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, side, side)).astype(np.float32) for side in [4] * 20 + [32] * 20]
    monkeypatch.setattr(collecting, "_BUDGET_BYTES", 2 * 4 * 2 * 32 * 32 * 4)  # four large ones, halved by workers
    monkeypatch.setattr(collecting, "_MOST_WORKERS", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    most: list[int] = []
    infer = collecting.OnnxSession.infer

    def observed(self: object, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = infer(self, feed)  # type: ignore[arg-type]
        most.append(sum(value.nbytes for value in found.values()))
        return found

    monkeypatch.setattr(collecting.OnnxSession, "infer", observed)
    found = collect(build(text, {"w0": (2, 1, 3, 3)}), ["image", "y"], Arrays(arrays), ignore).histograms
    assert found["y"].total == 2 * sum(a.size for a in arrays)
    assert max(most) <= 4 * 2 * 32 * 32 * 4
    assert len(most) < 20  # and no smaller than need be
