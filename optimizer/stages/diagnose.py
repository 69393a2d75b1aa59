"""Diagnose: hold evaluation data against the calibration table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Format

_MOST_SAMPLES = 512


class Diagnose(Stage):
    """Run as many evaluation samples as calibrated, at most 512, and tell where they leave the calibrated ranges."""

    name: ClassVar[str] = "diagnose"
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "table": "calibration", "evaluation": "data"}
    produces: ClassVar[Format] = "diagnosis"
    version: ClassVar[int] = 2
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the diagnosis and note what it found; nothing is judged on it.

        Raises: StageError for evaluation data that is empty, ends early, or holds NaN.
        """
        from optimizer.calibration.collect import collect
        from optimizer.calibration.doctor import document, drift, drift_sentences
        from optimizer.calibration.probe import Picked
        from optimizer.calibration.table import CalibrationTable
        from optimizer.graph.files import load_without_weights

        table = CalibrationTable.read(sources["table"].file)
        samples = context.samples("evaluation")
        count = min(len(samples), table.samples, _MOST_SAMPLES)
        # Spread over the set: many are sorted by class.
        spread = Picked(samples, [i * len(samples) // count for i in range(count)])
        found = collect(
            load_without_weights(sources["graph"].file),
            sorted(table.tensors),
            spread,
            lambda done, total: context.progress("evaluation samples", done, total),
            role="evaluation",
        )
        drifts = drift(table, found.histograms)
        text = json.dumps(document(drifts, table, count), indent=1, allow_nan=False)
        (workdir / self.main_file).write_text(text + "\n", encoding="utf-8")
        for sentence in drift_sentences(drifts, count):
            context.note(sentence)
