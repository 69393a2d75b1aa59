from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bundle_run
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runtime.onnx import OnnxSession, missing
from optimizer.types import TensorSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bundle_run.classifier(tmp_path / "model.onnx")


def save(path: Path, nodes: list[onnx.NodeProto], x: list[object], y: tuple[int, list[object]]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", *y)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_session_names_dynamic_axes_and_dtypes(model: Path) -> None:
    with OnnxSession(model) as session:
        assert session.inputs == (TensorSpec("image", "float32", ("batch", 3, 2, 2)),)
        assert session.outputs == (
            TensorSpec("logits", "float32", ("batch", 3)),
            TensorSpec("best", "int64", ("batch",)),
        )
        assert session.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize("optimize", [True, False])
def test_session_infers_and_leaves_the_feed_alone(model: Path, optimize: bool) -> None:
    image = bundle_run.images()
    before = image.tobytes()
    with OnnxSession(model, optimize=optimize) as session:
        outputs = session.infer({"image": image})
    np.testing.assert_allclose(outputs["logits"], bundle_run.logits(), rtol=1e-5, atol=1e-5)
    assert image.tobytes() == before


def test_optimize_false_runs_the_graph_as_written(model: Path, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])
    path = save(tmp_path / "identity.onnx", list(node), ["n"], (TensorProto.FLOAT, ["n"]))

    def executed(optimize: bool) -> set[str]:
        import json

        import onnxruntime as ort

        made: list[ort.SessionOptions] = []
        original = ort.SessionOptions

        class Profiled(original):  # type: ignore[misc,valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = str(tmp_path / "profile")
                made.append(self)

        ort.SessionOptions = Profiled
        try:
            session = OnnxSession(path, optimize=optimize)
        finally:
            ort.SessionOptions = original
        session.infer({"x": np.ones(3, np.float32)})
        events = json.loads(Path(session._session.end_profiling()).read_text())
        return {e["args"]["op_name"] for e in events if e.get("args", {}).get("op_name")}

    assert executed(True) == {"Relu"}
    assert executed(False) == {"Identity", "Relu"}


def test_threads_and_order_are_what_was_asked_for(model: Path) -> None:
    options = OnnxSession(model, threads=2)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.execution_mode.name == "ORT_SEQUENTIAL"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_bound_call_computes_again_from_its_own_copy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = bundle_run.images()
    with OnnxSession(model) as session:
        bindings: list[object] = []
        original = session._session.io_binding
        monkeypatch.setattr(session._session, "io_binding", lambda: bindings.append(original()) or bindings[-1])
        call = session.bind({"image": image})
        image[...] = 0
        call()
        call()
        outputs = bindings[0].copy_outputs_to_cpu()  # type: ignore[attr-defined]
    np.testing.assert_allclose(outputs[0], bundle_run.logits(), rtol=1e-5, atol=1e-5)


def test_bound_call_that_fails_later_is_told_as_ours(model: Path) -> None:
    """onnxruntime's own kinds are neither RuntimeError nor ValueError: whoever measures would not know them."""
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    def fails(*given: object) -> None:
        raise RuntimeException("Failed to allocate memory for requested buffer of size 1")

    with OnnxSession(model) as session:
        real = SimpleNamespace(_sess=SimpleNamespace(run_with_iobinding=fails))
        with pytest.raises(StageError, match="onnxruntime failed while running: Failed to allocate") as caught:
            session._call(real, SimpleNamespace(_iobinding=None))()
    assert caught.value.hint


def test_bind_takes_outputs_whose_shape_depends_on_the_data(tmp_path: Path) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"])
    with OnnxSession(save(tmp_path / "m.onnx", [node], ["n"], (TensorProto.INT64, [1, None]))) as session:
        assert session.outputs[0].shape == (1, "y_axis1")
        call = session.bind({"x": np.array([0, 1, 2], np.float32)})
        call()
        assert session.infer({"x": np.array([0, 1, 0], np.float32)})["y"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "no input 'image'"),
        ({"picture": np.zeros(1)}, "no input 'image'; unknown input 'picture'"),
        ({"image": np.zeros((1, 3, 2, 2))}, "input 'image' is float64, not float32"),
        ({"image": np.zeros((3, 2, 2), np.float32)}, "input 'image' has shape [3, 2, 2], not [batch, 3, 2, 2]"),
        ({"image": np.zeros((1, 3, 2, 4), np.float32)}, "input 'image' has 4 at axis 3, not 2"),
        ({"image": [1.0]}, "input 'image' is a list, not a numpy array"),
    ],
)
def test_wrong_feed_says_what_was_given_and_what_is_allowed(model: Path, feed: dict[str, object], message: str) -> None:
    with OnnxSession(model) as session:
        for call in (session.infer, session.bind):
            with pytest.raises(UsageError) as caught:
                call(feed)  # type: ignore[arg-type]
            assert str(caught.value) == f"model.onnx: {message}\n  it takes image: float32[batch, 3, 2, 2]"


def test_axis_of_one_name_has_one_size(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with OnnxSession(path) as session, pytest.raises(UsageError, match="axis 'n' is 2 in input 'a' and 3 in input 'b'"):
        session.infer({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})


def test_scalar_and_strided_inputs_are_taken(tmp_path: Path) -> None:
    with OnnxSession(save(tmp_path / "s.onnx", [helper.make_node("Neg", ["x"], ["y"])], [], (1, []))) as session:
        assert session.infer({"x": np.array(2.0, np.float32)})["y"] == -2
    with OnnxSession(save(tmp_path / "v.onnx", [helper.make_node("Neg", ["x"], ["y"])], ["n"], (1, ["n"]))) as session:
        assert session.infer({"x": np.arange(4, dtype=np.float32)[::2]})["y"].tolist() == [0, -2]


def test_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"junk" * 20)
    with pytest.raises(StageError, match=r"onnxruntime refuses the model: .*Protobuf parsing failed") as caught:
        OnnxSession(tmp_path / "bad.onnx")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(StageError, match="there is no such file"):
        OnnxSession(tmp_path / "none.onnx")
    assert capfd.readouterr() == ("", "")


def test_failure_while_running_is_a_stage_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_ints=[2, -1]),
        helper.make_node("Reshape", ["x", "two"], ["y"]),
    ]
    with (
        OnnxSession(save(tmp_path / "m.onnx", nodes, ["n"], (1, [2, "m"]))) as session,
        pytest.raises(StageError, match="onnxruntime failed while running"),
    ):
        session.infer({"x": np.zeros(3, np.float32)})


def test_dtype_that_numpy_lacks_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    path = save(tmp_path / "m.onnx", [node], ["n"], (TensorProto.BFLOAT16, ["n"]))
    with pytest.raises(StageError, match=r"output 'y' is tensor\(bfloat16\), which numpy cannot hold"):
        OnnxSession(path)


def test_cuda_without_its_provider_is_missing_and_never_the_cpu(model: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA; tests/gpu has its test")
    with pytest.raises(MissingToolError, match="has no CUDAExecutionProvider"):
        OnnxSession(model, device="cuda:0")
    assert "install onnxruntime-gpu" in (missing("cuda:0") or "")
    assert missing("cpu") is None


def test_provider_that_did_not_start_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    # What an onnxruntime-gpu without its CUDA libraries does: it offers CUDA and starts on the CPU.
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    original = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, sess_options, providers, **rest: original(path, sess_options, ["CPUExecutionProvider"], **rest),
    )
    with pytest.raises(
        MissingToolError, match=r"could not start CUDAExecutionProvider \(it started CPUExecutionProvider"
    ):
        OnnxSession(model, device="cuda:0")


def test_unknown_device_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="'gpu' is no device"):
        OnnxSession(model, device="gpu")


def test_closed_session_says_so(model: Path) -> None:
    session = OnnxSession(model)
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.infer({"image": bundle_run.images()})


def test_what_is_timed_reads_its_own_inputs_and_no_freed_memory(tmp_path: Path) -> None:
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.arange(8, dtype=np.float32), "table")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx")
    with OnnxSession(tmp_path / "g.onnx") as session:
        timed = session.bind({"ids": np.arange(4)})
        rubbish = [np.full(4, 10**9) for _ in range(200)]  # would take the place of an array that nobody holds
        timed()  # an index beyond the table is an error
    assert len(rubbish) == 200
