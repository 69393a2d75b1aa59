"""What a sound recipe becomes, and what the loader refuses beside the screens."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from recipe_words import WORDS

from optimizer.errors import MissingToolError, RecipeError
from optimizer.recipe.loader import load_gate, load_recipe
from optimizer.recipe.model import Gate, MetricLimit, MetricOptions, SpeedupLimit

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"
GOOD = (FIXTURES / "good.yaml").read_text()


@pytest.fixture
def folder(tmp_path):
    for name in ("model.py", "data.py", "checkpoint.safetensors", "checkpoint.onnx"):
        (tmp_path / name).write_bytes((FIXTURES / "bad" / name).read_bytes())
    return tmp_path


def load(folder, text=GOOD, **given_settings):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, given_settings, WORDS)


def refusal(folder, text, **given_settings):
    with pytest.raises(RecipeError) as refused:
        load(folder, text, **given_settings)
    return str(refused.value).replace(f"{folder}/", "")


def test_every_section_arrives(folder):
    recipe = load(folder)
    assert recipe.name == "digits-cnn"
    assert recipe.model.factory == "model.py:SmallCNN"
    assert recipe.inputs["image"].shape == ("batch", 3, 32, 32)
    assert recipe.profile["batch"].opt == 16
    assert recipe.data.calibration is not None
    assert recipe.data.calibration.samples == 256
    assert recipe.metrics == {"top1": MetricOptions()}
    assert recipe.variants["int8"].options == {"method": "percentile"}
    assert recipe.variants["int8"].targets == ("onnxruntime", "tensorrt_rtx")
    assert recipe.targets["tensorrt_rtx"].options == {"compute_capabilities": ("8.6", "8.9", "12.0")}
    assert recipe.measure.batches == (1, 16)
    assert recipe.gate == Gate(batch=1, speedup=SpeedupLimit(min=1.1), metrics={"top1": MetricLimit(max_drop=0.01)})


def test_facts_about_the_file_are_no_part_of_what_it_says(folder):
    recipe = load(folder)
    assert recipe.path == folder / "recipe.yaml"
    assert recipe.resolve("model.py") == folder / "model.py"
    assert recipe.resolve("/elsewhere/model.py") == Path("/elsewhere/model.py")
    assert recipe.text.decode() == GOOD
    assert not {"path", "folder", "text", "settings"} & set(recipe.model_dump())


def test_recipe_is_frozen(folder):
    with pytest.raises(ValidationError, match="frozen"):
        load(folder).name = "other"


def test_options_are_what_their_stage_takes(folder):
    recipe = load(folder)
    for stage in WORDS.variants["int8"]:
        stage(**{k: v for k, v in recipe.variants["int8"].options.items() if k in stage.model_fields})
    engine = WORDS.targets["tensorrt_rtx"][0](**recipe.targets["tensorrt_rtx"].options)
    assert engine.compute_capabilities == ("8.6", "8.9", "12.0")


def test_derived_field_is_no_option(folder):
    screen = refusal(folder, GOOD.replace("{method: percentile}", "{dialect: cpu}"))
    assert "variants.int8.dialect: unknown key (known: keep, method, percentile, per_channel" in screen


def test_everything_but_model_inputs_and_data_has_a_default(folder):
    text = """
model: {factory: model.py:SmallCNN, checkpoint: checkpoint.safetensors, outputs: [logits]}
inputs: {image: {dtype: float32, shape: [batch, 3]}}
data: {source: data.py:digits, evaluation: {split: test}}
"""
    recipe = load(folder, text)
    assert recipe.name == folder.name
    assert list(recipe.variants) == ["fp32"]
    assert list(recipe.targets) == ["onnxruntime"]
    assert recipe.measure.batches == (1,)
    assert recipe.metrics == {}
    assert recipe.gate is None
    assert recipe.batch_axis == "batch"
    assert recipe.evaluation_batch == 32


def test_default_batch_is_one_that_the_model_takes(folder):
    head, tail = GOOD.split("profile:\n")
    fixed = head.replace("[batch,", "[4,") + tail.split("\n", 1)[1].split("measure:")[0]
    assert load(folder, fixed).measure.batches == (4,)
    assert load(folder, fixed).evaluation_batch == 4
    assert load(folder, fixed).batch_axis is None
    at_least_two = GOOD.split("measure:")[0].replace("min: 1, opt: 16", "min: 2, opt: 16")
    assert load(folder, at_least_two).measure.batches == (2,)
    assert load(folder, at_least_two).evaluation_batch == 16


def test_variant_has_any_name_with_a_precision(folder):
    text = GOOD.replace("int8: {", "tight: {precision: int8, targets: [onnxruntime], ")
    variant = load(folder, text).variants["tight"]
    assert (variant.precision, variant.targets) == ("int8", ("onnxruntime",))
    assert variant.options == {"method": "percentile"}


def test_metric_names_its_output(folder):
    text = GOOD.replace("[logits]", "[logits, boxes]").replace("[top1]", "[top1, {mean_iou: {output: boxes}}]")
    assert load(folder, text).metrics == {"top1": MetricOptions(), "mean_iou": MetricOptions(output="boxes")}


def test_scalars_are_those_of_yaml_1_2(folder):
    arguments = "{a: 1e-3, b: no, c: 0o17, d: 0x1F, e: 012, f: 1:30, g: ~, h: 2024-01-01, i: .5, j: 'true', k: on}"
    text = GOOD.replace("  outputs", f"  arguments: {arguments}\n  outputs")
    assert load(folder, text).model.arguments == {
        "a": 0.001, "b": "no", "c": 15, "d": 31, "e": 12, "f": "1:30",
        "g": None, "h": "2024-01-01", "i": 0.5, "j": "true", "k": "on",
    }  # fmt: skip


def test_anchors_and_aliases_work(folder):
    text = GOOD.replace("fp16: {}", "fp16: &x {precision: fp16, keep: [Conv]}, half: *x")
    assert load(folder, text).variants["half"].options == {"keep": ("Conv",)}
    text = GOOD.replace("outputs: [logits]", "outputs: &o [logits]\n  arguments: {again: *o}")
    assert load(folder, text).model.arguments == {"again": ["logits"]}


def test_alias_to_itself_is_refused(folder):
    assert "refers to itself" in refusal(folder, GOOD.replace("outputs: [logits]", "outputs: &o [*o]"))


def test_aliases_cannot_grow_without_bound(folder):
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    bomb += "".join(f"{n}: &{n} [{', '.join(['*' + p] * 10)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True))
    started = time.perf_counter()
    assert "aliases make more than" in refusal(folder, bomb)
    assert time.perf_counter() - started < 5


def test_deep_nesting_is_refused(folder):
    assert refusal(folder, "[" * 5000) == "recipe.yaml:1:1: is nested too deeply to be a recipe"


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_infinite_numbers_are_refused(folder, value):
    assert "finite" in refusal(folder, GOOD.replace("{batches: [1, 16]}", f"{{batches: [1], seconds: {value}}}"))
    assert "finite" in refusal(folder, GOOD.replace("  outputs", f"  arguments: {{x: [{value}]}}\n  outputs"))


def test_setting_is_filled_from_the_command_line_then_the_environment(folder, monkeypatch):
    text = GOOD.replace("data.py:digits", "${source}").replace("samples: 256", "samples: ${count}")
    monkeypatch.setenv("OPTIMIZE_COUNT", "7")
    monkeypatch.setenv("OPTIMIZE_SOURCE", "nowhere.py:x")
    recipe = load(folder, text, source="data.py:digits")
    assert recipe.data.source == "data.py:digits"
    assert recipe.data.calibration is not None
    assert recipe.data.calibration.samples == 7
    assert recipe.settings == {"source": "data.py:digits", "count": "7"}


def test_setting_may_stand_in_a_flow_mapping_and_keeps_columns(folder):
    text = GOOD.replace("{split: test}", "{split: ${part}, btch: 3}")
    assert load(folder, text.replace(", btch: 3", ""), part="test").data.evaluation.split == "test"
    assert "recipe.yaml:13:32: data.evaluation.btch: unknown key" in refusal(folder, text, part="test")


def test_setting_in_quotes_stays_text(folder):
    text = GOOD.replace("  outputs", "  arguments: {a: '${n}', b: ${n}}\n  outputs")
    assert load(folder, text, n="12").model.arguments == {"a": "12", "b": 12}


def test_empty_environment_variable_is_an_unset_one(folder, monkeypatch):
    monkeypatch.setenv("OPTIMIZE_SOURCE", "")
    assert "${source} is not set: give --set source=VALUE" in refusal(folder, GOOD.replace("data.py", "${source}"))


def test_setting_that_the_recipe_lacks_is_refused(folder):
    assert refusal(folder, GOOD, data="x") == "recipe.yaml: --set data=...: the recipe has no ${...} to fill"
    text = GOOD.replace("data.py:digits", "${source}:digits")
    screen = refusal(folder, text, source="data.py", sauce="y")
    assert screen == "recipe.yaml: --set sauce=...: the recipe has no ${sauce}, did you mean 'source'? (known: source)"


def test_malformed_setting_is_refused(folder):
    assert "'${' must be followed by a name" in refusal(folder, GOOD.replace("name: digits-cnn", 'name: "${a-b}"'))


def test_onnx_needs_no_factory(folder):
    text = GOOD.replace("  factory: model.py:SmallCNN\n", "").replace("checkpoint.safetensors", "checkpoint.onnx")
    assert load(folder, text).model.factory is None


def test_training_script_is_pointed_at_when_its_checkpoint_is_absent(folder):
    (folder / "checkpoint.safetensors").unlink()
    assert "train.py" not in refusal(folder, GOOD)
    (folder / "train.py").touch()
    assert "no such file: 'checkpoint.safetensors'" in refusal(folder, GOOD)
    assert "run train.py beside it first?" in refusal(folder, GOOD)


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import SmallCNN\n",
        "from elsewhere import *\n",
        "if True:\n    class SmallCNN: ...\n",
        "try:\n    import x\nexcept ImportError:\n    def SmallCNN(): ...\n",
        "SmallCNN = make()\n",
    ],
)
def test_function_is_found_however_it_is_defined(folder, source):
    (folder / "model.py").write_text(source)
    assert load(folder).model.factory == "model.py:SmallCNN"


def test_files_outside_the_factorys_folder_are_refused(folder):
    (folder / "code").mkdir()
    (folder / "model.py").rename(folder / "code" / "model.py")
    text = GOOD.replace("model.py:", "code/model.py:").replace("  outputs", "  files: [data.py]\n  outputs")
    assert "model.files[0]: 'data.py' lies outside the factory's folder" in refusal(folder, text)


def test_one_wrong_section_hides_no_problem_of_another(folder):
    text = GOOD.replace("seed: 0", "sead: 0").replace("data.py", "dta.py").replace("batches: [1, 16]", "batches: [99]")
    screen = refusal(folder, text)
    assert "data.calibration.sead: unknown key" in screen
    assert "no such file: 'dta.py'" in screen
    assert "batch 99 lies outside" in screen


def test_folder_or_missing_file_instead_of_a_recipe_is_named(folder):
    load(folder)
    with pytest.raises(RecipeError, match=r"is a folder, did you mean '.*recipe.yaml'"):
        load_recipe(folder, {}, WORDS)
    with pytest.raises(RecipeError, match=r"no such file, did you mean 'recipe.yaml'"):
        load_recipe(folder / "recipe.yml", {}, WORDS)
    (folder / "binary.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="is no recipe, which is YAML in UTF-8: byte 6 of it is no text"):
        load_recipe(folder / "binary.yaml", {}, WORDS)


def test_gate_file_takes_any_metric(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("batch: 4\nwer: {max_drop: 0.5}\n")
    assert load_gate(path) == Gate(batch=4, metrics={"wer": MetricLimit(max_drop=0.5)})


@pytest.mark.parametrize(
    ("text", "screen"),
    [
        ("gate: {top1: {max_drop: 0.1}}", "1:1: gate: a gate's file begins with what stands under 'gate:' in a recipe"),
        (
            "speedpu: {min: 2}",
            "1:1: speedpu: unknown key, did you mean 'speedup'? (known: batch, speedup, a metric's name)",
        ),
        ("top1: {max_drp: 0.1}", "1:8: top1.max_drp: unknown key, did you mean 'max_drop'? (known: max_drop)"),
        ("top1: 0.1", "1:7: top1: needs a mapping, got 0.1"),
        ("batch: 0\ntop1: {max_drop: 0.1}", "1:8: batch: needs a number above 0, got 0"),
        ("batch: 1", "1:1: limits nothing: give a metric's max_drop or speedup: {min: 1.1}"),
        ("{}", "1:1: limits nothing: give a metric's max_drop or speedup: {min: 1.1}"),
        ("", "1:1: the file is empty"),
    ],
)
def test_gate_file_is_as_strict(tmp_path, monkeypatch, text, screen):
    monkeypatch.chdir(tmp_path)
    Path("gate.yaml").write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_gate(Path("gate.yaml"))
    assert str(refused.value) == f"gate.yaml:{screen}"


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 2), max_size=2),
    st.dictionaries(st.sampled_from(["batch", "min", "x"]), st.integers(), max_size=2),
)


def replace_somewhere(draw, data, junk):
    if isinstance(data, dict) and data and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(data)))
        return {**data, key: replace_somewhere(draw, data[key], junk)}
    if isinstance(data, list) and data and draw(st.integers(0, 4)):
        return [replace_somewhere(draw, data[0], junk), *data[1:]]
    return junk


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_recipe_is_accepted_or_refused_line_by_line(folder, data):
    document = yaml.safe_load(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        document = replace_somewhere(data.draw, document, data.draw(JUNK))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), encoding="utf-8")
    try:
        load_recipe(path, {}, WORDS)
    except RecipeError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith(f"{path}:") for line in lines)


@pytest.mark.parametrize(("given", "said"), [("top1", "'top1'; write [top1]"), ('"\\r"', "'\\r'"), ('" "', "' '")])
def test_only_what_can_be_an_entry_is_offered_as_a_list_of_one(folder, given, said):
    (line,) = refusal(folder, GOOD.replace("metrics: [top1]", f"metrics: {given}")).splitlines()
    assert line.endswith(f"metrics: needs a list, got {said}")


def test_what_breaks_a_line_is_shown_as_its_escape(folder):
    (folder / "recipe.yaml").write_text('"\\r\\u2028x"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"needs a mapping, got '\\r\\u2028x'"):
        load_recipe(folder / "recipe.yaml", {}, WORDS)


def test_loading_imports_no_heavy_package(folder):
    load(folder)
    code = (
        "import sys; from pathlib import Path; from recipe_words import WORDS\n"
        "from optimizer.recipe.loader import load_recipe; load_recipe(Path(sys.argv[1]), {}, WORDS)\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'sklearn', 'scipy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    subprocess.run([sys.executable, "-c", code, str(folder / "recipe.yaml")], check=True, env=environment)


def test_a_layout_names_the_class_once(folder):
    source = next(line for line in GOOD.splitlines() if line.strip().startswith("source:"))
    (folder / "pictures").mkdir()
    for layout, told in (("<split>/<class>/<class>", True), ("<split>/<class>", False)):
        said = refusal(folder, GOOD.replace(source, f"  folder: pictures\n  layout: {layout}\n  files: [data.py]"))
        assert ("data.layout: '<split>/<class>/<class>' has '<class>' more than once" in said) is told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[onnxruntim]", "[0]: 'onnxruntim' is no target, did you mean 'onnxruntime'? (this recipe's targets: "),
        ("[tensorrt]", "[0]: 'tensorrt' does not stand under targets: add it there, or remove it here (this recipe's "),
        ("[abacus]", "[0]: 'abacus' is no target (this recipe's targets: onnxruntime, tensorrt_rtx)"),
        ("onnxruntime", ": needs a list, got 'onnxruntime'; write [onnxruntime]"),
    ],
)
def test_a_variant_on_a_wrong_target_is_told_what_the_recipe_has(folder, given, said):
    screen = refusal(folder, GOOD.replace("{method: percentile}", f"{{method: percentile, targets: {given}}}"))
    assert f"variants.int8.targets{said}" in screen
    assert len(screen.splitlines()) == 1


def test_calibrating_on_one_sample_is_refused_before_anything_is_built(folder):
    said = "data.calibration.samples: needs at least 2, got 1: one sample says nothing of others' ranges"
    assert said in refusal(folder, GOOD.replace("samples: 256", "samples: 1"))
    assert load(folder, GOOD.replace("samples: 256", "samples: 2")).data.calibration.samples == 2


def test_more_threads_than_processors_are_refused_before_anything_is_built(folder, monkeypatch):
    text = GOOD.replace("measure: {batches: [1, 16]}", "measure: {batches: [1, 16], threads: 9}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(MissingToolError) as refused:
        load(folder, text)
    assert str(refused.value) == (
        "measure.threads: 9 threads are asked for and this process may use 2 processors\n"
        "  Write threads: 2, or build where there are 9."
    )
    assert load_recipe(folder / "recipe.yaml", {}, WORDS, to_measure=False).measure.threads == 9
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    assert load(folder, text).measure.threads == 9
    monkeypatch.delattr(os, "sched_getaffinity")  # where nothing can be pinned, nothing is refused
    assert load(folder, text).measure.threads == 9


NORMALIZE = "normalize: {mean: [0.1, 0.2, 0.3], std: [1.0, 1.0, 1.0]}"


@pytest.mark.parametrize(
    ("shape", "steps", "said"),
    [
        (
            "[batch, 3, 128]",
            f"[{{{NORMALIZE}}}]",
            "3 numbers, and the channels, the last axis of input 'image', are 128",
        ),
        ("[batch, 3, length]", f"[{{{NORMALIZE}}}]", "the channels, the last axis of input 'image', are 32 to 256"),
        (
            "[batch, 1, 8, 8]",
            f"[{{{NORMALIZE}}}, {{to_chw: true}}]",
            "the first axis after to_chw of input 'image', are 1",
        ),
        (
            "[batch, 1, 8, 8]",
            f"[{{to_chw: true}}, {{{NORMALIZE}}}]",
            "the first axis after to_chw of input 'image', are 1",
        ),
        ("[batch, 3, 8, 8]", f"[{{{NORMALIZE}}}, {{to_chw: true}}]", None),
        ("[batch, 3, 8, 8]", f"[{{to_chw: true}}, {{{NORMALIZE}}}]", None),
        ("[batch, 128, 3]", f"[{{{NORMALIZE}}}]", None),
        ("[batch, 1, 8, 8]", f"[{{{NORMALIZE}}}, {{channels: 1}}, {{to_chw: true}}]", None),
        ("[batch, 3, 128]", "[{normalize: {mean: [0.1], std: [1.0]}}]", None),
    ],
)
def test_normalize_is_held_against_the_channels(folder, shape, steps, said):
    text = GOOD.replace("[batch, 3, 32, 32]", shape).replace("  calibration:", f"  transform: {steps}\n  calibration:")
    if "length" in shape:
        text = text.replace("max: 64}", "max: 64}\n  length: {min: 32, opt: 64, max: 256}")
    if said is None:
        load(folder, text)
    else:
        assert said in refusal(folder, text)


def test_min_of_a_speedup_is_not_taken_for_a_profiles(folder):
    said = refusal(folder, GOOD.replace("speedup: {min: 1.1}", "speedup: {min: 1.1, max: 2}"))
    assert "gate.speedup.max: unknown key (known: min)" in said
    inside = refusal(folder, GOOD.replace("dtype: float32, ", "dtype: float32, max: 2, "))
    assert "inputs.image.max: unknown key, it stands in profile.<axis>" in inside  # there it is meant


def test_a_near_name_and_a_training_script_make_one_sentence(folder):
    (folder / "train.py").touch()
    text = GOOD.replace("checkpoint.safetensors", "checkpont.safetensors")
    assert "'checkpoint.safetensors'? Or run train.py beside it first?" in refusal(folder, text)


def test_wrong_names_do_not_hide_others(folder):
    """An unknown metric explains a gate on it, not a gate on another one; nor does a wrong dtype explain an axis."""
    text = GOOD.replace("[top1]", "[top1, f1]").replace("top1: {max", "f1: {max_drop: 0.1}, top2: {max")
    text = text.replace("dtype: float32", "dtype: float33").replace(
        "  batch: {min", "  bach: {min: 1, opt: 1, max: 1}\n  batch: {min"
    )
    said = refusal(folder, text)
    assert "gate.top2: unknown key, and no metric of the recipe" in said
    assert "gate.f1" not in said
    assert "profile.bach: no input has this axis (known: batch)" in said
    misspelled = refusal(folder, GOOD.replace("[top1]", "[topp1]"))
    assert "metrics[0]: 'topp1': unknown metric" in misspelled
    assert "gate.top1" not in misspelled
    shapeless = refusal(folder, GOOD.replace(", shape: [batch, 3, 32, 32]", ""))
    assert "inputs.image.shape: missing" in shapeless
    assert "profile.batch" not in shapeless


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("onnxruntime, openvino, tensorrt_rtx", "leave it out, or write variants.fp8.targets: [onnxruntime, openvino]"),
        ("onnxruntime, tensorrt_rtx", "leave it out, or write variants.fp8.targets: [onnxruntime]"),
        ("tensorrt_rtx", "leave it out"),
    ],
)
def test_a_variant_is_sent_only_to_targets_of_its_own_that_take_it(folder, targets, said):
    text = GOOD.replace("int8: {method: percentile}", f"fp8: {{targets: [{targets}]}}")
    text = text.replace("  onnxruntime: {}\n", "  onnxruntime: {}\n  openvino: {}\n  torch_compile: {}\n")
    (folder / "recipe.yaml").write_text(text.replace(', "12.0"', ""))
    with pytest.raises(RecipeError) as refused:
        load_recipe(folder / "recipe.yaml", {})
    line = next(line for line in str(refused.value).splitlines() if "fp8 needs a GPU" in line)
    assert line.endswith(said)
