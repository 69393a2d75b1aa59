"""What bad input gets: the exit code, a short screen that says what to do, an intact store, and a good build after it.

The exact screens stand in tests/fixtures/screens.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from optimizer.environment import has_nvidia_device, installed
from tests.e2e.conftest import run_optimize
from tests.e2e.screens import Bad, check_bad, check_short
from tests.e2e.tiny import edit

pytestmark = pytest.mark.usefixtures("stays_whole")


# --- the bad inputs: each changes a good recipe's folder in one way ------------------------------------------------


def missing_checkpoint(folder: Path) -> None:
    (folder / "checkpoint.safetensors").unlink()


def other_architecture(folder: Path) -> None:
    """A wider head under another name, one layer missing, one of another width."""
    import torch
    from safetensors.torch import save_file

    weights = {"conv.weight": (8, 1, 3, 3), "conv.bias": (8,), "fc.weight": (10, 256), "fc.bias": (10,)}
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, folder / "checkpoint.safetensors")


def shape_unlike_the_data(folder: Path) -> None:
    edit(folder / "recipe.yaml", "[batch, 1, 8, 8]", "[batch, 3, 8, 8]")


def shape_that_the_model_refuses(folder: Path) -> None:
    shape_unlike_the_data(folder)
    edit(folder / "data.py", "images[part], labels[part]", "np.repeat(images[part], 3, axis=1), labels[part]")


def unknown_key(folder: Path) -> None:
    edit(folder / "recipe.yaml", "int8: {}", "int8: {percentil: 99.9}")


def nan_in_calibration(folder: Path) -> None:
    edit(folder / "data.py", "    part =", "    images[:900, 0, 3, 3] = np.nan\n    part =")


def no_calibration(folder: Path) -> None:
    edit(folder / "recipe.yaml", "  calibration: {split: train, samples: 64}\n", "")


def empty_calibration_split(folder: Path) -> None:
    edit(folder / "data.py", "slice(0, 900)", "slice(0, 0)")


def same_split(folder: Path) -> None:
    edit(folder / "recipe.yaml", "{split: train, samples: 64}", "{split: test, samples: 64}")


class RunsCode:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def pickle_that_runs_code(folder: Path) -> None:
    import torch

    torch.save({"state_dict": RunsCode(str(folder / "ran"))}, folder / "checkpoint.pt")
    edit(folder / "recipe.yaml", "checkpoint.safetensors", "checkpoint.pt")


def labels_beyond_the_outputs(folder: Path) -> None:
    edit(folder / "data.py", "labels[part]", "labels[part] + 1")


def profile_without_the_evaluation_batch(folder: Path) -> None:
    edit(folder / "recipe.yaml", "evaluation: {split: test}", "evaluation: {split: test, batch: 32}")


def forward(folder: Path, *lines: str) -> None:
    body = "".join(f"        {line}\n" for line in lines)
    edit(folder / "model.py", "        return self.head(self.features(image))\n", body)


def data_dependent_shape(folder: Path) -> None:
    forward(
        folder,
        "if image.sum() > 0:",
        "    image = image * 2",
        "return self.head(self.features(image))",
    )


def fixed_axis_named_dynamic(folder: Path) -> None:
    edit(folder / "recipe.yaml", "[batch, 1, 8, 8]", "[batch, 1, height, 8]")
    edit(folder / "recipe.yaml", "opt: 4, max: 8}\n", "opt: 4, max: 8}\n  height: {min: 8, opt: 8, max: 16}\n")


def fixed_axis_read_directly(folder: Path) -> None:
    fixed_axis_named_dynamic(folder)
    forward(
        folder,
        "weights = torch.ones(8, device=image.device)",
        "return self.head(self.features(image * weights[:, None]))",
    )


def operators_that_tensorrt_lacks(folder: Path) -> None:
    forward(
        folder,
        "scores = self.head(self.features(image))",
        "square = image[:, 0]",
        "return scores + torch.linalg.det(square)[:, None] + torch.linalg.det(square[:, ::2, ::2])[:, None]",
    )


def no_profile_for_an_engine(folder: Path) -> None:
    edit(folder / "recipe.yaml", "profile:\n  batch: {min: 1, opt: 4, max: 8}\n", "")


def target_not_installed(folder: Path) -> None:
    edit(folder / "recipe.yaml", '  tensorrt_rtx: {compute_capabilities: ["8.6"]}', "  tensorrt: {}")


def another_sha256(folder: Path) -> None:
    edit(folder / "recipe.yaml", "  outputs: [logits]", f"  outputs: [logits]\n  sha256: {'ab' * 32}")


def exported_with_a_fixed_batch(folder: Path) -> None:
    import torch

    space: dict[str, type] = {}
    exec((folder / "model.py").read_text(), space)
    torch.export.save(torch.export.export(space["Tiny"]().eval(), (torch.zeros(2, 1, 8, 8),)), folder / "model.pt2")
    edit(
        folder / "recipe.yaml",
        "  factory: model.py:Tiny\n  checkpoint: checkpoint.safetensors",
        "  checkpoint: model.pt2",
    )


def device_that_is_not_here(folder: Path) -> None:
    """Nothing: the arguments are what is wrong."""


FP32, INT8 = ("--only", "fp32"), ("--only", "int8")
BAD = (
    Bad(missing_checkpoint, 2, ("recipe.yaml:5:", "checkpoint.safetensors", "no such file")),
    Bad(
        other_architecture,
        4,
        ("missing (2): head.weight, head.bias", "unexpected (2): fc.bias, fc.weight", "model has [16, 1, 3, 3]"),
        FP32,
    ),
    Bad(shape_unlike_the_data, 4, ("[1, 8, 8]", "[3, 8, 8]", "inputs"), FP32),
    Bad(shape_that_the_model_refuses, 4, ("image float32[2, 3, 8, 8]", "Compare the recipe's inputs"), FP32),
    Bad(unknown_key, 2, ("recipe.yaml:16:", "unknown key", "did you mean 'percentile'")),
    Bad(nan_in_calibration, 4, ("sample train[", "NaN", "Clean the data"), INT8),
    Bad(no_calibration, 2, ("variants.int8", "data.calibration")),
    Bad(empty_calibration_split, 4, ("data.py:digits", "'train' holds no samples"), INT8),
    Bad(same_split, 2, ("calibration and evaluation are both 'test'",)),
    Bad(pickle_that_runs_code, 4, ("posix.system", "refused", "model.state_dict()"), FP32),
    Bad(labels_beyond_the_outputs, 4, ("the label is 10", "allowed: 0 to 9"), FP32),
    Bad(profile_without_the_evaluation_batch, 2, ("batch 32 lies outside profile.batch, 1 to 8",)),
    Bad(data_dependent_shape, 4, ("depends on the data", "model.py, line 16:  if image.sum() > 0:", "Rewrite"), FP32),
    Bad(
        fixed_axis_named_dynamic,
        4,
        ("'height' of input 'image' has one size only", "Write that axis as a number"),
        FP32,
    ),
    Bad(fixed_axis_read_directly, 4, ("'height' of input 'image' is always 8", "Write that axis as a number"), FP32),
    Bad(operators_that_tensorrt_lacks, 4, ("cannot parse 2 nodes", "Det", "leave this target out"), FP32),
    Bad(no_profile_for_an_engine, 2, ("'batch' of input 'image'", "profile: {batch: {min: 1, opt: 8, max: 32}}")),
    Bad(device_that_is_not_here, 3, ("cuda:0", "no NVIDIA GPU", "--device cpu"), ("--device", "cuda:0")),
    Bad(target_not_installed, 3, ("tensorrt is not installed", "fp32@tensorrt/engine", "pip install tensorrt")),
    Bad(another_sha256, 2, ("model.sha256", "Restore the file")),
    Bad(exported_with_a_fixed_batch, 4, ("model.pt2", "fixed to [2, 1, 8, 8]", "'batch'", "Export it again"), FP32),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_gets_its_exit_code_and_says_what_to_do(bad: Bad, folder: Path, warm_home: Path) -> None:
    if bad.change in (device_that_is_not_here, target_not_installed) and has_nvidia_device():
        pytest.skip("this machine has a GPU")
    if bad.change is target_not_installed and installed(("tensorrt", "tensorrt-cu13", "tensorrt-cu12")):
        pytest.skip("tensorrt is installed")
    bad.change(folder)
    done = run_optimize("build", "recipe.yaml", *bad.arguments, home=warm_home, cwd=folder)
    check_bad(bad, done.stderr, done.returncode, warm_home, folder)
    assert not (folder / "ran").exists()  # what the pickle would have run


def test_what_tensorrt_cannot_parse_does_not_stop_the_other_candidates(folder: Path, warm_home: Path) -> None:
    operators_that_tensorrt_lacks(folder)
    done = run_optimize("build", "recipe.yaml", "--only", "fp32", home=warm_home, cwd=folder)
    assert done.returncode == 4
    report = json.loads((Path(done.stdout.splitlines()[-1]).parent / "report.json").read_text())
    found = {c["name"]: c for c in report["candidates"]}
    assert {name: c["status"] for name, c in found.items()} == {
        "fp32@torch": "measured",
        "fp32@onnxruntime": "measured",
        "fp32@tensorrt_rtx": "failed",
    }
    assert "cannot parse 2 nodes" in found["fp32@tensorrt_rtx"]["reason"]


def test_a_sample_in_both_sets_is_replaced_and_reported(folder: Path, warm_home: Path) -> None:
    edit(
        folder / "data.py",
        "    part =",
        "    images[:5], images[5:900:8] = images[1000:1005], images[1005]\n    part =",
    )
    for _ in range(2):  # the second build reuses the calibration and must tell it too
        done = run_optimize("build", "recipe.yaml", "--only", "int8", home=warm_home, cwd=folder)
        assert done.returncode == 0, done.stderr
        report = json.loads((Path(done.stdout.splitlines()[-1]).parent / "report.json").read_text())
        (note,) = (said for said in report["notes"] if not said.startswith("latency at batch"))
        assert re.match(r"calibration: \d+ samples stand in the evaluation set too and were replaced \(train\[", note)


@pytest.mark.parametrize("text", ["", '{"schema_version": 1}', "{not json", '{"schema_version": 99}'])
def test_an_unreadable_report_is_a_usage_error(text: str, tmp_path: Path, warm_home: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    for command in (("report", tmp_path), ("compare", tmp_path, tmp_path)):
        done = run_optimize(*command, home=warm_home)
        assert done.returncode == 2
        check_short(done.stderr)
        assert str(tmp_path / "report.json") in done.stderr
        assert "optimize build" in done.stderr


def test_where_every_variant_fails_the_report_is_written_all_the_same(folder: Path, warm_home: Path) -> None:
    nan_in_calibration(folder)
    done = run_optimize("build", "recipe.yaml", "--only", "int8", home=warm_home, cwd=folder)
    assert done.returncode == 4
    report = json.loads((Path(done.stdout.splitlines()[-1]).parent / "report.json").read_text())
    assert {c["name"]: c["status"] for c in report["candidates"]} == {
        "fp32@torch": "measured",
        "int8@onnxruntime": "failed",
        "int8@tensorrt_rtx": "failed",
    }
    assert report["recommended"] == {}  # the baseline has won against nobody
    said = "verdict: none (Nothing that was asked for could be built); 2 of 3 candidates failed; recommended: nothing"
    assert said in done.stdout.splitlines()
    check_short(done.stderr)
