"""Does the latency verdict deserve trust? Equals compared with each other, and slowdowns planted into them.

    python benchmarks/trust.py [--trials N] [--seconds S] [--processes N] [--batch N] [--model FILE.onnx] [--json FILE]

Each trial opens the artifact (the demo CNN) anew for each candidate and times all in one session, interleaved by the
protocol of a build, in six openings: a base; an equal; one with 2 % of its own p50 in work added to each call; one
with 5 %. The three are judged against the base by `optimizer.measure.verdict.difference`. Beside that, what 95 %
intervals alone would have called.
`--processes` trials do the same as `optimize compare` does: two processes, one after the other, each its yardstick.

Goals: at most 1 % of the comparisons of equals call a difference; of 5 %, at least 95 % are found; of 2 %, none is
called faster. Exit 1 if one is missed. 200 trials of 0.7 s per candidate take about 17 minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from optimizer.compare.latency import change_between
from optimizer.environment import cpu_model, usable_cores
from optimizer.measure.affinity import pinned
from optimizer.measure.bootstrap import Ratio
from optimizer.measure.latency import LatencySession, measure_openings
from optimizer.measure.statistics import Z, wilson
from optimizer.measure.surroundings import Watch
from optimizer.measure.verdict import LEVEL, TOLERANCE, Kind, difference
from optimizer.runtime.onnx import OnnxSession

ROOT = pathlib.Path(__file__).parent.parent
BASE, PLANTED = "base", {"equal": 0.0, "2 % slower": 0.02, "5 % slower": 0.05}
EQUAL_CALLED, FOUND = 0.01, 0.95  # the goals
Feed = Mapping[str, np.ndarray]


class Burdened:
    """A session whose bound call does `share` of its own p50 more work: iterations of a loop, not a sleep."""

    def __init__(self, session: OnnxSession, share: float) -> None:
        self.session, self.share = session, share

    def bind(self, feed: Feed) -> Callable[[], None]:
        call = self.session.bind(feed)
        if not self.share:
            return call
        turns = range(iterations(call, self.share))

        def burdened() -> None:
            call()
            for _ in turns:
                pass

        return burdened


def iterations(call: Callable[[], None], share: float) -> int:
    """Turns of an empty loop after the call that take as long as this share of it. A long loop gives the slope, one of
    the length wanted what it costs to begin: after a call the caches do not hold the interpreter.
    """
    rough = max(1, round(share * 10_000 / added(call, range(10_000))))
    return max(1, round(rough * (1 + (share - added(call, range(rough))) / share)))


def added(call: Callable[[], None], turns: range) -> float:
    """Time of the loop over that of the call before it: the median over passes, so that the machine's speed cancels."""
    clock = time.perf_counter_ns
    ratios = []
    for _ in range(25):
        begun = clock()
        call()
        between = clock()
        for _ in turns:
            pass
        ratios.append((clock() - between) / (between - begun))
    return float(np.median(ratios))


def session(model: pathlib.Path, batch: int, seconds: float) -> LatencySession:
    """Open the artifact for each candidate and time them, with and without burdens, as a build does."""
    burdens = {BASE: 0.0, **PLANTED}
    with OnnxSession(model, threads=1) as opened:
        spec = opened.inputs[0]
    shape = [batch, *(n for n in spec.shape[1:] if isinstance(n, int))]
    feed = {spec.name: np.random.default_rng(0).random(shape, np.float32)}

    @contextlib.contextmanager
    def opened_anew() -> Iterator[Mapping[str, Burdened]]:
        with contextlib.ExitStack() as stack:
            yield {n: Burdened(stack.enter_context(OnnxSession(model, threads=1)), s) for n, s in burdens.items()}

    with pinned(1) as processors, Watch(processors) as watch:
        return measure_openings(
            opened_anew, {batch: feed}, baseline=BASE, seconds=seconds, progress=lambda *_: None, watch=watch
        )


def judged(ratio: Ratio, tolerance: float = TOLERANCE) -> dict[str, Any]:
    low, high = ratio.interval(0.95)
    return difference(ratio, tolerance=tolerance).to_json() | {"called_by_95": not low <= 1 <= high}


def in_one_process(model: pathlib.Path, batch: int, seconds: float) -> dict[str, Any]:
    timed = session(model, batch, seconds)
    detail = timed.series[BASE][batch].detail()
    return {"comparisons": {name: judged(timed.ratios[name, batch]) for name in PLANTED}} | {
        key: detail[key] for key in ("rounds", "openings", "disturbed_rounds", "disturbed")
    }


def in_two_processes(model: pathlib.Path, batch: int, seconds: float) -> dict[str, Any]:
    """Judge the second process's candidates against the first one's equal, each against its own base."""
    sides = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "rounds.npz"
            told = ["--seconds", str(seconds), "--batch", str(batch), "--model", str(model), "--rounds", str(file)]
            subprocess.run([sys.executable, __file__, *told], check=True)
            with np.load(file) as arrays:
                sides.append({name: arrays[name] for name in (BASE, *PLANTED, "openings")})
    before, after = sides
    found = {}
    for name in PLANTED:
        openings = (before["openings"].tolist(), after["openings"].tolist())
        change = change_between((before["equal"], before[BASE]), (after[name], after[BASE]), BASE, openings)
        by_yardstick, by_clock = change.judge()
        # As `optimize compare` convicts: slower both by the clock and against the yardstick.
        kind = by_yardstick.kind
        kind = "undecided" if kind == "slower" and by_clock.kind != "slower" else kind
        found[name] = judged(change.best, change.tolerance) | {"kind": kind, "drift": change.drift}
    return {"comparisons": found}


def summary(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the verdicts of each kind, with 95 % intervals of the shares.

    `sd_of_trials` beside `sd_within`, what the intervals of single trials expect: far above it, opening an artifact
    anew changes its speed (where its memory lies) by more than one session can know.
    """
    found: dict[str, Any] = {}
    for name in PLANTED:
        said = [trial["comparisons"][name] for trial in trials]
        kinds = [one["kind"] for one in said]
        called = kinds.count("faster") + kinds.count("slower")
        logs = np.log([[one["ratio"], *one["interval"]] for one in said])
        found[name] = {kind: kinds.count(kind) for kind in get_args(Kind)} | {
            "called": called / len(said),
            "called_ci95": wilson(called, len(said)),
            "called_by_95_alone": sum(one["called_by_95"] for one in said) / len(said),
            "median_ratio": float(np.exp(np.median(logs[:, 0]))),
            "sd_of_trials": float(logs[:, 0].std()),
            "sd_within": float(np.median(logs[:, 2] - logs[:, 1])) / 2 / Z[LEVEL],
        }
    return found


def misses(found: Mapping[str, Any], trials: int) -> list[str]:
    missed = []
    if found["equal"]["called"] > EQUAL_CALLED:
        missed.append(f"equals were called different in {found['equal']['called']:.1%}, at most {EQUAL_CALLED:.0%}")
    if found["5 % slower"]["slower"] / trials < FOUND:
        missed.append(f"5 % was found in {found['5 % slower']['slower'] / trials:.1%}, at least {FOUND:.0%}")
    missed += [f"{name} was called faster" for name in ("2 % slower", "5 % slower") if found[name]["faster"]]
    return missed


def run(name: str, count: int, trial: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    trials, started = [], time.perf_counter()
    for number in range(1, count + 1):
        trials.append(trial())
        if number % max(1, count // 20) == 0 or number == count:
            parts = [f"{kind}: {said['called']:.1%}" for kind, said in summary(trials).items()]
            spent = time.perf_counter() - started
            print(f"{name} {number}/{count} {spent:.0f} s   called different: {', '.join(parts)}", file=sys.stderr)
    return trials


def export(destination: pathlib.Path) -> None:
    """Export the demo CNN in a process of its own: torch's threads and memory stay out of this one."""
    script = """
import sys, torch
from safetensors.torch import load_file
sys.path.insert(0, sys.argv[1])
from model import SmallCNN
model = SmallCNN()
model.load_state_dict(load_file(sys.argv[1] + "/checkpoint.safetensors"))
names = {"input_names": ["image"], "output_names": ["logits"]}
example = (torch.zeros(2, 3, 32, 32),)
torch.onnx.export(
    model.eval(), example, dynamo=True, dynamic_shapes=({0: "batch"},), opset_version=20, verbose=False, **names
).save(sys.argv[2])
"""
    demo = ROOT / "recipes" / "digits-cnn"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(demo), str(destination)], check=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="sessions in this process")
    parser.add_argument("--seconds", type=float, default=0.7, help="per candidate and session")
    parser.add_argument("--processes", type=int, default=20, help="comparisons of two processes")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--model", type=pathlib.Path, help="an ONNX file with one float32 input; default: the demo CNN")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--rounds", type=pathlib.Path, help=argparse.SUPPRESS)  # one process of two
    return parser.parse_args()


def measured(arguments: argparse.Namespace, model: pathlib.Path) -> dict[str, Any]:
    batch, seconds = arguments.batch, arguments.seconds
    trials = run("one process", arguments.trials, lambda: in_one_process(model, batch, seconds))
    pairs = run("two processes", arguments.processes, lambda: in_two_processes(model, batch, seconds))
    found = summary(trials)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_model(), "cores": usable_cores(), "platform": platform.platform()},
        "settings": {"trials": len(trials), "seconds": seconds, "batch": batch, "level": LEVEL, "tolerance": TOLERANCE},
        "one_process": found,
        "two_processes": summary(pairs) if pairs else None,
        "rounds": float(np.median([t["rounds"] for t in trials])),
        "sessions_disturbed": sum(t["disturbed"] for t in trials),
        "rounds_disturbed": sum(t["disturbed_rounds"] for t in trials),
        "missed": misses(found, len(trials)),
        "trials": trials,
        "pairs": pairs,
    }


def main() -> None:
    arguments = parsed()
    if arguments.rounds:
        timed = session(arguments.model, arguments.batch, arguments.seconds)
        np.savez(
            arguments.rounds,
            allow_pickle=False,
            **{n: s[arguments.batch].counted_ms for n, s in timed.series.items()},
            openings=np.array(timed.series[BASE][arguments.batch].counted_openings, dtype=int),
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or pathlib.Path(folder) / "model.onnx"
        if arguments.model is None:
            export(model)
        document = measured(arguments, model)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({k: v for k, v in document.items() if k not in ("trials", "pairs")}, indent=1))
    sys.exit(1 if document["missed"] else 0)


if __name__ == "__main__":
    main()
