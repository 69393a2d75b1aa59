"""MLPerf LoadGen over a runner: single stream, offline, server; with LoadGen's own verdict, metrics and log."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optimizer.errors import MeasurementError, MissingToolError, UsageError
from optimizer.measure.fresh import measure_afresh
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

Scenario = Literal["single_stream", "offline", "server"]

SUMMARY, DETAIL = "mlperf_log_summary.txt", "mlperf_log_detail.txt"
MLPERF_SECONDS = 600.0  # mlperf.conf, min_duration of all three scenarios
FEWEST_QUERIES = 100
_MARK = ":::MLLOG "
_GRACE_S = 120.0  # to open the runners and to answer what was issued late
_SLOW_QUERY_S = 5.0
_OVERTIME = 10.0  # of the asked duration: a server that is overloaded answers long after the last query came


@dataclass(frozen=True, slots=True)
class ScenarioSettings:
    """What LoadGen is asked for. `target_latency_ms` and `target_qps` are the server's, and it must have both.

    `batch`: samples of one call, offline and at most in the server. `workers`: runners open at once, each in its own
    thread. `seconds` and `queries` are the least that LoadGen issues.
    Raises: UsageError for settings that the scenario cannot have.
    """

    scenario: Scenario
    seconds: float = 10.0
    queries: int = FEWEST_QUERIES
    target_latency_ms: float | None = None
    target_qps: float | None = None
    batch: int = 1
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        server = self.scenario == "server"
        missing = [name for name in ("target_latency_ms", "target_qps") if getattr(self, name) is None]
        if server and missing:
            raise self._wrong(f"needs {' and '.join(missing)}", "target_latency_ms: 50\ntarget_qps: 20")
        if not server and len(missing) < 2:
            raise self._wrong("has no target: only the server scenario has target_latency_ms and target_qps")
        if self.scenario == "single_stream" and (self.batch, self.workers) != (1, 1):
            raise self._wrong("is one sample after another: batch and workers are 1")
        numbers = {"seconds": self.seconds, "queries": self.queries, "batch": self.batch, "workers": self.workers}
        numbers |= {"target_latency_ms": self.target_latency_ms or 1, "target_qps": self.target_qps or 1}
        low = [f"{name} is {value:g}" for name, value in numbers.items() if value <= 0]
        if low or self.seed < 0:
            raise self._wrong(f"{', '.join(low) or f'seed is {self.seed}'}: it must be above 0")

    def _wrong(self, what: str, hint: str | None = None) -> UsageError:
        return UsageError(f"scenario {self.scenario} {what}", where="measure.scenario", hint=hint)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """LoadGen's verdict and numbers; units stand in the names. Timed from numpy to numpy, as `Runner.infer` runs.

    `deviations`: why this is no MLPerf result, whatever the verdict. `logs`: LoadGen's files in the folder.
    """

    settings: ScenarioSettings
    valid: bool
    reasons: tuple[str, ...]  # why it is not valid, by LoadGen
    metrics: Mapping[str, float | None]
    queries: int
    samples: int  # different ones, from the evaluation data
    loadgen_version: str
    deviations: tuple[str, ...]
    logs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def missing() -> str | None:
    """Return the sentence that says that LoadGen is absent, or None when it can run."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        return "needs mlcommons-loadgen, which is not installed: pip install mlcommons-loadgen"
    return None


def run_scenario(
    runner: Runner,
    feeds: Sequence[Feed],
    settings: ScenarioSettings,
    folder: Path,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
) -> ScenarioResult:
    """Run one scenario over the runner, in a child process; `folder` keeps LoadGen's logs.

    `feeds` are real samples, one each, with a batch axis of 1; `name` is the candidate's in errors. A run that takes
    longer than `timeout_s` is stopped; by default ten times what was asked, 5 s a query and two minutes.
    The child is there because LoadGen is native and global: an exception that leaves one of its callbacks ends the
    process with SIGSEGV, at its exit if not before (6.0.17), and a test that has begun cannot be stopped.
    Raises: MissingToolError without LoadGen; MeasurementError, `where` naming the candidate, when the runner fails.
    """
    sentence = missing()
    if sentence:
        raise MissingToolError(sentence, where="measure.scenario")
    if not feeds:
        raise MeasurementError("no samples to ask", where=name or runner.runtime)
    folder.mkdir(parents=True, exist_ok=True)
    answer = measure_afresh(
        "optimizer.measure.loadgen_child:generate",
        runner,
        feeds,
        folder=folder,
        timeout_s=timeout_s or _GRACE_S + _OVERTIME * settings.seconds + _SLOW_QUERY_S * settings.queries,
        name=name,
        settings=asdict(settings),
        logs=str(folder),
    )
    if answer["error"]:
        said = answer["error"]
        raise MeasurementError(
            f"failed under LoadGen ({settings.scenario}): {said['what']}",
            where=name or f"{runner.runtime} on {runner.device}",
            hint=said["hint"],
        )
    return read_result(folder, settings, len(feeds))


def read_result(folder: Path, settings: ScenarioSettings, samples: int) -> ScenarioResult:
    """Read LoadGen's detail log: what MLPerf's submission checker reads too.

    Raises: MeasurementError when the log is not whole.
    """
    log = _Log.read(folder / DETAIL)
    valid = log.get("result_validity") == "VALID"
    version = str(log.get("loadgen_version")).partition(" ")[0]
    return ScenarioResult(
        settings=settings,
        valid=valid,
        reasons=() if valid else _reasons(log, settings),
        metrics=_METRICS[settings.scenario](log),
        queries=int(log.get("result_query_count")),
        samples=samples,
        loadgen_version=version,
        deviations=_deviations(settings, samples),
        logs=tuple(sorted(path.name for path in folder.glob("mlperf_log_*") if path.stat().st_size)),
    )


@dataclass(frozen=True, slots=True)
class _Log:
    """The lines of a detail log: the last value of each key, and what LoadGen called an error."""

    path: Path
    values: Mapping[str, Any]
    errors: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> _Log:
        values: dict[str, Any] = {}
        errors: list[str] = []
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise MeasurementError(f"LoadGen left no log: {error}", where=path.name) from error
        for line in lines:
            if not line.startswith(_MARK):
                continue
            try:
                entry = json.loads(line.removeprefix(_MARK))
            except ValueError:  # C++ writes inf and nan bare; whoever asks for that key is told that it is missing
                continue
            values[entry["key"]] = entry["value"]
            if entry["metadata"]["is_error"]:
                errors.append(f"{entry['key']}: {entry['value']}")
        return cls(path, values, tuple(errors))

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise MeasurementError(f"LoadGen's log has no '{key}'", where=self.path.name, hint=f"log: {self.path}")
        return self.values[key]

    def latency_ms(self, percentile: str) -> float:
        return float(self.get(f"result_{percentile}_percentile_latency_ns")) / 1e6


def _single_stream(log: _Log) -> dict[str, float | None]:
    early = float(log.get("early_stopping_latency_ss"))  # 0 where there were too few queries for it
    return {
        "p50_latency_ms": log.latency_ms("50.00"),
        "p90_latency_ms": log.latency_ms("90.00"),
        "p99_latency_ms": log.latency_ms("99.00"),
        "early_stopping_p90_latency_ms": early / 1e6 if early else None,
        "queries_per_second": float(log.get("result_qps_with_loadgen_overhead")),
    }


def _offline(log: _Log) -> dict[str, float | None]:
    return {"samples_per_second": float(log.get("result_samples_per_second"))}


def _server(log: _Log) -> dict[str, float | None]:
    return {
        "target_qps": float(log.get("requested_server_target_qps")),
        "target_latency_ms": float(log.get("requested_server_target_latency_ns")) / 1e6,
        "scheduled_qps": float(log.get("result_scheduled_samples_per_sec")),
        "completed_qps": float(log.get("result_completed_samples_per_sec")),
        "p50_latency_ms": log.latency_ms("50.00"),
        "p90_latency_ms": log.latency_ms("90.00"),
        "p99_latency_ms": log.latency_ms("99.00"),
        "late_queries": float(log.get("result_overlatency_query_count")),
    }


_METRICS = {"single_stream": _single_stream, "offline": _offline, "server": _server}


def _reasons(log: _Log, settings: ScenarioSettings) -> tuple[str, ...]:
    """Say why LoadGen calls it INVALID, in its own words where it has some."""
    found = []
    if not log.values.get("result_perf_constraints_met", True):
        found.append(f"p99 {log.latency_ms('99.00'):.4g} ms is above the target of {settings.target_latency_ms:g} ms")
    if not log.get("result_min_duration_met"):
        found.append(f"min duration not satisfied: {settings.seconds:g} s")
    if not log.get("result_min_queries_met"):
        found.append(f"min queries not satisfied: {settings.queries}")
    if not log.get("early_stopping_met"):
        words = str(log.get("early_stopping_result")).replace("*", "").split()
        found.append(f"early stopping not satisfied: {' '.join(words)}")
    own = " ".join(str(log.values.get("result_invalid_reason", "")).split())
    return (*found, *([own] if own else []), *log.errors)


def _deviations(settings: ScenarioSettings, samples: int) -> tuple[str, ...]:
    """Say in what this differs from MLPerf's rules: such a number must not be called an MLPerf result."""
    found = ["not submitted to and not verified by MLCommons", f"own model, {samples} samples of own data, own seeds"]
    if settings.seconds < MLPERF_SECONDS:
        found.insert(0, f"shortened: at least {settings.seconds:g} s instead of {MLPERF_SECONDS:g} s")
    return tuple(found)
