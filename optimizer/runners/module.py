"""A session of PyTorch: a module under inference_mode, eager or compiled."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import MissingToolError, StageError
from optimizer.runtime.device import cuda_index
from optimizer.runtime.feed import check_feed
from optimizer.runtime.session import Array, Feed, Session
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import torch

_SIZES = (2, 3)  # of every named axis, when the outputs are described


class TorchSession(Session):
    """A module in eval mode under inference_mode. `threads` is the process's count of threads inside an operator.

    Raises: MissingToolError when torch or the GPU is absent, StageError when the checkpoint does not fit.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        sentence = missing(device)
        if sentence:
            raise MissingToolError(sentence, where=f"device {device}")
        import torch

        from optimizer.checkpoint import load_module

        self._folder = Path(folder)
        self._device = torch.device("cpu" if device == "cpu" else f"cuda:{cuda_index(device)}")
        self._loaded: Any = load_module(self._folder, str(self._device))
        # Torch has one count for the whole process: it stays when the session is closed, another one may be open.
        torch.set_num_threads(threads)
        self.inputs: tuple[TensorSpec, ...] = self._loaded.inputs

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:  # type: ignore[override]
        """Names from the recipe, dtypes and shapes from forward() on zeros; an axis has the name of the one it follows.

        Raises: StageError when forward() refuses zeros at the sizes 2 and 3 of its named axes.
        """
        axes = list(dict.fromkeys(axis for spec in self.inputs for axis in spec.shape if isinstance(axis, str)))
        base = self._described(dict.fromkeys(axes, _SIZES[0]))
        names: dict[str, list[int | str]] = {name: list(array.shape) for name, array in base.items()}
        for axis in axes:
            other = self._described(dict.fromkeys(axes, _SIZES[0]) | {axis: _SIZES[1]})
            for name, array in other.items():
                for position, (before, after) in enumerate(zip(base[name].shape, array.shape, strict=True)):
                    if after == _SIZES[1] and before == _SIZES[0]:
                        names[name][position] = axis
                    elif after != before:
                        names[name][position] = f"{name}_axis{position}"
        return tuple(TensorSpec(name, base[name].dtype.name, tuple(names[name])) for name in self._loaded.outputs)

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run forward() once, from numpy to numpy.

        Raises: UsageError for a wrong feed, StageError when forward() fails on it.
        """
        import torch

        checked = check_feed(self.inputs, feed, self._folder.name)
        self._alive()
        with self._explained(checked):
            tensors = self._tensors(checked)  # a GPU may have no room for them
            with torch.inference_mode():
                outputs = self._forward(tensors)
                return {name: self._array(name, tensor) for name, tensor in outputs.items()}

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Put the inputs on the device; the call returned runs forward() and, on a GPU, waits for it.

        Raises: UsageError for a wrong feed, StageError when forward() fails on it.
        """
        import torch

        checked = check_feed(self.inputs, feed, self._folder.name)
        loaded, device = self._alive(), self._device
        mode, forward = torch.inference_mode(), self._bound_forward()
        # The call returned is timed and so explains nothing: what forward() refuses, or imports late, it does here.
        with self._explained(checked):
            positional, named = self._arguments(self._tensors(checked))
        with mode, self._explained(checked):
            loaded.name_outputs(self._first_forward()(*positional, **named))
            forward(*positional, **named)

        def on_cpu() -> None:
            with mode:
                forward(*positional, **named)

        def on_cuda() -> None:
            with mode:
                forward(*positional, **named)
            torch.cuda.synchronize(device)

        return on_cpu if device.type == "cpu" else on_cuda

    def trace(self, feed: Feed) -> list[dict[str, Any]]:
        """Run once under torch's profiler: the operators, on a GPU its kernels too, nested as they were called.

        Raises: UsageError for a wrong feed, StageError when forward() fails on it.
        """
        from torch.profiler import ProfilerActivity, profile

        call = self.bind(feed)
        call()
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])
        with _quiet_stderr(), profile(activities=kinds) as profiler:
            call()
        return list(_events(profiler.events()))

    def close(self) -> None:
        """Free the module."""
        self._loaded = None

    def _forward(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = self._alive()(tensors)
        return outputs

    def _arguments(self, tensors: Mapping[str, torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        loaded = self._alive()
        named = {name: tensors[name] for name in loaded.keywords}
        return [tensors[spec.name] for spec in loaded.inputs if spec.name not in named], named

    def _first_forward(self) -> Callable[..., Any]:
        """Return what binding runs once, where a refusal is explained."""
        return self._bound_forward()

    def _bound_forward(self) -> Callable[..., Any]:
        """Return what a bound call runs."""
        module: Callable[..., Any] = self._alive().module
        return module

    def _tensors(self, feed: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        """Copies, because forward() may work in place and `feed` is never changed."""
        import torch

        return {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in feed.items()}

    def _array(self, name: str, tensor: torch.Tensor) -> Array:
        try:
            array: Array = tensor.cpu().numpy()
        except TypeError as error:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise StageError(
                f"output '{name}' is {kind}, which numpy cannot hold",
                where=f"model {type(self._loaded.module).__name__}",
                hint="Return it as float32:  .float()",
            ) from error
        return array

    def _described(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        import torch

        zeros = self._zeros(sizes)
        with torch.inference_mode(), self._explained(zeros):
            outputs = self._alive()(self._tensors(zeros))
            return {name: self._array(name, tensor) for name, tensor in outputs.items()}

    def _zeros(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        shapes = {s.name: tuple(sizes[a] if isinstance(a, str) else a for a in s.shape) for s in self.inputs}
        return {spec.name: np.zeros(shapes[spec.name], dtype=spec.dtype) for spec in self.inputs}

    @contextmanager
    def _explained(self, feed: Mapping[str, Array]) -> Iterator[None]:
        from optimizer.imports import importable, user_code

        given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
        where = f"model {type(self._loaded.module).__name__}: forward() failed on {given}"
        with importable(self._folder), user_code(where, self._folder):
            yield

    def _alive(self) -> Any:
        if self._loaded is None:
            raise RuntimeError(f"{self._folder}: the session is closed")
        return self._loaded


def missing(device: str) -> str | None:
    """Return the sentence that says what torch lacks to execute on `device`, or None when it can."""
    if importlib.util.find_spec("torch") is None:
        return "needs torch, which is not installed: pip install torch"
    if device == "cpu":
        return None  # torch is not loaded for the answer: an unchanged build asks it too
    import torch

    index = cuda_index(device)
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
        return f"torch {torch.__version__} ({built}) finds no GPU it can use"
    if index >= torch.cuda.device_count():
        return f"needs GPU {index}; torch sees {torch.cuda.device_count()}"
    return None


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Kineto writes to the file behind stderr that it starts and stops, and no option of its own keeps it from that."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _events(recorded: Any) -> Iterator[dict[str, Any]]:
    """Yield the profiler's events from the first one on. Units: microseconds."""
    events = [event for event in recorded if event.time_range.end > event.time_range.start]
    begun = min((event.time_range.start for event in events), default=0.0)
    for event in events:
        device = str(event.device_type).rpartition(".")[2].lower()
        took = event.time_range.end - event.time_range.start
        yield {
            "name": event.name,
            "ph": "X",
            "ts": float(event.time_range.start - begun),
            "dur": float(took),
            "args": {"device": device},
        }
