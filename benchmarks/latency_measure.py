"""The parts of latency.py that compute; each runs in a process of its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from latency_build import tiny
from latency_candidates import (
    RANKS,
    BareOnnxRuntime,
    BareOpenVino,
    BareTorch,
    Candidate,
    Feed,
    PerCallTorch,
    candidates,
    precision,
    runner,
    sqnr_db,
)

from optimizer.measure.bootstrap import interleaved_ratio
from optimizer.measure.latency import LatencySession, measure_latency, measure_openings, pinned
from optimizer.measure.surroundings import Watch
from optimizer.measure.verdict import difference
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runners.openvino import OpenVinoRunner
from optimizer.runners.torch import TorchRunner
from optimizer.runners.torch_compile import TorchCompileRunner

LEAST_SQNR_DB = 10.0  # the quantize stage's own budget: what lies below is no answer, however fast
RIVALS = 3
JUDGED_AT = 16
CALL_MOST = 2.0  # microseconds over the bare loop
SIZES = {"8 floats": 8, "a picture": 3 * 224 * 224}


def judge(manifest: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Say of every row what it computes in and how far its answers lie from torch's float32. A bare loop has those of
    its runtime's row; torch.compile's bfloat16 those of torch's own.
    """
    import torch

    artifacts, rows = manifest["artifacts"], {}
    pictures = np.load(folder / "pictures.npy")
    reference: np.ndarray | None = None
    with pinned(1), torch.inference_mode():
        for candidate in candidates(artifacts):
            if candidate.kind == "bare" or candidate.held:
                continue
            with contextlib.ExitStack() as stack:
                try:
                    opened = stack.enter_context(candidate.opened(artifacts, 1))
                    found = np.concatenate([answer(opened, part) for part in batches(pictures)])
                    reference = found if reference is None else reference  # the first row is torch in float32
                    told = precision(candidate, opened, pathlib.Path(artifacts[candidate.artifact]), 1)
                    same = float((found.argmax(1) == reference.argmax(1)).mean())
                    rows[candidate.name] = told | {"sqnr_db": sqnr_db(reference, found), "same_answer": same}
                except Exception as error:  # one runtime that refuses is a result, not the end of the run
                    rows[candidate.name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
    for candidate in candidates(artifacts):
        stands_for = candidate.of if candidate.kind == "bare" else candidate.name
        rows.setdefault(candidate.name, rows.get(stands_for.replace("torch_compile", "torch"), {}))
    return {"pictures": len(pictures), "rows": rows}


def batches(pictures: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(pictures), JUDGED_AT):
        yield pictures[start : start + JUDGED_AT]


def answer(opened: Any, pictures: np.ndarray) -> np.ndarray:
    """Return the one output, from a runner of ours or from a bare loop."""
    found = opened.infer({"image": pictures})
    return next(iter(found.values())) if isinstance(found, dict) else found


def measure(
    manifest: Mapping[str, Any], judged: Mapping[str, Any], feed: Feed, threads: int, seconds: float
) -> dict[str, Any]:
    """Time all rows in one session, opened once; then our recommended one and its nearest rivals in six openings."""
    import torch

    artifacts, batch = manifest["artifacts"], len(feed["image"])
    rows: dict[str, Any] = {}
    named = {candidate.name: candidate for candidate in candidates(artifacts)}
    with pinned(threads) as processors, Watch(processors) as watch, torch.inference_mode():
        with contextlib.ExitStack() as stack:
            ready = {}
            for name, candidate in named.items():
                try:
                    opened = stack.enter_context(candidate.opened(artifacts, threads))
                    opened.bind(feed)()
                    ready[name] = opened
                except Exception as error:  # one runtime that refuses is a result, not the end of the run
                    rows[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
            baseline = next(iter(ready))
            survey = measure_latency(
                ready, {batch: feed}, baseline=baseline, seconds=seconds, progress=lambda *_: None, watch=watch
            )
        table = survey.to_json()
        rows |= {
            name: row[str(batch)] | {"kind": named[name].kind, "of": named[name].of} for name, row in table.items()
        }
        p50 = {name: row["latency"]["p50"] for name, row in rows.items() if "failed" not in row}
        chosen, rivals = contenders(p50, {name: c.kind for name, c in named.items()}, judged)
        finalists = {name: named[name] for name in (chosen, *rivals)}
        final = openings(finalists, artifacts, threads, {batch: feed}, (3 * seconds, watch))
    return {
        "rows": rows,
        "within_class": within_class(survey, batch, {n: c.kind for n, c in named.items()}, judged),
        "over_bare": {n: judged_pair(survey, n, f"{n}, bare", batch) for n in p50 if f"{n}, bare" in p50},
        "recommended": chosen,
        "final": {name: row[str(batch)] for name, row in final.to_json().items()},
        "against": {name: judged_pair(final, chosen, name, batch) for name in rivals},
        "surroundings": {"survey": survey.surroundings[batch], "final": final.surroundings[batch]},
    }


def openings(
    chosen: Mapping[str, Candidate],
    artifacts: Mapping[str, str],
    threads: int,
    feeds: Mapping[int, Feed],
    effort: tuple[float, Watch],
) -> LatencySession:
    """Measure in six openings; what compiles for seconds stays open throughout."""
    with contextlib.ExitStack() as outer:
        held = {n: outer.enter_context(c.opened(artifacts, threads)) for n, c in chosen.items() if c.held}
        calls = {name: {id(feed): opened.bind(feed) for feed in feeds.values()} for name, opened in held.items()}

        @contextlib.contextmanager
        def opened() -> Iterator[Mapping[str, Any]]:
            with contextlib.ExitStack() as stack:
                anew = {n: stack.enter_context(c.opened(artifacts, threads)) for n, c in chosen.items() if not c.held}
                kept = {name: Bound(bound) for name, bound in calls.items()}
                yield {name: (anew | kept)[name] for name in chosen}

        seconds, watch = effort
        return measure_openings(
            opened, feeds, baseline=next(iter(chosen)), seconds=seconds, progress=lambda *_: None, watch=watch
        )


class Bound:
    """Calls bound beforehand, by the identity of their feed."""

    def __init__(self, calls: Mapping[int, Callable[[], Any]]) -> None:
        self.calls = calls

    def bind(self, feed: Feed) -> Callable[[], Any]:
        return self.calls[id(feed)]


def sound(name: str, judged: Mapping[str, Any]) -> bool:
    """Does it answer within the budget that our own int8 has? An exact answer has no SQNR."""
    row = judged.get(name, {})
    return "class" in row and (row["sqnr_db"] is None or row["sqnr_db"] >= LEAST_SQNR_DB)


def rank(name: str, judged: Mapping[str, Any]) -> int:
    return RANKS.get(judged[name]["class"], -1)


def contenders(
    p50: Mapping[str, float], kinds: Mapping[str, str], judged: Mapping[str, Any], least: int | None = None
) -> tuple[str, list[str]]:
    """Return our fastest sound row, of at least this rank if one is given, and the fastest others that compute in no
    lower class than it.
    """
    sound_rows = sorted((n for n in p50 if sound(n, judged)), key=lambda n: p50[n])
    floor = -1 if least is None else least
    chosen = next(n for n in sound_rows if kinds[n] == "ours" and rank(n, judged) >= floor)
    no_lower = rank(chosen, judged) if least is None else least
    rivals = [n for n in sound_rows if kinds[n] != "ours" and rank(n, judged) >= no_lower]
    return chosen, rivals[:RIVALS]


def within_class(
    survey: LatencySession, batch: int, kinds: Mapping[str, str], judged: Mapping[str, Any]
) -> dict[str, Any]:
    """Return for each class our fastest against the fastest other, by the one opening of the survey."""
    p50 = {name: series[batch].latency().p50 for name, series in survey.series.items()}
    found = {}
    for label, least in (("fp32", 3), ("16 bits or more", 2), ("int8 or more", 1)):
        ours, rivals = contenders(p50, kinds, judged, least)
        found[label] = {"ours": ours, "rival": rivals[0]} | judged_pair(survey, ours, rivals[0], batch)
    return found


def judged_pair(session: LatencySession, name: str, other: str, batch: int) -> dict[str, Any]:
    """Return the ratio of two rows of a session, with its 99 % interval and the verdict by the one rule."""
    above, below = session.series[name][batch], session.series[other][batch]
    ratio = interleaved_ratio(above.counted_ms, below.counted_ms, openings=above.counted_openings)
    return difference(ratio).to_json()


class Infer:
    """Times `infer` instead of the bound call: from numpy to numpy."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def bind(self, feed: Feed) -> Callable[[], Any]:
        return lambda: self.opened.infer(feed)


def overhead(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Time bound call, bare loop and infer of each runtime around one Relu, alternating, one thread. Microseconds."""
    import torch

    kinds: dict[str, tuple[Any, Any, str]] = {
        "torch": (runner(TorchRunner), BareTorch, "module"),
        "torch_compile": (runner(TorchCompileRunner), lambda p, n: BareTorch(p, n, compiled=True), "module"),
        "onnxruntime": (runner(OnnxRuntimeRunner), BareOnnxRuntime, "fp32"),
        "openvino": (runner(OpenVinoRunner), BareOpenVino, "fp32"),
    }
    found: dict[str, Any] = {}
    with pinned(1) as processors, Watch(processors) as watch, torch.inference_mode():
        for size, elements in SIZES.items():
            artifacts = tiny(folder / f"tiny-{elements}", elements)
            feeds = {1: {"x": np.linspace(-1, 1, elements, dtype=np.float32)[None]}}
            for name, (ours, bare, artifact) in kinds.items():
                held = name == "torch_compile"
                rows = {
                    "bound": Candidate("bound", "ours", artifact, ours, held=held),
                    "bare": Candidate("bare", "bare", artifact, bare, held=held),
                    "infer": Candidate("infer", "ours", artifact, _inferring(ours)),
                }
                if name == "torch":
                    rows["per call"] = Candidate("per call", "bare", artifact, PerCallTorch)
                session = openings(rows, artifacts, 1, feeds, (seconds, watch))
                found.setdefault(name, {})[size] = costs(session)
    return found


def _inferring(ours: Callable[[pathlib.Path, int], Any]) -> Callable[[pathlib.Path, int], Any]:
    """A runner that stays open is closed with the process."""
    return lambda path, threads: Infer(ours(path, threads).__enter__())


def costs(session: LatencySession) -> dict[str, Any]:
    """Return p50 of each row and the differences that matter. Units: microseconds."""
    series = {name: per_batch[1] for name, per_batch in session.series.items()}
    found: dict[str, Any] = {f"{name}_us": 1000 * one.latency().p50 for name, one in series.items()}
    found["over_bare_us"] = apart(series["bound"], series["bare"])
    found["conversion_us"] = apart(series["infer"], series["bound"])
    if "per call" in series:
        found["over_bare_per_call_us"] = apart(series["bound"], series["per call"])
    found["disturbed"] = series["bound"].detail()["disturbed"]
    found["surroundings"] = session.surroundings[1]["complaints"]
    return found


def apart(above: Any, below: Any) -> dict[str, Any]:
    """Return the median over rounds of how far two rows' medians lie apart, and the least and most of any opening."""
    each = 1000 * (np.median(above.counted_ms, axis=1) - np.median(below.counted_ms, axis=1))
    ends = np.cumsum(above.counted_openings)[:-1]
    per_opening = [float(np.median(part)) for part in np.split(each, ends) if len(part)]
    return {"median": float(np.median(each)), "openings": [min(per_opening), max(per_opening)]}


def read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def goals(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each goal with what was found and whether it is met: by the median, and surely if the interval agrees."""
    found: list[dict[str, Any]] = []
    for part, result in parts.items():
        if part.startswith("measure/") and "against" in result:
            best = max(result["against"], key=lambda name: result["against"][name]["ratio"], default=None)
            if best is not None:
                pair = result["against"][best]
                told = f"{part.removeprefix('measure/')}: {result['recommended']} / {best}"
                found.append(_goal(told, pair["ratio"], 1.05, pair["interval"]))
        if part == "overhead":
            for runtime, sizes in result.items():
                if runtime != "took":
                    cost = sizes["8 floats"]["over_bare_us"]
                    found.append(_goal(f"{runtime}: us over bare", cost["median"], CALL_MOST, cost["openings"]))
    return found


def _goal(name: str, value: float, limit: float, interval: Sequence[float]) -> dict[str, Any]:
    sure = interval[1] <= limit if value <= limit else interval[0] > limit
    return {"goal": f"{name} <= {limit:g}", "value": value, "interval": list(interval), "met": value <= limit} | {
        "sure": sure
    }
