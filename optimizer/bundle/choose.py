"""Which candidate of a run `--variant NAME [--target NAME]` means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from optimizer.errors import StageError, UsageError
from optimizer.results import CandidateReport, Report


def choose_candidate(report: Report, variant: str, target: str | None = None) -> str:
    """Return a candidate's name: that target's, else the recommended one's, else the only one's.

    Raises: UsageError naming what there is.
    """
    if "@" in variant and target is None:
        return variant  # a candidate's own name
    deployable = [c for c in report.candidates if c.runtime not in _PYTORCH]
    of_variant = [c for c in deployable if c.variant == variant]
    in_pytorch = [c for c in report.candidates if c.variant == variant and c.runtime in _PYTORCH]
    if target in _PYTORCH or (target is None and in_pytorch and not of_variant):
        raise _without_file(report, f"{variant}@{target or in_pytorch[0].runtime}")
    if not of_variant:
        raise unknown("variant", variant, dict.fromkeys(c.variant for c in deployable))
    if target is not None:
        found = [c.name for c in of_variant if c.runtime == target]
        if not found:
            raise unknown("target", target, [c.runtime for c in of_variant], of=f"the variant '{variant}'")
        return found[0]
    recommended = {c.name for c in of_variant if c.name in report.recommended.values()}
    built = [c.name for c in of_variant if c.status != "failed"] or [c.name for c in of_variant]
    names = list(recommended) if len(recommended) == 1 else built
    if len(names) == 1:
        return names[0]
    raise UsageError(
        f"the variant '{variant}' stands for {len(names)} candidates: {', '.join(names)}",
        where="bundle",
        hint=f"say which:  --target {'|'.join(c.runtime for c in of_variant)}",
    )


def find_candidate(report: Report, name: str) -> CandidateReport:
    """Return a candidate that can be deployed.

    Raises: UsageError for an unknown name or one that runs in PyTorch, StageError for one that failed.
    """
    candidate = report.candidate(name)
    if candidate is None:
        raise unknown("candidate", name, [c.name for c in report.candidates if c.runtime not in _PYTORCH])
    if candidate.runtime in _PYTORCH:
        raise _without_file(report, name)
    if candidate.status == "failed":
        raise StageError(
            f"'{name}' failed: {candidate.reason}",
            where="bundle",
            hint="mend it and build again, or bundle another one",
        )
    return candidate


def _without_file(report: Report, name: str) -> UsageError:
    """Return the error for what executes the PyTorch module, with what this run can bundle in its place."""
    variant = name.partition("@")[0]
    able = [c for c in report.candidates if c.runtime not in _PYTORCH and c.status != "failed"]
    own = [c for c in able if c.variant == variant]
    if own:
        hint = f"The same variant can be bundled as:  --variant {variant} --target {'|'.join(c.runtime for c in own)}"
    elif able:
        hint = f"This run can bundle: {', '.join(c.name for c in able)}"
    else:
        hint = "This run has nothing to bundle: add a target to the recipe, e.g. onnxruntime: {}, and build again."
    return UsageError(f"'{name}' runs in PyTorch and has no file to deploy", where="bundle", hint=hint)


def unknown(kind: str, name: str, known: Iterable[str], of: str | None = None) -> UsageError:
    """Return the error for a name that is not there, or that `of` has not: the nearest one, and all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    meant = f", did you mean '{near[0]}'?" if near else ""
    no = f"{of} has no {kind}" if of else f"no {kind}"
    there = "it has" if of else "there are"
    return UsageError(f"{no} '{name}'{meant} ({there}: {', '.join(names) or 'none'})", where="bundle")


_PYTORCH = ("torch", "torch_compile")
