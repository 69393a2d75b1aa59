"""Every way to a precision at once, on a tiny network with a residual sum: what is built, told and shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.e2e.conftest import Build, run_optimize
from tests.e2e.tiny import MODEL, edit, write_tiny

RESIDUAL = MODEL.replace(
    "        self.head =",
    "        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())\n        self.head =",
).replace(
    "return self.pool(torch.relu(self.conv(image))).flatten(1)",
    "first = torch.relu(self.conv(image))\n        return self.pool(first + self.block(first)).flatten(1)",
)
VARIANTS = """variants:
  bf16: {}
  fp16: {io: fp16}
  learned: {precision: int8, method: auto, rounding: learned, passes: 2}
  residual: {precision: int8, residuals: int8, bias_correction: true, keep: [head], at_least: 0.6}"""


VARIANT_NAMES = ("bf16", "fp16", "learned", "residual")


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The tiny network with a residual sum, in every precision."""
    folder = tmp_path_factory.mktemp("precise")
    recipe = write_tiny(folder / "recipe", RESIDUAL)
    edit(recipe, "variants: {fp32: {}, fp16: {}, int8: {}}", VARIANTS)
    edit(recipe, "samples: 64", "samples: 512")
    done = run_optimize("build", recipe, home=folder / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    return Build(recipe, folder / "home", Path(done.stdout.splitlines()[-1]).parent, done.stdout, done.stderr)


def read(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "report.json").read_text())
    return document


def candidates(run: Path) -> dict[str, Any]:
    return {c["name"]: c for c in read(run)["candidates"]}


def notes(run: Path) -> dict[str, str]:
    return {s["id"]: "\n".join(s["notes"]) for s in read(run)["stages"]}


def made_by(build: Build, step: str, file: str) -> Path:
    """The file that a step left in the store."""
    key: str
    (key,) = [s["key"] for s in read(build.run)["stages"] if s["id"] == step]
    return build.home / "store" / "objects" / key[:2] / key / "output" / file


def test_every_precision_is_built_and_judged_on_this_machine(precise: Build) -> None:
    found = candidates(precise.run)
    executes = {"fp32@torch", "fp16@onnxruntime", "learned@onnxruntime", "residual@onnxruntime"}
    assert {n: c["status"] for n, c in found.items()} == {
        n: "measured" if n in executes else "built"
        for n in ("fp32@torch", *(f"{v}@{t}" for v in VARIANT_NAMES for t in ("onnxruntime", "tensorrt_rtx")))
    }
    for name, candidate in found.items():
        assert candidate["accuracy"]["top1"]["samples"] == 897
        assert candidate["accuracy"]["top1"]["value"] > 0.9, name


def test_bfloat16_on_the_cpu_is_built_with_the_reason_and_judged_by_rounding(precise: Build) -> None:
    found = candidates(precise.run)["bf16@onnxruntime"]
    assert found["reason"].startswith("onnxruntime has no bfloat16 kernels on the CPU")
    assert "TensorRT" in found["reason"]
    assert found["latency_ms"] is None
    assert found["precision"]["delivered"] == {"bf16": 1.0}
    assert found["precision"]["source"] == "the graph's types: it does not execute here"
    assert found["accuracy_runtime"].endswith("bfloat16 rounded after every operator")


def test_fewer_digits_are_further_from_float32(precise: Build) -> None:
    noise = {n: c["numerics"]["logits"]["sqnr_db"] for n, c in candidates(precise.run).items() if c["numerics"]}
    assert noise["fp16@tensorrt_rtx"] > 55 > noise["bf16@tensorrt_rtx"] > 38
    assert noise["bf16@onnxruntime"] == noise["bf16@tensorrt_rtx"]  # one graph, one judge
    assert noise["learned@tensorrt_rtx"] > 25
    assert noise["residual@tensorrt_rtx"] > 25


def test_the_delivered_share_is_what_keep_left(precise: Build) -> None:
    found = {n: c["precision"]["delivered"] for n, c in candidates(precise.run).items()}
    assert found["fp16@tensorrt_rtx"] == {"fp16": 1.0}
    # 8 x 8 places: convolutions of 9 x 16 and 144 x 16, a linear layer of 256 x 10
    head = 2560 / (64 * 9 * 16 + 64 * 144 * 16 + 2560)
    for target in ("onnxruntime", "tensorrt_rtx"):
        assert found[f"learned@{target}"] == {"int8": 1.0}
        assert found[f"residual@{target}"] == pytest.approx({"fp32": head, "int8": 1 - head})


def test_the_receipt_names_pytorchs_modules_and_the_reason_after_learning_too(precise: Build) -> None:
    found = candidates(precise.run)
    for target in ("onnxruntime", "tensorrt_rtx"):
        layers = {row["module"]: (row["delivered"], row["reason"]) for row in found[f"residual@{target}"]["layers"]}
        assert layers == {"conv": ("int8", ""), "block.0": ("int8", ""), "head": ("fp32", "the recipe keeps it")}
        learned = {row["module"]: row["delivered"] for row in found[f"learned@{target}"]["layers"]}
        assert learned == {"conv": "int8", "block.0": "int8", "head": "int8"}


def test_what_bypasses_a_layer_is_added_as_integers_on_request_alone(precise: Build) -> None:
    def integers(step: str) -> int:
        graph = onnx.load(made_by(precise, step, "model.onnx")).graph
        makers = {output: node.op_type for node in graph.node for output in node.output}
        (add,) = [node for node in graph.node if node.op_type == "Add"]
        return sum(makers[name] == "DequantizeLinear" for name in add.input)

    assert integers("residual@tensorrt/quantize") == 1  # the other input is the convolution's own, not yet rounded
    assert integers("learned@tensorrt/quantize") == 0


def test_what_is_learned_changes_values_alone(precise: Build) -> None:
    """A scale of shape [1] in place of a scalar makes TensorRT compute in float: the engine's share would show it."""

    def outline(step: str) -> list[tuple[str, int, list[int]]]:
        graph = onnx.load(made_by(precise, step, "model.onnx")).graph
        return [(t.name, t.data_type, list(t.dims)) for t in graph.initializer]

    for step in ("learned@cpu", "learned@tensorrt", "residual@cpu", "residual@tensorrt"):
        assert outline(f"{step}/refine") == outline(f"{step}/quantize")


def test_the_notes_say_what_was_picked_and_what_it_gained(precise: Build) -> None:
    found = notes(precise.run)
    assert "ranges of 9 tensors over 512 samples decide what stays float32" in found["fp16/float16"]
    for dialect in ("cpu", "tensorrt"):
        assert re.search(
            r"auto picked .*: SQNR of the outputs [\d.]+ dB on 128 other calibration samples \(one method for all: "
            r"minmax [\d.]+, percentile [\d.]+, entropy [\d.]+, mse [\d.]+\)",
            found[f"learned@{dialect}/choose"],
        )
        learned = re.search(
            r"2 passes over 448 samples: SQNR of the outputs ([\d.]+) -> ([\d.]+) dB on 64 held-out",
            found[f"learned@{dialect}/refine"],
        )
        assert learned
        assert float(learned[2]) > float(learned[1]) + 1  # 3.5 dB and more where it was written
        assert "bias correction: SQNR of the outputs" in found[f"residual@{dialect}/refine"]
    assert "evaluation samples:" in found["learned/diagnose"]


def test_an_unchanged_second_build_reuses_every_stage_and_measurement(precise: Build) -> None:
    done = run_optimize("build", precise.recipe, home=precise.home)
    assert done.returncode == 0, done.stderr
    again = Path(done.stdout.splitlines()[-1]).parent
    assert [s["id"] for s in read(again)["stages"] if not s["reused"]] == []
    assert candidates(again) == candidates(precise.run)


def test_another_number_of_passes_learns_anew_and_leaves_the_rest(precise: Build, tmp_path: Path) -> None:
    text = precise.recipe.read_text()
    recipe = precise.recipe.with_name("more.yaml")
    recipe.write_text(text.replace("passes: 2", "passes: 3"))
    done = run_optimize("plan", recipe, home=precise.home)
    planned = {line.split()[0]: line for line in done.stdout.splitlines()[:-1]}
    again = {step for step, line in planned.items() if not re.search(r"\breuse\b", line)}
    assert again == {"learned@cpu/refine", "learned@tensorrt/refine", "learned@tensorrt_rtx/engine"}


def test_the_run_holds_the_tables_and_what_the_doctor_says(precise: Build) -> None:
    found = read(precise.run)["calibration"]
    assert set(found) == {"learned@cpu", "learned@tensorrt", "residual"}
    assert {name: c["method"] for name, c in found.items()} == {
        "learned@cpu": "auto",
        "learned@tensorrt": "auto",
        "residual": "percentile",
    }
    for calibration in found.values():
        assert calibration["samples"] == 512
        assert sum(calibration["picked"].values()) == calibration["tensors"] == 6
        assert "evaluation samples:" in calibration["drift"][0]
        assert (precise.run / calibration["table"]).is_file()


def test_inspect_shows_a_table_two_tables_and_a_quantized_graph(precise: Build) -> None:
    plain, chosen = (precise.run / "calibration" / name / "table.json" for name in ("residual", "learned@tensorrt"))
    shown = run_optimize("inspect", plain, home=precise.home)
    assert shown.returncode == 0, shown.stderr
    assert "method   percentile (99.999 %), 512 samples" in shown.stdout
    assert re.search(r"tensor +module +method +min +max +magnitude +clipped +dB +moved", shown.stdout)
    between = run_optimize("inspect", plain, chosen, home=precise.home)
    assert between.returncode == 0, between.stderr
    assert "method: percentile -> auto" in between.stdout
    as_json = json.loads(run_optimize("inspect", chosen, "--json", home=precise.home).stdout)
    assert as_json["kind"] == "calibration"
    assert set(as_json["tensors"]["image"]["methods"]) == {"minmax", "percentile", "entropy", "mse"}
    graph = run_optimize("inspect", precise.run / "artifacts/learned@onnxruntime/model.onnx", home=precise.home)
    assert graph.returncode == 0, graph.stderr
    assert "DequantizeLinear" in graph.stdout
    assert re.search(r"layers that multiply +3, by receipt\.json", graph.stdout)
    assert "block.0" in graph.stdout


def test_float16_inputs_and_outputs_ship_and_take_what_float32_took(precise: Build, tmp_path: Path) -> None:
    model = onnx.load(precise.run / "artifacts" / "fp16@onnxruntime" / "model.onnx")
    ends = (*model.graph.input, *model.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT16}
    assert "Cast" not in {node.op_type for node in model.graph.node}
    made = run_optimize(
        *("bundle", precise.run, "--variant", "fp16", "--target", "onnxruntime", "-o", tmp_path / "bundle"),
        home=precise.home,
    )
    assert made.returncode == 0, made.stderr
    checked = run_optimize("check", tmp_path / "bundle", home=precise.home)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "'logits' comes out: 8 samples" in checked.stdout


def test_a_bfloat16_bundle_for_the_cpu_says_why_it_does_not_load(precise: Build, tmp_path: Path) -> None:
    made = run_optimize(
        *("bundle", precise.run, "--variant", "bf16", "--target", "onnxruntime", "-o", tmp_path / "bundle"),
        home=precise.home,
    )
    checked = run_optimize("check", tmp_path / "bundle", home=precise.home)
    assert made.returncode == 0, made.stderr
    assert checked.returncode in (3, 4)
    assert "Traceback" not in checked.stderr
    assert "onnxruntime" in checked.stdout + checked.stderr
