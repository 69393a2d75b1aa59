"""The user documentation names every key, option and metric, and its recipes are sound."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from optimizer.bundle.describe import _SHARES
from optimizer.metrics import METRICS
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.model import (
    CalibrationData,
    Data,
    EvaluationData,
    InputSpec,
    LoadGen,
    Measure,
    MetricLimit,
    MetricOptions,
    ModelSource,
    Normalize,
    Recipe,
    ShapeRange,
    SpeedupLimit,
    Sweep,
    TransformStep,
)
from optimizer.recipe.vocabulary import target_options, variant_options
from optimizer.results import CandidateReport, Report
from optimizer.stages import CHECKPOINT_KINDS, TARGETS, VARIANTS

ROOT = Path(__file__).parent.parent.parent
RECIPE_PAGE = ROOT / "docs" / "recipe.md"
PRECISION_PAGE = ROOT / "docs" / "precision.md"
DEMO = ROOT / "recipes" / "digits-cnn"

# heading of docs/recipe.md -> the section it describes
SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSource,
    "inputs": InputSpec,
    "profile": ShapeRange,
    "data": Data,
    "transform": TransformStep,
    "calibration": CalibrationData,
    "evaluation": EvaluationData,
    "metrics": MetricOptions,
    "measure": Measure,
    "measure.loadgen": LoadGen,
    "measure.sweep": Sweep,
    **{name: variant_options(name, stages) for name, stages in VARIANTS.items()},
}


def chapters(text: str) -> dict[str, str]:
    """Split a page at its headings; backticks in a heading do not count."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {title.replace("`", ""): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of a page's tables by their first cell."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found[cells[0].strip("`| ")] = cells[1:]
    return found


def written(field: FieldInfo) -> str:
    """Return a default as the page writes it; no default but None says more than `none`."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict):
        return "`{}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def gaps(page: str, sections: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    """Yield each field that has no row under its section's heading, or another default there."""
    found = chapters(page)
    for title, section in sections.items():
        table = rows(found.get(title, ""))
        for name, field in section.model_fields.items():
            if name not in table:
                yield f"{title}.{name} is not named"
            elif name not in ("precision", "targets") and field.get_default(call_default_factory=True) is not None:
                default = table[name][1]
                if default != written(field):
                    yield f"{title}.{name} has the default {written(field)}, the page says {default}"


def test_every_key_is_named_with_its_default() -> None:
    page = RECIPE_PAGE.read_text()
    assert list(gaps(page, SECTIONS)) == []
    for name, stages in TARGETS.items():
        assert list(gaps(page, {"targets": target_options(name, stages)})) == []
    named = rows(chapters(page)["Top level"])
    assert set(named) == set(Recipe.top_level())
    for section in (Normalize, MetricLimit, SpeedupLimit):
        assert all(name in page for name in section.model_fields)
    gate = rows(chapters(page)["gate"])
    assert {"batch", "speedup", "max_drop", "min"} <= set(gate)


def test_a_key_that_is_not_named_is_found() -> None:
    page = RECIPE_PAGE.read_text().replace("| `strip_prefix` |", "| `strip` |").replace("| `512` |", "| `500` |")
    assert list(gaps(page, SECTIONS)) == [
        "model.strip_prefix is not named",
        "calibration.samples has the default `512`, the page says `500`",
    ]


def unguided(page: str) -> list[str]:
    """Return the options of a precision that the guide does not name."""
    options = {
        name for precision, stages in VARIANTS.items() for name in variant_options(precision, stages).model_fields
    }
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    return sorted(options - {"precision", "targets"} - words)


def test_the_guide_to_precision_names_every_option() -> None:
    page = PRECISION_PAGE.read_text()
    assert unguided(page) == []
    assert unguided(page.replace("float_share", "share_in_float")) == ["float_share"]


def test_every_metric_checkpoint_precision_and_target_is_named() -> None:
    page = RECIPE_PAGE.read_text()
    names = [*(metric.name for metric in METRICS), *CHECKPOINT_KINDS, *TARGETS]
    assert [name for name in names if f"`{name}`" not in page] == []
    assert set(VARIANTS) <= set(chapters(page))
    better = {metric.name: metric.better for metric in METRICS}
    assert {name: cells[0] for name, cells in rows(chapters(page)["metrics"]).items() if name in better} == better


def test_every_field_of_the_report_is_named() -> None:
    page = (ROOT / "docs" / "reports.md").read_text()
    fields = [*Report.model_fields, *CandidateReport.model_fields]
    assert [name for name in fields if f"`{name}`" not in page] == []


def test_the_golden_tolerances_are_those_of_the_page() -> None:
    page = chapters((ROOT / "docs" / "deployment.md").read_text())["Golden tolerance"]
    for share, reason in _SHARES.values():
        assert f"| {share:g} | {reason} |" in page


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def documented() -> list[Any]:
    pages = (ROOT / "README.md", RECIPE_PAGE, PRECISION_PAGE)
    found = [(page.name, block) for page in pages for block in blocks(page)]
    return [pytest.param(block, id=f"{name}-{number}") for number, (name, block) in enumerate(found)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's folder, with every file that a block of the pages names."""
    for file in DEMO.glob("*.py"):
        shutil.copy(file, tmp_path)
    for name in ("checkpoint.safetensors", "weights.pth", "model.onnx"):
        (tmp_path / name).touch()
    for split, count in (("train", 256), ("test", 1)):  # they are counted, not opened
        (tmp_path / "pictures" / split / "zero").mkdir(parents=True)
        for index in range(count):
            (tmp_path / "pictures" / split / "zero" / f"{index}.png").touch()
    return tmp_path


@pytest.mark.parametrize("block", documented())
def test_every_recipe_of_the_pages_is_sound(block: str, folder: Path) -> None:
    """A whole recipe as it stands; a part laid over the demo's."""
    given = yaml.safe_load(block)
    if not {"model", "inputs", "data"} <= set(given):
        whole = yaml.safe_load((DEMO / "recipe.yaml").read_text()) | given
        if "evaluation" in whole["data"] and "calibration" not in whole["data"]:
            del whole["variants"]["int8"]
        block = yaml.safe_dump(whole, sort_keys=False)
    recipe = folder / "recipe.yaml"
    recipe.write_text(block)
    loaded = load_recipe(recipe)
    assert set(given) <= set(Recipe.top_level())
    assert loaded.variants


def test_the_pages_hold_whole_recipes() -> None:
    whole = [b for b in (*blocks(ROOT / "README.md"), *blocks(RECIPE_PAGE)) if "model:" in b and "data:" in b]
    assert len(whole) >= 3


def test_relative_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    dead = [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert dead == []
