"""Options that hold calibration samples out ask for as many as tell a gain from chance, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from optimizer.calibration import learning_batches, smoothing
from optimizer.calibration.paired import FEWEST, FEWEST_SAMPLES
from optimizer.calibration.probe import halves
from optimizer.cli.check import command
from optimizer.errors import RecipeError, StageError
from optimizer.recipe.loader import load_recipe

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"
OPTIONS = ("method: auto", "float_share: 0.1", "smooth_quant: auto", "rounding: learned", "bias_correction: true")


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    for name in ("model.py", "data.py", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "bad" / name).read_bytes())

    def written(options: str, samples: int | None, variant: str = "int8") -> Path:
        text = (FIXTURES / "good.yaml").read_text()
        text = text.replace("int8: {method: percentile}", f"{variant}: {{{options}}}")
        text = text.replace(", samples: 256", "" if samples is None else f", samples: {samples}")
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path / "recipe.yaml"

    return written


@pytest.mark.parametrize("option", OPTIONS)
def test_too_few_samples_to_judge_by_are_refused_where_they_are_asked_for(recipe: Any, option: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe(option, FEWEST_SAMPLES - 1))
    key, _, value = option.partition(": ")
    written = f"'{value}'" if value in ("auto", "learned") else value
    (line,) = str(refused.value).splitlines()
    assert line.endswith(
        f"recipe.yaml:12:40: data.calibration.samples: needs at least 12 for {key}: {written} of int8, got 11: up to "
        "half of them judge what the others chose, and fewer than 6 tell no gain from chance"
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_as_many_as_they_need_are_enough_and_so_is_the_default(recipe: Any, option: str) -> None:
    """The twin."""
    for samples in (FEWEST_SAMPLES, None):
        load_recipe(recipe(option, samples))


@pytest.mark.parametrize(
    "option",
    ["method: percentile", "float_share: 0.0", "smooth_quant: 0.5", "rounding: nearest", "bias_correction: false"],
)
def test_options_that_hold_nothing_out_ask_for_no_more_than_two(recipe: Any, option: str) -> None:
    load_recipe(recipe(option, 2))


def test_all_options_are_told_at_once_and_by_check(recipe: Any) -> None:
    path = recipe("method: auto, float_share: 0.1, rounding: learned", 4)
    result = CliRunner().invoke(command, [str(path)])
    assert isinstance(result.exception, RecipeError)
    assert result.exception.exit_code == 2
    assert "for method: 'auto' of int8, float_share: 0.1 of int8, rounding: 'learned' of int8, got 4" in str(
        result.exception
    )


def test_a_method_that_cannot_be_picked_is_told_alone(recipe: Any) -> None:
    with pytest.raises(RecipeError, match="fp8 has no auto") as refused:
        load_recipe(recipe("method: auto, targets: [tensorrt_rtx]", 4, "fp8"))
    assert "needs at least 12" not in str(refused.value)


def test_the_number_is_the_first_of_which_the_stages_hold_out_as_many_as_tell_a_gain() -> None:
    data: Any = [*range(FEWEST_SAMPLES)]
    for judging in (halves(data, "method: auto")[1], smoothing.split(data)[1]):
        assert len(judging) == FEWEST
    assert len(learning_batches.split(FEWEST_SAMPLES)[0]) == FEWEST


@pytest.mark.parametrize(
    "parting",
    [lambda data: halves(data, "method: auto"), smoothing.split, lambda data: learning_batches.split(len(data))],
)
def test_the_stages_refuse_fewer_as_check_does(parting: Any) -> None:
    """Where the split holds fewer than the recipe asks for."""
    parting([*range(FEWEST_SAMPLES)])
    with pytest.raises(StageError, match="11"):
        parting([*range(FEWEST_SAMPLES - 1)])
