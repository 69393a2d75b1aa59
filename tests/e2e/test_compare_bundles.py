"""Two bundles of a real build, compared as their users do: by the command, without the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Build, run_optimize


@pytest.fixture(scope="module")
def bundles(built: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The fp32 and the int8 bundle of the session's build."""
    folder = tmp_path_factory.mktemp("bundles")
    for variant in ("fp32", "int8"):
        options = ["--variant", variant, "--target", "onnxruntime", "-o", str(folder / variant)]
        done = run_optimize("bundle", str(built.run), *options, home=built.home)
        assert done.returncode == 0, done.stderr
    return {variant: folder / variant for variant in ("fp32", "int8")}


def test_a_bundle_and_its_copy_find_nothing(bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bundles["int8"], tmp_path / "copy")
    done = run_optimize("compare", str(bundles["int8"]), str(tmp_path / "copy"), "--seconds", "0.1", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every value is the same, the same answer on 8 of 8" in done.stdout


def test_float32_against_int8_shows_what_int8_costs(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Which is faster is for the machine to say; the rest is not."""
    pair = [str(bundles[name]) for name in ("fp32", "int8")]
    done = run_optimize("compare", *pair, "--seconds", "0.1", home=tmp_path)
    assert done.returncode in (0, 6, 7), done.stderr
    rows = {line.split("  ")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("int8@")}
    assert {"output 'logits'", "top1", "latency, batch 1", "latency, batch 4", "size", "precision"} <= rows.keys()
    assert "SQNR " in rows["output 'logits'"]
    assert "of another precision, so it is shown" in rows["size"]
    assert "over every pairing of the samples" in done.stdout
    assert "measured here in turns" in done.stdout
