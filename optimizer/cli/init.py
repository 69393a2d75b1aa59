"""`optimize init`: a commented starter recipe."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import get_args

import click

from optimizer.errors import UsageError

_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin")
_EXAMPLE = ("recipe.yaml", "model.py", "data.py", "train.py")
_ENGINE = '  tensorrt_rtx: {compute_capabilities: ["8.6", "8.9", "12.0"]}   # one engine file that holds all of them'
_HALF = "  fp16: {targets: [tensorrt_rtx]}   # a CPU computes it in float32"
_NO_ENGINE = f"  # where the package tensorrt-rtx is installed:\n  # {_ENGINE.strip()}"
_LEAST_SAMPLES = 10  # two of these calibrate


@click.command("init")
@click.argument("factory", metavar="[MODEL.py:FACTORY]", required=False)
@click.option("--checkpoint", metavar="FILE", help="The trained weights; default: the only checkpoint beside MODEL.py.")
@click.option("--samples", metavar="FILE.npz", help="Real samples; default: the only .npz beside MODEL.py.")
def command(factory: str | None, checkpoint: str | None, samples: str | None) -> None:
    """Write a commented starter recipe.yaml here.

    For MODEL.py:FACTORY it names your checkpoint and your real samples (an .npz with one array per input and
    `targets`). Without an argument it writes a small example that works: model, data and training script.
    """
    here = Path.cwd()
    if factory is None:
        if checkpoint or samples:
            raise UsageError("--checkpoint and --samples go with MODEL.py:FACTORY", where="init")
        written = _example(here)
        steps = ("python train.py", "optimize build recipe.yaml")
        guessed: tuple[str, ...] = ()
    else:
        written = _own(here, factory, checkpoint, samples)
        guessed = _GUESSED
        steps = ("optimize check recipe.yaml", "optimize build recipe.yaml")
    _write(here, written)
    click.echo(f"wrote {', '.join(written)}. Next:", err=True)
    if guessed:
        click.echo("  edit recipe.yaml where it says EDIT; check cannot tell whether these are right:", err=True)
    for line in guessed:
        click.echo(f"    {line}", err=True)
    for step in steps:
        click.echo(f"  {step}", err=True)


def _write(here: Path, contents: Mapping[str, str]) -> None:
    """Write all files or, where one exists, none."""
    existing = [name for name in contents if (here / name).exists()]
    if existing:
        raise UsageError(
            f"already here: {', '.join(existing)}",
            where=str(here),
            hint="Nothing was written. Use an empty folder, or move these files away first.",
        )
    for name, text in contents.items():
        (here / name).write_text(text, encoding="utf-8")


def _example(here: Path) -> dict[str, str]:
    texts = {name: _text(f"example_{name}") for name in _EXAMPLE}
    recipe = Template(texts["recipe.yaml"]).substitute(name=_name(here), engine=_engine(), half=_half())
    return {**texts, "recipe.yaml": recipe}


def _own(here: Path, factory: str, checkpoint: str | None, samples: str | None) -> dict[str, str]:
    from optimizer.recipe.files import wrong_function

    wrong = wrong_function(here, factory)
    if wrong:
        raise UsageError(wrong, where=f"init {factory}")
    file, _, function = factory.rpartition(":")
    beside = (here / file).parent
    weights = _find(here, beside, checkpoint, _CHECKPOINTS, _CHECKPOINT_WANTED)
    names, required = _forward_names(here / file, function)
    wanted = _samples_wanted(names, required)
    data = _read_samples(_find(here, beside, samples, (".npz",), wanted), names, wanted)
    values = {
        "name": _name(here),
        "factory": _quoted(factory),
        "checkpoint": _quoted(_relative(weights, here)),
        "outputs": ", ".join(_output_names(here / file, function, data.shapes)),
        "inputs": "\n".join(
            f"  {name}: {{dtype: {data.dtypes[name]}, shape: [{', '.join(map(str, ['batch', *shape]))}]{keyword}}}"
            for name, shape, keyword in data.arguments(names)
        ),
        "samples": _relative(data.file, here),
        "calibration": str(min(512, (data.count + 4) // 5)),
        "metrics": _METRICS if data.has_classes else _NO_METRICS,
        "limit": "  top1: {max_drop: 0.01}" if data.has_classes else "  # METRIC: {max_drop: 0.01}",
        "engine": _engine(),
        "half": _half(),
    }
    return {
        "recipe.yaml": Template(_text("recipe.yaml")).substitute({**values, "samples": _quoted(values["samples"])}),
        "data.py": Template(_text("data.py")).substitute(samples=values["samples"]),
    }


_GUESSED = (
    "outputs   a name for each tensor that forward() returns, in order",
    "inputs    a word for each further axis that varies (its range under profile)",
    "profile   the sizes that you will serve",
    "gate      what you may lose, and must gain",
)
_METRICS = "metrics: [top1]   # each is paired with the baseline's, sample by sample; known:  optimize stages"
_NO_METRICS = "# metrics: [top1]   # with `targets` in the samples; known:  optimize stages"
_CHECKPOINT_WANTED = """Save the trained weights there:
  from safetensors.torch import save_file
  save_file(model.state_dict(), "checkpoint.safetensors")
or name them:  --checkpoint FILE"""


def _samples_wanted(names: tuple[str, ...], required: int) -> str:
    arrays = ", ".join(f"{name}=..." for name in names[:required] or ("image",))
    return f"""Calibrating and judging take real samples. Save some hundred, exactly as forward() takes them:
  numpy.savez("samples.npz", {arrays}, targets=targets)
Each array's first axis counts the samples; targets are optional. Or name a file:  --samples FILE.npz"""


@dataclass(frozen=True, slots=True)
class _Samples:
    """What an .npz of samples holds: for each input its dtype and the shape of one sample."""

    file: Path
    count: int
    dtypes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    has_classes: bool

    def arguments(self, names: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Yield each input with its sample's shape, and how it is passed: by name where it skips a parameter."""
        for index, (name, shape) in enumerate(self.shapes.items()):
            skips = len(self.shapes) > 1 and names and names[index] != name
            yield name, shape, ", keyword: true" if skips else ""


def _find(here: Path, beside: Path, named: str | None, endings: tuple[str, ...], wanted: str) -> Path:
    """Return the file that was named, or the only one with such an ending beside the model."""
    if named is not None:
        if not (here / named).is_file():
            raise UsageError(f"no such file: '{named}'", where="init")
        return here / named
    found = sorted(p for p in beside.iterdir() if p.suffix in endings and p.is_file())
    if len(found) == 1:
        return found[0]
    what = "samples" if ".npz" in endings else "checkpoint"
    if found:
        listed = ", ".join(p.name for p in found)
        raise UsageError(f"{len(found)} files may be the {what}: {listed}", where=str(beside), hint=f"--{what} FILE")
    raise UsageError(f"no {what} beside the model ({', '.join(endings)})", where=str(beside), hint=wanted)


def _read_samples(file: Path, names: tuple[str, ...], wanted: str) -> _Samples:
    """Read names, dtypes and shapes; float64 becomes float32, which models compute in."""
    import zipfile

    import numpy as np

    from optimizer.recipe.model import DType

    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"is not an .npz of plain arrays: {error}", where=str(file), hint=wanted) from error
    targets = arrays.pop("targets", None)
    counts = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if not arrays or len({*counts.values(), *([len(targets)] if targets is not None else [])}) != 1:
        said = ", ".join(f"{n} {list(a.shape)}" for n, a in arrays.items()) or "nothing but targets"
        said += f", targets {list(targets.shape)}" if arrays and targets is not None else ""
        raise UsageError(f"the arrays count unlike samples: {said}", where=str(file), hint=wanted)
    count = next(iter(counts.values()))
    if count < _LEAST_SAMPLES:
        raise UsageError(f"{count} samples are too few", where=str(file), hint=f"Give at least {_LEAST_SAMPLES}.")
    if len(arrays) > 1 and names:
        if not set(arrays) <= set(names):
            what = f"holds {', '.join(arrays)}; forward() takes {', '.join(names)}"
            raise UsageError(what, where=str(file), hint=wanted)
        arrays = {name: arrays[name] for name in names if name in arrays}
    dtypes = {n: "float32" if a.dtype == np.float64 else a.dtype.name for n, a in arrays.items()}
    for name, dtype in dtypes.items():
        if dtype not in get_args(DType):
            raise UsageError(
                f"array '{name}' is {dtype}", where=str(file), hint=f"Save one of {', '.join(get_args(DType))}."
            )
    has_classes = targets is not None and targets.ndim == 1 and targets.dtype.kind in "iu"
    return _Samples(file, count, dtypes, {n: a.shape[1:] for n, a in arrays.items()}, has_classes)


def _forward(file: Path, function: str) -> ast.FunctionDef | None:
    """Return forward(), where the factory is a class in this file that defines it."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == function:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "forward":
                    return method
    return None


def _forward_names(file: Path, function: str) -> tuple[tuple[str, ...], int]:
    """Return the parameters of forward(), where they can be read, and how many it needs."""
    forward = _forward(file, function)
    if forward is None:
        return (), 0
    names = tuple(a.arg for a in forward.args.args[1:])
    return names, len(names) - len(forward.args.defaults)


def _output_names(file: Path, function: str, inputs: Mapping[str, object]) -> list[str]:
    """Return a name for each output: as many as a `return a, b` of forward() shows, else one."""
    forward = _forward(file, function)
    returns = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)] if forward else []
    count = max((len(value.elts) for value in returns if isinstance(value, ast.Tuple)), default=1)
    word = "output" if not any(name.startswith("output") for name in inputs) else "result"
    return [word] if count < 2 else [f"{word}{number}" for number in range(1, count + 1)]


def _builds_engines() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


def _engine() -> str:
    return _ENGINE if _builds_engines() else _NO_ENGINE


def _half() -> str:
    return _HALF if _builds_engines() else f"  # {_HALF.strip()}"


def _name(here: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", here.name).strip("-._") or "model"


def _relative(file: Path, here: Path) -> str:
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.as_posix()


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./:-]+", text) else "'" + text.replace("'", "''") + "'"


def _text(name: str) -> str:
    return (files("optimizer.cli") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
