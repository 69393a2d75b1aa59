"""What a graph holds at once is told from shapes alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from quantization_graphs import build

from optimizer.calibration import probe
from optimizer.calibration.probe import Reference
from optimizer.data.samples import Sample
from optimizer.graph.live_bytes import LiveBytes

# Large pictures inside, and a few numbers behind them.
POOLED = """g (float[batch, 3, h, w] image) => (float[batch, 8, 1, 1] y) {
    a = Conv <pads = [1, 1, 1, 1]> (image, w0)
    r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w1)
    s = Add (b, r)
    y = GlobalAveragePool (s)
}"""
SIDE = 32
ONE = 8 * SIDE * SIDE * 4  # bytes of an activation of eight channels


def pooled() -> onnx.ModelProto:
    return build(POOLED, {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3)})


def test_a_tensor_lives_until_it_is_read_for_the_last_time() -> None:
    live = LiveBytes(pooled())
    assert live.of({"image": (1, 3, SIDE, SIDE)}) == 3 * ONE  # r, b and their sum; not a as well
    assert live.of({"image": (4, 3, SIDE, SIDE)}) == 4 * 3 * ONE
    model = pooled()
    model.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, ["batch", 8, "h", "w"]))
    assert LiveBytes(model).of({"image": (1, 3, SIDE, SIDE)}) == 4 * ONE  # the twin: an output is held to the end


def test_what_a_body_reads_from_outside_lives_until_then() -> None:
    text = """g (float[batch, 8] x, bool c) => (float[batch, 8] y) {
        a = Relu (x)
        b = Relu (a)
        d = Relu (b)
        y = If (c) <
            then_branch = t () => (float[batch, 8] p) { p = Add (a, d) },
            else_branch = e () => (float[batch, 8] q) { q = Identity (d) }
        >
    }"""
    # While d is made: a, which the branch reads, b and d, and the condition. Without the branch: b and d alone.
    assert LiveBytes(build(text, {})).of({"x": (1, 8), "c": ()}) == 3 * 8 * 4 + 1


def batches(monkeypatch: pytest.MonkeyPatch, budget: int) -> list[int]:
    """Return the sizes of the batches that a reference judges ten samples in."""
    found: list[int] = []

    class Observed(probe.OnnxSession):
        def infer(self, feed: object) -> dict[str, object]:
            made: dict[str, object] = super().infer(feed)  # type: ignore[arg-type, assignment]
            found.append(len(made["y"]))  # type: ignore[arg-type]
            return made

    monkeypatch.setattr(probe, "_LIVE_BYTES", budget)
    monkeypatch.setattr(probe, "OnnxSession", Observed)
    rng = np.random.default_rng(0)
    pictures = [Sample({"image": rng.normal(size=(3, SIDE, SIDE)).astype(np.float32)}, None, str(i)) for i in range(10)]
    with Reference(pooled(), pictures) as reference:  # type: ignore[arg-type]
        reference.shares_of(pooled())
    monkeypatch.undo()
    return found


def test_a_batch_is_bounded_by_what_is_alive_in_the_graph_however_small_its_outputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert max(batches(monkeypatch, 4 * 3 * ONE)) == 4
    assert max(batches(monkeypatch, 1)) == 1
    assert max(batches(monkeypatch, 1 << 30)) == 9  # the twin: with room they come together, behind the first
