"""PyTorch, onnxruntime and TensorRT on one GPU, side by side: numerics, latency, throughput, energy.

    python benchmarks/gpu.py --json FILE [--models demo_cnn,resnet18] [--batches 1,8,64] [--only measure] [--quick]
                             [--minutes N] [--work DIR] [--dry-run]

ResNet-18, ViT-tiny and an encoder of BERT-base's size with drawn weights, and the demo's CNN. First it finds out which
engines this GPU accepts; then it builds graphs and engines through our stages, and then measures each model at each
batch: PyTorch eager in FP32, TF32 and FP16, captured as a CUDA graph, compiled; TensorRT-RTX and TensorRT in FP32, FP16
and INT8 with and without a CUDA graph; onnxruntime on CUDA. All of a batch are timed interleaved in one process.
SQNR is against eager float32 without TF32, on inputs that calibration did not see; the weights are not trained, so it
says what precision does to these networks and nothing about accuracy.
Every part runs in a process of its own and fails by itself; the JSON is written after each, and a second run goes on
where the first one ended (parts that failed are tried again). --dry-run builds everything on a machine without a GPU;
its --work folder, carried to a GPU host, spares it the building.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

MODELS = ("demo_cnn", "resnet18", "vit_tiny", "bert_base")
KINDS = ("environment", "accepts", "build", "measure")
BATCHES = (1, 8, 64)
PACKAGES: tuple[Literal["tensorrt_rtx"], Literal["tensorrt"]] = ("tensorrt_rtx", "tensorrt")
CURRENT = "current"  # no compute capability by number, but that of the GPU here: asked, and not measured further
LONGEST_S = 1200.0  # of one part


def parts(arguments: argparse.Namespace) -> list[str]:
    """Return the names of all parts, in order: what tells most in the least time comes first."""
    named = ["environment"]
    named += [f"accepts/tensorrt_rtx/{capability}" for capability in _capabilities()]
    if not arguments.dry_run:
        named += [f"accepts/tensorrt_rtx/{CURRENT}"] * bool(_capabilities()) + ["accepts/tensorrt"]
    for model in arguments.models:
        named.append(f"build/{model}")
        named += [] if arguments.dry_run else [f"measure/{model}/{batch}" for batch in arguments.batches]
    return [part for part in named if part.partition("/")[0] in arguments.only]


def _capabilities() -> list[str]:
    """Return the compute capabilities that the installed tensorrt_rtx lists; none without it."""
    try:
        import tensorrt_rtx
    except (ImportError, OSError):
        return []
    numbers = [name.removeprefix("SM") for name in tensorrt_rtx.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{number // 10}.{number % 10}" for number in sorted(int(number) for number in numbers)]


def run_part(part: str, arguments: argparse.Namespace, document: dict[str, Any]) -> dict[str, Any]:
    """Do one part; called in a process of its own."""
    kind, _, rest = part.partition("/")
    if kind == "environment":
        return environment()
    work = pathlib.Path(arguments.work)
    if kind == "accepts":
        package, _, capability = rest.partition("/")
        return accepts(_builder(arguments, "demo_cnn"), package, capability or None, arguments.dry_run)
    packages = chosen(document, arguments.capability if arguments.dry_run else None)
    model, _, batch = rest.partition("/")
    import gpu_build

    if kind == "build":
        return gpu_build.build(_builder(arguments, model), packages) | {"packages": packages}
    import gpu_measure

    seconds = 0.3 if arguments.quick else 1.0
    given = gpu_build.feed(model, int(batch))
    rows = gpu_measure.measure(work, model, given, packages, seconds)
    return rows | {"packages": packages, "quick": arguments.quick}


def _builder(arguments: argparse.Namespace, model: str) -> Any:
    from gpu_build import Builder

    return Builder(pathlib.Path(arguments.work), model, 16 if arguments.quick else 64)


def environment() -> dict[str, Any]:
    """Return the machine and the versions behind every number."""
    from optimizer.environment import environment as described
    from optimizer.runtime import cuda, onnx, tensorrt

    found = described().model_dump(mode="json")
    found["missing"] = {
        "gpu": cuda.missing(),
        "onnxruntime": onnx.missing("cuda:0"),
        **{package: tensorrt.missing(package, "cuda:0") for package in PACKAGES},
    }
    try:
        import torch

        here = torch.cuda.is_available()
        found["torch_cuda"] = {"built_for": torch.version.cuda, "available": here}
        if here:
            major, minor = torch.cuda.get_device_capability()
            found["torch_cuda"] |= {"capability": f"{major}.{minor}", "kernels_for": torch.cuda.get_arch_list()}
    except ImportError as error:
        found["torch_cuda"] = {"failed": str(error)}
    return found


def accepts(builder: Any, package: str, capability: str | None, dry: bool) -> dict[str, Any]:
    """Build the demo's engine for a compute capability, and let this GPU open and execute it: its answer is kept."""
    import gpu_build
    import numpy as np
    import torch

    from optimizer.checkpoint import load_module
    from optimizer.runtime.tensorrt import TensorRTSession

    graph = builder.graphs()["fp32" if capability != "7.5" else "fp16"]  # 7.5 takes no float32 products
    if capability == CURRENT:
        plan = gpu_build.for_this_gpu(graph.file, builder.folder / CURRENT)
    else:
        plan = builder.engine(package, "accepts", graph, capability).file
    answer: dict[str, Any] = {"built": True}
    if dry:
        return answer | {"accepted": None, "why": "--dry-run: not opened"}
    given = gpu_build.feed("demo_cnn", 2)
    judge = load_module(builder.module().path)
    with torch.inference_mode():
        expected = judge({"image": torch.from_numpy(given["image"])})["logits"].numpy()
    try:
        with TensorRTSession(plan, package=package) as session:  # type: ignore[arg-type]
            found = session.infer(given)["logits"]
    except Exception as error:  # the refusal is what was asked for
        return answer | {"accepted": False, "why": f"{type(error).__name__}: {error}"[:600]}
    right = bool(np.allclose(found, expected, atol=0.02 * np.abs(expected).max()))
    return answer | {"accepted": True, "computes_the_same": right, "max_abs": float(np.abs(found - expected).max())}


def chosen(document: dict[str, Any], given: str | None) -> dict[str, str | None]:
    """Return the packages whose engines are accepted here, RTX with the newest compute capability that is.

    `given`: nothing was opened, and RTX builds for this one.
    """
    if given:
        return {"tensorrt_rtx": given} if _capabilities() else {}
    answers = {part: row for part, row in document["parts"].items() if part.startswith("accepts/")}
    right = [part.split("/") for part, row in answers.items() if row.get("computes_the_same") and CURRENT not in part]
    found: dict[str, str | None] = {}
    for _, package, *capability in right:
        best = capability[0] if capability else None
        if best is not None and found.get(package) is not None:
            best = max(best, str(found[package]), key=float)
        found[package] = best
    return found


def in_a_child(part: str, arguments: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Run one part in a process of its own; a crash or a timeout is its result."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "answer.json"
        command = [sys.executable, __file__, "--part", part, "--answer", str(answer), "--json", str(arguments.json)]
        command += ["--work", str(arguments.work)] + ["--quick"] * arguments.quick
        command += ["--capability", arguments.capability, *["--dry-run"] * arguments.dry_run]
        said = pathlib.Path(folder) / "output"
        with said.open("wb") as stream:  # a file: whatever else still holds a pipe would keep this process waiting
            child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                ended: int | None = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                ended = None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)  # and with it what it started
                    child.wait()
        # The answer is written last: one that is there counts, whatever became of the process after it.
        try:
            row: dict[str, Any] = json.loads(answer.read_text())
        except (OSError, ValueError):
            tail = said.read_text(errors="replace")[-1200:]
            row = {"failed": f"not finished after {limit_s:.0f} s" if ended is None else f"exit {ended}: {tail}"}
    return row | {"wall_s": round(time.perf_counter() - begun, 1)}


def show(part: str, row: dict[str, Any]) -> None:
    """Print a part as a person reads it."""
    if "failed" in row:
        print(f"{part}: FAILED {row['failed']}", flush=True)
        return
    print(f"{part}: {row['wall_s']} s", flush=True)
    if part.startswith("measure/"):
        print(f"  {'candidate':<28}{'p50 ms':>9}{'+-':>7}{'items/s':>11}{'mJ/item':>9}{'SQNR dB':>9}")
    for name, cells in row.items():
        if isinstance(cells, dict) and "failed" in cells:
            print(f"  {name:<28} failed: {cells['failed'][:160]}")
        elif isinstance(cells, dict) and "latency" in cells:
            low, high = cells["detail"]["p50_ci95"]
            energy, sqnr = cells["energy"]["mj_per_item"], cells["sqnr_db"]
            print(
                f"  {name:<28}{cells['latency']['p50']:>9.3f}{(high - low) / 2:>7.3f}{cells['throughput']:>11.0f}"
                f"{_number(energy, 2)}{_number(sqnr, 1)}"
                f"{'' if cells['latency']['stable'] else '  unstable'}"
            )
        elif part.startswith(("build/", "accepts/")):
            print(f"  {name:<28} {json.dumps(cells)[:160]}")


def _number(value: float | None, digits: int) -> str:
    return f"{'' if value is None else f'{value:.{digits}f}':>9}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: tuple(text.split(","))  # noqa: E731
    parser.add_argument("--json", type=pathlib.Path, required=True, help="results, written after every part")
    parser.add_argument("--work", type=pathlib.Path, help="graphs and engines stay here (default: beside the JSON)")
    parser.add_argument("--models", type=listed, default=MODELS)
    parser.add_argument("--batches", type=lambda text: tuple(int(n) for n in text.split(",")), default=BATCHES)
    parser.add_argument("--only", type=listed, default=KINDS, help=f"kinds of parts, of {', '.join(KINDS)}")
    parser.add_argument("--quick", action="store_true", help="less calibration, a third of the measuring time")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no part after this time")
    parser.add_argument("--dry-run", action="store_true", help="build everything on the CPU, measure nothing")
    parser.add_argument("--capability", default="8.0", help="what --dry-run builds TensorRT-RTX engines for")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work = arguments.work or arguments.json.with_suffix(".work")
    for name, known in (("models", MODELS), ("only", KINDS)):
        unknown = set(getattr(arguments, name)) - set(known)
        if unknown:
            parser.error(f"--{name}: {', '.join(sorted(unknown))} (allowed: {', '.join(known)})")
    if not set(arguments.batches) <= set(range(1, 65)):
        parser.error("--batches: the engines are built for 1 to 64")
    return arguments


def main() -> None:
    arguments = parse()
    document: dict[str, Any] = {"date": datetime.date.today().isoformat(), "parts": {}}
    if arguments.json.is_file():
        document = json.loads(arguments.json.read_text())
        if document.get("dry_run", False) and not arguments.dry_run:
            document["parts"] = {}  # graphs and engines are found again in --work
    if arguments.part:
        row = run_part(arguments.part, arguments, document)
        arguments.answer.write_text(json.dumps(row))
        return
    document |= {"dry_run": arguments.dry_run, "quick": arguments.quick}
    begun = time.perf_counter()
    for part in parts(arguments):
        packages = chosen(document, arguments.capability if arguments.dry_run else None)
        if part in document["parts"] and not _incomplete(part, document["parts"][part], packages, arguments.quick):
            continue
        left = arguments.minutes * 60 - (time.perf_counter() - begun)
        if left <= 0:
            print(f"{part}: left out, --minutes {arguments.minutes:g} are over", flush=True)
            continue
        row = in_a_child(part, arguments, min(left + 60, LONGEST_S))
        document["parts"][part] = row
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        show(part, row)


def _incomplete(part: str, row: dict[str, Any], packages: dict[str, str | None], quick: bool) -> bool:
    """Is it to be done again? Where one candidate of a part failed, the part is done; not where all of them did.

    Nor where other engines are accepted by now, or where it was measured in haste and time is there.
    """
    if "failed" in row:
        return True
    if part.startswith("measure/"):
        timed = any(isinstance(cells, dict) and "latency" in cells for cells in row.values())
        return not timed or row.get("packages") != packages or (bool(row.get("quick")) and not quick)
    return part.startswith("build/") and row.get("packages") != packages


if __name__ == "__main__":
    main()
