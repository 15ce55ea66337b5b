"""Tiny trainings in PyTorch with clipping alone, troubled as `../troubles.py` troubles Danlu's.

    OMP_NUM_THREADS=1 python troubles.py [--seeds 10] [--steps 150] [--data text|chain]

A clean run, the learning rate times 20 from the middle on, ten steps of tokens that are 70 % noise,
one weight that is no number, and (in a mixture of experts, beside a clean run of its own) a router whose
rows are made equal before each of four steps, so that every token goes to the same experts. AdamW, gradients clipped to a norm of 1, warm-up and a straight line
down at the end: what a careful script does. Prints the loss on held-out batches as a multiple of the
clean run's. It is another task than Danlu's, so only the multiples can be compared: the bytes of the
sample pack's English texts, or the chain of `chain.py`.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import chain
from pytorch import Qwen, Sizes, adamw

# What is done, and the clean run that it is held against.
KINDS = {
    "rate x20": "clean", "noise": "clean", "NaN in a weight": "clean", "router collapse": "clean mixture"}


class Mixture(nn.Module):
    """Four experts of 32, two for each token, with gates that sum to 1; in place of a feed-forward."""

    def __init__(self, width, experts=4, hidden=32, chosen=2):
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(width, 2 * hidden, bias=False) for _ in range(experts))
        self.down = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(experts))
        self.uneven = torch.zeros(())
        for p in self.parameters():
            nn.init.normal_(p, std=(3 * width) ** -0.5)

    def forward(self, x):
        """`[rows, window, width]` to the same; `uneven` is the balancing loss of the Switch transformer."""
        flat = x.flatten(0, 1)
        likely = self.router(flat).softmax(-1)
        gates, which = likely.topk(self.chosen, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, (up, down) in enumerate(zip(self.up, self.down)):
            token, place = (which == number).nonzero(as_tuple=True)
            gate, value = up(flat[token]).chunk(2, dim=-1)
            out = out.index_add(0, token, down(F.silu(gate) * value) * gates[token, place, None])
        sent = F.one_hot(which, len(self.up)).sum(1).float().mean(0)
        self.uneven = len(self.up) * (sent * likely.mean(0)).sum()
        return out.view_as(x)


def mix(model, width):
    """Puts a mixture in place of each feed-forward; returns them."""
    mixtures = [Mixture(width) for _ in model.blocks]
    for block, mixture in zip(model.blocks, mixtures):
        del block.gate_up, block.down
        block.mixture, block.feed = mixture, mixture.forward
    return mixtures


def share(step, steps):
    """Of the peak learning rate: ten steps up, the last 40 % of the steps down."""
    return min(1.0, (step + 1) / 10) * min(1.0, max(0.02, (steps - step) / (0.4 * steps)))


def train(kind, seed, steps, data):
    """Held-out loss at the end; infinity where it is no number."""
    torch.manual_seed(seed)
    sizes = Sizes(vocabulary=512, width=64, depth=2, heads=4, window=160)
    model = Qwen(sizes)
    mixtures = []
    if kind in ("clean mixture", "router collapse"):
        mixtures = mix(model, sizes.width)
    rate = 3e-3
    optimiser = adamw(model, rate)
    rng = np.random.default_rng(seed)
    middle = steps // 2
    for step in range(steps):
        ids = torch.from_numpy(data[step % (len(data) - 8)]).clone()
        if kind == "noise" and middle <= step < middle + 10:
            random = torch.from_numpy(rng.integers(0, sizes.vocabulary, ids.shape))
            hit = torch.from_numpy(rng.random(ids.shape) < 0.7)
            ids = torch.where(hit, random, ids)
        if kind == "NaN in a weight" and step == middle:
            with torch.no_grad():
                next(p for p in model.parameters() if p.ndim == 2).view(-1)[0] = float("nan")
        if kind == "router collapse" and middle <= step < middle + 4:
            with torch.no_grad():
                router = mixtures[seed % 2].router.weight
                router.copy_(router[:1].expand_as(router))
        wrong = 20 if kind == "rate x20" and step >= middle else 1
        for group in optimiser.param_groups:
            group["lr"] = rate * share(step, steps) * wrong
        loss = model(ids[:, :-1], ids[:, 1:])
        loss = loss + sum(0.01 * m.uneven for m in mixtures) / max(1, len(mixtures))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        held = [model(t[:, :-1], t[:, 1:]).item() for t in map(torch.from_numpy, data[-8:])]
    loss = sum(held) / len(held)
    return loss if math.isfinite(loss) else math.inf


def text(steps, rows, window):
    """The bytes of the sample pack's English texts as `[steps, rows, window + 1]` ids."""
    path = Path(__file__).resolve().parents[2] / "packs/sample/texts-en.jsonl"
    bytes_ = "\n".join(json.loads(line)["text"] for line in path.read_text().splitlines()).encode()
    ids = np.frombuffer(bytes_, dtype=np.uint8).astype(np.int64)
    return ids[: steps * rows * (window + 1)].reshape(steps, rows, window + 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--data", choices=["text", "chain"], default="text")
    args = parser.parse_args()
    if args.data == "text":
        data = text(args.steps + 8, 4, 160)
    else:
        data = chain.batches(512, args.steps + 8, 4, 160)
    found = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        losses = {kind: train(kind, seed, args.steps, data) for kind in [*KINDS, *set(KINDS.values())]}
        for kind, clean in KINDS.items():
            found[kind].append(losses[kind] / losses[clean])
    print(f"{args.data}, {args.seeds} seeds, {args.steps} steps; held-out loss over that of the clean run")
    for kind in KINDS:
        print(f"{kind:18} median {statistics.median(found[kind]):.3f}, worst {max(found[kind]):.3f}")


if __name__ == "__main__":
    main()
