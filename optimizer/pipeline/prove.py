"""Proof of a candidate: in the runtime that will execute it, at every checked size, against its graph and the baseline.

What the stages' checks have proven of the graph (against float32, at the same sizes) is not repeated: what is left is
the runtime, and the sum of all steps against the baseline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from optimizer.checkpoint import MODULE_FILE
from optimizer.errors import OptimizerError
from optimizer.measure.agreement import DisagreementError
from optimizer.measure.numerics import NumericsAccumulator
from optimizer.pipeline.blame import Link, as_opened, explained, judged, rebuilt
from optimizer.pipeline.feeds import check_feeds
from optimizer.pipeline.reproduce import Way
from optimizer.pipeline.subject import runner_of
from optimizer.stage import Tolerance
from optimizer.stages import TARGETS, VARIANTS

if TYPE_CHECKING:
    from pathlib import Path

    from optimizer.graph.blame import Execute
    from optimizer.pipeline.bench import Bench
    from optimizer.pipeline.subject import Subject
    from optimizer.recipe.steps import Step
    from optimizer.runtime.session import Array, Feed, Session
    from optimizer.types import Artifact
    from optimizer.verify import Trials

# Seen: 45 to 138 dB in onnxruntime and OpenVINO; 20 dB where OpenVINO 2026.4 quantizes a smoothed activation wrong.
INT8_EXECUTION_DB = 30.0
# Where a model loses much in int8 anyway, one value that rounds otherwise is one step of a coarse scale, and its effect
# grows from layer to layer: of MiniLM int8 leaves 14 dB, and OpenVINO and onnxruntime agree on it to 20 to 24 dB. A
# wrong scale or zero point errs as much as rounding does, or more.
_BELOW_ROUNDING_DB = 3.0
_ROUNDING_EDGES = "of the same int8 graph a runtime may only round values at the edge of a step otherwise"
FLOAT32 = Tolerance(
    "float32 against float32: fused kernels and other libraries sum in another order",
    atol=1e-4,
    rtol=1e-3,
    min_sqnr_db=80.0,
)
TENSOR_FLOAT32 = Tolerance(
    "a GPU multiplies float32 as TF32, with 11 significant bits, and sums in another order",
    min_sqnr_db=40.0,
    exact_integers=False,
)


def budget(subject: Subject, base: Subject) -> Tolerance:
    """Return how far a candidate may lie from the baseline: the limit of the stage that gives up most precision.

    Where no stage gives up any, float32 in another order, or what a device of either makes of float32.
    """
    kinds = (*VARIANTS[subject.precision], *TARGETS.get(subject.runtime, ()))
    stated = [k.tolerance for k in kinds if k.tolerance is not None and not k.tolerance.exact_integers]
    if not stated:
        return FLOAT32 if subject.device == base.device == "cpu" else TENSOR_FLOAT32
    return min(stated, key=lambda t: np.inf if t.min_sqnr_db is None else t.min_sqnr_db)


def of_execution(subject: Subject, rounding_db: float = np.inf) -> Tolerance:
    """Return how far a runtime may lie from the graph that it executes: an engine's own limit, else the budget.

    `rounding_db` is the SQNR that int8 leaves in that graph: the runtime's own error must lie well below that of int8.
    The graph is judged on the CPU, so the candidate's own device alone says what becomes of float32.
    """
    stages = TARGETS[subject.runtime] if subject.artifact.format == "engine" else ()
    if stages and stages[-1].tolerance is not None:
        return stages[-1].tolerance
    limit = budget(subject, subject)
    if subject.precision != "int8" or limit.min_sqnr_db is None:
        return limit
    least = min(INT8_EXECUTION_DB, rounding_db + _BELOW_ROUNDING_DB)
    return replace(limit, reason=_ROUNDING_EDGES, min_sqnr_db=max(limit.min_sqnr_db, least))


class Remembered:
    """A session whose answers are kept by the content of the feed: several candidates are held against it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._answers: dict[str, dict[str, Array]] = {}
        self.inputs = session.inputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Return what the session answers, or answered before."""
        digest = hashlib.sha256()
        for name, array in sorted(feed.items()):
            digest.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        key = digest.hexdigest()
        if key not in self._answers:
            self._answers[key] = self._session.infer(feed)
        return self._answers[key]


class Proof:
    """The proof of several candidates on one bench, against one baseline that is already open."""

    def __init__(self, bench: Bench, base: Subject, opened: Session, stack: ExitStack) -> None:
        self.bench = bench
        self.base = base
        self.baseline = Remembered(opened)
        self._stack = stack  # closes the judges
        self._judges: dict[str, tuple[Session, str, Remembered]] = {}
        self._trials: dict[object, Trials] = {}

    def of(self, subject: Subject, opened: Session) -> tuple[str, ...]:
        """Return what was found, as sentences; `opened` is what executes the candidate here.

        Raises: StageError naming the output, the size, what is to blame and the script that reproduces it.
        """
        if not subject.executes:
            return (f"unproven: it cannot execute here ({subject.missing})",)
        trials = self._trials_of(subject)
        try:
            found = self._against_graph(subject, opened, trials) if self._graph_says_more(subject) else []
            if subject.name != self.base.name:
                found += self._against_baseline(subject, opened, trials)
        except DisagreementError as error:
            raise explained(error, self._chain(subject), self._folder(subject)) from error
        if len(trials.batches) > 1:
            found.append(f"samples alone give what they give inside batch {max(trials.batches)}, unless noted")
        return (*found, *trials.notes)

    def judge(self, graph: Artifact) -> tuple[Session, str]:
        """Return the judge of a graph, opened once for all candidates, and the sentence that says what it is.

        Raises: MissingToolError without onnxruntime, StageError for a graph that cannot be emulated.
        """
        from optimizer.judge import open_judge

        if graph.digest not in self._judges:
            session, sentence = open_judge(graph.file, self.bench.recipe.measure.threads)
            self._stack.enter_context(session)
            self._judges[graph.digest] = session, sentence, Remembered(session)
        return self._judges[graph.digest][:2]

    def _budget(self, subject: Subject) -> Tolerance:
        return budget(subject, self.base)

    def _graph_says_more(self, subject: Subject) -> bool:
        """Whether the graph holds it tighter than the baseline does: both are float32 where the budget is float32's."""
        return subject.graph is not None and (subject.name == self.base.name or self._budget(subject) is not FLOAT32)

    def _against_graph(self, subject: Subject, opened: Session, trials: Trials) -> list[str]:
        from optimizer.verify import verify

        assert subject.graph is not None
        self.judge(subject.graph)
        judge = self._judges[subject.graph.digest][2]
        what = f"'{subject.name}' against its graph"
        limit = of_execution(subject, self._rounding_db(subject))
        notes = verify(judge, opened, trials, limit, what=what)  # type: ignore[arg-type]
        return [f"against its graph: {note}" for note in notes if note not in trials.notes]

    def _against_baseline(self, subject: Subject, opened: Session, trials: Trials) -> list[str]:
        from optimizer.verify import verify

        what = f"'{subject.name}' against the baseline '{self.base.name}'"
        notes = verify(self.baseline, opened, trials, self._budget(subject), what=what)  # type: ignore[arg-type]
        return [f"against {self.base.name}: {note}" for note in notes if note not in trials.notes]

    def _rounding_db(self, subject: Subject) -> float:
        """Return the SQNR of an int8 graph against the baseline over all checked batches, of its worst output."""
        if subject.precision != "int8" or subject.graph is None or subject.name == self.base.name:
            return np.inf
        self.judge(subject.graph)
        judge = self._judges[subject.graph.digest][2]
        pairs = [(self.baseline.infer(f), judge.infer(f)) for f in self._trials_of(subject).batches.values()]
        floats = [name for name, array in pairs[0][0].items() if array.dtype.kind == "f"]
        return min((_pooled_db([(e[name], f[name]) for e, f in pairs]) for name in floats), default=np.inf)

    def _trials_of(self, subject: Subject) -> Trials:
        inputs = subject.artifact.inputs
        if inputs not in self._trials:
            self._trials[inputs] = check_feeds(self.bench.recipe, self.bench.splits.evaluation, inputs)
        return self._trials[inputs]

    def _folder(self, subject: Subject) -> Path:
        return self.bench.logs / f"{subject.name}.fault"

    def _chain(self, subject: Subject) -> list[Link]:
        """Return the artifacts between the baseline and the candidate, as far as the store has them."""
        threads = self.bench.recipe.measure.threads
        steps = lineage(self.bench, subject)
        links: list[Link] = []
        if self.base.artifact.format != "onnx":
            links.append(_executed(self.base, FLOAT32, threads, f"the baseline '{self.base.name}'", None))
        graphs = [(f"stage '{step.id}'", artifact, step.stage.tolerance) for step, artifact in steps]
        if subject.graph is not None and not any(a.digest == subject.graph.digest for _, a, _ in graphs):
            graphs = [("its graph", subject.graph, self._budget(subject))]
        links += [
            judged(name, a, tolerance or self._budget(subject)) for name, a, tolerance in graphs if a.format == "onnx"
        ]
        stage = steps[-1][0] if steps and steps[-1][1].format == "engine" else None
        name = f"{subject.runtime} on {subject.device}"
        limit = of_execution(subject, self._rounding_db(subject))
        links.append(_executed(subject, limit, threads, name, _rebuilds(stage)))
        return links


def _pooled_db(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Return the SQNR over all pairs; infinite where it is not defined."""
    numerics = NumericsAccumulator()
    for expected, found in pairs:
        numerics.add(expected, found)
    sqnr_db = numerics.result().sqnr_db
    return np.inf if sqnr_db is None else sqnr_db


def _rebuilds(step: Step | None) -> Execute | None:
    return rebuilt(step.stage, next(iter(step.sources))) if step is not None else None


def _executed(
    subject: Subject,
    tolerance: Tolerance,
    threads: int,
    name: str,
    builds: Execute | None,
) -> Link:
    """Return the link of what executes: the candidate's artifact in its runtime."""
    artifact = subject.artifact
    kind = runner_of(subject.runtime)

    def opens(of: Artifact = artifact) -> Session:
        return kind(of, device=subject.device, threads=threads).open()

    if artifact.format == "onnx":
        builds = as_opened(opens)
    module = artifact.path if artifact.format == "checkpoint" else None
    file = module / MODULE_FILE if module else artifact.file
    way = Way(subject.runtime, artifact.format, subject.device, threads)
    return Link(name, opens, tolerance, None, builds, way, file, module)


def lineage(bench: Bench, subject: Subject) -> list[tuple[Step, Artifact]]:
    """Return the steps that made a candidate, in order, with their stored outputs; empty where they are not stored.

    A run that was carried to another machine has its artifacts alone: neither the checkpoint nor the store.
    """
    from optimizer.pipeline.plan import plan

    try:
        planned = plan(bench.recipe, bench.store, bench.store.root, device=bench.device)
    except OptimizerError:
        return []
    steps = {one.step.id: one for one in planned.steps}
    candidate = next((c for c in planned.derivation.candidates if c.name == subject.name), None)
    found: list[tuple[Step, Artifact]] = []
    name = candidate.step if candidate else ""
    while name in steps:
        one = steps[name]
        entry = bench.store.find(one.key) if one.key else None
        if entry is None:
            return []
        found.insert(0, (one.step, entry.artifact(one.step.stage.produces)))
        name = next(iter(one.step.sources.values()))
    return found
