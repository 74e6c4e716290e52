"""Train a small classifier, prune it to N:M, fine-tune it, and run it sparse.

    pip install scikit-learn
    python examples/nm_digits.py [--hidden 1024] [--epochs 30]

The data are scikit-learn's bundled 8 x 8 digits. Printed per pattern: test accuracy of the dense
model, after pruning, after fine-tuning the kept weights, and the time of a batch before and after.
"""

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import fastops


def digits() -> tuple[torch.Tensor, ...]:
    """(training images, labels, test images, labels), shuffled, images of 64 numbers."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return x[train], y[train], x[test], y[test]


def train(model: nn.Module, x, y, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x, y) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


@torch.no_grad()
def milliseconds(model: nn.Module, x, repeats: int = 30) -> float:
    times = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - begin)
    return sorted(times[3:])[repeats // 2] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    x, y, test_x, test_y = digits()
    dense = nn.Sequential(
        nn.Linear(64, args.hidden), nn.GELU(),
        nn.Linear(args.hidden, args.hidden), nn.GELU(),
        nn.Linear(args.hidden, 10),
    )  # fmt: skip
    train(dense, x, y, args.epochs, 1e-3)
    before = milliseconds(dense, test_x)
    print(f"dense: accuracy {accuracy(dense, test_x, test_y):.3f}, {before:.2f} ms a batch")
    for pattern in ("2:4", "1:4"):
        model = copy.deepcopy(dense)
        report = fastops.sparsify_(model, pattern)
        pruned = accuracy(model, test_x, test_y)
        train(model, x, y, max(1, args.epochs // 4), 3e-4)
        tuned, after = accuracy(model, test_x, test_y), milliseconds(model, test_x)
        print(report)
        print(
            f"{pattern}: accuracy {pruned:.3f} pruned, {tuned:.3f} fine-tuned; "
            f"{after:.2f} ms a batch, {before / after:.2f} x"
        )


if __name__ == "__main__":
    main()
