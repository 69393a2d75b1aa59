"""The wheel in an empty environment: the bare package serves bundles with numpy, click and one backend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Build, run_optimize

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]

INFER = """
import sys
import numpy as np
import optimizer.runtime

with optimizer.runtime.load(sys.argv[1]) as model, np.load(sys.argv[2]) as feed:
    print(model.infer({name: feed[name] for name in feed.files})["logits"].argmax(1).tolist())
print(sorted({"torch", "pydantic", "click", "onnx", "yaml"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def bundle(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "int8"
    done = run_optimize(
        "bundle", built.run, "--variant", "int8", "--target", "onnxruntime", "-o", folder, home=built.home
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fresh environment with the wheel installed, and nothing that it does not ask for."""
    folder = tmp_path_factory.mktemp("empty")
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True, timeout=250)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        words = [str(python), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env, timeout=250, check=False)

    constraints = ("-c", ROOT / "constraints.txt")
    installed = run("-m", "pip", "install", "-q", *constraints, next(folder.glob("*.whl")))
    assert installed.returncode == 0, installed.stderr
    return run


@pytest.mark.timeout(600)
def test_the_bare_package_serves_bundles(empty: Run, bundle: Path, tmp_path: Path) -> None:
    listed = empty("-m", "pip", "list", "--format", "freeze").stdout
    assert {line.split("==")[0] for line in listed.split()} <= {"click", "numpy", "optimizer", "pip", "setuptools"}
    assert empty("-m", "optimizer", "--help").returncode == 0

    absent = empty("-m", "optimizer", "check", bundle)
    assert absent.returncode == 3
    assert "pip install onnxruntime" in absent.stderr
    for command in (("build", "no.yaml"), ("plan", "no.yaml"), ("check", "no.yaml")):
        bare = empty("-m", "optimizer", *command)
        assert (bare.returncode, bare.stderr) == (2, "error: no.yaml: no such file\n")
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "report.json").touch()
    for command in (
        ("build", tmp_path / "recipe.yaml"),
        ("plan", tmp_path / "recipe.yaml"),
        ("stages",),
        ("report", tmp_path),
    ):
        bare = empty("-m", "optimizer", *command)
        assert bare.returncode == 3, (command, bare.stderr)
        assert "Traceback" not in bare.stderr
        assert "pip install" in bare.stderr

    constraints = ("-c", ROOT / "constraints.txt")
    assert empty("-m", "pip", "install", "-q", *constraints, "onnxruntime").returncode == 0
    checked = empty("-m", "optimizer", "check", bundle)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with np.load(bundle / "golden.npz") as golden:
        feed = {k.removeprefix("input/"): golden[k] for k in golden.files if k.startswith("input/")}
        expected = golden["output/logits"].argmax(1).tolist()
    np.savez(tmp_path / "feed.npz", **feed)
    inferred = empty("-c", INFER, bundle, tmp_path / "feed.npz")
    assert inferred.stdout.splitlines() == [str(expected), "[]"], inferred.stderr
    ran = empty("-m", "optimizer", "run", bundle, "--input", tmp_path / "feed.npz", "-o", tmp_path / "out.npz")
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "out.npz") as out:
        assert out["logits"].argmax(1).tolist() == expected
