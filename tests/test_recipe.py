"""The recipe against updates written out by hand in float64, with the conventions of torch.optim."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from superpose.train.recipe import OPTIMIZERS, SCHEDULES, Group, Recipe

STEPS = 12
RNG = np.random.default_rng(0)
START = RNG.normal(size=5)
GRADS = RNG.normal(size=(STEPS, 5)) * np.logspace(-2, 1, STEPS)[:, None]


def run(transform, grads, params):
    """Params after each gradient [T, ...]; a pytree of float32."""
    params, grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, grads))

    def step(carry, g):
        updates, state = transform.update(g, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    return jax.lax.scan(step, (params, transform.init(params)), grads)[1]


def updated(transform, grads, params):
    return jax.device_get(jax.jit(lambda: run(transform, grads, params))())


def adamw(grads, p, lr, decay=0.0, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.AdamW: p *= 1 - lr * decay before the step; eps outside the square root."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        p = p * (1 - lr * decay)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield p


def sgd(grads, p, lr, decay=0.0, momentum=0.0, nesterov=False):
    """torch.optim.SGD, but with decoupled decay."""
    buffer = 0.0
    for g in grads:
        buffer = momentum * buffer + g
        p = p - lr * ((g + momentum * buffer) if nesterov else buffer) - lr * decay * p
        yield p


BY_HAND = {
    "adam": (dict(lr=0.03, eps=0.05), lambda: adamw(GRADS, START, 0.03, eps=0.05)),
    "adam: betas": (dict(lr=0.1, b1=0.5, b2=0.7), lambda: adamw(GRADS, START, 0.1, b1=0.5, b2=0.7)),
    "adamw": (dict(lr=0.03, weight_decay=0.4, eps=0.05), lambda: adamw(GRADS, START, 0.03, 0.4, eps=0.05)),
    "sgd": (dict(lr=0.1), lambda: sgd(GRADS, START, 0.1)),
    "sgd: decay": (dict(lr=0.1, weight_decay=0.4), lambda: sgd(GRADS, START, 0.1, 0.4)),
    "sgd: momentum": (dict(lr=0.1, momentum=0.8), lambda: sgd(GRADS, START, 0.1, momentum=0.8)),
    "sgd: nesterov": (
        dict(lr=0.1, momentum=0.8, nesterov=True),
        lambda: sgd(GRADS, START, 0.1, momentum=0.8, nesterov=True),
    ),
}


@pytest.mark.parametrize("row", BY_HAND)
def test_optimizer_by_hand(row):
    settings, expected = BY_HAND[row]
    recipe = Recipe(steps=STEPS, optimizer=row.split(":")[0], **settings)
    np.testing.assert_allclose(updated(recipe.transform(), GRADS, START), np.stack(list(expected())), rtol=2e-5)


def test_every_row_is_covered():
    assert {row.split(":")[0] for row in BY_HAND} == set(OPTIMIZERS)
    assert {row[0] for row in FRACTIONS} == set(SCHEDULES)


# ---- schedules: the fraction of the peak rate at each of ten steps

COSINE = [0.1 + 0.9 * (1 + np.cos(np.pi * k / 5)) / 2 for k in range(5)]
FRACTIONS = [
    ("constant", {}, [1.0] * 10),
    ("constant", dict(warmup=4), [0.25, 0.4375, 0.625, 0.8125, *[1.0] * 6]),
    ("linear", {}, [1 - k / 10 for k in range(10)]),
    ("linear", dict(warmup=2), [0.5, 0.75, *[1 - k / 8 for k in range(8)]]),
    ("linear", dict(decay_from=0.8, final=0.2), [*[1.0] * 8, 1.0, 0.6]),
    ("linear", dict(warmup=2, decay_from=0.5), [0.5, 0.75, 1, 1, 1, *[1 - k / 5 for k in range(5)]]),
    ("linear", dict(warmup=5, decay_from=0.2), [*[0.2 + 0.16 * k for k in range(5)], *[1 - k / 5 for k in range(5)]]),
    ("cosine", {}, [(1 + np.cos(np.pi * k / 10)) / 2 for k in range(10)]),
    ("cosine", dict(warmup=1, decay_from=0.5, final=0.1), [1.0] * 5 + COSINE),
]


@pytest.mark.parametrize(("schedule", "settings", "expected"), FRACTIONS)
def test_schedule_by_hand(schedule, settings, expected):
    recipe = Recipe(steps=10, optimizer="sgd", lr=0.5, schedule=schedule, **settings)
    np.testing.assert_allclose(jax.jit(jax.vmap(recipe.multiplier()))(np.arange(10)), expected, atol=1e-6)
    moves = -np.diff(updated(recipe.transform(), np.ones((10, 1)), np.zeros(1))[:, 0], prepend=0.0)
    np.testing.assert_allclose(moves, 0.5 * np.array(expected), atol=1e-6)  # as applied


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup", "decay_from"), [(1, 0, 0.8), (2, 0, 0.8), (2, 1, 0.99), (100, 99, 0.999)])
def test_a_short_run_has_a_schedule(schedule, steps, warmup, decay_from):
    """The decay begins at the last step at the latest: a config cut to two steps still runs."""
    decay_from = 0.0 if schedule == "constant" else decay_from
    recipe = Recipe(steps=steps, schedule=schedule, warmup=warmup, decay_from=decay_from)
    assert float(recipe.multiplier()(steps - 1)) == 1.0


# ---- clipping


def test_clip_is_of_the_global_norm_and_before_the_optimiser():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    grads = {"a": np.array([[3.0], [0.3], [30.0]]), "b": np.array([[4.0], [0.4], [40.0]])}
    recipe = Recipe(steps=3, optimizer="sgd", lr=1.0, momentum=0.5, clip_norm=1.0)
    seen = updated(recipe.transform(), grads, params)
    clipped = {"a": [0.6, 0.3, 0.6], "b": [0.8, 0.4, 0.8]}  # norms 5 -> 1, 0.5 stays, 50 -> 1
    for k, g in clipped.items():
        expected = list(sgd(np.array(g), 0.0, 1.0, momentum=0.5))
        np.testing.assert_allclose(seen[k][:, 0], expected, rtol=1e-6)
    free = updated(Recipe(steps=3, optimizer="sgd", lr=1.0, momentum=0.5).transform(), grads, params)
    assert not np.allclose(free["a"], seen["a"])


# ---- groups

TREE = {"encoder": {"W": START, "b": START * 2}, "decoder": {"W": START * 3}}
TREE_GRADS = jax.tree.map(lambda x: GRADS * (1 + np.abs(x).max()), TREE)


def test_groups():
    """Frozen, own rate and own decay; the first match wins; the rest follows the recipe."""
    groups = (
        Group("encoder/b", lr_scale=0.0),
        Group("^encoder/", lr_scale=0.5, weight_decay=0.7),
        Group("W", weight_decay=0.0),  # matches encoder/W as well, but too late
    )
    recipe = Recipe(steps=STEPS, optimizer="adamw", lr=0.03, weight_decay=0.2, groups=groups)
    tree, grads = {**TREE, "rest": START}, {**TREE_GRADS, "rest": GRADS}
    seen = updated(recipe.transform(), grads, tree)
    want = {
        "encoder": {"W": list(adamw(grads["encoder"]["W"], START, 0.015, 0.7))},
        "decoder": {"W": list(adamw(grads["decoder"]["W"], START * 3, 0.03, 0.0))},
        "rest": list(adamw(GRADS, START, 0.03, 0.2)),
    }
    assert (seen["encoder"].pop("b") == (START * 2).astype(np.float32)).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.array(b), rtol=2e-5, atol=1e-6), seen, want)
    jitted = jax.jit(lambda h: recipe.transform(h).init(TREE))({"weight_decay": 0.1})
    assert jax.tree.structure(jitted) == jax.tree.structure(recipe.transform().init(TREE))


def test_a_member_s_decay_stands_for_the_recipe_s_and_not_for_a_group_s():
    recipe = Recipe(steps=STEPS, optimizer="sgd", lr=0.1, groups=(Group("a", weight_decay=0.5), Group("b")))
    seen = updated(recipe.transform({"weight_decay": 0.3}), dict.fromkeys("abc", GRADS), dict.fromkeys("abc", START))
    for name, decay in {"a": 0.5, "b": 0.3, "c": 0.3}.items():
        np.testing.assert_allclose(seen[name], np.stack(list(sgd(GRADS, START, 0.1, decay))), rtol=2e-5)


def test_clip_is_common_to_all_groups():
    recipe = Recipe(steps=1, optimizer="sgd", lr=1.0, clip_norm=1.0, groups=(Group("a", lr_scale=0.5),))
    seen = updated(recipe.transform(), {"a": np.array([3.0]), "b": np.array([4.0])}, {"a": 0.0, "b": 0.0})
    np.testing.assert_allclose([seen["a"][0], seen["b"][0]], [-0.3, -0.8], rtol=1e-6)


def test_what_is_frozen_does_not_count_in_the_clip():
    recipe = Recipe(steps=1, optimizer="sgd", lr=1.0, clip_norm=1.0, groups=(Group("a", lr_scale=0.0),))
    seen = updated(recipe.transform(), {"a": np.array([30.0]), "b": np.array([4.0])}, {"a": 0.0, "b": 0.0})
    np.testing.assert_allclose([seen["a"][0], seen["b"][0]], [0.0, -1.0], rtol=1e-6)


def test_a_group_that_matches_nothing_is_refused():
    recipe = Recipe(steps=1, groups=(Group("b_dec"),))
    with pytest.raises(ValueError, match="group 'b_dec' matches none of the parameters decoder/W, encoder/W"):
        recipe.transform().init(TREE)


# ---- a population's own values


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_members_with_own_rate_and_decay_equal_separate_runs(optimizer):
    hyper = {"lr": np.float32([0.1, 0.01, 0.003])}
    if optimizer != "adam":
        hyper["weight_decay"] = np.float32([0.0, 0.3, 0.1])
    common = dict(steps=STEPS, optimizer=optimizer, schedule="cosine", warmup=3, clip_norm=2.0)

    together = jax.jit(jax.vmap(lambda h: run(Recipe(**common).transform(h), GRADS, START)))(hyper)
    for i, seen in enumerate(together):
        own = Recipe(**common, **{k: float(v[i]) for k, v in hyper.items()})
        np.testing.assert_allclose(seen, updated(own.transform(), GRADS, START), rtol=1e-6)
    assert len(np.unique(np.asarray(together)[:, -1, 0])) == 3


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(optimizer="adamax"), "unknown optimizer 'adamax': choose one of adam, adamw, sgd"),
        (dict(schedule="step"), "unknown schedule 'step': choose one of constant, linear, cosine"),
        (dict(steps=0), "0 <= warmup < steps, got warmup=0, steps=0"),
        (dict(warmup=-1), "0 <= warmup < steps, got warmup=-1, steps=10"),
        (dict(warmup=10), "0 <= warmup < steps, got warmup=10, steps=10"),
        (dict(decay_from=1.0), r"decay_from is a fraction of the run in \[0, 1\), got 1.0"),
        (dict(decay_from=-0.1), r"decay_from is a fraction of the run in \[0, 1\), got -0.1"),
        (dict(weight_decay=0.1), r"adam takes no weight decay \(got 0.1\): use optimizer='adamw'"),
        (dict(clip_norm=-1.0), "clip_norm must be positive and finite, or None, got -1.0"),
        (dict(b2=1.5), r"b2 must lie in \[0, 1\), got 1.5"),
        (dict(momentum=0.9), "adam takes no momentum and no nesterov"),
        (dict(final=-3.0, schedule="linear"), r"final is a fraction of the peak rate in \[0, 1\], got -3.0"),
        (dict(decay_from=0.5), "a constant schedule has no decay_from and no final"),
        (dict(groups=(Group("W", weight_decay=0.2),)), r"adam takes no weight decay \(got 0.2\)"),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**{"steps": 10, **settings})


def test_adam_refuses_a_member_s_decay():
    with pytest.raises(ValueError, match="adam takes no weight decay: use optimizer='adamw', or drop weight_decay"):
        Recipe(steps=10).transform({"weight_decay": 0.1})
