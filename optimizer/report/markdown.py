"""report.md: the same report for a pull request or a terminal, verdict first."""

from __future__ import annotations

import html
import re

from optimizer.report import format as fmt
from optimizer.report import precision, tables, view
from optimizer.report.limits import gate_batch
from optimizer.report.notes import notes
from optimizer.report.trace import OPENED_BY, Traces
from optimizer.results import Report

_LAYERS = 20  # rows per candidate; the page has more

# What GitHub would read as markup. Underscores inside words are harmless, and names of metrics are full of them.
_MARKUP = re.compile(r"([\\`*\[\]|~#])")


def render_markdown(report: Report, traces: Traces = ()) -> str:
    """Return the report as GitHub-flavoured Markdown; its tables are aligned for a terminal, too.

    `traces` are files in the run's folder, and what each shows.
    """
    head = view.headline(report)
    lines = [
        f"# {escape(head.title)}",
        "",
        f"{escape(head.label)}. {escape(report.recipe.name)}, {escape(_when(report))}",
    ]
    for recommended in head.recommendations:
        device = f" ({recommended.device})" if len(head.recommendations) > 1 else ""
        lines += ["", *_figures(f"{recommended.name}{device}", recommended.figures)]
    lines += ["", *map(bullet, head.reasons)]
    lines += ["", escape(view.gate_summary(report)), f"{escape(head.count)}."]
    if head.failed:
        lines += ["", f"**Failed: {escape(', '.join(head.failed))}.**"]
    lines += ["", "## Candidates", "", *_candidates(report)]
    for table in (*view.details(report), *precision.layer_tables(report, _LAYERS)):
        if table:
            lines += ["", *_details(table)]
    lines += _calibrations(report)
    lines += _stages(report)
    lines += ["", "## How it was built and measured", ""]
    lines += map(bullet, notes(report))
    lines += [f"- {what}: {escape(value)}" for what, value in tables.method_facts(report)]
    lines += [f"- {what}: {escape(value)}" for what, value in tables.environment_facts(report)]
    lines += _traces(traces)
    if report.command:
        lines += ["", "To reproduce:", "", *_fenced(report.command)]
    for name, line in view.engine_lines(report):
        lines += ["", f"{escape(name)} by NVIDIA's own tool:", "", *_fenced(line)]
    return "\n".join(_single_blanks(lines)) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it stands, on one line."""
    one_line = " ".join(text.split())
    return html.escape(_MARKUP.sub(r"\\\1", one_line), quote=False)


def bullet(text: str) -> str:
    """Return text as an item of a list that keeps its lines: errors are a sentence, then what to do, then the log."""
    return "\\\n".join(f"{'  ' if i else '- '}{line}" for i, line in enumerate(_lines(text)))


def _cell(text: str) -> str:
    return "<br>".join(_lines(text))


def _lines(text: str) -> list[str]:
    return [escape(line) for line in text.splitlines() if line.strip()] or [""]


def _when(report: Report) -> str:
    machine = report.environment.gpu.name if report.environment.gpu else report.environment.cpu
    return ", ".join(filter(None, [fmt.moment(report.created), machine]))


def _figures(name: str, figures: tuple[view.Figure, ...]) -> list[str]:
    rows = [[escape(cell) for cell in (f.label, f.value, f.interval, f.detail)] for f in figures]
    return grid([escape(name), "", "", ""], rows, set())


def _candidates(report: Report) -> list[str]:
    batch = gate_batch(report)
    at = f" @{batch}" if batch else ""
    metrics = view.metric_names(report)
    title = ["Candidate", "Status", "Verdict", f"Speedup{at}", f"p50{at}", f"Items/s{at}"]
    for metric in metrics:
        title += [metric, "Change"]
    title += ["Size", "Precision delivered", "SQNR"]
    numbers = set(range(3, len(title) - 2)) | {len(title) - 1}
    rows, said = [], []
    found = view.rows(report)
    shared = view.shared_reasons(found)
    for row in found:
        mark = " **recommended**" if row.recommended_on else ""
        cells = [f"{escape(row.name)}{mark}", row.status, row.verdict, _with(row.speedup, row.speedup_interval)]
        cells += [row.latency, row.throughput]
        for m in row.metrics:
            change = _with(m.delta, m.delta_interval) if m and m.delta else fmt.DASH
            cells += [_with(m.value, m.interval), change] if m else [fmt.DASH, fmt.DASH]
        shares = ", ".join(f"{name} {text}" for name, text, _ in row.shares) or f"{row.requested} requested"
        delivered = f"{escape(shares)} (**{escape(row.undelivered)}**)" if row.undelivered else escape(shares)
        rows.append([*cells, _with(row.size, row.size_ratio), delivered, row.sqnr])
        said += [bullet(f"{row.name}: {reason}") for reason in row.reasons if reason not in shared]
    said += [bullet(f"{', '.join(names)}: {reason}") for reason, names in shared.items()]
    return [*grid([escape(t) for t in title], rows, numbers), "", *said]


def _calibrations(report: Report) -> list[str]:
    lines: list[str] = []
    for c in precision.calibrations(report):
        lines += ["", f"**{escape(c.name)}**: {escape(c.about)}", "", *map(bullet, c.said)]
        lines += ["", *_details(c.table)] if c.table else []
    return ["", "## Calibration", *lines] if lines else []


def _stages(report: Report) -> list[str]:
    """Return the steps as a table and what they noted below it: sentences would make its last column endless."""
    table = tables.stage_table(report)
    if not table:
        return []
    narrow = tuple((name, tuple(cells[:-1] for cells in group)) for name, group in table.groups)
    own, shared = tables.stage_notes(report)
    below = (*(f"{id_}: {note}" for id_, said in own.items() for note in said), *shared)
    return ["", *_details(tables.Table(table.title, table.note, table.columns[:-1], narrow, below))]


def _traces(traces: Traces) -> list[str]:
    if not traces:
        return []
    files = [f"- [{escape(name)}]({name}): {escape(what)}" for name, what in traces]
    return ["", f"{OPENED_BY}:", "", *files]


def _with(value: str, more: str) -> str:
    return f"{value} ({more})" if more else value


def _details(table: tables.Table) -> list[str]:
    numbers = {i for i, column in enumerate(table.columns) if column.kind == "number"}
    rows = [[_cell(cell) for cell in (name, *cells)] for name, group in table.groups for cells in group]
    body = [*grid([escape(c.title) for c in table.columns], rows, numbers), ""] if rows else []
    body += [*map(bullet, table.below), ""] if table.below else []
    return [f"<details><summary>{escape(table.title)}</summary>", "", escape(table.note), "", *body, "</details>"]


def grid(title: list[str], rows: list[list[str]], numbers: set[int]) -> list[str]:
    """Return a table whose columns are padded; `numbers` are the columns to align right."""
    widths = [max(3, *(len(line[i]) for line in (title, *rows))) for i in range(len(title))]

    def line(cells: list[str]) -> str:
        padded = (
            c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}:" if i in numbers else "-" * w for i, w in enumerate(widths)]
    return [line(title), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]


def _fenced(text: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence]


def _single_blanks(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return kept
