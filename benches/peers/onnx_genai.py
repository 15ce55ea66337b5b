"""How fast onnxruntime-genai decodes a checkpoint in 4 and 8 bits, and Danlu beside it with --danlu:
alternated, medians and ratios.

Its own model builder makes the ONNX models of a Hugging Face folder, once: blocks of 32, activations
in 8 bits, which is its fastest setting on a processor. Its head and embedding have as many bits as the
rest; Danlu's embedding and head have eight where the rest has four. Ids are random, replies greedy on
both sides, and none ends before its time.
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

PRECISIONS = {"q4_0": "int4", "q8_0": "int8"}
PROMPT, TOKENS = 128, 128


def build(source, folder, precision):
    part = folder.with_suffix(".part")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(part), "-p", precision, "-e", "cpu"]
    command += ["--extra_options", "accuracy_level=4", "block_size=32"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"the model builder: {run.stderr[-2000:]}")
    part.rename(folder)


def set_threads(folder, threads):
    """Its threads are said in the model's configuration alone."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=4))


def measure(folder, args):
    """One process, one model, one round."""
    import numpy as np
    import onnxruntime_genai as og

    start = time.perf_counter()
    model = og.Model(str(folder))
    load = time.perf_counter() - start
    vocabulary = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
    rng = np.random.default_rng(1)

    def prompted(rows, prompt, tokens):
        """A generator that has read its prompts and said a first token; seconds of that."""
        params = og.GeneratorParams(model)
        whole = prompt + tokens + 1
        params.set_search_options(
            batch_size=rows, do_sample=False, max_length=whole, min_length=whole
        )
        generator = og.Generator(model, params)
        ids = rng.integers(0, vocabulary, (rows, prompt)).astype(np.int32)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        return generator, time.perf_counter() - start

    def rate(rows, prompt, tokens):
        generator, _ = prompted(rows, prompt, tokens)
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        seconds = time.perf_counter() - start
        said = len(generator.get_sequence(0)) - prompt - 1
        assert said == tokens, f"{said} of {tokens} tokens"
        return rows * tokens / seconds

    results = {"one": [], "many": [], "prefill": []}
    rate(1, PROMPT, 8)
    for _ in range(args.repeats):
        results["one"].append(rate(1, PROMPT, TOKENS))
        results["many"].append(rate(args.batch, 16, TOKENS // 2))
        results["prefill"].append(512 / prompted(1, 512, 1)[1])
    return {
        "engine": f"onnxruntime-genai {og.__version__}",
        "tokens_per_second": statistics.median(results["one"]),
        "batch_tokens_per_second": statistics.median(results["many"]),
        "prefill_tokens_per_second": statistics.median(results["prefill"]),
        "load_seconds": load,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--hf", type=pathlib.Path, required=True, help="the checkpoint, a Hugging Face folder")
    a.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/peers-onnx"))
    a.add_argument("--format", choices=PRECISIONS, default="q4_0")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--repeats", type=int, default=3)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--danlu", type=pathlib.Path, help="the danlu program, to alternate with")
    a.add_argument("--model", type=pathlib.Path, help="the same checkpoint, by danlu import")
    a.add_argument("--once", action="store_true", help="one round of onnxruntime-genai, as JSON")
    args = a.parse_args()
    if args.danlu and not args.model:
        a.error("--danlu wants --model")
    args.folder.mkdir(parents=True, exist_ok=True)
    folder = args.folder / f"{args.hf.resolve().name}-{PRECISIONS[args.format]}"
    if not folder.exists():
        build(args.hf, folder, PRECISIONS[args.format])
    set_threads(folder, args.threads)
    if args.once:
        print(json.dumps(measure(folder, args)))
        return
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads), OMP_NUM_THREADS=str(args.threads))
    same = ["--format", args.format, "--batch", str(args.batch), "--repeats", str(args.repeats)]
    theirs = [sys.executable, __file__, "--once", "--hf", str(args.hf), "--folder", str(args.folder)]
    engines = {"onnxruntime-genai": [*theirs, *same, "--threads", str(args.threads)]}
    if args.danlu:
        ours = [str(args.danlu.resolve()), "bench", "decode", "--json", "--model", str(args.model)]
        engines["danlu"] = ours + same
    results = {name: [] for name in engines}
    for _ in range(args.rounds):
        for name, command in engines.items():
            run = subprocess.run(command, env=env, capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"{name}: {run.stderr[-2000:]}")
            results[name].append(json.loads(run.stdout.strip().splitlines()[-1]))
    for key in [
        "tokens_per_second",
        "batch_tokens_per_second",
        "prefill_tokens_per_second",
        "load_seconds",
        "peak_rss_mb",
    ]:
        line = f"{args.format:5} {key:28}"
        for name, rounds in results.items():
            values = sorted(r[key] for r in rounds)
            line += f" {name} {statistics.median(values):8.1f} ({values[0]:.1f} to {values[-1]:.1f})"
        if args.danlu:
            pairs = zip(results["danlu"], results["onnxruntime-genai"])
            line += f"  ours / it {statistics.median(d[key] / o[key] for d, o in pairs):.2f}"
        print(line)
    print(results["onnxruntime-genai"][0]["engine"])


if __name__ == "__main__":
    main()
