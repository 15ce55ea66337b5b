"""LoRA tuning on the same ids: transformers + peft against Danlu, alternated.

    danlu import model.gguf --out models/smollm2 && danlu export models/smollm2 --format hf --out /tmp/smollm2-hf
    python lora.py --danlu target/release/danlu --model models/smollm2 --hf /tmp/smollm2-hf \\
        --text packs/out/texts/texts-en.jsonl --rounds 3

Both adapt all seven projections with the same rank, scale and learning rate, by AdamW without
decay, from a fresh adapter each round, on the same rows of text. Prints tokens a second and peak
memory of each round, medians, ratios, and the losses step by step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import machine


def write_ids(o, path):
    """Rows of text as ids, `rows x (window + 1)` a step, cut from documents without filling."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(o.hf)
    wanted = o.steps * o.rows * (o.window + 1)
    ids = []
    with open(o.text, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("split") is None:
                ids.extend(tokenizer(row["text"], add_special_tokens=False)["input_ids"])
            if len(ids) >= wanted:
                break
    if len(ids) < wanted:
        sys.exit(f"{o.text}: {len(ids)} ids, fewer than the {wanted} that the steps take")
    import numpy

    numpy.array(ids[:wanted], dtype="<u4").tofile(path)


def measure_peft(o, path):
    """One round of transformers + peft, in this process."""
    import resource
    import time

    import numpy
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(o.hf, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=o.rank, lora_alpha=2 * o.rank, lora_dropout=0.0,
                                             target_modules=targets, task_type="CAUSAL_LM"))
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=o.rate, betas=(0.9, 0.999), weight_decay=0.0)
    ids = numpy.fromfile(path, dtype="<u4").astype("int64").reshape(o.steps, o.rows, o.window + 1)
    losses, seconds = [], []
    for step in torch.from_numpy(ids):
        begun = time.perf_counter()
        logits = model(input_ids=step[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), step[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({
        "engine": "peft",
        "tokens_per_second": o.rows * o.window / statistics.median(seconds[2:] or seconds),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "learns": sum(p.numel() for p in learnt),
        "losses": losses,
    }))


def run(command, threads):
    """The JSON object that a command prints last."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    began = machine.clock()
    out = subprocess.run(command, capture_output=True, text=True, env=env)
    if out.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{out.stderr[-2000:]}")
    result = json.loads(out.stdout.strip().splitlines()[-1])
    return {**result, "stolen": machine.stolen(began)}


def compare(o):
    """Rounds of both, alternated."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.bin"
        write_ids(o, path)
        same = ["--rows", o.rows, "--window", o.window, "--rank", o.rank, "--rate", o.rate]
        same = [str(s) for s in same]
        ours = [o.danlu, "bench", "tune", "--model", o.model, "--ids", path, *same, "--json"]
        theirs = [sys.executable, __file__, "--one", path, "--hf", o.hf, "--steps", str(o.steps),
                  "--threads", str(o.threads), *same]
        rounds = []
        for number in range(o.rounds):
            pair = (run(theirs, o.threads), run(ours, o.threads))
            rounds.append(pair)
            print(f"round {number + 1}: " + ", ".join(
                f"{r['engine']} {r['tokens_per_second']:.0f} tok/s {r['peak_rss_mb']:.0f} MB "
                f"({100 * r['stolen']:.0f} % of the time stolen)"
                for r in pair), flush=True)
    ratios = [d["tokens_per_second"] / p["tokens_per_second"] for p, d in rounds]
    memory = [d["peak_rss_mb"] / p["peak_rss_mb"] for p, d in rounds]
    gaps = [abs(a - b) for p, d in rounds for a, b in zip(p["losses"], d["losses"])]
    print(f"tokens/s: {statistics.median(ratios):.2f} x peft ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"memory:   {statistics.median(memory):.2f} of peft's")
    print(f"losses:   {max(gaps):.4f} nats apart at most")
    for step, (a, b) in enumerate(zip(rounds[-1][0]["losses"], rounds[-1][1]["losses"]), 1):
        print(f"  step {step:3}: peft {a:.4f}, danlu {b:.4f}")


def options():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--danlu", default="target/release/danlu")
    p.add_argument("--model", default="models/smollm2", help="Danlu's folder of the base")
    p.add_argument("--hf", required=True, help="Hugging Face's folder of the same base")
    p.add_argument("--text", default="packs/out/texts/texts-en.jsonl")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--rows", type=int, default=4)
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--rate", type=float, default=2e-4)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    return p.parse_args()


if __name__ == "__main__":
    o = options()
    measure_peft(o, o.one) if o.one else compare(o)
