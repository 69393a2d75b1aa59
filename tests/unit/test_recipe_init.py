"""What `optimize init` writes is a recipe that can be built; what it needs and does not find, it asks for."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from recipe_words import WORDS

from optimizer.cli import init
from optimizer.errors import RecipeError, UsageError
from optimizer.recipe.loader import load_recipe
from tests.conftest import RECIPES

MODEL = """
class Net:
    def forward(self, tokens, mask, scale=None):
        return tokens

def make():
    return Net()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "my model"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def own(here):
    (here / "net.py").write_text(MODEL)
    (here / "weights.pt").touch()
    images = np.zeros((20, 1, 8, 8))
    np.savez(here / "samples.npz", image=images, targets=np.arange(20))
    return here


def run(*arguments):
    return CliRunner().invoke(init.command, arguments, catch_exceptions=False)


def refusal(*arguments):
    with pytest.raises(UsageError) as refused:
        run(*arguments)
    return str(refused.value)


def test_example_passes_check_once_it_is_trained(here):
    result = run()
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "python train.py" in result.stderr
    with pytest.raises(RecipeError, match=r"checkpoint\.safetensors'.*run train\.py"):
        load_recipe(here / "recipe.yaml", {}, WORDS)
    (here / "checkpoint.safetensors").touch()  # train.py writes it
    recipe = load_recipe(here / "recipe.yaml", {}, WORDS)
    assert recipe.name == "my-model"
    assert list(recipe.variants) == ["fp32", "fp16", "int8"]
    assert recipe.gate is not None


def test_examples_data_is_real_and_its_splits_differ(here):
    pytest.importorskip("sklearn", reason="the example's digits come with scikit-learn")
    run()
    digits = runpy.run_path("data.py")["digits"]
    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert (len(train), len(test)) == (len(train_labels), len(test_labels))
    assert len(train) + len(test) == 1797


def test_examples_training_script_names_what_the_recipe_names(here):
    run()
    for name in ("train.py", "model.py", "data.py"):
        compile((here / name).read_text(), name, "exec")
    recipe = (here / "recipe.yaml").read_text()
    training = (here / "train.py").read_text()
    assert "checkpoint.safetensors" in recipe
    assert "checkpoint.safetensors" in training


@pytest.mark.parametrize("arguments", [(), ("net.py:make",)])
def test_nothing_is_overwritten(own, arguments):
    (own / "recipe.yaml").write_text("mine")
    before = sorted(own.iterdir())
    assert "already here: recipe.yaml" in refusal(*arguments)
    assert (own / "recipe.yaml").read_text() == "mine"
    assert sorted(own.iterdir()) == before


def test_own_model_passes_check(own):
    run("net.py:make")
    recipe = load_recipe(own / "recipe.yaml", {}, WORDS)
    assert recipe.model.factory == "net.py:make"
    assert recipe.model.checkpoint == "weights.pt"
    assert recipe.inputs["image"].shape == ("batch", 1, 8, 8)
    assert recipe.inputs["image"].dtype == "float32"
    assert recipe.data.files == ("samples.npz",)
    assert list(recipe.metrics) == ["top1"]


def test_own_samples_are_split_without_overlap(own):
    run("net.py:make")
    samples = runpy.run_path("data.py")["samples"]
    parts = {split: samples(split) for split in ("calibration", "evaluation")}
    recipe = load_recipe(own / "recipe.yaml", {}, WORDS)
    assert recipe.data.calibration is not None
    assert len(parts["calibration"][1]) == recipe.data.calibration.samples == 4
    assert sorted([*parts["calibration"][1], *parts["evaluation"][1]]) == list(range(20))
    assert parts["evaluation"][0]["image"].shape == (16, 1, 8, 8)


def test_samples_without_classes_get_no_metric(own):
    np.savez(own / "samples.npz", image=np.zeros((20, 3), np.float32))
    run("net.py:make")
    recipe = load_recipe(own / "recipe.yaml", {}, WORDS)
    assert recipe.metrics == {}
    assert runpy.run_path("data.py")["samples"]("evaluation")[1] is None


def test_several_inputs_come_in_the_order_of_forward(own):
    tokens = np.zeros((20, 7), np.int64)
    np.savez(own / "samples.npz", mask=tokens > 0, tokens=tokens)
    run("net.py:Net")
    inputs = load_recipe(own / "recipe.yaml", {}, WORDS).inputs
    assert [(name, spec.dtype, spec.keyword) for name, spec in inputs.items()] == [
        ("tokens", "int64", False),
        ("mask", "bool", False),
    ]


def test_input_that_skips_a_parameter_is_passed_by_name(own):
    np.savez(own / "samples.npz", tokens=np.zeros((20, 7), np.int64), scale=np.zeros((20, 1), np.float32))
    run("net.py:Net")
    inputs = load_recipe(own / "recipe.yaml", {}, WORDS).inputs
    assert {name: spec.keyword for name, spec in inputs.items()} == {"tokens": False, "scale": True}


def test_files_elsewhere_are_named(own):
    (own / "sub dir").mkdir()
    for name in ("net.py", "weights.pt", "samples.npz"):
        (own / name).rename(own / "sub dir" / name)
    run("sub dir/net.py:make")
    recipe = load_recipe(own / "recipe.yaml", {}, WORDS)
    assert recipe.model.checkpoint == "sub dir/weights.pt"
    assert len(runpy.run_path("data.py")["samples"]("calibration")[1]) == 4


def test_unknown_factory_is_refused_with_the_nearest(own):
    assert "defines no 'mak', did you mean 'make'?" in refusal("net.py:mak")
    assert "no such file: 'nte.py', did you mean 'net.py'?" in refusal("nte.py:make")
    assert "needs FILE.py:FUNCTION" in refusal("net")
    assert not (own / "recipe.yaml").exists()


def test_missing_checkpoint_is_asked_for(own):
    (own / "weights.pt").unlink()
    said = refusal("net.py:make")
    assert "no checkpoint beside the model" in said
    assert 'save_file(model.state_dict(), "checkpoint.safetensors")' in said


def test_choice_between_checkpoints_is_asked_for(own):
    (own / "old.pt").touch()
    assert "2 files may be the checkpoint: old.pt, weights.pt" in refusal("net.py:make")
    run("net.py:make", "--checkpoint", "old.pt")
    assert load_recipe(own / "recipe.yaml", {}, WORDS).model.checkpoint == "old.pt"


def test_missing_samples_are_asked_for_by_the_names_of_forward(own):
    (own / "samples.npz").unlink()
    said = refusal("net.py:Net")
    assert 'numpy.savez("samples.npz", tokens=..., mask=..., targets=targets)' in said


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((20, 3)), "targets": np.zeros(19)}, "the arrays count unlike samples"),
        ({"targets": np.zeros(20)}, "nothing but targets"),
        ({"image": np.zeros((4, 3))}, "4 samples are too few"),
        ({"image": np.zeros((20, 3), np.uint16)}, "array 'image' is uint16"),
        ({"image": np.array([{}] * 20)}, "is not an .npz of plain arrays"),
    ],
)
def test_unfit_samples_are_refused(own, arrays, said):
    np.savez(own / "samples.npz", **arrays)
    assert said in refusal("net.py:make")
    assert not Path("recipe.yaml").exists()


def test_samples_that_forward_does_not_take_are_refused(own):
    np.savez(own / "samples.npz", a=np.zeros((20, 1)), b=np.zeros((20, 1)))
    assert "holds a, b; forward() takes tokens, mask, scale" in refusal("net.py:Net")


@pytest.mark.parametrize("name", ["model.py", "data.py", "train.py"])
def test_the_example_is_the_demo_word_for_word(name: str) -> None:
    template = Path(init.__file__).parent / "templates" / f"example_{name}.txt"
    assert template.read_text() == (RECIPES / "digits-cnn" / name).read_text()


@pytest.mark.parametrize(
    ("returned", "outputs"),
    [
        ("tokens", ("output",)),
        ("tokens, mask", ("output1", "output2")),
        ("(tokens, mask, 1)", ("output1", "output2", "output3")),
    ],
)
def test_outputs_are_as_many_as_forward_is_seen_to_return(own, returned, outputs):
    (own / "net.py").write_text(MODEL.replace("return tokens", f"return {returned}"))
    run("net.py:Net", "--samples", "samples.npz")
    assert load_recipe(own / "recipe.yaml", {}, WORDS).model.outputs == outputs


def test_what_was_guessed_is_named_in_the_recipe_and_on_the_screen(own):
    said = run("net.py:make").stderr
    assert "edit recipe.yaml where it says EDIT; check cannot tell whether these are right:" in said
    edits = [line for line in (own / "recipe.yaml").read_text().splitlines() if "EDIT" in line]
    assert len(edits) == 4
    for word in ("outputs", "inputs", "profile", "gate"):
        assert f"    {word} " in said


def test_the_example_has_nothing_to_edit(here):
    assert "EDIT" not in run().stderr + (here / "recipe.yaml").read_text()
