"""Options that hold calibration samples out, to judge what the others chose: are there enough to tell a gain?"""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.calibration.paired import FEWEST, FEWEST_SAMPLES
from optimizer.recipe.model import Variant
from optimizer.recipe.sections import Draft
from optimizer.recipe.vocabulary import Vocabulary
from optimizer.recipe.wording import KeyPath, Problems, shown

_HOLDING_OUT = {"smooth_quant": "auto", "rounding": "learned", "bias_correction": True}


def check_samples(draft: Draft, words: Vocabulary, problems: Problems) -> None:
    """Note fewer calibration samples than the options of the variants can be judged with."""
    calibration = draft.data.calibration if draft.data is not None else None
    if calibration is None or calibration.samples >= FEWEST_SAMPLES:
        return
    asking = [
        (name, option)
        for name, v in draft.variants.items()
        for option in _holding_out(v, words.chooses_method(v.precision))
    ]
    if asking:
        named = ", ".join(
            f"{option}: {shown(draft.variants[name].options[option])} of {name}" for name, option in asking
        )
        text = (
            f"needs at least {FEWEST_SAMPLES} for {named}, got {calibration.samples}: up to half of them judge what "
            f"the others chose, and fewer than {FEWEST} tell no gain from chance"
        )
        needs: list[KeyPath] = [("variants", name, option) for name, option in asking]
        problems.cross(("data", "calibration", "samples"), text, *needs)


def _holding_out(variant: Variant, chooses_method: bool) -> Iterator[str]:
    if variant.options.get("method") == "auto" and chooses_method:
        yield "method"
    if variant.options.get("float_share"):
        yield "float_share"
    yield from (option for option, value in _HOLDING_OUT.items() if variant.options.get(option) == value)
