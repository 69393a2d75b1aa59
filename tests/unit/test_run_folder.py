"""A run's folder that was used before: nothing of the earlier run is left, and what is cut short can be built again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.data import source
from optimizer.errors import UsageError
from optimizer.pipeline.bench import Measured
from optimizer.pipeline.run import begin_logs, open_out, place_artifacts, write_run

OF_THE_RECIPE = ("labels.json", "preprocessing.json", "latency.npz", "outcomes.npz")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One without class names, without preprocessing and without files of its own."""
    monkeypatch.setattr(source, "to_specs", lambda _: ())
    data = SimpleNamespace(source=None, files=(), labels=None, folder=None, transform=())
    return SimpleNamespace(
        text=b"",
        model=SimpleNamespace(factory=None, files=()),
        data=data,
        inputs={},
        profile={},
        batch_axis=None,
        folder=Path(),
        settings={},
    )


def earlier(run: Path) -> Path:
    """The folder of another recipe's run, built and measured."""
    run.mkdir()
    for name in ("run.json", "report.json", "report.html", "report.md"):
        (run / name).write_text("{}")
    (run / "labels.json").write_text('["cat"]')
    (run / "preprocessing.json").write_text('{"image": [{"scale": 1}]}')
    for name in ("latency.npz", "outcomes.npz"):
        np.savez(run / name, **{"int8@onnxruntime/1": np.ones((2, 2))})
    begin_logs(run)
    return run


def test_nothing_of_another_recipes_run_is_left(tmp_path: Path, recipe: Any) -> None:
    run = open_out(earlier(tmp_path / "run"))
    assert all((run / name).is_file() for name in OF_THE_RECIPE)
    place_artifacts([], run)
    write_run(run, recipe, [], Measured(), {})
    assert [name for name in OF_THE_RECIPE if (run / name).exists()] == ["outcomes.npz"]
    assert np.load(run / "outcomes.npz").files == []
    files = json.loads((run / "run.json").read_text())["files"]
    assert not {"labels.json", "preprocessing.json", "latency.npz"} & set(files)


def test_a_build_that_was_cut_short_can_be_repeated(tmp_path: Path, recipe: Any) -> None:
    for run in (tmp_path / "new", earlier(tmp_path / "earlier")):
        for _ in range(2):  # the second one fails before it places anything, and so begins new logs
            begin_logs(open_out(run))
        place_artifacts([], run)
        (run / "artifacts").mkdir()
        assert not [name for name in ("report.json", "report.html", "report.md") if (run / name).exists()]
        for _ in range(2):
            begin_logs(open_out(run))
        place_artifacts([], run)
        write_run(run, recipe, [], Measured(), {})
        assert open_out(run) == run
        assert not (run / ".optimizer").exists()


def test_what_a_person_put_beside_the_logs_of_a_failed_build_is_not_taken_for_a_run(tmp_path: Path) -> None:
    begin_logs(tmp_path)
    assert open_out(tmp_path) == tmp_path
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        open_out(tmp_path)
