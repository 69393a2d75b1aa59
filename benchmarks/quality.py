"""What the benchmarks of quality share: what judges, one loop over the tools, and the command line.

A row is what one form of one model is worth: `top1` (or `right`, of pixels) by the labels, `same`, the share of answers
equal to float32's, and `sqnr_db` of the outputs, 10 log10(sum ref^2 / sum err^2). `int8` is the share of
multiply-accumulates that the graph (TensorRT's dialect) or onnxruntime (the CPU's) computes in int8. `seconds` made the
form, without what an earlier one had made already.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from calibration import modelopt_python  # beside this file
from quality_float16 import FLOAT16, Infer
from quality_int8 import QUANTIZERS, Sources
from quality_stages import Bench, simplified

from optimizer.calibration.probe import Picked
from optimizer.data.samples import Samples, batches
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.judge import open_judge
from optimizer.recipe.model import Recipe
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.session import Session
from optimizer.stages.float16 import Float16
from optimizer.types import Artifact

Row = dict[str, Any]
ROOT = Path(__file__).parent.parent
DIALECTS = ("tensorrt", "cpu")
THREADS = len(os.sched_getaffinity(0))


class Evaluation:
    """The samples that judge, and the float32 outputs for them. `score` names the share of right answers, if any."""

    def __init__(self, samples: Samples, size: int, score: str = "") -> None:
        self.count, self.score = len(samples), score
        # Alike ones together: mixed lengths would be hardly batched else, and each run quantizes some tools' weights.
        shapes = [sorted((name, array.shape) for name, array in sample.inputs.items()) for sample in samples]
        order = sorted(range(self.count), key=shapes.__getitem__)
        self.batches = list(batches(Picked(samples, order), size))
        self.reference: list[Any] = []

    def outputs(self, infer: Infer) -> list[Any]:
        """Return the first output of every batch."""
        return [next(iter(infer(batch.inputs).values())) for batch in self.batches]

    def judged(self, infer: Infer) -> Row:
        """Return what a form of the model is worth.

        Raises: ValueError for outputs that are not finite, which no SQNR describes.
        """
        found = self.outputs(infer)
        signal = sum(float((wide.astype(np.float64) ** 2).sum()) for wide in self.reference)
        error = sum(
            float(((own.astype(np.float64) - wide) ** 2).sum()) for own, wide in zip(found, self.reference, strict=True)
        )
        if not np.isfinite(error):
            raise ValueError("outputs are NaN or infinite")
        row: Row = {"samples": self.count}
        if self.score:
            said = np.concatenate([answers(own).reshape(-1) for own in found])
            wide = np.concatenate([answers(own).reshape(-1) for own in self.reference])
            targets = np.concatenate([np.asarray(batch.targets).reshape(-1) for batch in self.batches])
            expected = targets > 0 if said.dtype == bool else targets
            row |= {self.score: float((said == expected).mean()), "same": float((said == wide).mean())}
        return row | {"sqnr_db": 10 * float(np.log10(signal / error)) if error else None}


def answers(logits: Any) -> Any:
    """Return the class of a sample, or whether a pixel belongs to it."""
    return logits.argmax(1) if logits.ndim == 2 else logits > 0


@dataclass(frozen=True)
class Subject:
    """A model under test: its simplified float32 graph, what tools calibrate on and what judges them.

    `evaluations`: the first judges int8, all of them float16. `together`: samples that onnxruntime calibrates on at a
    time. `python` is modelopt's, or empty.
    """

    model: str
    bench: Bench
    module: Artifact
    graph: Artifact
    evaluations: tuple[Evaluation, ...]
    python: str
    together: int

    @property
    def sources(self) -> Sources:
        """What a peer is given."""
        return Sources(self.graph.file, self.module.path, self.bench.samples, self.together, self.python)

    def int8_form(self, tool: str, options: str, ours: Mapping[str, Any], dialect: str) -> Path:
        """Return the graph that a tool quantized."""
        if tool == "optimize":
            return self.bench.variant(self.graph, ours[options], dialect).file
        target = self.bench.folder / f"{tool}-{options}-{dialect}.onnx"
        QUANTIZERS[tool](self.sources, options, dialect, target)
        return target


@dataclass(frozen=True)
class Judging:
    """How a subject is judged: the name of its score, batch, and the counts of samples (0: all), the first for int8."""

    score: str
    batch: int
    counts: tuple[int, ...] = (0,)


def opened(model: str, recipe: Recipe, place: tuple[Path, str], judging: Judging, together: int) -> Subject:
    """Build what all tools start from; `place` is a folder and modelopt's python."""
    folder, python = place
    bench = Bench(folder, None)
    module, graph, splits = simplified(recipe, bench)
    evaluations = tuple(
        Evaluation(spread(splits.evaluation, count), judging.batch, judging.score) for count in judging.counts
    )
    return Subject(model, bench, module, graph, evaluations, python, together)


def spread(samples: Samples, count: int) -> Samples:
    """Return so many of the samples, evenly spread; all for 0."""
    return Picked(samples, [i * len(samples) // count for i in range(count)]) if count else samples


def float32_rows(subject: Subject) -> Iterator[Row]:
    """Compute what all forms are measured against; yield a row for it."""
    with OnnxSession(subject.graph.file, threads=THREADS, optimize=False) as session:
        for evaluation in subject.evaluations:
            evaluation.reference = evaluation.outputs(session.infer)
            yield _head(subject, "float32", "") | evaluation.judged(session.infer)


def float16_rows(subject: Subject) -> Iterator[Row]:
    """Yield rows of our fp16 and of the peers'.

    Judged with rounding after every operator, all but those "on the CPU": PyTorch's own kernels, which round where they
    do.
    """

    def ours(_: Sources, __: Path) -> Path:
        return subject.bench.run(Float16(), {"graph": subject.graph, "samples": subject.graph}).file

    for (tool, options), form in {("optimize", "fp16"): ours, **FLOAT16}.items():
        head = _head(subject, tool, options)
        target = subject.bench.folder / f"{tool}-{options}.onnx"
        started = time.perf_counter()
        try:
            made = form(subject.sources, target)
            head["seconds"] = time.perf_counter() - started
            if made is None:
                continue
            with contextlib.ExitStack() as stack:
                infer = _rounded(stack.enter_context(open_judge(made, THREADS)[0])) if isinstance(made, Path) else made
                for evaluation in subject.evaluations:
                    yield head | evaluation.judged(infer)
        except Exception as error:  # a peer's failure is a result, not the end of the run
            yield head | {"failed": f"{type(error).__name__}: {error}"[:300]}


def _rounded(judge: Session) -> Infer:
    """Give a judge its inputs in the types that it takes: a half model's are float16."""

    def infer(feed: Mapping[str, Any]) -> Mapping[str, Any]:
        return judge.infer({spec.name: feed[spec.name].astype(spec.dtype, copy=False) for spec in judge.inputs})

    return infer


def int8_rows(
    subject: Subject, ours: Mapping[str, Mapping[str, Any]], peers: Sequence[tuple[str, str]]
) -> Iterator[Row]:
    """Yield a row per dialect and tool; modelopt writes TensorRT's alone, onnxruntime's dynamic int8 is the CPU's."""
    for dialect in DIALECTS:
        tools = [("optimize", name) for name in ours]
        tools += [peer for peer in peers if _takes_part(*peer, dialect, subject.python)]
        for tool, options in tools:
            row = _head(subject, tool, options) | {"dialect": dialect}
            started = time.perf_counter()
            try:
                target = subject.int8_form(tool, options, ours, dialect)
                row["seconds"] = time.perf_counter() - started
                with OnnxSession(target, threads=THREADS, optimize=dialect == "cpu") as session:
                    row |= subject.evaluations[0].judged(session.infer)
                receipt = graph_receipt(target) if dialect == "tensorrt" else onnxruntime_receipt(target)
                row["int8"] = receipt.shares.get("int8", 0.0)
            except Exception as error:  # a peer's failure is a result, not the end of the run
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
            yield row


def _takes_part(tool: str, options: str, dialect: str, python: str) -> bool:
    if tool == "modelopt":
        return bool(python) and dialect == "tensorrt"
    return options != "dynamic" or dialect == "cpu"


def _head(subject: Subject, tool: str, options: str) -> Row:
    return {"model": subject.model, "tool": tool, "options": options}


def shown(row: Mapping[str, Any]) -> str:
    """Return a row as a line."""
    head = f"{row['model']:<17} {row.get('dialect', ''):<9} {row['tool']:<12} {row['options']:<24}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    sqnr = "   equal" if row["sqnr_db"] is None else f"{row['sqnr_db']:5.2f} dB"
    shares = "".join(f"  {name} {row[name]:.2%}" for name in ("top1", "right", "same", "int8") if name in row)
    seconds = f"  {row['seconds']:6.1f} s" if "seconds" in row else ""
    return f"{head} {sqnr}{shares}  of {row['samples']}{seconds}"


def parser(description: str, needs: str, models: Sequence[str]) -> argparse.ArgumentParser:
    """Return the command line that these benchmarks have in common."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", default=os.environ.get("OPTIMIZE_DATA", ""), help=f"the folder that holds {needs}")
    found.add_argument("--models", default=",".join(models))
    found.add_argument("--modelopt", default="", help="an environment to use or create; none: without modelopt")
    found.add_argument("--json", type=Path, help="write the results here, e.g. into benchmarks/results/")
    return found


GoalsOf = Callable[[Sequence[Row]], dict[str, Any]]
RowsOf = Callable[[str, argparse.Namespace, str, Path], Iterator[Row]]


def carry_out(
    command: argparse.ArgumentParser, rows_of: RowsOf, goals_of: GoalsOf, given: Sequence[str] | None = None
) -> None:
    """Print and write the rows of every model, row by row, and the goals; `finished` says that the file is whole."""
    arguments = command.parse_args(given)
    if not arguments.data:
        command.error("needs --data DIR or OPTIMIZE_DATA")
    arguments.data = str(Path(arguments.data).absolute())
    machine = {"cpu": platform.processor() or platform.machine(), "threads": THREADS}
    document: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine, "finished": False}
    document["rows"] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(arguments.modelopt or Path(name) / "modelopt")
        python = "" if arguments.modelopt == "none" else modelopt_python(place.absolute())
        for model in arguments.models.split(","):
            folder = Path(name) / model
            folder.mkdir()
            for row in rows_of(model, arguments, python, folder):
                document["rows"].append(row)
                print(shown(row), flush=True)
                _write(arguments.json, document)
    document |= {"goals": goals_of(document["rows"]), "finished": True}
    for name, found in document["goals"].items():
        print(f"{'met   ' if found['met'] else 'MISSED'} {name}: {found['found_db']} of {found['least_db']} dB")
    _write(arguments.json, document)


def _write(path: Path | None, document: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
