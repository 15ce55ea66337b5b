"""Makes checkpoints/: a tiny checkpoint of each architecture that Danlu imports, as `save_pretrained`
of transformers writes it, with the logits that transformers computes, and conversations with the ids
that `apply_chat_template` gives. Random weights from fixed seeds; README.md lists what is in there."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config,
)

HERE = Path(__file__).resolve().parent / "checkpoints"
torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "The capital of France is Paris. the system the user the assistant",
    "user assistant system hello there, what is this? It is 42.",
    "苹果是红色的,天空是蓝色的。", "def f(x):\n    return x + 1\n",
] * 3

# Templates in the manner of several families, each with another part of Jinja in it.
TEMPLATES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "trimmed": """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content.strip() %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\n' + (system + '\n\n' if loop.first and system else '') + message.content | trim + '<|im_end|>' }}
    {%- else %}
        {% generation %}{{- '<|im_start|>assistant\n' + message.content | trim + '<|im_end|>' }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "thinking": """{%- set ns = namespace(last=-1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == "user" and not ns.seen %}
        {%- set ns.last = index %}
        {%- set ns.seen = true %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and loop.index0 < ns.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if content.startswith('!') %}{% continue %}{% endif %}
<|im_start|>{{ message.role }}
{{ content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "json": """{% for message in messages %}<|im_start|>{{ message.role }}
{{ {"say": message.content, "n": [loop.index, true, none]} | tojson }}<|im_end|>
{% endfor %}{{ messages | length }}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
}
turn = lambda role, content: {"role": role, "content": content}
CONVERSATIONS = [
    [turn("user", "What is this?")],
    [turn("system", " Be short. "), turn("user", "hello\n"), turn("assistant", "  It is 42."),
     turn("user", "\n the capital?")],
    [turn("user", "苹果?"), turn("assistant", "<think>\nred\n</think>\n\n红色的。"),
     turn("user", "Why \"so\" <b>&'"), turn("assistant", "<think>x</think>yes")],
]


def tokeniser():
    """Byte-level BPE of a few hundred entries with three special tokens first."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(
        tokenizer_object=t, bos_token=SPECIALS[0], eos_token=SPECIALS[2], pad_token=SPECIALS[0],
        clean_up_tokenization_spaces=False)


def config(kind, **more):
    """The sizes that all share."""
    return kind(**{**dict(
        vocab_size=328, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, bos_token_id=0, eos_token_id=2, pad_token_id=0), **more})


CHECKPOINTS = {
    "llama": config(LlamaConfig, tie_word_embeddings=True, rope_theta=100_000.0, rms_norm_eps=1e-5),
    "mistral": config(MistralConfig, tie_word_embeddings=False, sliding_window=None, num_key_value_heads=1,
                      head_dim=16),
    "qwen2": config(Qwen2Config, tie_word_embeddings=True),
    "qwen3": config(Qwen3Config, tie_word_embeddings=False, head_dim=16, rope_theta=1_000_000.0),
}

shutil.rmtree(HERE, ignore_errors=True)
tok = tokeniser()
tok.chat_template = TEMPLATES["chatml"]
ids = torch.tensor(tok("The capital of France is Paris. 苹果 42\n").input_ids)
logits = {"ids": ids.to(torch.int32)}
for seed, (name, c) in enumerate(CHECKPOINTS.items()):
    model = AutoModelForCausalLM.from_config(c).eval()
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(model.named_parameters())):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * seed + i))
            # Gains are about 1; matrices and biases about 0.
            p.copy_(1 + 0.2 * noise if "norm" in _ else 0.08 * noise if p.ndim == 2 else 0.3 * noise)
        logits[name] = model(ids[None]).logits[0].contiguous()
    # One of them in shards.
    model.save_pretrained(HERE / name, max_shard_size="60KB" if name == "mistral" else "5GB")
    tok.save_pretrained(HERE / name)
# The older place of the template, and tokens as objects.
path = HERE / "qwen2" / "tokenizer_config.json"
about = json.loads(path.read_text())
about["chat_template"] = [{"name": "other", "template": "no"}, {"name": "default", "template": TEMPLATES["chatml"]}]
about["eos_token"] = {"content": SPECIALS[2], "special": True}
path.write_text(json.dumps(about, indent=1))
(HERE / "qwen2" / "chat_template.jinja").unlink()
save_file(logits, HERE / "logits.safetensors")

cases = []
for name, template in TEMPLATES.items():
    for messages in CONVERSATIONS:
        for opened in [False, True]:
            if name == "trimmed" and messages[-1]["role"] == "assistant" and opened:
                continue
            tok.chat_template = template
            how = dict(add_generation_prompt=opened)
            cases.append(dict(
                template=name, messages=messages, open=opened,
                text=tok.apply_chat_template(messages, tokenize=False, **how),
                ids=list(tok.apply_chat_template(messages, tokenize=True, return_dict=False, **how))))
(HERE / "chat.json").write_text(
    json.dumps(dict(templates=TEMPLATES, cases=cases), ensure_ascii=False, indent=0) + "\n")
for path in HERE.rglob("*"):
    path.chmod(0o755 if path.is_dir() else 0o644)
print(sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()), "bytes")
