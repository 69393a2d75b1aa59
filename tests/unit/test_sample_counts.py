"""More samples asked for than there are: the check counts pictures, a callable is asked before any stage runs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimizer.data import pictures
from optimizer.data.pictures import Pictures, count_pictures
from optimizer.data.splits import Splits
from optimizer.errors import RecipeError, StageError
from optimizer.pipeline.build import calibrates
from optimizer.recipe.loader import load_recipe

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"
HAS = {"train": 5, "test": 3}
LAYOUT = "<split>/<class>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures to calibrate with, three to judge by, and what is none; no picture can be decoded."""
    root = tmp_path / "pictures"
    for split, count in HAS.items():
        for index in range(count):
            file = root / split / f"c{index % 2}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (root / split / "c0" / "notes.txt").touch()
        (root / split / "loose.png").touch()
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, file.relative_to(root))
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    (tmp_path / "model.py").write_bytes((FIXTURES / "bad" / "model.py").read_bytes())
    (tmp_path / "checkpoint.safetensors").write_bytes((FIXTURES / "bad" / "checkpoint.safetensors").read_bytes())
    return tmp_path


@pytest.fixture
def told(folder: Path) -> Callable[..., list[str]]:
    """What the check says of a recipe on these pictures, without the file's name."""

    def say(place: str = "pictures", train: str = "train, samples: 5", test: str = "test", **more: Any) -> list[str]:
        lines = (FIXTURES / "good.yaml").read_text().splitlines()
        data = [
            "data:",
            f"  folder: {place}",
            f"  layout: {LAYOUT}",
            f"  calibration: {{split: {train}}}",
            f"  evaluation: {{split: {test}}}",
        ]
        begin = next(i for i, line in enumerate(lines) if line.startswith("data:"))
        end = next(i for i in range(begin + 1, len(lines)) if not lines[i].startswith(" "))
        text = "\n".join([*lines[:begin], *data, *lines[end:]])
        if "variants" in more:
            text = "\n".join(
                f"variants: {more.pop('variants')}" if line.startswith("variants:") else line
                for line in text.splitlines()
            )
        (folder / "recipe.yaml").write_text(text)
        try:
            load_recipe(folder / "recipe.yaml", **more)
        except RecipeError as error:
            return [line.partition(": ")[2] for line in str(error).splitlines()]
        return []

    return say


@pytest.mark.parametrize("place", ["pictures", "pictures.zip"])
def test_a_split_with_fewer_pictures_than_asked_for_is_refused_by_the_check(
    told: Callable[..., list[str]], place: str
) -> None:
    assert told(place, "train, samples: 6", "test, samples: 4") == [
        "data.calibration.samples: asks for 6, and the split 'train' has 5 pictures: write samples: 5, or give more",
        "data.evaluation.samples: asks for 4, and the split 'test' has 3 pictures: write samples: 3, or give more",
    ]
    (default,) = told(place, "train")
    assert default.startswith("data.calibration.samples: asks for 512, the default, and the split 'train' has 5 ")


@pytest.mark.parametrize("place", ["pictures", "pictures.zip"])
def test_as_many_as_there_are_can_be_asked_for(told: Callable[..., list[str]], place: str) -> None:
    """The twin."""
    assert told(place, "train, samples: 5", "test, samples: 3") == []
    assert told(place, "train, samples: 2", "test") == []


def test_a_split_without_pictures_and_a_file_that_is_no_zip_are_named(told: Callable[..., list[str]]) -> None:
    assert told("pictures.zip", "trian") == [
        "data.calibration.split: 'trian' names no pictures: pictures.zip holds none under '<split>/<class>'"
    ]
    assert told("broken.zip") == ["data.folder: 'broken.zip' is neither a folder nor a .zip: File is not a zip file"]


def test_one_split_for_both_is_told_and_not_counted(told: Callable[..., list[str]]) -> None:
    (line,) = told(train="test, samples: 4", test="test, samples: 9")
    assert "calibration and evaluation are both 'test'" in line


def test_calibration_that_nobody_reads_is_not_counted(told: Callable[..., list[str]]) -> None:
    assert told(train="train, samples: 6", variants="{fp32: {}}") == []
    assert told(train="train, samples: 6", model_files=False) == []  # a run that is measured again
    assert len(told(train="train, samples: 6", variants="{fp16: {}}")) == 1


def test_a_split_that_is_a_link_is_counted_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "elsewhere" / "a" / f"{number}.png").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "train").symlink_to(tmp_path / "elsewhere")
    layout = "<split>/<class>"
    assert count_pictures(tmp_path / "pictures", layout, {"train": 9}) == {"train": 3}
    assert len(Pictures(tmp_path / "pictures", layout, "train")) == 3


def test_pictures_are_counted_as_they_are_read_and_no_further_than_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("pictures", "pictures.zip"):
        for split, count in HAS.items():
            assert len(Pictures(folder / place, LAYOUT, split)) == count
        assert count_pictures(folder / place, LAYOUT, dict.fromkeys(HAS, 100)) == HAS
        assert count_pictures(folder / place, LAYOUT, dict.fromkeys(HAS, 2)) == dict.fromkeys(HAS, 2)
    seen: list[str] = []

    def files(*_: Path) -> Iterator[str]:
        for name in ("a/c/1.png", "a/c/2.png"):
            seen.append(name)
            yield name

    monkeypatch.setattr(pictures, "_files", files)
    assert count_pictures(folder / "pictures", LAYOUT, {"a": 1}) == {"a": 1}
    assert seen == ["a/c/1.png"]


def splits(folder: Path, samples: int, judged: int | None = None) -> Splits:
    (folder / "data.py").write_text(
        "import numpy as np\n"
        "def load(split):\n"
        "    with open(__file__ + '.log', 'a') as log:\n"
        "        log.write(split + ' ')\n"
        "    count = {'train': 5, 'test': 3}[split]\n"
        "    return np.zeros((count, 2), np.float32), np.zeros(count, int)\n"
    )
    part = SimpleNamespace(split="train", samples=samples, seed=0)
    judge = SimpleNamespace(split="test", samples=judged, seed=0)
    data = SimpleNamespace(
        source="data.py:load", arguments={}, labels=None, transform=(), calibration=part, evaluation=judge
    )
    recipe: Any = SimpleNamespace(data=data, folder=folder, profile={}, inputs={})
    return Splits(recipe)


def test_a_callable_with_fewer_samples_than_asked_for_is_refused_before_any_is_read(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        splits(tmp_path, 6).check_counts()
    assert caught.value.render() == (
        "data.calibration: asks for 6 samples and the split has 5\n  Write samples: 5, or give more."
    )
    with pytest.raises(StageError, match=r"data\.evaluation: asks for 4 samples and the split has 3"):
        splits(tmp_path, 5, judged=4).check_counts()


def test_a_callable_that_was_counted_is_not_called_again(tmp_path: Path) -> None:
    counted = splits(tmp_path, 5)
    counted.check_counts()
    assert len(counted.evaluation) == 3
    assert (tmp_path / "data.py.log").read_text() == "train test "


@pytest.mark.parametrize(
    ("reusable", "role", "asked"),
    [(False, "calibration", True), (True, "calibration", False), (False, "evaluation", False)],
)
def test_a_callable_is_asked_only_where_a_step_will_calibrate(reusable: bool, role: str, asked: bool) -> None:
    """A build that reuses everything loads no data."""
    step = SimpleNamespace(reusable=reusable, step=SimpleNamespace(sources={"graph": "simplify", "samples": role}))
    planned: Any = SimpleNamespace(steps=(step,))
    assert calibrates(planned) is asked
