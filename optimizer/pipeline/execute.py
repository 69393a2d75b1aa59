"""Run or reuse the steps of a plan, check each output against its parent, and keep going when one fails."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.checkpoint import MODULE_FILE, read_description
from optimizer.errors import OptimizerError, RecipeError, StageError, UsageError
from optimizer.isolated.standby import standing_by
from optimizer.peak_memory import peak_rss_bytes, reset_peak_rss
from optimizer.pipeline.feeds import check_feeds
from optimizer.pipeline.kept import refused
from optimizer.pipeline.plan import Plan, step_key
from optimizer.progress import Progress
from optimizer.recipe.sources import Source, read_sources
from optimizer.results import StageReport
from optimizer.stage import StageContext
from optimizer.types import Artifact, StageRecord, TensorSpec

if TYPE_CHECKING:
    from optimizer.data.splits import Splits
    from optimizer.recipe.model import Recipe
    from optimizer.recipe.steps import Step
    from optimizer.store import Entry, Store


@dataclass(slots=True)
class Executed:
    """What became of the steps: outputs of those that stand, the error of those that do not."""

    outputs: dict[str, Artifact] = field(default_factory=dict)
    reports: list[StageReport] = field(default_factory=list)
    failures: dict[str, OptimizerError] = field(default_factory=dict)
    documents: dict[str, Mapping[str, object]] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What executing a step needs besides the plan."""

    recipe: Recipe
    store: Store
    splits: Splits
    progress: Progress
    logs: Path
    device: str
    sources: Mapping[str, Source]
    locked: Mapping[str, str] | None = None  # the keys that every step must have

    def check_unchanged(self, names: Iterable[str]) -> None:
        """Refuse what was made from a source that changed meanwhile: its key speaks of what was there before.

        Raises: StageError naming the source.
        """
        wanted = [name for name in names if name in self.sources]
        now = read_sources(self.recipe, self.store.index) if wanted else {}
        for name in wanted:
            if now[name].artifact.digest != self.sources[name].artifact.digest:
                raise StageError(
                    f"'{name}' changed while it was read", where=self.recipe.path.name, hint="Run the build again."
                )


def execute(plan: Plan, shop: Workshop) -> Executed:
    """Bring every step's output into being. A failed step fails what hangs on it and nothing else."""
    done = Executed({name: source.artifact for name, source in plan.sources.items()})
    calls = {one.step.id: one.step.stage.preloads for one in plan.steps if not one.reusable and one.step.stage.preloads}
    ahead = [one.step for one in plan.steps if not one.reusable]
    with standing_by(calls.values()) as standby, _frozen():
        for step in plan.derivation.steps:
            _attempt(step, shop, done)
            if step.id in done.outputs:
                done.failures |= refused(step, ahead, done.outputs, done.failures)
            if calls.pop(step.id, None):  # a step that was reused after all, or failed, has called nobody
                standby.expect(calls.values())
    return done


def _attempt(step: Step, shop: Workshop, done: Executed) -> None:
    """Run or reuse a step, or note why that failed."""
    broken = next((s for s in step.sources.values() if s in done.failures), None)
    if broken is not None:
        done.failures[step.id] = done.failures[broken]
        note = f"not run: '{broken}' failed"
        done.reports.append(_report(step, None, None, False, (note,)))
        return
    if step.id in done.failures:  # refused as soon as its graph was there
        _failed(step, done.failures[step.id], shop, done)
        return
    try:
        _step(step, shop, done)
    except UsageError:
        raise
    except OptimizerError as error:
        _failed(step, error, shop, done)


def _failed(step: Step, error: OptimizerError, shop: Workshop, done: Executed) -> None:
    done.failures[step.id] = error
    done.reports.append(_report(step, None, None, False, (error.render(),)))
    shop.progress.step(step.id, "failed", None, None, error.render())  # its first line; all of it at the end


def _step(step: Step, shop: Workshop, done: Executed) -> None:
    started = time.perf_counter()
    key, document = step_key(step, done.outputs, shop.device, shop.recipe)
    done.documents[step.id] = document
    if shop.locked is not None and shop.locked.get(step.id) != key:
        raise RecipeError(
            f"the key of stage '{step.id}' is {key[:8]}, the locked one {shop.locked.get(step.id, 'none')[:8]}",
            where=f"{shop.recipe.path.name}, --locked",
            hint="optimize plan says what changed. If it is meant, build once without --locked.",
        )
    sources = {role: done.outputs[name] for role, name in step.sources.items()}
    entry, reused = shop.store.build(key, lambda workdir: _write(step, key, document, sources, workdir, shop))
    done.outputs[step.id] = entry.artifact(step.stage.produces)
    report = _report(step, key, entry, reused, entry.record.notes)
    done.reports.append(report.model_copy(update={"started_s": started - done.begun}))
    seconds = None if reused else time.perf_counter() - started
    shop.progress.step(step.id, "reused" if reused else "built", seconds, key)


def _report(step: Step, key: str | None, entry: Entry | None, reused: bool, notes: tuple[str, ...]) -> StageReport:
    return StageReport(
        id=step.id,
        stage=step.stage.name,
        variant=step.variant,
        key=key,
        reused=reused,
        seconds=entry.record.seconds if entry else 0.0,
        peak_rss_bytes=entry.record.peak_rss_bytes if entry else 0,
        output_sha256=entry.record.output_sha256 if entry else None,
        notes=notes,
    )


def _write(
    step: Step,
    key: str,
    document: Mapping[str, object],
    sources: Mapping[str, Artifact],
    workdir: Path,
    shop: Workshop,
) -> StageRecord:
    """Run the stage into `workdir` and check what it made; called with the key's lock held."""
    notes: list[str] = []
    log = shop.logs / f"{step.id.replace('/', '.')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    context = StageContext(
        log,
        notes.append,
        lambda what, n, total: shop.progress.advance(f"{step.id}: {what}", n, total),
        shop.splits,
    )
    started = time.perf_counter()
    with _peak_memory() as peak:
        step.stage.run(sources, workdir, context)
        inputs, outputs = read_interface(step.stage.produces, workdir)
        made = Artifact(step.stage.produces, workdir, "", inputs, outputs)
        notes += _check(step, sources, made, shop)
    shop.check_unchanged(step.sources.values())
    if "data" in step.stage.consumes.values():
        notes += shop.splits.replaced
    seconds = time.perf_counter() - started
    return StageRecord(step.stage.name, key, document, "", seconds, peak[0], tuple(notes), inputs, outputs)


def read_interface(kind: str, folder: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs that an artifact declares."""
    if kind == "onnx":
        from optimizer.graph.files import read_interface as read_onnx

        return read_onnx(folder / "model.onnx")
    if kind == "engine":
        import json

        about = json.loads((folder / "engine.json").read_text())
        return (
            tuple(TensorSpec.from_json(s) for s in about["inputs"]),
            tuple(TensorSpec.from_json(s) for s in about["outputs"]),
        )
    if kind == "checkpoint" and (folder / MODULE_FILE).is_file():
        return tuple(TensorSpec.from_json(s) for s in read_description(folder)["inputs"]), ()
    return (), ()


def _check(step: Step, sources: Mapping[str, Artifact], made: Artifact, shop: Workshop) -> list[str]:
    """Run the output against its parent on real inputs, or say why it cannot execute here."""
    if step.stage.tolerance is None:
        return []
    from optimizer.measure.agreement import DisagreementError
    from optimizer.verify import verify

    feeds = check_feeds(shop.recipe, shop.splits.evaluation, made.inputs)
    child = step.stage.open_output(made)
    if isinstance(child, str):
        return [child if child.startswith("unverified") else f"unverified: {child}"]
    try:
        with child, step.stage.open_parent(sources) as parent:
            return verify(parent, child, feeds, step.stage.tolerance, what=f"stage '{step.id}'")
    except DisagreementError as error:
        from optimizer.pipeline.blame import explained, of_stage

        chain = of_stage(step.id, step.stage, sources, made, step.stage.tolerance)
        raise explained(error, chain, shop.logs / f"{step.id.replace('/', '.')}.fault") from error


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """What a stage takes out of the garbage collector's sight (gc.freeze) comes back at the end."""
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Measure the peak resident memory of this process, or of its children if theirs was larger, in bytes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    reset_peak_rss()
    peak = [0]
    yield peak
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak[0] = max(peak_rss_bytes(), 1024 * after if after > children else 0)
