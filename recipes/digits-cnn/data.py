"""scikit-learn's handwritten digits: 1,797 real pictures of 8 x 8 grey values from 0 to 16."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures (samples, 8, 8) and labels of `train` (60 %) or `test` (40 %)."""
    pictures, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        pictures.reshape(-1, 8, 8).astype(np.float32), labels, test_size=0.4, random_state=0, stratify=labels
    )
    train_x, test_x, train_y, test_y = parts
    return {"train": (train_x, train_y), "test": (test_x, test_y)}[split]
