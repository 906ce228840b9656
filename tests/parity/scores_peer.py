"""SAELens' scores against the truth of one fixed case. Run by the Python of the peers: scores_peer.py IN.npz OUT.npz.

IN holds W_dec [F, d], directions [n, d], acts [N, F], features [N, n], x and x_hat [N, d].
"""

import sys

import numpy as np


def main(source: str, target: str) -> None:
    import torch
    from sae_lens.evals import ExplainedVarianceCalculator
    from sae_lens.synthetic import evals

    with np.load(source) as file:
        case = {name: torch.from_numpy(file[name]) for name in file.files}
    W_dec, directions, acts, features = (case[name] for name in ("W_dec", "directions", "acts", "features"))
    table = evals.ClassificationMetricsCalculator(W_dec, directions)
    variance, l0 = ExplainedVarianceCalculator(), evals.L0Calculator()
    dead, shrinkage = evals.DeadLatentsCalculator(len(W_dec)), evals.ShrinkageCalculator()
    for rows in torch.arange(len(acts)).split(256):
        table.add_batch(acts[rows], features[rows])
        variance.add_batch(case["x_hat"][rows], case["x"][rows])
        l0.add_batch(acts[rows])
        dead.add_batch(acts[rows])
        shrinkage.add_batch(case["x_hat"][rows], case["x"][rows])
    detection = table.compute()
    np.savez(
        target,
        mcc=evals.mean_correlation_coefficient(W_dec, directions),
        uniqueness=evals.feature_uniqueness(W_dec, directions),
        precision=detection.precision,
        recall=detection.recall,
        f1=detection.f1_score,
        accuracy=detection.accuracy,
        tp=table.tp.numpy(),
        fp=table.fp.numpy(),
        fn=table.fn.numpy(),
        tn=table.tn.numpy(),
        explained_variance=variance.compute(),
        l0=l0.compute(),
        dead=dead.compute(),
        shrinkage=shrinkage.compute(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
