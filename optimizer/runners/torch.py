"""PyTorch eager: the baseline that every candidate is compared with."""

from __future__ import annotations

from typing import ClassVar

from optimizer.runner import Runner
from optimizer.runners.module import TorchSession, missing
from optimizer.runtime.session import Session

__all__ = ["TorchRunner", "TorchSession"]


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
