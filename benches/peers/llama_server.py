"""Streams over HTTP: llama-server and `danlu serve`, asked by the same clients (`danlu bench serve --url`).

    python benches/peers/llama_server.py --server llama/bin/llama-server \\
        --danlu target/release/danlu --model 'kept/{format}' --gguf f32.gguf

`kept/q8_0` and `kept/q4_0` are folders of `danlu compress --weights`, and f32.gguf is the same model (`danlu
export MODEL --format gguf`). A folder of `danlu import` will do too; it is then quantised at every start. Both
servers are started anew in every round and asked in turn; the lines are medians of the rounds, and of the
rounds' ratios. Embedding and head have eight bits where the rest has four, as in Danlu.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request


def quantise(source, target, kind):
    """Writes a GGUF file again with the matrices in another format."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(str(source))
    field = lambda name: reader.fields[name].contents()
    writer = gguf.GGUFWriter(str(target), field("general.architecture"))
    for name, f in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        sub = f.types[-1] if f.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, f.contents(), f.types[0], sub)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        table = tensor.name in ("token_embd.weight", "output.weight")
        to = gguf.GGMLQuantizationType["Q8_0" if table and kind == "q4_0" else kind.upper()]
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server of this machine, from its start to its end."""

    def __init__(self, command, port, ready, env):
        self.log = open(f"/tmp/llama_server-{port}.log", "wb")
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=env)
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if self.process.poll() is not None or time.perf_counter() - start > 120:
                self.end()
                sys.exit(f"{command[0]} does not start; see {self.log.name}")
            time.sleep(0.01)
        self.load = time.perf_counter() - start

    def peak_mb(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6

    def end(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def once(engine, args, path, kind, env):
    port = free_port()
    if engine == "danlu":
        folder = pathlib.Path(args.model.format(format=kind)).resolve()
        command = [args.danlu, "serve", "--model", folder, "--port", str(port), "--weights", kind,
                   "--max-batch", str(args.streams)]
        ready, name = "/ready", folder.name
    else:
        command = [args.server, "-m", path, "--port", str(port), "--host", "127.0.0.1", "-t", str(args.threads),
                   "-np", str(args.streams), "-c", str(args.streams * 512), *args.server_args.split()]
        ready, name = "/health", "any"
    server = Server([str(c) for c in command], port, ready, env)
    try:
        ask = [args.danlu, "bench", "serve", "--json", "--url", f"http://127.0.0.1:{port}/v1", "--name", name]
        for flag in ["streams", "requests", "words", "shared", "tokens", "temperature"]:
            ask += [f"--{flag}", getattr(args, flag)]
        run = subprocess.run([str(a) for a in ask], capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{engine}: {run.stderr[-2000:]}")
        measured = json.loads(run.stdout.strip().splitlines()[-1])
        return measured | {"load_seconds": server.load, "peak_rss_mb": server.peak_mb()}
    finally:
        server.end()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--danlu", type=pathlib.Path, required=True, help="the danlu program")
    a.add_argument("--model", required=True, help="model folder; {format} in it is replaced")
    a.add_argument("--gguf", type=pathlib.Path, required=True, help="the same model in GGUF")
    a.add_argument("--server", default=os.environ.get("LLAMA_SERVER") or shutil.which("llama-server"))
    a.add_argument("--server-args", default="", help="more arguments of llama-server, in one string")
    a.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/peers-gguf"))
    a.add_argument("--formats", nargs="+", default=["q8_0", "q4_0"])
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--streams", type=int, default=8)
    a.add_argument("--requests", type=int, default=32)
    a.add_argument("--words", type=int, default=128)
    a.add_argument("--shared", type=int, default=0)
    a.add_argument("--tokens", type=int, default=128)
    a.add_argument("--temperature", type=float, default=1.0)
    args = a.parse_args()
    if not args.server:
        sys.exit("llama-server is not on the path: give --server or LLAMA_SERVER")
    args.danlu = args.danlu.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads), OMP_NUM_THREADS=str(args.threads))
    for kind in args.formats:
        path = args.folder / f"{args.gguf.stem}-{kind}.gguf"
        if not path.exists():
            part = path.with_suffix(".part")
            quantise(args.gguf, part, kind)
            part.rename(path)
        results = {"danlu": [], "llama-server": []}
        for _ in range(args.rounds):
            for engine, rounds in results.items():
                rounds.append(once(engine, args, path, kind, env))
        errors = {engine: sum(r["errors"] for r in rounds) for engine, rounds in results.items()}
        for key in ["tokens_per_second", "first_token_p50_s", "first_token_p95_s", "request_p50_s",
                    "load_seconds", "peak_rss_mb", "completion_tokens"]:
            line = f"{kind:5} {key:18}"
            for engine, rounds in results.items():
                values = sorted(r[key] for r in rounds)
                line += f" {engine} {statistics.median(values):9.3f} ({values[0]:.3f} to {values[-1]:.3f})"
            pairs = zip(results["danlu"], results["llama-server"])
            line += f"  ours / it {statistics.median(d[key] / max(o[key], 1e-9) for d, o in pairs):.2f}"
            print(line, flush=True)
        print(f"{kind:5} errors {errors}", flush=True)


if __name__ == "__main__":
    main()
