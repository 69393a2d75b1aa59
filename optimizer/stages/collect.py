"""Collect what defines the model into one folder, so that a run can be measured elsewhere exactly as it was built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from optimizer.checkpoint import MODULE_FILE
from optimizer.data.identity import package_versions
from optimizer.errors import StageError
from optimizer.imports import closure
from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Format


class Collect(Stage):
    """Copy the checkpoint and the factory's code beside `module.json`, which says how they become an nn.Module."""

    name: ClassVar[str] = "collect"
    consumes: ClassVar[Mapping[str, Format]] = {"checkpoint": "checkpoint", "code": "code"}
    produces: ClassVar[Format] = "checkpoint"

    kind: str  # state_dict | exported_program
    function: str | None = None
    arguments: dict[str, Any]
    files: tuple[str, ...] = ()  # further files of the factory, relative to its folder
    state_key: str | None = None
    strip_prefix: str | None = None
    trust: bool = False
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[str, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """The sources it reads: an exported program brings its own code."""
        return ("checkpoint", "code") if self.function else ("checkpoint",)

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the folder that `checkpoint.load_module` reads."""
        checkpoint = sources["checkpoint"].path
        name = checkpoint.name  # as its owner calls it: errors name it
        shutil.copyfile(checkpoint, workdir / name)
        factory = None
        packages: dict[str, str] = {}
        if "code" in sources:
            code = sources["code"].path
            factory = f"{code.name}:{self.function}"
            wanted = closure(code)
            packages = package_versions(wanted.packages)
            for file in (*wanted.files, *(code.parent / f for f in self.files)):
                _copy(file, wanted.root, workdir)
        document = {
            "kind": self.kind,
            "checkpoint": name,
            "factory": factory,
            "arguments": self.arguments,
            "key": self.state_key,
            "strip_prefix": self.strip_prefix,
            "trust": self.trust,
            "packages": packages,  # another version of what the code imports is another model
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }
        (workdir / MODULE_FILE).write_text(json.dumps(document, indent=1) + "\n")


def _copy(file: Path, root: Path, workdir: Path) -> None:
    if not file.resolve().is_relative_to(root.resolve()):
        raise StageError(
            "lies outside the folder of the factory, so the run would not be whole",
            where=str(file),
            hint=f"Move it into {root}.",
        )
    destination = workdir / file.resolve().relative_to(root.resolve())
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, destination)
