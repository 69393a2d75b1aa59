"""What a recipe asks to be measured under load: each part by itself, stored by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample
from optimizer.errors import MeasurementError, MissingToolError
from optimizer.measure import loadgen
from optimizer.pipeline import load
from optimizer.pipeline.bench import Bench, Measured
from optimizer.pipeline.load import check_load_tools, measure_load, place_load
from optimizer.pipeline.numbers import load_fields
from optimizer.progress import Progress
from optimizer.recipe.model import LoadGen, Measure, ShapeRange, Sweep
from optimizer.store import Store
from optimizer.types import Artifact, TensorSpec

X = TensorSpec("x", "float32", ("batch", 4))


class Quiet(Progress):
    def step(self, *_: Any) -> None: ...

    def advance(self, *_: Any) -> None: ...


def subject(inputs: TensorSpec = X) -> Any:
    artifact = Artifact("onnx", Path("nowhere"), "a" * 64, (inputs,), ())
    return SimpleNamespace(
        name="fp32@onnxruntime", artifact=artifact, graph=None, runtime="onnxruntime", executes=True, device="cpu"
    )


def recipe(measure: Measure, most: int = 8) -> Any:
    return SimpleNamespace(measure=measure, batch_axis="batch", profile={"batch": ShapeRange(min=1, opt=4, max=most)})


def bench(folder: Path, asked: Any) -> Bench:
    samples = [Sample({"x": np.full(4, i, np.float32)}, None, str(i)) for i in range(3)]
    splits: Any = SimpleNamespace(evaluation=samples)
    return Bench(asked, Store(folder / "store", lambda _: None), splits, Quiet(), "d", "cpu", False, folder / "logs")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each part notes its name and gives a number; LoadGen leaves a log, the trace a file."""
    done: list[str] = []

    def named(name: str) -> Any:
        def measured(self: Any, place: Path) -> Any:
            done.append(name)
            if name == "scenario":
                (place / load.LOGS).mkdir()
                (place / load.LOGS / "summary.txt").write_text("VALID")
            if name == "trace":
                (place / load.TRACE).write_text("[]")
            return {"own_bytes": 1, "mj_per_item": 2.0, "of": name}

        return measured

    for name in ("memory", "energy", "scenario", "sweep", "concurrency", "trace"):
        monkeypatch.setattr(load._Load, f"_{name}", named(name))
    return done


EVERYTHING = Measure(
    resources=True, scenario="single_stream", sweep=Sweep(budget_ms=5.0), concurrency=(1,), trace=True, seconds=0.1
)


def run(folder: Path, asked: Measure, most: int = 8) -> Measured:
    measured = Measured()
    measure_load([subject()], bench(folder, recipe(asked, most)), measured)
    return measured


def test_what_was_measured_is_taken_from_the_store(tmp_path: Path, parts: list[str]) -> None:
    first = load_fields(run(tmp_path, EVERYTHING).load["fp32@onnxruntime"])
    assert sorted(parts) == ["concurrency", "energy", "memory", "scenario", "sweep", "trace"]
    assert first["peak_memory_bytes"] == 1
    assert first["energy_mj_per_item"] == 2.0
    assert "trace" not in first
    assert load_fields(run(tmp_path, EVERYTHING).load["fp32@onnxruntime"]) == first
    assert len(parts) == 6


def test_what_one_part_depends_on_measures_no_other_anew(tmp_path: Path, parts: list[str]) -> None:
    run(tmp_path, EVERYTHING)
    parts.clear()
    run(tmp_path, EVERYTHING.model_copy(update={"loadgen": LoadGen(seconds=3.0)}))
    assert parts == ["scenario"]
    parts.clear()
    run(tmp_path, EVERYTHING, most=16)  # the sweep's batches come from the profile
    assert parts == ["sweep"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MeasurementError("no batch can run", where="measure.sweep"), "no batch can run"),
        (RuntimeError("CUDA out of memory"), "sweep failed: CUDA out of memory"),
    ],
)
def test_a_part_that_fails_takes_no_other_with_it(
    raised: Exception, said: str, tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, place: Path) -> Any:
        raise raised

    monkeypatch.setattr(load._Load, "_sweep", fails)
    found = run(tmp_path, EVERYTHING)
    assert [error.what for error in found.errors] == [said]
    assert set(found.load["fp32@onnxruntime"]) == {"memory", "energy", "scenario", "concurrency", "trace"}
    parts.clear()
    assert len(run(tmp_path, EVERYTHING).errors) == 1
    assert parts == []


def test_logs_and_traces_replace_those_of_an_earlier_run(tmp_path: Path, parts: list[str]) -> None:
    (tmp_path / "run" / "traces").mkdir(parents=True)
    (tmp_path / "run" / "traces" / "gone@torch.json").write_text("[]")
    measured = run(tmp_path, EVERYTHING)
    for _ in range(2):
        place_load(measured, tmp_path / "run")
    assert (tmp_path / "run" / "loadgen" / "fp32@onnxruntime" / "summary.txt").read_text() == "VALID"
    assert [file.name for file in (tmp_path / "run" / "traces").iterdir()] == ["fp32@onnxruntime.json"]


def test_a_missing_tool_is_known_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    check_load_tools(recipe(EVERYTHING))
    monkeypatch.setattr(loadgen, "missing", lambda: "needs mlcommons-loadgen, which is not installed")
    with pytest.raises(MissingToolError, match="mlcommons-loadgen"):
        check_load_tools(recipe(EVERYTHING))
    check_load_tools(recipe(Measure(resources=True)))


def test_loadgen_gets_single_samples_also_of_a_model_of_fixed_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls stack them to the batch; samples that were stacked before would be 16."""
    given: list[Any] = []

    def scenario(runner: Any, feeds: Any, *_: Any, **__: Any) -> Any:
        given.extend(feeds)
        return SimpleNamespace(to_json=dict)

    monkeypatch.setattr(loadgen, "run_scenario", scenario)
    fixed = subject(TensorSpec("x", "float32", (4, 4)))
    fixed.runner = lambda threads: None
    asked = recipe(Measure(batches=(4,), scenario="offline", loadgen=LoadGen(batch=4)))
    load._Load(fixed, bench(tmp_path, asked))._scenario(tmp_path)
    assert [feed["x"].shape for feed in given] == [(1, 4)] * 3
    assert [feed["x"][0, 0] for feed in given] == [0, 1, 2]
