"""ResNet-18 as latency.py measures it, and a network of one operator in which the cost of a call itself is seen."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class Block(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """Two 3x3 convolutions and a shortcut. Source: He et al. 2015, figure 5 left."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer))
        self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet18(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """ResNet-18 at 224 x 224. Source: He et al. 2015, table 1."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        widths = [64, 64, 128, 256, 512]
        blocks = [
            Block(inner if i == 0 else outer, outer, 2 if i == 0 and inner != outer else 1)
            for inner, outer in itertools.pairwise(widths)
            for i in range(2)
        ]
        self.layers = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def resnet18() -> nn.Module:
    """Random weights from a fixed seed (He initialisation), batch norm scales between 0.3 and 1."""
    torch.manual_seed(0)
    model = ResNet18()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.0)
    return model.eval()


class One(nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """One Relu; the weight is there because a checkpoint has some, and takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


def one() -> nn.Module:
    return One().eval()
