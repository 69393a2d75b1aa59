"""Quality of fp16 and int8 on a U-Net (membranes) and a transformer (intents), trained here, beside the peers'.

    python benchmarks/trained_quality.py [--data DIR] [--models membrane-unet,clinc150-intents] [--modelopt ENV]
                                         [--json FILE]

The models of recipes/membrane-unet and recipes/clinc150-intents are trained first where they are not (some minutes).
128 training samples calibrate, and the test split judges: `right`, the share of test pixels or sentences that are
right; `same`, of answers equal to float32's; SQNR of the logits in dB (10 log10 of sum ref^2 over sum err^2). `int8` is
the share of multiply-accumulates that the graph (TensorRT's dialect) or onnxruntime (the CPU's) computes in int8. fp16
is judged with rounding after every operator, beside PyTorch's half on the CPU. The sentences are of mixed lengths;
modelopt takes one shape, so its are padded with the mask that says so.
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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from calibration import modelopt_python  # beside this file
from int8_quality import Bench, modelopt_quantized, onnxruntime_quantized, simplified

from optimizer.checkpoint import load_module
from optimizer.data.samples import batches
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.judge import open_judge
from optimizer.recipe.loader import load_recipe
from optimizer.runtime.onnx import OnnxSession
from optimizer.stages.float16 import Float16

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 16

# model -> name -> options of the int8 variant
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "membrane-unet": {
        "percentile": {},
        "float_share": {"float_share": 0.05},
        "float_share, learned": {"float_share": 0.05, "rounding": "learned"},
    },
    "clinc150-intents": {
        "minmax": {"method": "minmax"},
        "smooth_quant": {"method": "minmax", "smooth_quant": "auto"},
        "attention": {"method": "minmax", "smooth_quant": "auto", "attention": True},
    },
}
PEERS = (("onnxruntime", "MinMax"), ("onnxruntime", "Percentile"), ("modelopt", "max"), ("modelopt", "entropy"))

Infer = Callable[[Mapping[str, Any]], Any]


def run(infer: Infer, samples: Any) -> list[Any]:
    """Return the logits of every batch."""
    return [infer(batch.inputs) for batch in batches(samples, BATCH)]


def answers(logits: Any) -> Any:
    """Return the class of a sentence, or whether a pixel is membrane."""
    return logits.argmax(1) if logits.ndim == 2 else logits > 0


def judged(found: list[Any], reference: list[Any], samples: Any) -> dict[str, Any]:
    """Return what a form of the model is worth."""
    right = same = count = 0
    signal = error = 0.0
    for batch, own, wide in zip(batches(samples, BATCH), found, reference, strict=True):
        said, expected = answers(own), np.asarray(batch.targets)
        right += int((said == (expected > 0 if own.ndim > 2 else expected)).sum())
        same += int((said == answers(wide)).sum())
        count += said.size
        signal += float((wide.astype(np.float64) ** 2).sum())
        error += float(((own.astype(np.float64) - wide) ** 2).sum())
    sqnr = 10 * np.log10(signal / error) if error else None
    return {"right": right / count, "same": same / count, "sqnr_db": sqnr}


def trained(model: str, data: str) -> None:
    """Train a recipe's model where that was not done."""
    folder = ROOT / "recipes" / model
    if not (folder / "checkpoint.safetensors").is_file():
        subprocess.run([sys.executable, str(folder / "train.py"), data], check=True)


def half(module: pathlib.Path) -> Infer:
    """Return PyTorch's half of the module, on the CPU."""
    import torch

    loaded = load_module(module)
    loaded.module.half()

    def infer(feed: Mapping[str, Any]) -> Any:
        given = {n: torch.from_numpy(a).half() if a.dtype.kind == "f" else torch.from_numpy(a) for n, a in feed.items()}
        with torch.inference_mode():
            return loaded(given)["logits"].float().numpy()

    return infer


def padded(samples: Any) -> dict[str, Any]:
    """Return all samples in one shape: ids and masks filled up with zeros."""
    arrays: dict[str, Any] = {}
    for name, first in samples[0].inputs.items():
        if first.ndim > 1:
            arrays[name] = np.stack([s.inputs[name] for s in samples])
            continue
        longest = max(len(s.inputs[name]) for s in samples)
        arrays[name] = np.stack([np.pad(s.inputs[name], (0, longest - len(s.inputs[name]))) for s in samples])
    return arrays


def rows_of(model: str, data: str, python: str, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield a row per tool and dialect."""
    bench = Bench(folder, None)
    graph, splits = simplified(load_recipe(ROOT / "recipes" / model / "recipe.yaml", {"data": data}), bench)
    samples = splits.evaluation
    with OnnxSession(graph.file, optimize=False) as session:
        reference = run(lambda feed: session.infer(feed)["logits"], samples)
    yield {"model": model, "tool": "float32", "options": ""} | judged(reference, reference, samples)
    module = next(a for a in bench.made.values() if a.format == "checkpoint")
    yield {"model": model, "tool": "torch", "options": "half"} | judged(
        run(half(module.path), samples), reference, samples
    )
    narrow = bench.run(Float16(), {"graph": graph, "samples": graph})
    judge, _ = open_judge(narrow.file)
    with judge:
        found = run(lambda feed: judge.infer(feed)["logits"], samples)
    yield {"model": model, "tool": "optimize", "options": "fp16"} | judged(found, reference, samples)
    for dialect in ("tensorrt", "cpu"):
        tools = [("optimize", name) for name in OURS[model]]
        tools += [p for p in PEERS if p[0] == "onnxruntime" or (python and dialect == "tensorrt")]
        for tool, name in tools:
            row = {"model": model, "dialect": dialect, "tool": tool, "options": name}
            target = folder / f"{tool}-{name}-{dialect}.onnx"
            started = time.perf_counter()
            try:
                if tool == "optimize":
                    target = bench.variant(graph, OURS[model][name], dialect).file
                elif tool == "onnxruntime":
                    feeds = [{n: a[None] for n, a in s.inputs.items()} for s in splits.calibration]
                    onnxruntime_quantized(name, dialect, graph.file, target, feeds)
                else:
                    modelopt_quantized(python, name, graph.file, target, padded(splits.calibration))
                seconds = time.perf_counter() - started
                with OnnxSession(target, optimize=dialect == "cpu") as session:
                    found = run(lambda feed, opened=session: opened.infer(feed)["logits"], samples)
                receipt = graph_receipt(target) if dialect == "tensorrt" else onnxruntime_receipt(target)
                share = {"int8": receipt.shares.get("int8", 0.0), "seconds": seconds}
                yield row | share | judged(found, reference, samples)
            except Exception as error:  # a peer's failure is a result, not the end of the run
                yield row | {"failed": f"{type(error).__name__}: {error}"[:300]}


def shown(row: Mapping[str, Any]) -> str:
    """Return a row as a line."""
    head = f"{row['model']:<17} {row.get('dialect', ''):<9} {row['tool']:<12} {row['options']:<22}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    sqnr = "  equal" if row["sqnr_db"] is None else f"{row['sqnr_db']:5.2f}dB"
    share = f"  int8 {row['int8']:6.1%}" if "int8" in row else ""
    return f"{head} {sqnr}  right {row['right']:.4f}  same {row['same']:.4f}{share}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("OPTIMIZE_DATA", ""), help="holds membrane/ and clinc150/")
    parser.add_argument("--models", default=",".join(OURS))
    parser.add_argument("--modelopt", default="", help="an environment to use or create; none: without modelopt")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here, e.g. into benchmarks/results/")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("needs --data DIR or OPTIMIZE_DATA: the folder that holds membrane/ and clinc150/")
    data = str(pathlib.Path(arguments.data).absolute())
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(arguments.modelopt or pathlib.Path(name) / "modelopt")
        python = "" if arguments.modelopt == "none" else modelopt_python(place.absolute())
        for model in arguments.models.split(","):
            trained(model, data)
            folder = pathlib.Path(name) / model
            folder.mkdir()
            for row in rows_of(model, data, python, folder):
                rows.append(row)
                print(shown(row), flush=True)
    if arguments.json:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": len(os.sched_getaffinity(0))}
        document = {"date": datetime.date.today().isoformat(), "machine": machine, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
