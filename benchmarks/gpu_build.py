"""Graphs and engines of gpu.py's models, through the stages that a recipe's build takes; kept in a folder for later."""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from optimizer.data.samples import Sample, Samples
from optimizer.stage import Stage, StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.collect import Collect
from optimizer.stages.engine import EngineRtx, EngineTensorRT
from optimizer.stages.export import Export
from optimizer.stages.float16 import Float16
from optimizer.stages.quantize import Quantize
from optimizer.stages.simplify import Simplify
from optimizer.types import Artifact

MODELS = pathlib.Path(__file__).with_name("gpu_models.py")
PRECISIONS = ("fp32", "fp16", "int8")
LARGEST = 64
_PICTURE = {"name": "image", "dtype": "float32", "keyword": False}
# model -> inputs, output
INTERFACES: dict[str, tuple[tuple[dict[str, Any], ...], str]] = {
    "demo_cnn": (({**_PICTURE, "shape": ["batch", 3, 32, 32]},), "logits"),
    "resnet18": (({**_PICTURE, "shape": ["batch", 3, 224, 224]},), "logits"),
    "vit_tiny": (({**_PICTURE, "shape": ["batch", 3, 224, 224]},), "logits"),
    "bert_base": (
        (
            {"name": "tokens", "dtype": "int64", "shape": ["batch", 128], "keyword": False},
            {"name": "mask", "dtype": "float32", "shape": ["batch", 128], "keyword": False},
        ),
        "pooled",
    ),
}


class Drawn(Samples):
    """Inputs from a fixed seed: pictures with broad and fine structure, sentences of 16 to 128 random tokens."""

    def __init__(self, model: str, count: int) -> None:
        self.inputs, self.size = INTERFACES[model][0], count

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = np.random.default_rng([7, index])
        if len(self.inputs) == 1:
            arrays = {"image": _picture(rng, self.inputs[0]["shape"][-1])}
        else:
            length = int(rng.integers(16, 129))
            mask = (np.arange(128) < length).astype(np.float32)
            arrays = {"tokens": rng.integers(1, 30522, 128) * mask.astype(np.int64), "mask": mask}
        return Sample(arrays, 0, f"drawn {index}")


def _picture(rng: np.random.Generator, size: int) -> np.ndarray:
    broad = rng.normal(size=(3, 8, 8)).repeat(size // 8, 1).repeat(size // 8, 2)
    return (broad + 0.3 * rng.normal(size=(3, size, size)) + rng.normal(size=(3, 1, 1))).astype(np.float32)


def feed(model: str, batch: int) -> dict[str, np.ndarray]:
    """Return a batch of samples that calibration did not see."""
    samples = Drawn(model, 1000 + batch)
    return {name: np.stack([samples[1000 + i].inputs[name] for i in range(batch)]) for name in samples[0].inputs}


def engine_name(package: str, precision: str, capability: str | None) -> str:
    """Return the folder of an engine: one for another compute capability is another engine."""
    return f"{package}-{precision}" + (f"-{capability}" if capability else "")


class Builder:
    """Runs stages of one model; what is finished in `folder` is not built again. `rows` says what each one took."""

    def __init__(self, folder: pathlib.Path, model: str, calibration: int) -> None:
        self.folder, self.model = folder / model, model
        self.samples = Drawn(model, calibration)
        self.rows: dict[str, Any] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, stage: Stage, sources: Mapping[str, Artifact]) -> Artifact:
        """Return the stage's output, built or found."""
        final = self.folder / name
        notes: list[str] = []
        if not final.is_dir():
            workdir = self.folder / f"{name}.unfinished"
            shutil.rmtree(workdir, ignore_errors=True)
            workdir.mkdir()
            context = StageContext(self.folder / f"{name}.log", notes.append, lambda *_: None, lambda _: self.samples)
            begun = time.perf_counter()
            stage.run(sources, workdir, context)
            workdir.rename(final)
            self.rows[name] = {"seconds": round(time.perf_counter() - begun, 2), "notes": notes}
        artifact = Artifact(stage.produces, final, name)
        self.rows.setdefault(name, {"found": True})
        if artifact.path.is_dir() and artifact.format in ("onnx", "engine"):
            self.rows[name]["bytes"] = sum(f.stat().st_size for f in final.iterdir() if f.suffix != ".json")
        return artifact

    def module(self) -> Artifact:
        """Return the folder that load_module reads."""
        import gpu_models
        from safetensors.torch import save_file

        weights = self.folder / "weights.safetensors"
        if not weights.is_file():
            save_file(vars(gpu_models)[self.model]().state_dict(), weights)
        inputs, output = INTERFACES[self.model]
        stage = Collect(kind="state_dict", function=self.model, arguments={}, inputs=inputs, outputs=(output,))
        sources = {"checkpoint": Artifact("checkpoint", weights, "w"), "code": Artifact("code", MODELS, "c")}
        return self.run("module", stage, sources)

    def graphs(self) -> dict[str, Artifact]:
        """Return the graph of each precision, in TensorRT's dialect."""
        exported = self.run("exported", Export(), {"module": self.module()})
        made = {"fp32": self.run("fp32", Simplify(), {"graph": exported})}
        drawn = Artifact("data", self.folder, "drawn")
        made["fp16"] = self.run("fp16", Float16(), {"graph": made["fp32"], "samples": drawn})
        calibrate = Calibrate(method="minmax", synthetic=True)
        table = self.run("table", calibrate, {"graph": made["fp32"], "samples": drawn})
        made["int8"] = self.run("int8", Quantize(), {"graph": made["fp32"], "table": table})
        return made

    def engine(self, package: str, precision: str, graph: Artifact, capability: str | None) -> Artifact:
        """Return the engine of a graph for batches 1 to 64, tuned for 8."""
        profile = {"batch": (1, 8, LARGEST)}
        stage: Stage = EngineTensorRT(profile=profile)
        if package == "tensorrt_rtx":
            stage = EngineRtx(profile=profile, compute_capabilities=(capability,) if capability else ())
        return self.run(engine_name(package, precision, capability), stage, {"graph": graph})


def for_this_gpu(graph: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Return a plan that TensorRT-RTX builds for the GPU here, whichever it is: our stages ask for numbers alone.

    Raises: RuntimeError with what it logged.
    """
    import tensorrt_rtx as trt

    said: list[str] = []

    class Errors(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                said.append(message)

    logger = Errors()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    plan = None
    if parser.parse_from_file(str(graph)):
        fixed = tuple(network.get_input(0).shape)[1:]
        profile.set_shape(network.get_input(0).name, *((batch, *fixed) for batch in (1, 8, LARGEST)))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"no engine for the GPU here: {' | '.join(said)[:600] or 'it logged no reason'}")
    folder.mkdir(exist_ok=True)
    (folder / "engine.plan").write_bytes(plan)
    return folder / "engine.plan"


def build(builder: Builder, packages: Mapping[str, str | None]) -> dict[str, Any]:
    """Build everything of a model; `packages`: name -> compute capability. An engine that fails is a row of its own."""
    graphs = builder.graphs()
    for package, capability in packages.items():
        for precision in PRECISIONS:
            try:
                made = builder.engine(package, precision, graphs[precision], capability)
                receipt = json.loads((made.path / "engine.json").read_text())
                builder.rows[made.digest]["delivered"] = receipt["precision"]
            except Exception as error:  # one engine that fails is a result, not the end of the run
                builder.rows[engine_name(package, precision, capability)] = {
                    "failed": f"{type(error).__name__}: {error}"[:600]
                }
    return builder.rows
