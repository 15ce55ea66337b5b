"""Ids of text under each way to cut it that GGUF names, ours against llama.cpp's.

Takes vocabulary and merges of a GGUF file with byte-level BPE, writes a tiny model of random weights for
each name of `tokenizer.ggml.pre`, imports it with `danlu`, and encodes texts with the `tokenizer.json`
that the import wrote and with llama.cpp. The vocabulary is one; the cuts differ, and so do the ids.

    python benches/peers/cuts.py SmolLM2.gguf --torch PYTHON_WITH_TOKENIZERS

needs `gguf` and `llama-cpp-python` (see README.md). Prints a line a name, and exits with a failure if ids
differ."""

import argparse
import json
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama

NAMES = ["gpt-2", "smollm", "starcoder", "refact", "command-r", "qwen2", "deepseek-r1-qwen", "llama-bpe", "default"]
COMPOSED = ["qwen2", "deepseek-r1-qwen"]
TEXTS = [
    "The capital of France is Paris; it's 1,234.56 km away.",
    "I'LL say \"don't\", we'Ve 'tis O'Neil 's",
    "def area(width, height):\n    return width * height\n\n\n\tif x:\r\n        pass",
    "L'été à 25 °C, naïve café e\u0301le\u0300ve",
    "红苹果 and 42 apples, 今天是2026年11月24日。",
    "  tabs\tand\n\nblank   lines \U0001F600\U0001F468\u200d\U0001F469  \u00a0\u3000end ",
    "12345678901234567890 1 22 333 4444 ٣٤٥ Ⅻ ½ x²",
    "a+b=c <b>$5.00</b> ~~~ ||| ^^^ #hash @at `tick` \\back ... --- ===",
    "Привет мир! Добрый день, как дела? שלום עולם नमस्ते ไทย",
    "HTTPServer_v2.parseJSON(obj)->x::y // ©®™ €100 £5\u2028line",
]
ENCODE = """
import json, sys
from tokenizers import Tokenizer
tok = Tokenizer.from_file(sys.argv[1])
print(json.dumps([tok.encode(t, add_special_tokens=False).ids for t in json.loads(sys.argv[2])]))
"""


def write(path, source, name):
    """A tiny model with the vocabulary of `source` that cuts as `name` says."""
    width, heads, depth, hidden = 32, 2, 1, 32
    field = lambda key: source.get_field(f"tokenizer.ggml.{key}").contents()
    tokens = field("tokens")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(depth)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(field("token_type"))
    writer.add_token_merges(field("merges"))
    writer.add_eos_token_id(source.get_field("tokenizer.ggml.eos_token_id").contents())
    writer.add_add_bos_token(False)
    random = np.random.default_rng(1)
    tensor = lambda key, *shape: writer.add_tensor(key, random.normal(0, 0.1, shape).astype(np.float32))
    tensor("token_embd.weight", len(tokens), width)
    tensor("output_norm.weight", width)
    for key, shape in [("attn_norm", (width,)), ("ffn_norm", (width,)), ("attn_q", (width, width)),
                       ("attn_k", (width, width)), ("attn_v", (width, width)), ("attn_output", (width, width)),
                       ("ffn_gate", (hidden, width)), ("ffn_up", (hidden, width)), ("ffn_down", (width, hidden))]:
        tensor(f"blk.0.{key}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    """Compares every name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="GGUF file with byte-level BPE")
    parser.add_argument("--danlu", default="target/release/danlu", help="the binary")
    parser.add_argument("--torch", default=sys.executable, help="Python with the tokenizers package")
    options = parser.parse_args()
    source = gguf.GGUFReader(options.file)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path, own = Path(folder) / f"{name}.gguf", Path(folder) / name
            write(path, source, name)
            subprocess.run([options.danlu, "import", path, "--out", own], check=True, capture_output=True)
            command = [options.torch, "-c", ENCODE, own / "tokenizer.json", json.dumps(TEXTS)]
            ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            llama = Llama(str(path), vocab_only=True, verbose=False)
            # Where an import composes characters, as the models' own tokenisers do, llama.cpp does not.
            plain = [unicodedata.normalize("NFC", t) if name in COMPOSED else t for t in TEXTS]
            theirs = [llama.tokenize(t.encode(), add_bos=False, special=True) for t in plain]
            differ = [t for t, a, b in zip(TEXTS, ours, theirs) if a != b]
            wrong += bool(differ)
            print(f"{'FAIL' if differ else 'ok  '} {name}: {len(TEXTS) - len(differ)} of {len(TEXTS)} texts", differ or "",
                  flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
