"""Trains the benchmark model with PyTorch on the CPU and prints its speed.

    OMP_NUM_THREADS=2 python pytorch.py --json                 # eager
    OMP_NUM_THREADS=2 python pytorch.py --compile --json       # torch.compile

It is what somebody who knows PyTorch would write for a CPU: SDPA with `is_causal`, one projection
for queries, keys and values, fused AdamW, gradients set to None, denormals flushed, one inter-op
thread, an allocator that keeps its pages. Everything is in float32.
"""

import argparse
import ctypes
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import chain


@dataclass
class Sizes:
    """Sizes of a model; `kv_heads` and `hidden` are of the qwen architecture only."""

    vocabulary: int = 8192
    width: int = 512
    depth: int = 8
    heads: int = 8
    window: int = 512

    @property
    def head_dim(self):
        """Width of a head."""
        return self.width // self.heads

    @property
    def kv_heads(self):
        """Danlu's rule: the divisor of `heads` nearest to a third of them."""
        divisors = [k for k in range(1, self.heads + 1) if self.heads % k == 0]
        return min(divisors, key=lambda k: abs(3 * k - self.heads))

    @property
    def hidden(self):
        """Danlu's rule: 8/3 of the width, rounded up to a multiple of 64."""
        return -(-(self.width * 8 // 3) // 64) * 64


# --- the GPT-2 family ----------------------------------------------------------------------------


class GptBlock(nn.Module):
    """LayerNorm, causal attention, LayerNorm, GELU MLP of four times the width; biases all over."""

    def __init__(self, s):
        super().__init__()
        self.heads = s.heads
        self.norm1 = nn.LayerNorm(s.width)
        self.qkv = nn.Linear(s.width, 3 * s.width)
        self.out = nn.Linear(s.width, s.width)
        self.norm2 = nn.LayerNorm(s.width)
        self.up = nn.Linear(s.width, 4 * s.width)
        self.down = nn.Linear(4 * s.width, s.width)

    def forward(self, x):
        """`[rows, window, width]` to the same."""
        rows, window, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, window, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, window, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """Learned positions, tied embeddings. `forward` gives the mean cross-entropy in nats."""

    def __init__(self, s):
        super().__init__()
        self.tokens = nn.Embedding(s.vocabulary, s.width)
        self.positions = nn.Embedding(s.window, s.width)
        self.blocks = nn.ModuleList(GptBlock(s) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * s.depth) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def hidden(self, ids):
        """Normalised hidden states `[rows, window, width]`."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, ids, targets, reduction="mean"):
        """Cross-entropy of `targets: [rows, window]`; -100 is ignored."""
        logits = F.linear(self.hidden(ids).flatten(0, 1), self.tokens.weight)
        return F.cross_entropy(logits, targets.flatten(), reduction=reduction)


# --- Danlu's architecture ------------------------------------------------------------------------


def turn(x, cos, sin):
    """Rotary positions on `[rows, heads, window, head_dim]`, the halves of a head being pairs."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class QwenBlock(nn.Module):
    """RMSNorm, grouped queries with QK-norm and rotary positions, RMSNorm, SwiGLU; no biases."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.norm1 = nn.RMSNorm(s.width, eps=1e-6)
        self.qkv = nn.Linear(s.width, (s.heads + 2 * s.kv_heads) * s.head_dim, bias=False)
        self.q_norm = nn.RMSNorm(s.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(s.head_dim, eps=1e-6)
        self.out = nn.Linear(s.heads * s.head_dim, s.width, bias=False)
        self.norm2 = nn.RMSNorm(s.width, eps=1e-6)
        self.gate_up = nn.Linear(s.width, 2 * s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x, cos, sin):
        """`[rows, window, width]` to the same."""
        s, (rows, window, _) = self.s, x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, window, -1, s.head_dim)
        q, k, v = qkv.split((s.heads, s.kv_heads, s.kv_heads), dim=2)
        q = turn(self.q_norm(q).transpose(1, 2), cos, sin)
        k = turn(self.k_norm(k).transpose(1, 2), cos, sin)
        mixed = F.scaled_dot_product_attention(
            q, k, v.transpose(1, 2), is_causal=True, enable_gqa=s.kv_heads != s.heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, window, -1))
        return x + self.feed(self.norm2(x))

    def feed(self, x):
        """The feed-forward, `[rows, window, width]` to the same."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Qwen(nn.Module):
    """Tied embeddings, no position table. `forward` gives the mean cross-entropy in nats."""

    def __init__(self, s):
        super().__init__()
        self.tokens = nn.Embedding(s.vocabulary, s.width)
        self.blocks = nn.ModuleList(QwenBlock(s) for _ in range(s.depth))
        self.norm = nn.RMSNorm(s.width, eps=1e-6)
        std = (3 * s.width) ** -0.5
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * s.depth) if last else std)
        half = s.head_dim // 2
        rates = 10_000.0 ** (-torch.arange(half) / half)
        angles = torch.arange(s.window)[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids, targets, reduction="mean"):
        """Cross-entropy of `targets: [rows, window]`; -100 is ignored."""
        window = ids.shape[1]
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, self.cos[:window], self.sin[:window])
        logits = F.linear(self.norm(x).flatten(0, 1), self.tokens.weight)
        return F.cross_entropy(logits, targets.flatten(), reduction=reduction)


ARCHITECTURES = {"gpt": Gpt, "qwen": Qwen}


# --- training ------------------------------------------------------------------------------------


def keep_pages():
    """Tells glibc to reuse large blocks instead of giving them back after every operation.

    Fresh pages cost a fault each; the usual advice for PyTorch on a CPU is to preload another
    allocator, this has the same effect without one. Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, (1 << 31) - 1)


def set_up(threads):
    """Threads and float mode, once for the process. Returns the threads in use."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_flush_denormal(True)
    return torch.get_num_threads()


def adamw(model, rate, decay=0.1):
    """Fused AdamW, weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def peak_rss_mb():
    """Most resident memory of this process so far, in MB (10^6 bytes)."""
    for line in open("/proc/self/status", encoding="ascii"):
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise RuntimeError("/proc/self/status has no VmHWM")


def run(o):
    """Trains and returns the result as a dictionary."""
    if not o.default_allocator:
        keep_pages()
    threads = set_up(o.threads)
    torch.manual_seed(0)
    sizes = Sizes(o.vocabulary, o.width, o.depth, o.heads, o.window)
    model = ARCHITECTURES[o.arch](sizes)
    optimiser = adamw(model, 3e-4)
    parameters = list(model.parameters())
    forward = torch.compile(model, dynamic=False, fullgraph=True, mode=o.compile_mode) \
        if o.compile else model
    ids = torch.from_numpy(chain.batches(o.vocabulary, o.warmup + o.steps, o.rows, o.window))
    seconds, losses = [], []
    for batch in ids:
        start = time.perf_counter()
        loss = forward(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        if not o.json:
            said = f"step {len(losses)}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s"
            print(said, file=sys.stderr)
    middle = statistics.median(seconds[o.warmup:])
    result = {
        "engine": "pytorch-compiled" if o.compile else "pytorch",
        "arch": o.arch,
        "tokens_per_second": round(o.rows * o.window / middle, 2),
        "peak_rss_mb": peak_rss_mb(),
        "threads": threads,
        "steps": o.steps,
        "loss_first": round(losses[0], 5),
        "loss_last": round(losses[-1], 5),
        "version": torch.__version__,
    }
    if o.compile:
        result["compile_seconds"] = round(max(0.0, seconds[0] - middle), 1)
    return result


def options():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--arch", choices=sorted(ARCHITECTURES), default="gpt")
    p.add_argument("--compile", action="store_true", help="torch.compile the model and its loss")
    p.add_argument("--compile-mode", default="default", help="mode of torch.compile")
    p.add_argument("--steps", type=int, default=10, help="steps that are timed")
    p.add_argument("--warmup", type=int, default=2, help="steps before them; at least 1 to compile")
    p.add_argument("--threads", type=int, default=0, help="0: what OMP_NUM_THREADS says")
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--depth", type=int, default=8)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--vocabulary", type=int, default=8192)
    p.add_argument("--default-allocator", action="store_true", help="leave glibc's thresholds")
    p.add_argument("--json", action="store_true", help="print nothing but the result")
    o = p.parse_args()
    if o.steps < 1 or o.warmup < 0 or o.width % o.heads:
        p.error("steps must be at least 1, warmup at least 0, and width a multiple of heads")
    if o.compile and o.warmup < 1:
        p.error("--compile needs a --warmup of at least 1: the first step compiles")
    return o


if __name__ == "__main__":
    print(json.dumps(run(options())))
