from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runtime import cuda, tensorrt
from optimizer.runtime.tensorrt import TensorRTSession
from optimizer.types import TensorSpec

X = np.arange(6, dtype=np.float32).reshape(2, 3)
INPUT = {"name": "x", "dtype": "float32", "shape": ["batch", 3]}
OUTPUT = {"name": "double", "dtype": "float32", "shape": ["batch", 3]}


class Machine:
    """A machine whose driver and TensorRT are the fakes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **traits: Any) -> None:
        self.driver = fake_gpu.Driver()
        self.trt = fake_gpu.tensorrt(**traits)
        self.trt.driver = self.driver
        monkeypatch.setattr(cuda, "_load", lambda index: self.driver)
        monkeypatch.setattr(tensorrt, "_import", lambda package: self.trt)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **traits: Machine(monkeypatch, **traits)


def test_session_computes_and_frees_everything(machine: Any, tmp_path: Path) -> None:
    here = machine()
    before = X.tobytes()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        np.testing.assert_array_equal(session.infer({"x": X})["double"], X * 2)
        assert X.tobytes() == before
    session.close()
    assert (here.driver.memory, here.driver.handles, here.driver.retained) == ({}, set(), 0)
    with pytest.raises(RuntimeError, match="closed"):
        session.infer({"x": X})


def test_axes_have_the_names_of_the_receipt(machine: Any, tmp_path: Path) -> None:
    machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        assert session.inputs == (TensorSpec("x", "float32", ("x_axis0", 3)),)
    plan = fake_gpu.plan(tmp_path, inputs=[INPUT], outputs=[OUTPUT])
    with TensorRTSession(plan, package="tensorrt") as session:
        assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
        assert session.outputs == (TensorSpec("double", "float32", ("batch", 3)),)


def test_receipt_of_another_engine_is_refused(machine: Any, tmp_path: Path) -> None:
    here = machine()
    plan = fake_gpu.plan(tmp_path, inputs=[INPUT | {"shape": ["batch", 7]}], outputs=[OUTPUT])
    with pytest.raises(StageError, match="they do not belong together"):
        TensorRTSession(plan, package="tensorrt")
    assert here.driver.retained == 0


def test_memory_grows_and_is_used_again(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        for rows in (1, 4, 2, 4, 1):
            x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
            np.testing.assert_array_equal(session.infer({"x": x})["double"], x * 2)
    assert here.driver.calls.count("cuMemAlloc_v2") == 4  # one and four rows, of two tensors


def test_bound_calls_keep_their_own_memory(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        x = X.copy()
        one, two = session.bind({"x": x}), session.bind({"x": np.ones((4, 3), np.float32)})
        x[...] = 0
        session.infer({"x": X})
        here.driver.calls.clear()
        for call in (one, two, one):
            call()
        assert here.driver.calls == ["cuCtxPushCurrent_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"] * 3
        with session._cuda.current:
            first = one.__self__.fetch()["double"]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(first, X * 2)


def test_shape_tensors_live_in_host_memory(machine: Any, tmp_path: Path) -> None:
    machine(sizes=True)
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        assert session.infer({"x": X})["sizes"].tolist() == [2, 3]


def test_shape_outside_the_profile_is_a_usage_error(machine: Any, tmp_path: Path) -> None:
    machine()
    with (
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session,
        pytest.raises(
            UsageError, match=r"input 'x' has shape \[5, 3\]; the engine's profile allows \[1, 3\] to \[4, 3\]"
        ),
    ):
        session.infer({"x": np.zeros((5, 3), np.float32)})


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"data_dependent": True}, "the shape of output 'double' depends on the data"),
        ({"fails": True}, "execution failed: Cask convolution execution failed"),
        ({"inconsistent": True}, "TensorRT cannot infer shapes: it logged no reason (shape inference failed)"),
        ({"dtype": "BF16"}, "tensor 'double' is BF16, which numpy cannot hold"),
        ({"linear": False}, "tensor 'double' is not in linear format"),
        ({"refuse": "magicTag == kEXPECTED_MAGIC_TAG failed"}, "tensorrt_rtx 99.1 refuses the engine: magicTag"),
    ],
)
def test_refusals_name_the_cause(machine: Any, tmp_path: Path, traits: dict[str, Any], message: str) -> None:
    here = machine(**traits)
    with pytest.raises(StageError) as caught, TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as s:
        s.infer({"x": X})
    assert message in str(caught.value)
    assert here.driver.retained == 0


def test_driver_that_is_too_old_is_a_missing_tool(machine: Any, tmp_path: Path) -> None:
    here = machine(old_driver=True)
    with pytest.raises(MissingToolError) as caught:
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx")
    assert "cannot start its runtime: CUDA initialization failure with error: 35" in caught.value.what
    assert caught.value.hint == "it needs a newer driver; this one serves CUDA 13.2"
    assert here.driver.retained == 0


def test_lost_gpu_keeps_its_error_through_closing(machine: Any, tmp_path: Path) -> None:
    here = machine()
    session = TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt")
    call = session.bind({"x": X})
    here.driver.lost = True
    with pytest.raises(StageError, match="CUDA_ERROR_ILLEGAL_ADDRESS"), session:
        call()


def test_session_leaves_the_current_gpu_as_it_was(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        session.infer({"x": X})
        session.bind({"x": X})()
        assert here.driver.stack == [fake_gpu.TORCHS_CONTEXT]
    assert here.driver.stack == [fake_gpu.TORCHS_CONTEXT]


def test_engine_of_another_gpu_is_a_missing_device(machine: Any, tmp_path: Path) -> None:
    machine(refuse="no kernel image")
    with pytest.raises(MissingToolError) as caught:
        TensorRTSession(fake_gpu.plan(tmp_path, compute_capabilities=["8.6", "12.0"]), package="tensorrt_rtx")
    assert "was built for 8.6, 12.0; this GPU () has compute capability 8.9" in str(caught.value)
    assert "no kernel image" in str(caught.value)


def test_rtx_compiles_kernels_before_it_answers(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx"):
        config = here.trt.engines[0].configs[0]
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt"):
        assert here.trt.engines[1].configs == [None]


def test_cpu_and_a_missing_package_are_said_plainly(machine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    machine()
    with pytest.raises(MissingToolError, match="executes on an NVIDIA GPU, not on the CPU") as caught:
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx", device="cpu")
    assert caught.value.hint == "pass --device cuda:0"
    assert tensorrt.missing("tensorrt_rtx", "cpu") == "needs the GPU: pass --device cuda:0"
    assert tensorrt.missing("tensorrt_rtx", "cuda:0") is None
    assert tensorrt.missing("tensorrt_rtx", "cuda:1") == "needs GPU 1; this machine has 1 GPU"

    def absent(package: str) -> None:
        raise MissingToolError(f"needs {package}, which cannot be imported")

    with monkeypatch.context() as patched:
        patched.setattr(tensorrt, "_import", absent)
        assert tensorrt.missing("tensorrt", "cuda:0") == "needs tensorrt, which cannot be imported"
    with pytest.raises(StageError, match="there is no such file"):
        TensorRTSession(tmp_path / "none.plan", package="tensorrt_rtx")


def test_real_bindings_have_every_name_that_the_fake_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    pairs = [
        (trt.ICudaEngine, fake_gpu.Engine),
        (trt.IExecutionContext, fake_gpu.Context),
        (trt.Runtime, fake_gpu.tensorrt().Runtime),
    ]
    for real, fake in pairs:
        for name in (name for name in vars(fake) if not name.startswith("_")):
            assert hasattr(real, name), f"{real.__name__}.{name}"
    assert {m.name for m in fake_gpu.DataType} <= set(trt.DataType.__members__)
    assert set(fake_gpu.Mode.__members__) == set(trt.TensorIOMode.__members__)
    assert set(fake_gpu.Location.__members__) == set(trt.TensorLocation.__members__)
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(trt.TensorFormat, "LINEAR")


def test_real_runtime_refuses_junk_through_our_logger() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    errors: list[str] = []
    runtime = trt.Runtime(tensorrt._logger(trt, errors))
    assert runtime.deserialize_cuda_engine(b"junk" * 100) is None
    assert any("magicTag" in error for error in errors)
