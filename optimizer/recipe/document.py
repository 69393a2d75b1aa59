"""Strict YAML 1.2: plain data, and the line and column of every key and value.

PyYAML reads YAML 1.1 (`no` is False, `1e-3` is text, the later of two equal keys wins); here only its parser is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from optimizer.recipe.wording import SYNTAX, KeyPath, Place, Problem, Problems, nearest

_PLAIN = "!plain"
_STR = "tag:yaml.org,2002:str"
_MAX_VALUES = 20_000  # aliases of aliases grow exponentially; no recipe comes near

_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

# ${NAME} may stand in a flow mapping, where YAML gives braces another meaning: while parsing it wears as many
# private-use characters as it is long, so that every column stays true.
_SETTING = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MASKED = re.compile("\ue000\ue000([A-Za-z_][A-Za-z0-9_]*)\ue001")


def _mask(text: str) -> str:
    return _SETTING.sub("\ue000\ue000\\1\ue001", text)


def _unmask(text: str) -> str:
    return _MASKED.sub(r"${\1}", text)


@dataclass
class Document:
    """What a YAML file says, and where."""

    data: Any = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # each ${NAME} that was filled

    def key_place(self, path: KeyPath) -> Place:
        """Return where a key stands; of a key that is missing, where its mapping's key stands."""
        while path and path not in self.keys:
            path = path[:-1]
        return self.keys.get(path, Place(1, 1))

    def value_place(self, path: KeyPath) -> Place:
        """Return where a value stands; of one that is missing, where its mapping's key stands."""
        return self.values[path] if path in self.values else self.key_place(path)


class _Parser(yaml.SafeLoader):
    """PyYAML's parser without its YAML 1.1 types: unquoted text is marked, and given its type later."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STR
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


def parse(text: str, settings: Mapping[str, str], environment: Mapping[str, str], problems: Problems) -> Document:
    """Read one YAML document. Everything wrong with it is added to `problems`, and the rest is still read.

    `${NAME}` is filled from `settings`, else from the variable `OPTIMIZE_NAME` of `environment`.
    """
    document = Document()
    problems.document = document
    parser = None
    try:
        parser = _Parser(_mask(text))
        root = parser.get_single_node()
    except yaml.MarkedYAMLError as error:
        problems.add_at(_place(error.problem_mark), _syntax(error))
        return document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.add_at(Place(line, 1), f"character U+{ord(str(error.character)):04X} is not allowed in YAML")
        return document
    except RecursionError:
        problems.add_at(Place(1, 1), "is nested too deeply to be a recipe")
        return document
    finally:
        if parser is not None:
            parser.dispose()
    if root is None:
        problems.add_at(Place(1, 1), "the file is empty")
        return document
    reader = _Reader(document, problems, settings, environment)
    document.data = reader.read(root, ())
    for name in settings:
        if name not in reader.asked:
            problems.add_plain(_unused(name, reader.asked))
    return document


class _Reader:
    """Turns nodes into plain data and notes where each stood."""

    def __init__(
        self, document: Document, problems: Problems, settings: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        self.document = document
        self.problems = problems
        self.settings = settings
        self.environment = environment
        self.asked: set[str] = set()
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.values[path] = _place(node.start_mark)
        self._count += 1
        if id(node) in self._open:
            return self._refuse(path, "an alias refers to itself")
        if self._count == _MAX_VALUES:
            self._refuse(path, f"aliases make more than {_MAX_VALUES:,} values of it")
        if self._count >= _MAX_VALUES:
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in ("map", "seq"):
            return self._refuse(path, f"tag '{_tag(node)}' is not allowed")
        self._open.add(id(node))
        value = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        self._open.discard(id(node))
        return value

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add_at(place, "a key must be a word", path)
                continue
            key = self._fill(key_node, path)
            if key == "<<":
                self.problems.add_at(place, "merge keys ('<<') are not in YAML 1.2: write the keys out", path)
            elif key in mapping:
                first = self.document.keys[(*path, key)].line
                self.problems.add_at(place, f"duplicate key, first given on line {first}", (*path, key))
            elif key is not None:
                self.document.keys[(*path, key)] = place
                mapping[key] = self.read(value_node, (*path, key))
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag not in (_PLAIN, _STR):
            return self._refuse(path, f"tag '{_tag(node)}' is not allowed")
        text = self._fill(node, path)
        return core_scalar(text) if text is not None and node.tag == _PLAIN else text

    def _fill(self, node: yaml.ScalarNode, path: KeyPath) -> str | None:
        """Return the text with every `${NAME}` replaced, or None where one is not set."""
        unset: list[str] = []

        def value_of(match: re.Match[str]) -> str:
            name = match[1]
            self.asked.add(name)
            value = self.settings.get(name)
            if value is None:
                value = self.environment.get(f"OPTIMIZE_{name.upper()}") or None  # an empty variable is an unset one
            if value is None:
                unset.append(name)
                return ""
            self.document.settings[name] = value
            return value

        text: str = _MASKED.sub(value_of, node.value)
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            self._refuse(path, "holds half of a surrogate pair, which is no character")
            return None
        if "${" in node.value:
            self._refuse(path, "'${' must be followed by a name and '}', e.g. ${data}")
            return None
        for name in dict.fromkeys(unset):
            self._refuse(
                path, f"${{{name}}} is not set: give --set {name}=VALUE or the variable OPTIMIZE_{name.upper()}"
            )
        return None if unset else text

    def _refuse(self, path: KeyPath, text: str) -> None:
        self.problems.add(Problem(path, text, SYNTAX))


def core_scalar(text: str) -> Any:
    """Return the value of unquoted text by the core schema.

    Source: YAML 1.2.2, section 10.3.2.
    """
    if _NULL.fullmatch(text):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 1000 else text
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return float("-inf") if text.startswith("-") else float("inf")
    return float("nan") if _NAN.fullmatch(text) else text


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def _unused(name: str, asked: set[str]) -> str:
    if not asked:
        return f"--set {name}=...: the recipe has no ${{...}} to fill"
    known = ", ".join(sorted(asked))
    return f"--set {name}=...: the recipe has no ${{{name}}}{nearest(name, sorted(asked)).asked} (known: {known})"


# PyYAML's wording of the usual mistakes, and ours.
_SYNTAX_WORDS = (
    (
        "mapping values are not allowed",
        "a ':' where none may stand: check the indentation, or quote text that holds ': '",
    ),
    ("character '\\t'", "a tab: indent with spaces"),
    ("could not find expected ':'", "a key without its ':'"),
    ("expected <block end>", "wrong indentation: the line does not fit the lines above it"),
    ("did not find expected <document start>", "a second document or text after the end: a recipe is one mapping"),
    ("but found another document", "a second document: a recipe is one mapping"),
    ("expected ',' or ']'", "a list opened with '[' is not closed, or a ',' is missing"),
    ("expected ',' or '}'", "a mapping opened with '{' is not closed, or a ',' is missing"),
    ("while scanning a quoted scalar", "a quotation mark is not closed"),
)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    said = _unmask(f"{error.context or ''} {error.problem or ''}")
    for theirs, ours in _SYNTAX_WORDS:
        if theirs in said:
            return ours
    return f"not YAML: {_unmask(error.problem or error.context or 'cannot be read')}"
