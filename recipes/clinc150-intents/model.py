"""A small transformer encoder (Vaswani et al. 2017, arXiv:1706.03762; norm first) that names a sentence's intent."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

HIDDEN, HEADS, LAYERS, WIDE, LONGEST = 128, 4, 3, 512, 64
MASKED = -10000.0  # exp() of it is zero in float32, and float16 can hold it


class Layer(nn.Module):
    """Attention and a feed-forward block, each added to what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.query, self.key, self.value, self.joined = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.widen, self.narrow = nn.Linear(HIDDEN, WIDE), nn.Linear(WIDE, HIDDEN)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        q, k, v = (part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) * (HIDDEN // HEADS) ** -0.5 + mask
        x = x + self.drop(self.joined((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        return x + self.drop(self.narrow(F.gelu(self.widen(self.between(x)))))


class Intents(nn.Module):
    """Token ids and mask (1 where a token stands), both [batch, length], to logits [batch, intents]."""

    def __init__(self, words: int, intents: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, HIDDEN), nn.Embedding(LONGEST, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.last = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, intents)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        present = attention_mask.to(torch.float32)
        mask = (1.0 - present[:, None, None, :]) * MASKED
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        weights = present[:, :, None]
        mean = (self.last(x) * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return self.head(mean)
