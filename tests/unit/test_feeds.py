"""Feeds at every size of every dynamic axis, from real samples: what is cut or repeated stays together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample, Samples
from optimizer.errors import StageError
from optimizer.pipeline import feeds as pipeline_feeds
from optimizer.pipeline.feeds import axis_sizes, check_feeds, check_sizes, usual_sizes, usual_start
from optimizer.recipe.model import ShapeRange
from optimizer.runtime.session import Session
from optimizer.stage import Tolerance
from optimizer.types import TensorSpec
from optimizer.verify import verify

TOKENS = (TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("mask", "int64", ("batch", "length")))
PICTURE = (TensorSpec("image", "float32", ("batch", 1, 4, 4)),)
LOOSE = Tolerance("float32 in another order", atol=1e-6)


def recipe(**profile: tuple[int, int, int]) -> Any:
    ranges = {axis: ShapeRange(min=a, opt=b, max=c) for axis, (a, b, c) in profile.items()}
    return SimpleNamespace(batch_axis="batch", profile=ranges, evaluation_batch=4)


def sentences(lengths: tuple[int, ...] = (4, 5, 9, 12, 12, 6, 7)) -> Any:
    """Ids that tell sample and position; a mask with one padded token at the end."""
    found = []
    for i, length in enumerate(lengths):
        ids = 100 * (i + 1) + np.arange(length)
        mask = np.ones(length, np.int64)
        mask[-1] = 0
        found.append(Sample({"ids": ids, "mask": mask}, None, str(i)))
    return found


def test_the_sizes_of_an_axis_are_its_ends_the_usual_one_and_an_odd_one() -> None:
    assert axis_sizes(3, 12, 64) == (3, 12, 33, 64)
    assert axis_sizes(1, 128, 512) == (1, 128, 257, 512)
    assert axis_sizes(16, 16, 16) == (16,)
    assert axis_sizes(2, 2, 4) == (2, 3, 4)


def test_every_axis_has_its_sizes_in_the_key_and_a_batch_alone_what_it_always_had() -> None:
    assert check_sizes(recipe(batch=(1, 4, 8))) == (1, 3, 4, 8)
    assert check_sizes(recipe(batch=(1, 4, 8), length=(3, 12, 64))) == (1, 3, 4, 8, 0, 3, 12, 33, 64)


def test_pictures_of_one_size_are_checked_at_their_batches_alone() -> None:
    samples: Any = [Sample({"image": np.full((1, 4, 4), i, np.float32)}, None, str(i)) for i in range(5)]
    trials = check_feeds(recipe(batch=(1, 4, 8)), samples, PICTURE)
    assert [title for title, _ in trials] == ["batch 1", "batch 3", "batch 4", "batch 8"]
    assert not trials.notes


def test_each_size_of_the_length_has_a_feed_and_so_have_both_ends_at_once() -> None:
    trials = check_feeds(recipe(batch=(1, 4, 8), length=(3, 12, 20)), sentences(), TOKENS)
    shapes = {title: feed["ids"].shape for title, feed in trials.further.items()}
    assert shapes == {
        "length 3": (3, 3),
        "length 11": (3, 11),
        "length 12": (3, 12),
        "length 20": (3, 20),
        "batch 1 and length 3": (1, 3),
        "batch 8 and length 20": (8, 20),
    }
    (note,) = trials.notes
    assert note == (
        "inputs: length 3, length 11: cut from longer samples; length 12: real samples; "
        "length 20: repeated from shorter samples"
    )
    assert trials.made == set(shapes) - {"length 12"}


def test_what_is_cut_or_repeated_keeps_every_token_with_its_mask() -> None:
    samples = sentences()
    known = {(int(t), int(m)) for s in samples for t, m in zip(s.inputs["ids"], s.inputs["mask"], strict=True)}
    trials = check_feeds(recipe(batch=(1, 4, 8), length=(3, 12, 20)), samples, TOKENS)
    for _, feed in trials:
        assert feed["ids"].shape == feed["mask"].shape
        pairs = zip(feed["ids"].ravel().tolist(), feed["mask"].ravel().tolist(), strict=True)
        assert set(pairs) <= known


def test_without_a_profile_the_samples_say_how_long_an_axis_is() -> None:
    trials = check_feeds(recipe(), sentences(), TOKENS)
    assert [title for title in trials.further if " and " not in title] == [
        "length 4",
        "length 7",
        "length 9",
        "length 12",
    ]


class Model(Session):
    """Sums ids; `refuses` and `wrong` say at which lengths."""

    inputs, outputs = TOKENS, (TensorSpec("y", "float32", ("batch",)),)

    def __init__(self, refuses: Any = lambda n: False, wrong: Any = lambda n: False) -> None:
        self.refuses, self.wrong = refuses, wrong

    def infer(self, feed: Any) -> Any:
        length = feed["ids"].shape[1]
        if self.refuses(length):
            raise StageError(f"no length of {length}", where="model")
        return {"y": (feed["ids"] * feed["mask"]).sum(axis=1).astype(np.float32) + self.wrong(length)}

    def bind(self, feed: Any) -> Any:
        return lambda: None


def check(child: Model, parent: Model | None = None) -> list[str]:
    trials = check_feeds(recipe(batch=(1, 4, 8), length=(3, 12, 20)), sentences(), TOKENS)
    return verify(parent or Model(), child, trials, LOOSE, what="stage 'simplify'")


def test_what_is_right_at_every_length_says_where_it_was_compared() -> None:
    assert check(Model())[0] == (
        "output 'y' at batch 1, 3, 4, 8; length 3, 11, 12, 20; batch 1 and length 3; batch 8 and length 20: equal"
    )


def test_a_fault_at_the_odd_length_alone_is_caught() -> None:
    with pytest.raises(StageError, match="output 'y' at length 11 is"):
        check(Model(wrong=lambda n: n == 11))


def test_a_fault_at_long_sequences_alone_is_caught() -> None:
    with pytest.raises(StageError, match="output 'y' at length 20 is"):
        check(Model(wrong=lambda n: n > 15))


def test_a_child_that_refuses_what_its_parent_takes_is_caught() -> None:
    with pytest.raises(StageError, match="fails at length 3, which its parent takes: no length of 3"):
        check(Model(refuses=lambda n: n == 3))


def test_a_made_up_size_that_the_model_itself_refuses_is_a_note() -> None:
    picky = Model(refuses=lambda n: n == 11)
    notes = check(picky, picky)
    assert "length 11: not compared, the model itself refuses it: no length of 11" in notes


def test_a_real_size_that_the_model_refuses_is_an_error() -> None:
    picky = Model(refuses=lambda n: n == 12)
    with pytest.raises(StageError, match="no length of 12"):
        check(picky, picky)


class Counted(Samples):
    """Images of the given height and width, which count how many were looked at."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes
        self.looked = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        self.looked += 1
        return Sample({"image": np.zeros((3, *self.sizes[index]), np.float32)}, None, str(index))


IMAGES = (TensorSpec("image", "float32", ("batch", 3, "height", "width")),)


def test_only_axes_besides_the_batch_that_the_profile_covers_have_a_usual_size() -> None:
    assert usual_sizes(recipe(batch=(1, 4, 8), length=(3, 12, 64)), TOKENS) == {"length": 12}
    assert usual_sizes(recipe(batch=(1, 4, 8)), TOKENS) == {}
    assert usual_sizes(recipe(batch=(1, 4, 8), width=(8, 16, 64)), IMAGES) == {"width": 16}


@pytest.mark.parametrize(("opt", "start"), [(12, 3), (9, 2), (10, 2), (1, 0), (64, 3), (8, 2)])
def test_timing_begins_with_the_first_sample_closest_to_the_usual_size(opt: int, start: int) -> None:
    assert usual_start(sentences(), TOKENS, {"length": opt}) == start


def test_the_order_of_the_data_does_not_change_the_length_that_is_timed() -> None:
    lengths = (54, 8, 36, 36, 30, 33, 31, 8)
    for order in (lengths, tuple(sorted(lengths)), tuple(sorted(lengths, reverse=True))):
        samples = sentences(order)
        start = usual_start(samples, TOKENS, {"length": 36})
        assert pipeline_feeds.feed(samples, TOKENS, 2, start)["ids"].shape == (2, 36)


def test_a_batch_repeats_samples_of_the_one_shape_where_there_are_too_few() -> None:
    samples = sentences((54, 32, 8, 32, 54))
    found = pipeline_feeds.feed(samples, TOKENS, 5, usual_start(samples, TOKENS, {"length": 32}))
    assert found["ids"][:, 0].tolist() == [200, 400, 200, 400, 200]


def test_several_axes_count_by_their_shares_of_the_usual_size() -> None:
    samples = Counted((100, 20), (110, 12), (200, 10))
    assert usual_start(samples, IMAGES, {"height": 100, "width": 10}) == 1


def test_looking_for_the_usual_size_ends_at_an_exact_hit_and_after_256_samples() -> None:
    hit = Counted(*[(8, n) for n in range(50)])
    assert usual_start(hit, IMAGES, {"width": 7}) == 7
    assert hit.looked == 8
    long = Counted(*[(8, 1000 - n) for n in range(400)])
    assert usual_start(long, IMAGES, {"width": 1}) == 255
    assert long.looked == 256


def test_no_sample_is_looked_at_where_no_axis_has_a_usual_size() -> None:
    samples = Counted((8, 8))
    assert usual_start(samples, IMAGES, {}) == 0
    assert samples.looked == 0
