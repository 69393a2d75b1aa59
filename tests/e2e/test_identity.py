"""What a build is made from, when that moves or changes under its hands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optimizer.cli.progress import PlainProgress
from optimizer.data.splits import Splits
from optimizer.errors import StageError
from optimizer.pipeline.execute import Workshop, execute
from optimizer.pipeline.plan import plan
from optimizer.recipe.loader import load_recipe
from optimizer.store import Store
from tests.e2e.conftest import Build, run_optimize
from tests.e2e.tiny import edit


def test_a_checkpoint_that_changes_between_plan_and_build_never_reaches_the_store(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny)
    store = Store(tmp_path / "store")
    planned = plan(recipe, store, tmp_path / "history")
    checkpoint = tiny.parent / "checkpoint.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    splits = Splits(recipe)
    shop = Workshop(recipe, store, splits, PlainProgress(), tmp_path / "logs", "cpu", planned.sources)
    done = execute(planned, shop)
    assert "'checkpoint' changed while it was read" in str(done.failures["collect"])
    assert list(store.entries()) == []
    with pytest.raises(StageError, match="'checkpoint' changed"):
        shop.check_unchanged(["checkpoint"])


def test_another_version_of_what_the_model_imports_rebuilds_all_that_follows(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(built.recipe.parent, tmp_path / "recipe")
    recipe = tmp_path / "recipe" / "recipe.yaml"
    package = tmp_path / "lib" / "gain_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("GAIN = 1.0")
    model = recipe.parent / "model.py"
    model.write_text(
        "from gain_package import GAIN\n"
        + model.read_text().replace("self.head(self.features(image))", "self.head(self.features(image)) * GAIN")
    )
    edit(recipe, "variants: {fp32: {}, fp16: {}, int8: {}}", "variants: {fp32: {}}")
    edit(recipe, '  tensorrt_rtx: {compute_capabilities: ["8.6"]}\n', "")
    home, env = tmp_path / "home", {"PYTHONPATH": str(tmp_path / "lib")}
    accuracies = []
    for gain in ("1.0", "-1.0"):
        (package / "__init__.py").write_text(f"GAIN = {gain}")
        done = run_optimize("build", recipe, "--json", home=home, **env)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        accuracies.append({c["name"]: c["accuracy"]["top1"]["value"] for c in report["candidates"]})
        assert not any(stage["reused"] for stage in report["stages"])
    assert accuracies[0]["fp32@onnxruntime"] > 0.8
    assert accuracies[1]["fp32@onnxruntime"] == accuracies[1]["fp32@torch"] < 0.2


def test_a_run_is_measured_where_its_data_lies_elsewhere(tiny: Path, tmp_path: Path) -> None:
    """`--set` names the data's place on each machine; what counts is the content."""
    import numpy as np
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    images = (pictures.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    np.savez(here / "digits.npz", images=images, labels=labels)
    (tiny.parent / "data.py").write_text(
        "import numpy as np\n"
        "def digits(split, root):\n"
        "    with np.load(f'{root}/digits.npz') as file:\n"
        "        part = slice(0, 900) if split == 'train' else slice(900, None)\n"
        "        return file['images'][part], file['labels'][part]\n"
    )
    edit(tiny, "  source: data.py:digits\n", "  source: data.py:digits\n  arguments: {root: '${place}'}\n"
         "  files: ['${place}/digits.npz']\n")  # fmt: skip
    edit(tiny, "variants: {fp32: {}, fp16: {}, int8: {}}", "variants: {fp32: {}}")
    built = run_optimize("build", tiny, "--set", f"place={here}", "--out", tmp_path / "run", home=tmp_path / "home")
    assert built.returncode == 0, built.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert f"place={here}" in report["command"]
    here.rename(there)
    shutil.rmtree(tiny.parent)
    options = ("--set", f"place={there}", "--out", tmp_path / "measured")
    measured = run_optimize("measure", tmp_path / "run", *options, home=tmp_path / "elsewhere")
    assert measured.returncode == 0, measured.stderr
    with np.load(there / "digits.npz") as file:
        changed = {name: file[name].copy() for name in file.files}
    changed["images"][1000] = 0
    np.savez(there / "digits.npz", **changed)
    refused = run_optimize("measure", tmp_path / "run", *options, home=tmp_path / "elsewhere")
    assert refused.returncode == 4
    assert "is not the data that this run was judged on" in refused.stderr


def test_a_report_is_written_even_where_the_lock_cannot_be(tiny: Path, tmp_path: Path) -> None:
    edit(tiny, "variants: {fp32: {}, fp16: {}, int8: {}}", "variants: {fp32: {}}")
    edit(tiny, '  tensorrt_rtx: {compute_capabilities: ["8.6"]}\n', "")
    (tiny.parent / "recipe.lock.json").mkdir()
    done = run_optimize("build", tiny, "--out", tmp_path / "run", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "recipe.lock.json was not written" in done.stderr
    assert (tmp_path / "run" / "report.json").is_file()
    refused = run_optimize("build", tiny, "--trace", tmp_path / "no" / "t.json", home=tmp_path / "home")
    assert refused.returncode == 2
    assert "there is no such folder" in refused.stderr
