"""torch.compile: the module as one graph in Inductor's generated code."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optimizer.errors import MissingToolError, StageError
from optimizer.runner import Runner
from optimizer.runners import module
from optimizer.runtime.session import Array, Session

if TYPE_CHECKING:
    import torch

_TOLD = 300
_COMPILES = 64  # shapes of which torch keeps code; its own default is 8, fewer than a sweep over batches has


class TorchCompileSession(module.TorchSession):
    """A module compiled with fullgraph=True: what cannot be one graph is refused, where torch.compile by itself would
    run parts of it in eager, unsaid.

    `bind` compiles for the sizes of its feed alone, which is fastest; `infer` has one code for the first sizes it sees
    and another for all that follow (torch's default). Either compiles at its first call: seconds to minutes.
    `cuda_graphs` records the kernels and replays them as one (mode "reduce-overhead"); a CPU has no such thing.
    Raises: MissingToolError when torch, the GPU or a compiler is absent, StageError when the checkpoint does not fit.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1, *, cuda_graphs: bool = False) -> None:
        if cuda_graphs and device == "cpu":
            raise StageError("there are no CUDA graphs on the CPU", where="cuda_graphs")
        super().__init__(folder, device, threads)
        # Code is compiled in this process: workers would go on living beside what is measured.
        self._options: dict[str, Any] = {"compile_threads": 1} | ({"triton.cudagraphs": True} if cuda_graphs else {})
        self._general = self._compiled(dynamic=None)
        self._fixed = self._compiled(dynamic=False)
        # The code that `_fixed` compiled, without the 7 microseconds that fullgraph=True works at each call.
        self._bound = self._compiled(dynamic=False, fullgraph=False)

    def close(self) -> None:
        """Free the module and the code compiled for it."""
        super().close()
        self._general = self._fixed = self._bound = None

    def _compiled(self, dynamic: bool | None, *, fullgraph: bool = True) -> Any:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch about its own code, which is imported here
            return torch.compile(self._alive().module, fullgraph=fullgraph, dynamic=dynamic, options=self._options)

    def _forward(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        positional, named = self._arguments(tensors)
        outputs: dict[str, torch.Tensor] = self._alive().name_outputs(self._general(*positional, **named))
        return outputs

    def _first_forward(self) -> Callable[..., Any]:
        forward: Callable[..., Any] = self._fixed
        return forward

    def _bound_forward(self) -> Callable[..., Any]:
        # What the module that torch.compile returns calls in its turn: its hooks are never ours, the module's own run.
        forward: Callable[..., Any] = self._bound.forward
        return forward

    @contextmanager
    def _explained(self, feed: Mapping[str, Array]) -> Iterator[None]:
        """A refusal to compile is told as such; what forward() itself raises as in eager."""
        import torch._dynamo

        with super()._explained(feed), warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=_COMPILES):
            warnings.filterwarnings("ignore", module=r"torch\.")  # of torch about its own code
            try:
                yield
            except torch._dynamo.exc.TorchDynamoException as error:
                raise StageError(
                    f"torch.compile cannot make one graph of it: {_reason(error)}",
                    where=f"model {type(self._loaded.module).__name__}",
                    hint="Measure it in eager: the target torch_compile needs a forward() without graph breaks.",
                ) from error


class TorchCompileRunner(Runner):
    """The module as torch.compile makes it, without graph breaks."""

    runtime: ClassVar[str] = "torch_compile"
    formats: ClassVar[tuple[str, ...]] = ("checkpoint",)

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say whether torch, a GPU that it can use, or the compiler of its code is absent."""
        return missing(device)

    def open(self) -> Session:
        """Build the module and load its weights; the first call compiles.

        Raises: MissingToolError when torch, the GPU or a compiler is absent, StageError when the checkpoint is wrong.
        """
        sentence = missing(self.device)
        if sentence:
            raise MissingToolError(sentence, where=f"device {self.device}")
        return TorchCompileSession(self.artifact.path, self.device, self.threads)


def missing(device: str) -> str | None:
    """Return the sentence that says what torch.compile lacks on `device`, or None when it can."""
    sentence = module.missing(device)
    if sentence:
        return sentence
    if device != "cpu":
        if importlib.util.find_spec("triton") is None:
            return "torch.compile needs triton to write code for a GPU: pip install triton"
        # As triton chooses the compiler of what launches its kernels.
        if not os.environ.get("CC") and not (shutil.which("gcc") or shutil.which("clang")):
            return (
                "torch.compile needs a C compiler for triton, and there is no gcc or clang here: install it, or set CC"
            )
        return None
    # As Inductor chooses it.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler} here: install it, or set CXX to yours"
    return None


def _reason(error: Exception) -> str:
    """Return what torch objects to, and the line of the model it stands in."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ".join([*lines[:1], *(line for line in lines[1:] if line.startswith("Explanation:"))][:2])
    stack = getattr(error, "real_stack", None)
    line = f" ({Path(stack[-1].filename).name}, line {stack[-1].lineno}: {stack[-1].line})" if stack else ""
    return (told or type(error).__name__)[:_TOLD] + line
