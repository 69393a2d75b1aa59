"""What must hold of the measurements that a recipe asks for besides accuracy and latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.errors import UsageError
from optimizer.recipe.model import LoadGen, Measure
from optimizer.recipe.sections import Draft
from optimizer.recipe.wording import KeyPath, Problems

if TYPE_CHECKING:
    from optimizer.measure.loadgen import Scenario


def check_load(draft: Draft, measure: Measure, problems: Problems) -> None:
    """Note a scenario that lacks or contradicts its settings, and batches or workers that cannot be."""
    if measure.scenario is None:
        if measure.loadgen is not None:
            text = "has no effect without scenario: single_stream, offline or server"
            problems.cross(("measure", "loadgen"), text, at_key=True)
    else:
        _scenario(measure.scenario, measure.loadgen or LoadGen(), problems)
    most = max(measure.concurrency, default=1)
    if most > measure.threads:
        text = f"{most} runners at once on {measure.threads} threads would wait for each other: write threads: {most}"
        problems.cross(("measure", "concurrency"), text, ("measure", "threads"))
    axis = draft.batch
    if measure.scenario is not None and isinstance(axis, int):
        _fixed(axis, measure, problems)
    if measure.sweep is not None and isinstance(axis, int):
        problems.cross(("measure", "sweep"), f"has nothing to sweep: the batch is fixed to {axis}", at_key=True)
    covered = draft.profile.get(axis) if isinstance(axis, str) else None
    if measure.sweep is not None and measure.sweep.batches is None and isinstance(axis, str) and covered is None:
        problems.cross(("measure", "sweep"), f"needs batches: [1, 2, 4], or the range profile.{axis}", at_key=True)
    listed = measure.sweep.batches if measure.sweep is not None and measure.sweep.batches is not None else ()
    asked: list[tuple[KeyPath, int]] = [(("measure", "sweep", "batches", i), batch) for i, batch in enumerate(listed)]
    if measure.loadgen is not None:
        asked.append((("measure", "loadgen", "batch"), measure.loadgen.batch))
    for path, batch in asked:
        if covered is not None and not covered.min <= batch <= covered.max:
            text = f"batch {batch} lies outside profile.{axis}, {covered.min} to {covered.max}"
            problems.cross(path, text, ("profile", str(axis)))


def _scenario(scenario: Scenario, asked: LoadGen, problems: Problems) -> None:
    from optimizer.measure.loadgen import ScenarioSettings

    try:
        ScenarioSettings(scenario, **asked.model_dump())
    except UsageError as error:
        hint = f", e.g. {', '.join(error.hint.splitlines())}" if error.hint else ""
        problems.cross(("measure", "scenario"), f"{error.what}{hint}")


def _fixed(batch: int, measure: Measure, problems: Problems) -> None:
    """Note a scenario whose calls a model of fixed batch does not take."""
    asked = measure.loadgen.batch if measure.loadgen is not None else 1
    if asked == batch:
        return
    text = f"asks {asked} at a time, and the inputs are fixed to {batch}: "
    one = measure.scenario == "single_stream"
    problems.cross(("measure", "scenario"), text + ("name the axis" if one else f"write loadgen: {{batch: {batch}}}"))
