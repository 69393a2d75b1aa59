"""Bundles made from another one: with another graph, another passport; for the tests of `compare`."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import bundle_run
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.bundle.write import write_bundle
from optimizer.digest import sha256_file
from optimizer.runtime.golden import GOLDEN, read_golden, write_golden
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.passport import render, seal

INT8 = "int8@onnxruntime"


def write(folder: Path, candidate: str = INT8) -> Path:
    """A run's bundle in `folder`."""
    return write_bundle(bundle_run.write_run(folder.with_name(f"{folder.name}-run")), candidate, folder)


def changed(bundle: Path, folder: Path, *, golden: bool = True, **passport: Any) -> Path:
    """A copy, `folder`, with another passport; what stands in the folder already replaces the copy's files.

    `golden` writes the outputs anew, as a build would.
    """
    folder.mkdir(exist_ok=True)
    for file in bundle.iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    if golden and (folder / "model.onnx").is_file():
        inputs, _ = read_golden(folder / GOLDEN)
        with OnnxSession(folder / "model.onnx") as session:
            write_golden(folder / GOLDEN, inputs, session.infer(inputs))
    document = json.loads((bundle / "passport.json").read_text()) | passport
    document["files"] = {
        file.relative_to(folder).as_posix(): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "passport.json"
    }
    document["from"] = document["from"] | {"report_sha256": sha256_file(folder / GOLDEN)}
    (folder / "passport.json").write_bytes(render(seal(document)))
    return folder


def retrained(bundle: Path, folder: Path, *, bias: float = 0.5, **passport: Any) -> Path:
    """A copy with another bias."""
    bundle_run.classifier(folder / "model.onnx", bias=bias)
    return changed(bundle, folder, **passport)


def breaking(bundle: Path, folder: Path) -> Path:
    """A copy whose logits are infinite where the image holds a 7.0, which no golden input of it does."""
    model = onnx.load(bundle / "model.onnx")
    model.graph.node[1].output[0] = "finite"
    ones = numpy_helper.from_array(np.ones((12, 3), np.float32), "ones")
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(7.0), "seven"), ones])
    extra = [
        helper.make_node("Equal", ["flat", "seven"], ["is_seven"]),
        helper.make_node("Cast", ["is_seven"], ["sevens"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["sevens", "ones"], ["count"]),
        helper.make_node("Mul", ["count", "thousand"], ["much"]),
        helper.make_node("Exp", ["much"], ["infinite_or_one"]),
        helper.make_node("Sub", ["infinite_or_one", "one"], ["infinite"]),
        helper.make_node("Add", ["finite", "infinite"], ["product"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1000.0), "thousand"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), "one"))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], *extra, *nodes[2:]])
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return changed(bundle, folder)


def slowed(bundle: Path, folder: Path, work: int = 12) -> Path:
    """A copy that computes the same and multiplies a few large matrices besides."""
    model = onnx.load(bundle / "model.onnx")
    weights = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32) / 16
    tall = numpy_helper.from_array(np.ones((12, 256), np.float32), "tall")
    model.graph.initializer.extend([tall, numpy_helper.from_array(weights, "square")])
    model.graph.initializer.append(numpy_helper.from_array(np.full((256, 3), 1e-30, np.float32), "none"))
    model.graph.node[1].output[0] = "fast"
    names = ["wide0", *(f"wide{n + 1}" for n in range(work))]
    extra = [helper.make_node("MatMul", ["flat", "tall"], ["wide0"])]
    for source, result in itertools.pairwise(names):
        extra += [
            helper.make_node("MatMul", [source, "square"], [f"{result}m"]),
            helper.make_node("Tanh", [f"{result}m"], [result]),
        ]
    extra += [
        helper.make_node("MatMul", [names[-1], "none"], ["nothing"]),
        helper.make_node("Add", ["fast", "nothing"], ["product"]),
    ]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], *extra, *nodes[2:]])
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return changed(bundle, folder)
