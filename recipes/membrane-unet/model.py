"""U-Net (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597), a quarter as wide, with padding and batch norm."""

import torch
from torch import nn

WIDTHS = (16, 32, 64, 128)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions that keep the size."""
    parts: list[nn.Module] = []
    for channels in (inputs, outputs):
        parts += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """Grey tiles [batch, 1, height, width], sizes divisible by 8, to logits of the same shape: above 0 is membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(before, here) for before, here in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        self.pool = nn.MaxPool2d(2)
        narrowing = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in narrowing)
        self.up = nn.ModuleList(block(2 * narrow, narrow) for _, narrow in narrowing)
        self.head = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        passed = []
        x = image
        for i, down in enumerate(self.down):
            x = down(self.pool(x) if i else x)
            passed.append(x)
        for widen, up, beside in zip(self.widen, self.up, passed[-2::-1], strict=True):
            x = up(torch.cat([beside, widen(x)], dim=1))
        return self.head(x)
