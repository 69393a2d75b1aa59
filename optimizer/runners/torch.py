"""PyTorch eager: the baseline that every candidate is compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optimizer.errors import MissingToolError, StageError
from optimizer.runner import Runner
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
        base = self.infer(self._zeros(dict.fromkeys(axes, _SIZES[0])))
        names: dict[str, list[int | str]] = {name: list(array.shape) for name, array in base.items()}
        for axis in axes:
            other = self.infer(self._zeros(dict.fromkeys(axes, _SIZES[0]) | {axis: _SIZES[1]}))
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
        loaded, tensors = self._alive(), self._tensors(checked)
        with torch.inference_mode(), self._explained(checked):
            outputs = loaded(tensors)
            return {name: self._array(name, tensor) for name, tensor in outputs.items()}

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Put the inputs on the device; the call returned runs forward() and, on a GPU, waits for it.

        Raises: UsageError for a wrong feed, StageError when forward() fails on it.
        """
        import torch

        checked = check_feed(self.inputs, feed, self._folder.name)
        tensors, loaded, device = self._tensors(checked), self._alive(), self._device
        inference_mode = torch.inference_mode
        # The call returned is timed and so explains nothing: what forward() refuses, or imports late, it does here.
        with inference_mode(), self._explained(checked):
            loaded(tensors)

        def on_cpu() -> None:
            with inference_mode():
                loaded(tensors)

        def on_cuda() -> None:
            with inference_mode():
                loaded(tensors)
            torch.cuda.synchronize(device)

        return on_cpu if device.type == "cpu" else on_cuda

    def close(self) -> None:
        """Free the module."""
        self._loaded = None

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


class TorchRunner(Runner):
    """The module in PyTorch eager, as its authors run it."""

    runtime: ClassVar[str] = "torch"
    formats: ClassVar[tuple[str, ...]] = ("checkpoint",)

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say whether torch, or a GPU that it can use, is absent."""
        return missing(device)

    def open(self) -> Session:
        """Build the module, load its weights and put it on the device.

        Raises: MissingToolError when torch or the GPU is absent, StageError when the checkpoint is wrong.
        """
        return TorchSession(self.artifact.path, self.device, self.threads)


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
