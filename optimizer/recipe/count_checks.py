"""Are there as many samples as the recipe asks for? Only pictures can be counted without running the author's code."""

from __future__ import annotations

from pathlib import Path

from optimizer.data.pictures import count_pictures
from optimizer.errors import StageError
from optimizer.recipe.model import CalibrationData, Data, EvaluationData
from optimizer.recipe.sections import Draft
from optimizer.recipe.vocabulary import Vocabulary
from optimizer.recipe.wording import KeyPath, Problems, shown


def check_counts(draft: Draft, folder: Path, words: Vocabulary, problems: Problems, *, to_build: bool = True) -> None:
    """Note splits of a folder or .zip with fewer pictures than are asked for, or none.

    What calibrates nothing is not counted: no variant reads it, or nothing is built.
    """
    data = draft.data
    if data is None or data.source is not None or data.folder is None or data.layout is None:
        return
    place = folder / data.folder
    there = place.is_dir() or (place.is_file() and place.suffix == ".zip")
    if not there or "<split>" not in data.layout or data.layout.count("<class>") > 1:
        return  # told already
    parts: dict[str, CalibrationData | EvaluationData] = {"evaluation": data.evaluation}
    read = any(words.reads_calibration(variant.precision) for variant in draft.variants.values())
    if data.calibration is not None and read and to_build:
        parts["calibration"] = data.calibration
    enough = {part.split: part.samples or 1 for part in parts.values()}
    if len(enough) < len(parts):
        return  # one split for both, which is told
    try:
        found = count_pictures(place, data.layout, enough)
    except StageError as error:
        problems.cross(("data", "folder"), f"{shown(data.folder)} {error.what}")
        return
    for name, part in parts.items():
        _enough(data, name, part, found[part.split], problems)


def _enough(data: Data, name: str, part: CalibrationData | EvaluationData, found: int, problems: Problems) -> None:
    where: tuple[KeyPath, ...] = (("data", "folder"), ("data", "layout"))
    if found == 0:
        text = f"{shown(part.split)} names no pictures: {data.folder} holds none under {shown(data.layout)}"
        problems.cross(("data", name, "split"), text, *where)
    elif part.samples is not None and found < part.samples:
        default = "" if "samples" in part.model_fields_set else ", the default"
        said = f"asks for {part.samples}{default}, and the split {shown(part.split)} has {_pictures(found)}"
        problems.cross(("data", name, "samples"), f"{said}: write samples: {found}, or give more", *where)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
