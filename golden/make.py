"""Makes the golden fixtures in this folder from PyTorch and Hugging Face transformers.

Everything is random weights and random ids from fixed seeds, in float32 on one CPU thread. The
reference is what those two libraries compute; nothing here is written after Danlu's own kernels.
README.md lists every key. The script checks itself on the way (a packed batch equals its documents
run one by one, float32 stays near float64) and prints what it made.
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, apply_rotary_pos_emb

HERE = Path(__file__).resolve().parent
Z_LOSS = 1e-2
BUDGET = 1_500_000

torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


# --- helpers -------------------------------------------------------------------------------------


def normal(seed, *shape, std=1.0):
    """Normal values of `shape`, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def randomise(module, seed):
    """Matrices to N(0, 0.08), norm weights to N(1, 0.2), in the order of their names."""
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(module.named_parameters())):
            p.copy_(normal(seed + i, *p.shape, std=0.08) if p.ndim == 2 else
                    1 + normal(seed + i, *p.shape, std=0.2))


def document_mask(starts, dtype=torch.float32):
    """Additive `[n, n]` mask: 0 where a position sees another, the lowest float elsewhere."""
    n = starts[-1]
    document = torch.bucketize(torch.arange(n), torch.tensor(starts[1:]), right=True)
    seen = (document[:, None] == document[None, :]) & torch.ones(n, n).tril().bool()
    return torch.zeros(n, n, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def document_positions(starts):
    """Position of every row inside its document."""
    return torch.cat([torch.arange(b - a) for a, b in zip(starts, starts[1:])])


def weighted_loss(logits, targets, weights, z_loss):
    """`sum(w * (ce + z lse^2)) / sum(w)`."""
    each = F.cross_entropy(logits, targets, reduction="none")
    if z_loss:
        each = each + z_loss * logits.logsumexp(-1).square()
    return (weights * each).sum() / weights.sum()


def distance(a, b):
    """Largest difference of two tensors, relative to the largest value of the second."""
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def expect_close(what, a, b, limit):
    """Prints how far two results are apart and stops if that is over `limit`."""
    d = distance(a, b)
    print(f"  {what}: {d:.1e} apart (limit {limit:.0e})")
    assert d <= limit, what


def save(name, tensors):
    """Writes one safetensors file: floats as F32, integers as I32."""
    stored = {True: torch.float32, False: torch.int32}
    tensors = {
        k: v.detach().to(stored[v.is_floating_point()]).contiguous().clone()
        for k, v in tensors.items()
    }
    for k, v in tensors.items():
        assert v.numel() and v.isfinite().all(), f"{name}: {k}"
    save_file(tensors, HERE / name)
    (HERE / name).chmod(0o644)
    print(f"{name}: {len(tensors)} tensors, {(HERE / name).stat().st_size:,} bytes")


def floats(t):
    """Values of a tensor as (nested) lists, each with no more digits than float32 needs."""
    if t.ndim:
        return [floats(row) for row in t]
    return float(str(np.float32(t.item())))


def save_json(name, value):
    """Writes one JSON object, one key a line."""
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
    (HERE / name).write_text("{\n" + lines + "\n}\n")
    print(f"{name}: {(HERE / name).stat().st_size:,} bytes")


# --- the tiny Qwen3 ------------------------------------------------------------------------------

QWEN3 = dict(
    vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, intermediate_size=80, rms_norm_eps=1e-6,
    tie_word_embeddings=True, max_position_embeddings=64,
)
LLAMA = dict(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=1, head_dim=8, intermediate_size=48, rms_norm_eps=1e-5,
    tie_word_embeddings=False, max_position_embeddings=64,
)
# Two rows of 24; the last four positions of the first row are padding, a document of its own.
ROWS, WINDOW = 2, 24
STARTS = [0, 13, 20, 24, 25, 42, 48]
PADDING = 2


def config_of(kind, values, theta):
    rope = {"rope_type": "default", "rope_theta": theta}
    config = kind(**values, rope_parameters=rope, attention_dropout=0.0)
    config._attn_implementation = "eager"
    return config


def config_json(values, model_type, theta):
    """The configuration in the words of a Hugging Face `config.json`."""
    return {"model_type": model_type, **values, "rope_theta": theta, "hidden_act": "silu",
            "attention_bias": False}


def tiny_batch():
    """Ids, targets (the next token of the document) and loss weights, some of them 0."""
    g = torch.Generator().manual_seed(11)
    ids = torch.randint(1, QWEN3["vocab_size"], (ROWS * WINDOW,), generator=g)
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0])[torch.randint(0, 4, (ROWS * WINDOW,), generator=g)]
    ids[STARTS[PADDING]:STARTS[PADDING + 1]] = 0
    targets = torch.zeros_like(ids)
    for d, (a, b) in enumerate(zip(STARTS, STARTS[1:])):
        targets[a:b - 1] = ids[a + 1:b]
        weights[b - 1] = 0
        if d == PADDING:
            weights[a:b] = 0
    assert (weights == 0).any() and (weights > 0).sum() > 20
    return ids, targets, weights


def run_packed(model, ids):
    """Final hidden states and logits of the two rows at once, under a block-diagonal mask."""
    mask = document_mask(STARTS, model.dtype)
    mask = torch.stack([mask[r * WINDOW:][:WINDOW, r * WINDOW:][:, :WINDOW] for r in range(ROWS)])
    hidden = model.model(
        input_ids=ids.view(ROWS, WINDOW), attention_mask=mask[:, None],
        position_ids=document_positions(STARTS).view(ROWS, WINDOW), use_cache=False,
    ).last_hidden_state
    return hidden.flatten(0, 1), model.lm_head(hidden).flatten(0, 1)


def run_apart(model, ids):
    """The same, each document alone."""
    hidden = torch.cat([
        model.model(input_ids=ids[None, a:b], use_cache=False).last_hidden_state[0]
        for a, b in zip(STARTS, STARTS[1:])
    ])
    return hidden, model.lm_head(hidden)


def tiny_model(dtype=torch.float32):
    model = Qwen3ForCausalLM(config_of(Qwen3Config, QWEN3, 10_000.0)).eval()
    randomise(model, 1000)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.to(dtype)


def gradients(model, run, batch):
    """Hidden states, logits, both losses, and gradients of the loss with z-loss by name."""
    ids, targets, weights = batch
    model.zero_grad()
    hidden, logits = run(model, ids)
    plain = weighted_loss(logits, targets, weights.to(logits.dtype), 0.0)
    loss = weighted_loss(logits, targets, weights.to(logits.dtype), Z_LOSS)
    loss.backward()
    return hidden, logits, plain, loss, {n: p.grad.clone() for n, p in model.named_parameters()}


def ten_steps(dtype):
    """Losses and gradient norms (before clipping) of ten AdamW steps, and the model after them."""
    model = tiny_model(dtype)
    ids, targets, weights = tiny_batch()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=0.1), dict(params=norms, weight_decay=0.0)],
        lr=1e-2, betas=(0.9, 0.95), eps=1e-8,
    )
    losses, sizes = [], []
    for _ in range(10):
        optimiser.zero_grad()
        loss = weighted_loss(run_packed(model, ids)[1], targets, weights.to(dtype), Z_LOSS)
        loss.backward()
        sizes.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(sizes), model.model.embed_tokens.weight.detach()


def make_qwen3():
    batch = tiny_batch()
    model = tiny_model()
    hidden, logits, plain, loss, grads = gradients(model, run_packed, batch)
    apart = gradients(model, run_apart, batch)
    expect_close("packed and apart, hidden", hidden, apart[0], 2e-6)
    expect_close("packed and apart, logits", logits, apart[1], 2e-6)
    expect_close("packed and apart, loss", loss, apart[3], 1e-6)
    for name, g in grads.items():
        assert distance(g, apart[4][name]) < 5e-6, name
    double = gradients(tiny_model(torch.float64), run_packed, batch)
    expect_close("float32 and float64, logits", logits, double[1], 5e-6)
    worst = max(grads, key=lambda n: distance(grads[n], double[4][n]))
    expect_close(f"float32 and float64, {worst}", grads[worst], double[4][worst], 2e-5)

    ids, targets, weights = batch
    tensors = {n: p for n, p in model.named_parameters()}
    tensors |= {f"grad.{n}": g for n, g in grads.items()}
    tensors |= dict(
        ids=ids, targets=targets, weights=weights, starts=torch.tensor(STARTS),
        logits=logits, hidden=hidden, loss=plain.view(1), loss_z=loss.view(1),
    )
    save("qwen3_tiny.safetensors", tensors)

    losses, sizes, embed = ten_steps(torch.float32)
    near = ten_steps(torch.float64)
    expect_close("float32 and float64, ten losses", losses, near[0], 1e-4)
    expect_close("float32 and float64, ten norms", sizes, near[1], 1e-3)
    expect_close("float32 and float64, embedding after ten steps", embed, near[2], 1e-2)
    assert distance(losses[0], loss) < 1e-6 and losses[-1] < losses[0]
    assert (sizes > 1).any(), "the clip never bites"
    print("  losses", [f"{v:.4f}" for v in losses], "norms", [f"{v:.3f}" for v in sizes])
    save_json("qwen3_tiny.json", {
        "config": config_json(QWEN3, "qwen3", 10_000.0),
        "z_loss": Z_LOSS,
        "adamw": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0},
        "losses": floats(losses),
        "grad_norms": floats(sizes),
        "embed_after": floats(embed),
    })


def make_block():
    layer = Qwen3DecoderLayer(config_of(Qwen3Config, QWEN3, 10_000.0), 0).eval()
    randomise(layer, 2000)
    x = normal(2100, 1, WINDOW, QWEN3["hidden_size"]).requires_grad_()
    up = normal(2101, 1, WINDOW, QWEN3["hidden_size"])
    rotary = tiny_model().model.rotary_emb
    out = layer(
        x, attention_mask=document_mask([0, WINDOW])[None, None],
        position_embeddings=rotary(x, torch.arange(WINDOW)[None]), use_cache=False,
    )
    out.backward(up)
    tensors = {n: p for n, p in layer.named_parameters()}
    tensors |= {f"grad.{n}": p.grad for n, p in layer.named_parameters()}
    tensors |= {"input": x, "output": out, "grad.output": up, "grad.input": x.grad}
    save("block.safetensors", tensors)


# --- single operations ---------------------------------------------------------------------------

HEADS, KV_HEADS, HEAD_DIM, THETA, EPS = 4, 2, 8, 10_000.0, 1e-6
OP_STARTS = [0, 5, 6, 12]


def angles(positions, dtype):
    """Cosine and sine `[n, HEAD_DIM]` as Hugging Face lays them out: the half table twice."""
    inverse = THETA ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    a = torch.outer(positions.double(), inverse).repeat(1, 2)
    return a.cos().to(dtype), a.sin().to(dtype)


def rotary_op(x, positions):
    """Turns `x: [n, heads, HEAD_DIM]`."""
    cos, sin = angles(positions, x.dtype)
    return apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=1)[0]


def attention_op(qkv, q_norm=None, k_norm=None):
    """Projection `[n, (HEADS + 2 KV_HEADS) * HEAD_DIM]` to `[n, HEADS * HEAD_DIM]`."""
    n = qkv.shape[0]
    q, k, v = qkv.view(n, -1, HEAD_DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    if q_norm is not None:
        q, k = (F.rms_norm(t, (HEAD_DIM,), g, EPS) for t, g in [(q, q_norm), (k, k_norm)])
    positions = document_positions(OP_STARTS)
    q, k = rotary_op(q, positions), rotary_op(k, positions)
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    mask = document_mask(OP_STARTS, qkv.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(n, HEADS * HEAD_DIM)


def conv_op(stride, padding):
    """Channels last on both sides of PyTorch's channels-first convolution."""
    return lambda x, w, bias: F.conv2d(
        x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), bias, stride, padding
    ).permute(0, 2, 3, 1)


def recorder(tensors, seed):
    """A function that stores an operation's inputs, output and gradients in `tensors`."""

    def op(name, f, **shapes):
        """Stores inputs, output, upstream gradient and input gradients of `f`."""
        nonlocal seed
        inputs = {}
        for key, shape in shapes.items():
            seed += 1
            centre = 1.0 if key in ("g", "q_norm", "k_norm") else 0.0
            inputs[key] = centre + normal(seed, *shape)
        results = []
        for dtype in (torch.float32, torch.float64):
            leaves = {k: v.clone().to(dtype).requires_grad_() for k, v in inputs.items()}
            out = f(**leaves)
            up = normal(seed + 500, *out.shape)
            out.backward(up.to(dtype))
            grads = {f"{name}.grad.{k}": v.grad for k, v in leaves.items()}
            results.append({f"{name}.out": out, **grads})
        for key, value in results[0].items():
            assert distance(value, results[1][key]) < 2e-6, key
        tensors.update({f"{name}.{k}": v for k, v in inputs.items()})
        tensors.update({f"{name}.grad.out": up, **results[0]})

    return op


def make_ops():
    tensors = {}
    op = recorder(tensors, 3000)
    op("linear", lambda x, w: F.linear(x, w), x=(5, 7), w=(6, 7))
    op("rms_norm", lambda x, g: F.rms_norm(x, (10,), g, EPS), x=(6, 10), g=(10,))
    op("silu", lambda x: F.silu(x), x=(4, 6))
    op("swiglu", lambda x: F.silu(x[:, :6]) * x[:, 6:], x=(4, 12))

    positions = torch.tensor([0, 1, 2, 7, 40])
    op("rotary", lambda x: rotary_op(x, positions), x=(5, HEADS, HEAD_DIM))
    tensors["rotary.positions"] = positions

    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    op("attention", attention_op, qkv=(12, width), q_norm=(HEAD_DIM,), k_norm=(HEAD_DIM,))
    op("attention_plain", attention_op, qkv=(12, width))
    for name in ("attention", "attention_plain"):
        tensors[f"{name}.starts"] = torch.tensor(OP_STARTS)

    op("conv2d_stride1", conv_op(1, 1), x=(2, 6, 6, 3), w=(4, 3, 3, 3), bias=(4,))
    op("conv2d_stride2", conv_op(2, 1), x=(2, 6, 6, 3), w=(4, 3, 3, 3), bias=(4,))
    op("conv1d", conv_op(1, (0, 1)), x=(2, 1, 9, 3), w=(4, 1, 3, 3), bias=(4,))

    ids = torch.tensor([3, 0, 3, 7, 1, 3])
    op("embedding", lambda table: F.embedding(ids, table), table=(8, 5))
    tensors["embedding.ids"] = ids

    targets = torch.tensor([10, 0, 4, 4, 9, 1, 7, 2, 0])
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 1.0, 0.25, 3.0, 1.0])

    def head(z_loss):
        return lambda hidden, table: weighted_loss(
            hidden @ table.T, targets, weights.to(hidden.dtype), z_loss
        ).view(1)

    op("head_loss", head(Z_LOSS), hidden=(9, 8), table=(11, 8))
    hidden, table = tensors["head_loss.hidden"], tensors["head_loss.table"]
    tensors["head_loss.plain"] = head(0.0)(hidden, table)
    tensors["head_loss.ce"] = F.cross_entropy(hidden @ table.T, targets, reduction="none")
    tensors["head_loss.targets"], tensors["head_loss.weights"] = targets, weights

    save("ops.safetensors", tensors)


def make_fused():
    tensors = {}
    op = recorder(tensors, 7000)
    op("layer_norm", lambda x, g, b: F.layer_norm(x, (10,), g, b, 1e-5), x=(6, 10), g=(10,), b=(10,))
    op("gelu", lambda x: F.gelu(x), x=(4, 6))
    op("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x=(4, 6))

    activations = dict(
        none=lambda x: x, silu=F.silu, gelu=F.gelu, gelu_tanh=lambda x: F.gelu(x, approximate="tanh"),
        swiglu=lambda x: F.silu(x[:, :7]) * x[:, 7:],
    )
    for name, f in activations.items():
        op(f"linear_{name}",
           lambda x, w, bias, residual, f=f: F.linear(f(x), w, bias) + residual,
           x=(5, 14 if name == "swiglu" else 7), w=(6, 7), bias=(6,), residual=(5, 6))

    def twice(half):
        return lambda x, **v: half(half(x, **v), **v)

    op("residual_layer_norm", twice(
        lambda x, g, b, w, bias: x + F.linear(F.gelu(F.layer_norm(x, (8,), g, b, 1e-5)), w, bias)
    ), x=(6, 8), g=(8,), b=(8,), w=(8, 8), bias=(8,))
    op("residual_rms_norm", twice(
        lambda x, g, w: x + F.linear(F.rms_norm(x, (8,), g, EPS), w)
    ), x=(6, 8), g=(8,), w=(8, 8))

    offsets = [0, 3, 3, 7]
    op("grouped_linear", lambda x, w: torch.cat([
        F.linear(x[a:b], w[e]) for e, (a, b) in enumerate(zip(offsets, offsets[1:]))
    ]), x=(7, 5), w=(3, 4, 5))
    tensors["grouped_linear.offsets"] = torch.tensor(offsets)
    op("batched_linear", lambda x, w: torch.bmm(x, w.mT), x=(3, 4, 5), w=(3, 6, 5))
    op("conv1d", lambda x, w, bias: F.conv1d(
        x.transpose(1, 2), w.transpose(1, 2), bias, stride=2, padding=2
    ).transpose(1, 2), x=(2, 9, 3), w=(4, 5, 3), bias=(4,))
    save("fused.safetensors", tensors)


def make_llama():
    model = LlamaForCausalLM(config_of(LlamaConfig, LLAMA, 500_000.0)).eval()
    randomise(model, 4000)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    g = torch.Generator().manual_seed(4100)
    ids = torch.randint(0, LLAMA["vocab_size"], (15,), generator=g)
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    tensors = {n: p for n, p in model.named_parameters()}
    save("untied_llama.safetensors", tensors | dict(ids=ids, logits=logits))
    save_json("untied_llama.json", {"config": config_json(LLAMA, "llama", 500_000.0)})


# --- GPT-2 ---------------------------------------------------------------------------------------

GPT2 = dict(vocab_size=53, n_positions=20, n_embd=24, n_layer=2, n_head=3)
GPT2_STARTS = [0, 20, 27, 28, 40]


def gpt2_model(dtype=torch.float32):
    config = GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config._attn_implementation = "eager"
    assert config.activation_function == "gelu_new" and config.layer_norm_epsilon == 1e-5
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted(model.named_parameters())):
            gain = ".ln_" in name and name.endswith("weight")
            p.copy_(normal(5000 + i, *p.shape, std=0.2) + 1 if gain else
                    normal(5000 + i, *p.shape, std=0.08))
    assert model.lm_head.weight is model.transformer.wte.weight
    return model.to(dtype)


def gpt2_named(model, pick):
    """Tensors by name; transformers keeps these projections as `[inputs, outputs]`."""
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {n.removeprefix("transformer."): pick(p).T if n.endswith(turned) else pick(p)
            for n, p in model.named_parameters()}


def gpt2_run(model, ids, targets, weights):
    """Logits of the documents, one by one, and the loss."""
    logits = torch.cat([model(input_ids=ids[None, a:b], use_cache=False).logits[0]
                        for a, b in zip(GPT2_STARTS, GPT2_STARTS[1:])])
    return logits, weighted_loss(logits, targets, weights.to(logits.dtype), 0.0)


def gpt2_steps(dtype, batch):
    """Losses of ten clipped AdamW steps."""
    model = gpt2_model(dtype)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)],
        lr=1e-2, betas=(0.9, 0.95), eps=1e-8,
    )
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = gpt2_run(model, *batch)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def make_gpt2():
    g = torch.Generator().manual_seed(5900)
    n = GPT2_STARTS[-1]
    ids, targets = (torch.randint(0, GPT2["vocab_size"], (n,), generator=g) for _ in range(2))
    weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (n,), generator=g)]
    batch = ids, targets, weights
    results = []
    for dtype in (torch.float32, torch.float64):
        model = gpt2_model(dtype)
        logits, loss = gpt2_run(model, *batch)
        loss.backward()
        results.append((model, logits, loss))
    (model, logits, loss), (double, near, _) = results
    expect_close("float32 and float64, GPT-2 logits", logits, near, 5e-6)
    worst = max(distance(p.grad, q.grad) for p, q in zip(model.parameters(), double.parameters()))
    print(f"  float32 and float64, worst GPT-2 gradient: {worst:.1e} apart")
    assert worst < 2e-5
    losses = gpt2_steps(torch.float32, batch)
    expect_close("float32 and float64, GPT-2 losses", losses, gpt2_steps(torch.float64, batch), 1e-4)
    grads = gpt2_named(model, lambda p: p.grad)
    save("gpt2_tiny.safetensors", gpt2_named(model, lambda p: p) | {
        f"grad.{name}": grad for name, grad in grads.items()
    } | dict(ids=ids, targets=targets, weights=weights, starts=torch.tensor(GPT2_STARTS),
             logits=logits, loss=loss.view(1), losses=losses))


# --- Muon ----------------------------------------------------------------------------------------


def muon_steps(dtype, value, grads):
    """A matrix after each step of PyTorch's Muon, which here iterates in `dtype`, not bfloat16."""
    p = torch.nn.Parameter(value.to(dtype, copy=True))
    optimiser = torch.optim.Muon([p], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    after = []
    for grad in grads:
        p.grad = grad.to(dtype)
        with mock.patch.object(torch, "bfloat16", dtype):
            optimiser.step()
        after.append(p.detach().clone())
    return torch.stack(after)


def make_muon():
    tensors = {}
    for i, (name, shape) in enumerate(dict(wide=(24, 40), tall=(44, 20), square=(18, 18)).items()):
        value, grads = normal(6000 + i, *shape), normal(6100 + i, 3, *shape)
        after = muon_steps(torch.float32, value, grads)
        double = muon_steps(torch.float64, value, grads)
        expect_close(f"float32 and float64, Muon on {name}", after - value, double - value, 5e-5)
        tensors |= {f"{name}.value": value, f"{name}.grads": grads, f"{name}.after": after}
    save("muon.safetensors", tensors)


def main():
    make_qwen3()
    make_block()
    make_ops()
    make_fused()
    make_llama()
    make_gpt2()
    make_muon()
    made = sorted(HERE.glob("*.safetensors")) + sorted(HERE.glob("*.json"))
    for path in (p for p in made if p.suffix == ".safetensors"):
        print(f"\n{path.name}")
        for key, t in sorted(load_file(path).items()):
            print(f"  {key}: {list(t.shape)} {str(t.dtype).removeprefix('torch.')}")
    total = sum(p.stat().st_size for p in made)
    print(f"\n{len(made)} files, {total:,} bytes")
    assert total < BUDGET


if __name__ == "__main__":
    main()
