"""What each batch size complains of alike is one note, and nothing of it is lost."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.report.html import render_html
from optimizer.report.markdown import render_markdown
from optimizer.report.notes import notes, together
from optimizer.report.summary import render_summary
from optimizer.report.view import headline
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
SAID = {
    "1": ("waited for a processor in 96 of 96 rounds", "others used 50% of the processors measured on"),
    "16": ("waited for a processor in 80 of 81 rounds", "others used 50% of the processors measured on"),
}
ONCE = (
    "latency: waited for a processor in 96 of 96 (batch 1), 80 of 81 (batch 16) rounds",
    "latency at batches 1, 16: others used 50% of the processors measured on",
)


def report() -> Report:
    document = json.loads(DEMO.read_text())
    document["environment"]["surroundings"] = {batch: {"complaints": list(said)} for batch, said in SAID.items()}
    single = [f"latency at batch {batch}: {said}" for batch, complaints in SAID.items() for said in complaints]
    return Report.model_validate_json(json.dumps(document | {"notes": ["of something else", *single]}))


def test_alike_complaints_of_several_batches_are_said_once_with_the_batches() -> None:
    assert together(SAID) == ONCE
    assert together({"1": SAID["1"]}) == tuple(f"latency at batch 1: {said}" for said in SAID["1"])
    assert together({}) == ()


def test_two_alike_complaints_of_one_batch_stay_two() -> None:
    two = {"1": ("GPU 0 was hot", "GPU 1 was hot"), "2": ("GPU 0 was hot", "GPU 3 was hot")}
    assert together(two) == ("latency at batches 1, 2: GPU 0 was hot", "latency: GPU 1 (batch 1), 3 (batch 2) was hot")


def test_page_markdown_and_screen_say_it_once() -> None:
    found = report()
    tied = "in latency int8@onnxruntime (SQNR 27.6 dB) is not told apart from int8-minmax@onnxruntime (SQNR 25.1 dB)"
    assert notes(found) == ("of something else", *ONCE)
    assert headline(found).reasons[-1] == tied  # beside the verdict, not at the end
    for text in (render_html(found), render_markdown(found), render_summary(found)):
        assert text.count("is not told apart from") == 1
        assert text.count("waited for a processor") == 1
        assert text.count("others used 50%") == 1
        assert "of something else" in text
