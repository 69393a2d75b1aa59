"""The recipe's two splits, opened on first use and never twice."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from optimizer.data.callable import call_source
from optimizer.data.pictures import Pictures
from optimizer.data.samples import Samples
from optimizer.data.source import Transformed, pick, to_specs, without_overlap
from optimizer.errors import StageError

if TYPE_CHECKING:
    from optimizer.recipe.model import Recipe

_REPLACED = "stand in the evaluation set too and were replaced"


def about_replaced(notes: Iterable[str]) -> tuple[str, ...]:
    """Return those notes of stages, reused ones too, that tell of replaced samples."""
    return tuple(dict.fromkeys(note for note in notes if _REPLACED in note))


class Splits:
    """Calibration and evaluation samples of a recipe. `replaced` says which calibration samples were replaced."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.replaced: list[str] = []
        self._opened: dict[str, Samples] = {}

    def __call__(self, name: str) -> Samples:
        """Return the samples of `calibration` or `evaluation`."""
        return self.calibration if name == "calibration" else self.evaluation

    @cached_property
    def evaluation(self) -> Samples:
        """The evaluation samples: the whole split, or as many as the recipe says."""
        part = self._recipe.data.evaluation
        return pick(self._open(part.split), part.samples, part.seed, "data.evaluation")

    @cached_property
    def calibration(self) -> Samples:
        """The calibration samples, without those that stand in the evaluation set by content."""
        part = self._recipe.data.calibration
        if part is None:
            raise StageError("there is none", where="data.calibration", hint="Add it:  calibration: {split: train}")
        samples, dropped = without_overlap(self._open(part.split), self.evaluation, part.samples, part.seed)
        if dropped:
            names = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
            self.replaced.append(f"calibration: {len(dropped)} samples {_REPLACED} ({names})")
        return samples

    def check_counts(self) -> None:
        """Refuse a source with fewer calibration or evaluation samples than asked for, before anything is built.

        Only the author's callable knows how many there are, and it is called here. No sample is read.
        Raises: StageError.
        """
        data = self._recipe.data
        for name, part in (("calibration", data.calibration), ("evaluation", data.evaluation)):
            if part is not None:
                pick(self._open(part.split), part.samples, part.seed, f"data.{name}")

    def _open(self, split: str) -> Samples:
        if split not in self._opened:
            self._opened[split] = self._opened_anew(split)
        return self._opened[split]

    def _opened_anew(self, split: str) -> Samples:
        data = self._recipe.data
        if data.source is not None:
            file, _, function = data.source.partition(":")
            source = call_source(self._recipe.folder / file, function, split, data.arguments)
        else:
            source = Pictures(self._recipe.folder / str(data.folder), str(data.layout), split)
        if data.labels is not None:
            source.labels = data.labels
        if len(source) == 0:
            raise StageError(
                f"the split '{split}' holds no samples",
                where=f"data, {data.source or data.folder}",
                hint="Check the split's name, and that the data is where the source looks for it.",
            )
        steps = [step.model_dump(mode="json", exclude_none=True) for step in data.transform]
        profile = {axis: (r.min, r.max) for axis, r in self._recipe.profile.items()}
        return Transformed(source, steps, to_specs(self._recipe.inputs), profile)
