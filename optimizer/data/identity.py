"""What a split is, by content: the document that stands for it in a key. Reads no sample and runs no user code."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.pictures import fixed_part
from optimizer.digest import files_digest, sha256_file
from optimizer.errors import UsageError
from optimizer.imports import closure

if TYPE_CHECKING:
    from optimizer.recipe.model import CalibrationData, Data, EvaluationData
    from optimizer.store import ContentIndex

# Import names that differ from the distribution that installs them.
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "yaml": "PyYAML",
    "skimage": "scikit-image",
}


def code_document(
    file: Path, files: Iterable[str], folder: Path, index: ContentIndex, settings: Mapping[str, str]
) -> dict[str, Any]:
    """Describe user code by the content of its local modules and declared files, and by its packages' versions.

    Declared files stand under the name that the recipe gives them, `${NAME}` unfilled where it is a place: what counts
    is their content, not where they lie.
    """
    wanted = closure(file)
    declared = {unfilled(name, settings): folder / name for name in files}
    digests = index.digests([*wanted.files, *declared.values()])
    return {
        "modules": {path.relative_to(wanted.root).as_posix(): digests[path] for path in wanted.files},
        "files": {name: digests[path] for name, path in declared.items()},
        "packages": package_versions(wanted.packages, index),
    }


def data_document(
    data: Data,
    part: CalibrationData | EvaluationData,
    folder: Path,
    index: ContentIndex,
    settings: Mapping[str, str],
) -> dict[str, Any]:
    """Describe a split: where from, which samples, how transformed, and the content of every file behind it."""
    document: dict[str, Any] = {
        "split": part.split,
        "samples": part.samples,
        "seed": part.seed,
        "transform": [step.model_dump(mode="json", exclude_none=True) for step in data.transform],
    }
    if data.source is not None:
        file, _, function = data.source.partition(":")
        document |= {"function": function, "arguments": unfilled(data.arguments, settings)}
        document |= code_document(folder / file, data.files, folder, index, settings)
        if any(step.resize for step in data.transform):
            document["packages"] |= package_versions(("PIL",), index)
        return document
    root = folder / str(data.folder)
    files = [root] if root.is_file() else _split_files(root, str(data.layout), part.split)
    digests = index.digests(files)
    names = {path: path.name if path == root else path.relative_to(root).as_posix() for path in files}
    return document | {
        "layout": data.layout,
        "files": {names[path]: digest for path, digest in digests.items()},
        "packages": package_versions(("PIL", "numpy"), index),
    }


def unfilled(value: Any, settings: Mapping[str, str]) -> Any:
    """Put `${NAME}` back where a setting that is a place was filled in: data may lie elsewhere on another machine."""
    if isinstance(value, str):
        for name, filled in settings.items():
            if Path(filled).is_absolute() and Path(filled).exists():
                value = value.replace(filled, f"${{{name}}}")
        return value
    if isinstance(value, Mapping):
        return {key: unfilled(item, settings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [unfilled(item, settings) for item in value]
    return value


def _split_files(root: Path, layout: str, split: str) -> list[Path]:
    """Return the files of one split: everything below the part of the layout that comes before the class."""
    fixed = fixed_part(layout, split)
    folder = root / fixed if fixed else root
    if not folder.is_dir():
        raise UsageError(f"there is no folder {fixed}", where=str(root), hint="Correct data.layout or the split.")
    return sorted(p for p in folder.rglob("*") if p.is_file())


def package_versions(names: Iterable[str], index: ContentIndex | None = None) -> dict[str, str]:
    """Return the versions of the distributions behind import names; a name that is not installed says so.

    A module that lies outside the installed packages (an editable install, PYTHONPATH) keeps its version while it
    changes: its content stands beside it.
    """
    found: dict[str, str] = {}
    for name in names:
        for distribution in _distributions(name):
            found[distribution] = metadata.version(distribution)
        sources = _loose_sources(name)
        if sources:
            digests = index.digests(sources) if index else {p: sha256_file(p) for p in sources}
            found[f"{name} (source)"] = files_digest({str(p): d for p, d in digests.items()})
        elif not _distributions(name):
            found[name] = "not installed"
    return found


def _distributions(name: str) -> list[str]:
    guess = _DISTRIBUTIONS.get(name, name)
    try:
        metadata.version(guess)
    except metadata.PackageNotFoundError:
        return metadata.packages_distributions().get(name, [])  # slow, so asked last
    return [guess]


def _loose_sources(name: str) -> list[Path]:
    """The Python files of a top-level module that lies neither in the standard library nor among installed packages."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return []
    places = [Path(p) for p in spec.submodule_search_locations or ()] or [Path(str(spec.origin))]
    homes = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    loose = [p.resolve() for p in places if p.exists() and not any(p.resolve().is_relative_to(h) for h in homes)]
    return sorted(f for p in loose for f in ([p] if p.is_file() else p.rglob("*.py")))
