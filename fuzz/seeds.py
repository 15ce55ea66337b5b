"""Writes seeds for the fuzz targets into fuzz/corpus/TARGET/, from the files of golden/ and the sample pack.

    python3 fuzz/seeds.py

Needs Python's standard library.
"""

import base64
import json
import struct
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHECKPOINTS = sorted(p for p in (ROOT / "golden/checkpoints").iterdir() if p.is_dir())


def safetensors(tensors, metadata=None):
    """A file of (name, dtype, shape, bytes)."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(t[3] for t in tensors)


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf():
    """A small file with a tokeniser and tensors in blocks."""
    tokens = ["<s>", "</s>", "a", "b", "ab", "\u0120"]
    u32, text, array = lambda v: struct.pack("<II", 4, v), lambda v: struct.pack("<I", 8) + string(v), 9
    texts = lambda all: struct.pack("<IIQ", array, 8, len(all)) + b"".join(map(string, all))
    numbers = lambda all: struct.pack("<IIQ", array, 5, len(all)) + struct.pack(f"<{len(all)}i", *all)
    keys = {
        "general.architecture": text("llama"),
        "general.alignment": u32(32),
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("smollm"),
        "tokenizer.ggml.tokens": texts(tokens),
        "tokenizer.ggml.token_type": numbers([3, 3, 1, 1, 1, 1]),
        "tokenizer.ggml.merges": texts(["a b"]),
        "tokenizer.ggml.eos_token_id": u32(1),
    }
    # F32, Q4_0, Q8_0 and Q6_K: type, bytes a block, values a block.
    kinds = [(0, 4, 1), (2, 18, 32), (8, 34, 32), (14, 210, 256)]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(kinds), len(keys))
    header += b"".join(string(key) + value for key, value in keys.items())
    data = b""
    for kind, block, values in kinds:
        data += b"\0" * (-len(data) % 32)
        header += string(f"t{kind}.weight") + struct.pack("<IQIQ", 1, 256, kind, len(data))
        data += bytes(i % 251 for i in range(256 // values * block))
    return header + b"\0" * (-len(header) % 32) + data


def media():
    """The smallest pictures and sounds of the sample pack, by the ending of their names."""
    all = {}
    for shard in sorted((ROOT / "packs/sample").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                kind = member.name.rsplit(".", 1)[-1]
                if member.isfile():
                    all.setdefault(kind, []).append((member.size, tar.extractfile(member).read()))
    return {kind: [data for _, data in sorted(files)[:8]] for kind, files in all.items()}


def wav(samples, rate=16000):
    data = struct.pack(f"<{len(samples)}h", *samples)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", len(data))
    return head + data


def main():
    seeds = {}
    add = lambda target, data: seeds.setdefault(target, []).append(data if isinstance(data, bytes) else data.encode())
    small = safetensors([("a", "F32", [2, 3], bytes(24)), ("b", "BF16", [4], bytes(8))], {"format": "pt"})
    add("safetensors", small)
    add("gguf", gguf())
    add("gguf", (ROOT / "golden/quant.gguf").read_bytes())
    for at in CHECKPOINTS:
        for path in at.glob("*.index.json"):
            add("safetensors", path.read_bytes())
        add("config", (at / "config.json").read_bytes())
        said = "<s>a b\u00e9</s>".encode()
        add("tokeniser", bytes([len(said)]) + said + (at / "tokenizer.json").read_bytes())
    for template in json.loads((ROOT / "golden/checkpoints/chat.json").read_text())["templates"].values():
        add("template", b"\x02hi" + template.encode())
    loops = "{% for m in messages %}{{ m['role'] ~ ': ' + m.content|trim|upper }}{% if loop.last and add_generation_prompt %}{{ bos_token * 3 }}{% endif %}{% endfor %}"
    macros = "{%- macro f(x, n) -%}{% if n > 0 %}{{ f(x[1:], n - 1) }}{% endif %}{{ x|tojson(indent=2) }}{%- endmacro -%}{% set ns = namespace(a=0) %}{% set ns.a = ns.a + 1 %}{{ f(messages[0].content.split(' '), 3) }}"
    for text in [loops, macros, "{{ raise_exception('no') }}", "{% generation %}{{ range(9)|list|join(',') }}{% endgeneration %}"]:
        add("template", b"\x02hi" + text.encode())
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "base_model_name_or_path": "", "bias": "none", "fan_in_fan_out": False, "task_type": "CAUSAL_LM"}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = safetensors([(name + "A.weight", "F32", [2, 4], bytes(32)), (name + "B.weight", "F32", [4, 2], bytes(32))])
    for more in [{}, {"use_dora": True}, {"r": 10**5}, {"rank_pattern": {"q_proj": 3}}]:
        text = json.dumps({**config, **more}).encode()
        add("adapter", struct.pack("<H", len(text)) + text + pair)
    files = media()
    pictures = [p for kind in ["png", "webp", "jpg", "gif"] for p in files.get(kind, [])]
    sounds = [s for kind in ["ogg", "flac", "mp3", "wav"] for s in files.get(kind, [])]
    sounds.append(wav([1000 * (i % 7) for i in range(200)]))
    [add("picture", p) for p in pictures]
    [add("sound", s) for s in sounds]
    url = "data:image/png;base64," + base64.b64encode(min(pictures, key=len)).decode()
    said = {"data": base64.b64encode(sounds[-1]).decode(), "format": "wav"}
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}, {"type": "input_audio", "input_audio": said}]
    add("messages", json.dumps([{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": []}]))
    add("messages", json.dumps([{"role": "user", "content": "hi"}]))
    shape = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"$ref": "#/$defs/x"}}, "required": ["a"], "additionalProperties": False, "$defs": {"x": {"type": "array", "items": {"enum": ["u", 1, None]}, "maxItems": 3}}}
    for schema in [shape, {"type": "string", "pattern": "^(a|b)+c{2,3}$"}, {"anyOf": [{"const": 1}, {"type": "boolean"}]}]:
        add("schema", json.dumps(schema))
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": shape}}
    add("request", json.dumps({"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "n": 2, "seed": 1, "stop": ["x", "y"], "max_tokens": 9, "logit_bias": {"3": -100}, "presence_penalty": 1, "frequency_penalty": -1, "tools": [tool], "tool_choice": "required", "user": "u"}))
    add("request", json.dumps({"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}, "max_completion_tokens": 5, "stop": "x"}))
    for target, all in sorted(seeds.items()):
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(all):
            (folder / f"seed-{i}").write_bytes(data)
        print(f"{target}: {len(all)} seeds, {sum(map(len, all))} bytes")


if __name__ == "__main__":
    main()
