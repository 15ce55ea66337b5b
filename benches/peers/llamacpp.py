"""How fast llama.cpp decodes, on the two shapes that `danlu bench decode --shape` knows, and Danlu
beside it with --danlu: alternated, medians and ratios.

Random weights are written as GGUF files without a vocabulary into --folder, once. Embedding and
head have eight bits where the rest has four, as in Danlu. Ids are random and no token is drawn from
the logits, which spares llama.cpp a little work that Danlu's figures hold.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

SHAPES = {
    "135m": dict(width=576, depth=30, heads=9, kv_heads=3, hidden=1536),
    "360m": dict(width=960, depth=32, heads=15, kv_heads=5, hidden=2560),
}
VOCABULARY, CONTEXT = 49152, 2048
TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def write(path, shape, kind):
    import gguf
    import numpy as np

    rng = np.random.default_rng(1)
    s = SHAPES[shape]
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(s["width"])
    w.add_block_count(s["depth"])
    w.add_feed_forward_length(s["hidden"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv_heads"])
    w.add_rope_dimension_count(64)
    w.add_rope_freq_base(100000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCABULARY)
    w.add_tokenizer_model("no_vocab")

    def tensor(name, rows, cols, kind):
        data = (rng.standard_normal((rows, cols)) * 0.03).astype(np.float32)
        qtype = gguf.GGMLQuantizationType[TYPES[kind]]
        w.add_tensor(name, gguf.quants.quantize(data, qtype), raw_dtype=qtype)

    def ones(name):
        w.add_tensor(name, np.ones(s["width"], np.float32))

    tensor("token_embd.weight", VOCABULARY, s["width"], "q8_0" if kind == "q4_0" else kind)
    ones("output_norm.weight")
    kv = 64 * s["kv_heads"]
    for i in range(s["depth"]):
        for name, rows, cols in [
            ("attn_q", s["width"], s["width"]),
            ("attn_k", kv, s["width"]),
            ("attn_v", kv, s["width"]),
            ("attn_output", s["width"], s["width"]),
            ("ffn_gate", s["hidden"], s["width"]),
            ("ffn_up", s["hidden"], s["width"]),
            ("ffn_down", s["width"], s["hidden"]),
        ]:
            tensor(f"blk.{i}.{name}.weight", rows, cols, kind)
        ones(f"blk.{i}.attn_norm.weight")
        ones(f"blk.{i}.ffn_norm.weight")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def measure(path, args):
    """One process, one model, one round."""
    import ctypes
    import random

    import llama_cpp as l

    backends = os.environ.get("GGML_BACKENDS")
    if backends:
        # Libraries with one file for each kind of processor: the best one is taken.
        ggml = ctypes.CDLL(str(pathlib.Path(backends) / "libggml.so"))
        ggml.ggml_backend_load_all_from_path(backends.encode())
    l.llama_backend_init()
    start = time.perf_counter()
    model = l.llama_model_load_from_file(str(path).encode(), l.llama_model_default_params())
    load = time.perf_counter() - start
    assert model, f"{path} does not load"
    p = l.llama_context_default_params()
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = CONTEXT, 512, 512, args.batch
    p.kv_unified = True
    p.n_threads = p.n_threads_batch = args.threads
    ctx = l.llama_init_from_model(model, p)
    memory = l.llama_get_memory(ctx)
    rng = random.Random(1)
    batch = l.llama_batch_init(512, 0, args.batch)

    def feed(rows):
        """rows: (position, sequence, whether logits are wanted)."""
        batch.n_tokens = len(rows)
        for i, (position, sequence, wanted) in enumerate(rows):
            batch.token[i] = rng.randrange(VOCABULARY)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        assert l.llama_decode(ctx, batch) == 0
        l.llama_get_logits(ctx)

    def prompt(n, sequence):
        feed([(i, sequence, i == n - 1) for i in range(n)])

    results = {"one": [], "many": [], "prefill": []}
    for _ in range(args.repeats):
        l.llama_memory_clear(memory, True)
        prompt(128, 0)
        start = time.perf_counter()
        for i in range(128):
            feed([(128 + i, 0, True)])
        results["one"].append(128 / (time.perf_counter() - start))
        l.llama_memory_clear(memory, True)
        for s in range(args.batch):
            prompt(16, s)
        start = time.perf_counter()
        for i in range(64):
            feed([(16 + i, s, True) for s in range(args.batch)])
        results["many"].append(64 * args.batch / (time.perf_counter() - start))
        l.llama_memory_clear(memory, True)
        start = time.perf_counter()
        prompt(512, 0)
        results["prefill"].append(512 / (time.perf_counter() - start))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {
        "engine": "llama.cpp",
        "tokens_per_second": statistics.median(results["one"]),
        "batch_tokens_per_second": statistics.median(results["many"]),
        "prefill_tokens_per_second": statistics.median(results["prefill"]),
        "load_seconds": load,
        "peak_rss_mb": rss,
        "system": l.llama_print_system_info().decode(),
    }


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/peers-gguf"))
    a.add_argument("--shape", choices=SHAPES, default="135m")
    a.add_argument("--format", choices=TYPES, default="q8_0")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--repeats", type=int, default=3)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--danlu", type=pathlib.Path, help="the danlu program, to alternate with")
    a.add_argument("--once", action="store_true", help="one round of llama.cpp, as JSON")
    args = a.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"{args.shape}-{args.format}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        write(part, args.shape, args.format)
        part.rename(path)
    if args.once:
        print(json.dumps(measure(path, args)))
        return
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads), OMP_NUM_THREADS=str(args.threads))
    same = ["--shape", args.shape, "--format", args.format, "--batch", str(args.batch)]
    same += ["--repeats", str(args.repeats)]
    theirs = [sys.executable, __file__, "--once", "--folder", str(args.folder), *same]
    theirs += ["--threads", str(args.threads)]
    engines = {"llama.cpp": theirs}
    if args.danlu:
        engines["danlu"] = [str(args.danlu.resolve()), "bench", "decode", "--json", *same]
    results = {name: [] for name in engines}
    for _ in range(args.rounds):
        for name, command in engines.items():
            run = subprocess.run(command, env=env, capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"{name}: {run.stderr[-2000:]}")
            results[name].append(json.loads(run.stdout.strip().splitlines()[-1]))
    for key in ["tokens_per_second", "batch_tokens_per_second", "prefill_tokens_per_second", "peak_rss_mb"]:
        line = f"{args.shape} {args.format:5} {key:28}"
        for name, rounds in results.items():
            values = sorted(r[key] for r in rounds)
            line += f" {name} {statistics.median(values):8.1f} ({values[0]:.0f} to {values[-1]:.0f})"
        if args.danlu:
            pairs = zip(results["danlu"], results["llama.cpp"])
            line += f"  ours / it {statistics.median(d[key] / o[key] for d, o in pairs):.2f}"
        print(line)
    print(results["llama.cpp"][0]["system"])


if __name__ == "__main__":
    main()
