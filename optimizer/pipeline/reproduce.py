"""A folder with which anybody can see a fault: the artifact, real inputs, what should come out, and a short script."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.digest import sha256_file
from optimizer.types import MAIN_FILE

if TYPE_CHECKING:
    from optimizer.runtime.session import Array
    from optimizer.stage import Tolerance

SCRIPT = "reproduce.py"

_SCRIPT = Template('''"""$title

    python reproduce.py          the artifact as it is executed
    python reproduce.py part     the least of it that shows the fault, where part/ is there

Prints the worst element on both sides; exit 1: the fault is there, 0: it is gone, 2: another file. Needs numpy and
$needs.
"""

import hashlib
import pathlib
import sys

import numpy as np

CASE = pathlib.Path(__file__).parent / (sys.argv[1] if len(sys.argv) > 1 else "whole")
SHA256 = $digests
ATOL, RTOL, MIN_SQNR_DB, EXACT_INTEGERS, SAMPLEWISE = $limits


$run


main = next(p for p in sorted(CASE.iterdir()) if p.name in $mains)
if hashlib.sha256(main.read_bytes()).hexdigest() != SHA256[CASE.name]:
    sys.exit(print(f"{main} is not the file that failed") or 2)
expected = dict(np.load(CASE / "expected.npz"))
found = run(main, dict(np.load(CASE / "feed.npz")))
wrong = False
for name, right in expected.items():
    a, b = right.astype(np.float64), np.asarray(found[name]).astype(np.float64)
    if a.shape != b.shape:
        wrong = print(f"{name}: shape {b.shape}, expected {a.shape}") or True
        continue
    rows = a.reshape(len(a), -1).shape if SAMPLEWISE and a.ndim else (1, a.size)
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.where(same, 0.0, np.nan_to_num(np.abs(b - a), nan=np.inf))
        signal = np.square(np.where(np.isfinite(a), a, 0.0)).reshape(rows).sum(axis=1)
        noise = np.square(error).reshape(rows).sum(axis=1)
        sqnr_db = float((10 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, 1e-300))).min())
    at = np.unravel_index(int(error.argmax()), error.shape)
    if right.dtype.kind in "iub":
        bad = (error > 0).mean() > (0.0 if EXACT_INTEGERS else 0.2)
    else:
        near = ATOL is not None and bool((error <= ATOL + RTOL * np.abs(a)).all())
        bad = error.any() and not near and (MIN_SQNR_DB is None or sqnr_db < MIN_SQNR_DB)
    said = f"{b[at]:.9g}, expected {a[at]:.9g} (SQNR {sqnr_db:.1f} dB)"
    print(f"{name}{list(map(int, at))}: {said}: {'WRONG' if bad else 'ok'}")
    wrong = wrong or bool(bad)
sys.exit(1 if wrong else 0)
''')

_ONNXRUNTIME = Template("""
def run(path, feed):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.$level
    options.intra_op_num_threads, options.log_severity_level = $threads, 3
    for entry in $entries:
        options.add_session_config_entry(*entry)
    disabled = $disabled
    session = onnxruntime.InferenceSession(str(path), options, providers=$providers, disabled_optimizers=disabled)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: feed[i.name] for i in session.get_inputs()})))
""")

_OPENVINO = Template("""
def run(path, feed):
    sys.modules["openvino_telemetry"] = None  # importing openvino would send some
    import openvino

    core = openvino.Core()
    properties = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": $threads}
    properties |= {"INFERENCE_PRECISION_HINT": "dynamic", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", properties)
    taken = {name: feed[name] for port in compiled.inputs for name in port.names if name in feed}
    values = compiled(taken)
    return {name: values[port] for port in compiled.outputs for name in port.names}
""")

_OPTIMIZER = Template("""
def run(path, feed):
    from optimizer.pipeline.subject import runner_of
    from optimizer.types import Artifact

    artifact = Artifact("$format", path.parent, "")
    with runner_of("$runtime")(artifact, device="$device", threads=$threads) as runner:
        return runner.infer({spec.name: feed[spec.name] for spec in runner.inputs})
""")


@dataclass(frozen=True, slots=True)
class Way:
    """How an artifact is executed: by a runtime, or (`emulated`) by onnxruntime as the judge does."""

    runtime: str
    format: str = "onnx"
    device: str = "cpu"
    threads: int = 1
    optimize: bool = True
    samplewise: bool = False  # the outputs agree as a whole, and single samples do not
    emulated: bool = False  # float16 and bfloat16 are rounded after every operator: the file is rewritten for that


@dataclass(frozen=True, slots=True)
class Case:
    """A model, or an artifact's main file, with what it reads and what it should return."""

    file: Path
    feed: Mapping[str, Array]
    expected: Mapping[str, Array] = field(default_factory=dict)


def write_script(folder: Path, title: str, cases: Mapping[str, Case], way: Way, tolerance: Tolerance) -> Path:
    """Write the folder: `cases` has `whole`, and `part` where the fault shows in a part; return the script's path."""
    shutil.rmtree(folder, ignore_errors=True)
    digests = {}
    for name, case in cases.items():
        main = _place(case.file, folder / name, emulated=way.emulated)
        digests[name] = sha256_file(main)
        arrays: dict[str, dict[str, Any]] = {"feed": dict(case.feed), "expected": dict(case.expected)}
        for file, content in arrays.items():
            np.savez_compressed(folder / name / f"{file}.npz", **content)
    nothing_stated = tolerance.atol is None and tolerance.min_sqnr_db is None
    atol = 0.0 if nothing_stated else tolerance.atol
    limits = (atol, tolerance.rtol, tolerance.min_sqnr_db, tolerance.exact_integers, way.samplewise)
    text = _SCRIPT.substitute(
        title=title.replace("\\", "/").replace('"', "'"),
        needs=way.runtime if way.runtime in _BY_ITSELF else f"this package with {way.runtime}",
        digests=repr(digests),
        limits=repr(limits),
        mains=repr(tuple(sorted({case.file.name for case in cases.values()} | {MAIN_FILE["onnx"]}))),
        run=_run(cases["whole"].file, way).strip("\n"),
    )
    (folder / SCRIPT).write_text(text, encoding="utf-8")
    return folder / SCRIPT


def command_line(script: Path) -> str:
    """Return what to type to run the script: by the Python of this process, which has what the script needs.

    `python` where that is the one found first, a path relative to the current directory where it lies below it.
    """
    found = shutil.which("python")
    if found is not None and Path(found).absolute() == Path(sys.executable).absolute():
        return shlex.join(["python", str(script)])
    here, interpreter = Path.cwd(), Path(sys.executable).absolute()
    below = interpreter.is_relative_to(here)
    return shlex.join([str(interpreter.relative_to(here) if below else interpreter), str(script)])


_BY_ITSELF = ("onnxruntime", "openvino")


def _run(file: Path, way: Way) -> str:
    """Return the function that executes the artifact: by the runtime alone where that is a few lines."""
    if way.runtime == "onnxruntime":
        return _onnxruntime(file, way)
    if way.runtime == "openvino":
        return _OPENVINO.substitute(threads=way.threads)
    return _OPTIMIZER.substitute(format=way.format, runtime=way.runtime, device=way.device, threads=way.threads)


def _onnxruntime(file: Path, way: Way) -> str:
    from optimizer.runtime.onnx import keep_arithmetic

    entries = _Entries()
    disabled = keep_arithmetic(entries, file)
    number = way.device.partition(":")[2] or "0"
    cuda = f'[("CUDAExecutionProvider", {{"device_id": {number}}}), "CPUExecutionProvider"]'
    return _ONNXRUNTIME.substitute(
        level="ORT_ENABLE_ALL" if way.optimize else "ORT_DISABLE_ALL",
        threads=way.threads,
        entries=repr(entries.found),
        providers='["CPUExecutionProvider"]' if way.device == "cpu" else cuda,
        disabled=repr(disabled),
    )


class _Entries:
    """Stands for onnxruntime's options: it notes the entries that a session of ours gets."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.found.append((name, value))


def _place(file: Path, folder: Path, *, emulated: bool) -> Path:
    """Put an artifact's files into `folder`, linked where the file system allows it; return the main one."""
    folder.mkdir(parents=True)
    if emulated:
        from optimizer.graph.rounding import emulate_rounding

        emulate_rounding(file, folder / file.name)
        return folder / file.name
    for source in sorted(p for p in file.parent.rglob("*") if p.is_file()):
        target = folder / source.relative_to(file.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return folder / file.name
