"""The tables of what was measured besides accuracy and latency: proofs, LoadGen, batches, concurrency, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optimizer.report import format as fmt
from optimizer.report.tables import Cells, Column, Table, holders, said_once
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
    proofs = {c.name: c.proof for c in report.candidates if c.proof}
    several = {sentence for sentence, names in holders(proofs).items() if len(names) > 1}

    def rows(c: CandidateReport) -> list[Cells]:
        return [(sentence,) for sentence in c.proof if sentence not in several]

    made = _table(report, "Proof of shape and batch", note, (Column("Held", "text wide"),), rows)
    below = said_once({name: [said for said in proof if said in several] for name, proof in proofs.items()})
    return replace(made, below=below)


def scenario_table(report: Report) -> Table:
    """Return LoadGen's verdict and numbers."""
    titles = ("LoadGen says", "Numbers")
    columns = (Column("Scenario", "text"), *(Column(title, "text wide") for title in titles))
    note = "MLPerf LoadGen over the runner, from numpy to numpy; its logs lie under loadgen/ in the run's folder."
    ran = {c.name: c.scenario for c in report.candidates if c.scenario is not None}
    below = said_once({name: _deviations(found) for name, found in ran.items()})
    below += said_once({name: _surroundings(found) for name, found in ran.items()})
    return replace(_table(report, "MLPerf LoadGen", note, columns, _scenario), below=below)


def _deviations(found: Mapping[str, Any]) -> list[str]:
    return [f"No MLPerf result: {'; '.join(found['deviations'])}."] if found["deviations"] else []


def _surroundings(found: Mapping[str, Any]) -> list[str]:
    return [f"Disturbed: {said}." for said in found.get("disturbed", ())]


def _scenario(c: CandidateReport) -> list[Cells]:
    if c.scenario is None:
        return []
    found = c.scenario
    disturbed = ("disturbed",) if found.get("disturbed") else ()
    verdict = "; ".join(("VALID" if found["valid"] else "INVALID", *disturbed, *found["reasons"]))
    known = {name: value for name, value in found["metrics"].items() if value is not None}
    numbers = ", ".join(f"{name} {fmt.significant(value)}" for name, value in known.items())
    return [(found["settings"]["scenario"], verdict, numbers)]


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
    made = _table(report, "Concurrency", note, tuple(Column(title) for title in titles), _concurrency)
    return replace(made, below=said_once({c.name: _noises(c) for c in report.candidates if c.concurrency}))


def _noises(c: CandidateReport) -> list[str]:
    return [f"{load['workers']} at once {said}." for load in c.concurrency for said in load.get("disturbed", ())]


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
    measured = any(c.energy and c.energy["mj_per_item"] is not None for c in report.candidates)
    columns = (*(Column(title) for title in titles), *([Column("Energy per item", "text wide")] if measured else []))
    note = "A fresh process that holds this candidate alone; without it: the same process, its runtime imported."

    def rows(c: CandidateReport) -> list[Cells]:
        return [(*_memory(c), *([_energy(c.energy)] if measured else []))] if c.memory is not None else []

    unread = {c.name: _without_energy(c.energy) for c in report.candidates if c.memory is not None}
    return replace(_table(report, "Memory and energy", note, columns, rows), below=said_once(unread))


def _memory(c: CandidateReport) -> Cells:
    assert c.memory is not None
    sizes = (c.memory[name] for name in ("own_bytes", "peak_rss_bytes", "baseline_rss_bytes", "device_bytes"))
    return (str(c.memory["batch"]), *(fmt.DASH if size is None else fmt.size(size) for size in sizes))


def _without_energy(energy: Mapping[str, Any] | None) -> list[str]:
    if energy is None or energy["mj_per_item"] is not None:
        return []
    return [f"Energy was not measured: {energy['reason']}."]


def _energy(energy: Mapping[str, Any] | None) -> str:
    if energy is None or energy["mj_per_item"] is None:
        return fmt.DASH
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
