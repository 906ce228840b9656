"""The peer's harvest, transformers on torch with a hook: a script for its Python (`make peers`); one line of JSON.

    python benchmarks/peer_lm.py make FOLDER NAME ... # random models as folders, and what stands at their sites
    python benchmarks/peer_lm.py harvest FOLDER NAME BATCH

The pass ends at the hook: nothing after the site is computed.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Model(NamedTuple):
    """What is timed: a model of transformers, random weights, and the site in its middle."""

    family: str
    config: dict
    site: str
    context: int = 128
    contexts: int = 256
    dtype: str = "float32"


MODELS = {
    "one_layer": Model("GPT2", dict(vocab_size=2048, n_embd=128, n_layer=1, n_head=4, n_inner=512, n_positions=128,
                                    activation_function="relu"), "mlp_post.0"),
    "four_layers": Model("GPT2", dict(vocab_size=50_257, n_embd=512, n_layer=4, n_head=8, n_positions=128),
                         "resid_post.1"),
}  # fmt: skip
LARGE = {
    "gemma_2_2b": Model(
        "Gemma2", dict(vocab_size=256_000, hidden_size=2304, num_hidden_layers=26, num_attention_heads=8,
                       num_key_value_heads=4, head_dim=256, intermediate_size=9216, query_pre_attn_scalar=256,
                       sliding_window=4096, max_position_embeddings=8192), "resid_post.12", 1024, 128, "bfloat16")
}  # fmt: skip
"""For an accelerator."""
FOR = {"GPT2": "GPT2LMHeadModel", "Gemma2": "Gemma2ForCausalLM"}
SIZE = {False: 2048, True: 8192}
"""Of the product that measures the matrix rate, without and with an accelerator."""


class Stop(Exception):
    pass


def passes(model, name):
    """A function tokens -> rows at the site, and nothing after it."""
    import torch

    held = {}

    def keep(module, args, output):
        held["x"] = output[0] if isinstance(output, tuple) else output
        raise Stop

    layers = model.transformer.h if name in MODELS else model.model.layers
    part, number = {**MODELS, **LARGE}[name].site.split(".")
    place = layers[int(number)].mlp.act if part == "mlp_post" else layers[int(number)]
    place.register_forward_hook(keep)

    def run(tokens):
        with torch.inference_mode():
            try:
                model(tokens, use_cache=False)
            except Stop:
                pass
        return held["x"].reshape(-1, held["x"].shape[-1]).cpu()

    return run


def main():
    import numpy as np
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    if gpu:  # products of float32 in TF32, as JAX computes them there
        torch.set_default_device("cuda")
        torch.set_float32_matmul_precision("high")
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        for name in sys.argv[3:]:
            m = {**MODELS, **LARGE}[name]
            torch.manual_seed(0)
            torch.set_default_dtype(getattr(torch, m.dtype))
            config = getattr(transformers, m.family + "Config")(**m.config)
            model = getattr(transformers, FOR[m.family])(config).eval()
            torch.set_default_dtype(torch.float32)
            model.save_pretrained(folder / name)
            tokens = torch.randint(0, m.config["vocab_size"], (4, m.context))
            np.save(folder / name / "tokens.npy", tokens.numpy(force=True))
            np.save(folder / name / "rows.npy", passes(model, name)(tokens).float().numpy())
        print(json.dumps({}))
        return
    name, batch = sys.argv[3], int(sys.argv[4])
    m = {**MODELS, **LARGE}[name]
    dtype = getattr(torch, m.dtype)
    model = getattr(transformers, FOR[m.family]).from_pretrained(folder / name, dtype=dtype).eval()
    if gpu:
        model = model.cuda()
    tokens = torch.randint(0, m.config["vocab_size"], (m.contexts, m.context))
    run = passes(model, name)
    run(tokens[:batch])
    times = []
    for _ in range(5):
        clock = time.perf_counter()
        for i in range(0, m.contexts, batch):
            run(tokens[i : i + batch])
        times.append(time.perf_counter() - clock)
    size = SIZE[gpu]
    a = torch.randn(size, size, dtype=dtype)
    products = []
    for _ in range(6):
        clock = time.perf_counter()
        a @ a
        if gpu:
            torch.cuda.synchronize()
        products.append(time.perf_counter() - clock)
    rate = m.contexts * m.context / statistics.median(times)
    print(json.dumps({"tokens/s": rate, "gflops": 2 * size**3 / statistics.median(products[1:]) / 1e9}))


if __name__ == "__main__":
    main()
