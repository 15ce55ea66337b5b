"""Who wrote a passage, told by how much better a persona's adapter predicts it than the base does.

    danlu eval --model models/smollm2 --text A.jsonl --text B.jsonl --json base.json
    danlu eval --model models/smollm2 --adapter runs/smol-persona --text A.jsonl --text B.jsonl --json own.json
    python benches/peers/persona.py base.json own.json --author A.jsonl

The gain of a passage is the difference in bits a byte. Prints each file's mean gain, and the area under the
ROC curve for the author against all others, with 95 % bootstrap intervals over passages."""

import argparse
import json
from pathlib import Path

import numpy as np


def interval(values, statistic, rounds=2000):
    """A statistic of some lists of numbers with the bounds of its 95 % bootstrap interval."""
    random = np.random.default_rng(1)
    drawn = [statistic(*[random.choice(v, len(v)) for v in values]) for _ in range(rounds)]
    return (statistic(*values), *np.quantile(drawn, [0.025, 0.975]))


def area(own, others):
    """Share of pairs in which the author's passage gains more; ties count half."""
    gap = own[:, None] - others[None, :]
    return float((gap > 0).mean() + (gap == 0).mean() / 2)


def main():
    """Compares two files of `danlu eval --text`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("own", type=Path)
    parser.add_argument("--author", required=True, help="end of the name of the author's file")
    options = parser.parse_args()
    base, own = (json.loads(p.read_text("utf-8")) for p in (options.base, options.own))
    gains = {}
    for a, b in zip(base, own, strict=True):
        if (a["file"], a["passage"]) != (b["file"], b["passage"]):
            raise SystemExit(f"expected the same passages, found {a['file']}:{a['line']} and {b['file']}:{b['line']}")
        gains.setdefault(a["file"], []).append(a["bits_per_byte"] - b["bits_per_byte"])
    for file, found in gains.items():
        mean = interval([np.array(found)], lambda v: float(v.mean()))
        print(f"{file}: gain {mean[0]:.4f} bits a byte ({mean[1]:.4f} to {mean[2]:.4f}), {len(found)} passages")
    of = lambda wanted: np.concatenate([v for k, v in gains.items() if k.endswith(options.author) == wanted])
    found = interval([of(True), of(False)], area)
    print(f"author against the others: area {found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})")


if __name__ == "__main__":
    main()
