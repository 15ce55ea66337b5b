"""Builds the pictograms pack: emoji in three styles, named in two languages and spoken.

    python packs/pictograms/build.py --out DIR            the full pack
    python packs/pictograms/build.py --out DIR --sample   the small pack kept in the repository

The speech is synthetic (espeak-ng). Needs `espeak-ng` and `npm` on the path.
"""

import collections
import concurrent.futures
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pypinyin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import packlib
import textsources

# style: npm package, version, licence, credit. The order is that of the manifest.
STYLES = {
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0",
                "Twemoji, (c) Twitter, Inc and other contributors, maintained at github.com/jdecked/twemoji; "
                "changed: rendered to 64x64 pixels"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT",
               "Fluent Emoji, (c) Microsoft Corporation, github.com/microsoft/fluentui-emoji"),
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0",
             "Noto Emoji, (c) Google Inc., github.com/googlefonts/noto-emoji; changed: rendered to 64x64 pixels"),
}
NAMES = ("emojibase-data", "17.0.0")
STYLE_SPLIT = {"train": ["twemoji", "fluent"], "test": ["noto"]}

# Each voice: language, espeak-ng voice, words a minute, pitch (0-99). A female or male variant
# (+f2, +m3...) changes the whole vocal tract, not only the pitch. "en" is the British voice:
# espeak-ng 1.51 ignores a variant put on its other name, "en-gb", without a word.
Voice = collections.namedtuple("Voice", "language espeak speed pitch split")
VOICES = {
    "en-us": Voice("en", "en-us", 158, 48, "train"),
    "en-gb": Voice("en", "en-gb", 165, 62, "train"),
    "en-scotland-f2": Voice("en", "en-gb-scotland+f2", 155, 45, "train"),
    "en-us-f3": Voice("en", "en-us+f3", 160, 60, "train"),
    "en-us-m3": Voice("en", "en-us+m3", 150, 35, "train"),
    "en-gb-f4": Voice("en", "en+f4", 158, 50, "test"),
    "cmn": Voice("zh", "cmn-latn-pinyin", 150, 52, "train"),
    "cmn-f2": Voice("zh", "cmn-latn-pinyin+f2", 150, 52, "train"),
    "cmn-m3": Voice("zh", "cmn-latn-pinyin+m3", 160, 40, "train"),
    "cmn-f4": Voice("zh", "cmn-latn-pinyin+f4", 155, 48, "test"),
}
# Readings that pypinyin gets wrong in these names.
READINGS = {
    "红发": "hóng fà", "发夹": "fà jiā", "长棍": "cháng gùn", "倾倒": "qīng dào", "炸豆": "zhá dòu",
    "笑得": "xiào de", "一百": "yì bǎi", "一次": "yí cì",
    "啊": "ā",
}
pypinyin.load_phrases_dict({word: [[s] for s in reading.split()] for word, reading in READINGS.items()})

SAMPLE_VOICES = ["en-us", "en-us-f3", "en-gb", "en-gb-f4", "cmn", "cmn-f2", "cmn-f4"]
SAMPLE_TEXT_BYTES = 300_000
SAMPLE = """
😀 😂 😍 😎 😭 😡 😱 😴 🤢 🤡 👻 👽 🤖 💩 💀 🎃
👍 👎 👏 💪 👀 👂 🧠
🐶 🐱 🐰 🦊 🐻 🐼 🐨 🐯 🦁 🐮 🐷 🐸 🐵 🐔 🐧 🦉 🦇 🐴 🦄 🐝 🐞 🐢 🐍 🐙 🦀 🐠 🐳 🦈 🐘 🦒 🐫 🦋 🕷
🌵 🌲 🌴 🍁 🍄 🌹 🌻 🤔
🍎 🍌 🍇 🍉 🍓 🍍 🍋 🥕 🌽 🥦 🍅 🧀 🥚 🍔 🍟 🍕 🏫 🍦 🍩 🍪 🎂 🍭 🍺
🚗 🚌 🚒 🚑 🚲 🚀 🚁 🚂 ⛵ 🚢
🏠 🏰 ⛺ 🌋 🌈 ⭐ 🌙 ⛄ 🔥 💧 ⚡ ☂ ☀ 🦚
⚽ 🏀 🔦 🎈 🎁 🎸 🎺 🎻 🥁 🎹 🎨 🏆
⌚ 📱 💻 📷 💡 📚 ✏ ✂ 🔑 🔒 🔨 🔔 ⏰ 🛏 👑 👓 👕 🎩
❤ ✅ ❌ ❓ ⚠ 🛑
"""


def code_points(hexcode):
    """An emoji's code points without the variation selector, as every source can be looked up by."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def concepts(cache):
    """All emoji that exist in the three styles, as concepts without files; skin tones are left out."""
    folder = packlib.npm_package(cache, *NAMES)
    tables = {lang: json.loads((folder / lang / "data.json").read_text("utf-8")) for lang in ("en", "zh")}
    chinese = {row["hexcode"]: row for row in tables["zh"]}
    groups = json.loads((folder / "meta/groups.json").read_text("utf-8"))["groups"]
    drawn = [set(style_table(cache, style)[0]) for style in STYLES]
    found, used = [], {"en": set(), "zh": set()}
    for row in tables["en"]:
        code = code_points(row["hexcode"])
        if "group" not in row or groups[str(row["group"])] == "component":
            continue
        if not all(code in style for style in drawn):
            continue
        other = chinese[row["hexcode"]]
        names = {"en": row["label"].strip(), "zh": other["label"].strip()}
        if any(name.casefold() in used[lang] for lang, name in names.items()):
            print(f"dropped {row['hexcode']}: another emoji has the name {names}")
            continue
        for lang, name in names.items():
            used[lang].add(name.casefold())
        found.append({
            "id": code.upper(), "names": names,
            "tags": {"en": row.get("tags", []), "zh": other.get("tags", [])},
            "group": groups[str(row["group"])], "split": packlib.concept_split(code.upper()),
        })
    return found


def style_table(cache, style):
    """(code points -> icon name, icon file) of one style."""
    folder = packlib.npm_package(cache, *STYLES[style][:2])
    chars = json.loads((folder / "chars.json").read_text("utf-8"))
    return {code_points(code): name for code, name in chars.items()}, folder / "icons.json"


def svg_of(icons, name):
    """An icon's SVG text; an alias may turn or mirror its parent."""
    transforms, chain = "", name
    while chain in icons.get("aliases", {}):
        alias = icons["aliases"][chain]
        if set(alias) - {"parent", "hFlip", "hidden"}:
            raise ValueError(f"icon {chain}: alias with {sorted(alias)} is not handled")
        transforms += "h" if alias.get("hFlip") else ""
        chain = alias["parent"]
    icon = icons["icons"][chain]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    body = icon["body"]
    if len(transforms) % 2:
        body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>')


def spoken(language, name):
    """What espeak-ng is given for a name, or None if it would not read it properly."""
    if language == "en":
        text = name.replace("’", "'").replace("“", "").replace("”", "").replace(": ", ", ")
        return re.sub(r"\(([^)]*)\)", r", \1", text).replace(" ,", ",").replace("#", "number sign")
    text = re.sub(r"[“”\s]", "", name).replace(":", "，")
    # The pinyin voice takes Latin letters for pinyin, so a name with letters in it is not spoken.
    if re.search(r"[^\u4e00-\u9fff0-9，]", text):
        return None
    text = re.sub(r"\d+", lambda m: {"10": "十", "18": "十八"}.get(m.group(), "零一二三四五六七八九"[int(m.group()) % 10]), text)
    syllables = pypinyin.lazy_pinyin(text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True, tone_sandhi=True)
    return " ".join("," if s == "，" else s.replace("ü", "v") for s in syllables)


def speak(voice_name, identifier, name):
    """Ogg Vorbis bytes of a name in a voice, or None."""
    voice = VOICES[voice_name]
    text = spoken(voice.language, name)
    if text is None:
        return None
    # No two names at exactly the same pace and pitch, yet the same at every build.
    speed = voice.speed + round(16 * packlib.unit_hash(f"speed {voice_name} {identifier}") - 8)
    pitch = voice.pitch + round(8 * packlib.unit_hash(f"pitch {voice_name} {identifier}") - 4)
    wave = packlib.run("espeak-ng", "-v", voice.espeak, "-s", str(speed), "-p", str(pitch), "--stdout", text)
    at = wave.index(b"data") + 8
    samples = np.frombuffer(wave[at : at + (len(wave) - at) // 2 * 2], dtype="<i2") / 32768
    rate = int.from_bytes(wave[24:28], "little")
    samples = packlib.trim_and_level(packlib.to_mono_16k(samples, rate))
    if not 0.2 <= len(samples) / packlib.RATE <= 6:
        raise ValueError(f"{identifier} {voice_name}: {len(samples) / packlib.RATE:.2f} s for {text!r}")
    return packlib.encode_ogg(samples)


def require_distinct_voices():
    """Stops if two voices sound the same at one pace and pitch: a held-out voice must be unheard."""
    heard = {}
    for name, voice in VOICES.items():
        text = {"en": "polar bear", "zh": "bei3 ji2 xiong2"}[voice.language]
        wave = packlib.run("espeak-ng", "-v", voice.espeak, "-s", "160", "-p", "50", "--stdout", text)
        if wave in heard:
            sys.exit(f"espeak-ng gives the same sound for the voices {heard[wave]} and {name}")
        heard[wave] = name


_ICONS = {}


def draw(cache, style, identifier):
    """PNG bytes of a concept in a style."""
    if style not in _ICONS:
        table, path = style_table(cache, style)
        _ICONS[style] = table, json.loads(path.read_text("utf-8"))
    table, icons = _ICONS[style]
    return packlib.finish_picture(packlib.render_svg(svg_of(icons, table[identifier.lower()])))


def build_concept(job):
    """One concept with its files; runs in a worker process."""
    cache, concept, voices = job
    identifier = concept["id"]
    pictures, sounds, files = [], [], {}
    for style in STYLES:
        file = f"{identifier}.{style}.png"
        files[file] = draw(cache, style, identifier)
        pictures.append({"file": file, "style": style, "split": "test" if style in STYLE_SPLIT["test"] else "train"})
    for voice_name in voices:
        voice = VOICES[voice_name]
        name = concept["names"][voice.language]
        data = speak(voice_name, identifier, name)
        if data is None:
            continue
        file = f"{identifier}.{voice_name}.ogg"
        files[file] = data
        sounds.append({"file": file, "kind": "speech", "language": voice.language, "voice": voice_name,
                       "text": name, "split": voice.split, "synthetic": True})
    return {**concept, "pictures": pictures, "sounds": sounds}, files


def sources(cache):
    """The manifest's sources, with their licence texts."""
    entries = []
    for name, version, licence, credit in STYLES.values():
        text = packlib.spdx_text(cache, licence)
        if licence == "MIT":
            text = re.sub(r"Copyright \(c\) <year> <copyright holders>", "Copyright (c) Microsoft Corporation.", text)
        entries.append(packlib.source(name, version, "npm", licence, credit, f"{credit}\n\n{text}"))
    mit = (packlib.npm_package(cache, *NAMES) / "LICENSE").read_text("utf-8")
    entries.append(packlib.source(*NAMES, "npm", "MIT", "emojibase, (c) Miles Johnson; names and tags "
                                  "from Unicode CLDR", mit + "\n" + packlib.spdx_text(cache, "Unicode-3.0")))
    version = packlib.run("espeak-ng", "--version").decode().split("Data at")[0].split(":")[-1].strip()
    entries.append(packlib.source(
        "espeak-ng", version, "deb", "GPL-3.0-or-later (the tool; its output is not covered)",
        "espeak-ng speech synthesiser; all speech in this pack was made by it",
        "The speech in this pack was synthesised with espeak-ng, a program under GPL-3.0-or-later.\n"
        "The program is not part of the pack, and its licence does not extend to the sound it makes.\n"))
    return entries


def main():
    """Builds the full pack or the sample."""
    parser = packlib.arguments(__doc__)
    parser.add_argument("--sample", action="store_true", help="the small pack: well-known concepts, fewer voices, some text")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    options = parser.parse_args()
    os.nice(5)
    require_distinct_voices()
    chosen, voices = concepts(options.cache), list(VOICES)
    if options.sample:
        voices = SAMPLE_VOICES
        wanted = {code_points("-".join(f"{ord(c):x}" for c in emoji)).upper() for emoji in SAMPLE.split()}
        missing = wanted - {concept["id"] for concept in chosen}
        if missing:
            sys.exit(f"sample emoji that are not in all styles: {sorted(missing)}")
        chosen = [concept for concept in chosen if concept["id"] in wanted]
    pack = packlib.PackWriter(
        options.out, "sample" if options.sample else "pictograms",
        "Emoji in three drawing styles with English and Chinese names and their spoken form"
        + (", a small part, with some text and code." if options.sample else "."),
        "Speech in this pack is synthetic (espeak-ng).", options.force)
    for entry in sources(options.cache):
        pack.add_source(entry)
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        jobs = [(options.cache, concept, voices) for concept in chosen]
        for done, (concept, files) in enumerate(pool.map(build_concept, jobs, chunksize=4), 1):
            pack.add_concept(concept, files)
            if done % 200 == 0:
                print(f"{done} of {len(chosen)}", flush=True)
    if options.sample:
        limit = SAMPLE_TEXT_BYTES
        for language, (rows, from_) in {
            "en": textsources.english(options.cache, limit),
            "zh": textsources.chinese(options.cache, limit, with_manpages=False),
            "code": textsources.code(options.cache, limit),
        }.items():
            for entry in from_:
                pack.add_source(entry)
            pack.add_texts(f"texts-{language}.jsonl", language, rows)
    split = {part: [v for v in voices if VOICES[v].split == part] for part in ("train", "test")}
    pack.finish(style=STYLE_SPLIT, voice=split)


if __name__ == "__main__":
    main()
