"""Samples and directions of SAELens' synthetic data. Run by the Python of the peers: worlds_peer.py IN.npz OUT.npz.

IN holds, for each case, CASE/wanted and CASE/density [n] (before the hierarchy), CASE/factor [n, r] of the correlation
(r = 0: none), CASE/mean and CASE/std [n] of the magnitudes, CASE/forest: roots, branching, depth, exclusive, scaled.
OUT gets CASE/parent and CASE/compensated [n] by SAELens' own rules, and the sums of CASE/samples over all its samples:
CASE/on [n], CASE/both [pairs, pairs], CASE/powers [4, n] of the values, and CASE/l0 of each. Beside them ``zipf`` as
SAELens makes it of ``law``, and ``turned``, ``largest``, ``mean`` of the directions ``start``.
"""

import sys

import numpy as np


def hierarchy_of(n: int, forest: np.ndarray):
    from sae_lens.synthetic import HierarchyConfig, generate_hierarchy

    roots, branching, depth, exclusive, scaled = (int(a) for a in forest)
    config = HierarchyConfig(
        total_root_nodes=roots, branching_factor=branching, max_depth=depth, compensate_probabilities=True,
        mutually_exclusive_portion=float(exclusive), scale_children_by_parent=bool(scaled),
    )  # fmt: skip
    return generate_hierarchy(n, config, seed=0)


def parents(hierarchy, n: int) -> np.ndarray:
    parent, queue = np.full(n, -1), list(hierarchy.roots)
    for node in queue:
        for child in node.children:
            parent[child.feature_index] = node.feature_index
            queue.append(child)
    return parent


def sums(generator, batches: int, batch: int, pairs: int) -> dict[str, np.ndarray]:
    import torch

    n = generator.num_features
    on, both, powers = torch.zeros(n), torch.zeros(pairs, pairs), torch.zeros(4, n)
    on, both, powers, l0 = on.double(), both.double(), powers.double(), []
    for _ in range(batches):
        x = generator.sample(batch)
        active = (x > 0).float()
        on += active.sum(0)
        both += active[:, :pairs].T @ active[:, :pairs]
        power = torch.ones_like(x)
        for k in range(4):
            power = power * x
            powers[k] += power.sum(0)
        l0.append(active.sum(1))
    return {"on": on.numpy(), "both": both.numpy(), "powers": powers.numpy(), "l0": torch.cat(l0).numpy()}


def main(source: str, target: str) -> None:
    import torch
    from sae_lens import synthetic

    with np.load(source) as file:
        given = {name: torch.from_numpy(file[name]) for name in file.files}
    torch.manual_seed(0)
    out = {}
    for case in sorted({name.split("/")[0] for name in given if "/" in name}):
        wanted, density, factor, mean, std, forest, samples = (
            given[f"{case}/{name}"] for name in ("wanted", "density", "factor", "mean", "std", "forest", "samples")
        )
        n = len(density)
        hierarchy = hierarchy_of(n, forest.numpy())
        corrected = wanted * hierarchy.compute_probability_correction_factors(wanted)
        correlation = (factor, 1 - (factor**2).sum(1)) if factor.shape[1] else None
        generator = synthetic.ActivationGenerator(
            n, density, std_firing_magnitudes=std, mean_firing_magnitudes=mean,
            modify_activations=hierarchy.modifier, correlation_matrix=correlation,
        )  # fmt: skip
        found = {"parent": parents(hierarchy, n), "compensated": corrected.clamp(max=1.0).numpy()}
        found |= sums(generator, *(int(a) for a in samples))
        out |= {f"{case}/{name}": value for name, value in found.items()}

    n, *law = given["law"].tolist()
    out["zipf"] = synthetic.zipfian_firing_probabilities(int(n), *law).numpy()
    turned = synthetic.orthogonalize_embeddings(given["start"], num_steps=int(given["steps"]), lr=float(given["lr"]))
    dictionary = synthetic.FeatureDictionary(*turned.shape, initializer=None)
    dictionary.feature_vectors.data = turned
    overlaps = synthetic.compute_superposition_stats(dictionary)
    out |= {"turned": turned.numpy(), "largest": overlaps.max_abs_cos_sims.numpy(), "mean": overlaps.mean_abs_cos_sim}
    np.savez(target, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
