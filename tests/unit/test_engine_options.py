"""Builder options of TensorRT through a stand-in of its builder: each is set under its own name, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_builder import GPU_BYTES, Fake
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import MissingToolError, RecipeError, StageError
from optimizer.graph.build_engine import build
from optimizer.graph.builder_config import set_options
from optimizer.graph.builder_options import OPTIONS, Library
from optimizer.stage import StageContext
from optimizer.stages.engine import EngineRtx, EngineTensorRT
from optimizer.types import Artifact

BATCH = {"batch": (1, 8, 16)}


def gemm(path: Path) -> Path:
    import numpy as np

    weights = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build with the fake in this process: the fake, and what the build returns."""

    def run(fake: Fake, **options: Any) -> dict[str, Any]:
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        source, plan = gemm(tmp_path / "model.onnx"), tmp_path / "engine.plan"
        stage = EngineTensorRT(profile=BATCH, **options)
        return build(str(source), str(plan), "tensorrt", {"batch": [1, 8, 16]}, [], stage.options)

    return run


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, {"TF32"}),
        ({"tf32": False}, set()),
        ({"refit": True}, {"TF32", "REFIT"}),
        ({"refit": "identical"}, {"TF32", "REFIT_IDENTICAL"}),
        ({"strip_plan": True}, {"TF32", "STRIP_PLAN"}),
        ({"weight_streaming": True}, {"TF32", "WEIGHT_STREAMING"}),
        ({"sparse_weights": True}, {"TF32", "SPARSE_WEIGHTS"}),
        ({"version_compatible": True}, {"TF32", "VERSION_COMPATIBLE"}),
    ],
)
def test_a_switch_sets_its_flag_and_no_other(made: Any, options: dict[str, Any], flags: set[str]) -> None:
    fake = Fake()
    built = made(fake, **options)
    assert fake.configs[0].flags == flags
    for name, value in options.items():
        assert built["options"][name] == value


def test_values_reach_the_builder_and_are_read_back(made: Any) -> None:
    fake = Fake()
    built = made(
        fake, workspace=1 << 20, builder_optimization_level=5, hardware_compatibility_level="same_compute_capability"
    )
    config = fake.configs[0]
    assert (config.pool, config.builder_optimization_level) == (1 << 20, 5)
    assert config.level.name == "SAME_COMPUTE_CAPABILITY"
    assert built["options"] == {
        "workspace": 1 << 20,
        "tf32": True,
        "weight_streaming": False,
        "strip_plan": False,
        "refit": False,
        "builder_optimization_level": 5,
        "sparse_weights": False,
        "hardware_compatibility_level": "same_compute_capability",
        "version_compatible": False,
    }


@pytest.mark.parametrize("level", range(6))
def test_every_level_is_set_the_lowest_too(made: Any, level: int) -> None:
    fake = Fake()
    made(fake, builder_optimization_level=level)
    assert fake.configs[0].builder_optimization_level == level


def test_without_options_the_librarys_defaults_are_reported(made: Any) -> None:
    built = made(Fake())
    assert built["options"]["workspace"] == GPU_BYTES
    assert built["options"]["builder_optimization_level"] == 3
    assert built["retry"] is None
    assert built["profiles"] == [{"batch": {"min": 1, "opt": 8, "max": 16}}]


def test_every_profile_is_added_and_an_axis_left_out_keeps_the_recipes(made: Any) -> None:
    fake = Fake()
    made(fake, profiles=({"batch": (1, 1, 1)}, {"batch": {"min": 2, "opt": 4, "max": 16}}, {}))
    assert fake.configs[0].profiles == [
        {"x": ((1, 4), (1, 4), (1, 4))},
        {"x": ((2, 4), (4, 4), (16, 4))},
        {"x": ((1, 4), (8, 4), (16, 4))},
    ]


@pytest.mark.parametrize(("version", "flags"), [("10.13.2", 1 << 1), ("11.1.0", 0)])
def test_strong_types_are_asked_of_tensorrt_10_alone(made: Any, version: str, flags: int) -> None:
    fake = Fake(version=version)
    made(fake)
    assert fake.networks == [flags]


def test_a_level_that_this_release_does_not_list_is_refused(made: Any) -> None:
    with pytest.raises(StageError) as caught:
        made(
            Fake(version="10.0.1", lacking=("SAME_COMPUTE_CAPABILITY",)),
            hardware_compatibility_level="same_compute_capability",
        )
    assert str(caught.value) == (
        "tensorrt 10.0.1 has no HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY, which hardware_compatibility_level "
        "needs\n  Remove it from targets.tensorrt, or install a later release."
    )


def test_a_library_that_keeps_another_value_is_refused(made: Any) -> None:
    with pytest.raises(StageError) as caught:
        made(Fake(deaf=True), hardware_compatibility_level="ampere_plus")
    assert str(caught.value) == (
        "tensorrt 11.1.0 did not take hardware_compatibility_level is 'none' after it was set to 'ampere_plus'\n"
        "  Remove it from targets.tensorrt, or use a release that takes it."
    )


def test_the_plugins_of_tensorrt_are_there_before_the_graph_is_parsed(made: Any) -> None:
    fake = Fake()
    calls: list[Any] = []
    fake.init_libnvinfer_plugins = lambda *given: calls.append((*given, len(fake.configs)))  # type: ignore[attr-defined]
    made(fake)
    assert calls == [(None, "", 0)]


# The timing cache.
def test_a_cache_that_is_not_locked_is_continued_beside_the_plan_and_never_written_back(
    made: Any, tmp_path: Path
) -> None:
    given = tmp_path / "known.cache"
    given.write_bytes(b"old")
    fake = Fake()
    built = made(fake, timing_cache={"path": str(given)})
    assert fake.configs[0].cache.begun == b"old"
    assert (given.read_bytes(), (tmp_path / "timing.cache").read_bytes()) == (b"old", b"old+timed")
    assert built["timing_cache"]["locked"] is False
    assert built["timing_cache"]["began_with_sha256"] != built["timing_cache"]["file_sha256"]


def test_a_cache_that_is_not_locked_may_be_absent(made: Any, tmp_path: Path) -> None:
    built = made(Fake(), timing_cache={"path": str(tmp_path / "none")})
    assert built["timing_cache"]["began_with_sha256"] is None
    assert (tmp_path / "timing.cache").read_bytes() == b"+timed"


def test_a_locked_cache_makes_a_miss_an_error(made: Any, tmp_path: Path) -> None:
    given = tmp_path / "known.cache"
    given.write_bytes(b"old")
    fake = Fake()
    built = made(fake, timing_cache={"path": str(given), "locked": True})
    assert "ERROR_ON_TIMING_CACHE_MISS" in fake.configs[0].flags
    assert built["timing_cache"]["file_sha256"] is None
    assert not (tmp_path / "timing.cache").exists()
    miss = [("ERROR", "Error Code 10: tactic 0x12 is not present in the timing cache")]
    with pytest.raises(StageError) as caught:
        made(Fake(miss), timing_cache={"path": str(given), "locked": True})
    assert str(caught.value) == (
        "tensorrt 11.1.0 built no engine: Error Code 10: tactic 0x12 is not present in the timing cache\n"
        "  A kernel is missing from the locked timing cache. Build once with locked: false, copy timing.cache from the "
        "engine's folder to this path, and lock it then."
    )


def test_a_cache_of_another_gpu_is_refused(made: Any, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"x")
    with pytest.raises(StageError, match=r"refuses the timing cache c: another release made it, or another kind of"):
        made(Fake(foreign=True), timing_cache={"path": str(tmp_path / "c")})


def test_the_key_has_the_content_of_the_cache_and_not_its_place(tmp_path: Path) -> None:
    def key(path: Path, **more: Any) -> str:
        stage = EngineTensorRT(profile=BATCH, timing_cache={"path": str(path), **more})
        return stage.key({"graph": "0" * 64}, {"tensorrt": "11"}, "GPU")

    one, other, third = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    one.write_bytes(b"same")
    other.write_bytes(b"same")
    third.write_bytes(b"more")
    assert key(one) == key(other)
    assert len({key(one), key(third), key(tmp_path / "absent"), key(one, locked=True)}) == 4


def test_a_locked_cache_that_is_absent_is_refused_before_anything_runs(tmp_path: Path) -> None:
    stage = EngineTensorRT(profile=BATCH, timing_cache={"path": "no/such.cache", "locked": True})
    with pytest.raises(RecipeError) as caught:
        stage.key({"graph": "0" * 64}, {"tensorrt": "11"}, "GPU")
    assert str(caught.value) == (
        "timing_cache.path: there is no timing cache at no/such.cache\n"
        "  Build once with locked: false, copy timing.cache from the engine's folder to this path, and lock it then."
    )


def test_a_cache_that_changed_after_the_key_was_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, known = Bench(tmp_path, monkeypatch, FAKE.format(builds="")), tmp_path / "known.cache"
    known.write_bytes(b"old")
    stage = EngineTensorRT(profile=BATCH, timing_cache={"path": str(known)})
    stage.key({"graph": "0" * 64}, {"tensorrt": "11"}, "GPU")
    known.write_bytes(b"new")
    with pytest.raises(StageError, match=r"the timing cache known.cache has changed since the build was planned"):
        bench.build(stage)
    known.write_bytes(b"old")
    receipt = bench.build(stage)
    assert receipt["options_given"] == {"timing_cache": {"path": "known.cache", "locked": False}}
    assert receipt["timing_cache"]["began_with_sha256"] == stage.timing_cache_sha256
    assert "--timingCacheFile=known.cache" in receipt["trtexec"]
    assert (bench.out / "timing.cache").read_bytes() == b"old+timed"


def test_only_the_limit_of_time_is_no_part_of_the_key() -> None:
    def key(**options: Any) -> str:
        return EngineRtx(profile=BATCH, **options).key({"graph": "0" * 64}, {"tensorrt_rtx": "1.7"})

    assert key(time_limit=10.0) == key()
    assert key(memory_limit=1 << 30) != key()


# Memory.
SKIPPED = ("WARNING", "Tactic Device request: 9217MB Available: 8000MB. Device memory is insufficient to use tactic.")
NO_TACTIC = ("ERROR", "Error Code 10: Internal Error (Could not find any implementation for node {Foreign[fc]}.)")
BOTH = [SKIPPED, NO_TACTIC]


def test_memory_that_ran_out_in_a_tactic_is_tried_again_with_half_the_workspace(made: Any) -> None:
    fake = Fake(BOTH)
    built = made(fake)
    assert fake.workspaces == [GPU_BYTES, GPU_BYTES // 2]
    assert built["options"]["workspace"] == GPU_BYTES // 2
    assert built["retry"] == {
        "reason": f"ran out of memory in a tactic of node '{{Foreign[fc]}}' ({SKIPPED[1]})",
        "workspace": [GPU_BYTES, GPU_BYTES // 2],
    }
    assert [row["onnx_nodes"] for row in built["layers"]] == [["fc"]]
    assert built["warnings"] == []  # those of the attempt that failed stand in `retry`


def test_half_of_a_workspace_that_was_given_is_tried(made: Any) -> None:
    fake = Fake([("ERROR", "Requested amount of GPU memory (1 bytes) could not be allocated.")])
    made(fake, workspace=1 << 20)
    assert fake.workspaces == [1 << 20, 1 << 19]


def test_the_second_shortage_ends_it(made: Any) -> None:
    fake = Fake(BOTH, BOTH)
    with pytest.raises(StageError) as caught:
        made(fake)
    assert len(fake.workspaces) == 2
    said = f"ran out of memory in a tactic of node '{{Foreign[fc]}}' ({SKIPPED[1]})"
    assert str(caught.value) == (
        f"first it {said} at a workspace of 8589934592 bytes; with half of it tensorrt 11.1.0 {said}\n"
        "  node 'fc' (Gemm)\n  Free memory, give workspace: (bytes, below 4294967296), or lower the profile's max."
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([NO_TACTIC], "built no engine: Error Code 10"),  # nothing speaks of memory
        ([SKIPPED, ("ERROR", "FP32 GEMM is not supported on Turing")], "takes FP16 only"),
        ([("ERROR", "no tactics to implement the operation within workspace limit")], "fits into a workspace of"),
        ([], "it logged no reason"),
    ],
)
def test_other_failures_are_not_tried_again(made: Any, lines: list[tuple[str, str]], said: str) -> None:
    fake = Fake(lines)
    with pytest.raises(StageError, match=said):
        made(fake)
    assert len(fake.workspaces) == 1


def test_a_workspace_that_is_too_small_is_named(made: Any) -> None:
    with pytest.raises(StageError) as caught:
        made(Fake([("ERROR", "Skipped due to insufficient workspace.")]), workspace=1024)
    assert str(caught.value) == (
        "tensorrt 11.1.0 finds no kernel that fits into a workspace of 1024 bytes: Skipped due to insufficient "
        "workspace.\n  Give more, or remove workspace."
    )


def test_a_driver_that_is_too_old_is_one_clear_error(made: Any) -> None:
    with pytest.raises(MissingToolError) as caught:
        made(Fake(starts="CUDA initialization failure with error: 35"))
    assert str(caught.value) == (
        "tensorrt 11.1.0 cannot start its builder: CUDA initialization failure with error: 35\n"
        "  It builds on the NVIDIA GPU that will execute the engine. Without one, use the target tensorrt_rtx.\n"
        "  The NVIDIA driver is absent or too old for this release: update it, or install an older release."
    )


# Through the stage: a child process with a `tensorrt` of its own.
class Bench:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        for name in ("source", "out", "site"):
            (folder / name).mkdir()
        (folder / "site" / "tensorrt.py").write_text(module)
        monkeypatch.syspath_prepend(str(folder / "site"))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        gemm(folder / "source" / "model.onnx")
        self.out, self.log, self.notes = folder / "out", folder / "engine.log", list[str]()
        self.graph = Artifact("onnx", folder / "source", "9f2c61d0" + "0" * 56)

    def run(self, **options: Any) -> dict[str, Any]:
        return self.build(EngineTensorRT(profile=BATCH, **options))

    def build(self, stage: EngineTensorRT) -> dict[str, Any]:
        context = StageContext(self.log, self.notes.append, lambda *_: None, lambda _: None)  # type: ignore[arg-type, return-value]
        stage.run({"graph": self.graph}, self.out, context)
        document: dict[str, Any] = json.loads((self.out / "engine.json").read_text())
        return document


FAKE = "import sys\nfrom fake_builder import Fake\nsys.modules[__name__] = Fake({builds})\n"


def test_the_report_says_that_less_workspace_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, FAKE.format(builds=repr(BOTH)))
    receipt = bench.run(strip_plan=True, refit=True)
    assert receipt["retry"]["workspace"] == [GPU_BYTES, GPU_BYTES // 2]
    assert receipt["options_given"] == {"strip_plan": True, "refit": True}
    assert receipt["profile"] == {"batch": {"min": 1, "opt": 8, "max": 16}}
    assert receipt["trtexec"] == (
        "trtexec --onnx=model.onnx --saveEngine=engine.plan --minShapes=x:1x4 --optShapes=x:8x4 --maxShapes=x:16x4 "
        "--memPoolSize=workspace:4294967296B --stripWeights --refit --profilingVerbosity=detailed --skipInference"
    )
    assert bench.notes[0] == (
        f"tensorrt ran out of memory in a tactic of node '{{Foreign[fc]}}' ({SKIPPED[1]}); "
        "built again with a workspace of 4294967296 bytes, not 8589934592"
    )
    # a stripped plan lies beside the graph that has its weights
    assert {file.name for file in bench.out.iterdir()} == {"engine.plan", "engine.json", "model.onnx"}


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (
            "import time\ntime.sleep(60)\n",
            {"time_limit": 1.0},
            "did not finish within 1 s and was stopped\n  Raise targets.tensorrt.time_limit, 1 s now.\n  l",
        ),
        (
            "kept = bytearray(1 << 31)\n",
            {"memory_limit": 512 << 20},
            r"ran out of memory \(limit: 512 MiB\)\n  Raise targets.tensorrt.memory_limit, 536870912 bytes now.\n",
        ),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
            {},
            r"was killed by SIGKILL .*\n  Free memory, or use a smaller model, batch or profile.",
        ),
        ("import ctypes\nctypes.string_at(0)\n", {}, "crashed with SIGSEGV"),
        (FAKE.format(builds="[('ERROR', 'Unexpected exception std::bad_alloc')]"), {}, "ran out of memory\n  Free"),
    ],
)
def test_however_the_child_ends_there_is_one_error_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, options: dict[str, Any], said: str
) -> None:
    bench = Bench(tmp_path, monkeypatch, module)
    with pytest.raises(StageError, match=said) as caught:
        bench.run(**options)
    assert str(caught.value).startswith("stage 'engine' failed on model.onnx (9f2c61d0): ")
    assert f"log: {bench.log}" in str(caught.value)
    assert not list(bench.out.iterdir())


def test_every_option_of_the_table_is_a_field_and_has_an_effect_or_a_refusal() -> None:
    elsewhere = {"package", "profile", "precision", "at_least", "memory_limit", "time_limit"}
    assert {option.name for option in OPTIONS} == set(EngineTensorRT.model_fields) - elsewhere
    assert set(EngineRtx.model_fields) - set(EngineTensorRT.model_fields) == {"compute_capabilities"}


def test_the_names_used_here_are_those_of_the_real_bindings() -> None:
    import tensorrt_rtx as trt

    for option in OPTIONS:
        assert option.flag is None or option.flag in trt.BuilderFlag.__members__, option.name
    assert {"REFIT_IDENTICAL", "ERROR_ON_TIMING_CACHE_MISS"} <= set(trt.BuilderFlag.__members__)
    assert set(trt.HardwareCompatibilityLevel.__members__) == {"NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"}
    for name in ("set_timing_cache", "create_timing_cache", "set_memory_pool_limit", "builder_optimization_level"):
        assert hasattr(trt.IBuilderConfig, name)
    assert hasattr(trt.ITimingCache, "serialize")
    assert set_options(trt, Library.of("tensorrt_rtx", trt.__version__), Untouched(), {}) is None


class Untouched:
    """A configuration on which nothing may be set."""

    def get_memory_pool_limit(self, pool: Any) -> int:
        return 0

    def get_flag(self, flag: Any) -> bool:
        return False
