"""The tables of what was measured besides accuracy and latency: proofs, LoadGen, batches, concurrency, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optimizer.report import format as fmt
from optimizer.report.tables import Cells, Column, Table
from optimizer.results import CandidateReport, Report


def load_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables that have rows."""
    made = (proof_table, scenario_table, sweep_table, concurrency_table, memory_table, execution_table)
    return tuple(table for make in made if (table := make(report)))


def proof_table(report: Report) -> Table:
    """Return what each candidate's outputs were held against, at which sizes."""
    note = (
        "Each candidate in the runtime that executes it, on real inputs of the smallest, usual, largest and odd sizes."
    )
    return _table(report, "Proof of shape and batch", note, (Column("Held", "text wide"),), _proofs)


def _proofs(c: CandidateReport) -> list[Cells]:
    return [(sentence,) for sentence in c.proof]


def scenario_table(report: Report) -> Table:
    """Return LoadGen's verdict and numbers."""
    titles = ("LoadGen says", "Numbers", "No MLPerf result")
    columns = (Column("Scenario", "text"), *(Column(title, "text wide") for title in titles))
    note = "MLPerf LoadGen over the runner, from numpy to numpy; its logs lie under loadgen/ in the run's folder."
    return _table(report, "MLPerf LoadGen", note, columns, _scenario)


def _scenario(c: CandidateReport) -> list[Cells]:
    if c.scenario is None:
        return []
    found = c.scenario
    verdict = "; ".join(("VALID" if found["valid"] else "INVALID", *found["reasons"]))
    known = {name: value for name, value in found["metrics"].items() if value is not None}
    numbers = ", ".join(f"{name} {fmt.significant(value)}" for name, value in known.items())
    return [(found["settings"]["scenario"], verdict, numbers, "; ".join(found["deviations"]))]


def sweep_table(report: Report) -> Table:
    """Return latency and throughput over the batch."""
    titles = ("Batch", "p50 ms", "p90 ms", "p99 ms", "Items/s")
    columns = (*(Column(title) for title in titles), Column("Budget", "text"), Column("Best", "text wide"))
    note = "Batches of one candidate in turns. Best: most items per second among those that hold the budget."
    return _table(report, "Batch sweep", note, columns, _sweep)


def _sweep(c: CandidateReport) -> list[Cells]:
    if c.sweep is None:
        return []
    rows = []
    for batch, point in c.sweep["points"].items():
        times = tuple(fmt.ms(point["latency_ms"][name], unit=False) for name in ("p50", "p90", "p99"))
        said = "; ".join(c.sweep["reasons"]) if c.sweep["best_batch"] == int(batch) else ""
        held = (point["held"] or fmt.DASH) + ("; disturbed" if point["latency_ms"]["disturbed"] else "")
        rows.append((batch, *times, fmt.rate(point["items_per_second"]), held, said))
    if c.sweep["best_batch"] is None:
        rows.append((*[fmt.DASH] * 6, "; ".join(c.sweep["reasons"])))
    return rows


def concurrency_table(report: Report) -> Table:
    """Return throughput and latency of several runners at once."""
    titles = ("At once", "Threads each", "Batch", "Items/s", "Lowest to highest pass", "p50 ms", "p99 ms")
    note = "Runners at once, each in its own thread; the CPU's threads are split among them."
    return _table(report, "Concurrency", note, tuple(Column(title) for title in titles), _concurrency)


def _concurrency(c: CandidateReport) -> list[Cells]:
    return [
        (
            *(str(load[name]) for name in ("workers", "threads", "batch")),
            fmt.rate(load["items_per_second"]),
            " to ".join(fmt.rate(rate) for rate in load["passes_items_per_second"]),
            *(fmt.ms(load[name], unit=False) for name in ("p50_ms", "p99_ms")),
        )
        for load in c.concurrency
    ]


def memory_table(report: Report) -> Table:
    """Return memory and energy, or why there is none."""
    titles = ("Batch", "Its own", "Peak of the process", "Without it", "On the GPU")
    columns = (*(Column(title) for title in titles), Column("Energy per item", "text wide"))
    note = "A fresh process that holds this candidate alone; without it: the same process, its runtime imported."
    return _table(report, "Memory and energy", note, columns, _memory)


def _memory(c: CandidateReport) -> list[Cells]:
    if c.memory is None:
        return []
    sizes = (c.memory[name] for name in ("own_bytes", "peak_rss_bytes", "baseline_rss_bytes", "device_bytes"))
    shown = (fmt.DASH if size is None else fmt.size(size) for size in sizes)
    return [(str(c.memory["batch"]), *shown, _energy(c.energy))]


def _energy(energy: Mapping[str, Any] | None) -> str:
    if energy is None:
        return fmt.DASH
    if energy["mj_per_item"] is None:
        return f"not measured: {energy['reason']}"
    idle = f"; {fmt.significant(energy['idle_w'])} W idle" if energy["idle_w"] is not None else ""
    return f"{fmt.significant(energy['mj_per_item'])} mJ by {energy['source']}{idle}"


def execution_table(report: Report) -> Table:
    """Return what the sessions on a GPU say: CUDA graphs, nodes run elsewhere, copies in and out."""
    columns = (Column("What", "text"), Column("Said", "text wide"))
    return _table(report, "Execution on the GPU", "As each session says of itself.", columns, _execution)


def _execution(c: CandidateReport) -> list[Cells]:
    return [(name.replace("_", " "), str(said)) for name, said in c.execution.items()]


def _table(
    report: Report, title: str, note: str, columns: tuple[Column, ...], rows: Callable[[CandidateReport], list[Cells]]
) -> Table:
    groups = tuple((c.name, tuple(found)) for c in report.candidates if (found := rows(c)))
    return Table(title, note, (Column("Candidate", "code"), *columns), groups)
