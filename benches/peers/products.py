"""Matrix products of Danlu and of other libraries, shape by shape, alternated in one run.

    python benches/peers/products.py --danlu target/release/danlu --peer /tmp/peers-target/release/peer-gemm

The shapes are those of `danlu bench gemm`. Every round runs every library once, each in a process of
its own. The table has medians in GFLOP/s; a ratio is ours over the best of the others by medians.
"""

import argparse
import json
import statistics
import subprocess
import sys

from compare import same_threads

LIBRARIES = ["gemm", "faer", "matrixmultiply", "openblas"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--danlu", required=True, help="our program")
    p.add_argument("--peer", required=True, help="peer-gemm, built")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--repeats", type=int, default=9, help="products per shape and round")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--openblas-core", help="OPENBLAS_CORETYPE, where OpenBLAS is older than the processor and "
                                           "takes it for a small one, for example SKYLAKEX")
    p.add_argument("--json", help="file for every single result")
    o = p.parse_args()

    env = same_threads(o.threads)
    if o.openblas_core:
        env["OPENBLAS_CORETYPE"] = o.openblas_core

    def run(command, text=None):
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given")
        return json.loads(done.stdout)

    results, peaks, libraries = {"danlu": []}, [], list(LIBRARIES)
    for round_ in range(o.rounds):
        ours = run([o.danlu, "bench", "gemm", "--repeats", str(o.repeats), "--json"])
        peaks.append(ours["fma_peak_gflops"])
        results["danlu"].append({r["name"]: r["gflops"] for r in ours["rows"]})
        names = "\n".join(r["name"] for r in ours["rows"]) + "\n"
        for library in list(libraries):
            try:
                theirs = run([o.peer, library, str(o.threads), str(o.repeats)], names)
            except (RuntimeError, OSError, ValueError) as error:
                print(f"left out: {library} ({error})", file=sys.stderr)
                libraries.remove(library)
                continue
            results.setdefault(library, []).append({r["name"]: r["gflops"] for r in theirs["rows"]})
        print(f"round {round_ + 1} of {o.rounds}", file=sys.stderr)

    peak = statistics.median(peaks)
    columns = ["danlu", *libraries]
    print(f"{o.threads} threads, medians of {o.rounds} rounds in GFLOP/s; multiply-add peak {peak:.0f}\n")
    print("| product | " + " | ".join(columns) + " | ours / best of them | ours / peak |")
    print("|---" * (len(columns) + 3) + "|")
    for name in results["danlu"][0]:
        median = {c: statistics.median(r[name] for r in results[c]) for c in columns}
        best = max((median[c] for c in libraries), default=float("nan"))
        print(f"| {name} | " + " | ".join(f"{median[c]:.0f}" for c in columns)
              + f" | {median['danlu'] / best:.2f} | {median['danlu'] / peak:.2f} |")
    if o.json:
        with open(o.json, "w", encoding="utf-8") as f:
            json.dump({"peaks": peaks, "rounds": results}, f, indent=1)


if __name__ == "__main__":
    main()
