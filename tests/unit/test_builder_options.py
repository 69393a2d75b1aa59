"""What is wrong with an engine's options whatever the machine, from the recipe's values alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from optimizer.graph.builder_options import (
    CURRENT,
    OPTIONS,
    capability_advice,
    capability_problems,
    option_problems,
    options_of_a_gpu,
    without_gpu,
)
from optimizer.graph.optimization_profiles import complete, profile_problems

PROFILE = {"batch": (1, 8, 32), "tokens": (16, 64, 128)}


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        (
            "builder_optimization_level",
            3,
            "its plan is the same, byte for byte, at levels 0 to 5: it chooses kernels when the engine loads",
        ),
        (
            "sparse_weights",
            True,
            "its plan is the same, byte for byte, with and without it, even for weights of the 2:4 pattern",
        ),
        ("timing_cache", {"path": "x"}, "it times nothing, and its timing cache does nothing since 1.2"),
        (
            "hardware_compatibility_level",
            "ampere_plus",
            "its builder ignores the level; one engine holds every capability in compute_capabilities",
        ),
        ("version_compatible", True, "its package lacks the lean runtime library that such a plan contains"),
    ],
)
def test_what_tensorrt_rtx_does_not_honour_says_why_and_who_does(option: str, value: Any, why: str) -> None:
    said = f"tensorrt_rtx does not honour it: {why}. Remove it, or write it under targets.tensorrt, which does"
    assert option_problems("tensorrt_rtx", {option: value}, PROFILE) == [((option,), said)]
    assert option_problems("tensorrt", {option: value}, PROFILE) == []


@pytest.mark.parametrize("option", [{"workspace": 1 << 20}, {"tf32": False}, {"weight_streaming": True}])
def test_what_both_honour_is_no_problem(option: dict[str, Any]) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        assert option_problems(package, option, PROFILE) == []


def test_defaults_written_out_are_no_request() -> None:
    defaults = {"sparse_weights": False, "tf32": True, "timing_cache": None, "hardware_compatibility_level": "none"}
    assert option_problems("tensorrt_rtx", defaults, PROFILE) == []


def test_all_problems_are_found_at_once() -> None:
    options = {"sparse_weights": True, "version_compatible": True, "compute_capabilities": ("9.0",), "refit": True}
    paths = [path for path, _ in option_problems("tensorrt_rtx", options, PROFILE)]
    assert paths == [("sparse_weights",), ("version_compatible",), ("compute_capabilities", 0)]


def test_level_0_reads_no_timing_cache() -> None:
    options = {"builder_optimization_level": 0, "timing_cache": {"path": "x"}}
    text = "level 0 takes the first kernel that works and reads no timing cache: write 1 to 5, or remove the cache"
    assert option_problems("tensorrt", options, PROFILE) == [(("builder_optimization_level",), text)]
    assert option_problems("tensorrt", {**options, "builder_optimization_level": 1}, PROFILE) == []


@pytest.mark.parametrize(
    ("listed", "said"), [((), "the default is all from 8.0 on"), (("8.6", "8.9"), "2 are listed"), (("8.6",), None)]
)
def test_tensorrt_rtx_refits_for_one_capability(listed: tuple[str, ...], said: str | None) -> None:
    found = option_problems("tensorrt_rtx", {"strip_plan": True, "compute_capabilities": listed}, PROFILE)
    text = f"tensorrt_rtx builds it for one compute capability, and {said}: list the one of the GPU"
    assert found == ([(("strip_plan",), text)] if said else [])
    assert options_of_a_gpu("tensorrt_rtx", {"strip_plan": True, "refit": False}) == ["strip_plan"]
    assert options_of_a_gpu("tensorrt", {"strip_plan": True}) == []


def test_capabilities_that_tensorrt_rtx_never_serves_are_named_from_the_recipe() -> None:
    gpu = "use the target tensorrt, which builds for such a GPU on the GPU itself"
    assert capability_problems(("8.6", "9.0", "7.0")) == [
        (1, f"tensorrt_rtx builds for no 9.0 (H100, H200): {gpu}"),
        (2, "tensorrt_rtx builds for no 7.0: the oldest is 7.5 (Turing)"),
    ]
    assert capability_problems(("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")) == []


def test_the_static_list_agrees_with_the_installed_library() -> None:
    import tensorrt_rtx

    from optimizer.graph.build_engine import capabilities

    assert capability_problems(capabilities(tensorrt_rtx)) == []


def test_an_unknown_capability_gets_the_nearest_and_a_data_centre_gpu_gets_tensorrt() -> None:
    known = ("8.0", "8.6", "8.9", "12.0")
    assert capability_advice(["8.7"], known) == "The nearest: 8.6. Write it under targets.tensorrt_rtx."
    assert capability_advice(["9.0"], known) == (
        "For 9.0 (H100, H200) use the target tensorrt, which builds for such a GPU on the GPU itself."
    )


# Profiles.
ADD = "which the recipe's profile allows: add one, or narrow the recipe's profile"


def test_an_axis_that_is_left_out_keeps_the_recipes() -> None:
    assert complete([{"batch": [1, 1, 1]}], PROFILE) == [{"batch": (1, 1, 1), "tokens": (16, 64, 128)}]
    assert complete([], PROFILE) == [PROFILE]


def test_profiles_that_cover_the_recipes_ranges_together_are_right() -> None:
    assert profile_problems([{"batch": (1, 1, 1)}, {"batch": (2, 8, 32)}], PROFILE) == []
    assert profile_problems([{"batch": (1, 1, 8)}, {"batch": (4, 8, 32)}], PROFILE) == []
    quarters = [{"batch": b, "tokens": t} for b in ((1, 1, 4), (5, 8, 32)) for t in ((16, 16, 64), (65, 70, 128))]
    assert profile_problems(quarters, PROFILE) == []
    assert profile_problems([], PROFILE) == []


@pytest.mark.parametrize(
    ("profiles", "problem"),
    [
        ([{"height": (1, 2, 3)}], ((0, "height"), "the recipe's profile has no axis 'height' (known: batch, tokens)")),
        (
            [{}, {"batch": (1, 2, 64)}],
            ((1, "batch"), "[1, 2, 64] must rise and lie inside the recipe's profile.batch, 1 to 32"),
        ),
        (
            [{"batch": (8, 4, 32)}],
            ((0, "batch"), "[8, 4, 32] must rise and lie inside the recipe's profile.batch, 1 to 32"),
        ),
        ([{}, {}], ((1,), "is the same as entry 0")),
        (
            [{"batch": (1, 1, 1)}, {"batch": (8, 8, 32)}],
            ((), f"no entry covers batch 2 to 7, tokens 16 to 128, {ADD}"),
        ),
        (
            [{"batch": (1, 1, 4)}, {"batch": (5, 8, 32), "tokens": (16, 64, 127)}],
            ((), f"no entry covers batch 5 to 32, tokens 128, {ADD}"),
        ),
    ],
)
def test_a_wrong_profile_says_where_and_what(profiles: Any, problem: Any) -> None:
    assert profile_problems(profiles, PROFILE) == [problem]


@pytest.mark.parametrize("written", [[1, 8, 32], {"min": 1, "opt": 8, "max": 32}, (1, 8, 32)])
def test_a_range_is_written_as_a_list_or_by_name(written: Any) -> None:
    from optimizer.stages.engine import EngineRtx

    assert EngineRtx(profile=PROFILE, profiles=({"batch": written},)).profiles == ({"batch": (1, 8, 32)},)


@pytest.mark.parametrize("written", [3, [1, 2], [1, 8, 4], [0, 1, 2], {"min": 1}, [1.0, 2, 3], [True, 2, 3]])
def test_a_range_that_is_none_says_how_to_write_one(written: Any) -> None:
    from pydantic import ValidationError

    from optimizer.stages.engine import EngineRtx

    with pytest.raises(ValidationError) as caught:
        EngineRtx(profile=PROFILE, profiles=({"batch": written},))
    said = "needs 1 <= min <= opt <= max, as [1, 8, 32] or {min: 1, opt: 8, max: 32}, got "
    assert f"{said}{written}" in str(caught.value)


def test_a_recipes_own_values_are_read_and_its_schema_has_both_forms() -> None:
    from optimizer.recipe.validate import validate
    from optimizer.recipe.vocabulary import given_options, target_options
    from optimizer.recipe.wording import Problems
    from optimizer.stages.engine import EngineTensorRT

    section = target_options("tensorrt", (EngineTensorRT,))
    problems = Problems("recipe.yaml")
    written = {"profiles": [{"batch": [1, 1, 1]}, {"batch": {"min": 2, "opt": 4, "max": 8}}], "refit": "identical"}
    read = validate(section, {**written, "timing_cache": {"path": "a", "locked": True}}, ("targets",), problems)
    assert read is not None
    assert problems.found == []
    stage = EngineTensorRT(profile=PROFILE, **given_options(read))
    assert stage.profiles == ({"batch": (1, 1, 1)}, {"batch": (2, 4, 8)})
    assert stage.options["timing_cache"] == {"path": "a", "locked": True}
    ranges = section.model_json_schema()["properties"]["profiles"]["items"]["additionalProperties"]
    assert [form["type"] for form in ranges["anyOf"]] == ["array", "object"]


def test_the_table_loads_nothing_heavy() -> None:
    code = (
        "import sys; from optimizer.graph import builder_options\n"
        "print(sorted({'onnx', 'torch', 'pydantic', 'tensorrt_rtx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_option_stands_once() -> None:
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_the_gpu_here_stands_alone() -> None:
    assert capability_problems((CURRENT,)) == []
    assert capability_problems(("8.6", CURRENT)) == [
        (1, "current is the GPU here and stands alone: remove it, or the others")
    ]
    assert option_problems("tensorrt_rtx", {"compute_capabilities": (CURRENT,), "refit": True}, {}) == []


def test_the_library_knows_the_gpu_here_by_the_same_word() -> None:
    import tensorrt_rtx

    assert CURRENT.upper() in tensorrt_rtx.ComputeCapability.__members__


def test_tensorrt_without_a_gpu_is_sent_to_the_target_that_needs_none() -> None:
    said = without_gpu("needs an NVIDIA GPU with a driver; this machine has none (libcuda.so.1: cannot open)")
    assert "it needs an NVIDIA GPU with a driver; this machine has none.\n" in said
    assert "write tensorrt_rtx under targets" in said
    assert "optimize measure RUN --device cuda:0" in said
