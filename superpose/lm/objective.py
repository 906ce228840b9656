"""How a language model is trained by ``train.fit``: its objective, and a stream of batches of contexts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from superpose.lm.transformer import Config, Transformer, next_token_loss, param_specs
from superpose.train.fit import Objective, Population


def objective(config: Config) -> Objective:
    """Mean next-token loss in nats over a batch {"tokens" [B, T], "mask" [B, T]}; members differ by their key."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))

    def init(key, hyper):
        return nnx.to_pure_dict(nnx.split(Transformer(config, nnx.Rngs(key)))[1]), ()

    def loss(params, state, batch, key, step, hyper):
        model = merge(graph, params)
        nll, counts = next_token_loss(model(batch["tokens"]).logits, batch["tokens"], batch["mask"])
        return jnp.sum(nll * counts) / jnp.maximum(jnp.sum(counts), 1), (state, {})

    return Objective(init, loss)


def merge(graph: Any, params: Mapping[str, Any]) -> Transformer:
    """A module of the plain dict that ``fit`` trains."""
    return nnx.merge(graph, nnx.State(jax.tree.map(nnx.Param, dict(params))))


def population(config: Config, hyper: Mapping[str, Any], recipe: Any, *, split: bool = False) -> Population:
    """N language models for ``train.fit.fit``, one a block.

    Args:
        config: of all of them.
        hyper: ``seed`` [N]; ``lr`` and ``weight_decay`` where members differ.
        recipe: of the optimiser.
        split: whether weights are split over the axis "model" of the mesh that ``fit`` is given.
    """
    return Population(objective(config), recipe, hyper, block=1, param_spec=param_specs if split else None)


def member(config: Config, params: Any, i: int = 0) -> Transformer:
    """One trained model of a Result's params."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    return merge(graph, jax.tree.map(lambda x: jnp.asarray(x[i]), params))


class Batches:
    """Contexts in random order, again and again: a Stream whose order is a function of (seed, epoch).

    Args:
        contexts: ``text.Contexts``; rows shorter than the context are masked.
        batch: contexts a step.
        seed: of the order.
    """

    def __init__(self, contexts: Any, batch: int, seed: int = 0):
        if len(contexts.tokens) < batch:
            raise ValueError(f"there are {len(contexts.tokens)} contexts, fewer than a batch of {batch}")
        self.tokens, self.mask, self.batch, self.seed = contexts.tokens, contexts.mask, batch, seed
        self._epoch, self._at = 0, 0
        self._order: tuple[int, np.ndarray] | None = None

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "at": self._at}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._epoch, self._at = int(state["epoch"]), int(state["at"])

    def __next__(self) -> dict[str, np.ndarray]:
        if self._at + self.batch > len(self.tokens):
            self._epoch, self._at = self._epoch + 1, 0
        if self._order is None or self._order[0] != self._epoch:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(len(self.tokens))
            self._order = (self._epoch, order)
        chosen = self._order[1][self._at : self._at + self.batch]
        self._at += self.batch
        return {"tokens": self.tokens[chosen], "mask": self.mask[chosen]}


def losses(model: Transformer, contexts: Any, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Next-token losses in nats, summed over contexts, and how many they are, by place in the context.

    Args:
        model: read as it is.
        contexts: ``text.Contexts`` of C tokens.
        batch: contexts at once.

    Returns:
        two arrays [C - 1]: what is predicted at place t is token t + 1.
    """
    total = np.zeros((2, contexts.tokens.shape[1] - 1))
    for i in range(0, len(contexts.tokens), batch):
        tokens, mask = contexts.tokens[i : i + batch], contexts.mask[i : i + batch]
        missing = batch - len(tokens)
        tokens, mask = np.pad(tokens, ((0, missing), (0, 0))), np.pad(mask, ((0, missing), (0, 0)))
        total += np.asarray(_sum_losses(model, tokens, mask), np.float64)
    return total[0], total[1]


def mean_loss(model: Transformer, contexts: Any, batch: int = 32) -> float:
    """Mean next-token loss in nats over all contexts."""
    total, count = losses(model, contexts, batch)
    return float(total.sum() / max(count.sum(), 1))


@jax.jit
def _sum_losses(model, tokens, mask):
    nll, counts = next_token_loss(model(tokens).logits, tokens, mask)
    return jnp.stack([jnp.sum(nll * counts, 0), jnp.sum(counts, 0).astype(nll.dtype)])
