"""Adopt an ONNX file that the recipe starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from optimizer.errors import StageError
from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Format


class Adopt(Stage):
    """Check that an ONNX file is valid and has the interface of the recipe, and store it with its external data."""

    name: ClassVar[str] = "adopt"
    consumes: ClassVar[Mapping[str, Format]] = {"checkpoint": "checkpoint"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("onnx",)

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the file unchanged, except that weights in other files move into one beside it.

        Raises: StageError when the file is not ONNX, is not valid, or names other inputs or outputs.
        """
        import onnx

        from optimizer.graph.files import save_model

        path = sources["checkpoint"].path
        try:
            model = onnx.load(path)
            onnx.checker.check_model(str(path))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise StageError(f"is not a valid ONNX model: {error}", where=str(path.name)) from error
        weights = {i.name for i in model.graph.initializer}
        for side, wanted, found in (
            ("inputs", self.inputs, [i.name for i in model.graph.input if i.name not in weights]),
            ("outputs", self.outputs, [o.name for o in model.graph.output]),
        ):
            if list(wanted) != found:
                raise StageError(
                    f"has the {side} {', '.join(found)}; the recipe names {', '.join(wanted)}",
                    where=path.name,
                    hint=f"Write the recipe's {side} as the file has them, in the same order.",
                )
        save_model(model, workdir / self.main_file)
