"""python -m bench.merge.vit: images per second of a ViT (random weights) with and without merging.

The same model three ways: as it is, patched by fastops, and patched with ToMe's algorithm in plain
PyTorch in the same places. The three take turns, so that what disturbs one disturbs all. Fails
where our patch is slower than either.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

from fastops.integrations import transformers as patches

from ..core.timing import Effort, measure
from ..peers import tome as peer


def plain_patch(model: nn.Module, r: int) -> None:
    """The patch with ToMe's operator calls: keys averaged, matched, merged by scatter_reduce."""
    state: dict[str, torch.Tensor | None] = {}
    model.vit.register_forward_pre_hook(lambda *_: state.clear())

    def forward_of(layer: nn.Module):
        keys: dict[str, torch.Tensor] = {}
        layer.attention.k_proj.register_forward_hook(lambda _, __, out: keys.update(last=out))

        def forward(x, attention_mask=None, **kwargs):
            size = state.get("size")
            bias = None if size is None else size.log()[:, None, None, :, 0]
            attended, _ = layer.attention(layer.layernorm_before(x), bias, **kwargs)
            x = x + attended
            key = keys.pop("last").unflatten(-1, (-1, layer.attention.head_dim)).mean(2)
            merge, _ = peer.tome(key, r, class_token=True)
            x, state["size"] = peer.weighted(merge, x, size)
            return x + layer.mlp(layer.layernorm_after(x))

        return forward

    for layer in model.vit.layers:
        layer.forward = forward_of(layer)


def main() -> int:
    from transformers import ViTConfig, ViTForImageClassification

    parser = argparse.ArgumentParser(prog="python -m bench.merge.vit", description=__doc__)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    models = {}
    for name in ("unpatched", "fastops", "plain PyTorch"):
        torch.manual_seed(0)
        models[name] = ViTForImageClassification(ViTConfig()).eval().to(args.device)
    patches.patch(models["fastops"], r=args.r)
    plain_patch(models["plain PyTorch"], args.r)
    pixels = torch.randn(args.batch, 3, 224, 224, device=args.device)
    with torch.inference_mode():
        calls = {name: [lambda m=model: m(pixels)] for name, model in models.items()}
        times = measure(calls, args.device, Effort(args.seconds, min_rounds=3), cold=False)
        ours, plain = (models[m](pixels).logits for m in ("fastops", "plain PyTorch"))
    base = times["unpatched"].median
    print(f"ViT-B/16, batch {args.batch}, r = {args.r}, {args.device}, torch {torch.__version__}")
    for name, stats in times.items():
        rate = args.batch / stats.median
        print(f"{name:14} {rate:7.2f} images/s  {base / stats.median:.2f}x  ±{stats.spread:.0%}")
    print(f"largest difference of logits between the two patches: {(ours - plain).abs().max():.1e}")
    return int(times["fastops"].median > min(base, times["plain PyTorch"].median))


if __name__ == "__main__":
    sys.exit(main())
