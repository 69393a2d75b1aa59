"""Train the U-Net on random tiles, some minutes on two cores:  python train.py DATA [--out FILE]."""

import argparse
import pathlib
import time

import numpy as np
import torch
from data import TILE, pictures, tiles
from model import UNet
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
STEPS, BATCH, RATE = 250, 8, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=pathlib.Path, help="the folder that holds membrane/membrane.zip")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "checkpoint.safetensors")
    arguments = parser.parse_args()
    archive = str((arguments.data / "membrane" / "membrane.zip").absolute())
    images, masks = pictures("train", archive)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    started = time.perf_counter()
    for _ in range(STEPS):
        corners = rng.integers(0, images.shape[1] - TILE, size=(BATCH, 2))
        chosen, turns = rng.integers(0, len(images), size=BATCH), rng.integers(0, 4, size=BATCH)
        places = [
            ((i, slice(y, y + TILE), slice(x, x + TILE)), k)
            for i, (y, x), k in zip(chosen, corners, turns, strict=True)
        ]
        x, wanted = (
            torch.from_numpy(np.stack([np.rot90(whole[place], k) for place, k in places])[:, None])
            for whole in (images, masks)
        )
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    test = tiles("test", archive)
    with torch.inference_mode():
        found = torch.cat([model.eval()(part) for part in torch.from_numpy(test.images).split(8)]).numpy() > 0
    save_file(model.state_dict(), arguments.out)
    right = (found == (test.masks > 0)).mean()
    print(f"trained in {time.perf_counter() - started:.0f} s, {right:.4f} of test pixels right")


if __name__ == "__main__":
    main()
