"""What bad calibration data, graphs and options of the narrow precisions get: exit code, screen, intact store."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.conftest import run_optimize
from tests.e2e.screens import Bad, check_bad, outcomes
from tests.e2e.tiny import edit

pytestmark = pytest.mark.usefixtures("stays_whole")

INT8 = ("--only", "int8")


# --- calibration data ----------------------------------------------------------------------------------------------


def calibration_holds_no_samples(folder: Path) -> None:
    edit(folder / "recipe.yaml", "split: train, samples: 64", "split: train, samples: 0")


def calibration_holds_one_sample(folder: Path) -> None:
    edit(folder / "recipe.yaml", "split: train, samples: 64", "split: train, samples: 1")


def all_samples_are_alike(folder: Path) -> None:
    edit(folder / "data.py", "    part =", "    images[:900] = images[0]\n    part =")


def fewer_samples_than_asked_for(folder: Path) -> None:
    edit(folder / "recipe.yaml", "split: train, samples: 64", "split: train, samples: 1024")


def samples_outside_the_profile(folder: Path) -> None:
    """A network for pictures of any height, calibrated on some that no engine would take."""
    edit(folder / "recipe.yaml", "[batch, 1, 8, 8]", "[batch, 1, height, 8]")
    edit(folder / "recipe.yaml", "opt: 4, max: 8}\n", "opt: 4, max: 8}\n  height: {min: 8, opt: 8, max: 12}\n")
    edit(folder / "model.py", "torch.relu(self.conv(image))", "torch.relu(self.conv(image)).narrow(2, 0, 8)")
    edit(
        folder / "data.py",
        "    return images[part], labels[part]",
        "    images = np.pad(images, ((0, 0), (0, 0), (0, 8 if split == 'train' else 0), (0, 0)))\n"
        "    return images[part], labels[part]",
    )


def infinity_in_calibration(folder: Path) -> None:
    edit(folder / "data.py", "    part =", "    images[:900, 0, 3, 3] = np.inf\n    part =")


NOISE = """
import numpy as np

def digits(split):
    numbers = np.random.default_rng(len(split))
    return numbers.standard_normal((900, 1, 16, 16), dtype=np.float32), numbers.integers(0, 10, 900)
"""


def random_numbers(folder: Path) -> None:
    """Pictures of 16 x 16: there must be enough of them to tell."""
    (folder / "data.py").write_text(NOISE)
    edit(folder / "recipe.yaml", "[batch, 1, 8, 8]", "[batch, 1, 16, 16]")
    edit(folder / "model.py", "nn.MaxPool2d(2)", "nn.MaxPool2d(4)")


# --- graphs --------------------------------------------------------------------------------------------------------


def start_from(folder: Path, model: onnx.ModelProto) -> None:
    """Let the recipe begin with an ONNX file."""
    onnx.save(model, folder / "model.onnx")
    before = "  factory: model.py:Tiny\n  checkpoint: checkpoint.safetensors"
    edit(folder / "recipe.yaml", before, "  checkpoint: model.onnx")


def graph(nodes: list[onnx.NodeProto], opset: int, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from `image` to `logits`."""
    whole = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 10), dtype=np.float32)


def already_quantized(folder: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "step", "zero"], ["rounded"], "round"),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["read"], "read"),
        helper.make_node("Flatten", ["read"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], "gemm"),
    ]
    step, zero = np.array(1 / 127, np.float32), np.array(0, np.int8)
    start_from(folder, graph(nodes, 17, weight=weights(), step=step, zero=zero))


def already_quantized_for_float16(folder: Path) -> None:
    already_quantized(folder)


def no_layer_to_quantize(folder: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], "flatten"),
        helper.make_node("Slice", ["flat", "start", "end", "axis"], ["ten"], "ten"),
        helper.make_node("Softmax", ["ten"], ["logits"], "softmax"),
    ]
    sliced = {name: np.array([value], np.int64) for name, value in (("start", 0), ("end", 10), ("axis", 1))}
    start_from(folder, graph(nodes, 17, **sliced))


def opset_without_scales_per_channel(folder: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], "gemm"),
    ]
    start_from(folder, graph(nodes, 11, weight=weights()))


# --- options -------------------------------------------------------------------------------------------------------


def keep_names_nothing(folder: Path) -> None:
    edit(folder / "recipe.yaml", "int8: {}", "int8: {keep: [heads, convolution]}")


def percentile_beside_another_method(folder: Path) -> None:
    edit(folder / "recipe.yaml", "int8: {}", "int8: {method: minmax, percentile: 99.9}")


def passes_without_learning(folder: Path) -> None:
    edit(folder / "recipe.yaml", "int8: {}", "int8: {passes: 8}")


def less_int8_than_asked_for(folder: Path) -> None:
    edit(folder / "recipe.yaml", "int8: {}", "int8: {keep: [conv]}")


def smooth_quant_without_a_matrix(folder: Path) -> None:
    """A convolutional network whose head is a convolution, too."""
    edit(folder / "recipe.yaml", "int8: {}", "int8: {smooth_quant: 0.5}")
    edit(folder / "model.py", "nn.Linear(width * 16, 10)", "nn.Conv2d(width, 10, 4)")
    edit(folder / "model.py", ".flatten(1)", "")
    edit(folder / "model.py", "self.head(self.features(image))", "self.head(self.features(image)).flatten(1)")
    import torch
    from safetensors.torch import load_file, save_file

    loaded = load_file(folder / "checkpoint.safetensors")
    loaded["head.weight"] = torch.reshape(loaded["head.weight"], (10, 16, 4, 4))
    save_file(loaded, folder / "checkpoint.safetensors")


def cross_layer_without_a_pair(folder: Path) -> None:
    edit(folder / "recipe.yaml", "int8: {}", "int8: {cross_layer: true}")
    edit(folder / "model.py", "torch.relu", "torch.sigmoid")


def float16_inputs_beyond_its_range(folder: Path) -> None:
    edit(folder / "recipe.yaml", "fp16: {}", "fp16: {io: fp16}")
    edit(folder / "data.py", "images[part], labels", "1e5 * images[part], labels")
    edit(folder / "model.py", "torch.relu(self.conv(image))", "torch.relu(self.conv(image / 1e5))")


BAD = (
    Bad(calibration_holds_no_samples, 2, ("recipe.yaml:13:", "needs a number above 0, got 0")),
    Bad(calibration_holds_one_sample, 2, ("recipe.yaml:13:", "needs at least 2, got 1", "128 to 512")),
    Bad(all_samples_are_alike, 4, ("all 64 samples are identical", "Give real, varied samples"), INT8),
    Bad(fewer_samples_than_asked_for, 4, ("1024", "900"), INT8),
    Bad(samples_outside_the_profile, 4, ("size 16 on axis 'height'", "8 to 12", "Widen the profile"), INT8),
    Bad(infinity_in_calibration, 4, ("sample train[", "infinite", "Clean the data"), INT8),
    Bad(random_numbers, 4, ("'image' is random numbers (normal", "synthetic: true"), INT8),
    Bad(already_quantized, 4, ("already", "Start from the float32"), INT8),
    Bad(already_quantized_for_float16, 4, ("already quantized", "Start from the float32"), ("--only", "fp16")),
    Bad(no_layer_to_quantize, 4, ("no layer that quantization speeds up", "Remove the int8 and fp8 variants"), INT8),
    Bad(opset_without_scales_per_channel, 4, ("opset 11", "13 or later", "convert_version"), INT8),
    Bad(keep_names_nothing, 4, ("'heads' is neither", "head (module)", "'convolution' is neither"), INT8),
    Bad(percentile_beside_another_method, 2, ("recipe.yaml:16:", "percentile", "method")),
    Bad(passes_without_learning, 2, ("recipe.yaml:16:", "passes", "rounding")),
    Bad(less_int8_than_asked_for, 4, ("int8 reaches 21.7%", "at_least asks for 50.0%", "at_least: 0.21"), INT8),
    Bad(smooth_quant_without_a_matrix, 4, ("no Gemm or MatMul", "cross_layer: true"), INT8),
    Bad(cross_layer_without_a_pair, 4, ("no two layers", "Leave cross_layer out"), INT8),
    Bad(
        float16_inputs_beyond_its_range,
        4,
        ("'image' cannot be float16", "100,000", "65,504", "Leave 'io' at fp32"),
        ("--only", "fp16"),
    ),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_what_cannot_be_made_narrow_gets_its_exit_code_and_says_what_to_do(
    bad: Bad, folder: Path, warm_home: Path
) -> None:
    bad.change(folder)
    done = run_optimize("build", "recipe.yaml", *bad.arguments, home=warm_home, cwd=folder)
    check_bad(bad, done.stderr, done.returncode, warm_home, folder)


def test_a_name_that_keep_does_not_find_is_told_before_anything_is_calibrated(folder: Path, warm_home: Path) -> None:
    keep_names_nothing(folder)
    edit(folder / "recipe.yaml", "int8: {keep", "int8: {percentile: 99.9, keep")  # nothing to reuse
    done = run_optimize("build", "recipe.yaml", *INT8, home=warm_home, cwd=folder)
    assert done.returncode == 4
    said = outcomes(done.stderr)
    assert said["simplify"] == "reused"
    assert {step: outcome for step, outcome in said.items() if "/" in step} == {"int8/calibrate": "failed"}
    assert "int8@onnxruntime, int8@tensorrt_rtx: quantize: keep: 'heads' is neither" in done.stderr


def test_random_numbers_calibrate_where_the_recipe_says_that_they_are_meant(folder: Path, warm_home: Path) -> None:
    random_numbers(folder)
    edit(folder / "recipe.yaml", "split: train, samples: 64", "split: train, samples: 64, synthetic: true")
    done = run_optimize("build", "recipe.yaml", *INT8, home=warm_home, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_single_sample_of_float16_is_not_asked_for_without_calibration(folder: Path, warm_home: Path) -> None:
    """The twin: no data at all is allowed and said, one sample is neither."""
    edit(folder / "recipe.yaml", "  calibration: {split: train, samples: 64}\n", "")
    edit(folder / "recipe.yaml", ", int8: {}", "")
    done = run_optimize("build", "recipe.yaml", "--only", "fp16", home=warm_home, cwd=folder)
    assert done.returncode == 0, done.stderr
    report = Path(done.stdout.splitlines()[-1]).with_name("report.json").read_text()
    assert "overflow was judged from the graph alone, for want of data" in report


def activation_beyond_the_memory(folder: Path) -> None:
    """An activation of 16 GiB, of which the address space below leaves none."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], "flatten"),
        helper.make_node("ReduceMean", ["flat"], ["mean"], "mean", keepdims=1),
        helper.make_node("Expand", ["mean", "large"], ["expanded"], "expand"),
        helper.make_node("ReduceMax", ["expanded"], ["largest"], "largest", keepdims=1),
        helper.make_node("Gemm", ["flat", "weight"], ["scores"], "gemm"),
        helper.make_node("Add", ["scores", "largest"], ["logits"], "add"),
    ]
    start_from(folder, graph(nodes, 17, weight=weights(), large=np.array([1 << 16, 1 << 16], np.int64)))


def test_memory_that_runs_out_in_a_stage_is_named(folder: Path, warm_home: Path) -> None:
    """The address space is limited in a child, and the activation is larger than it."""
    activation_beyond_the_memory(folder)
    limit = 8 << 30
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", "build", "recipe.yaml", *INT8],
        cwd=folder,
        env={**os.environ, "OPTIMIZE_HOME": str(warm_home)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "Failed to allocate memory" in done.stderr
