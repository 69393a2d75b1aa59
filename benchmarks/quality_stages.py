"""The stages of a recipe run by hand, one by one, for benchmarks that look at what each of them writes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from optimizer.data.splits import Splits
from optimizer.recipe.model import Recipe
from optimizer.recipe.sources import read_sources
from optimizer.recipe.steps import derive
from optimizer.stage import Stage, StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.choose import Choose
from optimizer.stages.collect import Collect
from optimizer.stages.equalize import Equalize
from optimizer.stages.export import Export
from optimizer.stages.quantize import Quantize
from optimizer.stages.refine import Refine
from optimizer.stages.simplify import Simplify
from optimizer.store import Store
from optimizer.types import Artifact


class Bench:
    """Stages run by hand on one model, in one folder; what several variants share is built once."""

    def __init__(self, folder: pathlib.Path, samples: Any) -> None:
        self.folder, self.samples, self.count = folder, samples, 0
        self.made: dict[str, Artifact] = {}
        self.notes: list[str] = []

    def run(self, stage: Stage, sources: Mapping[str, Artifact]) -> Artifact:
        """Run a stage and return its output."""
        key = json.dumps([stage.name, stage.model_dump(mode="json"), [str(s.path) for s in sources.values()]])
        if key not in self.made:
            self.count += 1
            workdir = self.folder / f"{self.count:03}-{stage.name}"
            workdir.mkdir()
            context = StageContext(
                workdir.with_suffix(".log"), self.notes.append, lambda *_: None, lambda _: self.samples
            )
            stage.run(sources, workdir, context)
            self.made[key] = Artifact(stage.produces, workdir, str(self.count))
        return self.made[key]

    def variant(self, graph: Artifact, options: Mapping[str, Any], dialect: str) -> Artifact:
        """Take the simplified graph through the stages of an int8 variant, as a recipe's build does."""
        made = {"graph": graph, "float32": graph, "samples": Artifact("data", self.folder, "samples")}
        for kind in (Equalize, Calibrate, Choose, Quantize, Refine):
            if not kind.wanted(options):
                continue
            own = {name: value for name, value in options.items() if name in kind.model_fields}
            own |= {"dialect": dialect} if "dialect" in kind.model_fields else {}
            output = self.run(kind(**own), {role: made[role] for role in kind.consumes})
            made["table" if kind.produces == "calibration" else "graph"] = output
            made["float32"] = output if kind.keeps_float32 else made["float32"]
        return made["graph"]


def simplified(recipe: Recipe, bench: Bench) -> tuple[Artifact, Artifact, Splits]:
    """Export and simplify a recipe's model; return the module, its graph and its samples."""
    found = {name: s.artifact for name, s in read_sources(recipe, Store(bench.folder / "store").index).items()}
    collect = next(step.stage for step in derive(recipe).steps if isinstance(step.stage, Collect))
    module = bench.run(collect, {role: found[role] for role in collect.roles})
    splits = Splits(recipe)
    bench.samples = splits.calibration
    # The example that export traces on is a calibration sample here: its shapes alone count.
    return module, bench.run(Simplify(), {"graph": bench.run(Export(), {"module": module})}), splits
