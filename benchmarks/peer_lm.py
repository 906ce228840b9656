"""The peer's harvest, transformers on torch with a hook: a script for its Python (`make peers`); one line of JSON.

    python benchmarks/peer_lm.py make FOLDER          # random models as folders, and what stands at their sites
    python benchmarks/peer_lm.py harvest FOLDER NAME CONTEXTS BATCH

The pass ends at the hook: nothing after the site is computed.
"""

import json
import statistics
import sys
import time
from pathlib import Path

MODELS: dict[str, tuple[dict, str]] = {
    "one_layer": (dict(vocab_size=2048, n_embd=128, n_layer=1, n_head=4, n_inner=512, n_positions=128,
                       activation_function="relu"), "mlp_post.0"),
    "four_layers": (dict(vocab_size=50_257, n_embd=512, n_layer=4, n_head=8, n_positions=128), "resid_post.1"),
}  # fmt: skip
"""Name -> (GPT-2 config, the site in the middle)."""
CONTEXT = 128


class Stop(Exception):
    pass


def passes(model, name):
    """A function tokens -> rows at the site, and nothing after it."""
    import torch

    held = {}

    def keep(module, args, output):
        held["x"] = output[0] if isinstance(output, tuple) else output
        raise Stop

    place = model.transformer.h[0].mlp.act if name == "one_layer" else model.transformer.h[1]
    place.register_forward_hook(keep)

    def run(tokens):
        with torch.inference_mode():
            try:
                model(tokens, use_cache=False)
            except Stop:
                pass
        return held["x"].reshape(-1, held["x"].shape[-1]).numpy()

    return run


def main():
    import numpy as np
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        for name, (values, _) in MODELS.items():
            torch.manual_seed(0)
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval()
            model.save_pretrained(folder / name)
            tokens = torch.randint(0, values["vocab_size"], (4, CONTEXT))
            np.save(folder / name / "tokens.npy", tokens.numpy())
            np.save(folder / name / "rows.npy", passes(model, name)(tokens))
        print(json.dumps({}))
        return
    name, contexts, batch = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    model = transformers.GPT2LMHeadModel.from_pretrained(folder / name).eval()
    tokens = torch.randint(0, MODELS[name][0]["vocab_size"], (contexts, CONTEXT))
    run = passes(model, name)
    run(tokens[:batch])
    times = []
    for _ in range(5):
        clock = time.perf_counter()
        for i in range(0, contexts, batch):
            run(tokens[i : i + batch])
        times.append(time.perf_counter() - clock)
    a = torch.randn(2048, 2048)
    a @ a
    products = []
    for _ in range(5):
        clock = time.perf_counter()
        a @ a
        products.append(time.perf_counter() - clock)
    rate = contexts * CONTEXT / statistics.median(times)
    print(json.dumps({"tokens/s": rate, "gflops": 2 * 2048**3 / statistics.median(products) / 1e9}))


if __name__ == "__main__":
    main()
