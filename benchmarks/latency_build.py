"""The artifacts that latency.py times: ours through the stages of a recipe, and the peers' own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from calibration import picture  # beside this file
from quality_int8 import onnxruntime_quantized
from quality_stages import Bench

from optimizer.data.samples import Sample, Samples
from optimizer.data.splits import Splits
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.sources import read_sources
from optimizer.recipe.steps import derive
from optimizer.stages.bfloat16 import BFloat16
from optimizer.stages.collect import Collect
from optimizer.stages.export import Export
from optimizer.stages.float16 import Float16
from optimizer.stages.simplify import Simplify
from optimizer.store import Store
from optimizer.types import Artifact

ROOT = pathlib.Path(__file__).parent.parent
DEMO = ROOT / "recipes" / "digits-cnn" / "recipe.yaml"
NNCF = ("nncf==3.4.*", "openvino=={openvino}", "onnx")
JUDGED = 64  # pictures that the SQNR is taken over
# our int8 variants: the default, and residual sums as integers too
INT8: dict[str, dict[str, Any]] = {"int8": {}, "int8 sums": {"residuals": "int8"}}
DIALECTS = {"onnxruntime": "cpu", "openvino": "openvino"}  # of the runtime that takes them


class Pictures(Samples):
    """Generated pictures `start` to `start + count`."""

    def __init__(self, start: int, count: int) -> None:
        self.start, self.length = start, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return Sample({"image": picture(self.start + index)}, 0, f"picture {self.start + index}")


def module_of(bench: Bench, function: str, shape: tuple[int | str, ...], name: str) -> Artifact:
    """Return the folder of a network of latency_models.py."""
    import latency_models
    from safetensors.torch import save_file

    weights = bench.folder / f"{function}.safetensors"
    save_file(getattr(latency_models, function)().state_dict(), weights)
    given = ({"name": name, "dtype": "float32", "shape": list(shape), "keyword": False},)
    stage = Collect(kind="state_dict", function=function, arguments={}, inputs=given, outputs=("y",))
    code = Artifact("code", ROOT / "benchmarks" / "latency_models.py", "code")
    return bench.run(stage, {"checkpoint": Artifact("checkpoint", weights, "weights"), "code": code})


def started(model: str, folder: pathlib.Path, calibration: int) -> tuple[Bench, Artifact, Samples]:
    """Return the bench with its calibration samples, the module, and samples that calibration did not see."""
    if model == "resnet18":
        bench = Bench(folder, Pictures(0, calibration))
        return bench, module_of(bench, "resnet18", ("batch", 3, 224, 224), "image"), Pictures(10_000, JUDGED)
    bench = Bench(folder, None)
    recipe = load_recipe(DEMO)
    sources = {name: s.artifact for name, s in read_sources(recipe, Store(folder / "store").index).items()}
    collect = next(step.stage for step in derive(recipe).steps if isinstance(step.stage, Collect))
    splits = Splits(recipe)
    bench.samples = splits.calibration
    return bench, bench.run(collect, {role: sources[role] for role in collect.roles}), splits.evaluation


def _int8(bench: Bench, graph: Artifact, options: Mapping[str, Any], dialect: str) -> pathlib.Path:
    return bench.variant(graph, options, dialect).file


def build(model: str, folder: pathlib.Path, python: str, calibration: int) -> dict[str, Any]:
    """Build every artifact of a model; return their paths, what each took, and those that failed, with the reason.

    `python` is that of NNCF's environment, "" for none.
    """
    bench, module, held_out = started(model, folder, calibration)
    pictures = np.stack([held_out[i].inputs["image"] for i in range(min(JUDGED, len(held_out)))])
    np.save(folder / "pictures.npy", pictures)
    document: dict[str, Any] = {"artifacts": {"module": str(module.path)}, "seconds": {}, "failed": {}}
    graph = bench.run(Simplify(), {"graph": bench.run(Export(), {"module": module})})
    document["artifacts"]["fp32"] = str(graph.file)
    seen = np.stack([bench.samples[i].inputs["image"] for i in range(len(bench.samples))])
    sources = {"graph": graph, "samples": Artifact("data", folder, "samples")}
    work: dict[str, Callable[[], pathlib.Path]] = {
        "fp16": lambda: bench.run(Float16(), sources).file,
        "bf16": lambda: bench.run(BFloat16(), sources).file,
        **{
            f"{runtime} {name}": partial(_int8, bench, graph, options, dialect)
            for runtime, dialect in DIALECTS.items()
            for name, options in INT8.items()
        },
        "onnxruntime uint8": lambda: quantize_static(graph.file, folder / "onnxruntime-uint8.onnx", seen),
    }
    if python:
        work["NNCF int8"] = lambda: nncf(python, graph.file, folder / "nncf.xml", seen)
    for name, make in work.items():
        begun = time.perf_counter()
        try:
            document["artifacts"][name] = str(make())
        except Exception as error:  # what one tool cannot build is a result, not the end of the run
            document["failed"][name] = f"{type(error).__name__}: {error}"[:400]
        document["seconds"][name] = round(time.perf_counter() - begun, 1)
    document["notes"] = bench.notes
    for runtime in DIALECTS:
        document = without_repeats(document, f"{runtime} int8", f"{runtime} int8 sums")
    return document


def without_repeats(document: dict[str, Any], first: str, second: str) -> dict[str, Any]:
    """Leave out the second artifact where it is the first one again: a model without residual sums has none to add."""
    made = document["artifacts"]
    if {first, second} <= made.keys() and _bytes(made[first]) == _bytes(made[second]):
        del made[second]
    return document


def _bytes(path: str) -> bytes:
    return pathlib.Path(path).read_bytes()


def tiny(folder: pathlib.Path, elements: int) -> dict[str, str]:
    """Build one Relu over [batch, elements], as module and graph."""

    class Rows(Samples):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
            return Sample({"x": np.linspace(-1, 1 + index, elements, dtype=np.float32)}, 0, str(index))

    folder.mkdir()
    bench = Bench(folder, Rows())
    module = module_of(bench, "one", ("batch", elements), "x")
    return {"module": str(module.path), "fp32": str(bench.run(Export(), {"module": module}).file)}


def quantize_static(graph: pathlib.Path, target: pathlib.Path, seen: np.ndarray) -> pathlib.Path:
    """onnxruntime's own uint8 activations and int8 weights per channel, MinMax."""
    parts = [{"image": seen[i : i + 16]} for i in range(0, len(seen) - 15, 16)]
    onnxruntime_quantized("MinMax", "cpu", graph, target, parts)
    return target


_NNCF_CHILD = """
import sys
sys.modules["openvino_telemetry"] = None
import numpy as np, openvino, nncf
graph, data, target = sys.argv[1:]
seen = np.load(data)
quantized = nncf.quantize(
    openvino.Core().read_model(graph), nncf.Dataset([p[None] for p in seen]), subset_size=len(seen)
)
openvino.save_model(quantized, target, compress_to_fp16=False)
"""


def nncf(python: str, graph: pathlib.Path, target: pathlib.Path, seen: np.ndarray) -> pathlib.Path:
    """Quantize with NNCF's defaults in its own environment, to OpenVINO's own format."""
    data = target.with_suffix(".npy")
    np.save(data, seen)
    command = [python, "-c", _NNCF_CHILD, str(graph), str(data), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=target.parent)
    if done.returncode or not target.is_file():
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300])
    return target


def nncf_python(folder: pathlib.Path, openvino: str) -> str:
    """Create NNCF's environment, with the release of OpenVINO that reads its file here."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [package.format(openvino=openvino) for package in NNCF]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    return str(python)


def nncf_version(python: str) -> str | None:
    """Return which NNCF that is."""
    if not python:
        return None
    command = [python, "-c", "import importlib.metadata as m; print(m.version('nncf'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def save(document: Mapping[str, Any], path: pathlib.Path) -> None:
    """Write JSON so that whoever reads it meanwhile sees the old or the new one."""
    beside = path.with_suffix(".unfinished")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
