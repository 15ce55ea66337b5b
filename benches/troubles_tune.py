"""Injects troubles into tiny tunings and tokenisers, and tells whether the guard saw and named them.

    python3 benches/troubles_tune.py [--seeds 10] [--folder DIR] [--regimes image audio ...]

As `troubles.py` does for pretraining. For every seed an adapter learns replies (SFT), preferences (DPO) and
what a rule rewards (GRPO) on a base of seconds, and the tokenisers of pictures and sounds are learnt: clean
(no incident is wanted), with the learning rate times 20 from a step on, with a weight that is no number, and
SFT on rows whose tokens are noise. Prints the loss at the end over the clean run's: of held-out rows for SFT
and DPO, the smoothed training loss for tokenisers. For DPO the held-out loss is the cross-entropy of the better
reply, which is not what it learns by; so the mean of the training loss over the last 20 steps, which are the
same samples in both runs, stands beside it for all tunings. Needs the built program (cargo build --release, or its path
in DANLU) and Python's standard library.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from soak import DANLU, RECIPE, ROOT, TOKENISERS
from troubles import median

TUNE = """name = "{name}"
seed = {seed}
model = "{base}"
[[data]]
file = "{file}"
[[held_out]]
file = "held-{file}"
[train]
steps = 100
rows = 2
window = 96
rate = 2e-3
warmup = 5
checkpoint = 10
validate = 100
[lora]
rank = 4
[objective]
{objective}
"""

OBJECTIVES = {
    "sft": ("replies.jsonl", 'kind = "reply"'),
    "dpo": ("pairs.jsonl", 'kind = "dpo"'),
    "grpo": ("questions.jsonl", 'kind = "grpo"\nreward = "contains"\nquestions = 2\nreplies = 8\nmax_tokens = 8'),
}

# The steps that trouble begins with. A tokeniser's layers are looked at in turns, one a step, and each has
# to have been seen three times.
AT, TOKENISER_AT = 60, 100


def danlu(*arguments, fault=""):
    env = dict(os.environ, DANLU_FAULT=fault)
    return subprocess.run([DANLU, *map(str, arguments)], env=env, cwd=ROOT, capture_output=True, text=True)


def rows(at, rng):
    """Questions of four words, answered with the words in order."""
    words = "red green blue sky grass tree house dog cat bird sun moon star fish river stone".split()
    for held, count in [("", 300), ("held-", 40)]:
        files = {name: [] for name in ["replies", "pairs", "questions"]}
        for _ in range(count):
            some = rng.sample(words, 4)
            ask = {"role": "user", "content": " ".join(some) + "?"}
            right = " ".join(sorted(some))
            files["replies"].append({"messages": [ask, {"role": "assistant", "content": right}]})
            files["pairs"].append({"prompt": ask["content"], "chosen": right, "rejected": " ".join(some)})
            files["questions"].append({"messages": [ask], "expected": "e"})
        for name, all_rows in files.items():
            text = "".join(json.dumps(row) + "\n" for row in all_rows)
            (at / f"{held}{name}.jsonl").write_text(text)


def incidents(run, phase):
    return [json.loads(p.read_text()) for p in sorted((run / "incidents").glob(f"{phase}[0-9]*.json"))]


def tail(run):
    """Mean training loss of the last 20 steps."""
    path = run / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[-20:]] if path.exists() else []
    return sum(line["loss"] for line in lines) / max(len(lines), 1)


def last(run, log):
    path = run / log
    return json.loads(path.read_text().splitlines()[-1]) if path.exists() else {}


def tune(at, name, seed, slug, fault):
    """Tunes; what became of it: whether it ended, its incidents, the held-out loss."""
    file, objective = OBJECTIVES[name]
    recipe = at / f"{name}-{slug}.toml"
    text = TUNE.format(name=name, seed=seed, base=at.parent / "base", file=file, objective=objective)
    recipe.write_text(text.replace(f'[[held_out]]\nfile = "held-{file}"\n', "") if name == "grpo" else text)
    run = at / f"{name}-{slug}"
    done = danlu("tune", recipe, "--out", run, fault=fault)
    held = last(run, "train.jsonl").get("held_out", {})
    return done, incidents(run, ""), [next(iter(held.values()), float("nan")), tail(run)]


def tokenise(at, seed, part, slug, fault):
    recipe = at / f"tokenisers-{slug}.toml"
    text = RECIPE.format(root=ROOT, tokenisers=TOKENISERS).replace("steps = 40", "steps = 150").replace("steps = 20", "steps = 0")
    recipe.write_text(text.replace('name = "soak"', f'name = "soak"\nseed = {seed}'))
    run = at / f"tokenisers-{slug}"
    done = None if run.exists() else danlu("tokenizer", "train", recipe, "--out", run, fault=fault)
    return done, incidents(run, f"{part}-"), [last(run, f"{part}.jsonl").get("loss", float("nan")), float("nan")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--folder")
    parser.add_argument("--regimes", nargs="*", help="sft, dpo, grpo, image, audio; all by default")
    args = parser.parse_args()
    top = Path(args.folder or tempfile.mkdtemp()).resolve()
    top.mkdir(parents=True, exist_ok=True)
    (top / "base.toml").write_text(RECIPE.format(root=ROOT, tokenisers=TOKENISERS))
    done = danlu("train", top / "base.toml", "--out", top / "base")
    assert done.returncode == 0, done.stderr
    regimes = {name: lambda *a, name=name: tune(a[0], name, *a[1:]) for name in OBJECTIVES}
    for part in ["image", "audio"]:
        regimes[part] = lambda at, seed, slug, fault, part=part: tokenise(at, seed, part, slug, fault)
    regimes = {name: train for name, train in regimes.items() if not args.regimes or name in args.regimes}
    table, alarms = {}, {name: 0 for name in regimes}
    for seed in range(1, args.seeds + 1):
        at = top / f"seed-{seed}"
        at.mkdir()
        rows(at, random.Random(seed))
        for name, train in regimes.items():
            done, seen, clean = train(at, seed, "clean", "")
            assert done is None or done.returncode == 0, done.stderr
            alarms[name] += bool(seen)
            for incident in seen:
                print(f"seed {seed}: {name}: FALSE ALARM {incident['cause']}: {incident['evidence']}", file=sys.stderr)
            tokeniser = name in ("image", "audio")
            weight = {"image": "encoder.first", "audio": "encoder.0"}.get(name, "lora_A")
            begins = TOKENISER_AT if tokeniser else AT
            faults = {
                "rate x20": (f"rate:{name}@{begins}=20" if tokeniser else f"rate@{begins}=20", "rate_too_high"),
                "NaN in a weight": (f"nan:{weight}@{begins}", "hardware"),
            }
            if name == "sft":
                lines = (at / "sft-clean/audit.jsonl").read_text().splitlines()
                faults["noise"] = (f"noise:40@{json.loads(lines[begins])['from']}=0.7", "bad_data")
            for kind, (fault, cause) in faults.items():
                slug = f"{name}-{kind.split()[0]}"
                done, seen, loss = train(at, seed, slug, fault)
                t = table.setdefault((name, kind), {"caught": 0, "named": 0, "ratio": [], "tail": [], "stopped": 0})
                t["caught"] += bool(seen) and 0 <= seen[0]["step"] - begins <= 10
                t["named"] += bool(seen) and seen[0]["cause"] == cause
                ratios = [a / b for a, b in zip(loss, clean)]
                t["ratio"].append(ratios[0])
                t["tail"].append(ratios[1])
                words = " ".join(f"{100 * (r - 1):+.2f} %" for r in ratios)
                print(f"seed {seed}: {name}, {kind}: {words}", file=sys.stderr)
                t["stopped"] += done.returncode != 0
                if not seen or seen[0]["cause"] != cause or done.returncode != 0:
                    what = f"{seen[0]['cause']}: {seen[0]['evidence']}" if seen else "not seen"
                    print(f"seed {seed}: {name}, {kind}: {what}; {done.stderr[-300:]}", file=sys.stderr)
        shutil.rmtree(at)
    n = args.seeds
    clean = ", ".join(f"{name} {count}" for name, count in alarms.items())
    print(f"clean runs with a false alarm, of {n} each: {clean}")
    print(f"{'regime':8}{'trouble':17}{'in 10 steps':>12}{'named':>8}{'loss/clean':>12}{'worst':>8}{'last 20':>9}{'worst':>8}{'stopped':>9}")
    for (name, kind), t in table.items():
        worst, worst_tail = (max((r for r in t[k] if r == r), default=float("nan")) for k in ["ratio", "tail"])
        print(
            f"{name:8}{kind:17}{t['caught']:>9}/{n}{t['named']:>5}/{n}"
            f"{median(t['ratio']):>12.3f}{worst:>8.3f}{median(t['tail']):>9.3f}{worst_tail:>8.3f}{t['stopped']:>9}"
        )


if __name__ == "__main__":
    main()
