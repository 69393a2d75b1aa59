"""Export the module to ONNX with its dynamic axes under their recipe names."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optimizer.checkpoint import LoadedModule, load_module
from optimizer.data.samples import Array, Samples
from optimizer.errors import StageError
from optimizer.imports import first_line, importable, user_code, users_line
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format, TensorSpec

if TYPE_CHECKING:
    from optimizer.runtime.session import Session

# A batch of one makes the exporter take the axis for a constant; FACTS of the exporter, see docs/limits.md.
EXAMPLE_BATCH = 2
# What forward() raises when it refuses its inputs; anything else is an error in it.
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
# How torch says that an axis asked to be dynamic has one size only.
_FIXED_SIGNS = ("specialized", "inferred a static shape", "marked as dynamic")


class Export(Stage):
    """torch.onnx.export with dynamo, traced on real samples at a batch of two."""

    name: ClassVar[str] = "export"
    version: ClassVar[int] = 4
    consumes: ClassVar[Mapping[str, Format]] = {"module": "checkpoint"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript", "onnx-ir")
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        "float32 against float32; other kernels sum in another order", atol=1e-4, rtol=1e-3
    )

    opset: int = 20

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the exported graph.

        Raises: StageError when the model refuses the samples, cannot be exported, or fixed an axis named dynamic.
        """
        # By its end the module and the exporter's graphs, which are full of cycles, must be out of scope.
        with _collected_once():
            self._write(sources, workdir, context)

    def _write(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        from optimizer.graph.export_guards import check_guards
        from optimizer.graph.files import INLINE_LIMIT_BYTES

        loaded = load_module(sources["module"].path)
        example = _example(context.samples("evaluation"), loaded.inputs)
        _try_forward(loaded, example)
        _import_exporter()
        program = _export(loaded, example, self.opset, context.log)
        check_guards(program.exported_program, loaded)
        _check_output_names(program.model, loaded)
        _carry_modules(program.model, dict(loaded.module.named_modules(remove_duplicate=False)))
        weights = sum(t.numel() * t.element_size() for t in loaded.module.state_dict().values())
        program.save(str(workdir / self.main_file), external_data=weights > INLINE_LIMIT_BYTES)
        _check_axes(workdir / self.main_file, loaded.inputs)

    def open_parent(self, sources: Mapping[str, Artifact]) -> Session:
        """The module itself, in torch eager."""
        from optimizer.runners.torch import TorchSession

        return TorchSession(sources["module"].path)


@contextlib.contextmanager
def _collected_once() -> Iterator[None]:
    """Collect garbage once, at the end, and take what is left out of the collector's sight until `execute` ends.

    The imports of torch and its exporter alone make a million objects that stay: walking through them every time that
    their number has grown by a quarter, and later with every full collection, took a tenth of a small model's build.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.collect()
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _example(samples: Samples, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Stack the first real samples; a fixed first axis takes as many as it says."""
    first = samples[0]
    wanted = inputs[0].shape[0] if inputs[0].shape else 1
    count = wanted if isinstance(wanted, int) else EXAMPLE_BATCH
    alike = [s for i in range(min(len(samples), 64)) if _fits(s := samples[i], first)][:count]
    picked = [alike[i % len(alike)] for i in range(count)]
    return {spec.name: np.stack([s.inputs[spec.name] for s in picked]) for spec in inputs}


def _fits(sample: Any, first: Any) -> bool:
    return all(sample.inputs[name].shape == array.shape for name, array in first.inputs.items())


def _try_forward(loaded: LoadedModule, example: Mapping[str, Array]) -> None:
    """Call the model once, so that an input it refuses is named before the exporter buries it."""
    import torch

    feed = {name: torch.from_numpy(np.array(array)) for name, array in example.items()}
    given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in example.items())
    where, folder = f"model {type(loaded.module).__name__}", loaded.folder
    with importable(folder), user_code(f"{where}: forward() failed on real samples ({given})", folder):
        try:
            with torch.inference_mode():
                loaded(feed)
        except _REFUSALS as error:
            raise StageError(
                f"forward() refused real samples ({given}): {first_line(error)}{users_line(error, folder)}",
                where=where,
                hint="Compare the recipe's inputs and data.transform with what forward() takes.",
            ) from error


def _import_exporter() -> None:
    """Import what exporting loads first, so that the collection in the end need not look at its objects either."""
    import onnxscript
    import torch._dynamo

    del onnxscript, torch
    gc.freeze()


def _export(loaded: LoadedModule, example: Mapping[str, Array], opset: int, log: Path) -> Any:
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in example.items()}
    positional = [s for s in loaded.inputs if s.name not in loaded.keywords]
    named = [s for s in loaded.inputs if s.name in loaded.keywords]
    axes = {s.name: {i: a for i, a in enumerate(s.shape) if isinstance(a, str)} for s in loaded.inputs}
    shapes: Any = tuple(axes[s.name] for s in positional)
    if named:
        shapes = dict(zip(_argument_names(loaded.module, len(positional)), shapes, strict=True))
        shapes |= {s.name: axes[s.name] for s in named}
    with _quiet(log), importable(loaded.folder):
        try:
            return torch.onnx.export(
                loaded.module,
                tuple(tensors[s.name] for s in positional),
                kwargs={s.name: tensors[s.name] for s in named},
                dynamo=True,
                dynamic_shapes=shapes if any(axes.values()) else None,
                input_names=[s.name for s in loaded.inputs],
                output_names=list(loaded.outputs),
                opset_version=opset,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise _explain(error, loaded, log) from error


def _check_output_names(model: Any, loaded: LoadedModule) -> None:
    """Refuse an output that is named like another tensor of the graph: the exporter writes it all the same."""
    made = Counter(value.name for node in model.graph for value in node.outputs)
    made.update(value.name for value in (*model.graph.inputs, *model.graph.initializers.values()))
    taken = [name for name in loaded.outputs if made[name] > 1]
    if taken:
        raise StageError(
            f"tensors inside the model are named {', '.join(taken)} too",
            where="model.outputs",
            hint=f"Choose another name, e.g. '{taken[0]}_out'.",
        )


def _always(text: str, loaded: LoadedModule) -> str:
    """Say which named axes torch found to have one size, in the recipe's words where torch names input and axis."""
    positional = [s.name for s in loaded.inputs if s.name not in loaded.keywords]
    recipe_names = dict(zip(_argument_names(loaded.module, len(positional)), positional, strict=False))
    shapes = {spec.name: spec.shape for spec in loaded.inputs}
    found = {
        f"'{shapes[name][int(axis)]}' of input '{name}' is always {size}"
        for size, argument, axis in re.findall(
            r"static shape of (\d+) for dimension inputs\['(\w+)'\]\.shape\[(\d+)\]", text
        )
        if (name := recipe_names.get(argument, argument)) in shapes
    }
    lines = [s.strip("- ") for s in text.splitlines() if any(sign in s for sign in _FIXED_SIGNS)]
    return ", ".join(sorted(found)) or next(iter(lines), "")


def _place(text: str) -> str:
    """Find the line of the user's file in torch's report: its name, number and code."""
    found = re.search(r'File "([^"]+)", line (\d+), in forward\n\s*(.+)', text)
    return f": {Path(found[1]).name}, line {found[2]}:  {found[3].strip()}" if found else ""


def _argument_names(module: Any, count: int) -> list[str]:
    """Names of the positional arguments of forward(), which dynamic_shapes needs once keywords are in play."""
    import inspect

    return list(inspect.signature(module.forward).parameters)[:count]


def _explain(error: BaseException, loaded: LoadedModule, log: Path) -> StageError:
    """Find the cause below the exporter's report; name the usual ones."""
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    log.write_text(log.read_text() + "\n".join(f"{type(e).__name__}: {e}" for e in chain))
    names = " ".join(type(e).__name__ for e in chain)
    text = " ".join(str(e) for e in chain)
    where = f"export of {type(loaded.module).__name__}"
    if "DataDependent" in names or "data-dependent" in text.lower():
        return StageError(
            f"a shape or branch depends on the data, so no fixed graph exists for it{_place(text)}",
            where=where,
            hint="Rewrite that part of forward() without .item(), nonzero() or a Python 'if' on tensor values.\n"
            f"log: {log}",
        )
    if "ConstraintViolation" in names or any(sign in text for sign in _FIXED_SIGNS):
        line = _always(text, loaded) or first_line(chain[-1])
        return StageError(
            f"an axis that the recipe names dynamic is fixed by the model: {line}",
            where=where,
            hint=f"Write that axis as a number in the recipe's shape, or make forward() independent of it.\nlog: {log}",
        )
    return StageError(f"{type(chain[-1]).__name__}: {first_line(chain[-1])}", where=where, hint=f"log: {log}")


def _carry_modules(model: Any, modules: Mapping[str, object]) -> None:
    """Write on every node the module it comes from, and drop stack traces: they hold paths of this machine.

    The graph gets the names of all modules: one that leaves no node is told from one that never was.
    """
    from onnx_ir.traversal import RecursiveGraphIterator

    from optimizer.graph.modules import MODULE, MODULES, modules_text, origin

    model.metadata_props[MODULES] = modules_text(modules.items())
    for node in RecursiveGraphIterator(model.graph):
        weights = [value.name for value in node.inputs if value is not None and value.is_initializer()]
        found = origin(node.metadata_props, weights, modules.keys())
        if found is not None:
            node.metadata_props[MODULE] = found
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what the exporter prints to the log: its progress, and warnings that are about torch's own internals."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    # torch's handlers hold the stderr of the time of its import, which no redirection reaches.
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = {h for logger in loggers for h in logger.handlers if type(h) is logging.StreamHandler}
    with log.open("a") as stream, contextlib.ExitStack() as stack:
        stack.callback(exporter.setLevel, level)
        for handler in handlers:
            stack.callback(handler.setStream, handler.setStream(stream))
        with (
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield


def _check_axes(path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    from optimizer.graph.files import read_interface

    found, _ = read_interface(path)
    by_name = {spec.name: spec for spec in found}
    unused = [s.name for s in inputs if s.name not in by_name]
    if unused:
        raise StageError(f"the exported graph lost the input {', '.join(unused)}", where="export")
    for spec in inputs:
        fixed = [a for a, b in zip(spec.shape, by_name[spec.name].shape, strict=True) if isinstance(a, str) and a != b]
        if fixed:
            shape = list(by_name[spec.name].shape)
            raise StageError(
                f"input '{spec.name}' was exported as {shape}; the recipe names {', '.join(fixed)}",
                where="export",
                hint="The model fixes that axis: write its size into the recipe's shape.",
            )
