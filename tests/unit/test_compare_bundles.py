"""Two bundles: what is checked before, what is computed and timed here, and what a passport is believed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import bundle_pair
import bundle_run
import numpy as np
import pytest

from optimizer.cli import main
from optimizer.compare.bundles import compare_bundles
from optimizer.compare.interleaved import BASELINE, CANDIDATE, Terms, batches, compare_timed
from optimizer.compare.result import Check, Comparison
from optimizer.compare.shipped import read_bundle
from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.measure.series import LatencySession, Series
from optimizer.recipe.model import Gate, MetricLimit, SpeedupLimit
from optimizer.runtime.golden import GOLDEN, read_golden, write_golden

QUICK = Terms(seconds=0.02)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_pair.write(tmp_path_factory.mktemp("bundles") / "before")


def judged(before: Path, after: Path, gate: Gate | None = None) -> Comparison:
    return compare_bundles(before, after, gate, QUICK)


def check(found: Comparison, subject: str) -> Check:
    return next(c for c in found.checks if c.subject.startswith(subject))


def run(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_a_bundle_against_itself_finds_nothing(bundle: Path) -> None:
    found = judged(bundle, bundle)
    assert found.status == "pass"
    assert check(found, "output 'logits'").sentence.startswith("every value is the same, the same answer on 5 of 5")
    assert (check(found, "top1").finding, check(found, "size").finding) == ("pass", "pass")
    latency = check(found, "latency, batch 1")
    assert latency.finding == "shown"
    assert latency.sentence.endswith("the same artifact and runtime, so much is noise")


def test_another_model_is_shown_with_its_numbers_and_how_few_they_are(bundle: Path, tmp_path: Path) -> None:
    # A constant on every logit: other numbers, the same answers.
    found = judged(bundle, bundle_pair.retrained(bundle, tmp_path / "after", bias=0.5))
    said = check(found, "output 'logits'")
    assert said.finding == "shown"
    assert "SQNR " in said.sentence
    assert "largest difference 0.5" in said.sentence
    assert said.sentence.endswith(
        "the same answer on 5 of 5; on 5 golden inputs, which both bundles have: few, so it is shown"
    )
    assert check(found, "output 'best'").after == "equal"


def test_flipped_answers_are_counted(bundle: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(bundle / "model.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(-bundle_run.WEIGHTS, "w"))
    (tmp_path / "after").mkdir()
    onnx.save(model, tmp_path / "after" / "model.onnx")
    found = judged(bundle, bundle_pair.changed(bundle, tmp_path / "after"))
    logits = bundle_run.logits()
    assert not (logits.argmax(1) == (-logits).argmax(1)).any()
    assert "the same answer on 0 of 5" in check(found, "output 'logits'").sentence
    best = check(found, "output 'best'")
    assert best.after == "0.0%"
    assert best.sentence.startswith("0.0% of the values equal; on 5")


def test_the_golden_inputs_of_both_are_used(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "after"
    inputs, outputs = read_golden(bundle / GOLDEN)
    folder.mkdir()
    write_golden(folder / GOLDEN, {n: a[:4] + 1 for n, a in inputs.items()}, {n: a[:4] for n, a in outputs.items()})
    found = judged(bundle, bundle_pair.changed(bundle, folder))
    assert "on 9 golden inputs, those of both bundles" in check(found, "output 'logits'").sentence


def test_an_output_that_is_no_number_any_more_is_a_regression(bundle: Path, tmp_path: Path) -> None:
    """The candidate's own golden inputs show nothing; those of the baseline do."""
    sevens = tmp_path / "sevens"
    inputs, outputs = read_golden(bundle / GOLDEN)
    sevens.mkdir()
    image = inputs["image"].copy()
    image[0, 0, 0, 0] = 7.0
    write_golden(sevens / GOLDEN, {"image": image}, outputs)
    before, after = bundle_pair.changed(bundle, sevens), bundle_pair.breaking(bundle, tmp_path / "after")
    said = check(judged(before, after), "output 'logits'")
    assert (said.finding, said.after) == ("fail", "not finite")
    assert "3 of 30 values are NaN or infinite where the baseline's are finite" in said.sentence
    # What the baseline itself never computed is no regression.
    assert check(judged(after, before), "output 'logits'").finding == "shown"


def test_interfaces_that_differ_are_refused_with_every_difference(bundle: Path, tmp_path: Path) -> None:
    inputs = [{"name": "picture", "dtype": "float32", "shape": ["batch", 3, 2, 2]}]
    outputs = [
        {"name": "logits", "dtype": "float16", "shape": ["n", 3]},
        {"name": "best", "dtype": "int64", "shape": ["n"]},
    ]
    after = bundle_pair.changed(bundle, tmp_path / "after", inputs=inputs, outputs=outputs)
    with pytest.raises(UsageError) as error:
        judged(bundle, after)
    assert error.value.where == str(after)
    said = "input 'image' is missing; input 'picture' is new; output 'logits' is float16[n, 3], was float32[batch, 3]"
    assert error.value.what.endswith(said)  # and how a dynamic axis is called is nobody's business


def test_damage_is_an_error_that_names_the_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = bundle_pair.changed(bundle, tmp_path / "after")
    (after / "model.onnx").write_bytes((after / "model.onnx").read_bytes()[:-1])
    assert run(bundle, after) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"error: {after}: 'model.onnx' was changed" in shown.err
    assert "copy the bundle again" in shown.err


def test_golden_outputs_that_do_not_come_out_are_an_error(bundle: Path, tmp_path: Path) -> None:
    bundle_run.classifier(tmp_path / "after" / "model.onnx", bias=100.0)
    after = bundle_pair.changed(bundle, tmp_path / "after", golden=False)
    with pytest.raises(StageError, match="golden outputs do not come out: output 'logits'") as error:
        judged(bundle, after)
    assert error.value.where == str(after)


def test_what_cannot_execute_here_is_a_missing_tool(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_on = {"runtime": "openvino", "device": "cpu", "packages": {}, "compute_capabilities": None}
    after = bundle_pair.changed(bundle, tmp_path / "after", runs_on=runs_on)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(bundle, after) == 3
    assert "openvino" in capsys.readouterr().err


def test_a_bundle_and_a_report_are_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bundle_run.write_run(tmp_path / "run")
    for pair in ((bundle, report), (report, bundle)):
        assert run(*pair) == 2
        said = capsys.readouterr().err
        assert f"error: {bundle}: is a bundle, and '{report}' is none" in said
        assert "Give two bundles, or the folders of the two runs" in said


def test_fewer_sizes_are_a_regression_and_more_are_not(bundle: Path, tmp_path: Path) -> None:
    fewer = bundle_pair.changed(bundle, tmp_path / "after", profile={"batch": {"min": 1, "opt": 2, "max": 6}})
    said = check(judged(bundle, fewer), "profile")
    assert (said.finding, said.before, said.after) == ("fail", "1 to 8", "1 to 6")
    assert said.sentence == "input 'image' takes fewer sizes at axis 0, 'batch'"
    assert check(judged(fewer, bundle), "profile").finding == "shown"


@pytest.mark.parametrize(("share", "finding"), [(0.97, "fail"), (0.995, "pass"), (1.0, "pass")])
def test_less_of_the_requested_precision_is_a_regression(
    bundle: Path, tmp_path: Path, share: float, finding: str
) -> None:
    precision = {"requested": "int8", "delivered": {"int8": share, "fp32": 1 - share}, "source": None}
    found = judged(bundle, bundle_pair.changed(bundle, tmp_path / "after", precision=precision))
    assert check(found, "precision").finding == finding


def test_another_precision_is_shown(bundle: Path, tmp_path: Path) -> None:
    precision = {"requested": "fp32", "delivered": {"fp32": 1.0}, "source": None}
    said = check(judged(bundle, bundle_pair.changed(bundle, tmp_path / "after", precision=precision)), "precision")
    assert (said.finding, said.before, said.after) == ("shown", "100% int8", "100% fp32")


def test_more_bytes_of_the_artifact_are_a_regression_and_more_of_the_rest_are_not(bundle: Path, tmp_path: Path) -> None:
    slow = bundle_pair.slowed(bundle, tmp_path / "slow")
    said = check(judged(bundle, slow), "size")
    assert said.finding == "fail"
    assert said.after == f"{(slow / 'model.onnx').stat().st_size:,} B"
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "receipt.json").write_text("x" * 10_000)
    assert check(judged(bundle, bundle_pair.changed(bundle, tmp_path / "after")), "size").finding == "pass"


def test_a_planted_slowdown_is_measured_here(bundle: Path, tmp_path: Path) -> None:
    """The passports say the same of both: they are not asked."""
    found = judged(bundle, bundle_pair.slowed(bundle, tmp_path / "slow"))
    said = check(found, "latency, batch 1")
    before, after = (float(text.removesuffix(" ms")) for text in (said.before, said.after))
    assert after > 1.5 * before
    assert "slower beyond the tolerance of 1 %" in said.sentence
    # Where the machine was busy all the time it stays undecided; never does it pass.
    assert said.finding == ("inconclusive" if "were disturbed" in said.sentence else "fail")
    assert found.status == "fail"  # the size, in any case


def session(seed: int, after: float, disturbed: tuple[bool, ...] = ()) -> LatencySession:
    def paces(number: int, pace: float) -> np.ndarray:
        return pace * np.random.default_rng(number).lognormal(0, 0.02, (60, 5))

    sides = {BASELINE: paces(seed, 1.0), CANDIDATE: paces(seed + 1, after)}
    return LatencySession(BASELINE, {name: {1: Series(rounds, 3, disturbed)} for name, rounds in sides.items()})


@pytest.mark.parametrize(("pace", "finding"), [(1.1, "fail"), (1.0, "pass"), (0.5, "pass")])
def test_latency_is_judged_by_the_one_rule(bundle: Path, tmp_path: Path, pace: float, finding: str) -> None:
    before = read_bundle(bundle, "baseline")
    after = read_bundle(bundle_pair.retrained(bundle, tmp_path / "after"), "candidate")
    (said,) = compare_timed(before, after, session(1, pace), None)
    assert said.finding == finding
    assert "99 % interval" in said.sentence
    assert "measured here in turns" in said.sentence
    # Rounds that were disturbed and count all the same decide nothing.
    (said,) = compare_timed(before, after, session(1, pace, (True,) * 60), None)
    assert said.finding == "inconclusive"
    assert "60 of the 60 rounds were disturbed: that decides nothing" in said.sentence


def test_the_same_artifact_is_never_slower(bundle: Path) -> None:
    sides = read_bundle(bundle, "baseline"), read_bundle(bundle, "candidate")
    (said,) = compare_timed(*sides, session(1, 1.5), None)
    assert said.finding == "shown"


def speedup(least: float, batch: int | None = None) -> Gate:
    return Gate(batch=batch, speedup=SpeedupLimit(min=least))


@pytest.mark.parametrize(("least", "finding"), [(0.8, "pass"), (0.95, "fail"), (0.909, "inconclusive")])
def test_a_gate_asks_for_the_speedup_between_the_two(bundle: Path, tmp_path: Path, least: float, finding: str) -> None:
    before = read_bundle(bundle, "baseline")
    after = read_bundle(bundle_pair.retrained(bundle, tmp_path / "after"), "candidate")
    (said,) = compare_timed(before, after, session(1, 1.1), speedup(least))
    assert said.finding == finding
    assert said.sentence.startswith("speedup at batch 1 is 0.9")


def test_a_gates_batch_is_measured_where_both_take_it(bundle: Path) -> None:
    sides = read_bundle(bundle, "baseline"), read_bundle(bundle, "candidate")
    assert batches(*sides, None) == (1,)
    assert batches(*sides, speedup(1.0, batch=4)) == (1, 4)
    assert batches(*sides, speedup(1.0, batch=9)) == (1,)
    said = compare_timed(*sides, session(1, 1.0), speedup(1.0, batch=9))[-1]
    assert (said.finding, said.subject) == ("inconclusive", "latency, batch 9")
    assert "at batch 9, which not both bundles take" in said.sentence


def test_batches_that_one_of_them_refuses_are_left_out(bundle: Path, tmp_path: Path) -> None:
    timed = {str(batch): {"p50": 1.0} for batch in (1, 6, 8)}
    profile = {"batch": {"min": 2, "opt": 2, "max": 6}}
    large = bundle_pair.changed(bundle, tmp_path / "large", latency_ms=timed)
    narrow = bundle_pair.changed(bundle, tmp_path / "narrow", latency_ms=None, profile=profile)
    one, other = read_bundle(large, "baseline"), read_bundle(narrow, "candidate")
    assert batches(one, other, None) == (6,)
    assert batches(other, other, None) == (2,)


def test_a_gate_decides_by_its_limits_alone(bundle: Path, tmp_path: Path) -> None:
    worse = bundle_pair.retrained(
        bundle,
        tmp_path / "after",
        precision={"requested": "int8", "delivered": {"int8": 0.1}, "source": None},
        accuracy={"top1": {"value": 0.5, "samples": 100, "ci95": [0.4, 0.6]}},
    )
    assert judged(bundle, worse).status == "fail"
    asked = Gate(metrics={"top1": MetricLimit(max_drop=0.9)})
    assert judged(bundle, worse, asked).status == "pass"
    assert judged(bundle, worse, Gate(metrics={"top1": MetricLimit(max_drop=0.01)})).status == "fail"
    absent = judged(bundle, worse, Gate(metrics={"top5": MetricLimit(max_drop=0.9)}))
    assert absent.status == "inconclusive"
    assert "top5 is not judged: the passport of the baseline does not hold it" in absent.reasons[0]


def test_both_have_the_threads_of_the_baseline_unless_asked_otherwise(bundle: Path, tmp_path: Path) -> None:
    found = judged(bundle, bundle)
    assert found.notes[-1].endswith("1 CPU thread for both.")
    environment: dict[str, Any] = dict(read_bundle(bundle, "baseline").passport["environment"])
    many = bundle_pair.changed(bundle, tmp_path / "many", environment=environment | {"threads": 10_000})
    with pytest.raises(MissingToolError, match=r"10000 threads are asked for \(so many the baseline was measured with"):
        judged(many, bundle)
    assert "(the candidate was built with 10000)." in judged(bundle, many).notes[-1]
    assert compare_bundles(many, bundle, None, Terms(threads=1, seconds=0.02)).status == "pass"


@pytest.mark.parametrize("option", ["--threads", "--seconds"])
def test_what_is_for_bundles_is_refused_with_reports(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = bundle_run.write_run(tmp_path / "run")
    assert run(report, report, option, 1) == 2
    assert f"error: {option}: is for two bundles, which are measured again" in capsys.readouterr().err


def test_the_command_writes_the_screen_and_the_files_for_ci(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--seconds", 0.02, "--junit", tmp_path / "c.xml", "--markdown", tmp_path / "c.md"]
    assert run(bundle, bundle / "passport.json", *files) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "pass: no regression found beyond the limits stated below"
    assert shown[2].startswith("note: Baseline: tiny int8@onnxruntime on cpu, built with onnxruntime 1.31.1")
    assert (tmp_path / "c.md").read_text().startswith("## pass: ")
    names = {case.get("name") for case in ET.parse(tmp_path / "c.xml").getroot().iter("testcase")}
    assert names == {"output 'logits'", "output 'best'", "top1", "latency, batch 1", "size", "precision"}


def test_comparing_bundles_needs_no_package_that_builds(bundle: Path) -> None:
    code = (
        "import sys; from optimizer.cli import main;"
        "code = main(['compare', sys.argv[1], sys.argv[1], '--seconds', '0.02']);"
        "names = ('torch', 'onnx', 'yaml', 'rich', 'scipy', 'jinja2');"
        "print(code, *(m for m in names if m in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "0"
