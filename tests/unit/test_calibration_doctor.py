from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import Arrays, pictures, small_cnn

from optimizer.calibration.collect import Watch, collect
from optimizer.calibration.doctor import clipped_share, drift, drift_sentences, examine, findings, patients
from optimizer.calibration.estimators import Estimate, minmax
from optimizer.calibration.histogram import RunningHistogram
from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange
from optimizer.errors import StageError
from optimizer.graph.quantize import activations
from optimizer.stage import StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.diagnose import Diagnose
from optimizer.types import Artifact


def histogram_of(values: np.ndarray) -> RunningHistogram:
    histogram = RunningHistogram()
    assert histogram.fold(values.astype(np.float32))
    return histogram


def row(values: np.ndarray, *, shrink: float = 1.0, earlier: tuple[float, ...] = ()) -> TensorRange:
    histogram = histogram_of(values)
    widest = minmax(histogram)
    estimate = Estimate(widest.low * shrink, widest.high * shrink, widest.magnitude * shrink)
    found = examine(histogram, estimate, earlier)
    return TensorRange(histogram.minimum, histogram.maximum, histogram.total, "minmax", {"minmax": found})


def table(**tensors: TensorRange) -> CalibrationTable:
    return CalibrationTable("minmax", 99.999, 64, tensors, (48,))


NORMAL = np.random.default_rng(0).normal(size=20_000)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.3, 2.0), (-9.0, 0.5)])
def test_the_clipped_share_is_that_of_the_values(low: float, high: float) -> None:
    share = float(1 - ((low <= NORMAL) & (high >= NORMAL)).mean())
    found = clipped_share(histogram_of(NORMAL), low, high)
    assert found == pytest.approx(share, abs=5e-4)
    assert abs(clipped_share(histogram_of(NORMAL), low, high * 0.98) - share) > 5e-4


def test_nothing_is_clipped_within_the_extremes() -> None:
    histogram = histogram_of(NORMAL)
    assert clipped_share(histogram, histogram.minimum, histogram.maximum) == 0.0
    assert clipped_share(RunningHistogram(), -1.0, 1.0) == 0.0


def test_dead_and_constant_tensors_are_named_first() -> None:
    found = patients(table(live=row(NORMAL), dead=row(np.zeros(10)), still=row(np.full(10, 2.0))))
    assert [h.tensor for h in found] == ["dead", "still", "live"]
    assert [h.complaints for h in found] == [("dead: zero throughout",), ("constant",), ()]


def test_findings_say_what_is_wrong_and_nothing_of_healthy_tensors() -> None:
    assert list(findings(table(a=row(NORMAL)))) == []
    sick = table(
        dead=row(np.zeros(10)),
        moving=row(NORMAL, earlier=(3.0,)),
        tight=row(NORMAL, shrink=0.3),
    )
    assert list(findings(sick)) == [
        "dead are zero throughout",
        "moving still move with the number of samples, by up to 25% over the last quarter: more samples would help",
        "tight have more than 1% clipped",
        "tight keep less than 20 dB in int8 by themselves",
    ]


def test_convergence_is_seen_from_estimates_taken_on_the_way() -> None:
    seen: list[tuple[int, dict[RunningHistogram, RunningHistogram]]] = []
    watch = Watch(lambda samples, snapshots: seen.append((samples, snapshots)))  # type: ignore[arg-type]
    names = activations(small_cnn())
    found = collect(small_cnn(), names, Arrays(pictures(80)), lambda done, total: None, watch).histograms["image"]
    totals = sorted((samples, snapshots[found].total) for samples, snapshots in seen)
    assert totals == [(32, 32 * 192), (48, 48 * 192), (64, 64 * 192)]
    assert found.total == 80 * 192


def test_what_piles_up_at_a_flat_minimum_does_not_drift() -> None:
    """SiLU's smallest values lie together: a bound that misses the smallest by a digit cuts none of them off."""
    x = np.random.default_rng(0).normal(size=200_000) * 2
    silu = histogram_of(x / (1 + np.exp(-x)))
    assert silu.minimum < (low := silu.minimum * (1 - 1e-7))
    assert clipped_share(silu, low, silu.maximum) < 1e-4
    assert clipped_share(silu, silu.minimum + 0.01, silu.maximum) > 0.05  # the twin: these are beyond it


def test_drift_counts_what_lies_outside_and_how_far() -> None:
    found = drift(table(a=row(NORMAL), b=row(NORMAL)), {"a": histogram_of(NORMAL), "b": histogram_of(NORMAL * 3)})
    assert [d.tensor for d in found] == ["b", "a"]
    assert [d.drifted for d in found] == [True, False]
    tripled = 3 * NORMAL
    outside = 1 - ((tripled >= NORMAL.min()) & (tripled <= NORMAL.max())).mean()
    assert found[0].outside == pytest.approx(float(outside), rel=0.05)
    assert found[0].reach == pytest.approx(3.0, rel=1e-5)
    assert found[1].outside == 0.0
    sentences = list(drift_sentences(found, 64))
    assert sentences[0].startswith("64 evaluation samples: up to 0.")
    assert sentences[1].startswith("b beyond the calibrated range on evaluation data, up to 3 times as far")


def test_other_samples_of_one_distribution_do_not_drift() -> None:
    rng = np.random.default_rng(5)
    found = drift(table(a=row(NORMAL)), {"a": histogram_of(rng.normal(size=20_000))})
    assert not found[0].drifted


class Run:
    """Calibrate on some pictures, diagnose on others."""

    def __init__(self, folder: Path, evaluation: list[np.ndarray]) -> None:
        self.notes: list[str] = []
        samples = {"calibration": Arrays(pictures(40)), "evaluation": Arrays(evaluation)}
        context = StageContext(
            log=folder / "log", note=self.notes.append, progress=lambda *_: None, samples=samples.__getitem__
        )
        for name in ("graph", "table", "out"):
            (folder / name).mkdir()
        onnx.save(small_cnn(), folder / "graph" / "model.onnx")
        sources = {
            "graph": Artifact("onnx", folder / "graph", "0"),
            "table": Artifact("calibration", folder / "table", "1"),
            "samples": Artifact("data", folder, "2"),
            "evaluation": Artifact("data", folder, "3"),
        }
        Calibrate(method="entropy", synthetic=True).run(sources, folder / "table", context)
        self.table = CalibrationTable.read(folder / "table" / "table.json")
        self.notes.clear()
        Diagnose().run(sources, folder / "out", context)
        self.document = json.loads((folder / "out" / "diagnosis.json").read_text())


def test_a_diagnosis_tells_brighter_pictures_from_those_that_calibrated(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, [p * 4 for p in pictures(60, seed=3)])
    assert run.document["evaluation_samples"] == 40
    assert run.document["tensors"]["image"]["drifted"] is True
    assert run.document["tensors"]["image"]["reach"] > 3
    assert run.document["tensors"]["image"]["sqnr_db"] < run.document["tensors"]["image"]["calibrated_sqnr_db"] - 10
    assert any("beyond the calibrated range" in note for note in run.notes)


def test_a_diagnosis_of_the_same_pictures_finds_no_drift(tmp_path: Path) -> None:
    run = Run(tmp_path, pictures(40))
    assert not any(entry["drifted"] for entry in run.document["tensors"].values())
    assert run.notes == ["40 evaluation samples: no value outside the calibrated extremes"]
    assert run.table.method == "entropy"
    assert set(run.table.tensors["image"].methods) == {"minmax", "percentile", "entropy", "mse"}
    assert len(run.table.tensors["image"].chosen.earlier) == len(run.table.checkpoints)


def test_empty_evaluation_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="evaluation data: holds no samples"):
        Run(tmp_path, [])


def test_calibration_data_on_another_scale_is_told() -> None:
    seen, used = RunningHistogram(), RunningHistogram()
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    seen.fold(16 * values)
    used.fold(values)
    methods = {"minmax": MethodRange(seen.minimum, seen.maximum, max(-seen.minimum, seen.maximum))}
    made = TensorRange(seen.minimum, seen.maximum, seen.total, "minmax", methods)
    table = CalibrationTable("minmax", 99.999, 64, {"x": made})
    told = " ".join(drift_sentences(drift(table, {"x": used}), 64))
    assert "x far within the calibrated range on evaluation data, which uses 0.062" in told
    assert "far within" not in " ".join(drift_sentences(drift(table, {"x": seen}), 64))


@pytest.mark.parametrize("shift", [0.0, 3.0, -9.0])
def test_the_decibels_of_uint8_are_those_of_rounding_the_values(shift: float) -> None:
    values = (NORMAL + shift).astype(np.float32)
    found = examine(histogram_of(values), minmax(histogram_of(values)))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    exact = 10 * np.log10((values.astype(float) ** 2).sum() / ((rounded - values) ** 2).sum())
    assert found.unsigned_sqnr_db == pytest.approx(exact, abs=0.15)
    # The twin: one step too many on either side is seen.
    wider = examine(histogram_of(values), Estimate(low * 2, high * 2, found.magnitude))
    assert abs(wider.unsigned_sqnr_db - exact) > 2  # type: ignore[operator]


def test_one_sided_values_keep_a_bit_more_in_uint8() -> None:
    found = examine(histogram_of(np.abs(NORMAL)), minmax(histogram_of(np.abs(NORMAL))))
    assert found.unsigned_sqnr_db == pytest.approx(found.sqnr_db + 6.0, abs=0.3)  # type: ignore[operator]
