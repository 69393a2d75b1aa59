"""Train SmallCNN on the digits in a few seconds and write checkpoint.safetensors beside this file."""

import pathlib
import time

import numpy as np
import torch
from data import digits
from model import SmallCNN
from safetensors.torch import save_file

from optimizer.runtime.preprocessing import apply

HERE = pathlib.Path(__file__).parent
# The same steps as data.transform in recipe.yaml, by the same code.
STEPS = [{"resize": [32, 32]}, {"scale": 0.0625}, {"channels": 3}, {"to_chw": True}]
EPOCHS, BATCH = 5, 32


def tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    pictures, labels = digits(split)
    return torch.from_numpy(np.stack([apply(STEPS, p) for p in pictures])), torch.from_numpy(labels).long()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # too small a model for more: threads would only wait for one another
    started = time.perf_counter()
    images, labels = tensors("train")
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    test_images, test_labels = tensors("test")
    with torch.inference_mode():
        accuracy = (model.eval()(test_images).argmax(1) == test_labels).float().mean().item()
    save_file(model.state_dict(), HERE / "checkpoint.safetensors")
    print(f"trained in {time.perf_counter() - started:.1f} s, top-1 on the test split {accuracy:.4f}")


if __name__ == "__main__":
    main()
