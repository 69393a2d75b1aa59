"""The errors of a finished run as its last lines: each once, behind the candidates that fail by it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from optimizer.errors import OptimizerError
from optimizer.results import Report

# What differs between two failures that are one: the digest of the graph, the file of the log.
_DIGEST = re.compile(r" \([0-9a-f]{8}\)")
_LOG = re.compile(r"\blog: \S+")


def told(errors: Iterable[OptimizerError], report: Report) -> list[str]:
    """Return each error's text once, with the names of the candidates whose reason it is."""
    alike: dict[str, list[str]] = {}
    for error in errors:
        text = error.render()
        alike.setdefault(_LOG.sub("log:", _DIGEST.sub("", text)), []).append(text)
    return [_told(texts, report) for texts in alike.values()]


def _told(texts: Sequence[str], report: Report) -> str:
    names = [c.name for c in report.candidates if c.reason in texts]
    text = texts[0] if len(texts) == 1 else _DIGEST.sub("", texts[0])
    if len(texts) > 1 and _LOG.search(text):
        text += f"\n  {len(texts) - 1} more like it beside that log"
    first = text.splitlines()[0]
    missing = [name for name in names if name not in first]
    return f"{', '.join(names)}: {text}" if missing else text
