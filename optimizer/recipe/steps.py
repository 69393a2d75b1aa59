"""Derive the steps and candidates of a recipe: what runs on what, in which order. Nothing here runs anything."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.source import to_specs
from optimizer.errors import UsageError
from optimizer.recipe.here import with_the_gpu_here
from optimizer.stages import CHECKPOINT_KINDS, DIALECTS, OF_MODULE, TARGETS, VARIANTS
from optimizer.stages.adopt import Adopt
from optimizer.stages.collect import Collect
from optimizer.stages.export import Export
from optimizer.stages.simplify import Simplify

if TYPE_CHECKING:
    from optimizer.recipe.model import Recipe, Variant
    from optimizer.stage import Stage


@dataclass(frozen=True, slots=True)
class Step:
    """A stage with its parameters, and for each role the step or source (`checkpoint`, `code`, ...) that feeds it."""

    id: str
    stage: Stage
    sources: Mapping[str, str]
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant on a target. `step` makes what ships, `graph` the ONNX that it was made from."""

    variant: str
    precision: str
    target: str
    step: str
    graph: str | None

    @property
    def name(self) -> str:
        """`<variant>@<target>`."""
        return f"{self.variant}@{self.target}"


@dataclass(frozen=True, slots=True)
class Derivation:
    """All steps in an order that can be executed, and the candidates; the first candidate is the baseline."""

    steps: tuple[Step, ...]
    candidates: tuple[Candidate, ...]

    @property
    def baseline(self) -> Candidate:
        """What everything is compared with."""
        return self.candidates[0]


def starts_from_onnx(recipe: Recipe) -> bool:
    """Tell whether the recipe begins with an ONNX file, so that its FP32 self is the baseline."""
    return Path(recipe.model.checkpoint).suffix == ".onnx"


def derive(recipe: Recipe, only: Iterable[str] = (), *, here: bool = True) -> Derivation:
    """Derive steps and candidates; `only` keeps these variants beside the baseline.

    `here` False leaves open for which GPU an engine is that is for the one here.

    Raises: MissingToolError or RecipeError where an engine is for the GPU here, and there is none or an unfit one.
    """
    wanted = set(only)
    recipe = with_the_gpu_here(recipe, wanted) if here else recipe
    steps: dict[str, Step] = {}
    candidates: list[Candidate] = []
    if starts_from_onnx(recipe):
        adopt = Adopt(inputs=tuple(recipe.inputs), outputs=recipe.model.outputs)
        _add(steps, Step("adopt", adopt, {"checkpoint": "checkpoint"}))
        source = "adopt"
        candidates.append(Candidate("fp32", "fp32", "onnxruntime", "adopt", "adopt"))
    else:
        collect = _collect(recipe)
        _add(steps, Step("collect", collect, {role: role for role in collect.roles}))
        _add(steps, Step("export", Export(), {"module": "collect"}))
        source = "export"
        candidates.append(Candidate("fp32", "fp32", "torch", "collect", None))
    # Not the batch: shares are of one sample, and another batch shall not build everything anew.
    usual = {axis: r.opt for axis, r in recipe.profile.items() if axis != recipe.batch_axis}
    _add(steps, Step("simplify", Simplify(usual=usual), {"graph": source}))
    for name, variant in recipe.variants.items():
        if wanted and name not in wanted:
            continue
        for target in recipe.targets:
            if variant.targets and target not in variant.targets:
                continue
            if target in OF_MODULE:
                candidate = Candidate(name, variant.precision, target, "collect", None)
            else:
                graph = _variant_steps(recipe, name, target, steps)
                candidate = _target_steps(recipe, name, target, graph, steps)
            if candidate.name not in {c.name for c in candidates}:
                candidates.append(candidate)
    return Derivation(tuple(steps.values()), tuple(candidates))


def _add(steps: dict[str, Step], step: Step) -> str:
    steps.setdefault(step.id, step)
    return step.id


def _collect(recipe: Recipe) -> Collect:
    model = recipe.model
    inputs = [s.to_json() | {"keyword": recipe.inputs[s.name].keyword} for s in to_specs(recipe.inputs)]
    file, _, function = (model.factory or "").partition(":")
    folder = (recipe.folder / file).parent
    return Collect(
        kind=CHECKPOINT_KINDS[Path(model.checkpoint).suffix],
        function=function or None,
        arguments=dict(model.arguments),
        files=tuple(os.path.relpath(recipe.folder / name, folder) for name in model.files),
        state_key=model.key,
        strip_prefix=model.strip_prefix,
        trust=model.trust,
        inputs=tuple(inputs),
        outputs=model.outputs,
    )


def _variant_steps(recipe: Recipe, name: str, target: str, steps: dict[str, Step]) -> str:
    """Add the steps from the simplified graph to the variant's; those that no target changes are shared."""
    variant = recipe.variants[name]
    # role -> the source, or the newest step, that fills it
    made = {"graph": "simplify", "float32": "simplify", "evaluation": "evaluation"}
    if recipe.data.calibration is not None:
        made["samples"] = "calibration"
    for kind in VARIANTS[variant.precision]:
        if not kind.wanted(variant.options):
            continue
        derived = _derived(recipe, kind, target, name)
        if not kind.follows_target(variant.options):
            derived = {field: value for field, value in derived.items() if field not in _OF_TARGET}
        place = name
        if _OF_TARGET & derived.keys() or "@" in made["graph"]:
            place = f"{name}@{DIALECTS[target]}"
            if "dialects" in derived:
                derived["dialects"] = (DIALECTS[target],)
        sources = {role: made[role] for role in kind.consumes if role in made or role not in kind.optional}
        step = Step(f"{place}/{kind.name}", _make(kind, variant.options, derived), sources, name)
        _add(steps, step)
        if kind.produces in _ROLES:  # a diagnosis is read by people alone
            made[_ROLES[kind.produces]] = step.id
        if kind.keeps_float32:
            made["float32"] = step.id
    return made["graph"]


_OF_TARGET = {"dialect", "package", "profile"}  # derived fields that differ from target to target
# What a stage makes, and the role in which later stages of its variant read it.
_ROLES = {"onnx": "graph", "calibration": "table"}


def _target_steps(recipe: Recipe, name: str, target: str, graph: str, steps: dict[str, Step]) -> Candidate:
    last = graph
    for kind in TARGETS[target]:
        stage = _make(kind, _found(recipe, recipe.targets[target].options), _derived(recipe, kind, target, name))
        last = _add(steps, Step(f"{name}@{target}/{kind.name}", stage, {"graph": last}, name))
    return Candidate(name, recipe.variants[name].precision, target, last, graph)


def _found(recipe: Recipe, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a target's options with its file found from the recipe's folder."""
    cache = options.get("timing_cache")
    if cache is None:
        return options
    return {**options, "timing_cache": cache.model_copy(update={"path": str(recipe.resolve(cache.path))})}


def _make(kind: type[Stage], options: Mapping[str, Any], derived: Mapping[str, Any]) -> Stage:
    own = {k: v for k, v in options.items() if k in kind.model_fields and v is not None}
    return kind(**own, **derived)


def _derived(recipe: Recipe, kind: type[Stage], target: str, name: str) -> dict[str, Any]:
    """Fill the fields that follow from the target and the rest of the recipe."""
    known = {
        "dialect": DIALECTS[target],
        "package": target,
        "precision": recipe.variants[name].precision,
        "at_least": at_least(recipe.variants[name]),
        "dialects": _dialects(recipe, recipe.variants[name]),
        "integer_sums": recipe.variants[name].options.get("residuals") == "int8",
        "synthetic": recipe.data.calibration is not None and recipe.data.calibration.synthetic,
        "profile": {axis: (r.min, r.opt, r.max) for axis, r in recipe.profile.items()},
    }
    marked = [n for n, f in kind.model_fields.items() if (f.json_schema_extra or {}) == {"derived": True}]
    return {name: known[name] for name in marked}


def _dialects(recipe: Recipe, variant: Variant) -> tuple[str, ...]:
    """Return the dialects whose ranges the variant asks for, sorted: those of its targets; fp8 has TensorRT's alone.

    Residual sums in int8 ask for all ranges, whatever the targets.
    """
    if variant.precision == "fp8":
        return ("tensorrt",)
    if variant.options.get("residuals") == "int8":
        return ("cpu", "tensorrt")
    built = (target for target in variant.targets or recipe.targets if target not in OF_MODULE)
    return tuple(sorted({DIALECTS[target] for target in built}))


def at_least(variant: Variant) -> float:
    """Return the share that must be delivered in the variant's precision: as written, else its stage's default."""
    defaults = [k.model_fields["at_least"].default for k in VARIANTS[variant.precision] if "at_least" in k.model_fields]
    share: float = variant.options.get("at_least", defaults[0] if defaults else 0.0)
    return share


def check_only(recipe: Recipe, only: Iterable[str]) -> None:
    """Refuse variants that the recipe does not have.

    Raises: UsageError with the nearest name.
    """
    for name in only:
        if name not in recipe.variants:
            near = difflib.get_close_matches(name, recipe.variants, n=1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise UsageError(
                f"the recipe has no variant '{name}'", where="--only", hint=f"{hint}Known: {', '.join(recipe.variants)}"
            )
