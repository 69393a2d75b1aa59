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
def test_screen_is_placed_and_free_of_jargon(name):
    lines = Path(f"{name}.txt").read_text().splitlines()
    assert lines
    assert all(line.startswith(f"{name}.yaml:") and line.split(":")[1].isdigit() for line in lines)
    assert not [word for word in JARGON for line in lines if word in line]


def test_every_problem_is_told_however_many_there_are():
    """A list cut after 14 would send its reader round again."""
    wrong = [line.split(":")[0] for line in Path("many.yaml").read_text().splitlines() if line.startswith("key")]
    told = Path("many.txt").read_text()
    assert len(wrong) > 15
    assert all(f" {key}: unknown key" in told for key in wrong)


def test_every_screen_has_its_recipe():
    assert sorted(path.stem for path in BAD.glob("*.txt")) == NAMES
