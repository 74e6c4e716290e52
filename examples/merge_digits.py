"""Token merging on a small vision transformer: accuracy and time against r, and a picture.

    python examples/merge_digits.py [--png merged.png]

Trains a ViT whose tokens are the pixels (with their neighbours) of scikit-learn's digits, enlarged
to 12 x 12, then runs it with r tokens merged per layer, untrained for it. The picture shows the
patches of one of scikit-learn's photographs in the colours of the tokens they merged into, by
colour alone.
Needs scikit-learn; the picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastops


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, size: Tensor | None, bias: Tensor | None, r: int):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if bias is None else bias[:, None, None]
        a = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        if r:
            plan = fastops.match_tokens(k, r=r, class_token=True)
            x, size, bias = fastops.merge_tokens(x, plan, size=size, return_size=True)
        return x + self.mlp(self.norm2(x)), size, bias


class SmallViT(nn.Module):
    def __init__(self, tokens: int, dim: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 5, padding=2)
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.1)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.layers = nn.ModuleList(Layer(dim, 4) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, pixels: Tensor, r: int = 0) -> Tensor:
        x = self.embed(pixels).flatten(2).mT + self.position
        x, size, bias = torch.cat([self.cls.expand(len(x), -1, -1), x], 1), None, None
        for layer in self.layers:
            x, size, bias = layer(x, size, bias, r)
        return self.head(x[:, 0])


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    batches = -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()


def picture(path: str) -> None:
    """Patches of a photograph, merged in six steps by their colours, each in the mean colour of the
    token it ended in."""
    import matplotlib.image
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).float() / 255
    patch = 8
    h, w = photo.shape[0] // patch, photo.shape[1] // patch
    grid = photo[: h * patch, : w * patch].reshape(h, patch, w, patch, 3).transpose(1, 2)
    tokens = grid.reshape(1, h * w, -1)
    x, size, source = tokens, torch.ones(1, h * w), None
    for _ in range(6):
        plan = fastops.match_tokens(x - 0.5, ratio=0.4)
        x, size, _ = fastops.merge_tokens(x, plan, size=size)
        source = plan if source is None else source.then(plan)
    means = x.unflatten(-1, (-1, 3)).mean(2)
    merged = fastops.unmerge_tokens(means, source).reshape(h, w, 3)
    merged = merged.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    side_by_side = np.concatenate([photo[: h * patch, : w * patch].numpy(), merged.numpy()], 1)
    matplotlib.image.imsave(path, side_by_side.clip(0, 1))
    print(f"{path}: {h * w} patches in {source.num_out} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--png", help="write the picture here")
    args = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    x = nn.functional.interpolate(x, size=12, mode="bilinear")
    y = torch.from_numpy(digits.target)
    x, held_out, y, labels = x[:1400], x[1400:], y[:1400], y[1400:]
    model = SmallViT(144)
    train(model, x, y, args.epochs)
    model.eval()
    print("r per layer   tokens at the end   accuracy   time")
    with torch.inference_mode():
        for r in (0, 4, 8, 16, 24, 32):
            best = float("inf")
            for _ in range(3):
                begin = time.perf_counter()
                right = (model(held_out, r).argmax(1) == labels).float().mean()
                best = min(best, time.perf_counter() - begin)
            left = 145 - 4 * r
            print(f"{r:11d}   {left:17d}   {right:8.1%}   {best * 1e3:.0f} ms")
    if args.png:
        picture(args.png)


if __name__ == "__main__":
    main()
