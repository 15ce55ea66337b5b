"""What the guard, the audit log and the checkpoints cost: the same training with and without them.

    python3 benches/guard_cost.py [--rounds 5] [--steps 120] [--recipe recipes/quickstart.toml]

Trains the first steps of a recipe with everything on (as the recipe is, with a checkpoint every 40 steps)
and with the guard off and one checkpoint at the end, in turns on the same machine, so that what else it does
hits both alike. The tokenisers are those of the reference model. Prints the seconds of the steps as the
last checkpoint has them, and the median of the rounds' ratios. Needs the built program (cargo build
--release, or its path in DANLU) and Python's standard library.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DANLU = Path(os.environ.get("DANLU", ROOT / "target/release/danlu"))


def recipe(path, steps, on, every):
    """The text of a recipe with other steps, and with or without the guard and checkpoints."""
    text = path.read_text()
    for key, value in [("packs", None), ("steps", steps), ("checkpoint", every if on else steps), ("validate", steps)]:
        lines, table = [], ""
        for line in text.splitlines():
            if line.startswith("["):
                table = line
            if value is None and line.startswith("packs"):
                packs = [str((path.parent / p).resolve()) for p in tomllib.loads(line)["packs"]]
                line = f"packs = {json.dumps(packs)}"
            elif table == "[train]" and line.startswith(f"{key} ="):
                line = f"{key} = {value}"
            lines.append(line)
        text = "\n".join(lines)
    return text + f"\n[guard]\non = {str(on).lower()}\n"


def seconds(at, name, text, codes):
    """Trains; the seconds that the steps took. `codes` are kept for the next run."""
    run, file = at / name, at / f"{name}.toml"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    file.write_text(text)
    if codes.exists():
        shutil.copy(codes, run / "codes.bin")
    (run / "tokenisers.html").write_text("")
    words = [DANLU, "train", file, "--out", run, "--tokenizers", ROOT / "models/reference"]
    subprocess.run(words, check=True, capture_output=True)
    shutil.copy(run / "codes.bin", codes)
    manifest = json.loads((run / "checkpoints" / (run / "checkpoints/latest").read_text().strip() / "manifest.json").read_text())
    return manifest["state"]["seconds"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--recipe", default=ROOT / "recipes/quickstart.toml", type=Path)
    args = parser.parse_args()
    at = Path(tempfile.mkdtemp())
    texts = {name: recipe(args.recipe, args.steps, name == "on", args.every) for name in ["on", "off"]}
    codes = at / "codes.bin"
    ratios = []
    for number in range(args.rounds + 1):
        # The first round makes the codes and is not counted. Who is first changes.
        order = ["on", "off"] if number % 2 == 0 else ["off", "on"]
        took = {name: seconds(at, name, texts[name], codes) for name in order}
        if number > 0:
            ratios.append(took["on"] / took["off"])
            print(f"round {number}: on {took['on']:.2f} s, off {took['off']:.2f} s, {100 * (ratios[-1] - 1):+.2f} %")
    print(f"{args.steps} steps, median of {args.rounds}: {100 * (statistics.median(ratios) - 1):+.2f} %")
    shutil.rmtree(at)


if __name__ == "__main__":
    main()
