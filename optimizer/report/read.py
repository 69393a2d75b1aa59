"""Read and write report.json, schema version 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizer.disk import write_text
from optimizer.errors import UsageError
from optimizer.results import Report

SCHEMA_VERSION = 1
_SHOWN_PROBLEMS = 6
_REBUILD = "Write it again with this version:  optimize build RECIPE"


def read_report(path: Path) -> Report:
    """Return the report in `path`, a report.json or the folder that holds one.

    Raises: UsageError when there is none, or when it is not a report of this schema version.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("there is no report here", where=str(file), hint="Give a run's folder or number.") from None
    except OSError as error:
        raise UsageError(f"the report cannot be read: {error.strerror}", where=str(file)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"not JSON: byte {error.start} is not UTF-8", where=str(file), hint=_REBUILD) from error
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}:{error.colno}"
        raise UsageError(f"not JSON: {error.msg}", where=where, hint=_REBUILD) from error
    _check_version(document, file)
    return _validate(document, file)


def _check_version(document: Any, file: Path) -> None:
    if not isinstance(document, dict):
        found = type(document).__name__
        raise UsageError(f"not a report: a {found} where an object is expected", where=str(file), hint=_REBUILD)
    if "schema_version" not in document:
        known = ", ".join(sorted(document)[:_SHOWN_PROBLEMS]) or "nothing"
        what = f"not a report: it has no 'schema_version' (found: {known})"
        raise UsageError(what, where=str(file), hint=_REBUILD)
    if document["schema_version"] != SCHEMA_VERSION:
        what = f"schema_version is {document['schema_version']!r}, this version reads {SCHEMA_VERSION}"
        raise UsageError(what, where=str(file), hint=_REBUILD)


def _validate(document: dict[str, Any], file: Path) -> Report:
    from pydantic import ValidationError

    try:
        return Report.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg'].lower()}" for e in error.errors()]
    shown = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise UsageError("the report has the wrong shape", where=str(file), hint="\n".join([*shown, _REBUILD]))


def to_json(report: Report) -> str:
    """Return the text of report.json: keys in the order of the schema, two spaces, a newline at the end."""
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(report: Report, path: Path) -> None:
    """Write report.json. A reader sees the old file or the new one, never half of one."""
    write_text(path, to_json(report))
