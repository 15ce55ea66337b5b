"""Alternates Danlu and its peers on the same model in one run and prints medians and ratios.

    python benches/peers/compare.py --engines danlu,pytorch,compiled --rounds 5 --json out.json

Every round runs every engine once, one after the other, each in a process of its own; a ratio is
ours over the peer's in the same round, so a machine that slows down slows both. An engine that is
not installed is left out with the reason; one that fails shows the end of what it said, and the
others go on.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
TAIL = 12


class Engine:
    """How to start an engine, how to get it, and what it can train."""

    def __init__(self, name, command, install, archs=("gpt", "qwen"), ready=None):
        self.name, self.command, self.install = name, command, install
        self.archs, self.ready = archs, ready or (lambda: None)

    def missing(self, arch):
        """Why it cannot run, or None."""
        if arch not in self.archs:
            return f"it has no {arch} architecture"
        return self.ready()


def engines(o):
    """All engines, ours first."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
    torch_lines = ["python3 -m venv /tmp/peers && . /tmp/peers/bin/activate",
                   "pip install torch numpy  # then --python /tmp/peers/bin/python"]

    def built(path):
        return lambda: None if Path(path).is_file() else f"{path} is not built"

    def python_has(module):
        def check():
            try:
                done = subprocess.run([o.python, "-c", f"import {module}"], capture_output=True,
                                      text=True, timeout=300)
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{o.python}: {error}"
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            return None if done.returncode == 0 else f"{o.python} has no {module} ({last})"
        return check

    def compiler():
        if not (shutil.which("g++") or shutil.which("clang++") or os.environ.get("CXX")):
            return "torch.compile needs a C++ compiler"
        return python_has("torch")()

    def llmc():
        folder = os.environ.get("LLMC_DIR")
        if not folder:
            return "LLMC_DIR is not set"
        return built(Path(folder) / "train_gpt2")() or python_has("numpy")()

    def rust(name):
        program = target / "release" / f"peer-{name}"
        manifest = HERE / name / "Cargo.toml"
        lines = [f"export CARGO_TARGET_DIR={target}",
                 f"cargo build --release --manifest-path {manifest}"]
        return Engine(name, [program], lines, ready=built(program))

    return [
        Engine("danlu", [o.danlu, "bench", "train"],
               ["cd to the repository", "cargo build --release"], ready=built(o.danlu)),
        Engine("pytorch", [o.python, HERE / "pytorch.py"], torch_lines, ready=python_has("torch")),
        Engine("compiled", [o.python, HERE / "pytorch.py", "--compile"], torch_lines,
               ready=compiler),
        Engine("lean", [o.python, HERE / "pytorch.py", "--default-allocator"], torch_lines,
               ready=python_has("torch")),
        rust("candle"),
        rust("burn"),
        Engine("llmc", ["sh", HERE / "llmc.sh"],
               ["git clone https://github.com/karpathy/llm.c  # B = 8, T = 512 in train_gpt2.c",
                "build train_gpt2 as its README says, then export LLMC_DIR"],
               archs=("gpt",), ready=llmc),
    ]


def same_threads(threads):
    """An environment with the same threads for all, and nothing that slows a library down behind our back."""
    out = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                 "RAYON_NUM_THREADS", "MATMUL_NUM_THREADS"):
        out[name] = str(threads)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        out.pop(name, None)
    return out


def last_json(text):
    """The last line, or all of the text, that is a JSON object."""
    for piece in [*reversed(text.strip().splitlines()), text]:
        try:
            value = json.loads(piece)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def tail(text):
    """The end of what a program said, indented."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-TAIL:])


def run_once(engine, o):
    """One process. Returns its result, or raises RuntimeError with what it said."""
    command = [*map(str, engine.command), "--json", "--arch", o.arch, "--steps", str(o.steps),
               "--warmup", str(o.warmup), "--threads", str(o.threads)]
    if engine.name == "danlu":
        command += o.danlu_options.split()
    else:
        command += o.peer_options.split()
    began = machine.clock()
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                              env={**same_threads(o.threads), "PYTHON": o.python}, timeout=o.timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no result after {error.timeout:.0f} s") from error
    except OSError as error:
        raise RuntimeError(str(error)) from error
    result = last_json(done.stdout)
    if done.returncode or result is None:
        said = tail(done.stderr or done.stdout)
        raise RuntimeError(f"ended with {done.returncode} and no result\n{said}")
    speed = result.get("tokens_per_second")
    if not isinstance(speed, (int, float)) or speed <= 0:
        raise RuntimeError(f"no tokens_per_second in its result: {result}")
    return {**result, "stolen": round(machine.stolen(began), 4)}


def alternate(chosen, o):
    """`{engine: [result or None of each round]}` and `{engine: why it was given up}`."""
    results, failed = {e.name: [] for e in chosen}, {}
    for number in range(o.rounds):
        for engine in chosen:
            if engine.name in failed:
                results[engine.name].append(None)
                continue
            start = time.monotonic()
            try:
                result = run_once(engine, o)
            except RuntimeError as error:
                # Once it has worked it may try again in the next round.
                if not any(results[engine.name]):
                    failed[engine.name] = str(error)
                results[engine.name].append(None)
                print(f"round {number + 1}, {engine.name}: {error}", file=sys.stderr)
                continue
            results[engine.name].append(result)
            print(f"round {number + 1}, {engine.name}: {result['tokens_per_second']:.0f} tokens/s, "
                  f"{result.get('peak_rss_mb') or 0:.0f} MB, {time.monotonic() - start:.0f} s, "
                  f"{100 * result['stolen']:.0f} % of the time stolen by other guests",
                  file=sys.stderr)
    return results, failed


def spread(values):
    """Median, smallest and largest, or None."""
    values = [v for v in values if v is not None]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(results):
    """What the table shows: of every engine its speed and memory, and ours over its."""
    def column(name, key):
        return [r.get(key) if r else None for r in results[name]]

    def ratios(name, key):
        pairs = zip(column("danlu", key), column(name, key)) if "danlu" in results else []
        return spread([a / b if a and b else None for a, b in pairs])

    return {
        name: {
            "runs": sum(r is not None for r in rows),
            "tokens_per_second": spread(column(name, "tokens_per_second")),
            "peak_rss_mb": spread(column(name, "peak_rss_mb")),
            "mfu": spread(column(name, "mfu")),
            "ours_over_it_speed": ratios(name, "tokens_per_second"),
            "ours_over_it_rss": ratios(name, "peak_rss_mb"),
            "stolen": spread(column(name, "stolen")),
            "loss_first": spread(column(name, "loss_first")),
            "loss_last": spread(column(name, "loss_last")),
            "notes": sorted({r["note"] for r in rows if r and r.get("note")}),
        }
        for name, rows in results.items()
    }


def table(found):
    """The summary as text."""
    def cell(s, form):
        if s is None:
            return "-"
        return f"{s['median']:{form}} ({s['min']:{form}}-{s['max']:{form}})"

    rows = [("engine", "runs", "tokens/s", "peak RSS MB", "ours / it, speed", "ours / it, RSS",
             "loss")]
    for name, s in found.items():
        losses = "-"
        if s["loss_first"]:
            losses = f"{s['loss_first']['median']:.3f} -> {s['loss_last']['median']:.3f}"
        rows.append((name, str(s["runs"]), cell(s["tokens_per_second"], ".0f"),
                     cell(s["peak_rss_mb"], ".0f"), cell(s["ours_over_it_speed"], ".2f"),
                     cell(s["ours_over_it_rss"], ".2f"), losses))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
    lines += [f"{name}: {note}" for name, s in found.items() for note in s["notes"]]
    return "\n".join(lines)


def options():
    """The command line."""
    names = ["danlu", "pytorch", "compiled", "lean", "candle", "burn", "llmc"]
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--engines", default=",".join(n for n in names if n != "lean"),
                   help="which, with commas; lean is PyTorch with glibc's own thresholds")
    p.add_argument("--arch", choices=["gpt", "qwen"], default="gpt")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=5, help="steps that are timed in each run")
    p.add_argument("--warmup", type=int, default=1, help="steps before them")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--danlu", default=str(HERE.parent.parent / "target/release/danlu"))
    p.add_argument("--python", default=sys.executable, help="the Python that has PyTorch")
    p.add_argument("--danlu-options", default="", help="more options for Danlu, in one string")
    p.add_argument("--peer-options", default="", help="more options for the peers, in one string")
    p.add_argument("--timeout", type=float, default=1800.0, help="seconds for one process")
    p.add_argument("--json", default="", help="write everything to this file")
    o = p.parse_args()
    wanted = [n for n in o.engines.split(",") if n]
    if unknown := [n for n in wanted if n not in names]:
        p.error(f"--engines: {unknown[0]} is none of {', '.join(names)}")
    if o.rounds < 1 or o.steps < 1 or o.warmup < 1 or o.threads < 1:
        p.error("--rounds, --steps, --warmup and --threads must be at least 1")
    return o, wanted


def main():
    """Runs, prints, writes."""
    o, wanted = options()
    skipped, chosen = {}, []
    for engine in engines(o):
        if engine.name not in wanted:
            continue
        if reason := engine.missing(o.arch):
            skipped[engine.name] = reason
            lines = "\n".join(f"    {line}" for line in engine.install)
            print(f"{engine.name} is left out: {reason}. To get it:\n{lines}", file=sys.stderr)
        else:
            chosen.append(engine)
    results, failed = alternate(chosen, o)
    found = summary(results)
    print(f"{o.arch}, {o.threads} threads, {o.rounds} rounds of {o.steps} steps; "
          "medians (smallest-largest)")
    print(table(found))
    for name, reason in [*skipped.items(), *failed.items()]:
        print(f"{name}: {reason}")
    if o.json:
        whole = {"options": vars(o), "machine": platform.platform(), "summary": found,
                 "skipped": skipped, "failed": failed, "results": results}
        part = Path(f"{o.json}.part")
        part.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(part, o.json)
    return 0 if any(any(rows) for rows in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
