"""Interrupted by Ctrl-C or by a full disk: exit code, screen, an intact store, and what the next build reuses."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optimizer.cli import main
from tests.e2e.conftest import Build, run_optimize
from tests.e2e.screens import check_screen, check_short, outcomes, plain
from tests.e2e.tiny import edit

pytestmark = pytest.mark.usefixtures("stays_whole")


def interrupt(folder: Path, home: Path, ready: Callable[[int, str], bool]) -> str:
    """Build, send SIGINT once `ready` says so of the process and its last line; return the whole screen."""
    with subprocess.Popen(
        [sys.executable, "-m", "optimizer", "build", "recipe.yaml", "--only", "fp32"],
        env={**os.environ, "OPTIMIZE_HOME": str(home)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as build:
        assert build.stderr is not None
        screen = ""
        for line in build.stderr:
            screen += line
            if ready(build.pid, line):
                build.send_signal(signal.SIGINT)
                break
        screen += build.stderr.read()
    assert build.returncode == 130, screen
    check_short(screen)
    return screen


def planned(folder: Path, home: Path) -> dict[str, str]:
    """What the next build would do with each step."""
    done = run_optimize("plan", "recipe.yaml", "--only", "fp32", home=home, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[:-1]}


def rebuilt(folder: Path, home: Path) -> dict[str, str]:
    done = run_optimize("build", "recipe.yaml", "--only", "fp32", home=home, cwd=folder)
    assert done.returncode == 0, done.stderr
    return outcomes(done.stderr)


def test_ctrl_c_in_a_stage_leaves_what_was_finished(folder: Path, warm_home: Path) -> None:
    edit(folder / "model.py", "import torch\n", "# another file, so that it is exported anew\nimport torch\n")

    def exporting(build: int, line: str) -> bool:
        if not line.startswith("collect"):
            return False
        time.sleep(1)
        return True

    screen = interrupt(folder, warm_home, exporting)
    check_screen("interrupted", plain(screen, warm_home, folder))
    next_time = planned(folder, warm_home)
    assert next_time["collect"] == "reuse"
    assert next_time["export"] == "build"


def test_ctrl_c_ends_the_child_that_builds_the_engine(folder: Path, warm_home: Path) -> None:
    edit(folder / "recipe.yaml", '["8.6"]', '["8.6", "8.9", "12.0"]')
    children: list[str] = []

    def building(build: int, line: str) -> bool:
        if not line.startswith("simplify"):
            return False
        while not children:
            children.extend(Path(f"/proc/{build}/task/{build}/children").read_text().split())
        return True

    assert "fp32@tensorrt_rtx/engine" not in outcomes(interrupt(folder, warm_home, building))
    for _ in range(50):  # one that had not begun yet ends by itself once it sees that its parent is gone
        if not any(Path("/proc", child).exists() for child in children):
            break
        time.sleep(0.1)
    assert not any(Path("/proc", child).exists() for child in children)
    again = rebuilt(folder, warm_home)
    assert again["simplify"] == "reused"
    assert again["fp32@tensorrt_rtx/engine"] == "built"


def test_ctrl_c_while_measuring_leaves_the_stages_and_the_accuracy(folder: Path, warm_home: Path) -> None:
    edit(folder / "recipe.yaml", "seconds: 0.2", "seconds: 30")
    edit(folder / "recipe.yaml", "metrics: [top1]", "metrics: [top1, top5]")

    def measuring(build: int, line: str) -> bool:
        if not line.startswith("accuracy"):
            return False
        time.sleep(0.5)
        return True

    assert outcomes(interrupt(folder, warm_home, measuring))["accuracy"] == "measured"
    edit(folder / "recipe.yaml", "seconds: 30", "seconds: 0.1")
    again = rebuilt(folder, warm_home)
    assert set(again.values()) == {"reused", "measured"}
    assert again["accuracy"] == "reused"
    assert "latency" in again


# A small file system of its own, in a mount namespace that ends with the commands. The second one fills up in a stage.
FULL = """
for size in 24 160; do
    mount -t tmpfs -o size=${size}k tmpfs $OPTIMIZE_HOME || exit 99
    $PYTHON -m optimizer build recipe.yaml --only fp32 > out 2> screen_$size; echo $? > code_$size
    mount -o remount,size=200m $OPTIMIZE_HOME
    $PYTHON -m optimizer cache verify || echo damaged >> code_$size
done
$PYTHON -m optimizer build recipe.yaml --only fp32
"""


def test_a_full_disk_is_named_and_leaves_the_store_whole(folder: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    full = tmp_path / "full"
    full.mkdir()
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    env = {**os.environ, "OPTIMIZE_HOME": str(full), "PYTHON": sys.executable}
    done = subprocess.run(
        ["unshare", "--mount", *user, "sh", "-c", FULL],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if not (folder / "code_24").is_file():
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    for size in (24, 160):
        screen = (folder / f"screen_{size}").read_text()
        assert (folder / f"code_{size}").read_text() == "4\n", screen
        check_short(screen)
        assert "the disk is full" in screen
        assert "optimize cache prune" in screen
    assert outcomes(screen)["collect"] == "built"
    screen = re.sub(r"\(\d+ MB", "(<n> MB", plain((folder / "screen_24").read_text(), full, folder))
    check_screen("full_disk", screen)
    assert done.returncode == 0, done.stderr
    assert outcomes(done.stderr)["collect"] == "reused"


def test_a_disk_that_fills_up_while_the_run_is_written(
    built: Build, warm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = np.savez_compressed

    def full(file: Path, **arrays: object) -> None:
        if Path(file).name == "outcomes.npz":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, **arrays)  # type: ignore[arg-type]

    monkeypatch.setenv("OPTIMIZE_HOME", str(warm_home))
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", full)
        code = main(["build", str(built.recipe), "--out", str(tmp_path / "run")])
    stderr = capsys.readouterr().err
    assert code == 4
    check_short(stderr)
    assert "the disk is full" in stderr
    assert not (tmp_path / "run" / "report.json").exists()  # a folder with a report is whole
