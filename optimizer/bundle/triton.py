"""Adds to a bundle a model repository for NVIDIA Triton Inference Server: `triton/<name>/config.pbtxt` and `1/`.

The model's file lies there once more under the name that Triton looks for, as a hard link: `triton/` is mounted or
copied to a server by itself, where a symbolic link would lead nowhere. A copy that does not keep hard links (zip, rsync
without -H) has the file twice and is as good.
Source: triton-inference-server/server, docs/user_guide/model_repository.md.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.bundle.triton_config import LABEL_FILE, VERSION, Requests, Served, backend_of, refuse, write_config
from optimizer.bundle.triton_readme import write_readme
from optimizer.bundle.triton_rehearsal import Rehearsal, not_rehearsed, rehearse
from optimizer.errors import StageError
from optimizer.results import CandidateReport, Report
from optimizer.runtime.bundle import LABELS, PREPROCESSING
from optimizer.runtime.engine_interface import read_receipt
from optimizer.runtime.golden import GOLDEN, batch_sizes, read_golden
from optimizer.runtime.session import Array
from optimizer.types import MAIN_FILE, TensorSpec

TRITON = "triton"
_WARMUP = "warmup"
# What a file system answers that has no hard links, or no more of them for this file.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


@dataclass(frozen=True, slots=True)
class Source:
    """What the repository is made from: the bundle's folder with all else in it, and the run's facts.

    `allowed` is the tolerance of each golden output.
    """

    folder: Path
    report: Report
    candidate: CandidateReport
    record: Mapping[str, Any]
    device: str
    allowed: Mapping[str, Mapping[str, Any]]


def add_repository(source: Source) -> dict[str, Any]:
    """Write `triton/` into the bundle and return what its passport says of it.

    Raises: UsageError for an artifact that no backend of Triton loads, StageError where a backend would refuse the
    model or compute something else.
    """
    folder, runtime = source.folder, source.candidate.runtime
    receipt = read_receipt(folder / MAIN_FILE["engine"])
    refuse(runtime, receipt)
    seen = _interface(source, receipt)
    labels = _read_json(folder / LABELS) or []
    served = Served(
        name=source.report.recipe.name,
        runtime=runtime,
        device=source.device,
        threads=source.report.environment.threads,
        inputs=seen.inputs,
        outputs=seen.outputs,
        ranges=source.record["profile"],
        batch_axis=source.record["batch_axis"],
        profiles=tuple(receipt.get("profiles", ())),
        measured=tuple(int(batch) for batch in source.candidate.latency_ms or ()),
        labels=len(labels),
    )
    model = folder / TRITON / served.name
    (model / str(VERSION)).mkdir(parents=True)
    _place_model(folder, model / str(VERSION), served)
    if served.labelled:
        (model / LABEL_FILE).write_bytes(_one_a_line(labels))
    text = write_config(served, _write_warmup(folder, model, served))
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    readme = write_readme(served, source.candidate, receipt, seen, _read_json(folder / PREPROCESSING) or {})
    (folder / TRITON / "README.md").write_text(readme, encoding="utf-8")
    return {
        "model": served.name,
        "backend": served.backend,
        "max_batch_size": served.max_batch_size,
        "rehearsed": seen.done,
        "rehearsal": seen.said,
    }


def _interface(source: Source, receipt: Mapping[str, Any]) -> Rehearsal:
    backend = backend_of(source.candidate.runtime)
    if backend == "tensorrt":
        specs = (tuple(TensorSpec.from_json(spec) for spec in receipt.get(side, ())) for side in ("inputs", "outputs"))
        inputs, outputs = specs
        if not inputs or not outputs:
            raise StageError("names no inputs and outputs", where=str(source.folder / "engine.json"))
        return Rehearsal(inputs, outputs, False, "not rehearsed: an engine executes on its GPU alone")
    file = source.folder / MAIN_FILE["onnx"]
    if source.device != "cpu":
        return not_rehearsed(backend, file, "it is for a GPU")
    threads, ranges = source.report.environment.threads, source.record["profile"]
    return rehearse(backend, file, source.folder / GOLDEN, source.allowed, threads=threads, ranges=ranges)


def _place_model(folder: Path, version: Path, served: Served) -> None:
    """Link the model and its weights. One of several files is a folder to the onnxruntime backend, by its guide."""
    if served.backend == "tensorrt":
        _link(folder / MAIN_FILE["engine"], version / served.model_file)
        return
    from optimizer.graph.files import external_files

    file = folder / MAIN_FILE["onnx"]
    beside = external_files(file)
    place = version / served.model_file if beside and served.backend == "onnxruntime" else version
    for each in (file, *beside):
        _link(each, place / each.relative_to(folder))  # weights under the name that the graph gives them


def _link(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, destination)


def _read_json(file: Path) -> Any:
    """Return what an optional file of the bundle holds, None where it is not."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _one_a_line(labels: list[str]) -> bytes:
    """Return the class names as Triton reads them: up to each "\\n", with all else that breaks lines elsewhere.

    Raises: StageError for a name of several lines.
    Source: triton-inference-server/core, src/label_provider.cc, LabelProvider::AddLabels.
    """
    broken = [label for label in labels if "\n" in label]
    if broken:
        raise StageError(
            f"the class name {broken[0]!r} has a line break; Triton reads one name a line",
            where=LABELS,
            hint="change data.labels, or bundle without --triton",
        )
    return "".join(f"{label}\n" for label in labels).encode()


def _write_warmup(folder: Path, model: Path, served: Served) -> Requests:
    """Write the first golden inputs as raw bytes, one request of each input. Random numbers would be no tokens."""
    given = read_golden(folder / GOLDEN)[0]
    (model / _WARMUP).mkdir()
    written = {}
    for position, spec in enumerate(served.inputs):
        request = _request(given[spec.name], served)
        file = f"input{position}.raw"
        (model / _WARMUP / file).write_bytes(np.ascontiguousarray(request).tobytes())
        written[spec.name] = (file, request.shape)
    return written


def _request(samples: Array, served: Served) -> Array:
    """Return one request: a sample without its batch axis, or the smallest batch that the model takes."""
    if served.max_batch_size:
        return np.asarray(samples[0])
    low = (batch_sizes(served.inputs, served.ranges) or (1, 1))[0]
    return samples[[min(row, len(samples) - 1) for row in range(low)]]
