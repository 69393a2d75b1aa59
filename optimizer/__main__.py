"""`python -m optimizer` is `optimize`."""

from optimizer.cli import entry

if __name__ == "__main__":
    entry()
