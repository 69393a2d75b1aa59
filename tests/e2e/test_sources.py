"""Every kind of model and data that a recipe can start from, built for real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tests.e2e.conftest import Build, run_optimize
from tests.e2e.tiny import MODEL, edit

FP32_ON_CPU = "variants: {fp32: {}}\ntargets: {onnxruntime: {}}"


def small(recipe: Path) -> Path:
    """Keep one candidate beside the baseline: these tests are about what a build starts from."""
    text = recipe.read_text()
    start, end = text.index("variants:"), text.index("measure:")
    recipe.write_text(f"{text[:start]}{FP32_ON_CPU}\n{text[end:]}")
    return recipe


def build(recipe: Path, home: Path, *options: str) -> dict[str, Any]:
    done = run_optimize("build", recipe, *options, "--json", home=home)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def accuracy(report: dict[str, Any], name: str) -> float:
    value: float = next(c for c in report["candidates"] if c["name"] == name)["accuracy"]["top1"]["value"]
    return value


def test_an_onnx_file_is_its_own_baseline(built: Build, tiny: Path, tmp_path: Path) -> None:
    shutil.copy(built.run / "artifacts" / "fp32@onnxruntime" / "model.onnx", tiny.parent / "given.onnx")
    edit(tiny, "  factory: model.py:Tiny\n  checkpoint: checkpoint.safetensors\n", "  checkpoint: given.onnx\n")
    edit(tiny, "variants: {fp32: {}, fp16: {}, int8: {}}", "variants: {int8: {}}")
    report = build(tiny, tmp_path / "home")
    assert report["baseline"] == "fp32@onnxruntime"
    assert [c["name"] for c in report["candidates"]] == ["fp32@onnxruntime", "int8@onnxruntime", "int8@tensorrt_rtx"]
    assert accuracy(report, "fp32@onnxruntime") > 0.8
    assert "collect" not in {s["stage"] for s in report["stages"]}


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_needs_no_factory(tiny: Path, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(MODEL, space)
    model = space["Tiny"]().eval()
    model.load_state_dict(load_file(tiny.parent / "checkpoint.safetensors"))
    program = torch.export.export(
        model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)
    )
    torch.export.save(program, tiny.parent / "tiny.pt2")
    edit(tiny, "  factory: model.py:Tiny\n  checkpoint: checkpoint.safetensors\n", "  checkpoint: tiny.pt2\n")
    report = build(small(tiny), tmp_path / "home")
    assert accuracy(report, "fp32@torch") == accuracy(report, "fp32@onnxruntime") > 0.8


def test_a_nested_prefixed_state_dict_builds(tiny: Path, tmp_path: Path) -> None:
    state = load_file(tiny.parent / "checkpoint.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tiny.parent / "c.th")
    edit(tiny, "  checkpoint: checkpoint.safetensors\n", "  checkpoint: c.th\n  strip_prefix: module.\n")
    assert accuracy(build(small(tiny), tmp_path / "home"), "fp32@onnxruntime") > 0.8


def test_keyword_inputs_and_two_outputs_build(tiny: Path, tmp_path: Path) -> None:
    folder = tiny.parent
    model = (folder / "model.py").read_text()
    forward = "    def forward(self, image, *, gain):\n        features = self.features(image)\n"
    forward += "        return {'logits': self.head(features) * gain, 'features': features}\n"
    (folder / "model.py").write_text(model[: model.index("    def forward")] + forward)
    data = (folder / "data.py").read_text()
    (folder / "data.py").write_text(
        data.replace("return images[part], labels[part]", "\n    ".join([
            "picked = images[part]",
            "return {'image': picked, 'gain': np.ones((len(picked), 1), np.float32)}, labels[part]",
        ]))
    )  # fmt: skip
    edit(tiny, "outputs: [logits]", "outputs: [logits, features]")
    image = "  image: {dtype: float32, shape: [batch, 1, 8, 8]}"
    edit(tiny, image, f"{image}\n  gain: {{dtype: float32, shape: [batch, 1], keyword: true}}")
    report = build(small(tiny), tmp_path / "home")
    assert accuracy(report, "fp32@onnxruntime") > 0.8
    numerics = next(c for c in report["candidates"] if c["name"] == "fp32@onnxruntime")["numerics"]
    assert set(numerics) == {"logits", "features"}


def test_a_fixed_batch_builds_and_uses_every_sample(tiny: Path, tmp_path: Path) -> None:
    edit(tiny, "shape: [batch, 1, 8, 8]", "shape: [5, 1, 8, 8]")
    edit(tiny, "profile:\n  batch: {min: 1, opt: 4, max: 8}\n", "")
    edit(tiny, "batches: [1, 4]", "batches: [5]")
    report = build(small(tiny), tmp_path / "home")
    samples = {c["accuracy"]["top1"]["samples"] for c in report["candidates"]}
    assert samples == {897}  # 897 is no multiple of 5


def test_a_folder_of_pictures_builds_with_labels_and_preprocessing(tiny: Path, tmp_path: Path) -> None:
    pictures, labels = load_digits(return_X_y=True)
    for i in range(0, 600, 2):
        place = tiny.parent / "pictures" / ("train" if i < 300 else "test") / f"digit-{labels[i]}"
        place.mkdir(parents=True, exist_ok=True)
        values = (pictures[i].reshape(8, 8) * 15).astype(np.uint8)
        Image.fromarray(values).save(place / f"{i:04d}.png")
    edit(
        tiny,
        "  source: data.py:digits\n",
        "  folder: pictures\n  layout: <split>/<class>\n"
        "  transform: [{channels: 1}, {scale: 0.00416666666}, {to_chw: true}]\n",
    )
    home = tmp_path / "home"
    report = build(small(tiny), home)
    assert accuracy(report, "fp32@onnxruntime") > 0.8
    run = next((home / "runs" / "tiny").glob("*/report.json")).parent
    assert json.loads((run / "labels.json").read_text())[7] == "digit-7"
    measured = run_optimize("measure", run, "--out", tmp_path / "again", home=tmp_path / "elsewhere")
    assert measured.returncode == 0, measured.stderr
