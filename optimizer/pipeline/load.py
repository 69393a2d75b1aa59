"""What a recipe asks to be measured besides accuracy and latency: memory, energy, load, batches, a trace."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_json
from optimizer.environment import installed
from optimizer.errors import MeasurementError, MissingToolError, OptimizerError
from optimizer.pipeline.bench import Bench, Measured, conditions, identity, store, writer
from optimizer.pipeline.feeds import feed, usual_sizes, usual_start

if TYPE_CHECKING:
    from optimizer.data.samples import Array
    from optimizer.measure.loadgen import ScenarioSettings
    from optimizer.pipeline.subject import Subject
    from optimizer.recipe.model import Recipe
    from optimizer.store import Entry

LOGS = "loadgen"  # the folder of LoadGen's logs
TRACES = "traces"  # in a run, of one inference each
TRACE = "trace.json"  # the events of one inference
_MOST_SAMPLES = 256  # that LoadGen asks for
_CALLED = {"scenario": "loadgen"}  # what a person reads of a part, where it is not the part's own name


def check_load_tools(recipe: Recipe) -> None:
    """Refuse a recipe whose measurements lack a tool, before anything is built.

    Raises: MissingToolError.
    """
    from optimizer.measure.loadgen import missing

    sentence = missing() if recipe.measure.scenario is not None else None
    if sentence is not None:
        raise MissingToolError(sentence, where="measure.scenario")


def measure_load(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Measure what the recipe asks for of every subject, one thing after another, each alone on the machine.

    Each is stored by itself: what fails is an error of the run, and takes nothing from what else is known.
    """
    asked = _asked(bench.recipe, usual_sizes(bench.recipe, subjects[0].artifact.inputs) if subjects else {})
    for subject in subjects:
        known: dict[str, Entry] = {}
        load = _Load(subject, bench)
        for done, (part, settings) in enumerate(asked.items()):
            document = {
                "measurement": "load",
                "part": part,
                "asked": settings,
                "candidate": identity(subject),
                **conditions(bench),
            }
            key = sha256_json(document)
            entry = None if bench.remeasure else bench.store.use(key)
            name, outcome, started = f"{subject.name}/{_CALLED.get(part, part)}", "reused", time.perf_counter()
            if entry is None:
                bench.progress.advance(name, done, len(asked))
                outcome = "measured"
                try:
                    entry = load.measure(part, key, document)
                except OptimizerError as error:
                    measured.errors.append(error)
                    bench.progress.step(name, "failed", None, None, error.render())
                    continue
            known[part] = entry
            seconds = time.perf_counter() - started if outcome == "measured" else None
            bench.progress.step(name, outcome, seconds, key)
        if known:
            measured.load[subject.name] = known


def _asked(recipe: Recipe, usual: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return each measurement that the recipe asks for, with all that it depends on besides `conditions`.

    `usual` are the sizes that choose the samples of all but LoadGen, which is given samples of every size.
    """
    settings = recipe.measure
    sizes: dict[str, Any] = {"usual_sizes": dict(usual)} if usual else {}
    batch, seconds = {"batch": settings.batches[0], **sizes}, {"seconds": settings.seconds}
    asked: dict[str, dict[str, Any]] = {}
    if settings.resources:
        asked |= {"memory": batch, "energy": batch | seconds}
    if settings.scenario is not None:
        scenario = _scenario(recipe)
        asked["scenario"] = dataclasses.asdict(scenario) | {"tool": installed(["mlcommons-loadgen"]), "watched": True}
    if settings.sweep is not None:
        asked["sweep"] = settings.sweep.model_dump(mode="json") | {"batches": list(_swept(recipe))} | seconds | sizes
    if settings.concurrency:
        asked["concurrency"] = {"levels": list(settings.concurrency)} | batch | seconds
    if settings.trace:
        asked["trace"] = batch
    return asked


def _scenario(recipe: Recipe) -> ScenarioSettings:
    from optimizer.measure.loadgen import ScenarioSettings
    from optimizer.recipe.model import LoadGen

    assert recipe.measure.scenario is not None
    return ScenarioSettings(recipe.measure.scenario, **(recipe.measure.loadgen or LoadGen()).model_dump())


def _swept(recipe: Recipe) -> tuple[int, ...]:
    """Return the batches of the sweep: as written, or doubled from the profile's smallest to its largest."""
    from optimizer.measure.sweep import doubled_batches

    assert recipe.measure.sweep is not None
    if recipe.measure.sweep.batches is not None:
        return recipe.measure.sweep.batches
    covered = recipe.profile[str(recipe.batch_axis)]
    return doubled_batches(covered.max, covered.min)


class _Load:
    """One subject's measurements."""

    def __init__(self, subject: Subject, bench: Bench) -> None:
        self._subject, self._bench = subject, bench
        self._settings = bench.recipe.measure
        self._inputs = subject.artifact.inputs
        self._threads = self._settings.threads
        self._processors: tuple[int, ...] = ()  # that the part which is measured is pinned to

    def measure(self, part: str, key: str, document: dict[str, Any]) -> Entry:
        """Measure one part and store it, with the files that it leaves.

        Raises: OptimizerError of what failed.
        """
        from optimizer.measure.affinity import pinned

        measures: dict[str, Callable[[Path], Any]] = {
            "memory": self._memory,
            "energy": self._energy,
            "scenario": self._scenario,
            "sweep": self._sweep,
            "concurrency": self._concurrency,
            "trace": self._trace,
        }
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="optimizer-") as folder:
            place = Path(folder)
            try:
                with pinned(self._threads) as self._processors:
                    found = {part: measures[part](place)}
            except (RuntimeError, ValueError) as error:  # a backend's own, of a bound call
                raise MeasurementError(f"{part} failed: {error}", where=self._subject.name) from error
            seconds = time.perf_counter() - started
            return store(self._bench, key, document, _keep(found, place), seconds)

    def _log(self, what: str) -> Path:
        """The folder of a child's log, which an error names: it must outlive the measurement."""
        return self._bench.logs / f"{self._subject.name}.{what}"

    @functools.cached_property
    def _start(self) -> int:
        usual = usual_sizes(self._bench.recipe, self._inputs)
        return usual_start(self._bench.splits.evaluation, self._inputs, usual)

    def _feed(self, batch: int) -> dict[str, Array]:
        """The very samples that latency is timed with."""
        return feed(self._bench.splits.evaluation, self._inputs, batch, self._start)

    def _memory(self, _: Path) -> Any:
        from optimizer.measure.memory import measure_memory

        runner = self._subject.runner(self._threads)
        batch = self._settings.batches[0]
        found = measure_memory(runner, self._feed(batch), folder=self._log("memory"), name=self._subject.name)
        return {"batch": batch, **found.to_json()}

    def _energy(self, _: Path) -> Any:
        from optimizer.measure.energy import energy_mj_per_item

        batch = self._settings.batches[0]
        with self._subject.runner(self._threads) as runner:
            call = runner.bind(self._feed(batch))
            found = energy_mj_per_item(call, batch, self._settings.seconds, device=self._subject.device)
        return {"batch": batch, **found.to_json()}

    def _scenario(self, place: Path) -> Any:
        from optimizer.measure.bystanders import watched
        from optimizer.measure.loadgen import run_scenario

        samples = self._bench.splits.evaluation
        feeds = [feed(samples, self._inputs, 1, i) for i in range(min(_MOST_SAMPLES, len(samples)))]
        runner, name = self._subject.runner(self._threads), self._subject.name
        with watched(self._processors) as others:
            result = run_scenario(runner, feeds, _scenario(self._bench.recipe), place / LOGS, name=name)
        return result.to_json() | {"disturbed": list(others.said)}

    def _sweep(self, _: Path) -> Any:
        from optimizer.measure.sweep import sweep

        asked = self._settings.sweep
        assert asked is not None
        curve = sweep(
            lambda: self._subject.runner(self._threads),
            self._feed,
            _swept(self._bench.recipe),
            seconds=self._settings.seconds,
            budget_ms=asked.budget_ms,
            percentile=asked.percentile,
        )
        return curve.to_json()

    def _concurrency(self, _: Path) -> Any:
        from optimizer.measure.concurrency import measure_concurrency

        found = measure_concurrency(
            self._subject.runner,
            self._feed(self._settings.batches[0]),
            self._settings.concurrency,
            threads=self._threads,
            seconds=self._settings.seconds,
        )
        return [load.to_json() for load in found]

    def _trace(self, place: Path) -> Any:
        with self._subject.runner(self._threads) as runner:
            events = runner.trace(self._feed(self._settings.batches[0]))
        (place / TRACE).write_text(json.dumps(events))
        return len(events)


def _keep(found: dict[str, Any], place: Path) -> Callable[[Path], None]:
    write = writer(found, {})

    def everything(folder: Path) -> None:
        write(folder)
        for name in (LOGS, TRACE):
            source = place / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copyfile(source, folder / name)

    return everything


def place_load(measured: Measured, run: Path) -> None:
    """Copy LoadGen's logs and the traces into the run; what an earlier run left there goes first."""
    for folder in (LOGS, TRACES):
        shutil.rmtree(run / folder, ignore_errors=True)
    for name, parts in measured.load.items():
        if "scenario" in parts:
            shutil.copytree(parts["scenario"].artifact("measurement").path / LOGS, run / LOGS / name)
        if "trace" in parts:
            (run / TRACES).mkdir(exist_ok=True)
            shutil.copyfile(parts["trace"].artifact("measurement").path / TRACE, run / TRACES / f"{name}.json")
