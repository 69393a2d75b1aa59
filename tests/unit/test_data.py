from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data.callable import FromArrays, FromSequence, call_source
from optimizer.data.identity import code_document, data_document, package_versions
from optimizer.data.pictures import Pictures
from optimizer.data.samples import batches
from optimizer.data.source import Transformed, pick, without_overlap
from optimizer.errors import StageError, UsageError
from optimizer.recipe.model import CalibrationData, Data, EvaluationData
from optimizer.store import ContentIndex
from optimizer.types import TensorSpec

IMAGE = (TensorSpec("image", "float32", ("batch", 2)),)


def source(count: int, start: int = 0, split: str = "train") -> FromArrays:
    values = np.arange(start, start + count, dtype=np.float32)
    return FromArrays({"": np.stack([values, values], axis=1)}, list(range(count)), split)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label, value in (("cat", 10), ("dog", 200)):
            for i in range(3):
                picture(tmp_path / "pets" / split / label / f"{i}.png", value + i)
    return tmp_path / "pets"


def test_pictures_take_their_labels_from_sorted_folders(folder: Path) -> None:
    found = Pictures(folder, "<split>/<class>", "test")
    assert found.labels == ("cat", "dog")
    assert [s.target for s in found] == [0, 0, 0, 1, 1, 1]
    assert found[4].inputs[""].shape == (4, 5, 3)
    assert found[4].inputs[""][0, 0, 0] == 201
    assert found[4].identity == "test/dog/1.png"


def test_a_zip_gives_what_its_folder_gives(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*.png"):
            file.write(path, path.relative_to(folder))
    one, two = (Pictures(p, "<split>/<class>", "train") for p in (folder, archive))
    assert [s.content_hash() for s in one] == [s.content_hash() for s in two]


def test_a_wrong_layout_shows_what_is_there(folder: Path) -> None:
    with pytest.raises(StageError, match=r"no pictures under 'images/<class>'") as caught:
        Pictures(folder, "images/<class>", "test")
    assert "test/cat/0.png" in str(caught.value)


def test_a_picture_that_cannot_be_decoded_is_named(folder: Path) -> None:
    (folder / "test" / "cat" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(StageError, match=r"test/cat/1\.png"):
        list(Pictures(folder, "<split>/<class>", "test"))


def test_a_callable_returns_arrays_or_pairs(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def arrays(split, n): return {'image': np.zeros((n, 2))}, np.arange(n)\n"
        "def pairs(split): return [(np.ones(2), 7), (np.ones(2), 8), (np.ones(2), 9)]\n"
        "def unlike(split): return np.zeros((3, 2)), [1]\n"
        "def nothing(split): return 3\n"
        "def fails(split): return {}[split]\n"
    )
    file = tmp_path / "data.py"
    assert len(call_source(file, "arrays", "test", {"n": 4})) == 4
    assert [s.target for s in call_source(file, "pairs", "test", {})] == [7, 8, 9]
    for name, message in (("unlike", "1 targets"), ("nothing", "returned a int"), ("fails", "KeyError: 'test'")):
        with pytest.raises(StageError, match=message):
            call_source(file, name, "test", {})


def test_samples_are_checked_against_the_recipes_inputs() -> None:
    wrong = FromArrays({"": np.zeros((2, 3), np.float32)}, [0, 0], "test")
    with pytest.raises(StageError, match=r"sample test\[0\], input 'image': has the shape \[3\]"):
        Transformed(wrong, [], IMAGE)[0]
    named = FromArrays({"picture": np.zeros((2, 2), np.float32)}, [0, 0], "test")
    with pytest.raises(StageError, match="yields the inputs picture; the recipe names image"):
        Transformed(named, [], IMAGE)[0]
    text = FromArrays({"": np.array([["a", "b"]])}, [0], "test")
    with pytest.raises(StageError, match="has the dtype <U1"):
        Transformed(text, [], IMAGE)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_sample(value: float) -> None:
    arrays = np.zeros((5, 2), np.float32)
    arrays[3, 1] = value
    samples = Transformed(FromArrays({"": arrays}, [0] * 5, "train"), [], IMAGE)
    assert samples[2].inputs["image"].tolist() == [0, 0]
    with pytest.raises(StageError, match=r"sample train\[3\], input 'image': 1 of its 2 values is NaN"):
        samples[3]


def test_picking_is_seeded_and_never_silently_fewer() -> None:
    one, two = (pick(source(20), 5, seed, "data.calibration") for seed in (0, 1))
    assert [s.target for s in one] == [s.target for s in pick(source(20), 5, 0, "x")]
    assert [s.target for s in one] != [s.target for s in two]
    assert len({s.target for s in one}) == 5
    with pytest.raises(StageError, match="asks for 30 samples and the split has 20"):
        pick(source(20), 30, 0, "data.calibration")
    with pytest.raises(StageError, match="the split is empty"):
        pick(source(0), None, 0, "data.evaluation")


def test_samples_of_the_evaluation_set_leave_calibration_and_are_replaced() -> None:
    evaluation, calibration = source(10, 0, "test"), source(20, 5)  # values 5 to 9 stand in both
    chosen, dropped = without_overlap(calibration, evaluation, 15, 0)
    assert len(chosen) == 15
    assert len(dropped) == 5
    shared = {s.content_hash() for s in evaluation} & {s.content_hash() for s in chosen}
    assert shared == set()
    with pytest.raises(StageError, match="15 of 16 are left"):
        without_overlap(calibration, evaluation, 16, 0)


def test_batches_keep_order_and_drop_nothing() -> None:
    sizes = [len(b) for b in batches(source(10), 4)]
    assert sizes == [4, 4, 2]
    assert [t for b in batches(source(10), 4) for t in b.targets] == list(range(10))


def test_samples_of_unlike_shapes_never_share_a_batch(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef f(split): return [(np.zeros(n), n) for n in (3, 3, 4, 4, 4, 3)]\n"
    )
    found = list(batches(call_source(tmp_path / "data.py", "f", "test", {}), 2))
    assert [b.targets for b in found] == [[3, 3], [4, 4], [4], [3]]


def settle(path: Path) -> None:
    past = time.time() - 60
    os.utime(path, (past, past))


def test_a_changed_picture_changes_the_identity_and_its_place_does_not(folder: Path, tmp_path: Path) -> None:
    index = ContentIndex(tmp_path / "store")
    for path in folder.rglob("*.png"):
        settle(path)
    part = CalibrationData(split="train")

    def document(place: Path) -> dict[str, object]:
        data = Data(folder=str(place), layout="<split>/<class>", evaluation=EvaluationData(split="test"))
        return data_document(data, part, tmp_path, index, {})

    before = document(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert document(moved) == before
    picture(moved / "test" / "cat" / "0.png", 99)  # the twin: the other split
    assert document(moved) == before
    picture(moved / "train" / "cat" / "0.png", 99)
    assert document(moved) != before


def test_code_is_identified_by_files_declared_files_and_packages(tmp_path: Path) -> None:
    index = ContentIndex(tmp_path / "store")
    (tmp_path / "data.py").write_text("import numpy, inner")
    (tmp_path / "inner.py").write_text("x = 1")
    (tmp_path / "values.npz").write_bytes(b"1")
    before = code_document(tmp_path / "data.py", ["values.npz"], tmp_path, index, {})
    assert set(before["modules"]) == {"data.py", "inner.py"}
    assert set(before["files"]) == {"values.npz"}
    assert before["packages"] == {"numpy": np.__version__}
    for name, text in (("inner.py", "x = 2"), ("values.npz", "2")):
        (tmp_path / name).write_text(text)
        after = code_document(tmp_path / "data.py", ["values.npz"], tmp_path, index, {})
        assert after != before
        before = after


def test_import_names_become_distributions() -> None:
    found = package_versions(["sklearn", "PIL", "surely_not_installed"])
    assert {"scikit-learn", "Pillow"} < set(found)
    assert found["surely_not_installed"] == "not installed"


def test_a_split_that_is_not_there_is_an_error(folder: Path, tmp_path: Path) -> None:
    data = Data(folder=str(folder), layout="<split>/<class>", evaluation=EvaluationData(split="validation"))
    with pytest.raises(UsageError, match="there is no folder validation"):
        data_document(data, data.evaluation, tmp_path, ContentIndex(tmp_path / "store"), {})


def test_a_size_outside_the_profile_is_refused_with_its_sample() -> None:
    spec = (TensorSpec("tokens", "float32", ("batch", "length")),)
    pairs = [(np.zeros(n, np.float32), 0) for n in (4, 8, 9)]
    samples = Transformed(FromSequence(pairs, "test", Path("/nowhere")), [], spec, {"length": (4, 8), "batch": (1, 1)})
    assert samples[0].inputs["tokens"].shape == (4,)
    with pytest.raises(StageError, match=r"sample test\[2\].*size 9 on axis 'length'; the profile covers 4 to 8"):
        samples[2]


@pytest.mark.parametrize("body", ["{'image': np.zeros((3, 2))}", "np.zeros((3, 2))"])
def test_a_source_that_forgot_the_targets_is_told_what_to_return(tmp_path: Path, body: str) -> None:
    (tmp_path / "data.py").write_text(f"import numpy as np\ndef f(split): return {body}\n")
    with pytest.raises(StageError, match=r"Return \(inputs, targets\)"):
        call_source(tmp_path / "data.py", "f", "test", {})


def test_declared_files_of_one_name_are_both_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("def f(split): ...")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.npz").write_bytes(b"one")
    files, index = ["train/x.npz", "test/x.npz"], ContentIndex(tmp_path / "store")
    before = code_document(tmp_path / "data.py", files, tmp_path, index, {})
    for part in ("train", "test"):
        (tmp_path / part / "x.npz").write_bytes(b"two")
        after = code_document(tmp_path / "data.py", files, tmp_path, index, {})
        assert after != before
        before = after


def test_a_place_that_a_setting_names_is_no_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("def f(split, root): ...")
    documents = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.npz").write_bytes(b"one")
        root = str(tmp_path / place)
        data = Data(
            source="data.py:f",
            arguments={"root": root, "count": "3"},
            files=(f"{root}/x.npz",),
            evaluation=EvaluationData(split="test"),
        )
        settings = {"data": root, "n": "3"}
        index = ContentIndex(tmp_path / "store")
        documents.append(data_document(data, data.evaluation, tmp_path, index, settings))
    assert documents[0] == documents[1]
    assert documents[0]["arguments"] == {"root": "${data}", "count": "3"}  # a number is not a place


def test_code_outside_the_installed_packages_is_identified_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loose_package").mkdir()
    module = tmp_path / "loose_package" / "__init__.py"
    module.write_text("GAIN = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = package_versions(["loose_package", "numpy"])
    assert set(before) == {"loose_package (source)", "numpy"}
    module.write_text("GAIN = -1")
    assert package_versions(["loose_package", "numpy"]) != before


def test_an_error_of_the_dataset_is_told_and_never_ends_the_data_early(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "class Set:\n"
        "    def __len__(self): return 10\n"
        "    def __getitem__(self, i):\n"
        "        if i == 4: return [][i]\n"
        "        return np.zeros(2), 0\n"
        "def f(split): return Set()\n"
        "def lazy(split):\n"
        "    from helper import scale\n"
        "    return np.full((3, 2), scale), [0, 0, 0]\n"
        "def fails(split): return 1 / 0\n"
    )
    (tmp_path / "helper.py").write_text("scale = 2.0")
    samples = call_source(tmp_path / "data.py", "f", "test", {})
    with pytest.raises(StageError, match=r"sample test\[4\]: IndexError.*data\.py, line 5"):
        list(samples)
    assert call_source(tmp_path / "data.py", "lazy", "test", {})[0].inputs[""].tolist() == [2, 2]
    with pytest.raises(StageError, match=r"ZeroDivisionError.*data\.py, line 11"):
        call_source(tmp_path / "data.py", "fails", "test", {})


def test_a_zip_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").write_bytes(b"no zip")
    with pytest.raises(StageError, match=r"pictures\.zip: is neither a folder nor a \.zip"):
        Pictures(tmp_path / "pictures.zip", "<split>/<class>", "test")


def test_a_sample_may_import_late_and_must_be_a_pair(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "class Late:\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n"
        "        from late_helper import scale\n"
        "        return np.full(2, scale), i\n"
        "def late(split): return Late()\n"
        "def triples(split): return [(np.zeros(2), 1, 2)] * 3\n"
        "def mappings(split): return [{'image': np.zeros(2), 'label': 3}]\n"
        "def ragged(split): return [[1], [2, 3]], [0, 1]\n"
        "def single(split): return 3.0, [0]\n"
        "def unsized(split): return np.zeros((2, 2)), 5\n"
    )
    (tmp_path / "late_helper.py").write_text("scale = 3.0")
    file = tmp_path / "data.py"
    assert [s.inputs[""].tolist() for s in call_source(file, "late", "test", {})] == [[3, 3]] * 2
    for name, told in (
        ("triples", r"sample test\[0\]: is a tuple of 3, not a pair"),
        ("mappings", r"sample test\[0\]: is a dict, not a pair"),
        ("ragged", "ValueError: setting an array element"),
        ("single", "without a first axis of samples"),
        ("unsized", "TypeError: object of type 'int' has no len"),
    ):
        with pytest.raises(StageError, match=told):
            list(call_source(file, name, "test", {}))


def test_a_damaged_member_of_a_zip_is_named_with_the_zip(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 7)
    data = (tmp_path / "0.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("test/cat/0.png", data)
    whole = (tmp_path / "p.zip").read_bytes()
    at = whole.index(data) + len(data) // 2
    (tmp_path / "p.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(StageError, match=r"p\.zip: 'test/cat/0\.png' cannot be read: Bad CRC-32"):
        list(Pictures(tmp_path / "p.zip", "<split>/<class>", "test"))


def test_a_normalize_that_does_not_fit_says_which_axis_the_channels_are() -> None:
    series = FromArrays({"": np.zeros((2, 3, 128), np.float32)}, [0, 0], "test")
    three = {"normalize": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}}
    with pytest.raises(StageError) as refused:
        Transformed(series, [three], IMAGE)[0]
    assert str(refused.value) == (
        "data, sample test[0], preprocessing step 1: normalize.mean has 3 numbers, the array 128 channels [3, 128]\n"
        "  Channels are the last axis, [height, width, channels], and the first after to_chw.\n"
        "  Normalize an array [channels, length] in the data's callable, or give one number for all."
    )
