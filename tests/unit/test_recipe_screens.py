"""Every bad recipe gives exactly the screen that stands beside it."""

from pathlib import Path

import pytest
from recipe_words import WORDS

from optimizer.errors import RecipeError
from optimizer.recipe.loader import load_recipe

BAD = Path(__file__).parents[1] / "fixtures" / "recipes" / "bad"
NAMES = sorted(path.stem for path in BAD.glob("*.yaml"))
JARGON = ("pydantic", "Input should", "extra_forbidden", "literal_", "dict_", "tuple", "NoneType", "Traceback")


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch):
    monkeypatch.chdir(BAD)
    for name in ("SOURCE", "COUNT", "DATA"):
        monkeypatch.delenv(f"OPTIMIZE_{name}", raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_bad_recipe_gives_its_screen(name):
    with pytest.raises(RecipeError) as refused:
        load_recipe(Path(f"{name}.yaml"), {}, WORDS)
    assert str(refused.value) + "\n" == Path(f"{name}.txt").read_text()
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", NAMES)
def test_screen_is_short_placed_and_free_of_jargon(name):
    lines = Path(f"{name}.txt").read_text().splitlines()
    assert 0 < len(lines) <= 15
    placed = lines[:-1] if lines[-1].startswith("and ") else lines
    assert all(line.startswith(f"{name}.yaml:") and line.split(":")[1].isdigit() for line in placed)
    assert not [word for word in JARGON for line in lines if word in line]


def test_every_screen_has_its_recipe():
    assert sorted(path.stem for path in BAD.glob("*.txt")) == NAMES
