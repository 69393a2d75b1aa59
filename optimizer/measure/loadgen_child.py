"""The child's side of a LoadGen scenario: the system under test, whose answers a runner gives."""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optimizer.errors import MeasurementError, OptimizerError
from optimizer.measure.fresh import open_handover
from optimizer.measure.loadgen import ScenarioSettings
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

WARMUP_CALLS = 5
WARMUP_S = 0.3
_SCENARIOS = {"single_stream": "SingleStream", "offline": "Offline", "server": "Server"}
_OFFLINE_SLACK = (
    2.5  # besides LoadGen's own 1.1: a run that ends early is INVALID, and neighbours slow what finds the pace
)
_STALL_S = 1.0  # a server that falls behind by more is overloaded, and LoadGen ends the test
_STALL_LATENCIES = 20.0
_FEWEST_OUTSTANDING = 256

Query = tuple[int, int]  # LoadGen's id of the answer, and which sample


class Pace(NamedTuple):
    """How fast the runners answered before the test."""

    shortest_s: float  # of one call
    samples_per_s: float  # of all runners together


def generate(handover: str, settings: Mapping[str, Any], logs: str) -> dict[str, Any]:
    """Run the scenario; the answer names the error of a runner that failed meanwhile.

    LoadGen runs in a thread of its own: when a runner fails, that thread is left where it is and dies with the process.
    Raises: what opening a runner or its first calls raise.
    """
    asked = ScenarioSettings(**settings)
    runner, feeds = open_handover(handover)
    stack = contextlib.ExitStack()
    runners = [stack.enter_context(copy.copy(runner)) for _ in range(asked.workers)]
    _check_batch(runners[0], asked)
    system = SystemUnderTest(runners, feeds, asked)
    pace = system.warm_up()
    threading.Thread(target=_drive, args=(system, pace, Path(logs)), daemon=True).start()
    error = system.ended.get()
    if error is None:
        stack.close()
        return {"error": None}
    # The runners stay open: other threads may still be inside them, and this process ends without destructors.
    return {"error": _words(error)}


def _check_batch(runner: Runner, asked: ScenarioSettings) -> None:
    """Refuse a model of fixed batch that the scenario's calls do not fit."""
    fixed = next((s.shape[0] for s in runner.inputs if s.shape and isinstance(s.shape[0], int)), None)
    if fixed is not None and fixed != asked.batch:
        wanted = "asks one sample at a time" if asked.scenario == "single_stream" else f"has batch {asked.batch}"
        raise MeasurementError(
            f"the model's batch is fixed at {fixed} and scenario {asked.scenario} {wanted}",
            where="measure.scenario",
            hint="Export the model with a dynamic batch axis."
            if asked.scenario == "single_stream"
            else f"batch: {fixed}",
        )


class SystemUnderTest:
    """Answers queries with real samples: in LoadGen's thread (single stream), or in one thread a runner.

    A call that is not full is filled up with its last sample where the model's batch is fixed.
    """

    def __init__(self, runners: Sequence[Runner], feeds: Sequence[Feed], settings: ScenarioSettings) -> None:
        self.settings = settings
        self.ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.samples = len(feeds)
        self._runners = runners
        self._feeds = feeds
        self._shapes = [tuple(array.shape for array in feed.values()) for feed in feeds]
        self._fixed = any(s.shape and isinstance(s.shape[0], int) for s in runners[0].inputs)
        self._waiting: queue.SimpleQueue[list[Query] | None] = queue.SimpleQueue()
        self._loadgen = importlib.import_module("mlperf_loadgen")
        self.issue = {"single_stream": self._issue_now, "offline": self._issue_all, "server": self._issue_later}[
            settings.scenario
        ]

    def warm_up(self) -> Pace:
        """Call every runner at the sizes that come; then all at once, as LoadGen will have them, to know the pace."""
        partly = self.settings.scenario == "server" and not self._fixed
        sizes = sorted({1, self.settings.batch}) if partly else [self.settings.batch]
        for runner in self._runners:
            for size in sizes:
                feed = self._stack([0] * size)
                for _ in range(WARMUP_CALLS):
                    runner.infer(feed)
        with ThreadPoolExecutor(len(self._runners)) as pool:
            found = list(pool.map(self._rehearse, self._runners))
        calls = sum(made for made, _ in found)
        return Pace(min(shortest for _, shortest in found), calls * self.settings.batch / WARMUP_S)

    def _rehearse(self, runner: Runner) -> tuple[int, float]:
        """Answer made-up calls for a moment; return how many, and the shortest one's seconds."""
        made, shortest, opened = 0, math.inf, time.perf_counter()
        while (begun := time.perf_counter()) - opened < WARMUP_S:
            first = made * self.settings.batch
            picked = [(first + i) % self.samples for i in range(self.settings.batch)]
            runner.infer(self._stack([index for _, index in self._alike([(0, i) for i in picked])[0]]))
            made, shortest = made + 1, min(shortest, time.perf_counter() - begun)
        return made, shortest

    def start(self) -> list[threading.Thread]:
        """Start the workers; single stream has none."""
        if self.settings.scenario == "single_stream":
            return []
        workers = [threading.Thread(target=self._work, args=(runner,), daemon=True) for runner in self._runners]
        for worker in workers:
            worker.start()
        return workers

    def stop(self, workers: Sequence[threading.Thread]) -> None:
        """Let the workers end."""
        for _ in workers:
            self._waiting.put(None)
        for worker in workers:
            worker.join()

    def _issue_now(self, queries: Sequence[Any]) -> None:
        try:
            self._answer(self._runners[0], [(query.id, query.index) for query in queries])
        except BaseException as error:  # whatever leaves this frame unwinds LoadGen's and kills the process
            self.ended.put(error)
            threading.Event().wait()

    def _issue_all(self, queries: Sequence[Any]) -> None:
        size = self.settings.batch
        for alike in self._alike([(query.id, query.index) for query in queries]):
            for start in range(0, len(alike), size):
                self._waiting.put(alike[start : start + size])

    def _issue_later(self, queries: Sequence[Any]) -> None:
        self._waiting.put([(query.id, query.index) for query in queries])

    def _work(self, runner: Runner) -> None:
        try:
            while (queries := self._waiting.get()) is not None:
                for alike in self._alike(self._fill(queries)):
                    self._answer(runner, alike)
        except BaseException as error:  # nobody joins a worker while LoadGen waits for it
            self.ended.put(error)

    def _fill(self, queries: list[Query]) -> list[Query]:
        """Take what else is waiting, up to the batch; wait for nothing."""
        while len(queries) < self.settings.batch:
            try:
                more = self._waiting.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._waiting.put(None)
                break
            queries = queries + more
        return queries

    def _alike(self, queries: Sequence[Query]) -> list[list[Query]]:
        """Group by shape: only samples of equal shape go into one call."""
        groups: dict[Any, list[Query]] = {}
        for query in queries:
            groups.setdefault(self._shapes[query[1]], []).append(query)
        return list(groups.values())

    def _answer(self, runner: Runner, queries: Sequence[Query]) -> None:
        picked = [index for _, index in queries]
        if self._fixed:
            picked += [picked[-1]] * (self.settings.batch - len(picked))
        runner.infer(self._stack(picked))
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([response(id_, 0, 0) for id_, _ in queries])

    def _stack(self, picked: Sequence[int]) -> Feed:
        if len(picked) == 1:
            return self._feeds[picked[0]]
        return {name: np.concatenate([self._feeds[i][name] for i in picked]) for name in self._feeds[picked[0]]}


def _drive(system: SystemUnderTest, pace: Pace, folder: Path) -> None:
    """Run LoadGen to its end, and say so."""
    loadgen: Any = importlib.import_module("mlperf_loadgen")
    try:
        workers = system.start()
        sut = loadgen.ConstructSUT(system.issue, _nothing)
        library = loadgen.ConstructQSL(system.samples, system.samples, _nothing, _nothing)
        loadgen.StartTestWithLogSettings(
            sut, library, _test_settings(loadgen, system.settings, pace), _logs(folder), ""
        )
        system.stop(workers)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    except BaseException as error:  # the main thread waits for this one
        system.ended.put(error)
    else:
        system.ended.put(None)


def _nothing(*_: Any) -> None:
    """Samples lie in memory already, and no query is held back."""


def _test_settings(loadgen: Any, asked: ScenarioSettings, pace: Pace) -> Any:
    found = loadgen.TestSettings()
    found.scenario = getattr(loadgen.TestScenario, _SCENARIOS[asked.scenario])
    found.mode = loadgen.TestMode.PerformanceOnly
    found.min_duration_ms = round(1000 * asked.seconds)
    found.min_query_count = asked.queries
    found.qsl_rng_seed, found.sample_index_rng_seed, found.schedule_rng_seed = (asked.seed + i for i in range(3))
    if asked.scenario == "single_stream":
        found.single_stream_expected_latency_ns = max(1, round(1e9 * pace.shortest_s))
    elif asked.scenario == "offline":
        found.offline_expected_qps = _OFFLINE_SLACK * pace.samples_per_s
    elif asked.target_latency_ms is not None and asked.target_qps is not None:
        found.server_target_latency_ns = round(1e6 * asked.target_latency_ms)
        found.server_target_qps = asked.target_qps
        behind_s = max(_STALL_S, _STALL_LATENCIES * asked.target_latency_ms / 1000)
        found.server_max_async_queries = max(_FEWEST_OUTSTANDING, round(asked.target_qps * behind_s))
    return found


def _logs(folder: Path) -> Any:
    loadgen: Any = importlib.import_module("mlperf_loadgen")
    found = loadgen.LogSettings()
    found.log_output.outdir = str(folder)
    found.log_output.copy_summary_to_stdout = False
    found.enable_trace = False
    return found


def _words(error: BaseException) -> dict[str, str | None]:
    if isinstance(error, OptimizerError):
        return {"what": error.what, "where": error.where, "hint": error.hint}
    text = " ".join(str(error).split())
    return {"what": f"{type(error).__name__}: {text}" if text else type(error).__name__, "where": None, "hint": None}
