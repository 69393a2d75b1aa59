"""What bad input gets: the exit code, a short screen that says what to do, an intact store, and a good build after it.

The exact screens stand in tests/fixtures/screens; `SCREENS=write pytest tests/e2e/test_bad_input.py` writes them anew.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from optimizer.cli import main
from optimizer.store import Store
from tests.e2e.conftest import Build, run_optimize
from tests.e2e.tiny import edit

SCREENS = Path(__file__).parent.parent / "fixtures" / "screens"
MOST_LINES = 15
PROGRESS = re.compile(r"^\S+ +(built|reused|measured|failed)\b")


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


@dataclass(frozen=True)
class Bad:
    """A bad input, the exit code, and the words that its screen must have."""

    change: Callable[[Path], None]
    code: int
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.change.__name__


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


# --- what they share -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that knows the good recipe already, for all bad ones."""
    place = tmp_path_factory.mktemp("bad") / "home"
    shutil.copytree(built.home, place)
    return place


@pytest.fixture
def folder(built: Build, tmp_path: Path) -> Path:
    """A copy of the good recipe's folder, to spoil."""
    place = tmp_path / "recipe"
    shutil.copytree(built.recipe.parent, place, ignore=shutil.ignore_patterns("*.lock.json", "__pycache__"))
    return place


@pytest.fixture(autouse=True)
def stays_whole(home: Path, built: Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards the store is intact, nothing half lies about, and the good recipe builds."""
    yield
    assert Store(home / "store").verify() == []
    assert list((home / "store" / "tmp").iterdir()) == []
    monkeypatch.setenv("OPTIMIZE_HOME", str(home))
    assert main(["build", str(built.recipe)]) == 0


def plain(text: str, home: Path, folder: Path) -> str:
    """Put placeholders where a screen differs from machine to machine."""
    for found, name in (
        (re.escape(str(folder)), "<folder>"),
        (rf"{re.escape(str(home))}/runs/\w+/\d+", "<run>"),
        (re.escape(str(home)), "<home>"),
        (r"\b[0-9a-f]{64}\b", "<sha256>"),
        (r"\b[0-9a-f]{8}\b", "<digest>"),
        (r" *\d+\.\d s\b", " <time>"),
        (r"(tensorrt_rtx|torch) [\d.]+\d\S*", r"\1 <version>"),
    ):
        text = re.sub(found, name, text)
    return text


def check_screen(name: str, screen: str) -> None:
    """Compare with the screen that is kept beside the test."""
    file = SCREENS / f"{name}.txt"
    if os.environ.get("SCREENS") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(screen)
    assert screen == file.read_text()


def check_short(stderr: str) -> None:
    told = [line for line in stderr.splitlines() if not PROGRESS.match(line)]
    assert 1 <= len(told) <= MOST_LINES, stderr
    assert "Traceback" not in stderr
    assert len(set(told)) == len(told), "something is said twice"
    for log in re.findall(r"log: (\S+)", stderr):
        assert Path(log).is_file()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_gets_its_exit_code_and_a_screen_that_says_what_to_do(bad: Bad, folder: Path, home: Path) -> None:
    bad.change(folder)
    done = run_optimize("build", "recipe.yaml", *bad.arguments, home=home, cwd=folder)
    assert done.returncode == bad.code, done.stderr
    check_short(done.stderr)
    for words in bad.says:
        assert words in done.stderr
    assert not (folder / "ran").exists()  # what the pickle would have run
    check_screen(bad.name, plain(done.stderr, home, folder))


def test_what_tensorrt_cannot_parse_does_not_stop_the_other_candidates(folder: Path, home: Path) -> None:
    operators_that_tensorrt_lacks(folder)
    done = run_optimize("build", "recipe.yaml", "--only", "fp32", home=home, cwd=folder)
    assert done.returncode == 4
    report = json.loads((Path(done.stdout.splitlines()[-1]).parent / "report.json").read_text())
    found = {c["name"]: c for c in report["candidates"]}
    assert {name: c["status"] for name, c in found.items()} == {
        "fp32@torch": "measured",
        "fp32@onnxruntime": "measured",
        "fp32@tensorrt_rtx": "failed",
    }
    assert "cannot parse 2 nodes" in found["fp32@tensorrt_rtx"]["reason"]


def test_a_sample_in_both_sets_is_replaced_and_reported(folder: Path, home: Path) -> None:
    edit(
        folder / "data.py",
        "    part =",
        "    images[:5], images[5:900:8] = images[1000:1005], images[1005]\n    part =",
    )
    for _ in range(2):  # the second build reuses the calibration and must tell it too
        done = run_optimize("build", "recipe.yaml", "--only", "int8", home=home, cwd=folder)
        assert done.returncode == 0, done.stderr
        report = json.loads((Path(done.stdout.splitlines()[-1]).parent / "report.json").read_text())
        (note,) = report["notes"]
        assert re.match(r"calibration: \d+ samples stand in the evaluation set too and were replaced \(train\[", note)


@pytest.mark.parametrize("text", ["", '{"schema_version": 1}', "{not json", '{"schema_version": 99}'])
def test_an_unreadable_report_is_a_usage_error(text: str, tmp_path: Path, home: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    for command in (("report", tmp_path), ("compare", tmp_path, tmp_path)):
        done = run_optimize(*command, home=home)
        assert done.returncode == 2
        check_short(done.stderr)
        assert str(tmp_path / "report.json") in done.stderr
        assert "optimize build" in done.stderr


# --- interrupted ---------------------------------------------------------------------------------------------------


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


def outcomes(screen: str) -> dict[str, str]:
    """What became of each step."""
    return {line.split()[0]: line.split()[1] for line in screen.splitlines() if PROGRESS.match(line)}


def planned(folder: Path, home: Path) -> dict[str, str]:
    """What the next build would do with each step."""
    done = run_optimize("plan", "recipe.yaml", "--only", "fp32", home=home, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[:-1]}


def rebuilt(folder: Path, home: Path) -> dict[str, str]:
    done = run_optimize("build", "recipe.yaml", "--only", "fp32", home=home, cwd=folder)
    assert done.returncode == 0, done.stderr
    return outcomes(done.stderr)


def test_ctrl_c_in_a_stage_leaves_what_was_finished(folder: Path, home: Path) -> None:
    edit(folder / "model.py", "import torch\n", "# another file, so that it is exported anew\nimport torch\n")

    def exporting(build: int, line: str) -> bool:
        if not line.startswith("collect"):
            return False
        time.sleep(1)
        return True

    screen = interrupt(folder, home, exporting)
    check_screen("interrupted", plain(screen, home, folder))
    next_time = planned(folder, home)
    assert next_time["collect"] == "reuse"
    assert next_time["export"] == "build"


def test_ctrl_c_ends_the_child_that_builds_the_engine(folder: Path, home: Path) -> None:
    edit(folder / "recipe.yaml", '["8.6"]', '["8.6", "8.9", "12.0"]')
    children: list[str] = []

    def building(build: int, line: str) -> bool:
        if not line.startswith("simplify"):
            return False
        while not children:
            children.extend(Path(f"/proc/{build}/task/{build}/children").read_text().split())
        return True

    assert "fp32@tensorrt_rtx/engine" not in outcomes(interrupt(folder, home, building))
    for _ in range(50):  # one that had not begun yet ends by itself once it sees that its parent is gone
        if not any(Path("/proc", child).exists() for child in children):
            break
        time.sleep(0.1)
    assert not any(Path("/proc", child).exists() for child in children)
    again = rebuilt(folder, home)
    assert again["simplify"] == "reused"
    assert again["fp32@tensorrt_rtx/engine"] == "built"


def test_ctrl_c_while_measuring_leaves_the_stages_and_the_accuracy(folder: Path, home: Path) -> None:
    edit(folder / "recipe.yaml", "seconds: 0.2", "seconds: 30")
    edit(folder / "recipe.yaml", "metrics: [top1]", "metrics: [top1, top5]")

    def measuring(build: int, line: str) -> bool:
        if not line.startswith("accuracy"):
            return False
        time.sleep(0.5)
        return True

    assert outcomes(interrupt(folder, home, measuring))["accuracy"] == "measured"
    edit(folder / "recipe.yaml", "seconds: 30", "seconds: 0.1")
    again = rebuilt(folder, home)
    assert set(again.values()) == {"reused", "measured"}
    assert "accuracy" not in again
    assert "latency" in again


# --- a full disk ---------------------------------------------------------------------------------------------------


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
    built: Build, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = np.savez_compressed

    def full(file: Path, **arrays: object) -> None:
        if Path(file).name == "outcomes.npz":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, **arrays)  # type: ignore[arg-type]

    monkeypatch.setenv("OPTIMIZE_HOME", str(home))
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", full)
        code = main(["build", str(built.recipe), "--out", str(tmp_path / "run")])
    stderr = capsys.readouterr().err
    assert code == 4
    check_short(stderr)
    assert "the disk is full" in stderr
    assert not (tmp_path / "run" / "report.json").exists()  # a folder with a report is whole
