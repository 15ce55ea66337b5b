"""Feeds llm.c's CPU program the benchmark model and turns what it prints into JSON.

Written after the two file formats the program reads. A checkpoint: 256 int32 (magic 20240326,
version 3, longest sequence, vocabulary, layers, heads, width, padded vocabulary), then every tensor
as float32, each kind for all layers together. Tokens: 256 int32 (magic 20240520, version 1, count),
then uint16 ids. Start it by `llmc.sh`, which says where to get llm.c.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import chain

STEP = re.compile(r"^step (\d+): train loss ([-\d.naif]+) \(took ([\d.]+) ms\)")
BATCHES = re.compile(r"^train dataset num_batches: (\d+)")
TOKENS = 1 << 20


def header(*values):
    """256 int32 with `values` first."""
    out = np.zeros(256, dtype="<i4")
    out[: len(values)] = values
    return out.tobytes()


def write_checkpoint(path, o):
    """Random weights as GPT-2 starts: N(0, 0.02), smaller where they write to the residual."""
    rng = np.random.default_rng(0)
    layers, width = o.depth, o.width
    last = 0.02 / (2 * layers) ** 0.5

    def normal(*shape, std=0.02):
        return rng.normal(0.0, std, shape)

    vectors = np.zeros((layers, width))
    padded = -(-o.vocabulary // 128) * 128
    table = np.zeros((padded, width))
    table[: o.vocabulary] = normal(o.vocabulary, width)
    tensors = [
        table,
        normal(o.window, width),
        vectors + 1, vectors,  # first norm
        normal(layers, 3 * width, width), np.zeros((layers, 3 * width)),
        normal(layers, width, width, std=last), vectors,
        vectors + 1, vectors,  # second norm
        normal(layers, 4 * width, width), np.zeros((layers, 4 * width)),
        normal(layers, width, 4 * width, std=last), vectors,
        np.ones(width), np.zeros(width),  # last norm
    ]
    with open(path, "wb") as f:
        f.write(header(20240326, 3, o.window, o.vocabulary, layers, o.heads, width, padded))
        for tensor in tensors:
            f.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())


def write_tokens(path, ids):
    """One shard of ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header(20240520, 1, len(ids)) + ids.astype("<u2").tobytes())


def peak_rss_mb(pid):
    """Most resident memory of another process so far, in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def run(o):
    """Runs the program until it has made the steps asked for."""
    threads = o.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count()
    wanted = o.warmup + o.steps
    losses, milliseconds, said, peak, batch = [], [], [], None, None
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        folder = Path(folder)
        write_checkpoint(folder / "gpt2_124M.bin", o)
        ids = chain.stream(o.vocabulary, TOKENS)
        data = folder / "dev/data/tinyshakespeare"
        write_tokens(data / "tiny_shakespeare_train.bin", ids)
        write_tokens(data / "tiny_shakespeare_val.bin", ids[: TOKENS // 16])
        # Line buffers, or its lines would stay inside it until it ends.
        process = subprocess.Popen(
            ["stdbuf", "-oL", str(Path(o.program).resolve())], cwd=folder, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
        try:
            for line in process.stdout:
                said.append(line)
                if not o.json:
                    print(line, end="", file=sys.stderr)
                if found := BATCHES.match(line):
                    # It prints how many batches the tokens make, hence how large one is.
                    batch = TOKENS // max(1, int(found[1]))
                if found := STEP.match(line):
                    losses.append(float(found[2]))
                    milliseconds.append(float(found[3]))
                    peak = peak_rss_mb(process.pid)
                    if len(losses) == wanted:
                        break
        finally:
            process.kill()
            process.wait()
    if len(losses) < wanted or not batch:
        sys.exit(f"llm.c made {len(losses)} of {wanted} steps; it said:\n" + "".join(said[-15:]))
    result = {
        "engine": "llmc",
        "arch": "gpt",
        "tokens_per_second": round(1000 * batch / statistics.median(milliseconds[o.warmup:]), 2),
        "peak_rss_mb": peak,
        "threads": threads,
        "steps": o.steps,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
    if batch != o.rows * o.window:
        result["note"] = f"built for {batch} tokens a batch, not {o.rows} x {o.window}"
    return result


def options():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--program", required=True, help="train_gpt2 of llm.c, built")
    p.add_argument("--arch", choices=["gpt"], default="gpt")
    p.add_argument("--steps", type=int, default=3, help="steps that are timed")
    p.add_argument("--warmup", type=int, default=1, help="steps before them")
    p.add_argument("--threads", type=int, default=0, help="0: what OMP_NUM_THREADS says")
    p.add_argument("--rows", type=int, default=8, help="rows that the program was built for")
    p.add_argument("--window", type=int, default=512, help="window that the program was built for")
    p.add_argument("--depth", type=int, default=8)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--vocabulary", type=int, default=8192)
    p.add_argument("--json", action="store_true", help="print nothing but the result")
    o = p.parse_args()
    # The program stops by itself after 41 steps.
    if o.steps < 1 or o.warmup < 0 or o.steps + o.warmup > 41:
        p.error("steps must be at least 1, and no more than 41 with the warm-up")
    return o


if __name__ == "__main__":
    print(json.dumps(run(options())))
