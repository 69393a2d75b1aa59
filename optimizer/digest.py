"""Canonical JSON and sha256: one way to turn documents, files and folders into 64 hex digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def canonical_json(document: Any) -> bytes:
    """Encode with sorted keys, no spaces, UTF-8; NaN and Infinity are refused because JSON has no such numbers."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_json(document: Any) -> str:
    """Return the sha256 of a document's canonical JSON."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_digest(files: Mapping[str, str]) -> str:
    """Return one digest for a set of files, given each one's sha256 under its relative name."""
    return sha256_json(dict(files))
