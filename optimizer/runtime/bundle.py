"""Open a deployment bundle: check it, open the session it needs, infer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from optimizer.errors import UsageError
from optimizer.runtime.feed import Ranges, check_feed, range_positions, within
from optimizer.runtime.golden import GOLDEN, Difference, batch_sizes, compare, read_golden, replay
from optimizer.runtime.passport import read_passport, verify_files
from optimizer.runtime.preprocessing import Preprocessing, to_dtype
from optimizer.runtime.session import Array, Feed, Session
from optimizer.types import MAIN_FILE, TensorSpec

_PLANS = ("tensorrt", "tensorrt_rtx")
_OPENED = ("onnxruntime", "openvino", "onnxruntime_tensorrt", *_PLANS)
PREPROCESSING, LABELS = "preprocessing.json", "labels.json"


def load(
    folder: str | Path, *, device: str | None = None, threads: int = 1, verify: bool = True, any_size: bool = False
) -> Deployment:
    """Open a bundle on `device` (default: where it was measured). `verify=False` skips the sha256 of the large files.

    `any_size=True` takes sizes outside of the profile as well: what comes out was never measured or proven. An engine
    takes those of its own profiles alone, whatever is asked for.

    Raises: UsageError where there is no bundle, StageError where it is damaged, MissingToolError where this machine
    lacks the runtime or the device; no other one is taken instead.
    """
    path = Path(folder)
    passport = read_passport(path)
    if verify:
        verify_files(path, passport)
    session = _open(path, passport, device or passport["runs_on"]["device"], threads)
    return Deployment(path, passport, session, any_size=any_size)


class Deployment:
    """An open bundle: `infer` takes and returns arrays by name. Close it, or use it as a context manager."""

    def __init__(self, folder: Path, passport: dict[str, Any], session: Session, *, any_size: bool = False) -> None:
        self.folder = folder
        self.passport = passport
        self.session = session
        # An engine refuses what none of its own profiles covers, and may have more of them than the run's one.
        unbound = any_size or passport["runs_on"]["runtime"] in _PLANS
        self._ranges: Ranges = {} if unbound else passport["profile"]
        self._positions = range_positions(session.inputs, self._ranges)
        self.labels: tuple[str, ...] | None = _read_labels(folder)
        self._preprocessing = _read_preprocessing(folder)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` takes."""
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` returns."""
        return self.session.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once, from numpy to numpy.

        Numeric: values are not looked at: NaN or infinity in an input can give a finite, plausible answer.
        Raises: UsageError for a wrong feed or a size outside of the profile, ClosedError after `close`.
        """
        if not within(self._positions, feed):
            self._refuse(feed)
        return self.session.infer(feed)

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Return a call that runs once on inputs already in place: for measuring. Raises: as `infer`, and only here."""
        if not within(self._positions, feed):
            self._refuse(feed)
        return self.session.bind(feed)

    def _refuse(self, feed: Feed) -> None:
        """Say all that is wrong with the feed, at once."""
        check_feed(self.inputs, feed, str(self.folder), self._ranges)

    def preprocess(self, *samples: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Preprocess samples as in training and stack them into a feed.

        A sample is an array, where the model has one input, or arrays by input name; without a batch axis.
        """
        if not samples:
            raise UsageError("no sample was given", where="preprocess")
        ready = [self._ready(sample) for sample in samples]
        shapes = {name: {sample[name].shape for sample in ready} for name in ready[0]}
        unlike = [f"'{name}' {sorted(map(list, found))}" for name, found in shapes.items() if len(found) > 1]
        if unlike:
            raise UsageError(f"samples of unlike shapes share no batch: {', '.join(unlike)}", where="preprocess")
        return {name: np.stack([sample[name] for sample in ready]) for name in ready[0]}

    def check_golden(self) -> list[Difference]:
        """Run the golden inputs and compare: one Difference an output."""
        inputs, outputs = read_golden(self.folder / GOLDEN)
        specs = [TensorSpec.from_json(spec) for spec in self.passport["inputs"]]
        sizes = batch_sizes(specs, self.passport["profile"])
        return compare(replay(self.session, inputs, sizes), outputs, self.passport["golden"]["tolerance"])

    def close(self) -> None:
        """Free what the backend holds."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, sample: Array | Mapping[str, Array]) -> dict[str, Array]:
        arrays = self._preprocessing(self._by_name(sample))
        return {spec.name: to_dtype(arrays[spec.name], spec.dtype, f"input '{spec.name}'") for spec in self.inputs}

    def _by_name(self, sample: Array | Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.inputs]
        if isinstance(sample, Mapping):
            if set(sample) != set(names):
                raise UsageError(f"the sample has {sorted(sample)}, the model takes {names}", where="preprocess")
            return {name: np.asarray(sample[name]) for name in names}
        if len(names) != 1:
            raise UsageError(f"give a sample as a mapping: the model takes {', '.join(names)}", where="preprocess")
        return {names[0]: np.asarray(sample)}


def _open(folder: Path, passport: Mapping[str, Any], device: str, threads: int) -> Session:
    runtime = passport["runs_on"]["runtime"]
    if runtime == "onnxruntime":
        from optimizer.runtime.onnx import OnnxSession

        return OnnxSession(folder / MAIN_FILE["onnx"], device=device, threads=threads)
    if runtime == "openvino":
        from optimizer.runtime.openvino import OpenVinoSession

        return OpenVinoSession(folder / MAIN_FILE["onnx"], device=device, threads=threads)
    if runtime == "onnxruntime_tensorrt":
        from optimizer.runtime.onnx_gpu import TensorrtProviderSession

        return TensorrtProviderSession(folder / MAIN_FILE["onnx"], device=device, threads=threads)
    if runtime in ("tensorrt", "tensorrt_rtx"):
        from optimizer.runtime.tensorrt import TensorRTSession

        return TensorRTSession(folder / MAIN_FILE["engine"], package=runtime, device=device)
    raise UsageError(f"is for the runtime '{runtime}'; this release opens {', '.join(_OPENED)}", where=str(folder))


def _read_labels(folder: Path) -> tuple[str, ...] | None:
    path = folder / LABELS
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _read_preprocessing(folder: Path) -> Preprocessing:
    path = folder / PREPROCESSING
    return Preprocessing(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
