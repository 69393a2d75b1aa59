"""The calibration table: ranges per tensor by every method, as readable JSON that serves all dialects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import StageError

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class MethodRange:
    """What one method found for one tensor.

    `low` and `high` are for asymmetric integers, `magnitude` for symmetric ones; `clipped` is the share of the values
    beyond `magnitude`. `sqnr_db` is what symmetric int8 is expected to leave, `unsigned_sqnr_db` what uint8 over
    [low, high] is (None: no signal, or no error). `earlier` holds the magnitude at the table's checkpoints, and is
    empty where nobody asked.
    """

    low: float
    high: float
    magnitude: float
    clipped: float = 0.0
    sqnr_db: float | None = None
    earlier: tuple[float, ...] = ()
    unsigned_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One activation: the extremes and how many values were seen, what each method found, and the method chosen."""

    min: float
    max: float
    values: int
    method: str
    methods: Mapping[str, MethodRange]
    module: str = ""  # the PyTorch module that makes it, where that is known

    @property
    def chosen(self) -> MethodRange:
        """What the chosen method found."""
        return self.methods[self.method]

    @property
    def low(self) -> float:
        """Smallest value that asymmetric integers cover."""
        return self.chosen.low

    @property
    def high(self) -> float:
        """Largest value that asymmetric integers cover."""
        return self.chosen.high

    @property
    def magnitude(self) -> float:
        """Largest magnitude that symmetric integers cover."""
        return self.chosen.magnitude


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges by tensor name, and how they were found.

    `method` is what was asked for, `percentile` the percent of the method of that name; `checkpoints` are the numbers
    of samples after which `earlier` magnitudes were taken; `spared` are the layers that measurement leaves in float.
    """

    method: str
    percentile: float
    samples: int
    tensors: Mapping[str, TensorRange]
    checkpoints: tuple[int, ...] = ()
    spared: tuple[str, ...] = ()

    def with_choice(self, choice: Mapping[str, str], method: str | None = None) -> CalibrationTable:
        """Return a table that uses another method for the tensors in `choice`; `method` names how that was decided.

        Raises: StageError for a tensor or a method that the table does not hold.
        """
        tensors = dict(self.tensors)
        for name, chosen in choice.items():
            if name not in tensors or chosen not in tensors[name].methods:
                held = ", ".join(tensors[name].methods) if name in tensors else f"{len(tensors)} tensors, not this one"
                raise StageError(
                    f"holds no range of '{name}' by {chosen}", where="calibration table", hint=f"It holds: {held}."
                )
            tensors[name] = replace(tensors[name], method=chosen)
        return replace(self, tensors=tensors, method=method or self.method)

    def write(self, path: Path) -> None:
        """Write sorted, one method of a tensor a line, so that two tables can be compared line by line."""
        head = {
            "schema": SCHEMA,
            "method": self.method,
            "percentile": self.percentile,
            "samples": self.samples,
            "checkpoints": list(self.checkpoints),
            "spared": list(self.spared),
        }
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
        rows = [f"  {json.dumps(name)}: {_tensor(self.tensors[name])}" for name in sorted(self.tensors)]
        lines.append(' "tensors": {\n' + ",\n".join(rows) + "\n }")
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> CalibrationTable:
        """Read what `write` wrote.

        Raises: StageError when it is no calibration table of this schema.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise StageError(
                f"is not a calibration table ({type(error).__name__}: {error})",
                where=str(path),
                hint="Build it again: optimize build writes one per int8 variant.",
            ) from error

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> CalibrationTable:
        """Read a document; it may hold more keys than the table's.

        Raises: StageError for another schema; KeyError, TypeError or AttributeError where it is no table.
        """
        if document["schema"] != SCHEMA:
            raise StageError(
                f"is schema {document['schema']}; this version reads {SCHEMA}",
                where=where,
                hint="Build it again: optimize build writes one per int8 variant.",
            )
        tensors = {}
        for name, row in document["tensors"].items():
            methods = {
                method: MethodRange(
                    low=_float32(found["low"]),
                    high=_float32(found["high"]),
                    magnitude=_float32(found["magnitude"]),
                    clipped=found["clipped"],
                    sqnr_db=found["sqnr_db"],
                    earlier=tuple(_float32(value) for value in found["earlier"]),
                    unsigned_sqnr_db=found.get("unsigned_sqnr_db"),
                )
                for method, found in row["methods"].items()
            }
            methods[row["method"]]  # a KeyError here, not where the range is needed
            tensors[name] = TensorRange(
                _float32(row["min"]), _float32(row["max"]), row["values"], row["method"], methods, row.get("module", "")
            )
        head = (document["method"], document["percentile"], document["samples"])
        return cls(*head, tensors, tuple(document["checkpoints"]), tuple(document.get("spared", ())))


def _tensor(tensor: TensorRange) -> str:
    head = {"min": _short(tensor.min), "max": _short(tensor.max), "values": tensor.values, "method": tensor.method}
    head |= {"module": tensor.module} if tensor.module else {}
    methods = ",\n".join(f"   {json.dumps(name)}: {_method(found)}" for name, found in tensor.methods.items())
    return f'{json.dumps(head)[:-1]}, "methods": {{\n{methods}}}}}'


def _method(found: MethodRange) -> str:
    fields = {
        "low": _short(found.low),
        "high": _short(found.high),
        "magnitude": _short(found.magnitude),
        "clipped": float(f"{found.clipped:.4g}"),
        "sqnr_db": None if found.sqnr_db is None else round(found.sqnr_db, 2),
        "unsigned_sqnr_db": None if found.unsigned_sqnr_db is None else round(found.unsigned_sqnr_db, 2),
        "earlier": [_short(value) for value in found.earlier],
    }
    return json.dumps(fields, allow_nan=False)


def _short(value: float) -> float:
    """Return the shortest decimal that names the same float32: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


def _float32(value: float) -> float:
    """Return the float32 that a decimal names: the value that was seen, to the bit."""
    return float(np.float32(value))
