"""The weights of an engine that were left out of its plan, or do not stay on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import StageError, UsageError

ONNX = "model.onnx"  # beside the plan: the graph a stripped plan was built from
_SHOWN = 4


def refit_stripped(trt: Any, engine: Any, logger: Any, plan: Path, receipt: Mapping[str, Any]) -> None:
    """Give a stripped engine its weights back from the ONNX file beside the plan; another engine is left alone.

    Raises: StageError when the file is absent or does not have them.
    """
    if not _is_stripped(trt, engine, receipt):
        return
    model, where = plan.with_name(ONNX), str(plan)
    if not model.is_file():
        hint = f"Copy {ONNX}, the graph it was built from, into the same folder."
        raise StageError(
            f"the plan was built without its weights, and there is no {ONNX} beside it", where=where, hint=hint
        )
    try:
        refitter = trt.Refitter(engine, logger)
    except TypeError as error:  # how pybind11 says that the factory returned null
        raise StageError(f"the plan has no weights and takes none ({error})", where=where) from error
    parser = trt.OnnxParserRefitter(refitter, logger)
    hint = f"{ONNX} must be the very file that the engine was built from."
    if not parser.refit_from_file(str(model)):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise StageError(
            f"the weights of {ONNX} do not fit the engine: {said or 'no reason given'}", where=where, hint=hint
        )
    lacking = list(refitter.get_missing_weights())
    if lacking:
        shown = ", ".join(f"'{name}'" for name in lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
        raise StageError(f"{ONNX} lacks {len(lacking)} weights of the engine: {shown}", where=where, hint=hint)
    if not refitter.refit_cuda_engine():
        raise StageError(f"the weights of {ONNX} could not be put into the engine", where=where, hint=hint)


def _is_stripped(trt: Any, engine: Any, receipt: Mapping[str, Any]) -> bool:
    options = receipt.get("options")
    if isinstance(options, Mapping) and "strip_plan" in options:
        return bool(options["strip_plan"])
    # Without a receipt the engine itself is asked, where the release can tell; a whole one answers -1.
    statistic = getattr(trt, "EngineStat", None)
    return statistic is not None and engine.get_engine_stat(statistic.STRIPPED_WEIGHTS_SIZE) > 0


def limit_weights(engine: Any, wanted: int | None, where: str, reason: Callable[[], str]) -> int | None:
    """Set how many bytes of streamable weights stay on the GPU, before any context exists; return them.

    An engine built for weight streaming gets TensorRT's automatic budget, unless `wanted` says another. Returns None
    for one whose weights all stay.

    Raises: UsageError when a budget is asked of an engine that cannot stream, or is not between 0 and what it can
    stream; StageError when TensorRT does not take it.
    """
    streamable = int(engine.streamable_weights_size)
    if streamable <= 0:
        if wanted is not None:
            raise UsageError(
                "the engine was built without weight streaming, so all its weights stay on the GPU",
                where=where,
                hint="Build it with weight_streaming: true, or leave the budget out.",
            )
        return None
    budget = int(engine.get_weight_streaming_automatic_budget()) if wanted is None else wanted
    if wanted is not None and not 0 <= wanted <= streamable:
        raise UsageError(f"a weight budget of {wanted:,} bytes (allowed: 0 to {streamable:,})", where=where)
    engine.weight_streaming_budget_v2 = budget
    if int(engine.weight_streaming_budget_v2) != budget:
        raise StageError(f"TensorRT refuses a weight budget of {budget:,} bytes: {reason()}", where=where)
    return budget if budget < streamable else None
