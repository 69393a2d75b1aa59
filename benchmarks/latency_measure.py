"""The parts of latency.py that compute; each runs in a process of its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from latency_candidates import RANKS, Candidate, Feed, candidates, precision, sqnr_db

from optimizer.measure.bootstrap import interleaved_ratio
from optimizer.measure.latency import LatencySession, measure_latency, measure_openings, pinned
from optimizer.measure.surroundings import Watch
from optimizer.measure.verdict import difference

LEAST_SQNR_DB = 10.0  # the quantize stage's own budget: what lies below is no answer, however fast
RIVALS = 3
LONG_S = 0.2  # of a call: microseconds around it are not seen, and the bare loop is left out
JUDGED_AT = 16


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
    named = {candidate.name: candidate for candidate in candidates(artifacts)}
    with pinned(threads) as processors, Watch(processors) as watch, torch.inference_mode():
        with contextlib.ExitStack() as stack:
            ready, rows = prepared(named, artifacts, threads, feed, stack)
            baseline = next(iter(ready))
            survey = measure_latency(
                ready, {batch: feed}, baseline=baseline, seconds=seconds, progress=lambda *_: None, watch=watch
            )
        table = survey.to_json()
        rows |= {
            name: row[str(batch)] | {"kind": named[name].kind, "of": named[name].of} for name, row in table.items()
        }
        p50 = {name: row["latency"]["p50"] for name, row in rows.items() if "latency" in row}
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


def prepared(
    named: Mapping[str, Candidate], artifacts: Mapping[str, str], threads: int, feed: Feed, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open all rows and call each twice; return them, and the rows of those that failed or are left out."""
    ready: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for name, candidate in named.items():
        try:
            opened = stack.enter_context(candidate.opened(artifacts, threads))
            call = opened.bind(feed)
            call()
            begun = time.perf_counter()
            call()
            took = time.perf_counter() - begun
        except Exception as error:  # one runtime that refuses is a result, not the end of the run
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
            continue
        if candidate.kind == "bare" and took > LONG_S:
            rows[name] = {"left_out": f"a call takes {took:.2f} s: the row of {candidate.of} tells the same"}
        else:
            ready[name] = opened
    return ready, rows


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
    for label, least in (("fp32", 3), ("16 bits or more", 2), ("int8 or more", 1), ("any", -1)):
        ours, rivals = contenders(p50, kinds, judged, least)
        if rivals:
            found[label] = {"ours": ours, "rival": rivals[0]} | judged_pair(survey, ours, rivals[0], batch)
    return found


def judged_pair(session: LatencySession, name: str, other: str, batch: int) -> dict[str, Any]:
    """Return the ratio of two rows of a session, with its 99 % interval and the verdict by the one rule."""
    above, below = session.series[name][batch], session.series[other][batch]
    ratio = interleaved_ratio(above.counted_ms, below.counted_ms, openings=above.counted_openings)
    return difference(ratio).to_json()


def read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
