"""Run by the Python of the peers' environment, which has torch and transformers, not this project.

    python lm_peer.py WRITE

saves a small random model of every family under WRITE as transformers does, beside tokens.npy and logits.npy. The
weights are strong enough that a wrong rotation, mask or norm shows: norms 1 + 0.2 N, all else 0.25 N. For
models that are no family of transformers (``OWN``) a GPT-2 stands in, what they have not at zero or taken out.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 5e4,
}  # fmt: skip
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
GEMMA = {**SMALL, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 20}
MODELS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "activation_function": "relu", "n_inner": 40}),
    "neox": ("GPTNeoX", {**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                      "partial_rotary_factor": 0.5}}),
    "neox_in_turn": ("GPTNeoX", {**SMALL, "use_parallel_residual": False}),
    "llama2": ("Llama", {**SMALL, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {**SMALL, "num_key_value_heads": 2, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_biased": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "qwen2": ("Qwen2", {**SMALL, "num_key_value_heads": 2}),
    "qwen2_windows": ("Qwen2", {**SMALL, "num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 16,
                                "max_window_layers": 2}),
    "qwen3": ("Qwen3", {**SMALL, "num_key_value_heads": 2, "head_dim": 12}),
    "gemma": ("Gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 12}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}),
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
}  # fmt: skip
OWN = {
    "one_relu_layer": ("GPT2", {**GPT2, "n_embd": 128, "n_layer": 1, "activation_function": "relu",
                                "tie_word_embeddings": False}),
    "attention_only": ("GPT2", {**GPT2, "tie_word_embeddings": False}),
}  # fmt: skip
ZERO = {"one_relu_layer": r"attn\..*bias", "attention_only": r"attn\..*bias|mlp\.c_proj"}
TOKENS = 96


def main(place: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    for name, (family, values) in (MODELS | OWN).items():
        suffix = "TextConfig" if family == "Gemma3" else "Config"
        config = getattr(transformers, family + suffix)(**values, attn_implementation="eager")
        head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        model = getattr(transformers, family + head)(config).eval()
        if name == "attention_only":
            model.transformer.ln_f = torch.nn.Identity()
            for block in model.transformer.h:
                block.ln_1 = block.ln_2 = torch.nn.Identity()
        for path, value in model.named_parameters():
            norm = "norm" in path or ".ln_" in path
            centre = 0.0 if family.startswith("Gemma") or path.endswith("bias") else 1.0
            value.data = centre + 0.2 * torch.randn(value.shape) if norm else 0.25 * torch.randn(value.shape)
            value.data *= not (name in ZERO and re.search(ZERO[name], path))
        model.tie_weights()
        folder = place / name
        model.save_pretrained(folder, max_shard_size="40KB" if name == "llama2" else "1GB")
        tokens = torch.randint(0, 97, (2, TOKENS))
        with torch.no_grad():
            logits = model(tokens).logits
        np.save(folder / "tokens.npy", tokens.numpy())
        np.save(folder / "logits.npy", logits.float().numpy())
    # as folders of before transformers 5 say it
    for name in ("llama3", "gemma3", "neox"):
        path = place / name / "config.json"
        said = json.loads(path.read_text())
        rope = said.pop("rope_parameters")
        if name == "llama3":
            said |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        elif name == "neox":
            said |= {"rotary_emb_base": 10_000, "rotary_pct": 0.5}
        else:
            said |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
            said["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
        old = place / f"{name}_old"
        old.mkdir()
        for file in (place / name).iterdir():
            (old / file.name).write_bytes(file.read_bytes())
        (old / "config.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
