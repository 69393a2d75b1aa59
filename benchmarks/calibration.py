"""Calibration's time and memory on ResNet-18 at 224x224, beside onnxruntime's calibrators and modelopt, in one run.

    python benchmarks/calibration.py [--counts 32,128,512,4096] [--full] [--modelopt ENV] [--json FILE]

ResNet-18 has random weights (He initialisation, batch norm folded by the exporter), the pictures are generated: sums of
a few waves, of another brightness each, so that neighbours resemble each other. Every measurement has a fresh child
process, which first times the bare forward passes over the same pictures with the same batch and threads: `ratio` is
calibration's time over theirs (our calibrator takes a smaller batch, which bounds its memory). Each tool's own modules
are loaded before anything is timed. Peak memory is that of the child (VmHWM: ru_maxrss would count its parent's).
Ours is asked for what an int8 variant needs for TensorRT (`ours`: what layers read), for TensorRT and onnxruntime's
integer kernels (`ours-both`: what layers write, too), and with int8 residual sums for both (`ours-sums`). It finds all
four ranges (MinMax, Percentile, Entropy, MSE) in the one pass; the stage's work is timed whole: reading the graph, the
pass, the estimates, the noise test, writing the table. Peers run one method at a time, by default up to 128 pictures
and with --full up to 512 (onnxruntime's Entropy and Percentile keep every activation: 15 GB at 512), MinMax without a
limit. modelopt has its own environment, created here with pip (--modelopt names one that exists; "none" leaves it out).
Goals: all four <= 1.5 x the forward passes from 512 pictures on; peak memory at 4,096 <= 1.1 x that at 32.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 16
SIZE = 224
MODELOPT = "nvidia-modelopt[onnx]==0.47.*"
KEEPS_EVERYTHING = ("ort-entropy", "ort-percentile", "modelopt-max", "modelopt-entropy")
OURS = ("ours", "ours-both", "ours-sums")
PEERS = ("ort-minmax", "ort-entropy", "ort-percentile", "modelopt-max", "modelopt-entropy")


def export(path: pathlib.Path) -> None:
    """Write ResNet-18 (He et al. 2015, table 1) with random weights as ONNX with a dynamic batch."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]  # torch's types are skipped
        def __init__(self, inner: int, outer: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer))
            self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
            same = stride == 1 and inner == outer
            self.shortcut = (
                nn.Identity()
                if same
                else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    widths = [64, 64, 128, 256, 512]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [
        Block(inner if i == 0 else outer, outer, 2 if i == 0 and inner != outer else 1)
        for inner, outer in itertools.pairwise(widths)
        for i in range(2)
    ]
    torch.manual_seed(0)
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.0)
    example = torch.zeros(2, 3, SIZE, SIZE)
    program = torch.onnx.export(
        model.eval(), (example,), dynamo=True, dynamic_shapes=({0: "batch"},), input_names=["image"], verbose=False
    )
    program.save(path)


def picture(index: int) -> Any:
    """Return picture `index`: three waves per colour and some grain, normalised as pictures are."""
    import numpy as np

    rng = np.random.default_rng(index)
    place = np.linspace(0, 2 * np.pi, SIZE, dtype=np.float32)
    waves = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    for _ in range(3):
        down, across = rng.uniform(0.5, 12, size=2)
        colour = rng.normal(size=(3, 1, 1)).astype(np.float32)
        shift = np.float32(rng.uniform(0, 6))
        waves += colour * (np.sin(np.float32(down) * place + shift)[:, None] * np.cos(np.float32(across) * place))
    grain = rng.normal(size=waves.shape).astype(np.float32) * 0.1
    return np.asarray(waves * rng.uniform(0.2, 1) + grain + rng.normal() * 0.5, dtype=np.float32)


POOL = 64  # pictures held; the same come again, so that making them is no part of what is measured


def pictures() -> list[Any]:
    return [picture(index) for index in range(POOL)]


def batches(held: list[Any], count: int) -> Iterator[Any]:
    import numpy as np

    for start in range(0, count, BATCH):
        yield np.stack([held[i % POOL] for i in range(start, min(start + BATCH, count))])


def forward_seconds(path: pathlib.Path, held: list[Any], count: int, threads: int) -> float:
    """Time the bare forward passes, after one to warm up; more of them than 256 pictures would only take longer."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    timed = min(count, 256)
    feeds = list(batches(held, POOL))
    session.run(None, {name: feeds[0]})
    started = time.perf_counter()
    for start in range(0, timed, BATCH):
        session.run(None, {name: feeds[start // BATCH % len(feeds)]})
    return (time.perf_counter() - started) * count / timed


def ours(*dialects: str, integer_sums: bool = False) -> Callable[..., None]:
    """Return the stage itself, as a recipe with targets of these dialects runs it."""

    def run(path: pathlib.Path, held: list[Any], count: int, folder: pathlib.Path) -> None:
        from optimizer.data.samples import Sample, Samples
        from optimizer.stage import StageContext
        from optimizer.stages.calibrate import Calibrate
        from optimizer.types import Artifact

        class Pictures(Samples):
            def __len__(self) -> int:
                return count

            def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
                return Sample({"image": held[index % POOL]}, 0, f"picture-{index}")

        held_pictures = Pictures()
        context = StageContext(
            log=folder / "log",
            note=lambda text: print(text, file=sys.stderr),
            progress=lambda *_: None,
            samples=lambda _: held_pictures,
        )
        sources = {"graph": Artifact("onnx", path, "0"), "samples": Artifact("data", folder, "1")}
        stage = Calibrate.model_validate({"method": "entropy", "dialects": dialects, "integer_sums": integer_sums})
        stage.run(sources, folder, context)

    return run


def onnxruntime_calibrator(method: str) -> Callable[..., None]:
    def run(path: pathlib.Path, held: list[Any], count: int, folder: pathlib.Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
            def __init__(self) -> None:
                self.feeds = ({"image": batch} for batch in batches(held, count))

            def get_next(self) -> Any:
                return next(self.feeds, None)

        calibrator = create_calibrator(
            str(path),
            op_types_to_calibrate=["Conv", "Gemm", "Add", "MaxPool"],
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, method),
        )
        reader = Reader()
        if method == "MinMax":  # without collecting a part at a time it keeps every batch's outputs
            while (feed := reader.get_next()) is not None:
                calibrator.collect_data(_One(feed))
        else:
            calibrator.collect_data(reader)
        calibrator.compute_data()

    return run


class _One:
    """A reader of one feed."""

    def __init__(self, feed: Any) -> None:
        self.feed = feed

    def get_next(self) -> Any:
        feed, self.feed = self.feed, None
        return feed


def modelopt(method: str) -> Callable[..., None]:
    def run(path: pathlib.Path, held: list[Any], count: int, folder: pathlib.Path) -> None:
        import numpy as np
        from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]  # its own environment

        data = np.concatenate(list(batches(held, count)))
        quantize(
            str(path),
            quantize_mode="int8",
            calibration_data={"image": data},
            calibration_method=method,
            calibration_eps=["cpu"],
            output_path=str(folder / "quantized.onnx"),
        )

    return run


MODULES = {
    "ours": (
        "optimizer.stages.calibrate",
        "optimizer.calibration.collect",
        "optimizer.calibration.doctor",
        "scipy.sparse",
    ),
    "ort": ("onnxruntime.quantization",),
    "modelopt": ("modelopt.onnx.quantization",),
}
WORK: dict[str, Callable[..., None]] = {
    "ours": ours("tensorrt"),
    "ours-both": ours("cpu", "tensorrt"),
    "ours-sums": ours("cpu", "tensorrt", integer_sums=True),
    "ort-minmax": onnxruntime_calibrator("MinMax"),
    "ort-entropy": onnxruntime_calibrator("Entropy"),
    "ort-percentile": onnxruntime_calibrator("Percentile"),
    "modelopt-max": modelopt("max"),
    "modelopt-entropy": modelopt("entropy"),
}


def child(tool: str, path: pathlib.Path, count: int) -> None:
    threads = len(os.sched_getaffinity(0))
    held = pictures()
    sys.path.insert(0, str(ROOT))
    for module in MODULES[tool.partition("-")[0]]:
        importlib.import_module(module)
    before = forward_seconds(path, held, count, threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        WORK[tool](path, held, count, pathlib.Path(folder))
        seconds = time.perf_counter() - started
    after = forward_seconds(path, held, count, threads)
    forward = (before + after) / 2
    from optimizer.peak_memory import peak_rss_bytes

    peak = peak_rss_bytes()
    result = {"seconds": seconds, "forward_seconds": forward, "ratio": seconds / forward, "peak_bytes": peak}
    print("RESULT " + json.dumps(result))


def measure(python: str, tool: str, path: pathlib.Path, count: int) -> dict[str, Any]:
    command = [python, __file__, "--child", tool, "--graph", str(path), "--counts", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)
    line = next((text for text in done.stdout.splitlines() if text.startswith("RESULT ")), None)
    row: dict[str, Any] = {"tool": tool, "samples": count}
    if line is None:
        tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit {done.returncode}"]
        return row | {"failed": tail[0][:300]}
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return row | found


def modelopt_python(folder: pathlib.Path) -> str:
    """Create the environment that modelopt needs for itself; its ONNX extras pin another onnx than ours."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        for package in ("torch==2.13.0", MODELOPT):
            subprocess.run([*pip, package], check=True)
    return str(python)


def shown(row: dict[str, Any]) -> str:
    head = f"{row['tool']:<18}{row['samples']:>6}"
    if "failed" in row:
        return f"{head}   failed: {row['failed']}"
    return (
        f"{head}{row['seconds']:>10.1f} s{row['forward_seconds']:>10.1f} s{row['ratio']:>8.2f} x"
        f"{row['peak_bytes'] / 1e6:>10.0f} MB"
    )


def goals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tool in OURS:
        mine = {row["samples"]: row for row in rows if row["tool"] == tool and "failed" not in row}
        found |= {f"{tool}: ratio at {n} <= 1.5": mine[n]["ratio"] for n in (512, 4096) if n in mine}
        if len(mine) > 1:
            least, most = min(mine), max(mine)
            growth = mine[most]["peak_bytes"] / mine[least]["peak_bytes"]
            found[f"{tool}: peak memory at {most} over {least} <= 1.1"] = growth
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="32,128,512,4096", help="how many pictures, separated by commas")
    parser.add_argument("--full", action="store_true", help="peers up to 512 pictures: some take 15 GB")
    parser.add_argument("--modelopt", default="", help="an environment to use or create; none: without modelopt")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here, e.g. into benchmarks/results/")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--graph", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.counts.split(",")]
    if arguments.child:
        child(arguments.child, arguments.graph, counts[0])
        return
    most = 512 if arguments.full else 128
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "resnet18.onnx"
        export(path)
        peers = PEERS if arguments.modelopt != "none" else tuple(p for p in PEERS if p.startswith("ort"))
        place = pathlib.Path(arguments.modelopt or pathlib.Path(folder) / "modelopt")
        other = modelopt_python(place.absolute()) if len(peers) == len(PEERS) else ""
        threads = len(os.sched_getaffinity(0))
        print(f"ResNet-18 {SIZE}x{SIZE}, random weights, generated pictures, batch {BATCH}, {threads} threads")
        print(f"{'tool':<18}{'count':>6}{'calibrate':>12}{'forward':>12}{'ratio':>10}{'peak':>13}")
        rows = []
        for count in counts:
            for tool in (*OURS, *peers):
                if tool in KEEPS_EVERYTHING and count > most:
                    continue
                row = measure(other if tool.startswith("modelopt") else sys.executable, tool, path, count)
                rows.append(row)
                print(shown(row), flush=True)
    for name, value in goals(rows).items():
        print(f"{name}: {value:.2f}")
    if arguments.json:
        document = {
            "date": datetime.date.today().isoformat(),
            "machine": {"cpu": platform.processor() or platform.machine(), "threads": threads, "batch": BATCH},
            "load": list(os.getloadavg()),
            "rows": rows,
            "goals": goals(rows),
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
