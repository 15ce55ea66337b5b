"""Makes no_rope/: a tiny SmolLM3, of whose layers every fourth has no positions, as `save_pretrained` of
transformers writes it, with the logits that transformers computes. The tokeniser is that of
checkpoints/llama. Random weights from fixed seeds."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, SmolLM3Config

GOLDEN = Path(__file__).resolve().parent
HERE = GOLDEN / "no_rope"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

shutil.rmtree(HERE, ignore_errors=True)
source = GOLDEN / "checkpoints" / "llama"
ids = torch.tensor(AutoTokenizer.from_pretrained(source)("The capital of France is Paris. 苹果 42\n").input_ids)
config = SmolLM3Config(
    vocab_size=328, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=32, max_position_embeddings=128, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    rope_theta=10_000.0, tie_word_embeddings=True)
assert config.no_rope_layers == [1, 1, 1, 0, 1], config.no_rope_layers
model = AutoModelForCausalLM.from_config(config).eval()
with torch.no_grad():
    for i, (key, p) in enumerate(sorted(model.named_parameters())):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        # Gains are about 1; matrices about 0, those of the attention larger, so that positions count.
        scale = 0.2 if "norm" in key else 0.3 if ".q_proj." in key or ".k_proj." in key else 0.08
        p.copy_(scale * noise + (1 if "norm" in key else 0))
    logits = model(ids[None]).logits[0].contiguous()
model.save_pretrained(HERE)
for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
    shutil.copy(source / file, HERE / file)
save_file({"ids": ids.to(torch.int32), "smollm3": logits}, HERE / "logits.safetensors")
for path in HERE.rglob("*"):
    path.chmod(0o644)
print(sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()), "bytes")
