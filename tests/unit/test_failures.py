"""An error at the end of a build names the candidates that fail by it, and is told once."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.cli.failures import told
from optimizer.errors import OptimizerError, StageError
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"


def report(reasons: dict[str, str]) -> Report:
    document = json.loads(DEMO.read_text())
    failed = {"variant": "int8", "runtime": "onnxruntime", "device": "", "status": "failed"}
    document["candidates"] += [
        {"name": name, "reason": reason, "precision": {"requested": "int8"}, **failed}
        for name, reason in reasons.items()
    ]
    return Report.model_validate_json(json.dumps(document))


def engine(digest: str, name: str) -> OptimizerError:
    return StageError(
        f"stage 'engine' failed on model.onnx ({digest}): no memory", hint=f"Free some.\nlog: /r/{name}.log"
    )


def test_an_error_stands_behind_the_candidates_that_fail_by_it() -> None:
    error = StageError("quantize: keep: the module 'bn1' is no longer in the graph")
    found = report({"keep@onnxruntime": error.render(), "keep@openvino": error.render()})
    assert told([error], found) == [f"keep@onnxruntime, keep@openvino: {error.render()}"]


def test_one_error_of_several_engines_is_told_once_with_all_their_names() -> None:
    errors = [engine("07618405", "fp32@rtx"), engine("03f4028d", "int8@rtx")]
    found = report({"fp32@rtx": errors[0].render(), "int8@rtx": errors[1].render()})
    (text,) = told(errors, found)
    assert text.splitlines() == [
        "fp32@rtx, int8@rtx: stage 'engine' failed on model.onnx: no memory",
        "  Free some.",
        "  log: /r/fp32@rtx.log",
        "  1 more like it beside that log",
    ]


def test_other_errors_stay_apart_and_a_name_is_not_said_twice() -> None:
    one, other = StageError("no memory"), StageError("'int8@openvino' against its graph: differs")
    found = report({"int8@rtx": one.render(), "int8@openvino": other.render()})
    assert told([one, other], found) == ["int8@rtx: no memory", other.render()]


def test_an_error_of_no_candidate_is_told_as_it_stands() -> None:
    assert told([StageError("no batch can run")], report({})) == ["no batch can run"]
