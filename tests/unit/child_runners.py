"""Runners that a child process opens by name: a small real one, and some that misbehave on purpose."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from optimizer.runner import Runner
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runtime.session import Array, Feed, Session
from optimizer.types import Artifact, TensorSpec


def linear(folder: Path, size: int = 16, batch: int | str = "batch") -> Artifact:
    """An ONNX file of one MatMul; its weight takes 4 * size * size bytes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, size])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    spec = (TensorSpec("x", "float32", (batch, size)),)
    return Artifact("onnx", folder, "digest", spec, (TensorSpec("y", "float32", (batch, size)),))


def onnx_runner(folder: Path, size: int = 16, batch: int | str = "batch") -> Runner:
    return OnnxRuntimeRunner(linear(folder, size, batch))


def samples(count: int, size: int = 16) -> list[dict[str, Array]]:
    values = np.random.default_rng(1).normal(size=(count, 1, size)).astype(np.float32)
    return [{"x": value} for value in values]


class Scripted(Session):
    """Answers after `seconds`; from call `fails_at` on it does `how`."""

    inputs = (TensorSpec("x", "float32", ("batch", 16)),)
    outputs = (TensorSpec("y", "float32", ("batch", 16)),)

    def __init__(self, seconds: float, fails_at: int, how: str) -> None:
        self._seconds, self._left, self._how = seconds, fails_at, how

    def infer(self, feed: Feed) -> dict[str, Array]:
        self._left -= 1
        if self._left == 0:
            _MISHAPS[self._how]()
        if self._seconds:
            time.sleep(self._seconds)
        return {"y": np.asarray(feed["x"])}

    def bind(self, feed: Feed) -> Callable[[], None]:
        return lambda: self.infer(feed) and None


def _refuse() -> None:
    raise RuntimeError("no kernel for this sample")


def _leave() -> None:
    raise SystemExit(3)


_MISHAPS: dict[str, Callable[[], Any]] = {
    "raise": _refuse,
    "exit": _leave,
    "crash": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(600),
}


class ScriptedRunner(Runner):
    runtime: ClassVar[str] = "scripted"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    def __init__(self, *, seconds: float = 0.0, fails_at: int = -1, how: str = "raise") -> None:
        super().__init__(Artifact("onnx", Path("nowhere"), ""))
        self._script = (seconds, fails_at, how)

    @classmethod
    def missing(cls, device: str) -> str | None:
        return None

    def open(self) -> Session:
        return Scripted(*self._script)
