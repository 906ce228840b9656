"""Attacks on toy models: the smallest change of the input that does the most harm.

Elhage et al. 2022, "Toy Models of Superposition", "Superposition and Adversarial Vulnerability". Gradients of a ReLU
that is off are 0 and find nothing where features are sparse; these attacks are read off the weights. Notation as in
``toy.models``: W is [n, m], row i the direction of feature i.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from superpose.toy import geometry


def directions(W: Float[Array, "n m"]) -> Float[Array, "n n"]:
    """Row i: the change of the input, of norm 1, that raises x_hat_i the most, (W^T W)_i / ||(W^T W)_i||; 0 where
    row i of W is 0.

    >>> import jax.numpy as jnp
    >>> print(directions(jnp.array([[3.0], [-4.0], [0.0]])).round(1))
    [[ 0.6 -0.8  0. ]
     [-0.6  0.8 -0. ]
     [ 0.   0.   0. ]]
    """
    gram = geometry.gram(W)
    size = jnp.linalg.norm(gram, axis=1, keepdims=True)
    return jnp.where(size > 0, gram / jnp.where(size > 0, size, 1), 0)


def errors(
    W: Float[Array, "n m"], b: Float[Array, " n"], x: Float[Array, "n B"], size: Float[Array, ""]
) -> Float[Array, "n B"]:
    """Squared error, summed over features, of relu(W W^T x' + b) as a picture of x, x' = x + size times row i of
    ``directions``. Row i: the attack on feature i.

    >>> W, x = jnp.eye(2)[:, :1], jnp.array([[0.5], [0.0]])
    >>> print(errors(W, jnp.zeros(2), x, jnp.float32(0.1)).round(2))
    [[0.01]
     [0.  ]]
    """
    before = W @ (W.T @ x) + b[:, None]
    moved = geometry.gram(W) @ directions(W).T * size  # [n, attacks]
    one = lambda step: jnp.sum(jnp.square(x - jax.nn.relu(before + step[:, None])), 0)  # noqa: E731
    return jax.lax.map(one, moved.T, batch_size=16)


def ascended(
    W: Float[Array, "n m"], b: Float[Array, " n"], x: Float[Array, "n B"], size: Float[Array, ""], steps: int
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """The error after an attack by gradients, and for which inputs the gradient is 0 to begin with (masked).

    ``steps`` steps of ascent on it within a ball of radius ``size`` about x, each a quarter of the radius long; where
    the gradient is 0 the attack stays where it is.
    """

    def error(moved):
        return jnp.sum(jnp.square(x - jax.nn.relu(W @ (W.T @ (x + moved)) + b[:, None])), 0)

    slopes = jax.grad(lambda d: error(d).sum())

    def step(_, moved):
        slope = slopes(moved)
        length = jnp.linalg.norm(slope, axis=0)
        moved = moved + 0.25 * size * jnp.where(length > 0, slope / jnp.where(length > 0, length, 1), 0)
        far = jnp.linalg.norm(moved, axis=0)
        return moved * jnp.where(far > size, size / jnp.where(far > size, far, 1), 1)

    found = error(jax.lax.fori_loop(0, steps, step, jnp.zeros_like(x)))
    return found, (slopes(jnp.zeros_like(x)) == 0).all(0)


def on_random_feature(params: dict, key: Key[Array, ""], x: Float[Array, "n B"], hyper) -> Float[Array, "n B"]:
    """x moved by hyper["attack"] (a norm) against one random feature per column: what adversarial training shows the
    model (``toy.models.objective``, perturb)."""
    chosen: Int[Array, " B"] = jax.random.randint(key, x.shape[1:], 0, x.shape[0])
    return x + hyper["attack"] * directions(params["W"])[chosen].T
