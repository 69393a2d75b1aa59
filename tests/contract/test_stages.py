"""What every stage promises: its key follows everything that can change its output, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optimizer.digest import sha256_json
from optimizer.stage import Stage
from optimizer.stages import STAGES, TARGETS, VARIANTS
from optimizer.stages.adopt import Adopt
from optimizer.stages.bfloat16 import BFloat16
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.choose import Choose
from optimizer.stages.collect import Collect
from optimizer.stages.diagnose import Diagnose
from optimizer.stages.engine import EngineRtx, EngineTensorRT
from optimizer.stages.equalize import Equalize
from optimizer.stages.export import Export
from optimizer.stages.float8 import Float8
from optimizer.stages.float16 import Float16
from optimizer.stages.int4 import Int4
from optimizer.stages.quantize import Quantize
from optimizer.stages.refine import Refine
from optimizer.stages.simplify import Simplify
from optimizer.types import MAIN_FILE

VARIANT = {"precision": "int8", "at_least": 0.5}
BUILDER = {
    "profile": {"batch": (1, 2, 3)},
    "profiles": ({"batch": (1, 1, 1)}, {"batch": (2, 2, 3)}),
    "workspace": 1 << 30,
    "builder_optimization_level": 5,
    "timing_cache": {"path": "no/such.cache"},
    "hardware_compatibility_level": "ampere_plus",
    "version_compatible": True,
    "weight_streaming": True,
    "strip_plan": True,
    "refit": "identical",
    "sparse_weights": True,
    "tf32": False,
    "memory_limit": 1 << 33,
    "time_limit": 60.0,
}
# For each stage its parameters, and for each parameter another value that is allowed too.
EXAMPLES: dict[type[Stage], tuple[dict[str, Any], dict[str, Any]]] = {
    Collect: (
        {"kind": "state_dict", "arguments": {}, "inputs": ({"name": "x"},), "outputs": ("y",)},
        {
            "kind": "exported_program",
            "function": "Net",
            "arguments": {"width": 3},
            "files": ("vocabulary.txt",),
            "state_key": "model",
            "strip_prefix": "module.",
            "trust": True,
            "inputs": ({"name": "z"},),
            "outputs": ("z",),
        },
    ),
    Adopt: ({"inputs": ("x",), "outputs": ("y",)}, {"inputs": ("z",), "outputs": ("z",)}),
    Export: ({}, {"opset": 18}),
    Simplify: ({}, {"usual": {"length": 10}}),
    Float16: ({}, {"keep": ("Softmax",), "io": "fp16"}),
    BFloat16: ({}, {"keep": ("Softmax",)}),
    Int4: ({}, {"keep": ("Gemm",), "block": 64, "at_least": 0.9}),
    Float8: ({}, {"keep": ("Gemm",), "attention": True, "at_least": 0.9}),
    Equalize: (
        {"smooth_quant": 0.5},
        {
            "smooth_quant": "auto",
            "cross_layer": True,
            "method": "mse",
            "percentile": 99.9,
            "keep": ("Gemm",),
            "residuals": "int8",
            "attention": True,
            "dialect": "cpu",
        },
    ),
    Calibrate: (
        {},
        {"method": "minmax", "percentile": 99.9, "synthetic": True, "integer_sums": False, "dialects": ("cpu",)},
    ),
    Diagnose: ({}, {}),
    Choose: (
        {},
        {
            "dialect": "cpu",
            "keep": ("Gemm",),
            "residuals": "int8",
            "attention": True,
            "method": "auto",
            "float_share": 0.05,
        },
    ),
    Quantize: (
        {"dialect": "cpu"},
        {"dialect": "tensorrt", "keep": ("Gemm",), "at_least": 0.9, "residuals": "int8", "attention": True},
    ),
    Refine: ({}, {"rounding": "learned", "bias_correction": True, "passes": 3, "dialect": "cpu"}),
    EngineRtx: ({}, {**BUILDER, "compute_capabilities": ("8.6",), **VARIANT}),
    EngineTensorRT: ({}, {**BUILDER, **VARIANT}),
}
UNKEYED = {"time_limit"}  # whether there is an output, not which
PINNED = {"package"}  # one value each: the class decides


def make(kind: type[Stage], /, **changes: Any) -> Stage:
    return kind(**{**EXAMPLES[kind][0], **changes})


def sources(kind: type[Stage], fill: str = "a") -> dict[str, str]:
    return dict.fromkeys(kind.consumes, fill * 64)


def tools(kind: type[Stage], version: str = "1.0") -> dict[str, str]:
    return dict.fromkeys(kind.tools, version)


def test_every_stage_has_an_example_and_every_parameter_another_value() -> None:
    assert set(EXAMPLES) == set(STAGES)
    for kind, (_, others) in EXAMPLES.items():
        assert set(kind.model_fields) - PINNED == set(others), kind.__name__


@pytest.mark.parametrize("kind", STAGES)
class TestEveryStage:
    def test_the_same_parameters_have_the_same_key(self, kind: type[Stage]) -> None:
        one, two = (make(kind).key(sources(kind), tools(kind)) for _ in range(2))
        assert one == two
        assert len(one) == 64

    def test_each_parameter_changes_the_key(self, kind: type[Stage]) -> None:
        before = make(kind).key(sources(kind), tools(kind))
        for name, value in EXAMPLES[kind][1].items():
            changed = make(kind, **{name: value}).key(sources(kind), tools(kind)) != before
            assert changed == (name not in UNKEYED), name

    def test_each_source_and_each_tool_changes_the_key(self, kind: type[Stage]) -> None:
        stage = make(kind)
        before = stage.key(sources(kind), tools(kind))
        for role in kind.consumes:
            assert stage.key({**sources(kind), role: "b" * 64}, tools(kind)) != before
        for tool in kind.tools:
            assert stage.key(sources(kind), {**tools(kind), tool: "2.0"}) != before

    def test_the_device_changes_the_key_only_where_the_output_is_bound_to_it(self, kind: type[Stage]) -> None:
        stage = make(kind)
        changed = stage.key(sources(kind), tools(kind), "A") != stage.key(sources(kind), tools(kind), "B")
        assert changed == kind.device_bound

    def test_a_stage_cannot_be_changed_and_takes_no_unknown_parameter(self, kind: type[Stage]) -> None:
        stage = make(kind)
        with pytest.raises(ValidationError):
            make(kind, no_such_parameter=1)
        for name in kind.model_fields:
            with pytest.raises(ValidationError):
                setattr(stage, name, None)

    def test_it_declares_a_name_a_format_and_a_main_file(self, kind: type[Stage]) -> None:
        assert kind.name.isidentifier()
        assert kind.version >= 1
        assert kind.produces in (*MAIN_FILE, "checkpoint")
        assert (kind.__doc__ or "").strip()


def test_variants_and_targets_name_listed_stages() -> None:
    for table in (VARIANTS, TARGETS):
        assert {kind for stages in table.values() for kind in stages} <= set(STAGES)


def test_the_check_is_part_of_the_key_where_there_is_one() -> None:
    for kind in STAGES:
        stage = make(kind)
        keys = {stage.key(sources(kind), tools(kind), None, checks) for checks in ((1, 2), (1, 2, 64))}
        assert len(keys) == (1 if kind.tolerance is None else 2), kind.__name__


def test_one_key_is_pinned_so_that_nobody_changes_keys_unawares() -> None:
    tools = {"torch": "1", "onnx": "2", "onnxscript": "3", "onnx-ir": "4"}
    document = Export().key_document({"module": "a" * 64}, tools, None, (1, 2, 3))
    assert document == {
        "key_schema": 1,
        "stage": "export",
        "version": 4,
        "optimizer": "0.1.0",
        "parameters": {"opset": 20},
        "sources": {"module": "a" * 64},
        "tools": tools,
        "device": None,
        "checks": [1, 2, 3],
    }
    assert sha256_json(document) == "4a6c67263fa7ce431d94f7bfd153b990ab5ec05f09b172413981829ce328d1bf"
