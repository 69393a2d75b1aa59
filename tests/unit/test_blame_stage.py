"""What a stage's failed check says: the graph it wrote, how it has it executed, or the engine it built from parts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import onnx
import pytest

from optimizer.errors import StageError
from optimizer.pipeline.blame import explained, of_stage
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.session import Session
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format
from optimizer.verify import DisagreementError, verify
from tests.unit.test_blame import EXACT, changed, constant, feed, lies, network

FEEDS = {batch: feed(batch) for batch in (1, 2, 3)}


class Opened(Session):
    """A file in a runtime whose kernel of one node is wrong in a batch."""

    def __init__(self, path: Path, node: str) -> None:
        self.right = OnnxSession(path, optimize=False)
        self.inputs, self.outputs = self.right.inputs, self.right.outputs
        self.path = path
        self.run = lies(node, lambda _, given: len(next(iter(given.values()))) > 1)

    def infer(self, feed: Any) -> Any:
        return self.run(self.path, feed)

    def bind(self, feed: Any) -> Any:
        return self.right.bind(feed)


class Copy(Stage):
    """Writes its source again, and has it executed by a runtime that lies about `node`."""

    name: ClassVar[str] = "copy"
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx"}
    produces: ClassVar[Format] = "onnx"
    tolerance: ClassVar[Tolerance | None] = EXACT

    node: str = "none"

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        shutil.copyfile(sources["graph"].file, workdir / "model.onnx")

    def open_output(self, output: Artifact) -> Session | str:
        return Opened(output.path / "model.onnx", self.node)


class Engine(Copy):
    """The same as an engine, which delivers what the whole delivers: a part of it never does."""

    produces: ClassVar[Format] = "engine"
    at_least: float = 0.9

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        if len(onnx.load(sources["graph"].file).graph.node) < 11 and self.at_least:
            raise StageError("delivers too little", where="engine")
        super().run(sources, workdir, context)
        shutil.copyfile(workdir / "model.onnx", workdir / "engine.plan")


def told(stage: Stage, parent: Path, made: Path, folder: Path) -> str:
    source = {"graph": Artifact("onnx", parent.parent, "")}
    artifact = Artifact(stage.produces, made, "")
    child = stage.open_output(artifact)
    assert isinstance(child, Session)
    assert stage.tolerance is not None
    with stage.open_parent(source) as opened, pytest.raises(DisagreementError) as caught:
        verify(opened, child, FEEDS, stage.tolerance, what=f"stage '{stage.name}'")
    chain = of_stage(stage.name, stage, source, artifact, stage.tolerance)
    return explained(caught.value, chain, folder).render()


def test_the_graph_that_a_stage_wrote_is_blamed_with_its_node(tmp_path: Path) -> None:
    parent = network(tmp_path / "parent")
    changed(parent, constant("four", 2.0), tmp_path / "made").rename(tmp_path / "made" / "model.onnx")
    text = told(Copy(), parent, tmp_path / "made", tmp_path / "fault")
    assert "brought in by the graph that 'copy' wrote" in text
    assert "node 'scale' (Div, module 'block.scale') is the first that differs" in text


def test_the_execution_of_a_right_graph_is_blamed_with_its_node(tmp_path: Path) -> None:
    parent = network(tmp_path / "parent")
    text = told(Copy(node="mix"), parent, parent.parent, tmp_path / "fault")
    assert "brought in by the execution of that graph" in text
    assert "node 'mix' (MatMul, module 'block.mix') is the first that differs" in text
    assert (tmp_path / "fault" / "part" / "model.onnx").is_file()


def test_an_engine_is_built_again_from_parts_until_the_node_is_found(tmp_path: Path) -> None:
    parent = network(tmp_path / "parent")
    shutil.copytree(parent.parent, tmp_path / "made")
    (tmp_path / "made" / "engine.plan").write_bytes(b"plan")
    text = told(Engine(node="softmax"), parent, tmp_path / "made", tmp_path / "fault")
    assert "brought in by 'copy'" in text
    assert "node 'softmax' (Softmax, module 'block.softmax') is the first that differs" in text


def test_a_search_that_fails_does_not_hide_the_fault(tmp_path: Path) -> None:
    parent = network(tmp_path / "parent")

    class Once(Copy):
        """Its output opens for the check and never again."""

        def open_output(self, output: Artifact) -> Session | str:
            if (tmp_path / "opened").exists():
                return "the runtime is gone"
            (tmp_path / "opened").touch()
            return super().open_output(output)

    text = told(Once(node="mix"), parent, parent.parent, tmp_path / "fault")
    assert "output 'y' at batch 2 is" in text
    assert "the runtime is gone" in text
