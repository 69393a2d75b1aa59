"""Our CPU runners beside bare loops and the peers' own artifacts: ResNet-18 and the demo CNN, batch 1 and 16, 1 and 2
threads, in one run.

    python benchmarks/latency.py [--models resnet18,digits-cnn] [--batches 1,16] [--threads 1,2] [--quick] [--nncf ENV]
                                 [--work DIR] [--json FILE]

Rows. Ours: torch eager, torch_compile, onnxruntime and openvino, each with every artifact it takes: fp32, fp16, bf16,
int8 by the default recipe and with residual sums in int8, in the runtime's own dialect. Bare: the loop an expert would
write around that runtime and artifact, with the runtime's own options but for threads: `module(x)`, all inside one
torch.inference_mode(); `session.run_with_iobinding(binding)`; `request.infer()` over tensors that are set. Peers:
onnxruntime's quantize_static (uint8), NNCF's int8 in OpenVINO, OpenVINO's default precision hint (bf16 where the CPU
multiplies it in tiles) over our fp32 and int8 and NNCF's, torch in bf16. NNCF has an environment of its own, created
here with pip (--nncf names one; "none" leaves it out), and what it writes is timed in this process like all else.
ResNet-18 has random weights and generated pictures, the demo its trained weights and real digits.

Fair comparison: what a row computes in is read back from its runtime (onnxruntime runs float16 graphs in float32: it
counts as fp32). Classes, from high to low: fp32; fp16 and bf16; int8; int8 with everything else in 16 bits. A
candidate is compared with all of its class or a higher one, never with a lower. Beside each latency stands the SQNR of
the outputs against torch's float32, in dB, over 64 pictures that calibration did not see; below 10 dB (our quantize
stage's own limit) a row takes no part.
All rows of a model, batch and number of threads are timed interleaved in one process, opened once (`survey`). Then our
recommended one, the fastest of ours, and its three nearest rivals by the same protocol in six openings (`final`); those
that compile for seconds stay open. Where one call takes more than 0.2 s the bare loop around it is left out. Ratios
have 99 % intervals; verdicts are those of `optimizer.measure.verdict`.
Goals: recommended <= 1.05 x the best other; a bound call <= 2 microseconds over the bare loop, around one Relu, where
it can be seen. Conversion in and out (infer minus bound call) stands by itself. Exit 1 if a goal is missed.
About 12 minutes on a quiet machine; the JSON is written after each part.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

MODELS = ("resnet18", "digits-cnn")
PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "numpy")
SECONDS = {"resnet18": 0.6, "digits-cnn": 0.7}  # of calls a row
CALIBRATION = 128
BEST_MOST = 1.05  # times the best other
CALL_MOST = 2.0  # microseconds over the bare loop


def part_names(models: list[str], batches: list[int], threads: list[int]) -> list[str]:
    """Return the parts in order; each runs in a process of its own."""
    names = ["overhead"]
    for model in models:
        names += [f"build/{model}", f"judge/{model}"]
        names += [f"measure/{model}/batch {batch}/threads {count}" for batch in batches for count in threads]
    return names


def run_part(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one part; called in a process of its own."""
    import latency_build
    import latency_measure
    import latency_overhead
    import numpy as np

    kind, _, rest = part.partition("/")
    model, _, how = rest.partition("/")
    folder = arguments.work / model
    if kind == "overhead":
        return latency_overhead.overhead(arguments.work, 0.2 if arguments.quick else 1.0)
    if kind == "build":
        folder.mkdir(exist_ok=True)
        document = latency_build.build(model, folder, arguments.python, 32 if arguments.quick else CALIBRATION)
        latency_build.save(document, folder / "manifest.json")
        return document
    manifest = latency_measure.read(folder / "manifest.json")
    if kind == "judge":
        document = latency_measure.judge(manifest, folder)
        latency_build.save(document, folder / "judged.json")
        return document
    batch, threads = (int(words.split()[1]) for words in how.split("/"))
    pictures = np.load(folder / "pictures.npy")[:batch]
    judged = latency_measure.read(folder / "judged.json")["rows"]
    seconds = 0.1 if arguments.quick else SECONDS[model]
    return latency_measure.measure(manifest, judged, {"image": pictures}, threads, seconds)


def in_child(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own; what ends it is a result, not the end of the run."""
    from latency_measure import read

    result = arguments.work / "part.json"
    result.unlink(missing_ok=True)
    told = ["--part", part, "--work", str(arguments.work), "--python", arguments.python]
    command = [sys.executable, "-W", "ignore", __file__, *told, *(["--quick"] if arguments.quick else [])]
    threads = part.rpartition("threads ")[2] if "threads" in part else "1"
    before, begun = os.getloadavg(), time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    took = {"seconds": round(time.perf_counter() - begun, 1), "load_before": before, "load_after": os.getloadavg()}
    if done.returncode or not result.is_file():
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"failed": last[:400], "took": took}
    return {**read(result), "took": took}


def lines(part: str, result: Mapping[str, Any], judged: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is printed of a part."""
    yield f"{part}  ({result['took']['seconds']:.0f} s, load {result['took']['load_before'][0]:.1f})"
    if "failed" in result and isinstance(result["failed"], str):
        yield f"  failed: {result['failed']}"
        return
    if part == "overhead":
        for runtime, sizes in result.items():
            for size, cost in sizes.items() if runtime != "took" else ():
                over, apart = cost["over_bare_us"]["median"], cost["conversion_us"]["median"]
                yield (
                    f"  {runtime:<14}{size:<10} bound {cost['bound_us']:8.2f} us  bare {cost['bare_us']:8.2f}  "
                    f"over bare {over:+6.2f}  conversion in and out {apart:+8.2f}"
                )
    elif part.startswith("build/"):
        yield from (f"  {name} failed: {why}" for name, why in result["failed"].items())
    elif part.startswith("measure/"):
        yield from table(result, judged)


def table(result: Mapping[str, Any], judged: Mapping[str, Any]) -> Iterator[str]:
    rows = sorted(result["rows"].items(), key=lambda row: row[1].get("latency", {}).get("p50", float("inf")))
    for name, row in rows:
        about = judged.get(name, {})
        if "latency" not in row:
            yield f"  {name:<30}" + " ".join(f"{word}: {why[:80]}" for word, why in row.items())
            continue
        sqnr = "same" if about.get("sqnr_db") is None else f"{about['sqnr_db']:.1f} dB"
        marks = [word for word in ("disturbed", "unstable") if row["detail"][word]]
        yield (
            f"  {name:<30}{row['kind']:<6}{about.get('class', '?'):<10}{row['latency']['p50']:9.3f} ms  "
            f"{row['throughput']:9.1f} /s  {sqnr:>9}  {' '.join(marks)}"
        )
    for label, pair in result["within_class"].items():
        yield f"  {label:<16}: {pair['ours']} is {pair['ratio']:.3f} x {pair['rival']} ({pair['kind']}; one opening)"
    for name, pair in result["against"].items():
        low, high = pair["interval"]
        yield f"  recommended {result['recommended']}: {pair['ratio']:.3f} [{low:.3f}, {high:.3f}] x {name}"


def goals(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each goal with what was found and whether it is met: by the median, and surely if the interval agrees."""
    found: list[dict[str, Any]] = []
    for part, result in parts.items():
        if part.startswith("measure/") and "against" in result:
            best = max(result["against"], key=lambda name: result["against"][name]["ratio"], default=None)
            if best is not None:
                pair = result["against"][best]
                told = f"{part.removeprefix('measure/')}: {result['recommended']} / {best}"
                found.append(_goal(told, pair["ratio"], BEST_MOST, pair["interval"]))
        if part == "overhead":
            for runtime, sizes in result.items() if "failed" not in result else ():
                if runtime != "took":
                    cost = sizes["8 floats"]["over_bare_us"]
                    found.append(_goal(f"{runtime}: us over bare", cost["median"], CALL_MOST, cost["openings"]))
    return found


def _goal(name: str, value: float, limit: float, interval: Sequence[float]) -> dict[str, Any]:
    sure = interval[1] <= limit if value <= limit else interval[0] > limit
    return {"goal": f"{name} <= {limit:g}", "value": value, "interval": list(interval), "met": value <= limit} | {
        "sure": sure
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time: does it run? No numbers to quote")
    parser.add_argument("--nncf", default="", help="an environment to use or create; none: without NNCF")
    parser.add_argument("--work", type=pathlib.Path, help="keep what is built here; default: a temporary folder")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here, e.g. into benchmarks/results/")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--python", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def described(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the document says before anything is measured."""
    from latency_build import nncf_version

    from optimizer.environment import cpu_model, usable_cores, versions

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_model(), "cores": usable_cores(), "platform": platform.platform()},
        "threads": [int(count) for count in arguments.threads.split(",")],
        "versions": {**versions(PACKAGES), "nncf": nncf_version(arguments.python)},
        "quick": arguments.quick,
        "load_before": os.getloadavg(),
        "parts": {},
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all parts; print and write each as it ends."""
    from latency_build import nncf_python, save

    from optimizer.environment import versions

    if arguments.nncf != "none":
        place = pathlib.Path(arguments.nncf or arguments.work / "nncf").absolute()
        arguments.python = nncf_python(place, versions(["openvino"])["openvino"])
    document = described(arguments)
    batches, threads = ([int(n) for n in text.split(",")] for text in (arguments.batches, arguments.threads))
    for part in part_names(arguments.models.split(","), batches, threads):
        result = document["parts"][part] = in_child(part, arguments)
        judged = document["parts"].get(f"judge/{part.split('/')[1]}", {}).get("rows", {}) if "/" in part else {}
        print("\n".join(lines(part, result, judged)), flush=True)
        document |= {"load_after": os.getloadavg(), "goals": goals(document["parts"])}
        if arguments.json:
            save(document, arguments.json)
    return document


def main() -> None:
    arguments = parsed()
    if arguments.part:
        from latency_build import save

        save(run_part(arguments.part, arguments), arguments.work / "part.json")
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.work = (arguments.work or pathlib.Path(folder)).absolute()
        arguments.work.mkdir(parents=True, exist_ok=True)
        document = run(arguments)
    failed = [part for part, result in document["parts"].items() if isinstance(result.get("failed"), str)]
    for goal in document["goals"]:
        surely = "" if goal["sure"] else " (the interval leaves it open)"
        print(f"{'met' if goal['met'] else 'not met'}{surely}: {goal['goal']}: {goal['value']:.3f}")
    sys.exit(1 if failed or not all(goal["met"] for goal in document["goals"]) else 0)


if __name__ == "__main__":
    main()
