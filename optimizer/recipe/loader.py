"""A recipe's file into a Recipe, or one error that holds everything wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.environment import check_threads
from optimizer.errors import RecipeError
from optimizer.recipe import checks, files, sections
from optimizer.recipe.document import Document, parse
from optimizer.recipe.model import Data, Gate, Recipe
from optimizer.recipe.validate import mapping
from optimizer.recipe.vocabulary import Vocabulary
from optimizer.recipe.wording import Problems, no_such_file


def load_recipe(
    path: Path,
    settings: Mapping[str, str] | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    model_files: bool = True,
    origin: Path | None = None,
    to_measure: bool = True,
) -> Recipe:
    """Read and check a recipe. `settings` fill `${NAME}`, before the environment's `OPTIMIZE_NAME` does.

    The copy of a recipe inside a run has its model among the run's artifacts (`model_files=False`), and data
    that did not travel with it is looked for where the recipe came from (`origin`). One that is only read
    (`to_measure=False`) may ask for more threads than this machine has.
    Raises: RecipeError with every problem, root cause first, each with line and column; MissingToolError for a sound
    recipe whose threads this process may not use.
    """
    words = vocabulary or Vocabulary.of_this_package()
    text, problems = _read(path)
    document = _parse(text, settings or {}, problems)
    found: dict[str, Any] = {}
    folder = path.absolute().parent
    if document is not None and isinstance(document.data, dict):
        draft = sections.read(document.data, folder, words, problems)
        checks.check(draft, words, problems)
        if origin is not None and draft.data is not None and not _travelled(draft.data, folder):
            folder = origin
        files.check(draft, folder, words, problems, model_files=model_files)
        found = draft.found()
    elif document is not None:
        mapping(document.data, (), problems)  # says that it must be one
    _raise(problems)
    facts: dict[str, Any] = {"path": path.absolute(), "folder": folder, "text": text}
    recipe = Recipe(**found, **facts, settings=document.settings if document else {})
    if to_measure:
        check_threads(recipe.measure.threads)
    return recipe


def _travelled(data: Data, folder: Path) -> bool:
    """Tell whether what the recipe names as data lies beside this copy of it."""
    return (folder / (data.folder or str(data.source).partition(":")[0])).exists()


def load_gate(path: Path) -> Gate:
    """Read a file that holds what stands under `gate:` in a recipe; any metric may be named.

    Raises: RecipeError with every problem.
    """
    text, problems = _read(path)
    document = _parse(text, {}, problems)
    gate = Gate()
    if document is not None:
        gate = sections.read_gate(document.data, (), None, problems)
    _raise(problems)
    return gate


def _read(path: Path) -> tuple[bytes, Problems]:
    try:
        return path.read_bytes(), Problems(str(path))
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except IsADirectoryError as error:
        inside = path / "recipe.yaml"
        meant = f", did you mean '{inside}'?" if inside.is_file() else ""
        raise RecipeError(f"is a folder{meant}", where=str(path)) from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _parse(text: bytes, settings: Mapping[str, str], problems: Problems) -> Document | None:
    """Return the document, or None where nothing below its syntax can be judged."""
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add_plain(f"is no recipe, which is YAML in UTF-8: byte {error.start} of it is no text")
        return None
    document = parse(decoded, settings, os.environ, problems)
    return document if () in document.values else None


def _raise(problems: Problems) -> None:
    if problems:
        raise RecipeError("\n".join(problems.lines()))
