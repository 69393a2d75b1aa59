"""What the quality benchmarks do with what they measure: scores, who takes part, failures, the file of results."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample, Samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality
    import quality_float16 as float16
    import quality_goals as goals
    import quality_int8 as int8

    monkeypatch.setattr(sys, "path", list(sys.path))
    return SimpleNamespace(quality=quality, float16=float16, goals=goals, int8=int8)


class Held(Samples):
    def __init__(self, *inputs: Any, targets: Any = ()) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return Sample({"x": self.inputs[index]}, self.targets[index] if len(self.targets) else None, str(index))


def same(feed: Mapping[str, Any]) -> dict[str, Any]:
    return {"logits": feed["x"]}


def evaluation(modules: Any, score: str = "top1", targets: Any = (0, 1, 1, 1)) -> Any:
    rows = np.array([[2, 1], [1, 2], [2, 1], [1, 2]], dtype=np.float32)
    found = modules.quality.Evaluation(Held(*rows, targets=targets), 3, score)
    found.reference = found.outputs(same)
    return found


def test_float32_is_equal_to_itself(modules: Any) -> None:
    row = evaluation(modules).judged(same)
    assert row == {"samples": 4, "top1": 0.75, "same": 1.0, "sqnr_db": None}


def test_scores_are_those_counted_by_hand(modules: Any) -> None:
    def turned(feed: Mapping[str, Any]) -> dict[str, Any]:
        return {"logits": np.where(feed["x"][:, :1] > 1.5, feed["x"][:, ::-1], feed["x"])}

    row = evaluation(modules).judged(turned)
    assert row["top1"] == 0.75  # loses the first, wins the third
    assert row["same"] == 0.5
    assert row["sqnr_db"] == pytest.approx(10 * math.log10(20 / 4))


def test_pixels_are_counted_one_by_one(modules: Any) -> None:
    tiles = np.array([[[[1, -1], [1, -1]]], [[[-1, -1], [1, 1]]]], dtype=np.float32)
    masks = (tiles > 0).astype(np.float32)
    masks[0, 0, 0] = 1 - masks[0, 0, 0]
    found = modules.quality.Evaluation(Held(*tiles, targets=masks), 2, "right")
    found.reference = found.outputs(same)
    assert found.judged(same)["right"] == 0.75
    assert found.judged(lambda feed: {"y": -feed["x"]})["same"] == 0.0


def test_an_embedding_has_no_score(modules: Any) -> None:
    row = evaluation(modules, "").judged(lambda feed: {"y": feed["x"] * np.float32(1.1)})
    assert set(row) == {"samples", "sqnr_db"}
    assert row["sqnr_db"] == pytest.approx(20, abs=1e-3)


def test_outputs_that_are_not_finite_have_no_sqnr(modules: Any) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluation(modules).judged(lambda feed: {"y": feed["x"] * np.float32(np.nan)})


def test_mixed_lengths_are_judged_in_few_batches(modules: Any) -> None:
    rows = [np.eye(3, dtype=np.float32)[i % 3][: 2 + i % 2] for i in range(12)]  # lengths take turns
    found = modules.quality.Evaluation(Held(*rows, targets=[int(r.argmax()) for r in rows]), 4, "top1")
    assert [len(batch) for batch in found.batches] == [4, 2, 4, 2]
    found.reference = found.outputs(same)
    assert found.judged(same)["top1"] == 1.0  # targets went with their samples


def test_fewer_samples_are_spread_over_all(modules: Any) -> None:
    held = Held(*np.arange(100, dtype=np.float32)[:, None])
    some = modules.quality.spread(held, 5)
    assert [float(s.inputs["x"][0]) for s in some] == [0, 20, 40, 60, 80]
    assert modules.quality.spread(held, 0) is held


def test_each_peer_stands_in_the_dialect_that_it_writes(modules: Any) -> None:
    takes_part = modules.quality._takes_part
    assert takes_part("modelopt", "max", "tensorrt", "python")
    assert not takes_part("modelopt", "max", "cpu", "python")
    assert not takes_part("modelopt", "max", "tensorrt", "")
    assert takes_part("onnxruntime", "dynamic", "cpu", "")
    assert not takes_part("onnxruntime", "dynamic", "tensorrt", "")
    assert all(takes_part("onnxruntime", "MinMax", dialect, "") for dialect in modules.quality.DIALECTS)


def test_a_peers_failure_is_a_row(modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("mixed lengths")

    monkeypatch.setitem(modules.quality.QUANTIZERS, "onnxruntime", fails)
    bench, artifact = SimpleNamespace(folder=tmp_path, samples=None), SimpleNamespace(file=tmp_path, path=tmp_path)
    subject = modules.quality.Subject("m", bench, artifact, artifact, (evaluation(modules),), "", 1)
    rows = list(modules.quality.int8_rows(subject, {}, [("onnxruntime", "Percentile")]))
    assert [row["dialect"] for row in rows] == ["tensorrt", "cpu"]
    assert all(row["failed"] == "ValueError: mixed lengths" for row in rows)
    assert "failed: ValueError" in modules.quality.shown(rows[0])


def test_float32_inside_a_half_model_is_half(modules: Any) -> None:
    import torch

    mask = torch.ones(2, dtype=torch.int64)
    with modules.float16.Half():
        assert mask.to(torch.float32).dtype == torch.float16
        assert mask.to(torch.float64).dtype == torch.float64
    assert mask.to(torch.float32).dtype == torch.float32


def test_a_half_model_is_judged_on_halves(modules: Any, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    from optimizer.judge import open_judge

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["batch", 2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    judge, _ = open_judge(tmp_path / "g.onnx")
    feed = {"x": np.array([[1.0001, 3]], dtype=np.float32)}
    with judge:
        assert modules.quality._rounded(judge)(feed)["y"].tolist() == [[2.0, 6.0]]


def test_mixed_lengths_are_filled_up_and_pictures_are_not(modules: Any) -> None:
    ids = modules.int8.padded(Held(np.array([1, 2, 3]), np.array([4])))["x"]
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert modules.int8.padded(Held(np.ones((1, 2, 2)), np.ones((1, 2, 2))))["x"].shape == (2, 1, 2, 2)


@pytest.mark.parametrize("breaks", [False, True])
def test_results_are_written_row_by_row(modules: Any, tmp_path: Path, breaks: bool) -> None:
    target = tmp_path / "found.json"
    row = {"model": "m", "tool": "optimize", "options": "fp16", "samples": 4, "sqnr_db": 60.0}

    def rows_of(*_: Any) -> Iterator[dict[str, Any]]:
        yield row
        if breaks:
            raise KeyboardInterrupt

    def goals_of(rows: Any) -> dict[str, Any]:
        return {"sixty": modules.goals.goal(rows[0]["sqnr_db"], 60.0)}

    command = modules.quality.parser("", "nothing", ["m"])
    asked = ["--data", str(tmp_path), "--modelopt", "none", "--json", str(target)]
    if breaks:
        with pytest.raises(KeyboardInterrupt):
            modules.quality.carry_out(command, rows_of, goals_of, asked)
    else:
        modules.quality.carry_out(command, rows_of, goals_of, asked)
    document = json.loads(target.read_text())
    assert document["rows"] == [row]
    assert document["finished"] is not breaks
    assert document.get("goals") == (None if breaks else {"sixty": {"found_db": 60.0, "least_db": 60.0, "met": True}})


def row(tool: str, options: str, sqnr_db: float, dialect: str = "", **more: Any) -> dict[str, Any]:
    found = {"model": "m", "tool": tool, "options": options, "sqnr_db": sqnr_db, "samples": 500, **more}
    return found | ({"dialect": dialect, "int8": more.get("int8", 1.0)} if dialect else {})


def test_residual_sums_and_shares_are_judged_apart(modules: Any) -> None:
    rows = [
        row("optimize", "residuals int8", 28.0, "tensorrt"),
        row("optimize", "learned", 40.0, "tensorrt", int8=0.5),
        row("optimize", "learned", 31.0, "tensorrt", int8=0.96),
        row("optimize", "learned", 50.0, "cpu"),
    ]
    (plain,) = modules.goals.int8_goal(rows, "m", 30.0, 0.95).values()
    assert plain == {"found_db": 31.0, "least_db": 30.0, "met": True}
    (sums,) = modules.goals.int8_goal(rows, "m", 28.1, 0.95, residuals=True).values()
    assert sums == {"found_db": 28.0, "least_db": 28.1, "met": False}


def test_the_best_peer_is_the_one_to_beat(modules: Any) -> None:
    rows = [
        row("optimize", "minmax", 30.0, "cpu"),
        row("onnxruntime", "MinMax", 28.0, "cpu"),
        row("onnxruntime", "Percentile", 29.0, "cpu"),
        {"model": "m", "tool": "modelopt", "options": "max", "dialect": "tensorrt", "failed": "died"},
        row("optimize", "minmax", 30.0, "tensorrt"),
    ]
    found = modules.goals.peer_goals(rows, "m", {"cpu": 1.0, "tensorrt": 0.0})
    assert [(g["least_db"], g["met"]) for g in found.values()] == [(30.0, True), (None, False)]


def test_fp16_meets_each_half_on_each_count(modules: Any) -> None:
    rows = [row("optimize", "fp16", 58.8), row("torch", "half on the CPU", 58.0), row("torch", "half, exported", 59.0)]
    rows += [one | {"samples": 20, "sqnr_db": one["sqnr_db"] + (one["tool"] == "optimize")} for one in rows]
    found = modules.goals.float16_goals(rows, "m")
    assert [g["met"] for g in found.values()] == [True, False, True, True]
