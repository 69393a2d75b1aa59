"""The package's own stages and metrics make options that a recipe can give, and the recipes beside it are sound."""

import json
from pathlib import Path

import pytest

from optimizer.errors import RecipeError
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.schema import recipe_schema
from optimizer.recipe.vocabulary import Vocabulary, option_fields

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/recipe.yaml"))
WORDS = Vocabulary.of_this_package()
TABLES = [*WORDS.variants.values(), *WORDS.targets.values()]


@pytest.mark.parametrize("stages", TABLES, ids=str)
def test_stages_of_one_variant_share_no_option_with_another_meaning(stages):
    for name, field in option_fields(stages).items():
        annotations = {repr(s.model_fields[name].annotation) for s in stages if name in s.model_fields}
        assert len(annotations) == 1, (name, field)
        assert name not in ("precision", "targets")


@pytest.mark.parametrize("stages", TABLES, ids=str)
def test_rules_of_options_stand_in_their_annotations(stages):
    """A validator method of a stage would not reach the recipe's check: the error would come while planning."""
    for stage in stages:
        rules = stage.__pydantic_decorators__
        checked = {name for v in rules.field_validators.values() for name in v.info.fields}
        assert not checked & set(option_fields((stage,)))
        assert not rules.model_validators


@pytest.mark.parametrize("stages", TABLES, ids=str)
def test_every_option_has_a_default_and_a_description(stages):
    for name, field in option_fields(stages).items():
        assert not field.is_required(), name
        assert field.description, name


def test_schema_of_the_package_is_json():
    assert json.loads(json.dumps(recipe_schema()))["required"] == ["model", "inputs", "data"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes_of_the_repository_lack_at_most_files_that_are_made_or_fetched(path, tmp_path):
    given = {"data": str(tmp_path)} if "${data}" in path.read_text() else {}
    try:
        load_recipe(path, given)
        problems = []
    except RecipeError as error:
        problems = str(error).splitlines()
    assert [line for line in problems if ": no such file: " not in line] == []
