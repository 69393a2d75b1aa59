"""Plan: the key of every step, whether it can be reused, and why not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_json
from optimizer.environment import device_fingerprint, versions
from optimizer.errors import MissingToolError, UsageError
from optimizer.graph.builder_options import without_gpu
from optimizer.pipeline.feeds import check_sizes
from optimizer.recipe.here import asks_for_the_gpu_here
from optimizer.recipe.sources import Source, read_sources
from optimizer.recipe.steps import Derivation, Step, derive
from optimizer.runtime import cuda
from optimizer.types import Artifact

if TYPE_CHECKING:
    from optimizer.recipe.model import Recipe
    from optimizer.store import Store

HISTORY = "history.json"  # the key documents of a recipe's steps when they were last built, beside its runs


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step with its key, where that is known before anything runs."""

    step: Step
    key: str | None
    document: Mapping[str, Any] | None
    reusable: bool
    why: str
    shared: str | None = None  # the earlier step, not built yet either, whose output is this one's


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build would do."""

    derivation: Derivation
    sources: Mapping[str, Source]
    steps: tuple[PlannedStep, ...]


def plan(
    recipe: Recipe,
    store: Store,
    history_folder: Path,
    *,
    only: tuple[str, ...] = (),
    device: str = "cpu",
    recompute: bool = False,
) -> Plan:
    """Work out every key that is known without building; runs no user code and loads no heavy package.

    `recompute` reads every source file again, whatever its size and time say.
    Raises: MissingToolError, before anything is built, naming every tool that some stage lacks, or the device.
    """
    device_fingerprint(device)
    derivation = derive(recipe, only)
    _check_tools(derivation)
    if any(step.stage.device_bound for step in derivation.steps) or asks_for_the_gpu_here(recipe, only):
        _bound(device)
    sources = read_sources(recipe, store.index, recompute=recompute)
    history = read_history(history_folder)
    outputs = {name: source.artifact for name, source in sources.items()}
    planned: list[PlannedStep] = []
    same = _Same(outputs)
    for step in derivation.steps:
        shared = same.as_earlier(step)
        waiting = [s for s in step.sources.values() if s not in outputs]
        if waiting:
            planned.append(PlannedStep(step, None, None, False, f"after {', '.join(waiting)}", shared))
            continue
        key, document = step_key(step, outputs, device, recipe)
        entry = store.find(key)
        if entry is not None:
            outputs[step.id] = entry.artifact(step.stage.produces)
            planned.append(PlannedStep(step, key, document, True, ""))
        else:
            why = explain(history.steps.get(step.id), document, sources, history.documents)
            planned.append(PlannedStep(step, key, document, False, why, shared))
    return Plan(derivation, sources, tuple(planned))


class _Same:
    """Finds the steps that will have one key, before their keys are known: two variants may share a calibration."""

    def __init__(self, outputs: Mapping[str, Artifact]) -> None:
        self._made = {name: artifact.digest for name, artifact in outputs.items()}  # what makes an output, by its name
        self._first: dict[str, str] = {}

    def as_earlier(self, step: Step) -> str | None:
        """Return the earlier step that does the same to the same."""
        sources = {role: self._made[name] for role, name in step.sources.items()}
        parameters = step.stage.model_dump(mode="json")
        self._made[step.id] = made = sha256_json([step.stage.name, step.stage.tools, parameters, sources])
        first = self._first.setdefault(made, step.id)
        return first if first != step.id else None


def _check_tools(derivation: Derivation) -> None:
    """Refuse a plan whose stages lack a tool, naming each tool with a stage that needs it."""
    lacking: dict[str, str] = {}
    for step in derivation.steps:
        for tool in step.stage.tools:
            try:
                versions((tool,))
            except MissingToolError:
                lacking.setdefault(tool, step.id)
    if lacking:
        hint = f"pip install {' '.join(lacking)}        or leave out of the recipe what needs it"
        absent = cuda.missing() if "tensorrt" in lacking else None
        raise MissingToolError(
            "; ".join(f"{tool} is not installed, and stage '{step}' needs it" for tool, step in lacking.items()),
            hint=f"{hint}\n{without_gpu(absent)}" if absent else hint,
        )


def step_key(step: Step, outputs: Mapping[str, Artifact], device: str, recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Return the key of a step whose sources exist, and the document behind it."""
    digests = {role: outputs[name].digest for role, name in step.sources.items()}
    tools = versions(step.stage.tools)
    bound = _bound(device) if step.stage.device_bound else None
    document = step.stage.key_document(digests, tools, bound, check_sizes(recipe))
    return sha256_json(document), document


def _bound(device: str) -> str | None:
    """Return the GPU that a device-bound stage builds on: always the first."""
    if device not in ("cpu", "cuda", "cuda:0"):
        number = device.partition(":")[2]
        raise UsageError(
            f"a target of this recipe builds engines, and builds them on cuda:0, not on {device}",
            where="--device",
            hint=f"CUDA_VISIBLE_DEVICES={number} optimize ... --device cuda:0   makes that GPU the first",
        )
    return device_fingerprint("cuda:0")


@dataclass(frozen=True, slots=True)
class History:
    """Key documents of steps by id, and the documents of the sources that they name, by digest."""

    steps: Mapping[str, Mapping[str, Any]]
    documents: Mapping[str, Any]


def read_history(folder: Path) -> History:
    """Return what is remembered of a recipe's builds; what has another shape is ignored."""
    try:
        document = json.loads((folder / HISTORY).read_text())
    except (OSError, ValueError):
        return History({}, {})
    steps, documents = _objects(document, "steps"), _objects(document, "documents")
    whole = {
        name: step
        for name, step in steps.items()
        if all(isinstance(step.get(part), dict) for part in ("tools", "parameters", "sources"))
        and all(isinstance(digest, str) for digest in step["sources"].values())
    }
    return History(whole, documents)


def _objects(document: object, name: str) -> dict[str, dict[str, Any]]:
    found = document.get(name) if isinstance(document, dict) else None
    return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def write_history(folder: Path, steps: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Remember the documents of a build, so that the next plan can say what changed.

    Steps that this build left out (`--only`) keep what an earlier one wrote.
    """
    earlier = read_history(folder)
    kept = {**earlier.steps, **steps}
    known = {**earlier.documents, **{s.artifact.digest: dict(s.document) for s in sources.values()}}
    named = {digest for step in kept.values() for digest in step["sources"].values()}
    document = {"steps": kept, "documents": {digest: known[digest] for digest in sorted(named & known.keys())}}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{HISTORY}-{uuid.uuid4().hex}"  # of its own: two builds may end at once
    try:
        temporary.write_text(json.dumps(document, sort_keys=True))
        temporary.replace(folder / HISTORY)
    finally:
        temporary.unlink(missing_ok=True)


def explain(
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    sources: Mapping[str, Source],
    documents: Mapping[str, Any],
) -> str:
    """Say in words why a key is not the one of the last build; `documents` are those of its sources, by digest."""
    if before is None:
        return "not built before"
    reasons: list[str] = []
    for tool, version in now["tools"].items():
        old = before["tools"].get(tool)
        if old != version:
            reasons.append(f"{tool} {old or 'none'} -> {version}")
    reasons += _differences("", before["parameters"], now["parameters"])
    for role, digest in now["sources"].items():
        if before["sources"].get(role) != digest:
            source = next((s for s in sources.values() if s.artifact.digest == digest), None)
            old = documents.get(str(before["sources"].get(role)))
            detail = _differences("", old or {}, source.document) if source else []
            reasons.append(f"{role} changed" + (f" ({'; '.join(detail[:3])})" if detail else ""))
    for field in ("version", "optimizer", "device", "checks", "key_schema"):
        if before.get(field) != now[field]:
            reasons.append(f"{field} {before.get(field)} -> {now[field]}")
    return "; ".join(reasons) or "its stored output was removed or damaged"


def _differences(prefix: str, before: Any, now: Any) -> list[str]:
    """List what differs between two documents, as paths; file digests are shown as 'changed'."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[str] = []
        for name in sorted({*before, *now}):
            path = f"{prefix}.{name}" if prefix else str(name)
            if name not in now or name not in before:
                found.append(f"{_file(path)} {'added' if name in now else 'removed'}")
            else:
                found += _differences(path, before[name], now[name])
        return found
    if before == now:
        return []
    if prefix == "without":
        return ["evaluation data changed"]
    if prefix.startswith(_DIGESTS):
        return [f"{_file(prefix)} changed"]
    return [f"{prefix} {json.dumps(before)} -> {json.dumps(now)}"]


# Parts of a source's document that map names to digests: a person wants the name.
_DIGESTS = ("files.", "modules.")


def _file(path: str) -> str:
    for part in _DIGESTS:
        path = path.removeprefix(part)
    return path
