"""Sparse worlds: the ``World`` seam, independent features and sets of them (Elhage et al. 2022, "Experiment Setup").

Feature i is active with probability p_i = density_i (the paper's 1 - S; this code stores the density only), and then
its value is uniform. Samples are FEATURE-MAJOR, x[n, batch]: with the batch in the contiguous axis, W.T @ (W @ x) took
0.5 ms against 1.3 to 1.5 ms for x[batch, n] (20 members, n=20, m=5, batch 1024, median of 60 on a 2-core CPU).

Every draw is 32 random bits: the upper 31 decide activity and magnitude, the lowest is the sign where values have one.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from scipy.stats import qmc

MAX_COLUMNS = 2**22

Density = int | float | Float[np.ndarray, ""] | Float[np.ndarray, " parts"] | Float[Array, ""] | Float[Array, " parts"]
Grid = tuple[Float[np.ndarray, "n R"], Float[Array, " R"]]


@dataclass(frozen=True)
class World:
    """A distribution of sparse feature vectors x with ``n`` features; what every world has to provide.

    ``density`` is a scalar or [n] (or one for each set), in [0, 1], and may be traced (one per member under
    vmap). Samples are [n, batch].

    Attributes:
        n: number of features.
        sample: (key, density, batch) -> x [n, batch].
        silent: density -> P(x == 0), scalar. None where it is not known.
        sample_active: (key, density, batch) -> x [n, batch] given that at least one feature is active. The columns may
            depend on each other (stratified), but each column alone follows that law. None where it is not known.
        enumerate: (density, nodes) -> (x [n, R], w [R]) with E[f(x)] = sum_r w_r f(x_r) for f smooth on each panel.
            ``nodes`` per feature and panel, or a tuple of them for 1, 2, ..., n active features: rarely are many
            active, so they need fewer. None when the world cannot be enumerated.
        awake: density -> P(x != 0), scalar. Optional: 1 - silent loses digits in float32 when the density is small.
    """

    n: int
    sample: Callable[[Array, Density, int], Array]
    silent: Callable[[Density], Array] | None = None
    sample_active: Callable[[Array, Density, int], Array] | None = None
    enumerate: Callable[[Density, int | tuple[int, ...]], Grid] | None = None
    awake: Callable[[Density], Array] | None = None


def independent(n: int, low: float = 0.0, high: float = 1.0) -> World:
    """World of independent features: x_i = value with probability p_i, else 0, value ~ U[low, high].

    The paper's toy models use U[0, 1] and its absolute value model U[-1, 1] ("Experiment Setup", "Computation in
    Superposition").

    Args:
        n: number of features.
        low: 0 or -high.
        high: largest value, > 0.

    Raises:
        ValueError: n < 1, high <= 0, or low neither 0 nor -high.
    """
    if n < 1:
        raise ValueError(f"a world needs at least one feature, but n is {n}.")
    if not (0.0 < high < float("inf")):
        raise ValueError(f"high must be positive and finite, but it is {high}.")
    if low not in (0.0, -high):
        raise ValueError(f"low must be 0 or -high, but low is {low} and high is {high}.")
    signed = low < 0

    def sample(key: Key[Array, ""], density: Density, batch: int) -> Float[Array, "n batch"]:
        p = _per_feature(density, n)[:, None]
        bits = jax.random.bits(key, (n, batch))
        u = _uniform(bits, p.dtype)
        value = _value(bits, u * (1 / jnp.where(p > 0, p, 1)), high, signed)
        return jnp.where(u <= p, value, 0)

    def sample_active(key: Key[Array, ""], density: Density, batch: int) -> Float[Array, "n batch"]:
        p = _per_feature(density, n)[:, None]
        key_first, key_entries = jax.random.split(key)
        first, i = _first_active(key_first, p[:, 0], batch), jnp.arange(n)[:, None]
        bits = jax.random.bits(key_entries, (n, batch))
        u = _uniform(bits, p.dtype)
        # The first active feature needs no test of its own, so its draw is free to be the value.
        leads = i == first
        value = _value(bits, u * jnp.where(leads, 1, 1 / jnp.where(p > 0, p, 1)), high, signed)
        return jnp.where(leads | ((i > first) & (u <= p)), value, 0)

    def silent(density: Density) -> Float[Array, ""]:
        return jnp.exp(jnp.sum(jnp.log1p(-_per_feature(density, n))))

    def awake(density: Density) -> Float[Array, ""]:
        return -jnp.expm1(jnp.sum(jnp.log1p(-_per_feature(density, n))))

    def by_pattern(density: Density, nodes: tuple[int, ...]) -> Grid:
        if len(nodes) != n:
            raise ValueError(f"{n} features need nodes for 1 to {n} active ones, but nodes is {nodes}.")
        rules = [panel_nodes(k, high, signed) for k in nodes]
        columns = sum(math.comb(n, k + 1) * len(points) ** (k + 1) for k, (points, _) in enumerate(rules)) + 1
        if columns > MAX_COLUMNS:
            raise ValueError(f"nodes {nodes} make {columns} columns, more than the {MAX_COLUMNS} allowed.")
        p = _per_feature(density, n)
        x, w = [np.zeros((n, 1), p.dtype)], [jnp.prod(1 - p)[None]]
        for k, (points, weights) in enumerate(rules, 1):
            values, shares = _grid(points.astype(p.dtype), k), _grid(weights.astype(p.dtype), k).prod(0)
            for active in itertools.combinations(range(n), k):
                column = np.zeros((n, values.shape[1]), p.dtype)
                column[list(active)] = values
                on = np.isin(np.arange(n), active)
                x.append(column)
                w.append(jnp.prod(jnp.where(on, p, 1 - p)) * shares)
        return np.concatenate(x, 1), jnp.concatenate(w)

    def enumerate_(density: Density, nodes: int | tuple[int, ...]) -> Grid:
        if isinstance(nodes, tuple):
            return by_pattern(density, nodes)
        points, weights = panel_nodes(nodes, high, signed)
        p = _per_feature(density, n)
        levels = len(points) + 1
        if levels**n > MAX_COLUMNS:
            raise ValueError(
                f"{n} features with {levels} levels each are {levels**n} columns, more than the {MAX_COLUMNS} allowed."
            )
        x = _grid(np.concatenate([[0.0], points]).astype(p.dtype), n)
        w = jnp.ones(1, p.dtype)
        for i in range(n):
            marginal = jnp.concatenate([1 - p[i, None], p[i] * jnp.asarray(weights, p.dtype)])
            w = (w[:, None] * marginal).reshape(-1)
        return x, w

    return World(n, sample, silent, sample_active, enumerate_, awake)


def sets(sizes: Sequence[int], how: str, rule: str = "legendre") -> World:
    """World of features in sets that are active, or not, as one; values U[0, 1].

    ``density`` (scalar, or one for each set [sets]) is the probability that a set is on. "correlated": then all of its
    features are, with values of their own. "anticorrelated": then exactly one of them is, each as likely as another
    (TMS, "The Geometry of Superposition": Correlated and Anticorrelated Features).

    Args:
        sizes: features of each set, numbered set by set.
        how: "correlated" or "anticorrelated".
        rule: what the ``nodes`` of ``enumerate`` are. "legendre": Gauss-Legendre nodes per feature. "sobol": points,
            a power of 2, of a Sobol sequence for each way in which features can be active, with its exact weight:
            closer where a ReLU bends the loss in many values at once.

    Raises:
        ValueError: no set, an empty one, or another word.

    Two pairs, the first of them on:

    >>> x, w = sets((2, 2), "correlated").enumerate(0.5, 1)
    >>> x[:, w.argsort()[0]].tolist(), w.tolist()
    ([0.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25])
    """
    sizes = tuple(int(size) for size in sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"a world of sets needs at least one set of at least one feature, but sizes is {sizes}.")
    if how not in ("correlated", "anticorrelated"):
        raise ValueError(f"sets are correlated or anticorrelated, but how is {how!r}.")
    if rule not in ("legendre", "sobol"):
        raise ValueError(f"sets are enumerated by legendre or sobol, but rule is {rule!r}.")
    k, n = len(sizes), sum(sizes)
    owner = np.repeat(np.arange(k), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])

    def fill(key: Key[Array, ""], on: Bool[Array, "sets batch"]) -> Float[Array, "n batch"]:
        """Values of the features of the sets that are on."""
        value_key, member_key = jax.random.split(key)
        chosen = jnp.asarray(on)[owner]
        if how == "anticorrelated":
            u = jax.random.uniform(member_key, on.shape)
            one = jnp.minimum((u * jnp.asarray(sizes)[:, None]).astype(int), jnp.asarray(sizes)[:, None] - 1)
            chosen &= one[owner] == place[:, None]
        return jnp.where(chosen, _uniform(jax.random.bits(value_key, chosen.shape), jnp.result_type(float)), 0)

    def sample(key: Key[Array, ""], density: Density, batch: int) -> Float[Array, "n batch"]:
        gate_key, fill_key = jax.random.split(key)
        p = _per_feature(density, k)[:, None]
        return fill(fill_key, _uniform(jax.random.bits(gate_key, (k, batch)), p.dtype) <= p)

    def sample_active(key: Key[Array, ""], density: Density, batch: int) -> Float[Array, "n batch"]:
        first_key, gate_key, fill_key = jax.random.split(key, 3)
        p = _per_feature(density, k)[:, None]
        first, i = _first_active(first_key, p[:, 0], batch), jnp.arange(k)[:, None]
        on = _uniform(jax.random.bits(gate_key, (k, batch)), p.dtype) <= p
        return fill(fill_key, (i == first) | ((i > first) & on))

    def silent(density: Density) -> Float[Array, ""]:
        return jnp.exp(jnp.sum(jnp.log1p(-_per_feature(density, k))))

    def awake(density: Density) -> Float[Array, ""]:
        return -jnp.expm1(jnp.sum(jnp.log1p(-_per_feature(density, k))))

    def enumerate_(density: Density, nodes: int | tuple[int, ...]) -> Grid:
        if isinstance(nodes, tuple):
            raise ValueError(f"a world of sets takes one number of nodes for each feature, but nodes is {nodes}.")
        if rule == "sobol" and nodes & (nodes - 1):
            raise ValueError(f"a Sobol sequence is even at powers of 2 only, but it has {nodes} points.")
        points, weights = panel_nodes(nodes, 1.0, False) if rule == "legendre" else (np.empty(0), np.empty(0))
        p = _per_feature(density, k)
        ways = [1 if how == "correlated" else size for size in sizes]
        if rule == "sobol":
            columns = 1 + nodes * (math.prod(1 + way for way in ways) - 1)
        else:
            columns = math.prod(1 + way * nodes ** (size // way) for way, size in zip(ways, sizes, strict=True))
        if columns > MAX_COLUMNS:
            raise ValueError(
                f"sets of {sizes} features with {nodes} nodes each are {columns} columns, more than the {MAX_COLUMNS} "
                "allowed."
            )

        def cube(d: int) -> tuple[Float[np.ndarray, "d R"], Float[np.ndarray, " R"]]:
            if d == 0:
                return np.zeros((0, 1)), np.ones(1)
            if rule == "legendre":
                return _grid(points, d), _grid(weights, d).prod(0)
            u = qmc.Sobol(d, scramble=False).random_base2(nodes.bit_length() - 1).T
            return u + 0.5 / nodes, np.full(nodes, 1 / nodes)

        x, w = [], []
        for chosen in itertools.product(*(range(1 + way) for way in ways)):  # 0: the set is off
            on = np.asarray(chosen)[owner]
            active = np.flatnonzero(on if how == "correlated" else on == place + 1)
            values, shares = cube(len(active))
            column = np.zeros((n, values.shape[1]), p.dtype)
            column[active] = values
            share = [p[i] / way if one else 1 - p[i] for i, (one, way) in enumerate(zip(chosen, ways, strict=True))]
            x.append(column)
            w.append(jnp.prod(jnp.stack(share)) * jnp.asarray(shares, p.dtype))
        return np.concatenate(x, 1), jnp.concatenate(w)

    return World(n, sample, silent, sample_active, enumerate_, awake)


def _per_feature(density: Density, n: int) -> Float[Array, " n"]:
    """Density [n] of a scalar or [n] density, in JAX's default float or wider."""
    p = jnp.asarray(density, jnp.result_type(float))
    if p.shape not in ((), (n,)):
        raise ValueError(f"density must be a scalar or have shape ({n},), but its shape is {p.shape}.")
    return jnp.broadcast_to(p, (n,))


def _uniform(bits: UInt32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """Uniform in (0, 1] from the upper 31 bits: never 0, and as fine as floats allow near 0 (jax.random has 2^-23).

    The steps of 2^-31 keep u / p a fine-grained uniform value at small p, and u <= p then means P(active) = p.
    """
    return ((bits >> 1).astype(jnp.int32).astype(dtype) + 0.5) * 2.0**-31


def _value(
    bits: UInt32[Array, "*shape"], magnitude: Float[Array, "*shape"], high: float, signed: bool
) -> Float[Array, "*shape"]:
    """Value of an active feature: magnitude in (0, 1] times high, with the lowest bit as its sign; never 0."""
    value = magnitude * high
    return jnp.where((bits & 1) == 1, -value, value) if signed else value


def _first_active(key: Key[Array, ""], p: Float[Array, " n"], batch: int) -> Int[Array, " batch"]:
    """Index of the first active feature of each column, given that there is one.

    P(first = i) = p_i prod_{j<i} (1 - p_j) / P(x != 0), inverted at frac(k / batch + U) for column k with one U for all
    columns (systematic sampling): every feature leads its expected number of columns within one, yet each column alone
    follows the law exactly.
    """
    asleep = jnp.cumsum(jnp.log1p(-p))  # log P(features 0..i all inactive)
    cdf = -jnp.expm1(asleep)  # P(first <= i), not yet divided by P(x != 0)
    turned = jnp.arange(batch, dtype=p.dtype) + batch * jax.random.uniform(key, dtype=p.dtype)
    v = jnp.where(turned < batch, turned, turned - batch) / batch * cdf[-1]
    v = jnp.minimum(v, jnp.nextafter(cdf[-1], jnp.zeros_like(cdf[-1])))  # rounding must not step past the last feature
    return jnp.sum(cdf[:, None] <= v, axis=0)


def panel_nodes(nodes: int, high: float, signed: bool) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Gauss-Legendre points and weights (summing to 1) on [0, high], or on both halves of [-high, high]."""
    if nodes < 1:
        raise ValueError(f"quadrature needs at least one node per feature, but nodes is {nodes}.")
    t, w = np.polynomial.legendre.leggauss(nodes)
    points, weights = high * (t + 1) / 2, w / 2
    if signed:
        return np.concatenate([-points[::-1], points]), np.concatenate([weights[::-1], weights]) / 2
    return points, weights


def _grid(levels: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, "n R"]:
    """All n-tuples of levels as columns, feature 0 changing slowest."""
    return levels[np.indices((len(levels),) * n).reshape(n, -1)]
