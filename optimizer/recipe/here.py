"""The GPU here, where a recipe asks for it: `compute_capabilities: [current]` becomes its number before anything else.

So it stands in every key, and what holds of listed capabilities is asked of it, too.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from typing import TYPE_CHECKING

from optimizer.errors import MissingToolError, RecipeError
from optimizer.graph.builder_options import CURRENT, capability_problems
from optimizer.runtime.cuda import Cuda
from optimizer.stages import VARIANTS

if TYPE_CHECKING:
    from optimizer.recipe.model import Recipe

_OPTION = "compute_capabilities"


def asks_for_the_gpu_here(recipe: Recipe, only: Collection[str] = ()) -> bool:
    """Tell whether an engine of these variants (none: all) is for the GPU here, which is always the first."""
    return bool(_asking(recipe, only))


def with_the_gpu_here(recipe: Recipe, only: Collection[str] = ()) -> Recipe:
    """Return the recipe with the compute capability of the GPU here as its number, where these variants ask for it.

    Raises: MissingToolError without a GPU, RecipeError where the library or a variant does not go with this one.
    """
    asking = _asking(recipe, only)
    if not asking:
        return recipe
    capability = _capability(f"targets.{asking[0]}.{_OPTION}")
    for name in asking:
        _check(recipe, name, capability)
    written = dict(recipe.targets)
    for name in asking:
        options = {**written[name].options, _OPTION: (capability,)}
        written[name] = written[name].model_copy(update={"options": options})
    return recipe.model_copy(update={"targets": written})


def _asking(recipe: Recipe, only: Collection[str]) -> list[str]:
    wanted = [variant for name, variant in recipe.variants.items() if not only or name in only]
    built = {target for variant in wanted for target in variant.targets or recipe.targets}
    options = {name: target.options.get(_OPTION, ()) for name, target in recipe.targets.items() if name in built}
    return [name for name, listed in options.items() if CURRENT in listed]


def _capability(where: str) -> str:
    try:
        gpu = Cuda(0)
    except MissingToolError as error:
        raise MissingToolError(
            f"[{CURRENT}] is the compute capability of the GPU here: it {error.what}",
            where=where,
            hint="List those of the GPUs that will execute the engine, e.g. ['8.6', '8.9']: that needs no GPU.",
        ) from error
    with closing(gpu):
        return gpu.compute_capability


def _check(recipe: Recipe, target: str, capability: str) -> None:
    where = f"targets.{target}.{_OPTION}"
    for _, text in capability_problems([capability]):
        raise RecipeError(f"the GPU here has {capability}, and {text}", where=where)
    for name, variant in recipe.variants.items():
        needed = [s.needs_capability for s in VARIANTS[variant.precision] if s.needs_capability is not None]
        if needed and target in (variant.targets or recipe.targets) and float(capability) < max(map(float, needed)):
            raise RecipeError(
                f"{name} needs a GPU of {max(needed, key=float)} or later, the one here has {capability}",
                where=where,
                hint=f"Leave {target} out of variants.{name}.targets.",
            )
