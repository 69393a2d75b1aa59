"""What a report says of precision by layer, and of calibration, as text for HTML and Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from optimizer.graph.layers import AT_LEAST
from optimizer.report import format as fmt
from optimizer.report.tables import Cells, Column, Table
from optimizer.results import Calibration, CandidateReport, LayerPrecision, Report, TensorCalibration

_SAME_SHARE = 5e-4  # half of the last digit that a share is shown with


@dataclass(frozen=True, slots=True)
class Examined:
    """One calibration: how it was made, what is wrong with it, and its worst tensors."""

    name: str
    about: str
    healthy: bool
    said: tuple[str, ...]
    table: Table


def layer_tables(report: Report, most: int) -> list[Table]:
    """Return a table per candidate whose layers are known: the `most` that do most of the work, in that order."""
    return [_layer_table(c, most) for c in report.candidates if c.layers]


def _layer_table(c: CandidateReport, most: int) -> Table:
    titles = (Column("Module", "code"), Column("Operator", "text"), Column("Work"), Column("Asked", "text"))
    columns = (Column("Layer", "code"), *titles, Column("Executed", "text"), Column("Why", "text wide"))
    total = sum(row.macs for row in c.layers)
    count = max(c.layer_count, len(c.layers))
    shown = c.layers[:most]
    why = {row.reason for row in shown}
    common = why.pop() if len(why) == 1 and len(shown) > 1 else ""
    groups = [(row.node, _layer(row, total)) for row in shown]
    groups = [(node, (*cells[:-1], "")) for node, cells in groups] if common else groups
    of_these = "" if len(c.layers) == count else f" of the {len(c.layers)} in report.json"
    rest = f" The {len(shown)} largest of {count} are shown." if len(shown) < count else ""
    note = f"Work: share of the multiply-accumulates{of_these}.{rest} All are in receipt.json beside the ONNX graph."
    made = _without_blank_end(f"{c.name}: {_told(c, count)}", note, columns, groups)
    said = (f"Why, of all {len(shown)}: {common}.",) if common else ()
    return replace(made, below=(*said, *_beside_the_runtime(c, count)))


def _without_blank_end(title: str, note: str, columns: tuple[Column, ...], rows: list[tuple[str, Cells]]) -> Table:
    """Return the table, without its last column where that says nothing."""
    if not any(cells[-1] for _, cells in rows):
        columns, rows = columns[:-1], [(name, cells[:-1]) for name, cells in rows]
    return Table(title, note, columns, tuple((name, (cells,)) for name, cells in rows))


def _told(c: CandidateReport, count: int) -> str:
    """Say how many layers there are and what became of them, in the terms of the share that was delivered."""
    other = [row for row in c.layers if row.requested != row.delivered]
    kept = [row for row in c.layers if row.requested == row.delivered != c.precision.requested]
    said = [f"{len(other)} not as asked"] if other else []
    said += [f"{len(kept)} kept in {fmt.joined(sorted({row.delivered for row in kept}))}"] if kept else []
    shown = f"{len(c.layers)} of " if len(c.layers) < count else ""
    layers = f"{shown}{fmt.count(count, 'layer')}"
    if _differs(c, count):
        share = fmt.part(c.precision.delivered.get(c.precision.requested, 0.0))
        how = f"{' and '.join(said)} in the graph" if said else f"asked for {c.precision.requested}"
        return f"{layers} {how}, {share} of the work executed in {c.precision.requested}"
    return f"{layers}, {' and '.join(said) or f'all {c.precision.requested}'}"


def _differs(c: CandidateReport, count: int) -> bool:
    """Tell whether the runtime executes another share of the work in the precision than these layers say.

    A runtime that fuses may leave one in float without a name: its optimised graph counts, the layers are the graph's.
    """
    total = sum(row.macs for row in c.layers)
    if not total or not c.precision.delivered or len(c.layers) < count:
        return False  # nothing to hold it against, or the rest is not in this report
    own = sum(row.macs for row in c.layers if row.delivered == c.precision.requested) / total
    return abs(own - c.precision.delivered.get(c.precision.requested, 0.0)) >= _SAME_SHARE


def _beside_the_runtime(c: CandidateReport, count: int) -> tuple[str, ...]:
    if not _differs(c, count):
        return ()
    shares = ", ".join(f"{name} {text}" for name, text, _ in fmt.shares(c.precision.delivered))
    source = f" ({c.precision.source})" if c.precision.source else ""
    return (
        f"Executed, layer by layer, is what the graph says; counted in all, the runtime executes {shares}{source}.",
    )


def _layer(row: LayerPrecision, total: int) -> Cells:
    work = fmt.part(row.macs / total) if total else fmt.DASH
    if AT_LEAST in row.reason:
        work = f"at least {work}"
    return (row.module or fmt.DASH, row.operator, work, row.requested, row.delivered, row.reason)


def calibrations(report: Report) -> list[Examined]:
    """Return every calibration in the order of the report."""
    return [_examined(name, c) for name, c in report.calibration.items()]


def _examined(name: str, c: Calibration) -> Examined:
    picked = ", ".join(f"{method} {count}" for method, count in c.picked.items())
    # One method for all needs no count.
    by = f"auto, picked by the outputs: {picked}" if c.method == "auto" else c.method
    about = f"{fmt.count(c.samples, 'sample')}, {fmt.count(c.tensors, 'tensor')}, method {by}."
    healthy = not c.findings and not any(row.complaints for row in c.worst)
    spared = (
        [f"Measured to serve the outputs best, these layers stay in float: {', '.join(c.spared)}"] if c.spared else []
    )
    well = ["The doctor finds nothing to complain about"] if healthy else []
    said = (*well, *c.findings, *c.drift, *spared)
    return Examined(name, about, healthy, tuple(map(_sentence, said)), _worst(c))


def _worst(c: Calibration) -> Table:
    titles = ("SQNR", "Clipped", "Moved", "Outside")
    columns = (
        Column("Tensor", "code"),
        Column("Module", "code"),
        Column("Method", "text"),
        *(Column(title) for title in titles),
        Column("Complaints", "text wide"),
    )
    note = (
        "SQNR: what int8 leaves of the tensor by itself. Clipped: share of the values beyond its range. Moved: by how "
        "much its range did over the last quarter of the samples. Outside: share of evaluation values beyond all "
        "that calibration saw."
    )
    title = f"The {len(c.worst)} worst of {fmt.count(c.tensors, 'tensor')}"
    if len(c.worst) == c.tensors:
        title = f"All {fmt.count(c.tensors, 'tensor')}, the worst first"
    return _without_blank_end(title, note, columns, [(row.tensor, _tensor(row)) for row in c.worst])


def _tensor(row: TensorCalibration) -> Cells:
    shares = (row.clipped, row.convergence, row.outside)
    clipped, moved, outside = (fmt.DASH if share is None else fmt.part(share) for share in shares)
    complaints = "; ".join(row.complaints)
    return (row.module or fmt.DASH, row.method, fmt.decibel(row.sqnr_db), clipped, moved, outside, complaints)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
