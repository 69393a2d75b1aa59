"""The calibration table: a range per tensor, as readable JSON that one pass writes and both dialects read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from optimizer.errors import StageError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One activation: the extremes seen, [low, high] for asymmetric integers, the magnitude for symmetric ones."""

    min: float
    max: float
    low: float
    high: float
    magnitude: float
    values: int  # how many were seen


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges by tensor name, and how they were found."""

    method: str
    percentile: float | None  # null where the method takes none
    samples: int
    tensors: Mapping[str, TensorRange]

    def write(self, path: Path) -> None:
        """Write sorted, one tensor a line, so that two tables can be compared line by line."""
        head = {"schema": SCHEMA, "method": self.method, "percentile": self.percentile, "samples": self.samples}
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
        rows = [f"  {json.dumps(name)}: {_row(self.tensors[name])}" for name in sorted(self.tensors)]
        lines.append(' "tensors": {\n' + ",\n".join(rows) + "\n }")
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> CalibrationTable:
        """Read what `write` wrote.

        Raises: StageError when it is no calibration table of this schema.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise StageError(f"is schema {document['schema']}; this version reads {SCHEMA}", where=str(path))
            tensors = {name: TensorRange(**row) for name, row in document["tensors"].items()}
            return cls(document["method"], document["percentile"], document["samples"], tensors)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise StageError(
                f"is not a calibration table ({type(error).__name__}: {error})",
                where=str(path),
                hint="Build it again: optimize build writes one per int8 variant.",
            ) from error


def _row(tensor: TensorRange) -> str:
    # The shortest decimal that names the same float32: 0.1, not 0.10000000149011612.
    fields = {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in asdict(tensor).items()}
    return json.dumps(fields, allow_nan=False)
