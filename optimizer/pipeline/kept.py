"""A `keep:` that names nothing, and a graph that cannot be learned through: told as soon as the graph is there.

Calibration and learning would be paid for otherwise before they are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.errors import OptimizerError, StageError
from optimizer.types import Artifact

if TYPE_CHECKING:
    import onnx

    from optimizer.recipe.steps import Step


def refused(
    made: Step, ahead: Sequence[Step], outputs: Mapping[str, Artifact], failed: Collection[str]
) -> dict[str, OptimizerError]:
    """Return the steps that need not be run now that `made` has written its graph, each with the error.

    They are those that would refuse that graph or their `keep` on it once they have their calibration, and what only
    leads to them. `ahead` are the steps that a build has to run, `failed` those that did not come about.
    """
    asking = [step for step in ahead if step.id not in failed and _read(step) == made.id]
    if not asking:
        return {}
    import onnx

    model = onnx.load(outputs[made.id].file, load_external_data=False)
    found: dict[str, OptimizerError] = {}
    for step in asking:
        error = _wrong(step, model)
        if error is not None:
            found |= dict.fromkeys([step.id, *_leading_to(step, ahead, outputs)], error)
    return found


def _read(step: Step) -> str | None:
    """Return the step whose graph tells whether this one would refuse it; None where no graph does."""
    if step.stage.name == "refine":
        return step.sources["float32"]
    return step.sources["graph"] if _keeps(step) else None


def _keeps(step: Step) -> bool:
    """Tell whether the step leaves in float what the recipe names, of a graph that is calibrated first."""
    stage = step.stage
    return stage.produces == "onnx" and "table" in step.sources and bool(getattr(stage, "keep", ()))


def _wrong(step: Step, model: onnx.ModelProto) -> StageError | None:
    from optimizer.graph.differentiable_paths import check_gradients
    from optimizer.graph.keep import match
    from optimizer.graph.modules import modules_of

    try:
        if step.stage.name == "refine":
            check_gradients(model, learned=getattr(step.stage, "rounding", "") == "learned")
            return None
        match(getattr(step.stage, "keep", ()), model.graph.node, step.stage.name, modules_of(model))
    except StageError as error:
        return error
    return None


def _leading_to(step: Step, ahead: Sequence[Step], outputs: Mapping[str, Artifact]) -> list[str]:
    """Return the steps of the same variant that this one still waits for."""
    own = {one.id: one for one in ahead if one.variant == step.variant and one.id not in outputs}
    found: list[str] = []
    waiting = [step]
    while waiting:
        before = [own[name] for name in waiting.pop().sources.values() if name in own]
        found += [one.id for one in before]
        waiting += before
    return found
