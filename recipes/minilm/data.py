"""Sentences of CLINC150 as token ids, cut up as BERT's uncased tokenizer does (WordPiece; Devlin et al. 2018)."""

import json
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

HERE = pathlib.Path(__file__).parent
LONGEST_WORD = 100


class WordPiece:
    """Lower case, no accents, words and punctuation, then the longest pieces that the vocabulary holds."""

    def __init__(self, vocabulary: pathlib.Path) -> None:
        pieces = vocabulary.read_text(encoding="utf-8").splitlines()
        self.ids = {piece: i for i, piece in enumerate(pieces)}

    def __call__(self, text: str) -> np.ndarray:
        inner = [i for word in words(text) for i in self._pieces(word)]
        return np.array([self.ids["[CLS]"], *inner, self.ids["[SEP]"]], dtype=np.int64)

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.ids), None)
            if end is None or len(word) > LONGEST_WORD:
                return [self.ids["[UNK]"]]
            found.append(self.ids[prefix + word[start:end]])
            start = end
        return found


def words(text: str) -> Iterator[str]:
    """Yield words and single signs."""
    plain = unicodedata.normalize("NFD", text.lower())
    word = ""
    for sign in plain:
        if unicodedata.category(sign) == "Mn":
            continue
        if sign.isspace() or is_punctuation(sign):
            if word:
                yield word
            word = ""
            if not sign.isspace():
                yield sign
        else:
            word += sign
    if word:
        yield word


def is_punctuation(sign: str) -> bool:
    return sign in "$+<=>^`|~" or unicodedata.category(sign).startswith("P")


class Sentences(Sequence):
    """Pairs of inputs and no target: an embedding is compared with the float32 model's."""

    def __init__(self, texts: list[str], tokenize: WordPiece) -> None:
        self.texts, self.tokenize = texts, tokenize

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], None]:
        ids = self.tokenize(self.texts[index])
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}, None


def sentences(split: str, texts: str, vocabulary: str) -> Sentences:
    """Return the sentences of `train`, `val` or `test`, each of its own length."""
    document = json.loads((HERE / texts).read_text(encoding="utf-8"))
    return Sentences([text for text, _ in document[split]], WordPiece(HERE / vocabulary))
