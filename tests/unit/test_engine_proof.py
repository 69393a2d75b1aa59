"""An engine that was built where it could not execute is held against its graph where it can, before it is measured."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.data.samples import Sample
from optimizer.errors import StageError
from optimizer.pipeline.prove import Proof, Remembered, budget
from optimizer.pipeline.subject import Subject
from optimizer.recipe.model import ShapeRange
from optimizer.types import Artifact, TensorSpec

X, Y = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("y", "float32", ("batch", 4))


class Opened:
    """What stands for the engine: it doubles its input, and from `wrong_from` rows on it forgets the last row."""

    inputs, outputs = (X,), (Y,)

    def __init__(self, wrong_from: int = 1000) -> None:
        self.wrong_from = wrong_from

    def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
        y = 2 * feed["x"]
        if len(y) >= self.wrong_from:
            y[-1] = 0
        return {"y": y}


def subject(folder: Path, missing: str | None = None) -> Subject:
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    graph = Artifact("onnx", folder, "a" * 64, (X,), (Y,))
    plan = Artifact("engine", folder, "b" * 64, (X,), (Y,))
    return Subject("fp16@tensorrt_rtx", "fp16", "fp16", "tensorrt_rtx", "cuda:0", plan, graph, missing)


def bench(folder: Path) -> Any:
    rng = np.random.default_rng(0)
    samples = [Sample({"x": rng.normal(size=4).astype(np.float32)}, None, str(i)) for i in range(16)]
    recipe = SimpleNamespace(
        name="double",
        batch_axis="batch",
        profile={"batch": ShapeRange(min=1, opt=4, max=8)},
        measure=SimpleNamespace(threads=1),
    )
    store = SimpleNamespace(root=folder / "home" / "store")
    return SimpleNamespace(
        recipe=recipe, splits=SimpleNamespace(evaluation=samples), store=store, device="cpu", logs=folder / "logs"
    )


def prove(folder: Path, opened: Opened, missing: str | None = None, baseline: Opened | None = None) -> tuple[str, ...]:
    base = replace(subject(folder), name="fp32@torch", precision="fp32", runtime="torch", device="cpu")
    with ExitStack() as stack:
        proof = Proof(bench(folder), base, baseline or Opened(), stack)  # type: ignore[arg-type]
        return proof.of(subject(folder, missing), opened)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of this bench holds nothing: what is searched is the graph and the engine."""
    monkeypatch.setattr("optimizer.pipeline.prove.lineage", lambda *_: [])


def test_an_engine_that_executes_is_compared_at_every_checked_batch(tmp_path: Path) -> None:
    notes = prove(tmp_path, Opened())
    assert notes[0].startswith("against its graph: output 'y' at batch 1, 3, 4, 8:")
    assert notes[1].startswith("against fp32@torch: output 'y' at batch 1, 3, 4, 8:")
    assert notes[2].startswith("samples alone give what they give inside batch 8")


def test_one_that_is_wrong_at_a_larger_batch_fails_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'fp16@tensorrt_rtx' against its graph.*'y'.*batch 4"):
        prove(tmp_path, Opened(wrong_from=4))


def test_one_that_is_right_by_its_graph_and_wrong_by_the_baseline_fails(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'fp16@tensorrt_rtx' against the baseline 'fp32@torch'.*'y'.*batch 8"):
        prove(tmp_path, Opened(), baseline=Opened(wrong_from=8))


def test_one_that_cannot_execute_is_not_proven_and_says_so(tmp_path: Path) -> None:
    assert prove(tmp_path, Opened(), missing="no GPU") == ("unproven: it cannot execute here (no GPU)",)


def test_the_budget_is_that_of_the_stage_that_gives_up_most(tmp_path: Path) -> None:
    fp16 = subject(tmp_path)
    assert budget(fp16, fp16).min_sqnr_db == 25.0  # the engine's limit, below float16's 30
    assert budget(replace(fp16, runtime="onnxruntime"), fp16).min_sqnr_db == 30.0
    assert budget(replace(fp16, runtime="onnxruntime", precision="int8"), fp16).min_sqnr_db == 10.0


def test_float32_is_held_to_float32_where_neither_side_is_a_gpus(tmp_path: Path) -> None:
    """A GPU multiplies as TF32 by default: a baseline there is no measure of a CPU's last bits."""
    on_gpu = replace(subject(tmp_path), runtime="onnxruntime", precision="fp32")
    on_cpu = replace(on_gpu, device="cpu")
    exact = budget(on_cpu, on_cpu)
    assert exact.exact_integers
    assert exact.atol == 1e-4
    for own, base in ((on_cpu, on_gpu), (on_gpu, on_cpu), (on_gpu, on_gpu)):
        assert budget(own, base).min_sqnr_db == 40.0


def test_the_baseline_answers_each_feed_once() -> None:
    asked: list[int] = []

    class Counted(Opened):
        def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
            asked.append(len(feed["x"]))
            return super().infer(feed)

    remembered = Remembered(Counted())  # type: ignore[arg-type]
    for batch in (1, 3, 1, 3, 3):
        remembered.infer({"x": np.ones((batch, 4), np.float32)})
    assert asked == [1, 3]


def test_a_runtime_is_held_to_its_int8_graph_more_strictly_than_int8_to_float32(tmp_path: Path) -> None:
    """OpenVINO 2026.4 gave equal rows of a batch other answers, 20 dB from its graph, within int8's own budget."""
    from optimizer.pipeline.prove import INT8_EXECUTION_DB, budget, of_execution

    int8 = replace(
        subject(tmp_path), precision="int8", runtime="openvino", device="cpu", artifact=Artifact("onnx", tmp_path, "")
    )
    assert (budget(int8, int8).min_sqnr_db or 0) < 20 < INT8_EXECUTION_DB == of_execution(int8).min_sqnr_db
    # Where int8 itself leaves 14 dB, one value that rounds otherwise shows; never beyond what int8 may lose of float32.
    assert of_execution(int8, 36.0).min_sqnr_db == INT8_EXECUTION_DB
    assert of_execution(int8, 14.0).min_sqnr_db == 17.0
    assert of_execution(int8, 5.0).min_sqnr_db == budget(int8, int8).min_sqnr_db
    assert of_execution(replace(int8, precision="fp32"), 14.0) == of_execution(replace(int8, precision="fp32"))


def test_what_int8_leaves_is_pooled_over_the_batches() -> None:
    from optimizer.pipeline.prove import _pooled_db

    ones = np.ones((4, 5), np.float32)
    assert _pooled_db([(ones, ones + 0.1), (10 * ones, 10 * ones + 0.1)]) == pytest.approx(10 * np.log10(101 / 0.02))
    assert _pooled_db([(ones, ones)]) == np.inf
    assert _pooled_db([(ones, ones * np.nan)]) == np.inf  # nothing is told: the strict limit holds
