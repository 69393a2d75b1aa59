"""Why a builder made no engine: its log in one sentence, with what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.errors import MissingToolError, OptimizerError, StageError
from optimizer.graph.builder_options import UNLOCK, Library

Line = tuple[str, str]  # severity, text

_ERRORS = ("ERROR", "INTERNAL_ERROR")
# Sources: messages of TensorRT 8.4 to 11 as their users quote them, and the strings of TensorRT-RTX 1.7.
_MEMORY = re.compile(
    r"out ?of ?memory|memory allocation error|insuf+icient memory|memory is insufficient|could not be allocated"
    r"|cudaErrorMemoryAllocation|cudaError 2\b",
    re.IGNORECASE,
)
_HOST_MEMORY = "bad_alloc"  # of this process: no smaller workspace gives it back
_WORKSPACE = re.compile(
    r"within workspace limit|insuf+icient workspace|sufficient workspace|increas\w* the (allowed )?workspace"
    r"|workspace memory greater than",
    re.IGNORECASE,
)
_NO_TACTIC = re.compile(r"could not find any implementation for node (?P<node>.+?)\.?(?:\)|$)", re.IGNORECASE)
# On a machine without a GPU every build complains of the missing driver; that is never the cause.
_NO_DRIVER = "cudaError 35"
# What a cause looks like in the log, and what to do about it.
_ADVICE = (
    (
        re.compile("Turing|SM75"),
        "Compute capability 7.5 (Turing) takes FP16 only: leave it out of compute_capabilities, or build FP16.",
    ),
    (re.compile("timing ?cache", re.IGNORECASE), f"A kernel is missing from the locked timing cache. {UNLOCK}"),
    (
        re.compile("driver version is insufficient|not compatible with driver|CUDA initialization failure"),
        "The NVIDIA driver is absent or too old for this release: update it, or install an older release.",
    ),
    (
        re.compile(r"licen[cs]e", re.IGNORECASE),
        "The library asks for a licence: install the one that belongs to this release, on this machine.",
    ),
    (
        re.compile(r"SM ?\d+ is not supported|unsupported SM|Target GPU", re.IGNORECASE),
        "This release does not serve that GPU: see its support matrix for one that does.",
    ),
)


@dataclass(frozen=True, slots=True)
class Shortage:
    """Memory that ran out while kernels were tried: the node, if named, and what the library said."""

    node: str | None
    said: str

    @property
    def sentence(self) -> str:
        """What happened, without the library's name."""
        where = f" of node '{self.node}'" if self.node else ""
        return f"ran out of memory in a tactic{where} ({self.said})"


def shortage(lines: Sequence[Line]) -> Shortage | None:
    """Return the shortage of memory that ended a build; None where it ended for another reason.

    That a tactic was skipped for lack of memory is a warning; it is the cause only where no other was left.
    """
    errors = [text for severity, text in _plain(lines) if severity in _ERRORS and _NO_DRIVER not in text]
    nodes = [found["node"] for text in errors if (found := _NO_TACTIC.search(text))]
    said = [text for text in errors if _MEMORY.search(text)]
    if not said and nodes:
        said = [text for severity, text in _plain(lines) if severity == "WARNING" and _MEMORY.search(text)]
    return Shortage(nodes[0] if nodes else None, said[-1][:300]) if said else None


def failure(lines: Sequence[Line], library: Library, workspace: int, given: Mapping[str, Any]) -> OptimizerError:
    """Return the one error of a build that failed. `workspace`: the bytes it was allowed.

    Raises: MemoryError where the library says that this process had no more memory.
    """
    if any(severity in _ERRORS and _HOST_MEMORY in text for severity, text in lines):
        raise MemoryError(f"{library.package} says {_HOST_MEMORY}")
    found = shortage(lines)
    name = f"{library.package} {library.version}"
    if found:
        smaller = "a smaller workspace" if "workspace" in given else f"workspace: (bytes, below {workspace})"
        return StageError(f"{name} {found.sentence}", hint=f"Free memory, give {smaller}, or lower the profile's max.")
    errors = [text for severity, text in _plain(lines) if severity in _ERRORS]
    causes = [text for text in errors if _NO_DRIVER not in text] or errors
    said = causes[0][:500] if causes else "it logged no reason"
    if any(_WORKSPACE.search(text) for text in causes):
        more = "Give more, or remove workspace" if "workspace" in given else "Give more in workspace"
        return StageError(
            f"{name} finds no kernel that fits into a workspace of {workspace} bytes: {said}", hint=f"{more}."
        )
    advice = next((text for sign, text in _ADVICE if any(sign.search(cause) for cause in causes)), None)
    return StageError(f"{name} built no engine: {said}", hint=advice or "The log holds every step of the build.")


def no_builder(lines: Sequence[Line], library: Library, error: Exception) -> MissingToolError:
    """Return the error of a builder that did not start."""
    errors = [text for severity, text in _plain(lines) if severity in _ERRORS]
    said = errors[-1][:400] if errors else str(error)
    advice = next((text for sign, text in _ADVICE if sign.search(said)), None)
    elsewhere = "It builds on the NVIDIA GPU that will execute the engine. Without one, use the target tensorrt_rtx."
    return MissingToolError(
        f"{library.package} {library.version} cannot start its builder: {said}",
        hint=f"{elsewhere}\n{advice}" if advice else elsewhere,
    )


def _plain(lines: Sequence[Line]) -> list[Line]:
    return [(severity, " ".join(text.split())) for severity, text in lines]
