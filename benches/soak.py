"""Kills trainings with SIGKILL at random moments, goes on with each until it ends, and compares.

    python3 benches/soak.py [--kills 200] [--seed 1] [--folder DIR] [--regimes tokenisers dpo ...]

The regimes take turns: the tokenisers (text, pictures, sounds, both recognisers), pretraining, and
adapters that learn replies (SFT), preferences (DPO) and what a rule rewards (GRPO). What a run that was
killed and gone on with leaves must have the bits of one that was left alone: the model, the adapter or the
tokenisers, and the log of which samples each step had. Each start has one thread or two, at random. Needs
the built program (cargo build --release, or its path in DANLU) and Python's standard library. Prints a
table; ends with an error if any run differs.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DANLU = Path(os.environ.get("DANLU", ROOT / "target/release/danlu"))

# Tokenisers of seconds.
TOKENISERS = """[image]
levels = [4, 4, 4]
channels = 8
blocks = 1
steps = 40
batch = 2
semantic = { steps = 20, batch = 2, channels = 4, width = 8 }
[audio]
levels = [4, 4, 4]
channels = 16
blocks = 1
steps = 40
batch = 2
clip = 8
semantic = { steps = 20, batch = 2, channels = 4, width = 8, seconds = 1.0 }
"""

# Seconds of training. A checkpoint is due by the clock as well as by steps.
RECIPE = """# Seconds of training, to be killed again and again.
name = "soak"
[data]
packs = ["{root}/packs/sample"]
scenes = 8
variants = 1
concepts = 8
[text]
vocabulary = 400
train_bytes = 20000
{tokenisers}[model]
depth = 2
width = 32
head_dim = 8
[train]
steps = 100
rows = 2
window = 160
warmup = 5
checkpoint = 5
validate = 40
[checkpoint]
minutes = 0.002
[mixture]
name_en = 1.0
draw_en = 1.0
transcribe_en = 1.0
text_en = 0.5
"""

TUNE = """name = "{name}"
model = "{base}"
[[data]]
file = "{file}"
[train]
steps = {steps}
rows = 2
window = 96
warmup = 5
checkpoint = 3
validate = {steps}
[lora]
rank = 4
dropout = 0.1
[objective]
{objective}
"""

# Name, rows, objective, steps.
TUNES = [
    ("sft", "replies.jsonl", 'kind = "reply"', 150),
    ("dpo", "pairs.jsonl", 'kind = "dpo"\npairs = 2', 150),
    ("grpo", "questions.jsonl", 'kind = "grpo"\nreward = "contains"\nquestions = 2\nreplies = 8\nmax_tokens = 6', 60),
]


class Regime:
    """One way of training: how it is started, gone on with, and what it leaves."""

    def __init__(self, name, start, resume, results, logs, prepare=lambda run: None):
        self.name, self.start, self.resume, self.prepare = name, start, resume, prepare
        self.results, self.logs = results, logs
        self.kills = self.resumed = self.early = self.runs = self.same = self.samples = self.fallback = 0

    def command(self, run):
        verb = self.resume if (run / "recipe.toml").exists() else self.start
        return verb(run)


def regimes(at):
    """All of them, and what they need."""
    (at / "soak.toml").write_text(RECIPE.format(root=ROOT, tokenisers=TOKENISERS))
    base = at / "pretraining-base"
    replies = [f"{a}? It is {b}." for a, b in zip("abcdefgh", "stuvwxyz")]
    turns = lambda text: [{"role": "user", "content": text[:2]}, {"role": "assistant", "content": text[3:]}]
    lines(at / "replies.jsonl", [{"messages": turns(text)} for text in replies])
    # Whatever has an `e` is rewarded, which a base of seconds hits now and then.
    asks = [{"messages": turns(text)[:1], "expected": "e"} for text in replies]
    lines(at / "questions.jsonl", asks)
    pairs = [{"prompt": text[:2], "chosen": text[3:], "rejected": text[:2]} for text in replies]
    lines(at / "pairs.jsonl", pairs)

    def given_tokenisers(run):
        shutil.copytree(at / "tokenisers-base/tokenisers", run / "tokenisers")
        shutil.copy(at / "tokenisers-base/tokenisers.html", run)

    recipe = at / "soak.toml"
    found = [
        Regime(
            "tokenisers",
            lambda run: ["tokenizer", "train", recipe, "--out", run],
            lambda run: ["tokenizer", "train", "--resume", run],
            ["tokenisers"],
            ["image-audit.jsonl", "audio-audit.jsonl", "image-semantic-audit.jsonl", "audio-semantic-audit.jsonl"],
        ),
        Regime(
            "pretraining",
            lambda run: ["train", recipe, "--out", run],
            lambda run: ["train", "--resume", run],
            ["model", "codes.bin"],
            ["audit.jsonl"],
            given_tokenisers,
        ),
    ]
    for name, file, objective, steps in TUNES:
        text = TUNE.format(name=name, base=base, file=file, objective=objective, steps=steps)
        (at / f"{name}.toml").write_text(text)
        found.append(
            Regime(
                name,
                lambda run, name=name: ["tune", at / f"{name}.toml", "--out", run],
                lambda run: ["tune", "--resume", run],
                ["adapter"],
                ["audit.jsonl"],
            )
        )
    return found


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(words, log, threads):
    words = [DANLU, *map(str, words), "--threads", str(threads)]
    return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)


def passed_over(log):
    """Checkpoints that had to be passed over because they were not whole."""
    return len(re.findall(r"going on from \S+ instead", log.read_text())) if log.exists() else 0


def files(run, names):
    """Every file under some names in a run, with its bytes."""
    out = {}
    for name in names:
        path = run / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                out[str(file.relative_to(run))] = file.read_bytes()
    return out


def one_run(regime, at, rng, most):
    """Kills a run up to `most` times, lets it end, and compares it with the one that was left alone."""
    base, run = at / f"{regime.name}-base", at / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    regime.prepare(run)
    log_path = at / f"{regime.name}.log"
    before = passed_over(log_path)
    killed = 0
    with open(log_path, "a") as log:
        while True:
            child = start(regime.command(run), log, rng.choice([1, 2]))
            if killed < most:
                # Anywhere in what a whole run takes.
                deadline = time.monotonic() + 0.02 + rng.random() * regime.seconds
                while child.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.002)
                if child.poll() is None:
                    child.kill()
                    child.wait()
                    killed += 1
                    regime.kills += 1
                    regime.resumed += any(run.rglob("step-*/manifest.json"))
                    regime.early += not (run / "recipe.toml").exists()
                    continue
            if child.wait() != 0:
                sys.exit(f"{regime.name}: a run that was gone on with ended with an error; see {log_path}")
            break
    regime.fallback += passed_over(log_path) - before
    regime.runs += 1
    wanted, found = files(base, regime.results), files(run, regime.results)
    regime.same += wanted == found
    if wanted != found:
        differ = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
        print(f"{regime.name}: {', '.join(differ)} differ", file=sys.stderr)
    audit = subprocess.run([DANLU, "debug", run, "--audit"], cwd=ROOT, capture_output=True, text=True)
    clean = audit.returncode == 0 and files(base, regime.logs) == files(run, regime.logs)
    regime.samples += clean
    if not clean:
        print(f"{regime.name}: {audit.stdout}{audit.stderr}", file=sys.stderr)
    if not clean or wanted != found:
        shutil.copytree(run, at / f"{regime.name}-differs-{regime.runs}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder")
    parser.add_argument("--regimes", nargs="*")
    args = parser.parse_args()
    at = Path(args.folder or tempfile.mkdtemp()).resolve()
    at.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    found = regimes(at)
    for regime in found:
        base = at / f"{regime.name}-base"
        base.mkdir()
        regime.prepare(base)
        began = time.monotonic()
        with open(at / f"{regime.name}-base.log", "w") as log:
            code = start(regime.command(base), log, 2).wait()
        if code != 0:
            sys.exit(f"{regime.name}: the run that was left alone failed; see {log.name}")
        regime.seconds = time.monotonic() - began
    chosen = [r for r in found if not args.regimes or r.name in args.regimes]
    while sum(r.kills for r in chosen) < args.kills:
        # The one with the fewest kills is next, so each gets its share.
        regime = min(chosen, key=lambda r: r.kills)
        one_run(regime, at, rng, min(5, args.kills - sum(r.kills for r in chosen)))
        print(f"{sum(r.kills for r in chosen)} kills", file=sys.stderr)
    table(chosen)
    if any(r.same < r.runs or r.samples < r.runs for r in chosen):
        sys.exit(1)


def table(chosen):
    heads = ["kills", "with a checkpoint", "before any file", "fell back", "runs", "same bits", "same samples"]
    print(f"{'regime':14}" + "".join(f"{h:>{len(h) + 2}}" for h in heads))
    rows = [(r.name, [r.kills, r.resumed, r.early, r.fallback, r.runs, r.same, r.samples]) for r in chosen]
    rows.append(("all", [sum(column) for column in zip(*(values for _, values in rows))]))
    for name, values in rows:
        print(f"{name:14}" + "".join(f"{v:>{len(h) + 2}}" for h, v in zip(heads, values)))


if __name__ == "__main__":
    main()
