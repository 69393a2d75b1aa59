"""Goals of the quality benchmarks, read off their rows: best form against best form, of ours and of the peers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
SAME_DB = 0.1


def best(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the highest SQNR in dB; failed forms have none."""
    found = [row["sqnr_db"] for row in rows if row.get("sqnr_db") is not None]
    return max(found, default=None)


def goal(found: float | None, least: float | None) -> dict[str, Any]:
    """Return what was found, what it had to be, and whether it is; what lacks a side is not met."""
    return {"found_db": found, "least_db": least, "met": found is not None and least is not None and found >= least}


def float16_goals(rows: Rows, model: str) -> dict[str, Any]:
    """Our fp16 is no worse than PyTorch's half in any form: by its own kernels, or exported and judged as ours is.

    Within 0.1 dB: equal weights and the same roundings leave 58.66 and 58.73 dB on 500 pictures of ResNet-20 where
    only the order of sums differs, and the difference scatters by 0.2 dB over parts of 100.
    """
    own = [row for row in rows if row["model"] == model and "dialect" not in row]
    halves = dict.fromkeys(row["options"] for row in own if row["options"].startswith("half"))
    found = {}
    for count in dict.fromkeys(row["samples"] for row in own if "samples" in row):
        alike = [row for row in own if row.get("samples") == count]
        ours = best([row for row in alike if row["options"] == "fp16"])
        for half in halves:
            peer = best([row for row in alike if row["options"] == half])
            sentence = f"{model}: fp16 no worse than {half} by {SAME_DB} dB on {count} samples"
            found[sentence] = goal(ours, None if peer is None else peer - SAME_DB)
    return found


def int8_goal(rows: Rows, model: str, least: float, share: float, residuals: bool = False) -> dict[str, Any]:
    """TensorRT's dialect reaches so many dB, with at least this share of the multiply-accumulates in int8."""

    def chosen(row: Mapping[str, Any]) -> bool:
        ours = (row["model"], row["tool"], row.get("dialect")) == (model, "optimize", "tensorrt")
        return ours and row.get("int8", 0.0) >= share and ("residuals" in row["options"]) is residuals

    sums = ", residual sums in int8" if residuals else ""
    return {f"{model}: TensorRT's dialect{sums}, {share:.0%} in int8": goal(best(filter(chosen, rows)), least)}


def peer_goals(rows: Rows, model: str, margins: Mapping[str, float]) -> dict[str, Any]:
    """Our best form is so many dB above the best peer's, by dialect."""
    found = {}
    for dialect, margin in margins.items():
        same = [row for row in rows if (row["model"], row.get("dialect")) == (model, dialect)]
        peer = best(row for row in same if row["tool"] != "optimize")
        least = None if peer is None else peer + margin
        found[f"{model}: {dialect} dialect {margin:g} dB above the best peer"] = goal(
            best(row for row in same if row["tool"] == "optimize"), least
        )
    return found
