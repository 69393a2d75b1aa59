"""What must hold between the sections of a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from optimizer.recipe.engine_checks import check_engines
from optimizer.recipe.load_checks import check_load
from optimizer.recipe.model import Data, Variant
from optimizer.recipe.sample_checks import check_samples
from optimizer.recipe.sections import Draft
from optimizer.recipe.vocabulary import Vocabulary, option_fields
from optimizer.recipe.wording import KeyPath, Problems, listed, nearest, shown, unknown

_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(draft: Draft, words: Vocabulary, problems: Problems) -> None:
    """Note every combination of values that cannot be right."""
    _inputs(draft, problems)
    _outputs(draft, problems)
    if draft.data is not None:
        _source(draft.data, problems)
        _splits(draft.data, problems)
        _transform(draft.data, problems)
        _normalized(draft, draft.data, problems)
    _variants(draft, words, problems)
    check_samples(draft, words, problems)
    _targets(draft, words, problems)
    check_engines(draft, words, problems)
    _profile(draft, words, problems)
    _batches(draft, problems)
    if draft.measure is not None:
        check_load(draft, draft.measure, problems)
    _gate(draft, problems)


def _inputs(draft: Draft, problems: Problems) -> None:
    first = next(iter(draft.inputs), "")
    batch = draft.batch
    for name, spec in draft.inputs.items():
        path: KeyPath = ("inputs", name, "shape")
        for index, axis in enumerate(spec.shape):
            if isinstance(axis, str) and not _AXIS.fullmatch(axis):
                problems.cross(
                    (*path, index), f"{shown(axis)} is no axis name: letters, digits and '_', no digit first"
                )
        if not spec.shape:
            problems.cross(path, "needs at least the batch axis, e.g. [batch, 3, 32, 32]")
        elif batch is not None and spec.shape[0] != batch:
            text = f"the first axis must be the batch, {shown(batch)} as in input '{first}', got {shown(spec.shape[0])}"
            problems.cross((*path, 0), text, ("inputs", first))


def _outputs(draft: Draft, problems: Problems) -> None:
    if draft.model is not None:
        _no_duplicates(draft.model.outputs, ("model", "outputs"), problems)
        for index, name in enumerate(draft.model.outputs):
            if name in draft.inputs:
                problems.cross(("model", "outputs", index), f"{shown(name)} is the name of an input too")
        for name, options in draft.metrics.items():
            if options.output is not None and options.output not in draft.model.outputs:
                text = unknown("output", options.output, draft.model.outputs)
                problems.cross((*_metric_path(draft, name), "output"), text, ("model", "outputs"))


def _metric_path(draft: Draft, name: str) -> KeyPath:
    for index, item in enumerate(draft.raw["metrics"]):
        if isinstance(item, dict) and name in item:
            return ("metrics", index, name)
    raise KeyError(name)


def _source(data: Data, problems: Problems) -> None:
    if data.source is None and data.folder is None:
        text = "needs source (FILE.py:FUNCTION) or folder (of pictures)"
        problems.cross(("data",), text, ("data", "source"), ("data", "folder"), at_key=True)
    elif data.source is not None and data.folder is not None:
        problems.cross(("data", "folder"), "stands beside source: give one of the two", ("data", "source"), at_key=True)
    else:
        kind = "folder" if data.source is None else "source"
        for key in ("arguments", "files") if kind == "folder" else ("layout",):
            if getattr(data, key):
                problems.cross(("data", key), f"has no effect with {kind}: remove it", at_key=True)
        if data.folder is not None:
            _layout(data.layout, problems)


def _splits(data: Data, problems: Problems) -> None:
    calibration = data.calibration
    if calibration is not None and calibration.split == data.evaluation.split:
        text = f"calibration and evaluation are both '{calibration.split}': judge on data that has not calibrated"
        problems.cross(("data", "calibration", "split"), text, ("data", "evaluation", "split"))


def _transform(data: Data, problems: Problems) -> None:
    chw = False
    for index, step in enumerate(data.transform):
        late = [name for name in ("resize", "channels", "to_chw") if chw and getattr(step, name) is not None]
        if late:
            problems.cross(("data", "transform", index), f"{late[0]} stands after to_chw: put to_chw last")
        chw = chw or step.to_chw is not None


def _normalized(draft: Draft, data: Data, problems: Problems) -> None:
    """Note a normalize per channel whose numbers cannot be as many as the first input's channels."""
    first, spec = next(iter(draft.inputs.items()), ("", None))
    steps = data.transform
    pictures = any(step.to_chw is not None for step in steps)
    axis = 1 if pictures else len(spec.shape) - 1 if spec is not None else 0
    if spec is None or not 1 <= axis < len(spec.shape):
        return
    size = spec.shape[axis]
    covered = draft.profile.get(size) if isinstance(size, str) else None
    least, most = (size, size) if isinstance(size, int) else (covered.min, covered.max) if covered else (1, math.inf)
    for index, step in enumerate(steps):
        later = any(after.channels is not None for after in steps[index:])
        count = len(step.normalize.mean) if step.normalize is not None else 1
        if count > 1 and not later and not least <= count <= most:
            where = "first axis after to_chw" if pictures else "last axis"
            sizes = f"{least}" if least == most else f"{least} to {most}"
            text = f"{count} numbers, and the channels, the {where} of input '{first}', are {sizes}"
            out = "" if pictures else ": normalize [channels, length] in the data's callable instead"
            problems.cross(("data", "transform", index, "normalize"), text + out, ("inputs", first), ("profile",))


def _layout(layout: str | None, problems: Problems) -> None:
    path: KeyPath = ("data", "layout")
    if layout is None:
        problems.cross(
            path, "missing: the path of a class's pictures in the folder, e.g. '<split>/<class>'", at_key=True
        )
    elif "<split>" not in layout:
        problems.cross(path, f"{shown(layout)} lacks '<split>': every split would be the same pictures")
    elif layout.count("<class>") > 1:
        problems.cross(path, f"{shown(layout)} has '<class>' more than once: a picture lies in one class")


def _variants(draft: Draft, words: Vocabulary, problems: Problems) -> None:
    for name, variant in draft.variants.items():
        path: KeyPath = ("variants", name)
        _no_duplicates(variant.targets, (*path, "targets"), problems)
        for index, target in enumerate(variant.targets):
            if target not in draft.targets:
                problems.cross((*path, "targets", index), _no_target(draft, words, target), ("targets", target))
            elif not words.takes(target, variant.precision):
                text = f"{target} executes the PyTorch module as it is, in fp32: no {variant.precision} runs on it"
                problems.cross((*path, "targets", index), text, ("targets", target))
        _options(variant, path, words, problems)
        if words.needs_calibration(variant.precision) and draft.data is not None and draft.data.calibration is None:
            named = name if name == variant.precision else f"{name} ({variant.precision})"
            text = f"{named} needs data.calibration: {{split: NAME}}, real samples other than data.evaluation's"
            problems.cross(path, text, ("data", "calibration"), at_key=True)


def _no_target(draft: Draft, words: Vocabulary, given: str) -> str:
    """Return what is wrong with a variant's target that does not stand under the recipe's targets."""
    own = tuple(draft.targets)
    listed_here = f"(this recipe's targets: {', '.join(own)})"
    if given in words.targets:
        return f"{shown(given)} does not stand under targets: add it there, or remove it here {listed_here}"
    meant = nearest(given, own) if nearest(given, own).name else nearest(given, tuple(words.targets))
    return f"{shown(given)} is no target{meant.asked} {listed_here}"


def _options(variant: Variant, path: KeyPath, words: Vocabulary, problems: Problems) -> None:
    """Note options that have no effect beside the others."""
    defaults = {option: field.default for option, field in option_fields(words.variants[variant.precision]).items()}
    for option, (other, value) in words.dependencies(variant.precision).items():
        given = variant.options.get(other, defaults[other])
        values = value if isinstance(value, tuple) else (value,)
        if option in variant.options and given not in values:
            text = f"has no effect with {other}: {shown(given)}; remove it, or write {other}: {values[0]}"
            problems.cross((*path, option), text, (*path, other), at_key=True)
    if variant.options.get("method") == "auto" and not words.chooses_method(variant.precision):
        text = f"{variant.precision} has no auto: name the method, all of them are found in the one pass"
        problems.cross((*path, "method"), text, at_key=True)


def _targets(draft: Draft, words: Vocabulary, problems: Problems) -> None:
    """Note targets that nothing is built for, or that cannot execute what the recipe starts from."""
    used = {target for variant in draft.variants.values() for target in variant.targets}
    from_onnx = draft.model is not None and draft.model.checkpoint.endswith(".onnx")
    for target in draft.targets:
        if target in words.of_module and from_onnx:
            text = "executes a PyTorch module, and this recipe starts from an .onnx: remove it"
            problems.cross(("targets", target), text, ("model", "checkpoint"), at_key=True)
        elif target not in used:
            problems.cross(("targets", target), "no variant is built for it: remove it", ("variants",), at_key=True)


def _profile(draft: Draft, words: Vocabulary, problems: Problems) -> None:
    axes = _axes(draft)
    meant = set()
    for axis in draft.profile:
        if axis not in axes:
            near = nearest(axis, [a for a in axes if a not in draft.profile])
            meant.add(near.name)
            written = draft.raw.get("inputs")
            shapes: list[KeyPath] = [("inputs", n, "shape") for n in (written if isinstance(written, dict) else ())]
            text = f"no input has this axis{near.asked} {listed(axes)}"
            problems.cross(("profile", axis), text, *(shapes or [("inputs",)]), at_key=True)
    engines = [name for name in draft.targets if words.builds_engine(name)]
    bare = [axis for axis in axes if axis not in draft.profile and axis not in meant]
    if engines and bare:
        text = f"an engine needs the range of {_named(bare, axes)}; add {_addition(bare, bool(draft.profile))}"
        problems.cross(("targets", engines[0]), text, ("inputs",), ("profile",), at_key=True)


def _axes(draft: Draft) -> dict[str, str]:
    """Return each dynamic axis with the first input that has it, be something else wrong with that input or not."""
    axes: dict[str, str] = {}
    for name, spec in _raw_inputs(draft).items():
        for axis in spec["shape"]:
            if isinstance(axis, str) and _AXIS.fullmatch(axis):
                axes.setdefault(axis, name)
    return axes


def _raw_inputs(draft: Draft) -> dict[str, Mapping[str, Any]]:
    """Return the inputs as written that have a shape."""
    raw = draft.raw.get("inputs")
    written = raw.items() if isinstance(raw, dict) else ()
    return {n: spec for n, spec in written if isinstance(spec, dict) and isinstance(spec.get("shape"), list)}


def _named(bare: Sequence[str], axes: Mapping[str, str]) -> str:
    by_input: dict[str, list[str]] = {}
    for axis in bare:
        by_input.setdefault(axes[axis], []).append(f"'{axis}'")
    named = ", ".join(f"{', '.join(group)} of input '{name}'" for name, group in by_input.items())
    return f"the dynamic {'axis' if len(bare) == 1 else 'axes'} {named}"


def _addition(bare: Sequence[str], to_existing: bool) -> str:
    line = ", ".join(f"{axis}: {{min: 1, opt: 8, max: 32}}" for axis in bare)
    return f"to profile:  {line}" if to_existing else f"the line:  profile: {{{line}}}"


def _batches(draft: Draft, problems: Problems) -> None:
    """Check that measuring and evaluating ask for batches that the model takes."""
    asked: list[tuple[KeyPath, int]] = []
    if draft.measure is not None and "batches" in (draft.raw.get("measure") or {}):
        _no_duplicates(draft.measure.batches, ("measure", "batches"), problems)
        asked += [(("measure", "batches", i), batch) for i, batch in enumerate(draft.measure.batches)]
    if draft.data is not None and draft.data.evaluation.batch is not None:
        asked.append((("data", "evaluation", "batch"), draft.data.evaluation.batch))
    axis = draft.batch
    first: KeyPath = ("inputs", next(iter(draft.inputs), ""))
    for path, batch in asked:
        if isinstance(axis, int) and batch != axis:
            text = f"batch {batch}, but the inputs are fixed to {axis}: name the axis, e.g. [batch, ...]"
            problems.cross(path, text, first)
        elif isinstance(axis, str) and axis in draft.profile:
            sizes = draft.profile[axis]
            if not sizes.min <= batch <= sizes.max:
                text = (
                    f"batch {batch} lies outside profile.{axis}, {sizes.min} to {sizes.max}: widen it or ask for less"
                )
                problems.cross(path, text, first, ("profile", axis))


def _gate(draft: Draft, problems: Problems) -> None:
    if draft.gate is None or draft.gate.batch is None or draft.measure is None:
        return
    batches = draft.measure.batches
    if draft.gate.batch not in batches:
        text = f"batch {draft.gate.batch} is not measured (measure.batches: {', '.join(map(str, batches))})"
        problems.cross(("gate", "batch"), text, ("measure", "batches"), ("inputs",), ("profile",))


def _no_duplicates(values: Sequence[Hashable], path: KeyPath, problems: Problems) -> None:
    seen: set[Hashable] = set()
    for index, value in enumerate(values):
        if value in seen:
            problems.cross((*path, index), f"{shown(value)} is listed twice")
        seen.add(value)
