"""INT8 quality of ResNet-20 and ResNet-56 on CIFAR-10, beside onnxruntime's and modelopt's quantization, in one run.

    python benchmarks/int8_quality.py [--data DIR] [--models resnet20,resnet56] [--pictures N] [--modelopt ENV]
                                      [--json FILE]

The same 512 calibration pictures for everybody, judged on all 10,000 test pictures: top-1, share of answers equal to
float32's, and SQNR of the logits in dB (10 log10 of sum ref^2 over sum err^2). TensorRT's dialect is executed as
written, the CPU's as onnxruntime's integer kernels do it. `int8` is the share of multiply-accumulates that the graph
(TensorRT's dialect) or onnxruntime (the CPU's) computes in int8. onnxruntime's Entropy, with the bins that
quantize_static gives it, is MinMax. Ours goes through the stages of a recipe's int8 variant. modelopt has an
environment of its own, created here with pip (--modelopt names one; "none" leaves it out).
Goals: TensorRT's dialect 30 dB (ResNet-20) and 31 dB (ResNet-56) at 95 % int8, with residual sums in int8 27.1 and 25.2
dB; the CPU's 1 dB above the best peer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from calibration import modelopt_python  # beside this file

from optimizer.data.splits import Splits
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.model import Recipe
from optimizer.recipe.sources import read_sources
from optimizer.recipe.steps import derive
from optimizer.runtime.onnx import OnnxSession
from optimizer.stage import Stage, StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.choose import Choose
from optimizer.stages.collect import Collect
from optimizer.stages.equalize import Equalize
from optimizer.stages.export import Export
from optimizer.stages.quantize import Quantize
from optimizer.stages.refine import Refine
from optimizer.stages.simplify import Simplify
from optimizer.store import Store
from optimizer.types import Artifact

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "cifar10-resnet20" / "recipe.yaml"
MODELS = {"resnet20": ("resnet20-12fca82f.th", 3), "resnet56": ("resnet56-4bfd9763.th", 9)}
DIALECTS = ("tensorrt", "cpu")
BATCH = 100

# name -> options of the int8 variant
OURS: dict[str, dict[str, Any]] = {
    "percentile": {},
    "float_share": {"float_share": 0.05},
    "float_share, learned": {"float_share": 0.05, "rounding": "learned"},
    "residuals int8": {"residuals": "int8"},
    "residuals, fs., learned": {"residuals": "int8", "float_share": 0.05, "rounding": "learned"},
}
ONNXRUNTIME = ("MinMax", "Entropy", "Percentile")
MODELOPT_METHODS = ("max", "entropy")


class Bench:
    """Stages run by hand on one model, in one folder; what several variants share is built once."""

    def __init__(self, folder: pathlib.Path, samples: Any) -> None:
        self.folder, self.samples, self.count = folder, samples, 0
        self.made: dict[str, Artifact] = {}
        self.notes: list[str] = []

    def run(self, stage: Stage, sources: Mapping[str, Artifact]) -> Artifact:
        """Run a stage and return its output."""
        key = json.dumps([stage.name, stage.model_dump(mode="json"), [str(s.path) for s in sources.values()]])
        if key not in self.made:
            self.count += 1
            workdir = self.folder / f"{self.count:03}-{stage.name}"
            workdir.mkdir()
            context = StageContext(
                workdir.with_suffix(".log"), self.notes.append, lambda *_: None, lambda _: self.samples
            )
            stage.run(sources, workdir, context)
            self.made[key] = Artifact(stage.produces, workdir, str(self.count))
        return self.made[key]

    def variant(self, graph: Artifact, options: Mapping[str, Any], dialect: str) -> Artifact:
        """Take the simplified graph through the stages of an int8 variant, as a recipe's build does."""
        made = {"graph": graph, "float32": graph, "samples": Artifact("data", self.folder, "samples")}
        for kind in (Equalize, Calibrate, Choose, Quantize, Refine):
            if not kind.wanted(options):
                continue
            own = {name: value for name, value in options.items() if name in kind.model_fields}
            own |= {"dialect": dialect} if "dialect" in kind.model_fields else {}
            output = self.run(kind(**own), {role: made[role] for role in kind.consumes})
            made["table" if kind.produces == "calibration" else "graph"] = output
            made["float32"] = output if kind.keeps_float32 else made["float32"]
        return made["graph"]


def onnxruntime_quantized(
    method: str, dialect: str, graph: pathlib.Path, target: pathlib.Path, feeds: Sequence[Any]
) -> None:
    """Quantize with onnxruntime's quantize_static, in the form that either target takes."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    tensorrt = dialect == "tensorrt"
    extra: dict[str, Any] = {"ActivationSymmetric": tensorrt, "WeightSymmetric": True}
    if tensorrt:
        extra |= {"QuantizeBias": False}
    if method == "Percentile":
        extra |= {"CalibPercentile": 99.999}
    ort.quantize_static(
        str(graph),
        str(target),
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        activation_type=ort.QuantType.QInt8 if tensorrt else ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        calibrate_method=getattr(ort.CalibrationMethod, method),
        extra_options=extra,
    )


_MODELOPT_CHILD = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
graph, data, method, target = sys.argv[1:]
quantize(graph, quantize_mode="int8", calibration_data=dict(np.load(data)), calibration_method=method,
         calibration_eps=["cpu"], output_path=target)
"""


def modelopt_quantized(
    python: str, method: str, graph: pathlib.Path, target: pathlib.Path, data: Mapping[str, Any]
) -> None:
    """Quantize with modelopt in its own environment."""
    saved = target.with_suffix(".npz")
    np.savez(saved, **data)
    command = [python, "-c", _MODELOPT_CHILD, str(graph), str(saved), method, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=target.parent)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1][:300])


def parts(pictures: Any, size: int = BATCH) -> Iterator[Any]:
    """Yield the pictures in batches; onnxruntime's histograms take no smaller last one."""
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def logits(graph: pathlib.Path, pictures: Any, dialect: str) -> Any:
    """Execute a graph over all pictures: TensorRT's dialect as written, the CPU's with integer kernels."""
    threads = len(os.sched_getaffinity(0))
    with OnnxSession(graph, threads=threads, optimize=dialect == "cpu") as session:
        return np.concatenate([session.infer({"image": part})["logits"] for part in parts(pictures)])


def judged(graph: pathlib.Path, dialect: str, reference: Any, pictures: Any, labels: Any) -> dict[str, Any]:
    """Return what a quantized graph is worth."""
    found = logits(graph, pictures, dialect)
    wide = reference.astype(np.float64)
    receipt = graph_receipt(graph) if dialect == "tensorrt" else onnxruntime_receipt(graph)
    return {
        "top1": float((found.argmax(1) == labels).mean()),
        "same": float((found.argmax(1) == reference.argmax(1)).mean()),
        "sqnr_db": float(10 * np.log10((wide**2).sum() / ((wide - found) ** 2).sum())),
        "int8": receipt.shares.get("int8", 0.0),
    }


def simplified(recipe: Recipe, bench: Bench) -> tuple[Artifact, Splits]:
    """Export and simplify a recipe's model; return its graph and its samples."""
    sources = {name: s.artifact for name, s in read_sources(recipe, Store(bench.folder / "store").index).items()}
    collect = next(step.stage for step in derive(recipe).steps if isinstance(step.stage, Collect))
    module = bench.run(collect, {role: sources[role] for role in collect.roles})
    splits = Splits(recipe)
    bench.samples = splits.calibration
    # The example that export traces on is a calibration sample here: its shapes alone count.
    return bench.run(Simplify(), {"graph": bench.run(Export(), {"module": module})}), splits


def resnet(model: str, data: str) -> Recipe:
    """Return the recipe of a ResNet: that of ResNet-20 with another checkpoint and depth."""
    checkpoint, blocks = MODELS[model]
    recipe = load_recipe(RECIPE, {"data": data})
    path = str(pathlib.Path(data).absolute() / "cifar10" / "checkpoints" / checkpoint)
    source = recipe.model.model_copy(update={"checkpoint": path, "arguments": {"blocks": blocks}})
    return recipe.model_copy(update={"model": source})


def rows_of(model: str, data: str, count: int, python: str, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield a row per tool and dialect."""
    bench = Bench(folder, None)
    graph, splits = simplified(resnet(model, data), bench)
    calibration = np.stack([s.inputs["image"] for s in splits.calibration])
    evaluation = [splits.evaluation[i * len(splits.evaluation) // count] for i in range(count)]
    pictures = np.stack([s.inputs["image"] for s in evaluation])
    labels = np.array([s.target for s in evaluation])
    reference = logits(graph.file, pictures, "cpu")
    yield {"model": model, "tool": "float32", "top1": float((reference.argmax(1) == labels).mean())}
    for dialect in DIALECTS:
        tools = [("optimize", name) for name in OURS] + [("onnxruntime", method) for method in ONNXRUNTIME]
        tools += [("modelopt", method) for method in MODELOPT_METHODS if python and dialect == "tensorrt"]
        for tool, name in tools:
            row = {"model": model, "dialect": dialect, "tool": tool, "options": name}
            target = folder / f"{tool}-{name}-{dialect}.onnx"
            started = time.perf_counter()
            try:
                if tool == "optimize":
                    target = bench.variant(graph, OURS[name], dialect).file
                elif tool == "onnxruntime":
                    feeds = [{"image": part} for part in parts(calibration, 64)]
                    onnxruntime_quantized(name, dialect, graph.file, target, feeds)
                else:
                    modelopt_quantized(python, name, graph.file, target, {"image": calibration})
                seconds = time.perf_counter() - started
                yield row | {"seconds": seconds} | judged(target, dialect, reference, pictures, labels)
            except Exception as error:  # a peer's failure is a result, not the end of the run
                yield row | {"failed": f"{type(error).__name__}: {error}"[:300]}


def shown(row: Mapping[str, Any]) -> str:
    """Return a row as a line."""
    if row["tool"] == "float32":
        return f"{row['model']}  float32  top-1 {row['top1']:.2%}"
    head = f"{row['model']:<9} {row['dialect']:<9} {row['tool']:<12} {row['options']:<24}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    numbers = f"{row['sqnr_db']:6.2f} dB  top-1 {row['top1']:.2%}  same {row['same']:.2%}  int8 {row['int8']:6.1%}"
    return f"{head} {numbers}  {row['seconds']:6.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("OPTIMIZE_DATA", ""), help="the folder that holds cifar10/")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--pictures", type=int, default=10_000, help="test pictures that judge")
    parser.add_argument("--modelopt", default="", help="an environment to use or create; none: without modelopt")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here, e.g. into benchmarks/results/")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("needs --data DIR or OPTIMIZE_DATA: the folder that holds cifar10/")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(arguments.modelopt or pathlib.Path(folder) / "modelopt")
        python = "" if arguments.modelopt == "none" else modelopt_python(place.absolute())
        for model in arguments.models.split(","):
            work = pathlib.Path(folder) / model
            work.mkdir()
            for row in rows_of(model, arguments.data, arguments.pictures, python, work):
                rows.append(row)
                print(shown(row), flush=True)
    if arguments.json:
        document = {
            "date": datetime.date.today().isoformat(),
            "machine": {"cpu": platform.processor() or platform.machine(), "threads": len(os.sched_getaffinity(0))},
            "pictures": arguments.pictures,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
