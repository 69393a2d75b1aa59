"""The passport of a bundle: what it is, the sha256 of every file, and a seal over the passport itself.

The seal shows damage and careless edits. It is no signature: whoever rewrites the whole bundle can seal it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.digest import sha256_file, sha256_json
from optimizer.errors import StageError, UsageError

PASSPORT = "passport.json"
SCHEMA_VERSION = 1


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with its `seal`: the sha256 of the canonical JSON of all the rest."""
    rest = {key: value for key, value in document.items() if key != "seal"}
    return {**rest, "seal": sha256_json(rest)}


def render(document: Mapping[str, Any]) -> bytes:
    """Return the one way a passport is written; any other bytes with the same meaning are not a whole passport."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_passport(folder: Path) -> dict[str, Any]:
    """Read `passport.json` and check its seal.

    Raises: UsageError where there is no bundle or one of another schema, StageError where it was changed.
    """
    path = folder / PASSPORT
    if not path.is_file():
        what = f"is no bundle: it has no {PASSPORT}" if folder.is_dir() else "there is no such folder"
        raise UsageError(what, where=str(folder), hint="write one with:  optimize bundle RUN --variant NAME -o DIR")
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except ValueError as error:
        raise StageError(f"is damaged: {error}", where=str(path), hint=_AGAIN) from error
    if not isinstance(document, dict) or "seal" not in document:
        raise StageError("is damaged: it has no seal", where=str(path), hint=_AGAIN)
    expected, found = document["seal"], seal(document)["seal"]
    if expected != found or render(document) != data:
        found = found if expected != found else "the same content, written differently"
        raise StageError(
            f"was changed: its seal is {expected}, its content gives {found}", where=str(path), hint=_AGAIN
        )
    if document.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"has schema_version {document.get('schema_version')}; this release reads {SCHEMA_VERSION}",
            where=str(path),
            hint="use the release that wrote it, or write the bundle again",
        )
    return document


def verify_files(folder: Path, passport: Mapping[str, Any]) -> None:
    """Compare every file with the passport. Raises: StageError naming each that is missing, changed or extra."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {PASSPORT}
    problems = [f"'{name}' is missing" for name in sorted(passport["files"].keys() - present)]
    problems += [f"'{name}' is not in the passport" for name in sorted(present - passport["files"].keys())]
    for name in sorted(present & passport["files"].keys()):
        expected, found = passport["files"][name]["sha256"], sha256_file(folder / name)
        if expected != found:
            problems.append(f"'{name}' was changed: its sha256 is {found}, the passport says {expected}")
    if problems:
        raise StageError("; ".join(problems), where=str(folder), hint=_AGAIN)


_AGAIN = "copy the bundle again from where it was written, or write it again with optimize bundle"
