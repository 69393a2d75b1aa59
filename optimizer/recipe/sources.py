"""The recipe's source files by content: checkpoint, code, calibration and evaluation data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.identity import code_document, data_document
from optimizer.digest import sha256_json
from optimizer.errors import RecipeError
from optimizer.types import Artifact, Format

if TYPE_CHECKING:
    from optimizer.recipe.model import Recipe
    from optimizer.store import ContentIndex


@dataclass(frozen=True, slots=True)
class Source:
    """A source artifact, and the document that its digest is the sha256 of: a plan tells from it what changed."""

    artifact: Artifact
    document: Mapping[str, Any]


def read_sources(recipe: Recipe, index: ContentIndex, *, recompute: bool = False) -> dict[str, Source]:
    """Identify every source of the recipe by content, without importing or opening any of them.

    Raises: RecipeError when the checkpoint is not the one that the recipe names by sha256.
    """
    if recompute:
        index = index.fresh()
    sources = {"checkpoint": _checkpoint(recipe, index)}
    model = recipe.model
    if model.factory is not None:
        file = recipe.folder / model.factory.partition(":")[0]
        sources["code"] = _source("code", file, code_document(file, model.files, recipe.folder, index, recipe.settings))
    evaluation = data_document(recipe.data, recipe.data.evaluation, recipe.folder, index, recipe.settings)
    sources["evaluation"] = _source("data", recipe.folder, evaluation)
    if recipe.data.calibration is not None:
        calibration = data_document(recipe.data, recipe.data.calibration, recipe.folder, index, recipe.settings)
        # Samples that stand in the evaluation set leave the calibration set, so both decide what calibrates.
        document = calibration | {"without": sources["evaluation"].artifact.digest}
        sources["calibration"] = _source("data", recipe.folder, document)
    return sources


def _checkpoint(recipe: Recipe, index: ContentIndex) -> Source:
    path = recipe.folder / recipe.model.checkpoint
    # A digest that the recipe demands is taken from the file itself, not from what its size and time suggest.
    digest = (index.fresh() if recipe.model.sha256 else index).digests([path])[path]
    if recipe.model.sha256 not in (None, digest):
        raise RecipeError(
            f"the checkpoint has the sha256 {digest}; the recipe expects {recipe.model.sha256}",
            where=f"{path}, model.sha256",
            hint="Restore the file, or write its new sha256 into the recipe if the change is meant.",
        )
    files = {path.name: digest}
    if path.suffix == ".onnx":
        files |= _external_files(path, index)
    return _source("checkpoint", path, {"files": files})


def _external_files(path: Path, index: ContentIndex) -> dict[str, str]:
    """Weights of an ONNX file may lie in other files; the file itself says in which."""
    from optimizer.graph.files import external_files

    found = external_files(path)
    missing = [f for f in found if not f.is_file()]
    if missing:
        raise RecipeError(f"keeps weights in {missing[0].name}, which is not there", where=str(path))
    return {p.relative_to(path.parent).as_posix(): digest for p, digest in index.digests(found).items()}


def _source(kind: Format, path: Path, document: dict[str, Any]) -> Source:
    return Source(Artifact(kind, path, sha256_json(document)), document)
