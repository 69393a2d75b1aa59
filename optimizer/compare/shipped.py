"""A bundle to compare: its passport, what it is made of, the golden samples that it carries."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import StageError, UsageError
from optimizer.runtime import load
from optimizer.runtime.bundle import LABELS, PREPROCESSING, Deployment
from optimizer.runtime.engine_interface import RECEIPT
from optimizer.runtime.feed import range_positions, within
from optimizer.runtime.golden import GOLDEN, batch_sizes, failed, read_golden
from optimizer.runtime.passport import PASSPORT, read_passport, verify_files
from optimizer.runtime.session import Array
from optimizer.types import TensorSpec

# What no runtime executes; external data may have any other name.
_BESIDE = (GOLDEN, LABELS, PREPROCESSING, RECEIPT, "receipt.json")
_TRITON = "triton/"
# What a comparison reads of a passport.
_READ = (
    *("name", "candidate", "status", "accuracy", "latency_ms", "profile", "inputs", "outputs", "files"),
    *("from.created", "golden.tolerance", "runs_on.runtime", "runs_on.device", "runs_on.packages"),
    *("environment", "precision.requested", "precision.delivered"),
)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose seal is whole. `side` names it in sentences: baseline or candidate."""

    folder: Path
    passport: Mapping[str, Any]
    side: str

    @property
    def name(self) -> str:
        """The candidate that it ships, e.g. `int8@onnxruntime`."""
        return str(self.passport["candidate"])

    @property
    def runtime(self) -> str:
        """What executes it."""
        return str(self.passport["runs_on"]["runtime"])

    @property
    def device(self) -> str:
        """Where it executes."""
        return str(self.passport["runs_on"]["device"])

    @property
    def threads(self) -> int:
        """CPU threads that its latency was measured with when it was built."""
        return int(self.passport["environment"].get("threads", 1))

    @cached_property
    def artifact(self) -> dict[str, str]:
        """The sha256 of every file of the artifact, by name."""
        files = sorted(self.passport["files"].items())
        return {n: file["sha256"] for n, file in files if n not in _BESIDE and not n.startswith(_TRITON)}

    @property
    def bytes(self) -> int:
        """The bytes of the artifact."""
        return sum(int(self.passport["files"][name]["bytes"]) for name in self.artifact)

    def same_as(self, other: Bundle) -> bool:
        """Whether both execute the same artifact, byte for byte, in the same runtime and place."""
        ours, theirs = (b.artifact | {"": f"{b.runtime} on {b.device}"} for b in (self, other))
        return ours == theirs

    @property
    def preprocessing(self) -> str | None:
        """The sha256 of what is done to a sample before the model has it, None where nothing is."""
        file = self.passport["files"].get(PREPROCESSING)
        return str(file["sha256"]) if file else None

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""
        return tuple(TensorSpec.from_json(spec) for spec in self.passport["inputs"])

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns."""
        return tuple(TensorSpec.from_json(spec) for spec in self.passport["outputs"])

    @cached_property
    def golden_inputs(self) -> dict[str, Array]:
        """Real inputs: samples of one shape that it was evaluated on."""
        place = self.folder / GOLDEN
        try:
            return read_golden(place)[0]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise StageError(f"cannot be read: {error}", where=str(place), hint="Write the bundle again.") from error

    def takes(self, batch: int) -> bool:
        """Whether the batch is within its profile."""
        low, high = batch_sizes(self.inputs, self.passport["profile"]) or (batch, batch)
        return low <= batch <= high

    def takes_sizes_of(self, other: Bundle) -> bool:
        """Whether the golden inputs of the other bundle are within this one's profile, their number aside."""
        samples = other.golden_inputs
        low, _ = batch_sizes(self.inputs, self.passport["profile"]) or (1, 1)
        rows = np.arange(low) % len(next(iter(samples.values())))
        positions = range_positions(self.inputs, self.passport["profile"])
        return other is self or within(positions, {name: array[rows] for name, array in samples.items()})

    def open(self, threads: int) -> Deployment:
        """Load it; its files were verified before.

        Raises: StageError when the runtime refuses it, MissingToolError when the runtime or the device is not here.
        """
        return load(self.folder, threads=threads, verify=False)


def read_bundle(folder: Path, side: str) -> Bundle:
    """Read a bundle and check its seal and every file's.

    Raises: UsageError where there is no bundle, StageError where it is damaged.
    """
    passport = read_passport(folder)
    missing = [name for name in _READ if not _holds(passport, name)]
    if missing:
        raise StageError(
            f"does not hold what a comparison reads: {', '.join(missing)}",
            where=str(folder / PASSPORT),
            hint="write the bundle again with optimize bundle",
        )
    verify_files(folder, passport)
    return Bundle(folder, passport, side)


def _holds(document: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(document, Mapping) or part not in document:
            return False
        document = document[part]
    return True


def check_interfaces(before: Bundle, after: Bundle) -> None:
    """Hold the inputs and outputs of two bundles against each other, by name.

    Raises: UsageError with everything that differs.
    """
    problems = [
        problem
        for kind, one, other in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs))
        for problem in _unlike(kind, one, other)
    ]
    if problems:
        raise UsageError(
            f"its interface is not the one of {before.folder}: {'; '.join(problems)}",
            where=str(after.folder),
            hint="Bundles are compared that can stand for each other: of the same names, types and shapes.",
        )


def _unlike(kind: str, before: tuple[TensorSpec, ...], after: tuple[TensorSpec, ...]) -> list[str]:
    old, new = ({spec.name: spec for spec in specs} for specs in (before, after))
    problems = [f"{kind} '{name}' is missing" for name in old if name not in new]
    problems += [f"{kind} '{name}' is new" for name in new if name not in old]
    for name in old.keys() & new.keys():
        if _form(old[name]) != _form(new[name]):
            problems.append(f"{kind} '{name}' is {_said(new[name])}, was {_said(old[name])}")
    return problems


def _form(spec: TensorSpec) -> tuple[str, tuple[int | None, ...]]:
    """What a caller depends on; how a dynamic axis is called is not."""
    return spec.dtype, tuple(size if isinstance(size, int) else None for size in spec.shape)


def _said(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def check_golden(bundle: Bundle, deployment: Deployment) -> None:
    """Run the golden inputs. Raises: StageError when the golden outputs do not come out here."""
    unlike = failed(deployment.check_golden())
    if unlike:
        raise StageError(
            f"the golden outputs do not come out: {'; '.join(unlike)}",
            where=str(bundle.folder),
            hint="This machine computes something else than where the bundle was built; "
            f"see:  optimize check {bundle.folder}",
        )


def same_inputs(before: Bundle, after: Bundle) -> bool:
    """Whether the golden inputs of both are the same samples."""
    one, other = before.golden_inputs, after.golden_inputs
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())
