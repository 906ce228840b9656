"""The peer's dashboards, SAEDashboard on torch: a script for its Python (`make peers`); one line of JSON.

    python benchmarks/peer_dashboard.py FOLDER FEATURES

FOLDER holds model.npz (our model's weights by name), tokens.npy and sae/ (a SAELens SAE). Its runner passes the model
over the tokens once for each batch of features; how long that takes is told apart.
"""

import json
import sys
import time
from pathlib import Path


def names(layers):
    """Our name of a parameter -> TransformerLens's."""
    found = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "W_U": "unembed.W_U"}
    for part in ("w", "b"):
        found[f"ln_final.{part}"] = f"ln_final.{part}"
        for i in range(layers):
            found |= {f"blocks.{i}.{n}.{part}": f"blocks.{i}.{n}.{part}" for n in ("ln1", "ln2")}
    for i in range(layers):
        for n in ("W_Q", "W_K", "W_V", "W_O"):
            found[f"blocks.{i}.attn.{n}"] = f"blocks.{i}.attn.{n}"
        for n in ("W_in", "W_out", "b_in", "b_out"):
            found[f"blocks.{i}.mlp.{n}"] = f"blocks.{i}.mlp.{n}"
    return found


def main():
    import numpy as np
    import tokenizers
    import torch
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.feature_data_generator import FeatureDataGenerator
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformers import PreTrainedTokenizerFast

    folder, features = Path(sys.argv[1]), int(sys.argv[2])
    tokens, weights = torch.from_numpy(np.load(folder / "tokens.npy")).long(), np.load(folder / "model.npz")
    vocab, d_model = weights["W_E"].shape
    _, heads, d_head = weights["blocks.0.attn.W_Q"].shape
    words = {f" w{i}": i for i in range(vocab)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(
        tokenizers.models.WordLevel(words, unk_token=" w0")))  # fmt: skip
    model = HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=1, d_model=d_model, n_ctx=tokens.shape[1], d_head=d_head, n_heads=heads,
            d_mlp=weights["blocks.0.mlp.W_in"].shape[1], d_vocab=vocab, act_fn="relu", normalization_type="LN",
            device="cpu",
        ), tokenizer=tokenizer,
    )  # fmt: skip
    state = model.state_dict()
    for ours, theirs in names(1).items():
        here = weights[ours]
        if ours.endswith(("W_Q", "W_K", "W_V")):
            here = here.swapaxes(0, 1)  # [heads, d_model, d_head] there
        assert tuple(state[theirs].shape) == here.shape, (ours, state[theirs].shape, here.shape)
        state[theirs].copy_(torch.from_numpy(here.copy()))
    sae = SAE.load_from_disk(folder / "sae", device="cpu")
    sae.cfg.rescale_acts_by_decoder_norm = True  # norms are one; the runner folds them and refuses without
    clock, passes = time.perf_counter(), []
    plain = FeatureDataGenerator.get_feature_data

    def timed(self, *args):
        start = time.perf_counter()
        found = plain(self, *args)
        passes.append(time.perf_counter() - start)
        return found

    FeatureDataGenerator.get_feature_data = timed
    config = SaeVisConfig(hook_point="blocks.0.mlp.hook_post", features=range(features))
    found = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    save_feature_centric_vis(found, folder / "peer.html")
    total = time.perf_counter() - clock
    first = found.feature_data_dict[0].acts_histogram_data
    print(json.dumps({
        "seconds": total, "passes": sum(passes), "bytes": (folder / "peer.html").stat().st_size,
        "first title": first.title,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
