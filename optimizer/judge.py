"""The judge: a session that computes on this CPU what an engine built from an ONNX file would compute."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.runtime.session import Array, Feed, Session

if TYPE_CHECKING:
    import onnx


class EmulatedSession(Session):
    """A session on a rewritten copy of a model; closing it removes the copy."""

    def __init__(self, inner: Session, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._inner = inner
        self._folder = folder
        self.inputs = inner.inputs
        self.outputs = inner.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once. `feed` holds every input by name with its declared dtype; the outputs come back by name."""
        return self._inner.infer(feed)

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Place inputs and outputs in the backend's own memory; the call returned runs once and waits for the end."""
        return self._inner.bind(feed)

    def close(self) -> None:
        """Free the session, then remove the copy."""
        self._inner.close()
        self._folder.cleanup()


def open_judge(model: Path, threads: int = 1) -> tuple[Session, str]:
    """Open an ONNX file as an engine would compute it; the sentence says with what tool and arithmetic.

    Numeric: float16 and bfloat16 parts are rounded after every operator; Q/DQ and float32 parts are executed as
    written, without any graph optimisation.
    Raises: MissingToolError without onnxruntime, StageError for a graph that cannot be emulated.
    """
    import onnx
    import onnxruntime

    from optimizer.graph.rounding import emulate_rounding, narrow_formats
    from optimizer.runtime.onnx import OnnxSession

    outline = onnx.load(model, load_external_data=False)
    tool = f"onnxruntime {onnxruntime.__version__} on the CPU"
    stored = _stored_types(outline)
    integers = f"{' and '.join(stored)} as its Q/DQ nodes say, " if stored else ""
    narrow = narrow_formats(outline)
    if not narrow:
        return OnnxSession(model, threads=threads, optimize=False), f"{tool}, {integers}float32"
    with contextlib.ExitStack() as undo:
        folder = tempfile.TemporaryDirectory(prefix="judge-")
        undo.enter_context(folder)
        emulated = Path(folder.name) / "emulated.onnx"
        emulate_rounding(model, emulated)
        session = EmulatedSession(OnnxSession(emulated, threads=threads, optimize=False), folder)
        undo.pop_all()  # from here on closing the session removes the folder
    return session, f"{tool}, {integers}{' and '.join(narrow)} rounded after every operator"


def _stored_types(model: onnx.ModelProto) -> list[str]:
    """Return what is dequantized in a model, by the types of its constants and zero points."""
    from onnx import TensorProto

    names = {TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.INT4: "int4 weights"}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            known = [types[name] for name in (*node.input[2:3], node.input[0]) if name in types]
            found.add(names.get(known[0], "int8") if known else "int8")
    return sorted(found, reverse=True)
