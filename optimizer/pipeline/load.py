"""What a recipe asks to be measured besides accuracy and latency: memory, energy, load, batches, a trace."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_json
from optimizer.errors import OptimizerError
from optimizer.pipeline.bench import Bench, Measured, conditions, identity, store, writer
from optimizer.pipeline.feeds import feed

if TYPE_CHECKING:
    from optimizer.data.samples import Array
    from optimizer.pipeline.subject import Subject

LOGS = "loadgen"  # the folder of LoadGen's logs
TRACE = "trace.json"  # the events of one inference
_MOST_SAMPLES = 256  # that LoadGen asks for


def measure_load(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Measure what the recipe asks for of every subject, one after another, each alone on the machine.

    What fails is an error of the run, and takes nothing from what else is known of the candidate.
    """
    settings = bench.recipe.measure
    asked = settings.model_dump(
        mode="json", include={"resources", "scenario", "loadgen", "sweep", "concurrency", "trace", "seconds", "batches"}
    )
    if not any((settings.resources, settings.scenario, settings.sweep, settings.concurrency, settings.trace)):
        return
    for subject in subjects:
        document = {"measurement": "load", "candidate": identity(subject), "asked": asked, **conditions(bench)}
        key = sha256_json(document)
        entry = None if bench.remeasure else bench.store.use(key)
        if entry is None:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="optimizer-") as place:
                found = _Load(subject, bench, Path(place)).measure(measured.errors)
                if found is None:
                    continue
                seconds = time.perf_counter() - started
                entry = store(bench, key, document, _keep(found, Path(place)), seconds)
            bench.progress.step(f"load {subject.name}", "measured", seconds, None)
        measured.load[subject.name] = entry


def _keep(found: dict[str, Any], place: Path) -> Any:
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


class _Load:
    """One subject's measurements; `place` is a folder for logs."""

    def __init__(self, subject: Subject, bench: Bench, place: Path) -> None:
        self._subject, self._bench, self._place = subject, bench, place
        self._settings = bench.recipe.measure
        self._inputs = subject.artifact.inputs
        self._threads = self._settings.threads

    def measure(self, errors: list[OptimizerError]) -> dict[str, Any] | None:
        """Return all that was asked for, or None where some of it failed; `errors` gains why."""
        from optimizer.measure.affinity import pinned

        parts = {
            "memory": self._memory if self._settings.resources else None,
            "energy": self._energy if self._settings.resources else None,
            "scenario": self._scenario if self._settings.scenario else None,
            "sweep": self._sweep if self._settings.sweep else None,
            "concurrency": self._concurrency if self._settings.concurrency else None,
            "trace": self._trace if self._settings.trace else None,
        }
        found: dict[str, Any] = {}
        before = len(errors)
        with pinned(self._threads):
            for name, part in parts.items():
                if part is None:
                    continue
                try:
                    found[name] = part()
                except OptimizerError as error:
                    errors.append(error)
        return found if len(errors) == before else None

    def _feed(self, batch: int, start: int = 0) -> dict[str, Array]:
        return feed(self._bench.splits.evaluation, self._inputs, batch, start)

    def _memory(self) -> Any:
        from optimizer.measure.memory import measure_memory

        runner = self._subject.runner(self._threads)
        batch = self._settings.batches[0]
        found = measure_memory(runner, self._feed(batch), folder=self._place / "memory", name=self._subject.name)
        return {"batch": batch, **found.to_json()}

    def _energy(self) -> Any:
        from optimizer.measure.energy import energy_mj_per_item

        batch = self._settings.batches[0]
        with self._subject.runner(self._threads) as runner:
            call = runner.bind(self._feed(batch))
            found = energy_mj_per_item(call, batch, self._settings.seconds, device=self._subject.device)
        return {"batch": batch, **found.to_json()}

    def _scenario(self) -> Any:
        from optimizer.measure.loadgen import ScenarioSettings, run_scenario
        from optimizer.recipe.model import LoadGen

        assert self._settings.scenario is not None
        asked = ScenarioSettings(self._settings.scenario, **(self._settings.loadgen or LoadGen()).model_dump())
        samples = self._bench.splits.evaluation
        fixed = isinstance(self._inputs[0].shape[0], int)
        size = int(self._inputs[0].shape[0]) if fixed else 1
        feeds = [self._feed(size, i) for i in range(min(_MOST_SAMPLES, len(samples)))]
        runner = self._subject.runner(self._threads)
        return run_scenario(runner, feeds, asked, self._place / LOGS, name=self._subject.name).to_json()

    def _sweep(self) -> Any:
        from optimizer.measure.sweep import doubled_batches, sweep

        asked = self._settings.sweep
        assert asked is not None
        batches = asked.batches
        if batches is None:
            covered = self._bench.recipe.profile[str(self._bench.recipe.batch_axis)]
            batches = doubled_batches(covered.max, covered.min)
        curve = sweep(
            lambda: self._subject.runner(self._threads),
            self._feed,
            batches,
            seconds=self._settings.seconds,
            budget_ms=asked.budget_ms,
            percentile=asked.percentile,
        )
        return curve.to_json()

    def _concurrency(self) -> Any:
        from optimizer.measure.concurrency import measure_concurrency

        found = measure_concurrency(
            self._subject.runner,
            self._feed(self._settings.batches[0]),
            self._settings.concurrency,
            threads=self._threads,
            seconds=self._settings.seconds,
        )
        return [load.to_json() for load in found]

    def _trace(self) -> Any:
        with self._subject.runner(self._threads) as runner:
            events = runner.trace(self._feed(self._settings.batches[0]))
        (self._place / TRACE).write_text(json.dumps(events))
        return len(events)


def place_load(measured: Measured, run: Path) -> None:
    """Copy LoadGen's logs and the traces into the run."""
    for name, entry in measured.load.items():
        folder = entry.artifact("measurement").path
        if (folder / LOGS).is_dir():
            shutil.copytree(folder / LOGS, run / LOGS / name)
        if (folder / TRACE).is_file():
            (run / "traces").mkdir(exist_ok=True)
            shutil.copyfile(folder / TRACE, run / "traces" / f"{name}.json")
