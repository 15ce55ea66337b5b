"""Makes rope.json and rope.safetensors: the logits that transformers computes with the weights of
checkpoints/llama under each way of scaling rotary angles. README.md lists what is in there."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

base = json.loads((HERE / "checkpoints/llama/config.json").read_text())
weights = load_file(HERE / "checkpoints/llama/model.safetensors")
# The heads have four pairs; with this base one of them lies between low and high frequencies.
THETA = 100.0
PAIRS = [1.0, 1.5, 2.25, 4.0]
# The older place of the numbers, and the newer one with the base inside.
OLD = {
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32},
    "yarn": {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}
NEW = {
    "yarn-scaled": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8,
                    "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
    "longrope": {"rope_type": "longrope", "short_factor": PAIRS, "long_factor": PAIRS, "factor": 4.0,
                 "original_max_position_embeddings": 32},
    "llama3-new": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0,
                   "original_max_position_embeddings": 64},
}

ids = torch.arange(0, 120) * 37 % 320
out, configs = {"ids": ids.to(torch.int32)}, {}
for name, scaling in [*OLD.items(), *NEW.items()]:
    file = {k: v for k, v in base.items() if k not in ("rope_theta", "rope_parameters", "rope_scaling")}
    if name in OLD:
        file |= {"rope_theta": THETA, "rope_scaling": scaling}
    else:
        file |= {"rope_parameters": {"rope_theta": THETA, **scaling}}
    configs[name] = json.loads(json.dumps(file))
    model = LlamaForCausalLM(LlamaConfig(**file)).eval()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    with torch.no_grad():
        # Every eighth position and the last are enough to tell a wrong angle.
        out[name] = model(ids[None]).logits[0, 7::8].contiguous()
save_file(out, HERE / "rope.safetensors")
(HERE / "rope.json").write_text(json.dumps(configs, indent=1) + "\n")
