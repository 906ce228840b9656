"""Pages of SAEs on worlds whose truth is known: examples are samples, written as the generators that are on in them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from superpose.dashboard.records import _groups, _histogram, _number, examples
from superpose.sae.model import SAE

SHOWN = 24
"""Generators of a sample that are written, the largest; that of the latent in any case."""
STEPS = 10
"""Values of a generator are written to the nearest tenth of its largest; 0.0 is on, and below a twentieth."""


def pieces(generators: int) -> list[bytes]:
    """Words that samples are written in: number of the generator, and its value in tenths of its largest; the last
    stands for the generator that a latent is held against where that is off."""
    values = range(generators * (STEPS + 1))
    return [*(f"g{i // (STEPS + 1)}:{i % (STEPS + 1) / STEPS:.1f} ".encode() for i in values), b"(off) "]


def records(
    sae: SAE,
    x: Float[np.ndarray, "N d"],
    features: Float[np.ndarray, "N n"],
    directions: Float[np.ndarray, "n d"],
    latents: Sequence[int],
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """What is shown of each latent of an SAE on a world.

    A latent is held against the generator with the closest direction; it says "on" where it is above 0.

    Args:
        x: samples. features: what generated them, 0 where a generator is off. directions: of the generators.

    Raises:
        ValueError: a latent that the SAE has not, or samples of another width than it reads.
    """
    if x.shape[1] != sae.arch.d_in:
        raise ValueError(
            f"the SAE reads {sae.arch.d_in} numbers and samples have {x.shape[1]}: they are of another world"
        )
    if bad := [int(j) for j in latents if not 0 <= j < sae.arch.d_sae]:
        raise ValueError(f"the SAE has no latent {bad[0]}: they are 0 to {sae.arch.d_sae - 1}")
    if not len(x):
        raise ValueError("there is no sample to look at: give at least one")
    acts = np.asarray(sae.encode(x))
    unit = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)  # noqa: E731
    weights = np.asarray(sae.W_dec[...], np.float32)
    cosines = unit(weights) @ unit(np.asarray(directions, np.float32)).T
    largest = np.maximum(features.max(0), 1e-30)
    share = lambda part, of: _number(part / of if of else np.nan)  # noqa: E731
    for j in latents:
        rows = np.flatnonzero(acts[:, j])
        values = acts[rows, j]
        e = examples(rows, values, np.arange(len(x)), 1, seed, int(j))
        order = np.argsort(-cosines[j], kind="stable")
        closest = int(order[0])
        true, said = features[:, closest] > 0, acts[:, j] > 0
        tp, fp, fn = int((true & said).sum()), int((~true & said).sum()), int((true & ~said).sum())
        ids, at = [], []
        for row in e.rows:
            on = np.flatnonzero(features[row])
            on = on[np.argsort(-features[row, on], kind="stable")]
            on = np.concatenate([on[:SHOWN], on[SHOWN:][on[SHOWN:] == closest]])
            tenth = np.round(features[row, on] / largest[on] * STEPS).astype(int)
            none = [] if closest in on else [features.shape[1] * (STEPS + 1)]  # what the latent's activation stands on
            ids.append([*none, *(on * (STEPS + 1) + tenth).tolist()])
            at.append(0 if none else int(np.flatnonzero(on == closest)[0]))
        said_at = np.where(acts[e.rows, j] != 0, acts[e.rows, j], 0)
        yield {
            "n": int(j), "on": len(rows), "density": _number(len(rows) / len(x)),
            "max": _number(values.max()) if len(rows) else 0.0, "mean": _number(values.mean()) if len(rows) else 0.0,
            **({"histogram": _histogram(values)} if len(rows) else {}),
            "confusion": {
                "closest generator": f"g{closest}", "cosine": _number(cosines[j, closest]), "both on": tp,
                "latent alone": fp, "generator alone": fn, "both off": int((~true & ~said).sum()),
                "precision": share(tp, tp + fp), "recall": share(tp, tp + fn), "F1": share(2 * tp, 2 * tp + fp + fn),
            },
            "why": {
                "text": f"generator g{closest} is on", "f1": share(2 * tp, 2 * tp + fp + fn),
                "precision": share(tp, tp + fn), "recall": share(tp, tp + fp), "auroc": None, "of": "all samples",
            },
            "others": {}, "groups": _groups(e),
            "examples": {
                "context": e.rows.tolist(), "place": [0] * len(ids), "document": e.rows.tolist(), "at": at,
                "again": e.again.astype(int).tolist(), "ids": ids,
                "acts": [[_number(a) if k == p else 0 for k in range(len(i))]
                         for i, p, a in zip(ids, at, said_at, strict=True)],
            },
        }  # fmt: skip
