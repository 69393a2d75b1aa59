"""What is to blame for a disagreement: which stage or runtime brought it in, then which node, and how to see it."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import OptimizerError, StageError
from optimizer.measure.agreement import DisagreementError, unlike
from optimizer.pipeline.reproduce import Case, Way, command_line, write_script
from optimizer.types import Artifact

if TYPE_CHECKING:
    from optimizer.graph.blame import Blame, Execute
    from optimizer.runtime.session import Array, Feed, Session
    from optimizer.stage import Stage, Tolerance


@dataclass(frozen=True, slots=True)
class Link:
    """One artifact of the chain from the module to what executes, as its own check opens it.

    `tolerance` is against the link before. `graph`: its ONNX file, None where it is no graph. `builds` says how any
    part of a graph is executed the same way.
    """

    name: str
    opens: Callable[[], Session]
    tolerance: Tolerance
    graph: Path | None
    builds: Execute | None
    way: Way
    file: Path
    module: Path | None = None  # the folder of a PyTorch module


def explained(error: DisagreementError, chain: Sequence[Link], folder: Path) -> StageError:
    """Return the error with the link and the node that are to blame and the script that reproduces it, in `folder`.

    Raises: nothing for a search that fails: the error says so and stands.
    """
    if error.feed is None or len(chain) < 2:
        return error
    try:
        told, script = _search(error, chain, folder)
    except Exception as failure:  # onnx, protobuf, torch and the runtimes share no base; what was found must stand
        told, script = [f"the search for the cause stopped: {type(failure).__name__}: {failure}"], None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "search.txt").write_text(traceback.format_exc(), encoding="utf-8")
    lines = [*([error.hint] if error.hint else []), *told]
    if script is not None:
        lines.append(f"reproduce: {command_line(script)}")
    return StageError(error.what, where=error.where, hint="\n".join(lines))


def _search(error: DisagreementError, chain: Sequence[Link], folder: Path) -> tuple[list[str], Path | None]:
    feed = error.feed
    assert feed is not None
    place, outputs, told = _first_unlike_link(error, chain)
    if place is None:
        return told, None
    before, link = chain[place - 1], chain[place]
    with tempfile.TemporaryDirectory(prefix="blame-") as scratch:
        blame = _node(error, before, link, Path(scratch))
        if blame is not None:
            told.append(blame.sentence())
        cases = {"whole": Case(link.file, feed, outputs)}
        if blame is not None and blame.part is not None and link.way.format == "onnx":
            cases["part"] = Case(blame.part, blame.feed, blame.expected)
        about = f"{error.where}: {error.what}"
        way = replace(link.way, samplewise=error.samplewise)
        script = write_script(folder, "\n".join((about, *told)), cases, way, link.tolerance)
    return told, script


def _first_unlike_link(
    error: DisagreementError, chain: Sequence[Link]
) -> tuple[int | None, Mapping[str, Array], list[str]]:
    """Run the failing feed through every link; return the first that leaves the one before it, with what that gave."""
    feed = error.feed
    assert feed is not None
    agree: list[str] = []
    expected = _infer(chain[0].opens, feed)
    for place, link in enumerate(chain[1:], 1):
        before = chain[place - 1].name
        try:
            found = _infer(link.opens, feed)
        except OptimizerError as failure:
            return place, expected, [f"brought in by {link.name}: {before} takes this input, it fails: {failure.what}"]
        if not expected.keys() <= found.keys() or any(
            unlike((expected[name], found[name]), link.tolerance, samplewise=error.samplewise) for name in expected
        ):
            said = f"brought in by {link.name}: on this input {before} still agrees with what it came from"
            return place, expected, [f"{said} ({', '.join(agree)})" if agree else f"brought in by {link.name}"]
        agree.append(f"{link.name} like {before}")
        expected = found
    return None, {}, [f"no single step leaves its tolerance: {'; '.join(agree)}. Their small errors add up"]


def _infer(opens: Callable[[], Session], feed: Feed) -> dict[str, Array]:
    with closing(opens()) as session:
        return session.infer(feed)


def _node(error: DisagreementError, before: Link, link: Link, scratch: Path) -> Blame | None:
    """Find the node: by prefixes where a runtime executes the graph of the link before, else by shared tensors."""
    from optimizer.graph.blame import Sides, first_wrong_node
    from optimizer.graph.prefix import Cuts
    from optimizer.graph.unlike import unlike_the_graph, unlike_the_module

    feed = error.feed
    if feed is None or link.builds is None:
        return None

    def differ(expected: Array, found: Array) -> bool:
        return unlike((expected, found), link.tolerance, samplewise=error.samplewise)

    if before.module is not None and link.graph is not None:
        from optimizer.runners.module_outputs import module_outputs

        sides = Sides(link.builds, link.builds, differ, scratch)
        return unlike_the_module(*module_outputs(before.module, feed), Cuts(link.graph), feed, sides)
    if before.graph is None or before.builds is None:
        return None
    sides = Sides(before.builds, link.builds, differ, scratch)
    if link.graph is None or link.graph == before.graph:
        return first_wrong_node(Cuts(before.graph), feed, sides)
    return unlike_the_graph(Cuts(before.graph), Cuts(link.graph), feed, sides)


def by_judge(path: Path, feed: Feed) -> dict[str, Array]:
    """Execute an ONNX file as the judge does, on what of the feed it reads."""
    from optimizer.judge import open_judge

    return _on(open_judge(path)[0], feed)


def as_opened(opens: Callable[[Artifact], Session | str]) -> Execute:
    """Execute an ONNX file in its folder the way that an artifact is opened."""

    def run(path: Path, feed: Feed) -> dict[str, Array]:
        session = opens(Artifact("onnx", path.parent, ""))
        if isinstance(session, str):
            raise StageError(session)
        return _on(session, feed)

    return run


def _on(session: Session, feed: Feed) -> dict[str, Array]:
    with closing(session):
        return session.infer({spec.name: feed[spec.name] for spec in session.inputs})


def judged(name: str, artifact: Artifact, tolerance: Tolerance) -> Link:
    """Return the link of a graph as the judge executes it: as written, narrow floats rounded after every operator."""
    from optimizer.judge import open_judge

    def opens() -> Session:
        return open_judge(artifact.file)[0]

    way = Way("onnxruntime", optimize=False, emulated=_is_narrow(artifact.file))
    return Link(name, opens, tolerance, artifact.file, by_judge, way, artifact.file)


def _is_narrow(path: Path) -> bool:
    import onnx

    from optimizer.graph.rounding import narrow_formats

    return bool(narrow_formats(onnx.load(path, load_external_data=False)))


def of_stage(
    name: str, stage: Stage, sources: Mapping[str, Artifact], made: Artifact, tolerance: Tolerance
) -> list[Link]:
    """Return the chain of one stage's check: its parent, its graph as written, and that as its target executes it."""
    role, parent = next(iter(sources.items()))
    graph = parent.file if parent.format == "onnx" else None

    def opens_parent() -> Session:
        return stage.open_parent(sources)

    def opens() -> Session:
        return opened(stage.open_output(made))

    builds = as_opened(lambda part: stage.open_parent({**sources, role: part})) if graph else None
    module = parent.path if parent.format == "checkpoint" and parent.path.is_dir() else None
    first = Link("its parent", opens_parent, tolerance, graph, builds, Way("onnxruntime"), parent.path, module)
    if made.format == "onnx":
        written = judged(f"the graph that '{name}' wrote", made, tolerance)
        executed = f"the execution of that graph (right as written, wrong as '{name}' has it executed)"
        optimized = Way("onnxruntime", optimize=True)
        return [
            first,
            written,
            Link(executed, opens, tolerance, made.file, as_opened(stage.open_output), optimized, made.file),
        ]
    engine = Way(str(getattr(stage, "package", made.format)), made.format, "cuda:0")
    return [first, Link(f"'{name}'", opens, tolerance, None, rebuilt(stage, role), engine, made.file)]


def rebuilt(stage: Stage, role: str) -> Execute:
    """Execute a part of a graph by running the stage on it: an engine of its own, with the same parameters."""
    from optimizer.stage import StageContext

    given = {"at_least": 0.0} if "at_least" in type(stage).model_fields else {}  # a part delivers what it delivers
    free = stage.model_copy(update=given)

    def no_samples(split: str) -> object:
        raise StageError(f"a part of a graph is built without samples, '{split}' was asked for", where=stage.name)

    def run(path: Path, feed: Feed) -> dict[str, Array]:
        workdir = path.parent / "built"
        workdir.mkdir()
        context = StageContext(path.parent / "log", lambda _: None, lambda *_: None, no_samples)  # type: ignore[arg-type]
        free.run({role: Artifact("onnx", path.parent, "")}, workdir, context)
        return _on(opened(free.open_output(Artifact(stage.produces, workdir, ""))), feed)

    return run


def opened(session: Session | str) -> Session:
    """Return the session. Raises: StageError with the sentence that stands in its place."""
    if isinstance(session, str):
        raise StageError(session)
    return session
