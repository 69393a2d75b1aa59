"""What a split is, by content: the document that stands for it in a key. Reads no sample and runs no user code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def code_document(file: Path, files: Iterable[str], folder: Path, index: ContentIndex) -> dict[str, Any]:
    """Describe user code by the content of its local modules and declared files, and by its packages' versions."""
    wanted = closure(file)
    digests = index.digests([*wanted.files, *(folder / name for name in files)])
    return {
        "files": {_relative(path, wanted.root, folder): digest for path, digest in digests.items()},
        "packages": package_versions(wanted.packages),
    }


def data_document(
    data: Data, part: CalibrationData | EvaluationData, folder: Path, index: ContentIndex
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
        document |= {"function": function, "arguments": data.arguments}
        return document | code_document(folder / file, data.files, folder, index)
    root = folder / str(data.folder)
    files = [root] if root.is_file() else _split_files(root, str(data.layout), part.split)
    digests = index.digests(files)
    document["layout"] = data.layout
    return document | {"files": {_relative(path, root, root.parent): digest for path, digest in digests.items()}}


def _split_files(root: Path, layout: str, split: str) -> list[Path]:
    """Return the files of one split: everything below the part of the layout that comes before the class."""
    fixed = layout.replace("<split>", split).partition("<class>")[0].rpartition("/")[0]
    folder = root / fixed if fixed else root
    if not folder.is_dir():
        raise UsageError(f"there is no folder {fixed}", where=str(root), hint="Correct data.layout or the split.")
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _relative(path: Path, root: Path, folder: Path) -> str:
    for base in (root, folder):
        if path != base and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions behind import names; a name that is not installed says so."""
    from importlib import metadata

    found: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        distribution = _DISTRIBUTIONS.get(name, name)
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            unknown.append(name)
    if unknown:
        installed = metadata.packages_distributions()
        for name in unknown:
            for distribution in installed.get(name, []):
                found[distribution] = metadata.version(distribution)
            if name not in installed:
                found[name] = "not installed"
    return found
