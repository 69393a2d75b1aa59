"""Plain data into sections: pydantic finds what is wrong, this module says it in the recipe's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.recipe import model
from optimizer.recipe.wording import MISSING, SHAPE, KeyPath, Problem, Problems, listed, nearest, shown

T = TypeVar("T")
_SHA256 = "^[0-9a-f]{64}$"
_RANGES = "profile.<axis>"


def validate(kind: type[T], data: Any, path: KeyPath, problems: Problems, known: Sequence[str] = ()) -> T | None:
    """Return `data` as `kind`, or None. What is wrong is noted; a value that has a default is then left at it.

    `known` are keys that the mapping may also hold, to be named beside those of `kind`.
    """
    value, broken = _attempt(kind, data, path, problems, known)
    if not broken or () in broken:
        return value
    kept = data
    for key in broken:
        kept = _without(kept, key)
    return _attempt(kind, kept, path, None, known)[0]


def mapping(data: Any, path: KeyPath, problems: Problems, *, may_be_empty: bool = True) -> Mapping[str, Any]:
    """Return `data` if it is a mapping; otherwise note that it must be one and return an empty one."""
    if isinstance(data, dict) and (data or may_be_empty):
        return data
    hint = " (write {} for the defaults)" if data is None and may_be_empty else ""
    problems.add(Problem(path, f"needs a mapping, got {shown(data)}{hint}", SHAPE))
    return {}


def keys(data: Mapping[str, Any], known: Sequence[str], required: Mapping[str, str], problems: Problems) -> None:
    """Check the keys of the whole file: `required` says what each missing one should hold."""
    absent = [name for name in known if name not in data]
    for key in data:
        if key not in known:
            problems.add(_unknown_key((), key, known, absent))
    for name, what in required.items():
        if name not in data:
            problems.add(Problem((name,), f"missing: {what}", MISSING, at_key=True))


def _attempt(
    kind: type[T], data: Any, path: KeyPath, problems: Problems | None, known: Sequence[str]
) -> tuple[T | None, list[KeyPath]]:
    """Validate as JSON, where a list may be a tuple, and strictly otherwise. Also return the keys that are wrong."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data)), []
    except ValidationError as error:
        grouped: dict[KeyPath, list[Any]] = {}
        for item in error.errors(include_url=False):
            inner = _real_path(item, data)
            # pydantic counts only sound entries; a list that is long enough as written is not short
            if item["type"] != "too_short" or len(_at(data, inner)) < item["ctx"]["min_length"]:
                grouped.setdefault(inner, []).append(item)
    if problems is not None:
        for inner, items in grouped.items():
            problems.add(_worded(kind, data, path, inner, items, known))
    return None, [_to_drop(inner) for inner in grouped]


def _worded(kind: Any, data: Any, base: KeyPath, inner: KeyPath, items: list[Any], known: Sequence[str]) -> Problem:
    path = (*base, *inner)
    item = items[0]
    if item["type"] == "extra_forbidden":
        section = _section_at(kind, inner[:-1])
        fields = [*known, *section.model_fields] if section else list(known)
        parent = _at(data, inner[:-1])
        return _unknown_key(path[:-1], str(path[-1]), fields, [name for name in fields if name not in parent])
    if item["type"] == "missing":
        section = _section_at(kind, inner[:-1])
        described = section.model_fields[str(inner[-1])].description if section else None
        return Problem(path, "missing" + (f": {described}" if described else ""), MISSING, at_key=True)
    given = _at(data, inner)
    if item["type"] in ("value_error", "assertion_error"):
        return Problem(path, str(item["ctx"]["error"]), SHAPE)
    expected = list(dict.fromkeys(_expected(i) for i in items))
    if "a mapping" in expected and given is None:
        expected = ["a mapping (write {} for the defaults)"]
    quotes = f" (write '{shown(given)}')" if expected == ["text"] and isinstance(given, int | float) else ""
    one = f"; write [{given}]" if expected == ["a list"] and is_one(given) else ""
    return Problem(path, f"needs {' or '.join(expected)}, got {shown(given)}{_meant(items, given)}{quotes}{one}", SHAPE)


def is_one(given: Any) -> bool:
    """Tell whether a value could be the only entry of the list that is needed, written as it is."""
    if isinstance(given, str):
        return given.isprintable() and bool(given.strip())
    return isinstance(given, int | float) and not isinstance(given, bool)


def _unknown_key(parent: KeyPath, key: str, known: Sequence[str], absent: Sequence[str]) -> Problem:
    meant = nearest(key, absent)
    if meant.name:
        return Problem(
            (*parent, key), f"unknown key{meant.asked} {listed(known)}", SHAPE, True, (), (*parent, meant.name)
        )
    homes = [home for home in _homes().get(key, ()) if home != ".".join(map(str, parent))]
    if parent[:1] not in (("inputs",), ("profile",)):  # elsewhere `min` and `max` are of something else
        homes = [home for home in homes if home != _RANGES]
    home = f", it stands in {' or '.join(homes[:2])}" if homes else ""
    return Problem((*parent, key), f"unknown key{home} {listed(known)}", SHAPE, at_key=True)


def _meant(items: Sequence[Any], given: Any) -> str:
    literals = [i for i in items if i["type"] == "literal_error"]
    if not literals or not isinstance(given, str):
        return ""
    return nearest(given, _choices(literals[0])).asked


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than": ("gt", "a number above"),
    "greater_than_equal": ("ge", "a number of at least"),
    "less_than": ("lt", "a number below"),
    "less_than_equal": ("le", "a number of at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


def _expected(item: Mapping[str, Any]) -> str:
    """Return what stands after 'needs' for one pydantic error."""
    kind, context = str(item["type"]), item.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{words} {context[bound]:g}"
    if kind == "literal_error":
        return ("one of " if len(_choices(item)) > 1 else "") + ", ".join(_choices(item))
    if kind == "too_short":
        return "at least one entry" if context["min_length"] == 1 else f"{context['min_length']} entries"
    if kind == "too_long":
        return f"at most {context['max_length']} entries"
    if kind == "string_pattern_mismatch":
        return _form(context["pattern"])
    return str(item["msg"]).replace("Input should be ", "").replace("Input should ", "to ")


def _form(pattern: str) -> str:
    """Return a pattern in words where it is made of digits and plain characters."""
    if pattern == _SHA256:
        return "64 lower-case hexadecimal digits"
    plain = pattern.strip("^$").replace("\\d+", "N").replace("\\d", "N").replace("\\.", ".")
    form = " or ".join(plain.removeprefix("(").removesuffix(")").split("|"))
    return f"text like {pattern}" if set(form) & set("\\[](){}*+?|^$") else f"text of the form {form}, N a number"


def _choices(item: Mapping[str, Any]) -> list[str]:
    # pydantic gives the choices as one sentence: 'a', 'b' or 'c'
    sentence = str(item["ctx"]["expected"]).replace(" or ", ", ")
    return ["true" if choice == "True" else choice.strip("'") for choice in sentence.split(", ")]


def _real_path(item: Mapping[str, Any], data: Any) -> KeyPath:
    """Return the keys of a pydantic location that are keys of the data: it also holds the names of union members."""
    path: list[str | int] = []
    location = item["loc"]
    for index, part in enumerate(location):
        if _has(data, part):
            data = data[part]
            path.append(part)
        elif item["type"] == "missing" and index == len(location) - 1:
            path.append(part)
    return tuple(path)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _to_drop(path: KeyPath) -> KeyPath:
    """Return the key whose removal leaves a sound rest: a list with a wrong entry goes as a whole."""
    first_index = next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))
    return path[:first_index]


def _without(data: Any, path: KeyPath) -> Any:
    if not isinstance(data, dict) or path[0] not in data:
        return data
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: _without(data[path[0]], path[1:])}


def _section_at(kind: Any, path: KeyPath) -> type[BaseModel] | None:
    section = _section_of(kind)
    for part in path:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_of(field.annotation) if field else None
    return section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_of(argument))), None)


@cache
def _homes() -> dict[str, list[str]]:
    """Return where each key of the recipe may stand, by name: a key in the wrong mapping is told its home."""
    homes: dict[str, list[str]] = {}
    sections: dict[str, type[BaseModel]] = {
        "model": model.ModelSource,
        "inputs.<name>": model.InputSpec,
        "data": model.Data,
        "data.calibration": model.CalibrationData,
        "data.evaluation": model.EvaluationData,
        "data.transform": model.TransformStep,
        "measure": model.Measure,
        _RANGES: model.ShapeRange,
    }
    for name in model.Recipe.top_level():
        homes.setdefault(name, []).append("the top level")
    for home, section in sections.items():
        for name in section.model_fields:
            homes.setdefault(name, []).append(home)
    return homes
