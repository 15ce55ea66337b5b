"""Makes biases/: tiny models whose configurations turn on what few models use, as `save_pretrained` of
transformers writes them, with the logits that transformers computes: a Llama with biases everywhere, a Qwen3
with those of the attention, and a Qwen3-MoE with both those and gates that do not sum to 1 (its default). The
tokeniser is that of checkpoints/llama. Random weights from fixed seeds."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config, Qwen3MoeConfig

GOLDEN = Path(__file__).resolve().parent
HERE = GOLDEN / "biases"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SIZES = dict(
    vocab_size=328, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=32, max_position_embeddings=128, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    attention_bias=True, tie_word_embeddings=True)
CHECKPOINTS = {
    "llama": LlamaConfig(**SIZES, mlp_bias=True),
    "qwen3": Qwen3Config(**SIZES),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
}
assert CHECKPOINTS["qwen3_moe"].norm_topk_prob is False

shutil.rmtree(HERE, ignore_errors=True)
source = GOLDEN / "checkpoints" / "llama"
ids = torch.tensor(AutoTokenizer.from_pretrained(source)("The capital of France is Paris. 苹果 42\n").input_ids)
found = {"ids": ids.to(torch.int32)}
for seed, (name, c) in enumerate(CHECKPOINTS.items()):
    model = AutoModelForCausalLM.from_config(c).eval()
    with torch.no_grad():
        for i, (key, p) in enumerate(sorted(model.named_parameters())):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(5000 + 1000 * seed + i))
            # Gains are about 1, matrices about 0; routers are decided, and biases large enough to count.
            scale = 0.2 if "norm" in key or "bias" in key else 0.3 if ".gate." in key else 0.08
            p.copy_(scale * noise + (1 if "norm" in key else 0))
        found[name] = model(ids[None]).logits[0].contiguous()
    model.save_pretrained(HERE / name)
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        shutil.copy(source / file, HERE / name / file)
save_file(found, HERE / "logits.safetensors")
for path in HERE.rglob("*"):
    path.chmod(0o755 if path.is_dir() else 0o644)
print(sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()), "bytes")
