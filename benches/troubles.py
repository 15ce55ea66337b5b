"""Injects troubles into tiny trainings and tells whether the guard saw them in time and named them.

    python3 benches/troubles.py [--seeds 10] [--steps 150] [--folder DIR] [--kinds rate]

For every seed: a clean run (no incident is wanted), the learning rate times 20 from a step on, samples
whose tokens are noise, a weight that is no number, a router that sends every token to the same experts (in a
mixture of experts, which has a clean run of its own), and 1 % of the letters of a sample file's answers. Each
but the last is also run with the guard off, where only clipping is left. Needs the built program
(cargo build --release) and Python's standard library.
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

from soak import DANLU, ROOT, TOKENISERS

RECIPE = """# A tiny training, to be troubled.
name = "trouble"
seed = {seed}
[data]
packs = ["{root}/packs/sample"]
files = ["rows.jsonl"]
scenes = 8
variants = 1
concepts = 24
[text]
vocabulary = 400
train_bytes = 20000
{tokenisers}[model]
depth = 2
width = 64
head_dim = 16
{experts}[train]
steps = {steps}
rows = 4
window = 160
warmup = 10
checkpoint = 10
validate = {steps}
optimiser = "{optimiser}"
rate = 3e-3
[guard]
on = {on}
[mixture]
name_en = 1.0
draw_en = 1.0
say_en = 0.5
transcribe_en = 1.0
text_en = 1.0
file = 0.5
"""


def danlu(*arguments, fault=""):
    env = dict(os.environ, DANLU_FAULT=fault)
    return subprocess.run([DANLU, *map(str, arguments)], env=env, capture_output=True, text=True)


EXPERTS = "hidden = 32\nexperts = 4\nexperts_per_token = 2\n"


def train(at, base, name, seed, steps, optimiser, on=True, fault="", experts=False):
    """Trains `name` with the tokenisers of `base`; what became of it."""
    recipe = at / f"{name}.toml"
    words = dict(root=ROOT, tokenisers=TOKENISERS, seed=seed, steps=steps, optimiser=optimiser)
    words.update(on=str(on).lower(), experts=EXPERTS if experts else "")
    recipe.write_text(RECIPE.format(**words))
    run = at / name
    arguments = ["train", recipe, "--out", run]
    if base:
        shutil.copytree(base / "tokenisers", run / "tokenisers")
        shutil.copy(base / "tokenisers.html", run)
        shutil.copy(base / "codes.bin", run)
    done = danlu(*arguments, fault=fault)
    path = run / "train.jsonl"
    log = path.read_text().splitlines() if path.exists() else []
    held = json.loads(log[-1]).get("validation", {}) if log else {}
    incidents = [json.loads(p.read_text()) for p in sorted((run / "incidents").glob("*.json"))]
    return {
        "ok": done.returncode == 0,
        "said": done.stderr,
        "loss": sum(held.values()) / len(held) if held else float("nan"),
        "incidents": incidents,
        "run": run,
    }


def median(values):
    values = sorted(v for v in values if v == v)
    return values[len(values) // 2] if values else float("nan")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--optimiser", default="adamw")
    parser.add_argument("--folder")
    parser.add_argument("--kinds", nargs="*", help="rate, noise, NaN, router; all by default")
    parser.add_argument("--no-off", action="store_true", help="without the runs that have no guard")
    args = parser.parse_args()
    top = Path(args.folder or tempfile.mkdtemp())
    middle = args.steps // 2
    kinds = ["rate x20", "noise", "NaN in a weight", "router collapse"]
    kinds = [kind for kind in kinds if not args.kinds or kind.split()[0] in args.kinds]
    fresh = {"caught": 0, "named": 0, "steps": [], "with": [], "without": [], "lost": 0}
    table = {kind: {k: list(v) if v == [] else v for k, v in fresh.items()} for kind in kinds}
    alarms, cleans, flipped = 0, 0, 0
    for seed in range(1, args.seeds + 1):
        at = top / f"seed-{seed}"
        at.mkdir(parents=True)
        ask = {"role": "user", "content": "What colour is the sky?"}
        row = json.dumps({"messages": [ask, {"role": "assistant", "content": "blue"}]})
        (at / "rows.jsonl").write_text(40 * (row + "\n"))
        clean = train(at, None, "clean", seed, args.steps, args.optimiser)
        of_kind = dict.fromkeys(kinds, clean)
        if "router collapse" in kinds:
            mixed = train(at, clean["run"], "clean-experts", seed, args.steps, args.optimiser, experts=True)
            of_kind["router collapse"] = mixed
        for quiet in {id(run): run for run in [clean, *of_kind.values()]}.values():
            assert quiet["ok"], quiet["said"]
            cleans += 1
            alarms += bool(quiet["incidents"])
            for incident in quiet["incidents"]:
                print(f"seed {seed}: FALSE ALARM {incident['cause']}: {incident['evidence']}", file=sys.stderr)
        audit = [json.loads(line) for line in (clean["run"] / "audit.jsonl").read_text().splitlines()]
        first = audit[middle]["from"]
        rng = random.Random(seed)
        layer = rng.randrange(2)
        faults = {
            "rate x20": (f"rate@{middle}=20", "rate_too_high", None),
            "noise": (f"noise:60@{first}=0.7", "bad_data", None),
            "NaN in a weight": (f"nan:layers.{layer}.mlp@{middle}", "hardware", f"model.layers.{layer}"),
            "router collapse": (
                f"collapse:layers.{layer}.mlp.gate@{middle}=4", "router_collapse", f"model.layers.{layer}"),
        }
        for kind, (fault, cause, where) in faults.items():
            if kind not in kinds:
                continue
            slug = kind.split()[0].replace("/", "")
            clean = of_kind[kind]
            how = dict(fault=fault, experts=kind == "router collapse")
            seen = train(at, clean["run"], slug, seed, args.steps, args.optimiser, **how)
            off = {"ok": True, "loss": float("nan")}
            if not args.no_off:
                off = train(at, clean["run"], slug + "-off", seed, args.steps, args.optimiser, on=False, **how)
            t = table[kind]
            incident = next(iter(seen["incidents"]), None)
            if incident:
                late = incident["step"] - middle
                t["steps"].append(late)
                t["caught"] += 0 <= late <= 10
                there = where is None or (incident["layer"] or "").startswith(where)
                t["named"] += incident["cause"] == cause and there
                if incident["cause"] != cause:
                    words = f"{kind} named {incident['cause']}: {incident['evidence']}"
                    print(f"seed {seed}: {words}", file=sys.stderr)
            else:
                losses = f"loss {seen['loss']:.3f}, clean {clean['loss']:.3f}"
                print(f"seed {seed}: {kind} not seen; {losses}", file=sys.stderr)
            ratios = " ".join(f"{100 * (x['loss'] / clean['loss'] - 1):+.2f} %" for x in (seen, off))
            count = len(seen["incidents"])
            print(f"seed {seed}: {kind}: {count} incidents, loss with and without the guard {ratios}", file=sys.stderr)
            t["lost"] += not seen["ok"]
            t["with"].append(seen["loss"] / clean["loss"] if seen["ok"] else float("inf"))
            t["without"].append(off["loss"] / clean["loss"] if off["ok"] else float("inf"))
        # 1 % of the letters of the answers, one at least, become others: the file still decodes.
        lines = (at / "rows.jsonl").read_text().splitlines()
        wrong = ["".join(rng.choice("xyz") if rng.random() < 0.01 else c for c in "blue") for _ in lines]
        wrong[0] = "blve"
        text = "".join(line.replace("blue", w) + "\n" for line, w in zip(lines, wrong))
        (at / "rows.jsonl").write_text(text)
        again = danlu("train", "--resume", at / "clean")
        flipped += again.returncode != 0 and "rows.jsonl" in again.stderr
        shutil.rmtree(at)
    n = args.seeds
    print(f"{n} seeds, {args.steps} steps, {args.optimiser}; trouble from step {middle} on")
    print(f"clean runs with a false alarm: {alarms} of {cleans}")
    heads = ["in 10 steps", "named", "after, steps", "loss/clean", "worst", "guard off", "stopped"]
    widths = [12, 8, 14, 12, 8, 11, 9]
    print(f"{'trouble':18}" + "".join(f"{h:>{w}}" for h, w in zip(heads, widths)))
    for kind, t in table.items():
        print(
            f"{kind:18}{t['caught']:>9}/{n}{t['named']:>5}/{n}{median(t['steps']):>14}"
            f"{median(t['with']):>12.3f}{max(t['with']):>8.3f}{median(t['without']):>11.3f}{t['lost']:>9}"
        )
    print(f"{'1 % of letters':18}{flipped:>9}/{n}{flipped:>5}/{n}   by the file's hash, before the next step")


if __name__ == "__main__":
    main()
