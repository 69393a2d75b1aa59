"""The JSON Schema says of a recipe what the loader says."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from recipe_words import WORDS

from optimizer.cli.schema import command
from optimizer.recipe.model import Recipe
from optimizer.recipe.schema import recipe_schema

GOOD = yaml.safe_load((Path(__file__).parents[1] / "fixtures" / "recipes" / "good.yaml").read_text())
SCHEMA = recipe_schema(WORDS)
TYPES = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool}


def fits(schema, value):
    """Check the keywords that our schemas use.

    Source: JSON Schema 2020-12, validation vocabulary.
    """
    if "$ref" in schema and not fits(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], value):
        return False
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if not all(fits(s, value) for s in schema.get("allOf", [])):
        return False
    if "anyOf" in schema and not any(fits(s, value) for s in schema["anyOf"]):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    return {dict: fits_object, list: fits_array, str: fits_text}.get(type(value), fits_number)(schema, value)


def fits_object(schema, value):
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        inner = properties.get(key, rest)
        if inner is False or (isinstance(inner, dict) and not fits(inner, item)):
            return False
    enough = schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", 99)
    return enough and set(schema.get("required", ())) <= set(value)


def fits_array(schema, value):
    items = schema.get("items", {})
    return schema.get("minItems", 0) <= len(value) and all(not items or fits(items, item) for item in value)


def fits_text(schema, value):
    return re.search(schema.get("pattern", ""), value) is not None


def fits_number(schema, value):
    return value is None or (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and not value <= schema.get("exclusiveMinimum", value - 1)
    )


def test_good_recipe_fits():
    assert fits(SCHEMA, GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"nmae": "x"},
        {"name": "a/b"},
        {"variants": {"int8": {"methd": "minmax"}}},
        {"variants": {"int8": {"method": "min"}}},
        {"variants": {"int8": {"dialect": "cpu"}}},
        {"variants": {"tight": {"method": "minmax"}}},
        {"variants": {}},
        {"targets": {"onnxruntime": {"threads": 1}}},
        {"targets": {"openvino": {}}},
        {"metrics": ["top2"]},
        {"metrics": [{"top1": {"output": 1}}]},
        {"gate": {"top1": {"max_drop": -1}}},
        {"gate": {"batch": 0}},
        {"measure": {"batches": []}},
        {"inputs": {"image": {"dtype": "float", "shape": []}}},
    ],
)
def test_schema_refuses_what_the_loader_refuses(change):
    assert not fits(SCHEMA, {**GOOD, **change})


@pytest.mark.parametrize("key", ["model", "inputs", "data"])
def test_schema_requires_what_has_no_default(key):
    assert not fits(SCHEMA, {k: v for k, v in GOOD.items() if k != key})


def test_freely_named_variant_fits_with_its_precision():
    assert fits(SCHEMA, {**GOOD, "variants": {"tight": {"precision": "int8", "method": "minmax"}}})
    assert not fits(SCHEMA, {**GOOD, "variants": {"tight": {"precision": "fp16", "method": "minmax"}}})


def test_schema_has_exactly_the_keys_of_a_recipe():
    assert tuple(SCHEMA["properties"]) == Recipe.top_level()
    assert len(SCHEMA["properties"]) == 10


def test_every_reference_leads_somewhere():
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(SCHEMA)))
    assert references
    assert references <= set(SCHEMA["$defs"])


def test_command_prints_the_schema_of_the_report():
    result = CliRunner().invoke(command, ["--report"])
    assert result.exit_code == 0
    assert {"schema_version", "candidates", "verdict"} <= set(json.loads(result.stdout)["properties"])
