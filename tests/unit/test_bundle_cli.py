from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import bundle_run
import numpy as np
import pytest
from click.testing import CliRunner

from optimizer.bundle.write import write_bundle
from optimizer.cli.bundle import command as bundle_command
from optimizer.cli.check_bundle import check_bundle
from optimizer.cli.run import command as run_command
from optimizer.errors import MissingToolError, StageError, UsageError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(bundle_run.write_run(tmp_path / "run"), "fp32@onnxruntime", tmp_path / "bundle")


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    np.savez(tmp_path / "feed.npz", image=bundle_run.images())
    return tmp_path / "feed.npz"


def call(command, *arguments: object) -> str:  # type: ignore[no-untyped-def]
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_run_prints_shapes_values_and_top_labels(bundle: Path, feed: Path) -> None:
    lines = call(run_command, bundle, "--input", feed).splitlines()
    best = bundle_run.logits().argmax(1)
    label = ["cat", "dog", "élan"][best[0]]
    assert lines[0] == "logits: float32[5, 3]"
    assert lines[1].startswith(f"  {label} ({bundle_run.logits()[0].max():.5g})")
    assert lines[6] == "best: int64[5]"
    assert lines[7] == f"  {best[0]}"


def test_run_writes_every_output(bundle: Path, feed: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    assert call(run_command, bundle, "--input", feed, "-o", out).strip() == str(out)
    with np.load(out) as archive:
        np.testing.assert_allclose(archive["logits"], bundle_run.logits(), rtol=1e-5, atol=1e-5)
        assert set(archive.files) == {"logits", "best"}


@pytest.mark.parametrize("content", [b"nothing of the kind", b""])
def test_run_refuses_what_is_no_npz(bundle: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"is no .npz of plain arrays"):
        call(run_command, bundle, "--input", tmp_path / "bad.npz")


def test_run_refuses_pickles_a_single_array_and_a_missing_file(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="Object arrays cannot be loaded"):
        call(run_command, bundle, "--input", tmp_path / "pickle.npz")
    np.save(tmp_path / "one.npy", bundle_run.images())
    with pytest.raises(UsageError, match="is a single array"):
        call(run_command, bundle, "--input", tmp_path / "one.npy")
    with pytest.raises(UsageError, match="there is no such file"):
        call(run_command, bundle, "--input", tmp_path / "none.npz")


def test_bundle_command_writes_the_recommended_candidate(tmp_path: Path) -> None:
    run = bundle_run.write_run(tmp_path / "run")
    out = tmp_path / "deploy"
    assert call(bundle_command, run, "--variant", "int8", "-o", out).strip() == str(out)
    lines: list[str] = []
    check_bundle(out, lines.append)
    assert lines[0] == "bundle   tiny int8@onnxruntime"
    assert lines[1].startswith("seal     whole: 4 files, ")
    assert lines[2] == "loads    on cpu with onnxruntime (built with onnxruntime 1.31.1)"
    assert lines[3].startswith("golden   'logits' comes out: 5 samples, largest difference ")
    assert lines[4] == "golden   'best' comes out: 5 samples, 100.0% of the values equal, allowed at least 80%"


def test_check_fails_when_golden_outputs_do_not_come_out(tmp_path: Path) -> None:
    run = bundle_run.write_run(tmp_path / "run")
    out = write_bundle(run, "fp32@onnxruntime", tmp_path / "b")
    # A bundle whose model was exchanged and sealed again: every sha256 is right, the numbers are not.
    import json

    from optimizer.digest import sha256_file
    from optimizer.runtime.passport import render, seal

    bundle_run.classifier(out / "model.onnx", bias=0.5)
    document = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    document["files"]["model.onnx"]["sha256"] = sha256_file(out / "model.onnx")
    (out / "passport.json").write_bytes(render(seal(document)))
    with pytest.raises(
        StageError, match=r"golden outputs do not come out: output 'logits': largest difference 0\.5, all"
    ):
        check_bundle(out, lambda line: None)


def test_check_says_why_an_engine_cannot_load_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.runtime import cuda

    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    engine = bundle_run.candidate("fp16@tensorrt_rtx", "built", reason="no GPU", accuracy_runtime="emulator")
    run = bundle_run.write_run(tmp_path / "run", [bundle_run.candidate("fp32@torch"), engine])
    bundle = write_bundle(run, "fp16@tensorrt_rtx", tmp_path / "b")
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    lines: list[str] = []
    with pytest.raises(MissingToolError, match="needs an NVIDIA GPU with a driver; this machine has none") as caught:
        check_bundle(bundle, lines.append)
    assert caught.value.exit_code == 3
    assert lines[1].startswith("seal     whole")


def test_serving_commands_need_click_and_numpy_alone(bundle: Path, feed: Path) -> None:
    script = f"""
        import sys
        from pathlib import Path
        from optimizer.cli.check_bundle import check_bundle
        from optimizer.cli.run import command
        command([{str(bundle)!r}, "--input", {str(feed)!r}], standalone_mode=False)
        check_bundle(Path({str(bundle)!r}), lambda line: None)
        heavy = "torch pydantic onnx yaml PIL rich scipy safetensors psutil jinja2 tensorrt tensorrt_rtx".split()
        sys.exit(str([name for name in heavy if name in sys.modules]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("value", "rest"), [(np.nan, 0.0), (np.inf, 0.0), (-np.inf, np.nan)])
def test_run_refuses_values_that_are_not_finite(bundle: Path, tmp_path: Path, value: float, rest: float) -> None:
    image = bundle_run.images()
    image[1, 2, 0, 1] = value
    image[4, 0, 0, 0] = rest
    np.savez(tmp_path / "bad.npz", image=image)
    with pytest.raises(UsageError) as caught:
        call(run_command, bundle, "--input", tmp_path / "bad.npz")
    count = 1 + int(np.isnan(rest))
    expected = f"'image' has {count} of {image.size} values NaN or infinite, the first at [1, 2, 0, 1]"
    assert (caught.value.what, caught.value.where) == (expected, str(tmp_path / "bad.npz"))


def test_run_refuses_a_batch_that_was_never_proven(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", image=np.zeros((9, 3, 2, 2), np.float32))
    with pytest.raises(UsageError, match="axis 'batch' is 9 in input 'image'"):
        call(run_command, bundle, "--input", tmp_path / "many.npz")
