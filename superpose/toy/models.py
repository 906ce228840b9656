"""The toy models: n features through m hidden dimensions and back (Elhage et al. 2022, "Toy Models of Superposition").

Notation, once for the whole project: ``W`` is [n, m] and its row i is the direction of feature i. The papers write the
transpose, an m x n matrix whose column W_i is that direction. ``density`` is 1 - S. The loss is the importance-weighted
sum over features, averaged over the batch; the paper's notebook divides by n as well.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from superpose.train.fit import Objective, Population, Sampler
from superpose.train.recipe import Recipe
from superpose.worlds import expect
from superpose.worlds.sparse import World, independent

ACTIVATIONS: dict[str, Callable] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
"""name -> a nonlinearity. After the decoder, "linear" and "relu" are the two models of TMS, "Basic Results"; in the
hidden layer, "relu" is that of "Superposition in a Privileged Basis"; "gelu" is beside them in Scherlis et al. 2022."""


class ToyModel(nnx.Module):
    """x_hat = output(W h + b), with h = hidden(W^T x) in m dimensions (TMS, "Demonstrating superposition").

    With hidden="relu" neurons are a privileged basis; there is no hidden bias, which would let the model make itself
    linear (TMS, "Superposition in a Privileged Basis").

    Features are the first axis; a batch, if there is one, comes after it: with the batch in the contiguous axis the
    matrix products on CPU take half the time.
    """

    def __init__(
        self, n: int, m: int, *, output: str = "relu", hidden: str = "linear", bias: bool = True,
        init_scale: float = 1.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        """W by Xavier normal for an n x m matrix, std = sqrt(2 / (n + m)) times init_scale; b = 0.

        Args:
            n: features. m: hidden dimensions.
            output, hidden: rows of ``ACTIVATIONS``.
            bias: whether b is there to be trained.
            init_scale: below 1, features are learned one after another, which ends in better optima more often (the
                paper's notebook starts at 0.42 of Xavier for n=20, m=5, by its 3-D tensor).

        Raises:
            ValueError: n or m below 1, or an unknown output.
        """
        if n < 1 or m < 1:
            raise ValueError(f"a toy model needs at least one feature and one hidden dimension, got n={n}, m={m}")
        for name, value in (("output", output), ("hidden", hidden)):
            if value not in ACTIVATIONS:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.W = nnx.Param(init_scale * nnx.initializers.glorot_normal()(rngs.params(), (n, m)))
        self.b = nnx.Param(jnp.zeros(n)) if bias else None
        self.output, self.hidden = output, hidden

    def encode(self, x: Float[Array, "n *batch"]) -> Float[Array, "m *batch"]:
        return ACTIVATIONS[self.hidden](self.W[...].T @ x)

    def decode(self, h: Float[Array, "m *batch"]) -> Float[Array, "n *batch"]:
        pre = self.W[...] @ h
        if self.b is not None:
            pre = pre + self.b[...].reshape(-1, *[1] * (h.ndim - 1))
        return ACTIVATIONS[self.output](pre)

    def __call__(self, x: Float[Array, "n *batch"]) -> Float[Array, "n *batch"]:
        return self.decode(self.encode(x))


class TwoLayers(nnx.Module):
    """y = relu(W_out h + b), h = relu(W_in x): weights of their own on both sides, no hidden bias.

    The model that computes |x| in superposition (TMS, "Computation in Superposition"). ``W_in`` is [m, n], row j the
    input weights of neuron j; ``W_out`` is [n, m].
    """

    def __init__(self, n: int, m: int, *, init_scale: float = 1.0, rngs: nnx.Rngs):
        """Both weights by Xavier normal times init_scale; b = 0.

        Raises:
            ValueError: n or m below 1.
        """
        if n < 1 or m < 1:
            raise ValueError(f"a model needs at least one feature and one neuron, got n={n}, m={m}")
        xavier = nnx.initializers.glorot_normal()
        self.W_in = nnx.Param(init_scale * xavier(rngs.params(), (m, n)))
        self.W_out = nnx.Param(init_scale * xavier(rngs.params(), (n, m)))
        self.b = nnx.Param(jnp.zeros(n))

    def encode(self, x: Float[Array, "n *batch"]) -> Float[Array, "m *batch"]:
        return jax.nn.relu(self.W_in[...] @ x)

    def __call__(self, x: Float[Array, "n *batch"]) -> Float[Array, "n *batch"]:
        return jax.nn.relu(self.W_out[...] @ self.encode(x) + self.b[...].reshape(-1, *[1] * (x.ndim - 1)))


def normalised(
    W_in: Float[ArrayLike, "m n"], W_out: Float[ArrayLike, "n m"]
) -> tuple[Float[Array, "m n"], Float[Array, "n m"]]:
    """The same function with the largest input weight of every neuron at size 1; a neuron without any stays 0.

    ReLU neurons may be scaled, W_in's row by a and W_out's column by 1 / a (TMS, "Computation in Superposition").

    >>> [w.tolist() for w in normalised(jnp.array([[2.0, -4.0]]), jnp.array([[1.0], [0.5]]))]
    [[[0.5, -1.0]], [[4.0], [2.0]]]
    """
    size = jnp.abs(jnp.asarray(W_in)).max(1)
    return (
        jnp.asarray(W_in) / jnp.where(size > 0, size, 1)[:, None],
        jnp.asarray(W_out) * jnp.where(size > 0, size, 0),
    )


def weighted_error(
    x: Float[Array, "n batch"], x_hat: Float[Array, "n batch"], importance, w: Float[Array, " batch"]
) -> Float[Array, ""]:
    """sum over the batch of w times sum_i I_i (x_i - x_hat_i)^2; w sums to 1 (TMS, "Loss").

    >>> import jax.numpy as jnp
    >>> float(weighted_error(jnp.array([[1.0], [2.0]]), jnp.zeros((2, 1)), jnp.array([1.0, 0.5]), jnp.ones(1)))
    3.0
    """
    return jnp.sum(importance[:, None] * w * jnp.square(x - x_hat))  # elementwise: a product I @ (...) is slower


def objective(
    make: Callable[[nnx.Rngs], nnx.Module],
    init: Callable | None = None,
    target: Callable | None = None,
    record: Callable | None = None,
    perturb: Callable | None = None,
) -> Objective:
    """The paper's objective for any module that maps x [n, B] to x_hat [n, B].

    The batch is a ``Batch`` (x [n, B], w [B]); ``hyper["importance"]`` is [n]. Where there is ``hyper["hidden_l1"]``,
    so many times the mean of ||h||_1 is added, with h = encode(x) (TMS, "The Strategic Picture of Superposition").

    Args:
        make: rngs -> module. Its structure is split off once; the loop sees the arrays alone.
        init: (params, key, hyper) -> params, an edit of the module's own initial values.
        target: x -> what the model is to say of it; None is x itself.
        record: params -> arrays that are kept at listed steps (``train.fit.Objective``).
        perturb: (params, key, x, hyper) -> x as the model gets to see it, of which it is to say what is said of x
            itself; no gradient goes through it (adversarial training).
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def start(key, hyper):
        params = nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key))))
        return (params if init is None else init(params, key, hyper)), ()

    def loss(params, state, batch, key, step, hyper):
        wanted = batch.x if target is None else target(batch.x)
        model = nnx.merge(graph, params)
        seen = batch.x if perturb is None else jax.lax.stop_gradient(perturb(params, key, batch.x, hyper))
        error = weighted_error(wanted, model(seen), hyper["importance"], batch.w)
        if "hidden_l1" in hyper:
            error = error + hyper["hidden_l1"] * jnp.sum(batch.w * jnp.abs(model.encode(seen)))
        return error, (state, {})

    return Objective(init=start, loss=loss, record=record)


def decay(n: int, rate: float) -> Float[Array, " n"]:
    """Importances I_i = rate^i.

    >>> [float(i) for i in decay(3, 0.5)]
    [1.0, 0.5, 0.25]
    """
    return jnp.asarray(rate, jnp.float32) ** jnp.arange(n)


def grid(**axes) -> dict[str, np.ndarray]:
    """The full product of named axes, as a Population's hyper: name -> [N], the last axis running fastest.

    >>> {k: v.tolist() for k, v in grid(density=[1.0, 0.5], seed=range(2)).items()}
    {'density': [1.0, 1.0, 0.5, 0.5], 'seed': [0, 1, 0, 1]}

    Raises:
        ValueError: an axis is empty, or there is none.
    """
    if not axes:
        raise ValueError("the grid is empty: give at least one axis")
    arrays = {k: np.asarray(list(v) if isinstance(v, range) else v) for k, v in axes.items()}
    for name, a in arrays.items():
        if a.ndim != 1 or not a.size:
            raise ValueError(f"the grid is empty: axis {name!r} needs a list of at least one value, got {a.tolist()}")
    product = np.meshgrid(*arrays.values(), indexing="ij")
    return {
        k: p.ravel().astype(np.float32) if p.dtype.kind == "f" else p.ravel()
        for k, p in zip(arrays, product, strict=True)
    }


def population(
    n: int,
    m: int,
    hyper: Mapping,
    recipe: Recipe,
    *,
    importance: ArrayLike | None = None,
    output: str = "relu",
    hidden: str = "linear",
    bias: bool = True,
    init_scale: float = 1.0,
    model: Callable[[nnx.Rngs], nnx.Module] | None = None,
    expectation: str = "conditional",
    size: int | tuple[int, ...] = 256,
    world: World | None = None,
    init: Callable | None = None,
    target: Callable | None = None,
    record: Callable | None = None,
    perturb: Callable | None = None,
    block: int = 16,
) -> Population:
    """A population of toy models on a sparse world, ready for ``train.fit.fit``.

    Args:
        n, m: features and hidden dimensions, the same for all members.
        hyper: name -> [N, ...]. ``seed`` [N] and ``density`` [N] or [N, n] must be there; ``importance`` [N, n]
            where members differ in it; ``lr`` and ``weight_decay`` [N] replace the recipe's; ``hidden_l1`` [N]: see
            ``objective``.
        importance: [n] for all members, when hyper has none; None is all ones.
        output, hidden, bias, init_scale: of ToyModel.
        model: rngs -> a module of your own, x [n, B] -> x_hat [n, B], in place of ToyModel.
        expectation, size: a row of ``worlds.expect.EXPECTATIONS`` and its size (batch, or nodes per feature).
        world: of n features; None takes independent features with values U[0, 1].
        init, target, record, perturb: see ``objective``.

    Raises:
        ValueError: a density outside (0, 1], n or m below 1, wrong shapes; each in one sentence.
    """
    for name in ("seed", "density"):
        if np.ndim(hyper.get(name, 0)) < 1:
            raise ValueError(f"hyper needs {name!r} with a value for each member, got {hyper.get(name)!r}")
    density = np.asarray(hyper["density"], np.float32)
    if not np.all((density > 0) & (density <= 1)):
        raise ValueError(f"density (1 - S) must lie in (0, 1], got {density[~((density > 0) & (density <= 1))][0]:.9g}")
    shape = (len(density), n)
    weights = np.asarray(hyper.get("importance", 1.0 if importance is None else importance), np.float32)
    if weights.shape not in ((), (n,), shape):
        raise ValueError(f"importance must be [n] = {(n,)}, or [N, n] = {shape} in hyper, got {weights.shape}")
    if not np.all(np.isfinite(weights) & (weights >= 0)):
        bad = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise ValueError(f"importance must be finite and at least 0, got {bad:g}")
    if world is not None and world.n != n:
        raise ValueError(f"the model has n={n} features, but the world has {world.n}")
    make = model or (
        lambda rngs: ToyModel(n, m, output=output, hidden=hidden, bias=bias, init_scale=init_scale, rngs=rngs)
    )
    sample = expect.expectation(expectation, world or independent(n), size)
    return Population(
        objective(make, init, target, record, perturb),
        recipe,
        {**hyper, "density": density, "importance": np.broadcast_to(weights, shape)},
        source=Sampler(lambda key, h: sample(key, h["density"])),
        block=block,
    )
