"""Makes experts/: tiny mixtures of experts (Qwen3-MoE and Mixtral), as `save_pretrained` of transformers
writes them, with the logits and the load balancing loss that transformers computes. The tokeniser is that
of checkpoints/llama. Random weights from fixed seeds."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

GOLDEN = Path(__file__).resolve().parent
HERE = GOLDEN / "experts"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SIZES = dict(
    vocab_size=328, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=32, max_position_embeddings=128, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.02)
CHECKPOINTS = {
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, num_experts=6, moe_intermediate_size=32, norm_topk_prob=True, tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, tie_word_embeddings=False, sliding_window=None),
}

shutil.rmtree(HERE, ignore_errors=True)
source = GOLDEN / "checkpoints" / "llama"
ids = torch.tensor(AutoTokenizer.from_pretrained(source)("The capital of France is Paris. 苹果 42\n").input_ids)
found = {"ids": ids.to(torch.int32)}
for seed, (name, c) in enumerate(CHECKPOINTS.items()):
    model = AutoModelForCausalLM.from_config(c).eval()
    with torch.no_grad():
        for i, (key, p) in enumerate(sorted(model.named_parameters())):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 + 1000 * seed + i))
            # Gains are about 1, matrices about 0, and routers decided.
            scale = 0.2 if "norm" in key else 0.3 if ".gate." in key else 0.08
            p.copy_(scale * noise + (1 if "norm" in key else 0))
        out = model(ids[None])
    found[name] = out.logits[0].contiguous()
    # transformers throws the layers together; Danlu takes the mean of theirs.
    each = [
        load_balancing_loss_func((scores,), scores.shape[-1], c.num_experts_per_tok) for scores in out.router_logits]
    found[f"{name}.aux_loss"] = torch.stack(each).mean().reshape(1)
    model.save_pretrained(HERE / name)
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        shutil.copy(source / file, HERE / name / file)
save_file(found, HERE / "logits.safetensors")
for path in HERE.rglob("*"):
    path.chmod(0o755 if path.is_dir() else 0o644)
print(sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()), "bytes")
