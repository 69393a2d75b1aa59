"""An engine that was built where it could not execute is held against its graph where it can, before it is measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.data.samples import Sample
from optimizer.errors import StageError
from optimizer.pipeline.evaluate import _prove
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


def bench() -> Any:
    rng = np.random.default_rng(0)
    samples = [Sample({"x": rng.normal(size=4).astype(np.float32)}, None, str(i)) for i in range(16)]
    recipe = SimpleNamespace(batch_axis="batch", profile={"batch": ShapeRange(min=1, opt=4, max=8)})
    return SimpleNamespace(recipe=recipe, splits=SimpleNamespace(evaluation=samples))


def test_an_engine_that_executes_is_compared_at_every_checked_batch(tmp_path: Path) -> None:
    (note,) = _prove(subject(tmp_path), Opened(), bench())  # type: ignore[arg-type]
    assert note.startswith("output 'y' at batch 1, 3, 4, 8:")


def test_one_that_is_wrong_at_a_larger_batch_fails_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'fp16@tensorrt_rtx' against its graph.*'y'.*batch 4"):
        _prove(subject(tmp_path), Opened(wrong_from=4), bench())  # type: ignore[arg-type]


def test_one_that_cannot_execute_is_not_proven(tmp_path: Path) -> None:
    assert _prove(subject(tmp_path, missing="no GPU"), Opened(), bench()) == ()  # type: ignore[arg-type]
