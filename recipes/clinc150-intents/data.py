"""Sentences of CLINC150 as word ids; the vocabulary is that of the training sentences, 0 is any other word."""

import json
import pathlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

HERE = pathlib.Path(__file__).parent
FEWEST, LONGEST = 2, 64


def words(text: str) -> list[str]:
    """Return the words and signs of a sentence in lower case."""
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())[:LONGEST]


class Sentences(Sequence):
    """Pairs of ids and mask, each sentence of its own length, and the intent's number."""

    def __init__(self, document: dict[str, list[list[str]]], split: str) -> None:
        counts = Counter(word for text, _ in document["train"] for word in words(text))
        known = sorted(word for word, count in counts.items() if count >= FEWEST)
        self.vocabulary = {word: number for number, word in enumerate(known, 1)}
        self.intents = sorted({intent for _, intent in document["train"]})
        number = {intent: i for i, intent in enumerate(self.intents)}
        self.items = [(text, number[intent]) for text, intent in document[split]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        text, intent = self.items[index]
        ids = np.array([self.vocabulary.get(word, 0) for word in words(text)], dtype=np.int64)
        return {"ids": ids, "attention_mask": np.ones_like(ids)}, intent


def sentences(split: str, texts: str) -> Sentences:
    """Return the sentences of `train`, `val` or `test`."""
    return Sentences(json.loads((HERE / texts).read_text(encoding="utf-8")), split)
