"""Whether peptides that an adapter goes on with look antimicrobial, to a classifier and by simple properties.

    danlu eval --model models/smollm2 --adapter runs/smol-amp-generate \\
        --data packs/out/industry/amp-generate/test.jsonl --json made.json
    python benches/peers/peptides.py packs/out/industry made.json [OTHER.json ...]

The classifier is logistic regression on runs of one to three residues, learnt on the training rows of the `amp`
scenario, whose peptides are in other clusters than the test's. Beside what was made it judges the real ends of
the same peptides, the same ends shuffled, ends of random residues of the same length, and peptides that are not
antimicrobial. Shares have 95 % bootstrap intervals. A wet laboratory has seen none of this."""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from classical import interval, lines

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
HYDROPHOBIC = set("AILMFVWC")


def after_colon(row):
    """The residues that a question names."""
    return row["messages"][0]["content"].rsplit(":", 1)[1].replace(" ", "")


def charge(peptide):
    """Net charge at neutral pH, without the ends."""
    return sum(peptide.count(r) for r in "KR") - sum(peptide.count(r) for r in "DE")


def main():
    """Judges files of `danlu eval --json` on the rows of amp-generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="folder that packs/industry/build.py wrote")
    parser.add_argument("made", type=Path, nargs="+", help="files of danlu eval --json")
    options = parser.parse_args()
    train = lines(options.rows / "amp/train.jsonl")
    grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, max_features=3000)
    judge = make_pipeline(grams, LogisticRegression(C=10, max_iter=2000))
    judge.fit([after_colon(r) for r in train], [r["messages"][1]["content"] for r in train])
    test = lines(options.rows / "amp/test.jsonl")
    right = judge.predict([after_colon(r) for r in test]) == np.array([r["expected"] for r in test])
    print("the judge is right on {:.3f} ({:.3f} to {:.3f}) of the test rows".format(*interval(right)))

    rows = lines(options.rows / "amp-generate/test.jsonl")
    known = {after_colon(r) + r["messages"][1]["content"].replace(" ", "") for r in lines(options.rows / "amp-generate/train.jsonl")}
    dice = random.Random(1)
    shuffle = lambda text: "".join(dice.sample(text, len(text)))
    starts = [after_colon(r) for r in rows]
    ends = [r["expected"].replace(" ", "") for r in rows]
    sets = {
        "real ends": ends,
        "real ends, shuffled": [shuffle(e) for e in ends],
        "random residues": ["".join(dice.choices(RESIDUES, k=len(e))) for e in ends],
    }
    for path in options.made:
        records = json.loads(path.read_text("utf-8"))["records"]
        sets[path.stem] = [r["got"].replace(" ", "") for r in records]
    print("| ends | n | only residues | judged antimicrobial | net charge | hydrophobic | length | in the training rows |")
    print("|---|---|---|---|---|---|---|---|")
    for name, of in sets.items():
        valid = [bool(e) and set(e) <= set(RESIDUES) for e in of]
        whole = [s + e for s, e, ok in zip(starts, of, valid) if ok]
        share = interval(valid)[0]
        if not whole:
            print(f"| {name} | {len(of)} | {share:.2f} | | | | | |")
            continue
        judged = interval(judge.predict(whole) == "yes")
        soft = np.mean([sum(r in HYDROPHOBIC for r in p) / len(p) for p in whole])
        print(
            f"| {name} | {len(of)} | {share:.2f} | {judged[0]:.3f} ({judged[1]:.3f} to {judged[2]:.3f}) | "
            f"{np.mean([charge(p) for p in whole]):+.1f} | {soft:.2f} | {np.mean([len(p) for p in whole]):.0f} | "
            f"{np.mean([p in known for p in whole]):.2f} |"
        )
    no = [after_colon(r) for r in test if r["expected"] == "no"]
    judged = interval(judge.predict(no) == "yes")
    print("peptides that are not: {:.3f} ({:.3f} to {:.3f}) judged antimicrobial".format(*judged))


if __name__ == "__main__":
    main()
