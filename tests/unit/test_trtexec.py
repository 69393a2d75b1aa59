"""The command line of the library's own tool, from engine.json alone."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from optimizer.graph.trtexec import trtexec

TOKENS = {"name": "ids", "dtype": "int64", "shape": ["batch", "tokens"]}
FIXED = {"name": "scale", "dtype": "float32", "shape": [1]}
SMALL = {"batch": {"min": 1, "opt": 1, "max": 1}, "tokens": {"min": 16, "opt": 64, "max": 128}}
LARGE = {**SMALL, "batch": {"min": 2, "opt": 8, "max": 32}}


def receipt(**changes: Any) -> dict[str, Any]:
    plain = {
        "package": "tensorrt",
        "version": "11.1.0",
        "inputs": [TOKENS, FIXED],
        "profiles": [LARGE],
        "compute_capabilities": [],
        "options": {"workspace": 1 << 30},
        "options_given": {},
        "retry": None,
    }
    return {**plain, **changes}


def words(**changes: Any) -> list[str]:
    return shlex.split(trtexec(receipt(**changes)))


END = ["--profilingVerbosity=detailed", "--skipInference"]
ONE = ["--minShapes=ids:2x16", "--optShapes=ids:8x64", "--maxShapes=ids:32x128"]
BEGIN = ["trtexec", "--onnx=model.onnx", "--saveEngine=engine.plan"]


def test_a_plain_engine_names_the_shapes_of_its_dynamic_inputs() -> None:
    assert words() == [*BEGIN, *ONE, *END]


def test_several_profiles_are_numbered() -> None:
    first = ["--profile=0", "--minShapes=ids:1x16", "--optShapes=ids:1x64", "--maxShapes=ids:1x128", "--profile=1"]
    assert words(profiles=[SMALL, LARGE]) == [*BEGIN, *first, *ONE, *END]


def test_without_dynamic_inputs_there_are_no_shapes() -> None:
    assert words(inputs=[FIXED], profiles=[{}]) == [*BEGIN, *END]


def test_only_tensorrt_10_is_asked_for_strong_types() -> None:
    assert "--stronglyTyped" in words(version="10.13.2")
    assert "--stronglyTyped" not in words()


def test_tensorrt_rtx_has_a_tool_of_its_own() -> None:
    line = words(package="tensorrt_rtx", version="1.7.1", compute_capabilities=["8.6", "12.0"])
    assert line[0] == "tensorrt_rtx"
    assert "--computeCapabilities=86,120" in line
    assert "--stronglyTyped" not in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workspace": 1 << 30}, ["--memPoolSize=workspace:1073741824B"]),
        ({"builder_optimization_level": 0}, ["--builderOptimizationLevel=0"]),
        ({"timing_cache": {"path": "a.cache", "locked": False}}, ["--timingCacheFile=a.cache"]),
        (
            {"timing_cache": {"path": "a.cache", "locked": True}},
            ["--timingCacheFile=a.cache", "--errorOnTimingCacheMiss"],
        ),
        ({"hardware_compatibility_level": "ampere_plus"}, ["--hardwareCompatibilityLevel=ampere+"]),
        (
            {"hardware_compatibility_level": "same_compute_capability"},
            ["--hardwareCompatibilityLevel=sameComputeCapability"],
        ),
        ({"version_compatible": True}, ["--versionCompatible"]),
        ({"weight_streaming": True}, ["--allowWeightStreaming"]),
        ({"strip_plan": True}, ["--stripWeights"]),
        ({"strip_plan": True, "refit": True}, ["--stripWeights", "--refit"]),
        ({"strip_plan": True, "refit": "identical"}, ["--stripWeights"]),
        ({"sparse_weights": True}, ["--sparsity=enable"]),
        ({"tf32": False}, ["--noTF32"]),
    ],
)
def test_each_option_has_its_word(given: dict[str, Any], expected: list[str]) -> None:
    assert words(options_given=given) == [*BEGIN, *ONE, *expected, *END]


def test_a_second_attempt_has_the_workspace_that_it_used() -> None:
    assert "--memPoolSize=workspace:1073741824B" in words(retry={"reason": "", "workspace": [1 << 31, 1 << 30]})


def test_what_the_tool_cannot_say_ends_the_line() -> None:
    line = trtexec(receipt(options_given={"refit": "identical"}))
    assert line.endswith("--skipInference  # refit: identical has no option there")


def test_names_that_a_shell_or_the_tool_would_split_are_quoted() -> None:
    line = words(inputs=[{**TOKENS, "name": "input:0 a"}])
    assert line[3] == "--minShapes='input:0 a':2x16"
