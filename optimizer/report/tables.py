"""The detail tables of a report as text, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.report import format as fmt
from optimizer.report.limits import held
from optimizer.results import CandidateReport, Report

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `kind` is text, number or code, and wide for sentences."""

    title: str
    kind: str = "number"


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names a group of rows, and below it what several rows have in common.

    Without either it is left out.
    """

    title: str
    note: str
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Cells, ...]], ...]
    below: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.groups or self.below)


def _table(title: str, note: str, columns: tuple[Column, ...], groups: list[tuple[str, list[Cells]]]) -> Table:
    return Table(title, note, columns, tuple((name, tuple(rows)) for name, rows in groups if rows))


def holders(said: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return each sentence with the names that it is said of, in the order of their first use."""
    names: dict[str, list[str]] = {}
    for name, sentences in said.items():
        for sentence in dict.fromkeys(sentences):
            names.setdefault(sentence, []).append(name)
    return {sentence: tuple(users) for sentence, users in names.items()}


def said_once(said: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return each sentence once, behind the names that it is said of; without them where it is said of all."""
    return tuple(
        sentence if len(names) == len(said) else f"{', '.join(names)}: {sentence}"
        for sentence, names in holders(said).items()
    )


def by_number(batches: dict[str, object]) -> list[str]:
    """Return batch sizes, smallest first."""
    return sorted(batches, key=lambda b: (0, int(b), b) if b.isdigit() else (1, 0, b))


def gate_table(report: Report) -> Table:
    """Return each limit against each candidate."""
    sentences = (Column("Limit", "text wide"), Column("Measured", "text wide"))
    columns = (Column("Candidate", "code"), *sentences, Column("Outcome", "text"))
    groups: list[tuple[str, list[Cells]]] = []
    for c in report.candidates:
        groups.append((c.name, [(h.limit.text, h.text, h.outcome) for h in held(report, c)]))
    note = "A limit is held or broken only when the whole 95 % interval is; a disturbed latency decides nothing."
    return _table("Gate, limit by limit", note, columns, groups)


def accuracy_table(report: Report) -> Table:
    """Return every metric of every candidate."""
    titles = ("Value", "95 % interval", "Samples", "Change", "Its 95 % interval", "Test")
    metrics = ", ".join(f"{m} ({d} is better)" for m, d in report.metrics.items())
    columns = (
        Column("Candidate", "code"),
        Column("Metric", "text"),
        *(Column(t) for t in titles),
        Column("Computed by", "text wide"),
    )
    note = f"Change is candidate minus {report.baseline}, paired by sample. {metrics}."
    return _table("Accuracy", note, columns, [(c.name, _accuracy(c)) for c in report.candidates])


def _accuracy(c: CandidateReport) -> list[Cells]:
    found = []
    for metric, value in c.accuracy.items():
        form, change, delta = fmt.metric_value(metric), fmt.metric_delta(metric), c.accuracy_delta.get(metric)
        own = (metric, form(value.value), fmt.interval(value.ci95, form), f"{value.samples:,}")
        if delta:
            test = f"{delta.test}, {fmt.p_value(delta.p_value)}"
            paired: Cells = (change(delta.value), fmt.interval(delta.ci95, change), test)
        else:
            paired = (fmt.DASH, fmt.DASH, fmt.DASH)
        found.append((*own, *paired, c.accuracy_runtime or f"{c.runtime} on {c.device}"))
    return found


def latency_table(report: Report) -> Table:
    """Return every batch of every measured candidate."""
    titles = ("Batch", "p50 ms", "p90 ms", "p99 ms", "Mean ms", "Speedup", "95 % interval", "Items/s", "Samples")
    last = (Column("CV"), Column("Warm-up"), Column("Stable", "text"), Column("Against the baseline", "text"))
    columns = (Column("Candidate", "code"), *(Column(t) for t in titles), *last)
    note = (
        f"Milliseconds per call. Speedup: p50 of {report.baseline} over the candidate's, from interleaved samples. CV: "
        "standard deviation over mean, outliers included. Against the baseline: faster or slower by a 99 % interval "
        "outside a tolerance of 1 %, or neither."
    )
    return _table("Latency", note, columns, [(c.name, _latency(report, c)) for c in report.candidates])


def _latency(report: Report, c: CandidateReport) -> list[Cells]:
    found = []
    for batch in by_number(dict(c.latency_ms or {})):
        timed = (c.latency_ms or {})[batch]
        speedup = (c.speedup or {}).get(batch) if c.name != report.baseline else None
        throughput = (c.throughput or {}).get(batch)
        times = tuple(fmt.ms(v, unit=False) for v in (timed.p50, timed.p90, timed.p99, timed.mean))
        gain = (fmt.ratio(speedup.value), fmt.interval(speedup.ci95, fmt.ratio)) if speedup else (fmt.DASH, fmt.DASH)
        items = fmt.rate(throughput) if throughput is not None else fmt.DASH
        spread = fmt.percent(timed.cv, 0) if timed.cv is not None else fmt.DASH
        stable = "yes" if timed.stable else f"no: {timed.unstable}" if timed.unstable else "no"
        held = f"{stable}, disturbed" if timed.disturbed else stable
        verdict = speedup.difference.kind if speedup and speedup.difference else fmt.DASH
        found.append((batch, *times, *gain, items, f"{timed.samples:,}", spread, f"{timed.warmup:,}", held, verdict))
    return found


def numerics_table(report: Report) -> Table:
    """Return every output of every candidate against the baseline's."""
    titles = ("SQNR", "Cosine", "Max |error|")
    columns = (Column("Candidate", "code"), Column("Output", "code"), *(Column(t) for t in titles))
    note = f"Against the outputs of {report.baseline} over the evaluation inputs. SQNR: signal to quantization noise."
    return _table("Numerics", note, columns, [(c.name, _numerics(c)) for c in report.candidates])


def _numerics(c: CandidateReport) -> list[Cells]:
    found: list[Cells] = []
    for output, n in c.numerics.items():
        equal = n.max_abs == 0 and n.sqnr_db is None
        cosine = fmt.DASH if n.cosine is None else f"{n.cosine:.7f}".rstrip("0").rstrip(".")
        worst = fmt.DASH if n.max_abs is None else fmt.significant(n.max_abs)
        found.append((output, "equal" if equal else fmt.decibel(n.sqnr_db), cosine, worst))
    return found


def worst_sqnr(c: CandidateReport) -> str:
    """Return the SQNR of the worst output against the baseline's."""
    known = [n.sqnr_db for n in c.numerics.values() if n.sqnr_db is not None]
    if known:
        return fmt.decibel(min(known))
    return "equal" if c.numerics and all(n.max_abs == 0 for n in c.numerics.values()) else fmt.DASH


def precision_table(report: Report) -> Table:
    """Return what was asked for and what the runtime executes."""
    titles = (Column("Requested", "text"), Column("Delivered", "text"), Column("Read from", "text wide"))
    columns = (Column("Candidate", "code"), *titles)
    groups: list[tuple[str, list[Cells]]] = []
    for c in report.candidates:
        shares = ", ".join(f"{name} {text}" for name, text, _ in fmt.shares(c.precision.delivered)) or fmt.DASH
        groups.append((c.name, [(c.precision.requested, shares, c.precision.source or fmt.DASH)]))
    note = "Delivered: share of multiply-accumulates as the runtime executes them."
    return _table("Precision", note, columns, groups)


def resources_table(report: Report) -> Table:
    """Return files, and energy and memory where they were measured."""
    extra = [
        (title, key)
        for title, key in (("Energy per item", "energy_mj_per_item"), ("Own memory", "peak_memory_bytes"))
        if any(getattr(c, key) is not None for c in report.candidates)
    ]
    columns = (
        Column("Candidate", "code"),
        Column("Format", "text"),
        Column("Size"),
        *(Column(title) for title, _ in extra),
        Column("File", "code"),
        Column("sha256", "code"),
    )
    groups: list[tuple[str, list[Cells]]] = []
    for c in report.candidates:
        if c.artifact is None:
            continue
        energy = fmt.DASH if c.energy_mj_per_item is None else f"{fmt.significant(c.energy_mj_per_item)} mJ"
        memory = fmt.DASH if c.peak_memory_bytes is None else fmt.size(c.peak_memory_bytes)
        measured = {"energy_mj_per_item": energy, "peak_memory_bytes": memory}
        cells = (c.artifact.format, fmt.size(c.artifact.bytes), *(measured[key] for _, key in extra))
        groups.append((c.name, [(*cells, c.artifact.path, fmt.short(c.artifact.sha256))]))
    return _table("Files", "Paths are relative to report.json; the first eight digits of each sha256.", columns, groups)


def stage_table(report: Report) -> Table:
    """Return every step of the build, in order."""
    titles = (Column("Variant", "text"), Column("Work", "text"), Column("Time"), Column("Peak memory"))
    keys = (Column("Key", "code"), Column("Output", "code"))
    columns = (Column("Step", "code"), *titles, *keys, Column("Notes", "text wide"))
    built = [s for s in report.stages if not s.reused]
    spent = fmt.seconds(sum(s.seconds for s in built))
    total = fmt.count(len(report.stages), "step")
    note = f"{len(report.stages) - len(built)} of {total} reused{f'; the others took {spent}' if built else ''}."
    groups: list[tuple[str, list[Cells]]] = []
    own, below = stage_notes(report)
    for s in report.stages:
        work = "reused" if s.reused else "not run" if s.key is None else "built" if s.output_sha256 else "failed"
        spent_here = (fmt.seconds(s.seconds), fmt.size(s.peak_rss_bytes) if s.peak_rss_bytes else fmt.DASH)
        digests = (fmt.short(s.key), fmt.short(s.output_sha256))
        groups.append((s.id, [(s.variant or fmt.DASH, work, *spent_here, *digests, "\n".join(own[s.id]))]))
    return replace(_table("Stages", note, columns, groups), below=below)


def stage_notes(report: Report) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return what each step alone notes, and below it what several do, once with their names."""
    shared = {note: ids for note, ids in holders({s.id: s.notes for s in report.stages}).items() if len(ids) > 1}
    own = {s.id: tuple(note for note in s.notes if note not in shared) for s in report.stages}
    return own, tuple(f"{', '.join(ids)}: {note}" for note, ids in shared.items())


def environment_facts(report: Report) -> tuple[tuple[str, str], ...]:
    """Return the machine and the versions as (what, value)."""
    e = report.environment
    gpu = "none"
    if e.gpu:
        memory = fmt.size(e.gpu.memory_bytes)
        gpu = f"{e.gpu.name}, compute capability {e.gpu.compute_capability}, {memory}, driver {e.gpu.driver}"
    packages = ", ".join(f"{name} {version}" for name, version in sorted(e.packages.items()))
    return (
        ("CPU", f"{e.cpu}, {fmt.count(e.cores, 'core')}"),
        ("Memory", fmt.size(e.memory_bytes)),
        ("GPU", gpu),
        ("System", e.platform),
        ("Python", e.python),
        ("Packages", packages or fmt.DASH),
    )


def method_facts(report: Report) -> tuple[tuple[str, str], ...]:
    """Return how it was measured as (what, value)."""
    e = report.environment
    timed = [timing for c in report.candidates for timing in (c.latency_ms or {}).values()]
    evaluated = [value.samples for c in report.candidates for value in c.accuracy.values()]
    pinned = f"pinned to CPU {', '.join(map(str, e.affinity))}" if e.affinity else "not pinned to CPUs"
    facts = [("Threads", f"{fmt.count(e.threads, 'CPU thread')} per runner, {pinned}")]
    if timed:
        unstable = sum(not timing.stable for timing in timed)
        state = f"{unstable} of {len(timed)} unstable" if unstable else "all stable"
        disturbed = sum(timing.disturbed for timing in timed)
        state += f", {disturbed} of {len(timed)} disturbed" if disturbed else ""
        warmup = f"{_span([t.warmup for t in timed])} calls of warm-up"
        samples = f"{_span([t.samples for t in timed])} samples per candidate and batch"
        facts.append(("Latency", f"{samples} after {warmup}, interleaved with {report.baseline}; {state}"))
    if evaluated:
        facts.append(("Accuracy", f"{_span(evaluated)} evaluation samples, paired with {report.baseline} by sample"))
    facts.append(("Recipe", f"{report.recipe.path}, sha256 {report.recipe.sha256}"))
    if report.created:
        facts.append(("Created", fmt.moment(report.created)))
    return tuple(facts)


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
