"""Checks pack folders: python packs/check.py DIR...

Exits non-zero and names the file at the first thing that is wrong in each pack.
"""

import collections
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import soundfile
from PIL import Image

FORBIDDEN_STYLES = {"openmoji"}


class Fault(Exception):
    """Something wrong with a pack."""


def need(holds, where, what):
    """Raises a fault that names the file unless `holds`."""
    if not holds:
        raise Fault(f"{where}: {what}")


def check_pack(folder):
    """Reads a whole pack; returns its counts."""
    path = folder / "manifest.json"
    need(path.is_file(), path, "missing")
    manifest = json.loads(path.read_text("utf-8"))
    need(manifest["format"] == "danlu-pack/1", path, f"format {manifest['format']}")
    need(manifest["notice"], path, "no notice")
    for entry in manifest["sources"]:
        licence = folder / entry["licence_file"]
        need(licence.is_file() and licence.stat().st_size > 100, licence, "licence missing or empty")
        need("openmoji" not in entry["name"], path, f"source {entry['name']} must not be in a pack")
    for entry in manifest["shards"] + manifest["texts"]:
        file = folder / entry["file"]
        need(file.is_file(), file, "missing")
        data = file.read_bytes()
        need(len(data) == entry["bytes"], file, f"{len(data)} bytes, manifest says {entry['bytes']}")
        need(hashlib.sha256(data).hexdigest() == entry["sha256"], file, "sha256 differs from the manifest")
    known = {"manifest.json"} | {e["file"] for e in manifest["shards"] + manifest["texts"]}
    known |= {e["licence_file"] for e in manifest["sources"]}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        need(str(file.relative_to(folder)) in known, file, "is not named in the manifest")

    seen, splits = set(), collections.Counter()
    found = {"concepts": 0, "pictures": 0, "sounds": 0, "texts": 0,
             "pictures_by_style": collections.Counter(), "sounds_by_voice": collections.Counter()}
    for shard in manifest["shards"]:
        before = found["concepts"]
        for concept, members, where in concepts(folder / shard["file"]):
            need(concept["id"] not in seen, where, "id seen twice")
            seen.add(concept["id"])
            found["concepts"] += 1
            splits[concept["split"]] += 1
            check_concept(concept, members, where, manifest, found)
        need(found["concepts"] - before == shard["concepts"], folder / shard["file"], "wrong number of concepts")
    for entry in manifest["texts"]:
        rows = (folder / entry["file"]).read_text("utf-8").splitlines()
        need(len(rows) == entry["rows"], folder / entry["file"], f"{len(rows)} rows, manifest says {entry['rows']}")
        for number, line in enumerate(rows, 1):
            row = json.loads(line)
            need(500 <= len(row["text"]) <= 3000, folder / entry["file"], f"line {number} has {len(row['text'])} characters")
            need(row.get("split", "val") == "val" and row["source"], folder / entry["file"], f"line {number} split or source")
        found["texts"] += len(rows)
    for key, value in found.items():
        said = manifest["counts"][key]
        need(value == said, path, f"counts.{key} is {said}, found {dict(value) if isinstance(said, dict) else value}")
    said = manifest["splits"]["concept"]["counts"]
    need(all(splits[part] == said[part] for part in said), path, f"concept splits are {said}, found {dict(splits)}")
    for axis in ("style", "voice"):
        both = set(manifest["splits"][axis]["train"]) & set(manifest["splits"][axis]["test"])
        need(not both, path, f"{axis} {sorted(both)} is in train and test")
    return found


def concepts(tar_path):
    """(concept, members' bytes, place) of each run of members of a shard."""
    held = None
    with tarfile.open(tar_path) as tar:
        for member in tar:
            need(member.mtime == 0 and member.uid == 0 and member.gid == 0, f"{tar_path}:{member.name}", "not reproducible")
            data = tar.extractfile(member).read()
            stem = member.name.split(".", 1)[0]
            if member.name == f"{stem}.json":
                if held:
                    yield held
                held = (json.loads(data), {}, f"{tar_path}:{member.name}")
            else:
                need(held and held[0]["id"] == stem, f"{tar_path}:{member.name}", "does not follow its concept's json")
                held[1][member.name] = data
    if held:
        yield held


def check_concept(concept, members, where, manifest, found):
    """One concept: names, splits, and every picture and sound."""
    need(concept["names"].get("en"), where, "no English name")
    need(concept["split"] in ("train", "val", "test"), where, f"split {concept['split']}")
    named = [entry["file"] for entry in concept["pictures"] + concept["sounds"]]
    need(sorted(named) == sorted(members), where, "members differ from those its json names")
    need(concept["pictures"], where, "no picture")
    for kind, axis in (("pictures", "style"), ("sounds", "voice")):
        for entry in concept[kind]:
            place = f"{where.rsplit(':', 1)[0]}:{entry['file']}"
            label = entry.get(axis)
            found[kind] += 1
            found["pictures_by_style" if axis == "style" else "sounds_by_voice"][label or entry["kind"]] += 1
            need(label not in FORBIDDEN_STYLES, place, f"style {label} must not be in a pack")
            if label:
                need(label in manifest["splits"][axis].get(entry["split"], []), place, f"{axis} {label} is not in split {entry['split']}")
            data = members[entry["file"]]
            if kind == "pictures":
                picture = Image.open(io.BytesIO(data))
                picture.load()
                need(picture.format == "PNG" and picture.mode == "RGB" and picture.size == (64, 64), place, f"{picture.format} {picture.mode} {picture.size}")
                need(any(low != high for low, high in picture.getextrema()), place, "picture is blank")
            else:
                need(entry["kind"] in ("speech", "effect"), place, f"kind {entry['kind']}")
                samples, rate = soundfile.read(io.BytesIO(data))
                info = soundfile.info(io.BytesIO(data))
                need(rate == 16000 and samples.ndim == 1 and info.subtype == "VORBIS", place, f"{rate} Hz, {info.subtype}")
                need(0.15 <= len(samples) / rate <= 15, place, f"lasts {len(samples) / rate:.2f} s")
                need(0.4 <= abs(samples).max() <= 1.0, place, f"peak {abs(samples).max():.2f}")


def main():
    """Checks each folder given."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    faults = 0
    for name in sys.argv[1:]:
        try:
            found = check_pack(Path(name))
            print(f"{name}: good: {json.dumps(found, ensure_ascii=False)}")
        except (Fault, KeyError, ValueError, OSError) as fault:
            faults += 1
            print(f"{name}: BAD: {type(fault).__name__}: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
