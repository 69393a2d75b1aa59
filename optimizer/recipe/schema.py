"""The JSON Schema of a recipe: what an editor completes and checks while one is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from optimizer.recipe.model import (
    Data,
    InputSpec,
    Measure,
    MetricLimit,
    MetricOptions,
    ModelSource,
    Recipe,
    ShapeRange,
    SpeedupLimit,
)
from optimizer.recipe.vocabulary import Vocabulary, target_options, variant_options

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SAFE_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
_SECTIONS: tuple[type[BaseModel], ...] = (
    ModelSource,
    InputSpec,
    ShapeRange,
    Data,
    Measure,
    MetricOptions,
    MetricLimit,
    SpeedupLimit,
)


def recipe_schema(vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Return the schema of the file, with the options of every precision and target."""
    words = vocabulary or Vocabulary.of_this_package()
    variants = {name: variant_options(name, stages) for name, stages in words.variants.items()}
    targets = {name: target_options(name, stages) for name, stages in words.targets.items()}
    models = [*_SECTIONS, *variants.values(), *targets.values()]
    references, definitions = models_json_schema([(m, "validation") for m in models])
    of = {m: references[m, "validation"] for m in models}
    properties = {
        "name": {"type": "string", "pattern": _SAFE_NAME},
        "model": of[ModelSource],
        "inputs": {"type": "object", "additionalProperties": of[InputSpec], "minProperties": 1},
        "profile": {"type": "object", "additionalProperties": of[ShapeRange]},
        "data": of[Data],
        "metrics": _metrics(words, of[MetricOptions]),
        "variants": _variants({name: of[m] for name, m in variants.items()}),
        "targets": {
            "type": "object",
            "properties": {name: of[m] for name, m in targets.items()},
            "additionalProperties": False,
            "minProperties": 1,
        },
        "measure": of[Measure],
        "gate": _gate(words, of),
    }
    for name, described in properties.items():
        if "$ref" not in described and (text := Recipe.model_fields[name].description):
            described["description"] = text
    return {
        "$schema": _DIALECT,
        "title": "Recipe",
        "type": "object",
        "properties": properties,
        "required": ["model", "inputs", "data"],
        "additionalProperties": False,
        "$defs": definitions["$defs"],
    }


def _metrics(words: Vocabulary, options: Mapping[str, Any]) -> dict[str, Any]:
    with_options = {
        "type": "object",
        "properties": dict.fromkeys(words.metrics, options),
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"type": "array", "items": {"anyOf": [{"enum": list(words.metrics)}, with_options]}}


def _variants(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A variant named as a precision is of that precision; any other says which it is."""
    named = [
        {"allOf": [section, {"properties": {"precision": {"const": name}}, "required": ["precision"]}]}
        for name, section in sections.items()
    ]
    return {
        "type": "object",
        "properties": dict(sections),
        "propertyNames": {"pattern": _SAFE_NAME},
        "additionalProperties": {"anyOf": named},
        "minProperties": 1,
    }


def _gate(words: Vocabulary, of: Mapping[type[BaseModel], Mapping[str, Any]]) -> dict[str, Any]:
    batch = {"type": "integer", "exclusiveMinimum": 0, "description": "default: the first of measure.batches"}
    limits = dict.fromkeys(words.metrics, of[MetricLimit])
    return {
        "type": "object",
        "properties": {"batch": batch, "speedup": of[SpeedupLimit], **limits},
        "additionalProperties": False,
    }
