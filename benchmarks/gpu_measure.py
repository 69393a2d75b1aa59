"""One model at one batch on a GPU: every candidate opened, judged against eager float32, timed interleaved, weighed."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from gpu_build import INTERFACES, PRECISIONS, engine_name

from optimizer.errors import MeasurementError, OptimizerError
from optimizer.measure.energy import energy_mj_per_item
from optimizer.measure.latency import measure_latency
from optimizer.measure.surroundings import Watch
from optimizer.runtime.session import Session

BASELINE = "eager_fp32"
_WARM = 3


class Torch:
    """The module on the GPU: `half`, TF32 or not, as it is, compiled, or as a CUDA graph."""

    def __init__(self, folder: pathlib.Path, *, half: bool = False, tf32: bool = False, how: str = "eager") -> None:
        import torch

        from optimizer.checkpoint import load_module

        self.torch, self.half, self.tf32, self.how = torch, half, tf32, how
        module = load_module(folder, "cuda:0").module
        self.module = module.half() if half else module
        self.called = torch.compile(self.module) if how == "compiled" else self.module
        self.note = ""

    def _flags(self) -> None:
        """Of the whole process: every torch call sets them anew, so all of them pay the same microsecond."""
        self.torch.backends.cuda.matmul.allow_tf32 = self.tf32
        self.torch.backends.cudnn.allow_tf32 = self.tf32

    def _given(self, feed: Mapping[str, np.ndarray]) -> list[Any]:
        tensors = [self.torch.from_numpy(array.copy()).to("cuda:0") for array in feed.values()]
        return [t.half() if self.half and t.is_floating_point() else t for t in tensors]

    def infer(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.how == "graphed":  # what is timed is judged: the replay, not eager
            self._graphed(self._given(feed))()
            return self.held[1].float().cpu().numpy()  # type: ignore[no-any-return]
        self._flags()
        with self.torch.inference_mode():
            return self.called(*self._given(feed)).float().cpu().numpy()  # type: ignore[no-any-return]

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        torch, called, flags, given = self.torch, self.called, self._flags, self._given(feed)
        if self.how == "graphed":
            return self._graphed(given)

        def call() -> None:
            flags()
            with torch.inference_mode():
                called(*given)
            torch.cuda.synchronize()

        return call

    def _graphed(self, given: list[Any]) -> Callable[[], None]:
        torch = self.torch
        self._flags()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(side):
                for _ in range(_WARM):
                    self.module(*given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                answer = self.module(*given)
        self.held = given, answer  # a graph names their memory and does not keep it
        torch.cuda.synchronize()
        replay, synchronize = graph.replay, torch.cuda.synchronize

        def call() -> None:
            replay()
            synchronize()

        return call


class Opened:
    """One of our sessions."""

    def __init__(self, session: Session, output: str) -> None:
        self.session, self.output = session, output
        self.bind = session.bind

    def infer(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.session.infer(feed)[self.output].astype(np.float32)

    @property
    def note(self) -> str:
        captures = getattr(self.session, "captures", [])
        return f"CUDA graph: {captures[-1].captured} ({captures[-1].reason})" if captures else ""


class Once:
    """A candidate whose call is bound once, for warming, timing and weighing alike."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def bind(self, feed: Mapping[str, Any]) -> Callable[[], None]:
        del feed
        return self.call


def _opened(output: str, open_session: Callable[..., Session], file: pathlib.Path, **options: Any) -> Opened:
    return Opened(open_session(file, **options), output)


def openers(folder: pathlib.Path, model: str, packages: Mapping[str, str | None]) -> dict[str, Callable[[], Any]]:
    """Return what opens each candidate, the baseline first."""
    from optimizer.runtime.onnx import OnnxSession
    from optimizer.runtime.onnx_gpu import open_with_cuda_graphs
    from optimizer.runtime.tensorrt import TensorRTSession

    module, output = folder / model / "module", INTERFACES[model][1]
    found: dict[str, Callable[[], Any]] = {}
    for name, half, tf32 in (("fp32", False, False), ("tf32", False, True), ("fp16", True, False)):
        found[f"eager_{name}"] = partial(Torch, module, half=half, tf32=tf32)
    for how in ("graphed", "compiled"):
        for name, half, tf32 in (("tf32", False, True), ("fp16", True, False)):
            found[f"{how}_{name}"] = partial(Torch, module, half=half, tf32=tf32, how=how)
    for package, capability in packages.items():
        for precision in PRECISIONS:
            plan = folder / model / engine_name(package, precision, capability) / "engine.plan"
            for suffix, graph in (("", True), ("_plain", False)):
                found[f"{package}_{precision}{suffix}"] = partial(
                    _opened, output, TensorRTSession, plan, package=package, cuda_graph=graph
                )
    for precision in ("fp32", "fp16"):
        file = folder / model / precision / "model.onnx"
        found[f"onnxruntime_{precision}"] = partial(_opened, output, OnnxSession, file, device="cuda:0")
        found[f"onnxruntime_{precision}_graph"] = partial(
            _opened, output, open_with_cuda_graphs, file, device="cuda:0", threads=1
        )
    return found


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float | None:
    """10 log10 of the sum of squares of the reference over that of the error; None where a value is not finite."""
    error = float(((found.astype(np.float64) - reference) ** 2).sum())
    signal = float((reference.astype(np.float64) ** 2).sum())
    if not np.isfinite(error):
        return None
    return float(10 * np.log10(signal / error)) if error else float("inf")


def measure(
    folder: pathlib.Path,
    model: str,
    given: dict[str, np.ndarray],
    packages: Mapping[str, str | None],
    seconds: float,
) -> dict[str, Any]:
    """Return a row per candidate; one that fails says why, and the others go on without it."""
    batch = len(next(iter(given.values())))
    rows: dict[str, dict[str, Any]] = {}
    bound: dict[str, Once] = {}
    reference: np.ndarray | None = None
    kept = []  # sessions live until the end: their calls do
    for name, opener in openers(folder, model, packages).items():
        begun = time.perf_counter()
        try:
            candidate = opener()
            answer = candidate.infer(given)
            reference = answer if name == BASELINE else reference
            if reference is None:
                raise RuntimeError(f"{BASELINE} failed, so nothing can be judged")
            call = candidate.bind(given)
            call()
            rows[name] = {
                "sqnr_db": None if name == BASELINE else _finite(sqnr_db(reference, answer)),
                "max_abs": _finite(float(np.abs(answer - reference).max())),
                "open_s": round(time.perf_counter() - begun, 2),
                "note": candidate.note,
            }
            kept.append(candidate)
            bound[name] = Once(call)
        except Exception as error:  # a candidate that fails is a result, not the end of the run
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:600]}
    timed(bound, rows, batch, given, seconds)
    if BASELINE in bound:
        for name, once in bound.items():
            rows[name] |= energy(once.call, batch, seconds)
        rows["transfers"] = transfers(kept, given)
    return rows


def timed(
    bound: dict[str, Once],
    rows: dict[str, dict[str, Any]],
    batch: int,
    given: Mapping[str, np.ndarray],
    seconds: float,
) -> None:
    """Time all that are bound, interleaved; one that fails leaves `bound` and says why, and the others start anew."""
    while BASELINE in bound:
        try:
            with Watch(device="cuda:0") as watch:
                session = measure_latency(
                    bound,
                    {batch: given},
                    baseline=BASELINE,
                    seconds=seconds,
                    progress=lambda done, total: None,
                    watch=watch,
                )
        except (OptimizerError, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}"[:600]
            culprit = str(error.where) if isinstance(error, MeasurementError) else ""
            if culprit not in bound:  # of nobody in particular: answers are kept, there are no times
                rows["timing"] = {"failed": said}
                return
            rows[culprit]["failed"] = said
            del bound[culprit]
            continue
        for name, row in session.to_json().items():
            rows[name] |= row[str(batch)]
        rows["surroundings"] = dict(session.surroundings[batch])
        return


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: without an error the ratio is null, as it is where an answer is not finite."""
    return value if value is not None and np.isfinite(value) else None


def energy(call: Callable[[], None], batch: int, seconds: float) -> dict[str, Any]:
    """Return the energy of the whole GPU per item, idle power included; a failing call leaves the latency alone."""
    try:
        found = energy_mj_per_item(call, batch, max(seconds, 0.5), device="cuda:0", idle_s=0.0)
    except (OptimizerError, RuntimeError) as error:
        return {"energy": {"mj_per_item": None, "reason": str(error)[:300]}}
    return {"energy": found.to_json()}


def transfers(kept: list[Any], given: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the time of the copies in and out, measured on the first of our sessions."""
    for candidate in kept:
        if isinstance(candidate, Opened) and hasattr(candidate.session, "transfers"):
            try:
                found = candidate.session.transfers(given)
            except (OptimizerError, RuntimeError) as error:  # the times of this part are kept
                return {"failed": f"{type(error).__name__}: {error}"[:300]}
            if found is not None:
                return dataclasses.asdict(found)
    return {"left_out": "none of our sessions opened on a GPU"}
