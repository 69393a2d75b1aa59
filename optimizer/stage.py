"""The stage contract: a frozen bag of parameters, and a pure function from source artifacts to one folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from optimizer import __version__
from optimizer.digest import sha256_json
from optimizer.types import MAIN_FILE, Artifact, Format

if TYPE_CHECKING:
    from optimizer.data.samples import Samples
    from optimizer.runtime.session import Session

KEY_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may lie from its parent's: |child - parent| <= atol + rtol * |parent|, or an SQNR in dB.

    Integer and boolean outputs must be equal where `exact_integers`. `reason` stands in the report.
    """

    reason: str
    atol: float | None = None
    rtol: float = 0.0
    min_sqnr_db: float | None = None
    exact_integers: bool = True


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage may use besides its sources and parameters; nothing here can change its output unseen by the key."""

    log: Path  # native tools write here
    note: Callable[[str], None]  # a sentence for the report
    progress: Callable[[str, int, int], None]  # (what, done, total)
    samples: Callable[[str], Samples]  # "calibration": the real samples of the recipe, loaded on first use


class Stage(BaseModel, ABC):
    """A step of the build. Fields are its parameters; all that can change the output stand in its key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    consumes: ClassVar[Mapping[str, Format]]  # role -> format of each source; the first role is the parent
    optional: ClassVar[frozenset[str]] = frozenset()  # roles that are left out where the recipe has no such source
    produces: ClassVar[Format]
    tools: ClassVar[tuple[str, ...]] = ()  # distributions whose version can change the output
    preloads: ClassVar[tuple[str, ...]] = ()  # what the child that does its work imports, first where it is called
    device_bound: ClassVar[bool] = False
    keeps_float32: ClassVar[bool] = False  # the output is the variant's float32 graph from here on (role "float32")
    # the least compute capability of a GPU that executes the output; None: any
    needs_capability: ClassVar[str | None] = None
    # option -> (other option, the value, or one of the values, of it without which the first has no effect)
    depends: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    tolerance: ClassVar[Tolerance | None] = None  # None: the output cannot be executed, so there is nothing to compare

    @classmethod
    def follows_target(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether derived fields that differ by target matter with a variant's options; else they are left out."""
        del options
        return True

    @classmethod
    def wanted(cls, options: Mapping[str, Any]) -> bool:
        """Return whether a variant with these options needs the stage; where not, it takes no part in the build."""
        del options
        return True

    @abstractmethod
    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the output into `workdir`, an empty folder; its main file is `MAIN_FILE[produces]`.

        Raises: StageError, saying what to do; MissingToolError when a tool is absent.
        """

    def open_parent(self, sources: Mapping[str, Artifact]) -> Session:
        """Open the parent for the check of this stage's output."""
        from optimizer.runtime.onnx import OnnxSession

        return OnnxSession(next(iter(sources.values())).file, optimize=False)

    def open_output(self, output: Artifact) -> Session | str:
        """Open the output for the check, or return the sentence that says why it cannot execute here."""
        from optimizer.runtime.onnx import OnnxSession

        return OnnxSession(output.file, optimize=False)

    def key_document(
        self, sources: Mapping[str, str], versions: Mapping[str, str], device: str | None, checks: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Return everything that can change the output: what the key is the sha256 of.

        `checks` are the batches at which the output is held against its parent: more of them, and it is checked again.
        """
        return {
            "key_schema": KEY_SCHEMA,
            "stage": self.name,
            "version": self.version,
            "optimizer": __version__,
            "parameters": self.model_dump(mode="json"),
            "sources": dict(sources),
            "tools": {tool: versions[tool] for tool in self.tools},
            "device": device if self.device_bound else None,
            "checks": list(checks) if self.tolerance is not None else [],
        }

    def key(
        self,
        sources: Mapping[str, str],
        versions: Mapping[str, str],
        device: str | None = None,
        checks: Sequence[int] = (),
    ) -> str:
        """Return the key: may a stored output be reused? `sources` maps each role to its digest."""
        return sha256_json(self.key_document(sources, versions, device, checks))

    @property
    def main_file(self) -> str:
        """The name of the main file that `run` writes."""
        return MAIN_FILE[self.produces]
