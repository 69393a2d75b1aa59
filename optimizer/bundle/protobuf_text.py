"""Writes a message in protobuf's text format: names, strings, numbers, lists and nested messages.

Source: Protocol Buffers, "Text Format Language Specification".
"""

from __future__ import annotations

from collections.abc import Iterable

# A field and its value; a tuple is a list of numbers, names or strings, a list is a nested message.
Value = str | int | tuple["str | int", ...] | list[tuple[str, "Value"]]
Message = list[tuple[str, Value]]

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Name(str):
    """A value of an enum, which stands without quotes."""

    __slots__ = ()


def render(message: Message) -> str:
    """Return the message, a field a line; a repeated message is the same field again."""
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Message, indent: str = "") -> Iterable[str]:
    for name, value in message:
        if isinstance(value, list):
            yield f"{indent}{name} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"
        elif isinstance(value, tuple):
            yield f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Name):
        return str(value)
    return '"' + "".join(_character(c) for c in value) + '"'


def _character(character: str) -> str:
    """Escape what would end the string or be lost in it; text beyond ASCII stands as it is, in UTF-8."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else "".join(f"\\{byte:03o}" for byte in character.encode())
