"""The baseline for "time to quality": a GPT-2 style model, AdamW, a fixed text set, half an hour.

    python time_to_quality.py --pack packs/out/texts --tokenizer models/reference/tokenizer.json \\
        --minutes 30 --out curve.jsonl

Every row of the curve has the seconds spent in training steps (validation, reading and compiling
are not counted), steps, tokens, and the validation loss in nats per byte: all nats of the
validation documents over their UTF-8 bytes, so that other tokenisers compare. `nats_per_byte`
counts the end token of each document, `text_only` does not. The last row is on all validation
documents, the others on the first `--curve-bytes` of each file.

A run that is stopped goes on from its last row when started again with the same options. Warm-up
and cosine follow the clock, not the steps, so that a run ends at its smallest rate on any machine.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
from tokenizers import Tokenizer

from pytorch import ARCHITECTURES, Sizes, adamw, keep_pages, set_up

FILES = ("en", "zh", "code")
END_NAMES = ("<|endoftext|>", "<|end|>", "<|im_end|>", "<end>", "<eos>", "</s>")
IGNORED = -100
# A run may go on with other values of these.
FREE = {"threads", "out", "fresh", "compile", "every", "seconds_a_step"}


# --- text ----------------------------------------------------------------------------------------


def read_texts(pack, language):
    """Training texts and validation texts of one file."""
    train, validation = [], []
    with open(pack / f"texts-{language}.jsonl", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            if not isinstance(row.get("text"), str):
                sys.exit(f"texts-{language}.jsonl, line {number}: expected a text")
            (validation if row.get("split") == "val" else train).append(row["text"])
    return train, validation


def end_token(tokenizer, name):
    """Id of the token between documents, and how many ids there are with it."""
    count = tokenizer.get_vocab_size()
    if name and tokenizer.token_to_id(name) is None:
        sys.exit(f"--end-token: the tokeniser has no {name}")
    known = (tokenizer.token_to_id(n) for n in ([name] if name else END_NAMES))
    found = next((i for i in known if i is not None), None)
    return (count, count + 1) if found is None else (found, count)


def pack_documents(tokenizer, texts, end):
    """One line of ids: an end token, then every document with an end token after it."""
    ids = [end]
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(end)
    return torch.tensor(ids)


def first_bytes(texts, limit):
    """The first documents up to `limit` bytes, one at least."""
    total, taken = 0, []
    for text in texts:
        total += len(text.encode())
        if taken and total > limit:
            break
        taken.append(text)
    return taken


def is_lossless(tokenizer, texts):
    """Whether the tokeniser gives texts back: where it does not, bytes are a false measure."""
    return all(
        tokenizer.decode(tokenizer.encode(t, add_special_tokens=False).ids,
                         skip_special_tokens=False) == t for t in texts)


# --- training ------------------------------------------------------------------------------------


def rate_at(share, o):
    """Learning rate after a share of the time: a line up, then half a cosine down."""
    if share < o.warmup_share:
        return o.rate * max(share / o.warmup_share, 1e-3)
    x = min(1.0, (share - o.warmup_share) / (1 - o.warmup_share))
    return o.rate * (o.final + (1 - o.final) * 0.5 * (1 + math.cos(math.pi * x)))


def batch_at(ids, step, o):
    """Inputs and targets `[rows, window]` at random places, the same for the same step."""
    dice = torch.Generator().manual_seed(o.seed * 1_000_003 + step)
    starts = torch.randint(len(ids) - o.window, (o.rows,), generator=dice)
    rows = ids[starts[:, None] + torch.arange(o.window + 1)]
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def nats(model, ids, end, o):
    """Total nats of a line of ids after its first: of all of them, and without end tokens."""
    count = -(-(len(ids) - 1) // o.window) * o.window
    pad = count - (len(ids) - 1)
    inputs = torch.cat([ids[:-1], ids.new_full((pad,), end)]).view(-1, o.window)
    targets = torch.cat([ids[1:], ids.new_full((pad,), IGNORED)]).view(-1, o.window)
    total, text = 0.0, 0.0
    for x, y in zip(inputs.split(o.rows), targets.split(o.rows)):
        each = model(x, y, reduction="none")
        total += each.sum(dtype=torch.float64).item()
        text += each[y.flatten() != end].sum(dtype=torch.float64).item()
    return total, text


def validate(model, sets, end, o):
    """Nats per byte over all files, and of each."""
    out, sums, size = {}, [0.0, 0.0], 0
    for language, (ids, count) in sets.items():
        found = nats(model, ids, end, o)
        out[language] = round(found[0] / count, 5)
        sums = [a + b for a, b in zip(sums, found)]
        size += count
    return {"nats_per_byte": round(sums[0] / size, 5), "text_only": round(sums[1] / size, 5), **out}


class Run:
    """State of a run, and its two files: the curve and, beside it, the checkpoint."""

    def __init__(self, o, model, optimiser):
        self.o, self.model, self.optimiser = o, model, optimiser
        self.step, self.seconds, self.lines = 0, 0.0, []
        self.curve, self.checkpoint = Path(o.out), Path(f"{o.out}.pt")
        self.settings = {k: v for k, v in vars(o).items() if k not in FREE}

    def resume(self):
        """Goes on from the checkpoint where there is one."""
        if self.o.fresh or not self.checkpoint.exists():
            return False
        saved = torch.load(self.checkpoint, weights_only=True)
        for name, value in self.settings.items():
            if saved["settings"].get(name) != value:
                sys.exit(f"{self.checkpoint} was made with --{name.replace('_', '-')} "
                         f"{saved['settings'].get(name)}, not {value}; --fresh starts anew")
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.seconds, self.lines = saved["step"], saved["seconds"], saved["lines"]
        return True

    def record(self, losses, **more):
        """Adds a row to the curve and saves everything."""
        row = {"seconds": round(self.seconds, 2), "step": self.step,
               "tokens": self.step * self.o.rows * self.o.window, **losses, **more}
        self.lines.append(json.dumps(row))
        print(self.lines[-1], flush=True)
        state = {"settings": self.settings, "step": self.step, "seconds": self.seconds,
                 "lines": self.lines, "model": self.model.state_dict(),
                 "optimiser": self.optimiser.state_dict()}
        part = Path(f"{self.checkpoint}.part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)
        part = Path(f"{self.curve}.part")
        part.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        os.replace(part, self.curve)


def train(o):
    """The whole run."""
    keep_pages()
    set_up(o.threads)
    torch.manual_seed(o.seed)
    pack, tokenizer = Path(o.pack), Tokenizer.from_file(o.tokenizer)
    end, vocabulary = end_token(tokenizer, o.end_token)
    lines, short, full = [], {}, {}
    for language in FILES:
        texts, held_out = read_texts(pack, language)
        if not held_out:
            sys.exit(f"texts-{language}.jsonl has no row with the split val")
        if not is_lossless(tokenizer, first_bytes(held_out, o.curve_bytes)):
            print(f"note: the tokeniser does not give {language} back exactly", file=sys.stderr)
        lines.append(pack_documents(tokenizer, texts, end))
        for sets, chosen in ((short, first_bytes(held_out, o.curve_bytes)), (full, held_out)):
            size = sum(len(text.encode()) for text in chosen)
            sets[language] = (pack_documents(tokenizer, chosen, end), size)
    ids = torch.cat(lines)
    padded = -(-vocabulary // 64) * 64
    sizes = Sizes(padded, o.width, o.depth, o.heads, o.window)
    model = ARCHITECTURES[o.arch](sizes)
    optimiser = adamw(model, o.rate, o.decay)
    run = Run(o, model, optimiser)
    forward = torch.compile(model, dynamic=False, fullgraph=True) if o.compile else model
    parameters = list(model.parameters())
    print(f"{len(ids):,} training tokens, {padded} ids, "
          f"{sum(p.numel() for p in parameters):,} parameters", file=sys.stderr)
    if len(ids) <= o.window + 1:
        sys.exit(f"the training text has {len(ids)} tokens, fewer than a window of {o.window}")
    if not run.resume():
        run.record(validate(model, short, end, o))
    # Compiles and takes memory before the clock runs.
    forward(*batch_at(ids, 0, o)).backward()
    optimiser.zero_grad(set_to_none=True)
    limit, due = o.minutes * 60, run.seconds + o.every
    while run.seconds < limit:
        start = time.perf_counter()
        rate = rate_at(run.seconds / limit, o)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = forward(*batch_at(ids, run.step, o))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        train_loss = loss.item()
        run.step += 1
        run.seconds += o.seconds_a_step or time.perf_counter() - start
        if not math.isfinite(train_loss):
            sys.exit(f"step {run.step}: the loss is {train_loss}; lower --rate")
        if run.seconds >= due and run.seconds < limit:
            due = run.seconds + o.every
            run.record(validate(model, short, end, o), train=round(train_loss, 4),
                       rate=float(f"{rate:.3g}"))
    last = json.loads(run.lines[-1])
    if last["step"] != run.step:
        run.record(validate(model, short, end, o))
    if not last.get("all"):
        run.record(validate(model, full, end, o), all=True)


def options():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pack", required=True, help="folder with texts-en, -zh and -code.jsonl")
    p.add_argument("--tokenizer", required=True, help="tokenizer.json of Hugging Face")
    p.add_argument("--end-token", default="", help="between documents; default: one that is known, "
                   "or a new id")
    p.add_argument("--out", default="curve.jsonl", help="the curve; the checkpoint is beside it")
    p.add_argument("--minutes", type=float, default=30.0, help="training time")
    p.add_argument("--seconds-a-step", type=float, default=0.0, help="what a step counts, where "
                   "other work shares the machine: as measured when it was quiet (0: its own time)")
    p.add_argument("--every", type=float, default=120.0, help="training seconds between rows")
    p.add_argument("--curve-bytes", type=int, default=20_000, help="validation bytes of each file")
    p.add_argument("--arch", choices=sorted(ARCHITECTURES), default="gpt")
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--depth", type=int, default=8)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    p.add_argument("--final", type=float, default=0.1, help="last rate as a share of the highest")
    p.add_argument("--warmup-share", type=float, default=0.05, help="share of the time")
    p.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=0, help="0: what OMP_NUM_THREADS says")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument("--fresh", action="store_true", help="do not go on from a checkpoint")
    o = p.parse_args()
    if not 0 < o.warmup_share < 1 or o.minutes <= 0 or o.every <= 0:
        p.error("--warmup-share must be between 0 and 1, --minutes and --every above 0")
    return o


if __name__ == "__main__":
    train(options())
