"""Train the intent classifier, some minutes on two cores:  python train.py DATA [--out FILE]."""

import argparse
import pathlib
import time

import numpy as np
import torch
from data import Sentences, sentences
from model import Intents
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
EPOCHS, BATCH, RATE = 12, 64, 2e-3


def padded(chosen: list[tuple[dict[str, np.ndarray], int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, mask and intents of a batch, filled up with zeros to its longest sentence."""
    longest = max(len(inputs["ids"]) for inputs, _ in chosen)
    ids, mask = (torch.zeros(len(chosen), longest, dtype=torch.int64) for _ in range(2))
    for row, (inputs, _) in enumerate(chosen):
        ids[row, : len(inputs["ids"])] = torch.from_numpy(inputs["ids"])
        mask[row, : len(inputs["ids"])] = 1
    return ids, mask, torch.tensor([intent for _, intent in chosen])


def accuracy(model: Intents, split: Sentences) -> float:
    right = 0
    for start in range(0, len(split), 100):
        ids, mask, intents = padded([split[i] for i in range(start, min(start + 100, len(split)))])
        right += int((model(ids, mask).argmax(1) == intents).sum())
    return right / len(split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=pathlib.Path, help="the folder that holds clinc150/data_full.json")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "checkpoint.safetensors")
    arguments = parser.parse_args()
    texts = str((arguments.data / "clinc150" / "data_full.json").absolute())
    train, test = sentences("train", texts), sentences("test", texts)
    torch.manual_seed(0)
    model = Intents(len(train.vocabulary) + 1, len(train.intents))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    started = time.perf_counter()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train)).split(BATCH):
            ids, mask, intents = padded([train[int(i)] for i in chosen])
            dropped = torch.where(torch.rand(ids.shape) < 0.1, 0, ids)  # words that were never seen occur in use
            loss = torch.nn.functional.cross_entropy(model(dropped, mask), intents, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        share = accuracy(model.eval(), test)
    save_file(model.state_dict(), arguments.out)
    print(
        f"trained in {time.perf_counter() - started:.0f} s: {len(train.vocabulary) + 1} words, "
        f"{len(train.intents)} intents, top-1 on the test split {share:.4f}"
    )


if __name__ == "__main__":
    main()
