"""Which samples latency and load are timed with where a length varies, and what of that stands in a stored key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample
from optimizer.measure.accuracy import Evaluation
from optimizer.pipeline import evaluate, load, measure, receipt
from optimizer.pipeline.bench import Bench, Measured, read_document
from optimizer.progress import Progress
from optimizer.recipe.model import Measure, ShapeRange
from optimizer.store import Store
from optimizer.types import Artifact, TensorSpec

LENGTHS = (54, 8, 36, 33, 30, 33)
RAGGED = TensorSpec("x", "float32", ("batch", "length", 4))
FIXED = TensorSpec("x", "float32", ("batch", 54, 4))
ALL = Measure(batches=(1, 2), resources=True, scenario="single_stream", concurrency=(1,), trace=True)


class Quiet(Progress):
    def step(self, *_: Any) -> None: ...

    def advance(self, *_: Any) -> None: ...

    def say(self, *_: Any) -> None: ...


def bench(folder: Path, opt: int | None, lengths: Sequence[int] = LENGTHS) -> Bench:
    profile = {"batch": ShapeRange(min=1, opt=1, max=8)}
    if opt is not None:
        profile["length"] = ShapeRange(min=1, opt=opt, max=64)
    recipe: Any = SimpleNamespace(measure=ALL, batch_axis="batch", profile=profile, metrics={}, evaluation_batch=2)
    samples = [Sample({"x": np.full((n, 4), i, np.float32)}, None, str(i)) for i, n in enumerate(lengths)]
    splits: Any = SimpleNamespace(evaluation=samples)
    return Bench(recipe, Store(folder / "store", lambda _: None), splits, Quiet(), "d", "cpu", False, folder / "logs")


def subject(spec: TensorSpec = RAGGED) -> Any:
    artifact = Artifact("onnx", Path("nowhere"), "a" * 64, (spec,), ())
    facts = {"graph": None, "runtime": "onnxruntime", "executes": True, "device": "cpu", "precision": "fp32"}
    return SimpleNamespace(name="fp32@onnxruntime", artifact=artifact, **facts)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, Any]]:
    """The feeds that each latency session was given."""
    given: list[dict[int, Any]] = []

    def time(subjects: Any, bench: Any, feeds: Any) -> Any:
        given.append(feeds)
        return SimpleNamespace(arrays=dict, to_json=dict, surroundings={}), (0,), {}

    monkeypatch.setattr(measure, "_time", time)
    return given


def latency(wanted: Bench, spec: TensorSpec = RAGGED) -> dict[str, Any]:
    measured = Measured()
    measure._latency([subject(spec)], wanted, measured)
    assert measured.latency is not None
    return read_document(measured.latency)


@pytest.mark.parametrize("order", [LENGTHS, sorted(LENGTHS), sorted(LENGTHS, reverse=True)])
def test_latency_is_timed_at_the_length_closest_to_opt_whatever_the_order(
    order: Sequence[int], tmp_path: Path, timed: list[dict[int, Any]]
) -> None:
    document = latency(bench(tmp_path, 34, order))
    assert {batch: feed["x"].shape for batch, feed in timed[0].items()} == {1: (1, 33, 4), 2: (2, 33, 4)}
    assert document["sizes"] == {"length": [33]}


def test_a_length_that_no_profile_covers_is_that_of_the_first_sample(
    tmp_path: Path, timed: list[dict[int, Any]]
) -> None:
    assert latency(bench(tmp_path, None))["sizes"] == {"length": [54]}


def test_another_opt_is_timed_anew_and_the_same_is_reused(tmp_path: Path, timed: list[dict[int, Any]]) -> None:
    assert [latency(bench(tmp_path, opt))["sizes"]["length"] for opt in (34, 34, 10)] == [[33], [33], [8]]
    assert len(timed) == 2


def test_what_has_one_size_is_not_timed_anew_for_an_opt_that_chooses_nothing(
    tmp_path: Path, timed: list[dict[int, Any]]
) -> None:
    for opt in (None, 34, 10):
        latency(bench(tmp_path, opt, [54] * 3), FIXED)
    assert len(timed) == 1


def test_all_but_loadgen_are_measured_with_the_samples_of_the_latency(
    tmp_path: Path, timed: list[dict[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for part in ("memory", "energy", "scenario", "concurrency", "trace"):
        monkeypatch.setattr(load._Load, f"_{part}", lambda self, place, part=part: done.append(part))
    for opt in (34, 34, 10):
        load.measure_load([subject()], bench(tmp_path, opt), Measured())
    again = ["memory", "energy", "concurrency", "trace"]
    assert sorted(done) == sorted([*again, "scenario", *again])
    latency(bench(tmp_path, 34))
    mine = load._Load(subject(), bench(tmp_path, 34))
    for batch in (1, 2):
        np.testing.assert_array_equal(mine._feed(batch)["x"], timed[0][batch]["x"])


@pytest.mark.parametrize(("spec", "rule"), [(RAGGED, "of one shape"), (FIXED, None)])
def test_accuracy_stored_with_golden_samples_of_the_old_rule_is_not_reused(
    spec: TensorSpec, rule: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the key of what has one shape, whose golden samples are the same, has no new part."""
    found = {"fp32@onnxruntime": Evaluation()}, {"fp32@onnxruntime": {"runtime": "it", "proof": []}}
    monkeypatch.setattr(evaluate, "_check_labels", lambda *_: None)
    monkeypatch.setattr(evaluate, "_evaluate", lambda *_: found)
    monkeypatch.setattr(receipt, "delivered", lambda *_: ({"fp32": 1.0}, "the graph"))
    asked: list[dict[str, Any]] = []

    def key(document: dict[str, Any]) -> str:
        asked.append(document)
        return "0" * 64

    monkeypatch.setattr(evaluate, "sha256_json", key)

    evaluate.measure_accuracy([subject(spec)], bench(tmp_path, 34), Measured())
    assert asked[0].get("golden") == rule
