"""Classical methods on the industry rows: the majority class, logistic regression, gradient boosting.

    python benches/peers/classical.py packs/out/industry [SCENARIO ...] [--json FILE]

Each learns from `train.jsonl` and is tested on `test.jsonl`, the rows that adapters are learnt and
tested on. It is given what suits it: the plain numbers of `SPLIT.features.jsonl` where there are
such, else the pixels of the picture (16 x 16, colour), else the runs of 1 to 3 characters of the
question. Where the answers are texts, the answer of the nearest training question is given (cosine of runs
of 1 to 3 characters). Scores are shares of right answers, and for texts chrF2 as `danlu eval` has it, with
95 % bootstrap intervals over the test rows.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# More different answers than this are not classes.
MOST_CLASSES = 30
SIDE = 16


def lines(path):
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read(folder, split):
    """(inputs, answers, kind of the inputs) of one split."""
    rows = lines(folder / f"{split}.jsonl")
    answers = [row["expected"] if split == "test" else row["messages"][-1]["content"] for row in rows]
    features = folder / f"{split}.features.jsonl"
    contents = [row["messages"][0]["content"] for row in rows]
    if features.exists():
        return np.array(lines(features), dtype=float), answers, "numbers"
    if isinstance(contents[0], list):
        pictures = [Image.open(folder / content[0]["image"]).resize((SIDE, SIDE)) for content in contents]
        return np.array([np.asarray(p).ravel() / 255 for p in pictures]), answers, "pixels"
    return contents, answers, "characters"


def interval(right, rounds=2000):
    """Mean of zeros and ones with the bounds of its 95 % bootstrap interval."""
    right = np.asarray(right, dtype=float)
    drawn = np.random.default_rng(1).integers(0, len(right), (rounds, len(right)))
    low, high = np.quantile(right[drawn].mean(axis=1), [0.025, 0.975])
    return [float(right.mean()), float(low), float(high)]


def chrf(expected, got):
    """Overlap of runs of 1 to 6 characters, recall counting twice (Popovic 2015)."""
    expected, got = ("".join(text.split()) for text in (expected, got))
    if not expected or not got:
        return float(expected == got)
    precision, recall = [], []
    for n in range(1, 7):
        want, have = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (expected, got))
        shared = sum((want & have).values())
        precision += [shared / have.total()] if have else []
        recall += [shared / want.total()] if want else []
    p, r = np.mean(precision), np.mean(recall)
    return 5 * p * r / (4 * p + r) if p + r else 0.0


def nearest(folder):
    """Scores of the answer of the nearest training question."""
    inputs, answers, _ = read(folder, "train")
    tested, expected, _ = read(folder, "test")
    grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 3))
    known = grams.fit_transform(inputs)
    best = np.asarray((grams.transform(tested) @ known.T).argmax(axis=1)).ravel()
    got = [answers[i] for i in best]
    exact = interval([a == e for a, e in zip(got, expected)])
    return {"n": len(expected), "exact": exact, "chrf": interval([chrf(e, a) for a, e in zip(got, expected)])}


def measure(folder):
    """Scores of every method on one scenario, or None where the answers are not classes."""
    inputs, answers, kind = read(folder, "train")
    tested, expected, _ = read(folder, "test")
    if len(set(answers)) > MOST_CLASSES:
        return None
    if kind == "characters":
        grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, max_features=3000)
        inputs, tested = grams.fit_transform(inputs).toarray(), grams.transform(tested).toarray()
    common = Counter(answers).most_common(1)[0][0]
    out = {"n": len(expected), "inputs": kind, "majority": interval([common == e for e in expected])}
    methods = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)),
        "boosting": HistGradientBoostingClassifier(max_iter=60, random_state=1, early_stopping=False),
    }
    for name, method in methods.items():
        method.fit(inputs, answers)
        out[name] = interval([a == e for a, e in zip(method.predict(tested), expected)])
    return out


def main():
    """Measures the scenarios that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="folder that packs/industry/build.py wrote")
    parser.add_argument("scenarios", nargs="*", help="names of scenarios (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    names = options.scenarios or sorted(p.parent.name for p in options.rows.glob("*/test.jsonl"))
    if not names:
        sys.exit(f"{options.rows}: expected folders with test.jsonl, found none")
    results = {}
    print("| scenario | n | inputs | majority | logistic regression | gradient boosting |\n|---|---|---|---|---|---|")
    for name in names:
        found = measure(options.rows / name)
        if found is None:
            found = results[name] = nearest(options.rows / name)
            cells = ["{} {:.3f} ({:.3f} to {:.3f})".format(m, *found[m]) for m in ("exact", "chrf")]
            print(f"| {name} | {found['n']} | nearest question: {', '.join(cells)} | | | |", flush=True)
            continue
        results[name] = found
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*found[m]) for m in ("majority", "logistic", "boosting")]
        print(f"| {name} | {found['n']} | {found['inputs']} | {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
