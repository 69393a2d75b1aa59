"""A planted fault in a whole build: the stage or the runtime is named, the node, and the script reproduces it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimizer.cli import main
from optimizer.pipeline.blame import explained, of_stage
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.session import Session
from optimizer.stages.export import Export
from optimizer.stages.simplify import Simplify
from optimizer.types import Artifact
from optimizer.verify import DisagreementError, verify
from tests.e2e.conftest import Build
from tests.e2e.tiny import edit


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def script_named(text: str) -> Path:
    found = re.search(r"reproduce: (.+)", text)
    assert found, text
    interpreter, script = shlex.split(found[1])
    done = subprocess.run([interpreter, "-c", "import onnxruntime"], check=False)  # as it is typed, from here
    assert done.returncode == 0
    return Path(script)


@pytest.fixture
def home(built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that has the recipe's first stages, so that only what is changed is built."""
    place = tmp_path / "home"
    shutil.copytree(built.home, place)
    monkeypatch.setenv("OPTIMIZE_HOME", str(place))
    return place


def scaled(model: onnx.ModelProto, node: str) -> None:
    """Make one node wrong: its weight is one and a half times what it was."""
    found = next(n for n in model.graph.node if n.op_type == node)
    weight = next(t for t in model.graph.initializer if t.name == found.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))


def test_a_stage_that_breaks_a_node_is_named_with_it(
    home: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Simplify.run

    def breaks(self: Simplify, sources: Any, workdir: Path, context: Any) -> None:
        good(self, sources, workdir, context)
        model = onnx.load(workdir / "model.onnx")
        scaled(model, "Conv")
        onnx.save(model, workdir / "model.onnx")

    monkeypatch.setattr(Simplify, "run", breaks)
    monkeypatch.setattr(Simplify, "version", 1000)
    assert main(["build", str(folder / "recipe.yaml")]) == 4
    told = capsys.readouterr().err
    assert "stage 'simplify': output 'logits' at batch 1 is" in told
    assert "brought in by the graph that 'simplify' wrote" in told
    assert re.search(r"node '\S+' \(Conv, module 'conv'\) is the first that differs", told)
    again = run_script(script_named(told))
    assert (again.returncode, "WRONG" in again.stdout) == (1, True), again.stderr
    mended = script_named(told).parent / "whole" / "model.onnx"
    mended.unlink()
    shutil.copyfile(next(home.glob("store/objects/*/*/output/model.onnx")), mended)
    assert run_script(script_named(told)).returncode == 2  # another file


class Lying(Session):
    """onnxruntime, with a wrong Gemm wherever two samples or more come together."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.right = OnnxSession(path)
        model = onnx.load(path)
        gemm = any(n.op_type == "Gemm" for n in model.graph.node)
        if gemm:
            scaled(model, "Gemm")
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / "wrong.onnx")
        self.wrong = OnnxSession(folder / "wrong.onnx")
        self.inputs, self.outputs = self.right.inputs, self.right.outputs

    def infer(self, feed: Any) -> Any:
        several = len(next(iter(feed.values()))) > 1
        return (self.wrong if several else self.right).infer(feed)

    def bind(self, feed: Any) -> Any:
        return self.right.bind(feed)


def test_a_runtime_that_lies_in_a_batch_is_named_with_its_node(
    home: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del home
    monkeypatch.setattr(OnnxRuntimeRunner, "open", lambda self: Lying(self.artifact.file, tmp_path / "lie"))
    recipe = edit(folder / "recipe.yaml", "samples: 64", "samples: 65")
    edit(recipe, "variants: {fp32: {}, fp16: {}, int8: {}}", "variants: {fp32: {}}")
    edit(recipe, "evaluation: {split: test}", "evaluation: {split: test, samples: 800}")
    assert main(["build", str(recipe), "--remeasure"]) == 4
    told = capsys.readouterr()
    assert "'fp32@onnxruntime' against the baseline 'fp32@torch': output 'logits' at batch 3 is" in told.err
    assert (
        "brought in by onnxruntime on cpu: on this input stage 'simplify' still agrees with what it came from"
        in told.err
    )
    assert re.search(r"node '\S+' \(Gemm, module 'head'\) is the first that differs", told.err)
    report = json.loads(Path(told.out.splitlines()[-1]).with_suffix(".json").read_text())
    (candidate,) = [c for c in report["candidates"] if c["name"] == "fp32@onnxruntime"]
    assert candidate["status"] == "failed"
    assert "Gemm" in candidate["reason"]
    script = script_named(told.err)
    assert (script.parent / "part" / "model.onnx").is_file()
    for case in ("whole", "part"):  # the real onnxruntime does not lie: the script says that the fault is not there
        done = run_script(script, case)
        assert (done.returncode, "ok" in done.stdout) == (0, True), done.stdout + done.stderr


def test_an_export_that_breaks_a_submodule_is_named_with_it(built: Build, tmp_path: Path) -> None:
    """The check of the stage export on a spoiled copy of what it wrote: the module's own values say where."""
    entries = [f.parent for f in built.home.glob("store/objects/*/*/record.json")]
    output = {json.loads((e / "record.json").read_text())["record"]["stage"]: e / "output" for e in entries}
    shutil.copytree(output["export"], tmp_path / "export")
    model = onnx.load(tmp_path / "export" / "model.onnx")
    scaled(model, "Conv")
    onnx.save(model, tmp_path / "export" / "model.onnx")
    made = Artifact("onnx", tmp_path / "export", "")
    module = Artifact("checkpoint", output["collect"], "")
    feed = {"image": np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)}
    assert Export.tolerance is not None
    child, parent = Export().open_output(made), Export().open_parent({"module": module})
    assert not isinstance(child, str)
    with child, parent, pytest.raises(DisagreementError) as caught:
        verify(parent, child, {2: feed}, Export.tolerance, what="stage 'export'")
    chain = of_stage("export", Export(), {"module": module}, made, Export.tolerance)
    told = explained(caught.value, chain, tmp_path / "fault").render()
    assert re.search(r"node '\S+' \(Conv, module 'conv'\) is the first that differs", told), told
    assert run_script(script_named(told)).returncode == 1


def test_without_a_fault_every_candidate_is_proven(built: Build) -> None:
    documents = [json.loads(f.read_text()) for f in built.home.glob("store/objects/*/*/output/measurement.json")]
    proofs = [d["proof"] for d in documents if "proof" in d]
    executed = [proof for proof in proofs if proof and not proof[0].startswith("unproven")]
    assert len(executed) == 3
    assert all(
        any(note.startswith("against fp32@torch: output 'logits' at batch 1, 3, 4, 8:") for note in p) for p in executed
    )
    assert not list(built.home.rglob("*.fault"))
