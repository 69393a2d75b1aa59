"""What must hold of targets that build engines: options that their package honours, GPUs that take the variant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optimizer.graph.builder_options import CURRENT, option_problems
from optimizer.recipe.sections import Draft
from optimizer.recipe.vocabulary import Vocabulary
from optimizer.recipe.wording import KeyPath, Problems

_EVERY_ENGINE = 8.0  # the least compute capability of an engine that lists none


def check_engines(draft: Draft, words: Vocabulary, problems: Problems) -> None:
    """Note options that no library honours, profiles that miss a shape, and variants that the GPUs cannot execute."""
    profile = {axis: (sizes.min, sizes.opt, sizes.max) for axis, sizes in draft.profile.items()}
    for name, target in draft.targets.items():
        if words.builds_engine(name):
            for path, text in option_problems(name, target.options, profile):
                problems.cross(("targets", name, *path), text)
    for name, variant in draft.variants.items():
        for place in variant.targets:
            if place in draft.targets:
                _capabilities(draft, words, problems, name, place)


def _capabilities(draft: Draft, words: Vocabulary, problems: Problems, name: str, target: str) -> None:
    """Refuse a variant for which a target would build engines that its GPUs cannot execute."""
    precision = draft.variants[name].precision
    needed = words.needs_capability(precision)
    if needed is None or not words.lists_capabilities(target):
        return
    listed = draft.targets[target].options.get("compute_capabilities", ())
    early = _too_early(listed, needed)
    others = ", ".join(other for other in _that_take_it(draft, words, name) if other != target)
    elsewhere = f", or write variants.{name}.targets: [{others}]" if others else ""
    named = name if name == precision else f"{name} ({precision})"
    path: KeyPath = ("targets", target, "compute_capabilities")
    if early:
        text = (
            f"{named} needs a GPU of {needed} or later, no engine of it is built for {', '.join(early)}: "
            f"leave {'it' if len(early) == 1 else 'them'} out{elsewhere}"
        )
        problems.cross(path, text, ("variants", name))
    elif not listed and float(needed) > _EVERY_ENGINE:
        text = (
            f"{named} needs a GPU of {needed} or later, and the default is all from 8.0 on: "
            f"add compute_capabilities: ['{needed}']{elsewhere}"
        )
        problems.cross(path[:2], text, ("variants", name), at_key=True)


def _too_early(listed: Iterable[str], needed: str) -> list[str]:
    return [capability for capability in listed if capability != CURRENT and float(capability) < float(needed)]


def _that_take_it(draft: Draft, words: Vocabulary, name: str) -> Iterator[str]:
    """Yield those of a variant's own targets that execute its precision, on every GPU that they list."""
    variant = draft.variants[name]
    needed = words.needs_capability(variant.precision)
    for target in variant.targets:
        if target not in draft.targets or not words.takes(target, variant.precision):
            continue
        listed = draft.targets[target].options.get("compute_capabilities", ())
        ahead = needed is not None and words.lists_capabilities(target)
        if not ahead or (needed is not None and not _too_early(listed or (str(_EVERY_ENGINE),), needed)):
            yield target
