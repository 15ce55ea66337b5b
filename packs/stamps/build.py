"""Builds the stamps pack: Tux Paint's photographs and drawings with captions and human speech.

    python packs/stamps/build.py --out DIR

The speech was recorded by people, in up to a dozen languages; some stamps have a sound effect.
"""

import concurrent.futures
import os
import re
import sys
from pathlib import Path

import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import packlib

PACKAGE = "tuxpaint-stamps-default"
LONGEST_EFFECT = 10  # seconds
LONGEST_SPEECH = 12
# Folders whose PNG files are drawn, not photographed.
DRAWN = {"cartoon", "symbols", "roadsigns", "flags", "body_parts"}
SPLIT_RULE = ("u = first 8 hex digits of sha256(lower-case English caption) / 2^32; test if u < 0.05, "
              "val if u < 0.07, else train. Stamps with one caption (a letter filled and outlined) share "
              "their recordings, so they share their split.")


def stamps(folder):
    """Every stamp's path without extension, with its picture; an SVG is preferred to a PNG."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".png", ".svg") or re.search("_(mirror|flip)", file.stem):
            continue
        # Lettering in an SVG would depend on the machine's fonts; the PNG beside it does not.
        lettered = file.suffix == ".svg" and "<text" in file.read_text("utf-8", errors="replace")
        if lettered and file.with_suffix(".png").exists():
            continue
        if file.with_suffix(".txt").exists():
            found[file.with_suffix("")] = file  # .svg sorts after .png
    return found


def captions(stem):
    """language -> caption of a stamp, from its text file."""
    lines = stem.with_suffix(".txt").read_text("utf-8", errors="replace").splitlines()
    table = {"en": lines[0].strip()} if lines else {}
    for line in lines[1:]:
        language, mark, text = line.partition(".utf8=")
        if mark and text.strip():
            table[language.strip()] = text.strip()
    return table


def short_name(caption):
    """A caption's first sentence without its article and closing mark."""
    first = re.split(r"(?<=[a-z)”’])[.!?] |(?<=[。！？])", caption)[0]
    first = re.sub(r"^(A|An|The|Some) ", "", first.strip(" .!。！“”\"–"))
    return first or caption


def build_stamp(job):
    """One stamp as a concept with its files and a list of what was left out; runs in a worker."""
    root, stem, picture = job
    identifier = "-".join(stem.relative_to(root).parts).replace(".", "_")
    texts = captions(stem)
    if not texts.get("en"):
        return None, {}, [f"{identifier}: no English caption"]
    files, sounds, dropped = {}, [], []
    try:
        if picture.suffix == ".svg":
            art = packlib.render_svg(picture.read_text("utf-8", errors="replace"))
        else:
            art = Image.open(picture)
        style = "drawing" if picture.suffix == ".svg" or DRAWN & set(stem.relative_to(root).parts) else "photo"
        files[f"{identifier}.{style}.png"] = packlib.finish_picture(art, crop=True, margin=2)
    except Exception as error:
        return None, {}, [f"{identifier}: {error}"]
    pictures = [{"file": f"{identifier}.{style}.png", "style": style, "split": "train"}]

    for sound in sorted(stem.parent.glob(stem.name + "*")):
        match = re.fullmatch(r"(_desc(_([A-Za-z_]+))?)?(\.ogg)?\.(ogg|wav)", sound.name[len(stem.name):])
        if not match:
            continue
        speech, language = bool(match.group(1)), match.group(3) or "en"
        try:
            samples, rate = soundfile.read(sound)
            samples = packlib.trim_and_level(packlib.to_mono_16k(samples, rate), None if speech else LONGEST_EFFECT)
            if speech and len(samples) > LONGEST_SPEECH * packlib.RATE:
                raise ValueError(f"{len(samples) / packlib.RATE:.1f} s of speech")
            data = packlib.encode_ogg(samples)
        except Exception as error:
            dropped.append(f"{sound.relative_to(root)}: {error}")
            continue
        if speech:
            file = f"{identifier}.rec-{language}.ogg"
            entry = {"file": file, "kind": "speech", "language": language, "voice": f"recorded-{language}",
                     "text": texts.get(language), "split": "train", "synthetic": False}
        else:
            file = f"{identifier}.sfx.ogg"
            entry = {"file": file, "kind": "effect", "split": "train", "synthetic": False}
        if file in files:
            dropped.append(f"{sound.relative_to(root)}: second recording in {language}")
            continue
        files[file] = data
        sounds.append(entry)

    given = {"en": texts["en"], "zh": texts.get("zh_CN")}
    concept = {
        "id": identifier,
        "names": {lang: short_name(text) for lang, text in given.items() if text},
        "tags": {"en": [part.replace("_", " ") for part in stem.relative_to(root).parts[:-1]], "zh": []},
        "group": stem.relative_to(root).parts[0],
        "split": packlib.concept_split(texts["en"].lower(), test=0.05, val=0.02),
        "captions": {lang: text for lang, text in given.items() if text},
        "pictures": pictures, "sounds": sounds,
    }
    return concept, files, dropped


def main():
    """Builds the pack."""
    parser = packlib.arguments(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    options = parser.parse_args()
    os.nice(5)
    home, version = packlib.deb_package(options.cache, PACKAGE)
    root = home / "usr/share/tuxpaint/stamps"
    pack = packlib.PackWriter(
        options.out, "stamps", "Tux Paint's stamps: photographs and drawings with English and Chinese captions, "
        "recorded human speech in several languages and sound effects.",
        "Speech in this pack was recorded by people.", options.force)
    pack.manifest["splits"]["concept"]["rule"] = SPLIT_RULE
    pack.add_source(packlib.source(
        PACKAGE, version, "deb", "GPL-2.0-or-later", "Tux Paint stamps, (c) 2002-2022 Bill Kendrick and the stamps' "
        "contributors; changed: scaled to 64x64 pixels, sound resampled to 16 kHz, trimmed and levelled",
        packlib.debian_licence(options.cache, home, PACKAGE, ["GPL-2.0-only"])))
    jobs = [(root, stem, picture) for stem, picture in stamps(root).items()]
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        for done, (concept, files, dropped) in enumerate(pool.map(build_stamp, jobs, chunksize=4), 1):
            for line in dropped:
                print(f"dropped {line}")
            if concept is not None:
                pack.add_concept(concept, files)
            if done % 100 == 0:
                print(f"{done} of {len(jobs)}", flush=True)
    voices = sorted(v for v in pack.manifest["counts"]["sounds_by_voice"] if v.startswith("recorded-"))
    pack.finish(style={"train": ["drawing", "photo"], "test": []}, voice={"train": voices, "test": []})


if __name__ == "__main__":
    main()
