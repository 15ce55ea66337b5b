"""Holds what a tiny training tracks against the real TensorBoard and a real MLflow server.

    python3 -m venv /tmp/track && /tmp/track/bin/pip install tensorboard mlflow
    /tmp/track/bin/python benches/tracking.py

Trains a tiny recipe, stops it half-way and goes on, with event files, a Prometheus file and a local
MLflow server; then reads all three back with their own software and compares them with `train.jsonl`,
number by number. Needs the built program (cargo build --release).
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from troubles import DANLU, RECIPE, ROOT, TOKENISERS

STEPS = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main():
    at = Path(tempfile.mkdtemp())
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--backend-store-uri", f"sqlite:///{at}/mlflow.db", "--default-artifact-root", str(at)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address + "/health").read()
                break
            except OSError:
                time.sleep(0.2)
        recipe = RECIPE.format(root=ROOT, tokenisers=TOKENISERS, seed=1, steps=STEPS, optimiser="adamw", on="true")
        recipe = recipe.replace('files = ["rows.jsonl"]\n', "").replace("file = 0.5\n", "")
        recipe += f'[track]\ntensorboard = true\nprometheus = "danlu.prom"\nmlflow = "{address}"\n'
        (at / "tracked.toml").write_text(recipe)
        run = at / "run"
        # Stopped once on the way.
        first = subprocess.Popen([DANLU, "train", at / "tracked.toml", "--out", run], stderr=subprocess.DEVNULL)
        while first.poll() is None and not (run / "checkpoints/step-00000020").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGINT)
        first.wait()
        done = subprocess.run([DANLU, "train", "--resume", run], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "not tracked" not in done.stderr and "left out from" not in done.stderr, done.stderr
        log = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == list(range(1, STEPS + 1))
        tensorboard(run, log)
        mlflow(address, run, log)
        prometheus(run, log)
    finally:
        server.terminate()
        server.wait()


def tensorboard(run, log):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    for tag, of in [("loss", lambda l: l["loss"]), ("gradient_norm", lambda l: l["norm"])]:
        scalars = found.Scalars(tag)
        assert [s.step for s in scalars] == [l["step"] for l in log], tag
        for scalar, line in zip(scalars, log):
            assert abs(scalar.value - of(line)) <= 1e-6 * abs(of(line)), (tag, line["step"])
    text = {l["step"]: l["modality"]["text"] for l in log if "text" in l["modality"]}
    assert {s.step for s in found.Scalars("loss/text")} == set(text)
    print(f"tensorboard: {len(found.Tags()['scalars'])} curves, {len(log)} steps, each once, as logged")


def mlflow(address, run, log):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    kept = json.loads((run / "mlflow.json").read_text())
    found = client.get_run(kept["run_id"])
    assert found.info.status == "FINISHED", found.info.status
    assert found.data.params["train.steps"] == str(STEPS)
    newest = {}
    for m in client.get_metric_history(kept["run_id"], "loss"):
        if m.step not in newest or m.timestamp >= newest[m.step].timestamp:
            newest[m.step] = m
    assert sorted(newest) == [l["step"] for l in log]
    for line in log:
        assert newest[line["step"]].value == line["loss"], line["step"]
    print(f"mlflow: run finished, {len(found.data.params)} parameters, {len(newest)} steps, as logged")


def prometheus(run, log):
    lines = (run / "danlu.prom").read_text().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['danlu_train_step{run="trouble"}']) == STEPS
    assert float(values['danlu_train_loss{run="trouble"}']) == log[-1]["loss"]
    print(f"prometheus: {len(values)} values, those of the last step")


if __name__ == "__main__":
    main()
