"""The demo cold and warm against a plain script that does the same work by hand, side by side in one run.

    python benchmarks/pipeline.py [--runs N] [--json FILE]

Cold: an empty store, everything built, checked and evaluated. The script (by_hand.py) does the same work and the
same checks with the libraries' own functions. The time-boxed latency session is taken out of our side, because either
would spend what it is given. Runs alternate; medians, and the ratio of each pair. Goals: cold <= 1.3 x the script,
unchanged <= 1 s, `optimize --help` <= 0.25 s.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "digits-cnn" / "recipe.yaml"
OPTIMIZE = [sys.executable, "-m", "optimizer"]
# Our steps beside the script's phases.
COUNTERPARTS = {
    "export": ("collect", "export"),
    "simplify": ("simplify",),
    "fp16": ("fp16/float16",),
    "int8": ("int8/calibrate", "int8@cpu/quantize", "int8@tensorrt/quantize"),
    "engines": ("fp32@tensorrt_rtx/engine", "fp16@tensorrt_rtx/engine", "int8@tensorrt_rtx/engine"),
    "accuracy": ("accuracy",),
}
STEP = re.compile(r"^(\S+) +(?:built|measured) +([\d.]+) s", re.MULTILINE)


def timed(command: list[str], home: pathlib.Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    env = {**os.environ, "OPTIMIZE_HOME": str(home)}
    started = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 6, 7):  # a noisy machine may leave the gate undecided: the work was done
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return seconds, done


def ours_cold() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home:
        seconds, done = timed([*OPTIMIZE, "build", str(RECIPE)], pathlib.Path(home))
        steps = {name: float(value) for name, value in STEP.findall(done.stderr)}
        unchanged = min(timed([*OPTIMIZE, "build", str(RECIPE)], pathlib.Path(home))[0] for _ in range(3))
    latency = steps.pop("latency")
    found = {phase: sum(steps[s] for s in names) for phase, names in COUNTERPARTS.items()}
    total = seconds - latency
    return found | {"start, data, report": total - sum(found.values()), "total": total, "unchanged": unchanged}


def by_hand() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home:
        seconds, done = timed([sys.executable, str(ROOT / "benchmarks" / "by_hand.py")], pathlib.Path(home))
    phases = json.loads(done.stdout.splitlines()[-1])["phases"]
    found = {phase: phases[phase] for phase in COUNTERPARTS}
    return found | {"start, data, report": seconds - sum(found.values()), "total": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if not (RECIPE.parent / "checkpoint.safetensors").is_file():
        sys.exit(f"train the demo first: python {RECIPE.parent / 'train.py'}")
    pairs = []
    for i in range(args.runs):
        pairs.append((ours_cold(), by_hand()))
        print(f"run {i + 1}: ours {pairs[-1][0]['total']:.1f} s, script {pairs[-1][1]['total']:.1f} s", file=sys.stderr)
    with tempfile.TemporaryDirectory() as home:
        help_s = statistics.median(timed([*OPTIMIZE, "--help"], pathlib.Path(home))[0] for _ in range(9))
    rows = {
        phase: [statistics.median(side[phase] for side in sides) for sides in zip(*pairs, strict=True)]
        for phase in (*COUNTERPARTS, "start, data, report", "total")
    }
    print(f"{'phase':<22}{'optimize':>10}{'by hand':>10}   seconds, median of {args.runs}")
    for phase, (own, script) in rows.items():
        print(f"{phase:<22}{own:>10.2f}{script:>10.2f}")
    ratio = statistics.median(a["total"] / b["total"] for a, b in pairs)
    unchanged = statistics.median(a["unchanged"] for a, _ in pairs)
    print(f"cold / script          {ratio:>10.2f}   goal 1.30")
    print(f"unchanged, s           {unchanged:>10.2f}   goal 1.00")
    print(f"optimize --help, s     {help_s:>10.3f}   goal 0.250")
    if args.json:
        document = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
            "runs": args.runs,
            "seconds": {phase: {"optimize": own, "by_hand": script} for phase, (own, script) in rows.items()},
            "cold_ratio": ratio,
            "unchanged_s": unchanged,
            "help_s": help_s,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def _cpu() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
