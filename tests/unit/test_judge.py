"""The judge: which arithmetic it opens, and that it leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from optimizer.errors import StageError
from optimizer.judge import open_judge

HEAD = '<ir_version: 10, opset_import: ["" : 20]> '
PLAIN = HEAD + "g (float[n] x) => (float[n] y) { y = Relu(x) }"
HALF = HEAD + "g (float[n] x) => (float[n] y) { h = Cast<to: int = 10>(x) m = Mul(h, h) y = Cast<to: int = 1>(m) }"
BRAIN = HALF.replace("int = 10", "int = 16")
BOTH = HALF.replace("y = Cast<to: int = 1>(m)", "b = Cast<to: int = 16>(m) n = Mul(b, b) y = Cast<to: int = 1>(n)")
QUANTIZED = HEAD + (
    "g (float[n] x) => (float[n] y) <float s = {0.5}> { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"
)


def save(text: str, folder: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("text", "arithmetic"),
    [
        (PLAIN, "float32"),
        (HALF, "float16 rounded after every operator"),
        (BRAIN, "bfloat16 rounded after every operator"),
        (BOTH, "float16 and bfloat16 rounded after every operator"),
        (QUANTIZED, "int8 as its Q/DQ nodes say, float32"),
    ],
)
def test_the_sentence_says_tool_and_arithmetic(text: str, arithmetic: str, tmp_path: Path) -> None:
    session, sentence = open_judge(save(text, tmp_path))
    session.close()
    assert sentence == f"onnxruntime {onnxruntime.__version__} on the CPU, {arithmetic}"


def test_float16_parts_round_and_overflow(tmp_path: Path) -> None:
    session, _ = open_judge(save(HALF, tmp_path))
    with session:
        found = session.infer({"x": np.array([300.0, 0.1], np.float32)})["y"]
    assert found.dtype == np.float32
    tenth = np.float16(0.1)
    np.testing.assert_array_equal(found, np.array([np.inf, tenth * tenth], np.float32))


def test_bfloat16_parts_round_and_do_not_overflow(tmp_path: Path) -> None:
    session, _ = open_judge(save(BRAIN, tmp_path))
    with session:
        found = session.infer({"x": np.array([300.0, 0.1], np.float32)})["y"]
    assert found.tolist() == [90112.0, 0.010009765625]  # 300 is held exactly; 0.1 is 0.10009765625


def test_the_judge_offers_the_interface_of_the_model(tmp_path: Path) -> None:
    session, _ = open_judge(save(HALF, tmp_path))
    with session:
        assert [(s.name, s.dtype, s.shape) for s in (*session.inputs, *session.outputs)] == [
            ("x", "float32", ("n",)),
            ("y", "float32", ("n",)),
        ]
        session.bind({"x": np.ones(3, np.float32)})()


def test_closing_removes_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    session, _ = open_judge(save(HALF, tmp_path))
    assert len(list((tmp_path / "t").iterdir())) == 1
    session.close()
    session.close()
    assert not list((tmp_path / "t").iterdir())


def test_a_graph_that_cannot_be_emulated_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    text = (
        HEAD
        + """g (bool c, float[n] x) => (float[n] y) { y = If(c) <
        then_branch = t () => (float[n] a) { h = Cast<to: int = 10>(x)  a = Cast<to: int = 1>(h) },
        else_branch = e () => (float[n] b) { b = Identity(x) }> }"""
    )
    with pytest.raises(StageError):
        open_judge(save(text, tmp_path))
    assert not list((tmp_path / "t").iterdir())
