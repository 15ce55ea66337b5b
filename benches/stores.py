"""Trains with checkpoints copied to an S3 server, loses the machine's own again and again, and compares.

    cargo build --release --features object-store
    python3 -m venv /tmp/stores && /tmp/stores/bin/pip install 'moto[server]' boto3
    /tmp/stores/bin/python benches/stores.py [--kills 10] [--seed 1]

The server is moto's, on this machine, so what is tried is the protocol and not Amazon's. A tiny training is
killed with SIGKILL at random moments; its folder of checkpoints is then removed, and it goes on from what is
in the bucket. It must end with the bits of one that was left alone. From the server's log: the manifest of a
checkpoint comes after all of its shards. A training with another seed is given the same place: it must be
refused; or, where it was begun elsewhere, its checkpoints must be, and it must end all the same. Those of the
first must be as they were. Needs the built program
(or its path in DANLU).
"""

import argparse
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import boto3
from troubles import DANLU, RECIPE, ROOT, TOKENISERS

STEPS = 60
BUCKET = "checkpoints"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def recipe(at, name, seed, store):
    text = RECIPE.format(root=ROOT, tokenisers=TOKENISERS, seed=seed, steps=STEPS, optimiser="adamw", on="true")
    text = text.replace('files = ["rows.jsonl"]\n', "").replace("file = 0.5\n", "")
    if store:
        # Small shards, so that a checkpoint is several objects.
        text += f'[checkpoint]\nshard_mb = 1\nstore = "s3://{BUCKET}/{store}"\n'
    path = at / f"{name}.toml"
    path.write_text(text)
    return path


def begin(at, name, base):
    """A fresh folder with the tokenisers and codes of `base`."""
    run = at / name
    shutil.copytree(base / "tokenisers", run / "tokenisers")
    for file in ["tokenisers.html", "codes.bin"]:
        shutil.copy(base / file, run)
    return run


def log_of(text):
    """Writes and removals as the server took them: method, status and key."""
    # The server paints what is not 200.
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.findall(rf'"(PUT|POST|DELETE) /{BUCKET}/(\S*) HTTP/1.1" (\d+)', text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    at = Path(tempfile.mkdtemp())
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT=endpoint, AWS_ALLOW_HTTP="true", AWS_DEFAULT_REGION="us-east-1")
    server_log = at / "server.log"
    server = subprocess.Popen(
        [Path(os.sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=server_log.open("w"), stderr=subprocess.STDOUT,
    )
    try:
        client = boto3.client("s3", endpoint_url=endpoint)
        for _ in range(300):
            try:
                client.create_bucket(Bucket=BUCKET)
                break
            except Exception:
                time.sleep(0.2)

        def objects(prefix):
            listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
            return {o["Key"]: (o["ETag"], o["Size"]) for o in listed}

        def manifests(prefix):
            return sorted(int(k.split("step-")[1].split("/")[0]) for k in objects(prefix) if k.endswith("manifest.json"))

        def danlu(*arguments):
            return subprocess.run([DANLU, *map(str, arguments)], capture_output=True, text=True)

        base = at / "base"
        started = time.monotonic()
        done = danlu("train", recipe(at, "base", 1, None), "--out", base)
        assert done.returncode == 0, done.stderr
        # From the first step on; the tokenisers are not learnt again.
        path = recipe(at, "kept", 1, "kept")
        run = begin(at, "kept", base)
        started = time.monotonic()
        done = danlu("train", path, "--out", run)
        took = time.monotonic() - started
        assert done.returncode == 0 and "not copied" not in done.stderr, done.stderr
        weights = lambda run: (run / "model/model.safetensors").read_bytes()
        assert weights(run) == weights(base), "left alone, with a store"
        local = sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))
        assert manifests("kept/") == local, (manifests("kept/"), local)
        print(f"left alone: {took:.1f} s, the bits of a run without a store; {len(objects('kept/'))} objects, checkpoints {local} there as here")

        path = recipe(at, "killed", 1, "killed")
        run = begin(at, "killed", base)
        words = ["train", path, "--out", run]
        kills = fetched = 0
        while kills < args.kills:
            process = subprocess.Popen([DANLU, *map(str, words)], stderr=subprocess.PIPE, text=True)
            try:
                _, said = process.communicate(timeout=rng.uniform(0.1, 1.0) * took)
            except subprocess.TimeoutExpired:
                process.kill()
                _, said = process.communicate()
                kills += 1
            fetched += "fetched the checkpoint" in said
            if process.returncode == 0:
                assert weights(run) == weights(base), "killed and gone on with"
                assert not danlu("debug", run, "--audit").returncode
                shutil.rmtree(run)
                # The next one has a place of its own.
                path = recipe(at, "killed", 1, f"killed-{kills}")
                run = begin(at, "killed", base)
                words = ["train", path, "--out", run]
                continue
            assert process.returncode == -9, said
            # The machine is lost: what it had of checkpoints is gone.
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
            if (run / "recipe.toml").exists():
                words = ["train", "--resume", run]
        done = danlu(*words)
        fetched += "fetched the checkpoint" in done.stderr
        assert done.returncode == 0, done.stderr
        assert weights(run) == weights(base), "killed and gone on with"
        assert not danlu("debug", run, "--audit").returncode
        print(f"killed {kills} times, its checkpoints removed each time: {fetched} starts from the bucket, the same bits")

        before = {key: value for key, value in objects("kept/").items()}
        path = recipe(at, "other", 2, "kept")
        run = begin(at, "other", base)
        done = danlu("train", path, "--out", run)
        assert done.returncode != 0 and "of this training" in done.stderr, done.stderr
        assert objects("kept/") == before, "refused before its first step"
        process = subprocess.Popen([DANLU, "train", recipe(at, "other", 2, None), "--out", run])
        while not list((run / "checkpoints").glob("step-*1?")):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.kill()
        process.wait()
        done = danlu("train", recipe(at, "other", 2, "kept"), "--out", run)
        refused = done.stderr.count("not copied")
        clash = [s for s in manifests("kept/") if f"kept/step-{s:08}/manifest.json" in before]
        assert done.returncode == 0 and (run / "model/model.safetensors").exists(), done.stderr
        assert refused > 0 and "of this training" in done.stderr, done.stderr
        kept = {key: value for key, value in objects("kept/").items() if key in before}
        assert all(kept.get(key) == before[key] for key in before if key.endswith("manifest.json") and key in kept)
        print(f"another training at the same place: {refused} refusals told, it ended; {len(clash)} of {len(local)} manifests of the first as they were")

        events = log_of(server_log.read_text())
        order, wrong, puts, refusals = {}, 0, 0, 0
        for method, key, status in events:
            key = key.split("?")[0]
            folder, _, name = key.rpartition("/")
            if name == "manifest.json" and method == "PUT":
                puts += status == "200"
                refusals += status == "412"
            if name == "manifest.json" and method == "PUT" and status == "200":
                order[folder] = True
            elif name == "manifest.json" and method == "DELETE":
                order.pop(folder, None)
            elif method in ("PUT", "POST") and order.get(folder):
                wrong += 1
        print(f"server's log: {len(events)} writes, {puts} manifests, {refusals} refused with 412, {wrong} shards written after their manifest")
    finally:
        server.terminate()
        server.wait()
    shutil.rmtree(at)


if __name__ == "__main__":
    main()
