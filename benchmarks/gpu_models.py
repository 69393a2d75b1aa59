"""The networks of gpu.py: random weights from a fixed seed, nothing to download.

Each is a factory without arguments, as a recipe's `model.factory` is. Weights of every Linear and Conv2d are drawn so
that activations keep their size from layer to layer: an untrained network whose values die out or explode would judge
no precision.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own abbreviation)

SEED = 20


def _drawn(module: nn.Module) -> nn.Module:
    """Draw weights of variance 2 / fan-in (convolutions) or 1 / fan-in, and batch-norm statistics near 0 and 1."""
    generator = torch.Generator().manual_seed(SEED)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            gain = math.sqrt(2.0) if isinstance(layer, nn.Conv2d) else 1.0
            nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(fan_in), generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, 0.0, 0.02, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0.0, 0.1, generator=generator)
            nn.init.uniform_(layer.running_var, 0.8, 1.2, generator=generator)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
    return module.eval()


class BasicBlock(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """Two 3x3 convolutions and a shortcut. Source: He et al. 2015, figure 5 left."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or given != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(given, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu((found + self.shortcut(x)) * 0.7071)  # keeps the variance, as training would


class ResNet18(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """ResNet-18 at 224 x 224: 11.7 million parameters. Source: He et al. 2015, table 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks: list[nn.Module] = []
        given = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(given, channels, stride), BasicBlock(channels, channels, 1)]
            given = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


class Attention(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """Self-attention of `heads` heads; `mask` is added to the scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        rows, length, width = x.shape
        split = (rows, length, self.heads, width // self.heads)
        q, k, v = (layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(found.transpose(1, 2).reshape(rows, length, width))


class Block(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """Attention and a perceptron, each with a shortcut; `before`: normalized before (ViT) or after (BERT) it."""

    def __init__(self, width: int, heads: int, before: bool) -> None:
        super().__init__()
        self.before = before
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class ViTTiny(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """ViT-Ti/16 at 224 x 224: 12 blocks of width 192, 3 heads, 5.7 million parameters. Source: Touvron et al. 2021."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 16, 16)
        self.token = nn.Parameter(torch.full((1, 1, 192), 0.02))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 197, 192, generator=torch.Generator().manual_seed(SEED)))
        self.blocks = nn.ModuleList(Block(192, 3, True) for _ in range(12))
        self.norm = nn.LayerNorm(192, eps=1e-6)
        self.head = nn.Linear(192, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class BertBase(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """An encoder of BERT-base's size over 128 tokens: 12 blocks of width 768, 12 heads, 109 million parameters.

    Source: Devlin et al. 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, 768)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 128, 768, generator=torch.Generator().manual_seed(SEED)))
        self.norm = nn.LayerNorm(768, eps=1e-6)
        self.blocks = nn.ModuleList(Block(768, 12, False) for _ in range(12))
        self.pooler = nn.Linear(768, 768)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(tokens) + self.positions)
        added = (1.0 - mask)[:, None, None, :] * -10000.0
        for block in self.blocks:
            x = block(x, added)
        return torch.tanh(self.pooler(x[:, 0]))


class SmallCNN(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """The demo's network: recipes/digits-cnn/model.py with drawn weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * 8 * 8, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.conv1(image)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def resnet18() -> nn.Module:
    return _drawn(ResNet18())


def vit_tiny() -> nn.Module:
    return _drawn(ViTTiny())


def bert_base() -> nn.Module:
    return _drawn(BertBase())


def demo_cnn() -> nn.Module:
    return _drawn(SmallCNN())
