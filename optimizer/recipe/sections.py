"""Each section of the file by itself, so that a wrong one hides no problem of another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PositiveInt

from optimizer.recipe.model import (
    Data,
    Gate,
    InputSpec,
    Measure,
    MetricLimit,
    MetricOptions,
    ModelSource,
    Recipe,
    ShapeRange,
    SpeedupLimit,
    Target,
    Variant,
)
from optimizer.recipe.validate import is_one, keys, mapping, validate
from optimizer.recipe.vocabulary import Vocabulary, given_options, target_options, variant_options
from optimizer.recipe.wording import CROSS, SHAPE, KeyPath, Problem, Problems, nearest, shown, unknown

_REQUIRED = {
    "model": "{checkpoint: FILE, factory: FILE.py:FUNCTION, outputs: [NAMES]}",
    "inputs": "each input's name, dtype and shape: {image: {dtype: float32, shape: [batch, 3, 32, 32]}}",
    "data": "real data: {source: FILE.py:FUNCTION, evaluation: {split: NAME}}",
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names of folders and files on every system

Entry = TypeVar("Entry")


@dataclass
class Draft:
    """The sections that could be read; the checks between them look at these."""

    raw: Mapping[str, Any]
    name: str | None = None
    model: ModelSource | None = None
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    profile: dict[str, ShapeRange] = field(default_factory=dict)
    data: Data | None = None
    metrics: dict[str, MetricOptions] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    measure: Measure | None = None
    gate: Gate | None = None

    @property
    def batch(self) -> str | int | None:
        """The axis at position 0 of the first input, or None where there is none."""
        first = next(iter(self.inputs.values()), None)
        return first.shape[0] if first and first.shape else None

    def found(self) -> dict[str, Any]:
        """Return every section by name."""
        return {name: getattr(self, name) for name in Recipe.top_level()}


def read(raw: Mapping[str, Any], folder: Path, words: Vocabulary, problems: Problems) -> Draft:
    """Read all sections; what is wrong inside one is noted."""
    keys(raw, Recipe.top_level(), _REQUIRED, problems)
    draft = Draft(raw)
    draft.name = _name(raw, folder, problems)
    draft.model = validate(ModelSource, raw["model"], ("model",), problems) if "model" in raw else None
    draft.data = validate(Data, raw["data"], ("data",), problems) if "data" in raw else None
    draft.inputs = _entries(raw, "inputs", InputSpec, problems)
    draft.profile = _entries(raw, "profile", ShapeRange, problems)
    draft.measure = _measure(raw, draft, problems)
    draft.metrics = _metrics(raw, words, problems)
    draft.targets = _targets(raw, words, problems)
    draft.variants = _variants(raw, draft, words, problems)
    if "gate" in raw:
        draft.gate = read_gate(raw["gate"], ("gate",), draft, problems)
    return draft


def _name(raw: Mapping[str, Any], folder: Path, problems: Problems) -> str | None:
    if "name" in raw:
        name = validate(str, raw["name"], ("name",), problems)
        if name is not None:
            _check_name(name, ("name",), problems)
        return name
    if not _SAFE_NAME.fullmatch(folder.name):
        text = f"missing: the folder's name {shown(folder.name)} cannot serve as one (letters, digits, '.', '_', '-')"
        problems.add(Problem(("name",), text, SHAPE, at_key=True))
    return folder.name


def _check_name(name: str, path: KeyPath, problems: Problems, at_key: bool = False) -> None:
    if not _SAFE_NAME.fullmatch(name):
        text = f"{shown(name)} names a folder: letters, digits, '.', '_' and '-', beginning with a letter or digit"
        problems.add(Problem(path, text, SHAPE, at_key))


def _measure(raw: Mapping[str, Any], draft: Draft, problems: Problems) -> Measure | None:
    """Read `measure`; the default batch is the only one where it is fixed, else 1, or the profile's smallest."""
    given = raw.get("measure", {})
    batch = draft.batch
    if isinstance(given, dict) and "batches" not in given and batch is not None:
        usual = batch if isinstance(batch, int) else draft.profile[batch].min if batch in draft.profile else 1
        given = {**given, "batches": [usual]}
    return validate(Measure, given, ("measure",), problems)


def _entries(raw: Mapping[str, Any], key: str, kind: type[Entry], problems: Problems) -> dict[str, Entry]:
    """Read a mapping of like sections; one that is wrong is left out."""
    if key not in raw:
        return {}
    entries = {}
    for name, value in mapping(raw[key], (key,), problems, may_be_empty=key != "inputs").items():
        entry = validate(kind, value, (key, name), problems)
        if entry is not None:
            entries[name] = entry
    return entries


def _metrics(raw: Mapping[str, Any], words: Vocabulary, problems: Problems) -> dict[str, MetricOptions]:
    listed = raw.get("metrics", [])
    if not isinstance(listed, list):
        hint = f"; write [{listed}]" if isinstance(listed, str) and is_one(listed) else ""
        problems.add(Problem(("metrics",), f"needs a list, got {shown(listed)}{hint}", SHAPE))
        return {}
    metrics: dict[str, MetricOptions] = {}
    for index, item in enumerate(listed):
        given = {item: {}} if isinstance(item, str) else item
        if not isinstance(given, dict) or len(given) != 1:
            text = f"needs a metric's name, or one with options as {{top1: {{output: NAME}}}}, got {shown(item)}"
            problems.add(Problem(("metrics", index), text, SHAPE))
            continue
        name, options = next(iter(given.items()))
        if name not in words.metrics:
            problems.add(Problem(("metrics", index), f"{shown(name)}: {unknown('metric', name, words.metrics)}", SHAPE))
        elif name in metrics:
            problems.add(Problem(("metrics", index), f"'{name}' is listed twice", SHAPE))
        else:
            where = ("metrics", index, name) if isinstance(item, dict) else ("metrics", index)
            metrics[name] = validate(MetricOptions, options, where, problems) or MetricOptions()
    return metrics


def _targets(raw: Mapping[str, Any], words: Vocabulary, problems: Problems) -> dict[str, Target]:
    if "targets" not in raw:
        return {"onnxruntime": Target()}
    targets = {}
    for name, value in mapping(raw["targets"], ("targets",), problems, may_be_empty=False).items():
        if name not in words.targets:
            meant = nearest(name, tuple(words.targets)).name
            explains = ("targets", meant) if meant else None
            text = unknown("target", name, tuple(words.targets))
            problems.add(Problem(("targets", name), text, SHAPE, True, (), explains))
            continue
        section = validate(target_options(name, words.targets[name]), value, ("targets", name), problems)
        targets[name] = Target(options=given_options(section)) if section else Target()
    return targets


def _variants(raw: Mapping[str, Any], draft: Draft, words: Vocabulary, problems: Problems) -> dict[str, Variant]:
    variants = {}
    everywhere = tuple(draft.targets)
    if "variants" not in raw:
        return {"fp32": Variant(precision="fp32", targets=everywhere)}
    for name, value in mapping(raw["variants"], ("variants",), problems, may_be_empty=False).items():
        path = ("variants", name)
        precision = _precision(name, mapping(value, path, problems), words, problems)
        _check_name(name, path, problems, at_key=True)
        if precision is None or not isinstance(value, dict):
            continue
        section: Any = validate(variant_options(precision, words.variants[precision]), value, path, problems)
        if section is not None:
            served = tuple(target for target in everywhere if words.takes(target, precision))
            targets = served if section.targets is None else section.targets
            variants[name] = Variant(precision=precision, targets=targets, options=given_options(section))
    return variants


def _precision(name: str, raw: Mapping[str, Any], words: Vocabulary, problems: Problems) -> str | None:
    """Return the precision of a variant: as written, else its own name."""
    path = ("variants", name, "precision")
    known = tuple(words.variants)
    given = raw.get("precision", name)
    if "precision" not in raw:
        if name not in known:
            meant = nearest(name, known).name
            text = f"is no precision by itself{nearest(name, known).asked} Otherwise say precision: {', '.join(known)}"
            problems.add(Problem(path[:2], text if meant else text.replace(" O", "; o"), SHAPE, at_key=True))
    elif given not in known:
        text = f"needs one of {', '.join(known)}, got {shown(given)}"
        problems.add(Problem(path, text + (nearest(given, known).asked if isinstance(given, str) else ""), SHAPE))
    elif name in known and given != name:
        problems.add(Problem(path, f"is {given} in a variant named {name}: name it otherwise", CROSS))
    return given if given in known else None


def read_gate(data: Any, path: KeyPath, draft: Draft | None, problems: Problems) -> Gate:
    """Read a gate: `batch`, `speedup`, and the metrics by name, which `draft` knows if there is one."""
    batch = speedup = None
    metrics: dict[str, MetricLimit] = {}
    raw = mapping(data, path, problems)
    for key, value in raw.items():
        here = (*path, key)
        if key == "batch":
            batch = validate(PositiveInt, value, here, problems)
        elif key == "speedup":
            speedup = validate(SpeedupLimit, value, here, problems)
        elif reason := _no_metric(key, draft):
            needs = (("metrics",),) if draft is not None and _follows(key, draft) else ()
            problems.add(Problem(here, reason, CROSS if draft else SHAPE, True, needs))
        else:
            limit = validate(MetricLimit, value, here, problems)
            metrics.update({key: limit} if limit else {})
    if isinstance(data, dict) and not set(data) - {"batch"}:
        problems.add(Problem(path, "limits nothing: give a metric's max_drop or speedup: {min: 1.1}", SHAPE))
    return Gate(batch=batch, speedup=speedup, metrics=metrics)


def _follows(key: str, draft: Draft) -> bool:
    """Tell whether a gate on an unknown metric only follows from what is wrong under `metrics`: its name is there."""
    listed = draft.raw.get("metrics")
    if not isinstance(listed, list):
        return True
    names = [str(name) for item in listed for name in (item if isinstance(item, dict) else [item])]
    wrong = [name for name in names if name not in draft.metrics]
    return nearest(key, wrong).name is not None


def _no_metric(key: str, draft: Draft | None) -> str | None:
    """Return what is wrong with a gate's key that should name a metric."""
    if draft is None:
        near = nearest(key, ("batch", "speedup", "gate")).name
        if near == "gate":
            return "a gate's file begins with what stands under 'gate:' in a recipe"
        return unknown("key", key, ("batch", "speedup", "a metric's name")) if near else None
    known = ("batch", "speedup", *draft.metrics)
    return None if key in draft.metrics else unknown("key, and no metric of the recipe", key, known)
