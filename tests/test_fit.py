"""The training loop with toy objectives: what each part of it promises, against loops written out in NumPy."""

import inspect
import io
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from train_script import KEY, Batches, compile_cache, differing, leaves

from superpose.toy.models import population
from superpose.train.fit import TAKEN, Members, Objective, Population, Sampler, _settled, evaluate, fit
from superpose.train.progress import bar
from superpose.train.recipe import Recipe
from superpose.worlds import prng


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Equal programs are compiled once."""
    with compile_cache(tmp_path_factory.mktemp("compiled")):
        yield


def quadratic(**hooks):
    """0.5 |w - batch|^2 from w = hyper["w"]: the gradient is w - batch."""
    return Objective(
        lambda key, hyper: (hyper["w"], ()),
        lambda w, state, batch, key, step, hyper: (0.5 * jnp.sum((w - batch) ** 2), (state, {})),
        **hooks,
    )


def sgd(steps, lr=0.1, momentum=0.0):
    return Recipe(steps=steps, optimizer="sgd", lr=lr, momentum=momentum)


def seeds(n):
    return {"seed": np.arange(n)}


# ---- bits: 200 features in 20 dimensions, where plain vmap depends on the population's size


def wide(members, block=8):
    def init(key, hyper):
        return {"W": jax.random.uniform(key, (200, 20), minval=-0.2, maxval=0.2), "b": jnp.zeros(200)}, ()

    def loss(params, state, x, key, step, hyper):
        out = jax.nn.relu(params["W"] @ (params["W"].T @ x) + params["b"][:, None])
        value = jnp.mean(jnp.sum((x - out) ** 2, 0))
        return value, (state, {"norm": jnp.linalg.norm(params["W"])})

    def record(params):  # products of one vector: their bits depend on how many are computed at once
        W = params["W"]
        return {"W": W, "v": W.T @ W[:, 0], "dot": jnp.dot(W[:, 0], W[:, 1])}

    def sample(key, hyper):
        return jax.random.uniform(key, (200, 32)) * hyper["scale"]

    hyper = {
        "seed": np.asarray(members),
        "scale": (1 + np.asarray(members) / 10).astype(np.float32),
        "lr": (0.001 * (1 + np.asarray(members) % 3)).astype(np.float32),
    }
    return Population(Objective(init, loss, record=record), Recipe(steps=6), hyper, Sampler(sample), block)


def wide_leaves(members, take=slice(None), **settings):
    """Everything that a member ends with (history by entry apart), the members of ``take`` alone."""
    settings = {"log_every": 3, "record_at": (0, 2, 6), **settings}
    result = fit(wide(members), steps=6, key=KEY, mesh=None, **settings)
    kept = leaves(result, ("params", "opt_state", "state", "frozen_at"))
    late = leaves(result, ("records", "history"))
    return {k: v[take] for k, v in kept.items()} | {k: v[:, take] for k, v in late.items()}


SIZES = [1, 23]  # one block with padding, three


@pytest.fixture(scope="module")
def forty():
    return wide_leaves(range(40))


def first(arrays, n):
    late = lambda k: "records" in k or "history" in k  # noqa: E731
    return {k: v[:, :n] if late(k) else v[:n] for k, v in arrays.items()}


def check_size(forty, n):
    assert not differing(wide_leaves(range(n)), first(forty, n))


@pytest.mark.parametrize("n", SIZES)
def test_bits_do_not_depend_on_the_population_size(forty, n):
    check_size(forty, n)


@pytest.mark.ci
@pytest.mark.parametrize("n", sorted(set(range(1, 40)) - set(SIZES)))
def test_bits_do_not_depend_on_any_population_size(forty, n):
    check_size(forty, n)


def test_bits_depend_on_seeds_and_not_on_positions(forty):
    """The population backwards, two members given twice, all in one chunk of steps."""
    found = wide_leaves([*range(39, -1, -1), 3, 3], slice(39, None, -1), record_at=(0, 2, 6))
    assert not differing(found, forty)
    weights = forty["['']['params']['W']"]
    assert len(np.unique(weights.reshape(40, -1), axis=0)) == 40


@pytest.mark.parametrize("members", [3, 24])
def test_bits_do_not_depend_on_the_chunking_of_members(forty, members):
    """3 does not divide the block, 24 leaves an uneven rest."""
    assert not differing(wide_leaves(range(40), max_members=members), forty)


def test_a_population_that_memory_does_not_hold_is_sliced(forty, monkeypatch):
    """Half of what is free goes to the members: with room for 2 MB there are several slices, and the same bits."""
    from superpose.train import fit as module

    seen, slices = [], module._slices
    monkeypatch.setattr(module, "available_bytes", lambda devices: 2_000_000)
    monkeypatch.setattr(module, "_slices", lambda *args: seen.append(slices(*args)) or seen[-1])
    assert not differing(wide_leaves(range(40)), forty)
    assert 1 < len(seen[0]) < 6


def test_what_is_free_is_less_than_the_machine_has():
    from superpose.train.fit import available_bytes

    assert 10**6 < available_bytes(1) < psutil.virtual_memory().total


def test_the_bar_shows_loss_speed_and_time_left():
    from rich.console import Console

    shown = io.StringIO()
    progress, task = bar("five features", 200, quiet=False)
    progress.live.console = Console(file=shown, force_terminal=True, width=120)
    with progress:
        progress.update(task, completed=50, loss="0.0123")
        time.sleep(0.01)
        progress.update(task, completed=100, loss="0.0101")
        progress.refresh()
    text = shown.getvalue()
    assert re.search(r"five features.* 100/200 steps  loss 0\.0101 .*[\d,]+ steps/s.*0:00:0\d", text)
    assert bar("not on a terminal", 10)[0].disable


def top_k_sae(members, block, d_sae):
    """A sparse autoencoder by hand, clipped: one that XLA fuses otherwise when it sees a single block."""

    def init(key, hyper):
        W = jax.random.normal(key, (32, d_sae)) / 8
        return {"W_enc": W, "W_dec": W.T, "b": jnp.zeros(d_sae)}, {"fired": jnp.zeros(d_sae)}

    def loss(params, state, x, key, step, hyper):
        value, index = jax.lax.top_k(x @ params["W_enc"] + params["b"], 8)
        acts = jnp.zeros((16, d_sae)).at[jnp.arange(16)[:, None], index].set(jax.nn.relu(value))
        error = jnp.mean(jnp.sum((x - acts @ params["W_dec"]) ** 2, 1))
        return error, ({"fired": state["fired"] + (acts > 0).sum(0)}, {"l0": (acts > 0).sum(1).mean()})

    source = Sampler(lambda key, hyper: jax.random.normal(key, (16, 32)))
    recipe = Recipe(steps=12, clip_norm=1.0)
    return Population(Objective(init, loss, record=lambda p: p["b"]), recipe, seeds(members), source, block)


@pytest.mark.parametrize(
    ("block", "d_sae"),
    [(1, 256), pytest.param(4, 256, marks=pytest.mark.ci), pytest.param(1, 24000, marks=pytest.mark.ci)],  # > LARGE
)
def test_a_single_block_has_the_bits_of_many(block, d_sae):
    def run(members, **settings):
        result = fit(
            top_k_sae(members, block, d_sae), steps=12, key=KEY, mesh=None, log_every=6, record_at=(0, 12), **settings
        )
        return leaves(result, ("params", "opt_state", "state", "records", "history"))

    many = run(3 * block)
    assert not differing(run(3 * block, max_members=block), many)
    for members in {1, block, 2 * block}:
        assert not differing(run(members), first(many, members))


def test_block_follows_the_size_of_the_model():
    assert [_settled(top_k_sae(2, None, d), KEY).block for d in (8, 1100)] == [16, 1]
    assert _settled(top_k_sae(2, 3, 1100), KEY).block == 3


def test_bits_do_not_depend_on_the_chunking_of_steps(forty):
    found = wide_leaves(range(40), log_every=4)
    history = [k for k in found if "history" in k]
    assert not differing(
        {k: v for k, v in found.items() if k not in history}, {k: v for k, v in forty.items() if k not in history}
    )
    for k in history:  # chunks of 4 and 2 steps against two of 3: the same sum over the run
        np.testing.assert_allclose(4 * found[k][0] + 2 * found[k][1], 3 * forty[k].sum(0), rtol=1e-5)


def test_a_member_s_own_rate_and_decay_equal_a_run_of_its_own():
    recipe = dict(steps=20, optimizer="adamw", schedule="cosine", warmup=4)
    hyper = {"w": np.ones((3, 3), np.float32), "seed": np.arange(3)}
    rates = {"lr": np.float32([0.1, 0.01, 0.03]), "weight_decay": np.float32([0.0, 0.5, 0.1])}
    together = fit(
        Population(quadratic(), Recipe(**recipe), {**hyper, **rates}), source=Batches(), steps=20, key=KEY
    ).params
    for i in range(2):
        own = Recipe(**recipe, **{k: float(v[i]) for k, v in rates.items()})
        alone = fit(Population(quadratic(), own, hyper), source=Batches(), steps=20, key=KEY).params
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-6)
        assert not np.allclose(together[2], alone[2], rtol=1e-3)


# ---- sources


def remembering(size):
    """Its state keeps the sum and the last of the batches."""

    def loss(params, state, batch, key, step, hyper):
        value = jnp.sum(params**2) + jnp.sum(batch) ** 2
        return value, ({"sum": state["sum"] + batch, "last": batch}, {})

    zero = {"sum": jnp.zeros(4), "last": jnp.zeros(4)}
    return Objective(lambda key, hyper: (jax.random.uniform(key, (size,)), zero), loss)


def test_populations_share_one_stream_of_batches():
    """Different objectives and sizes; without one of the populations, and in chunks of members: the same batches."""
    shared = Sampler(lambda key: jax.random.uniform(key, (4,)), shared=True)
    pops = {
        "small": Population(remembering(2), sgd(7), seeds(3), block=2),
        "large": Population(remembering(5), Recipe(steps=7), seeds(4), block=4),
        "own": Population(remembering(2), sgd(7), seeds(2), Sampler(lambda key, hyper: jax.random.uniform(key, (4,)))),
    }
    run = lambda p, **k: fit(p, source=shared, steps=7, key=KEY, log_every=3, **k)  # noqa: E731
    results = run(pops)
    seen = results["small"].state
    assert (seen["sum"] == seen["sum"][0]).all()
    assert (seen["last"] == seen["last"][0]).all()
    assert not np.allclose(seen["sum"], 7 * seen["last"])  # a new batch at every step
    assert (results["large"].state["sum"] == seen["sum"][0]).all()
    own = results["own"].state["sum"]
    assert not np.isclose(own[0], own[1]).any()
    assert not np.isclose(own, seen["sum"][0]).any()
    del pops["own"], results["own"]
    assert not differing(leaves(run(pops, max_members=2)), leaves(results))


def test_a_step_sees_its_key_step_and_hyper():
    """The key by seed and step, the same in populations of their own; metrics are means over a chunk."""

    def loss(params, draw, batch, key, step, hyper):
        draw = jax.random.uniform(key)
        return jnp.sum(params**2), (draw, {"at": step, "tag": hyper["tag"], "draw": draw})

    objective = Objective(lambda key, hyper: (jax.random.uniform(key, (2,)), jnp.zeros(())), loss)
    pop = Population(objective, sgd(7), {"seed": np.array([4, 4, 9]), "tag": np.float32([0.5, 1.5, 2.5])})
    result = fit(pop, source=Batches((4,)), steps=7, key=KEY, log_every=3)
    assert result.history_steps.tolist() == [3, 6, 7]
    np.testing.assert_array_equal(result.history["at"], np.repeat([[1.0], [4.0], [6.0]], 3, 1))
    np.testing.assert_array_equal(result.history["tag"], [[0.5, 1.5, 2.5]] * 3)
    draws = result.history["draw"]
    assert (draws[:, 0] == draws[:, 1]).all()
    assert len(np.unique(draws[:, [0, 2]])) == 6
    np.testing.assert_array_equal(draws[2], result.state)  # the last chunk is the last step
    other = fit(pop, source=Batches((4,)), steps=7, key=prng.key(6), log_every=3)
    assert not np.isclose(other.history["draw"], draws).any()
    assert not np.isclose(other.params, result.params).any()


def test_the_end_of_a_stream_is_one_sentence():
    pop = Population(quadratic(), sgd(20), {**seeds(2), "w": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match="the stream ended at step 13 of 20: give more data or fewer steps"):
        fit(pop, source=Batches(length=13), steps=20, key=KEY, log_every=5)
    short = Population(pop.objective, sgd(13), pop.hyper)
    assert fit(short, source=Batches(length=13), steps=13, key=KEY, log_every=5).history_steps[-1] == 13


def test_batches_go_to_the_device_in_parts(monkeypatch):
    """A chunk whose batches are too large is fed in parts: the same bits, and a history of the same entries."""
    pop = Population(quadratic(), sgd(20), {**seeds(2), "w": np.zeros((2, 3), np.float32)})
    run = lambda: fit(pop, source=Batches(), steps=20, key=KEY, log_every=9)  # noqa: E731
    whole = run()
    monkeypatch.setattr("superpose.train.fit.FEED", 4 * 12)  # of 12 bytes each
    parts = run()
    assert (whole.params == parts.params).all()
    assert parts.history_steps.tolist() == [9, 18, 20]
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-6)


class Live(Batches):
    """Hands out its own state, not a copy."""

    def __init__(self, **settings):
        self.place = {"at": 0}
        super().__init__(**settings)

    at = property(lambda self: self.place["at"], lambda self, value: self.place.update(at=value))

    def get_state(self):
        return self.place


def test_a_look_at_the_stream_changes_nothing():
    pop = Population(quadratic(), sgd(5), {**seeds(2), "w": np.zeros((2, 3), np.float32)})
    live, copied = Live(), Batches()
    assert (fit(pop, source=live, steps=5, key=KEY).params == fit(pop, source=copied, steps=5, key=KEY).params).all()
    assert live.at == copied.at == 5


def test_a_stream_s_position_must_be_json():
    stream = Batches()
    stream.get_state = lambda: b"here"
    pop = Population(quadratic(), sgd(5), {**seeds(2), "w": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match="the stream's get_state must return what JSON can hold"):
        fit(pop, source=stream, steps=5, key=KEY)


def test_bad_values_in_a_stream_are_counted_and_named():
    class Bad(Batches):
        def batch(self, t):
            values = super().batch(t)
            values[:2] = [np.nan, np.inf] if t == 7 else values[:2]
            return values

    pop = Population(quadratic(), sgd(20), {**seeds(2), "w": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match="the stream's batch for step 7 has 2 of 3 values that are not finite: mend"):
        fit(pop, source=Bad(), steps=20, key=KEY, log_every=5)


# ---- hooks


def test_hooks_run_where_they_belong():
    """gradient -> grads hook -> momentum -> project -> record, against the same loop in NumPy."""
    STEPS, lr = 9, 0.1
    objective = quadratic(
        grads=lambda w, g: 2 * g + w,
        project=lambda w, hyper, step: w / jnp.linalg.norm(w) * (hyper["radius"] + 0.01 * step),
        record=lambda w: {"w": w, "norm": jnp.linalg.norm(w)},
    )
    start = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    radius = np.float32([1.0, 2.0, 3.0])
    stream = Batches()
    pop = Population(objective, sgd(STEPS, lr, momentum=0.8), {**seeds(3), "w": start, "radius": radius}, block=2)
    result = fit(pop, source=stream, steps=STEPS, key=KEY, log_every=4, record_at=np.arange(STEPS + 1))

    w, trace, losses = start.astype(np.float64), 0.0, []
    for t in range(STEPS):
        np.testing.assert_allclose(result.records["w"][t], w, rtol=1e-5, atol=1e-6)
        batch = stream.batch(t)
        losses.append(0.5 * ((w - batch) ** 2).sum(1))
        trace = 0.8 * trace + 2 * (w - batch) + w
        w = w - lr * trace
        w *= (radius[:, None] + 0.01 * t) / np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(result.params, w, rtol=1e-5)
    np.testing.assert_array_equal(result.records["w"][STEPS], result.params)
    allowed = radius + 0.01 * np.arange(STEPS)[:, None]
    np.testing.assert_allclose(result.records["norm"][1:], allowed, rtol=1e-6)
    means = [np.mean(losses[a:b], 0) for a, b in ((0, 4), (4, 8), (8, 9))]
    np.testing.assert_allclose(result.history["loss"], means, rtol=1e-5)

    stopped = fit(Population(objective, pop.recipe, pop.hyper, block=2), source=Batches(), steps=5, key=KEY)
    np.testing.assert_array_equal(stopped.params, result.records["w"][5])


@pytest.mark.parametrize("max_members", [None, 2])
def test_between_sees_and_edits_the_whole_population(max_members):
    N, STEPS, at, calls = 5, 12, (0, np.int64(5), 8, 12), []

    def between(members, hyper, source, key, step):
        assert hyper["seed"].tolist() == list(range(N))
        assert step == at[len(calls)]
        assert isinstance(members, Members)
        assert {x.shape[0] for x in jax.tree.leaves(members)} == {N}
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(members))
        w, trace = members.params, members.opt_state
        calls.append((w.copy(), jax.tree.leaves(trace)[0].copy(), source, jax.random.key_data(key).tolist()))
        w[1] += 10 * len(calls)
        jax.tree.leaves(trace)[0][2] = 0.0
        return members._replace(params=w, opt_state=trace)

    objective = quadratic(between=between, record=lambda w: w)
    start = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)
    stream = Batches()
    pop = Population(objective, sgd(STEPS, 0.1, momentum=0.8), {**seeds(N), "w": start}, block=2)
    result = fit(
        pop,
        source=stream,
        steps=STEPS,
        key=KEY,
        log_every=3,
        record_at=(5, 12),
        between_at=at,
        max_members=max_members,
    )

    w, trace, seen = start.astype(np.float64), np.zeros((N, 3)), [(start, np.zeros((N, 3)))]
    w[1] += 10
    for t in range(STEPS):
        trace = 0.8 * trace + w - stream.batch(t)
        w = w - 0.1 * trace
        if t + 1 in at:
            seen.append((w.copy(), trace.copy()))
            w[1] += 10 * len(seen)
            trace[2] = 0.0
    assert len(calls) == 4
    for (saw, saw_trace, source, _), (want, want_trace) in zip(calls, seen, strict=True):
        np.testing.assert_allclose(saw, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(saw_trace, want_trace, rtol=1e-4, atol=1e-5)
        assert source is stream
    assert len({str(key) for *_, key in calls}) == 4
    np.testing.assert_allclose(result.params, w, rtol=1e-5)  # the edit after the last step too
    np.testing.assert_array_equal(result.records[0], calls[1][0])  # a record is of the step, before the edit
    assert result.history_steps.tolist() == [3, 5, 6, 8, 9, 12]


# ---- members that diverge

MODES = ("sound", "nan loss", "inf gradient", "1e4 x", "500 x", "zeros first", "below zero first", "nan metric")


def troubled(modes, **settings):
    """Adam on a target, and what MODES says at step 25."""

    def init(key, hyper):
        return {"w": jax.random.normal(key, (3,)), "z": jnp.zeros(())}, jnp.int32(0)

    def loss(params, state, batch, key, step, hyper):
        mode = lambda name: hyper["mode"] == MODES.index(name)  # noqa: E731
        now = step == 25
        value = 1.0 + jnp.sum((params["w"] - batch) ** 2)
        value *= jnp.where(now & mode("1e4 x"), 1e4, jnp.where(now & mode("500 x"), 500.0, 1.0))
        value = jnp.where(now & mode("nan loss"), jnp.nan, value)
        value = jnp.where((step < 20) & mode("zeros first"), 0.0, value)
        value = jnp.where((step < 20) & mode("below zero first"), -value, value)
        value += jnp.sqrt(jnp.where(now & mode("inf gradient"), params["z"], 1.0)) - 1.0
        return value, (state + 1, {"odd": jnp.where(mode("nan metric"), jnp.nan, value)})

    index = np.array([MODES.index(m) for m in modes])
    hyper = {"seed": index, "mode": index, "lr": (0.01 * (1 + index)).astype(np.float32)}
    pop = Population(Objective(init, loss, record=lambda p: p), Recipe(steps=40), hyper, block=4)
    return fit(pop, source=Batches(), steps=40, key=KEY, log_every=10, record_at=(25, 40), mesh=None, **settings)


def test_diverged_members_are_frozen_and_the_others_go_on(capsys, tmp_path):
    result = troubled(MODES, workdir=tmp_path)
    bad = ("nan loss", "inf gradient", "1e4 x")
    assert {m: s for m, s in zip(MODES, result.frozen_at.tolist(), strict=True) if s >= 0} == dict.fromkeys(bad, 25)
    for i, mode in enumerate(MODES):
        at_25, at_40 = (np.array([result.records[k][t, i] for k in ("w",)]) for t in (0, 1))
        assert (at_25 == at_40).all() == (mode in bad), mode
        assert np.isfinite(at_40).all()
        np.testing.assert_array_equal(at_40[0], result.params["w"][i])
        assert result.state[i] == (25 if mode in bad else 40)
        assert result.opt_state[0][0].count[i] == (25 if mode in bad else 40)

    said = capsys.readouterr().err
    for i, mode in enumerate(MODES):
        line = (
            f"member {i} of 'members' (seed={i}, mode={i}, lr={0.01 * (1 + i):.6g}) diverged at step 25 and is frozen"
        )
        assert (line in said) == (mode in bad)
    assert "3 of 8 members of 'members' diverged and were frozen" in said

    healthy = [m for m in MODES if m not in bad]
    alone = leaves(troubled(healthy), ("params", "opt_state", "state", "frozen_at"))
    index = np.array([MODES.index(m) for m in healthy])
    both = {k: v[index] for k, v in leaves(result, ("params", "opt_state", "state", "frozen_at")).items()}
    assert not differing(alone, both)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()  # strict JSON

    troubled(MODES, workdir=tmp_path)  # a finished run still says so
    assert "3 of 8 members of 'members' diverged and were frozen" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [3.0, 30.0])
def test_a_loss_that_explodes_at_once_is_found(rate):
    """At density 1/20 one batch in three is all zeros; the first value is not taken from a single batch."""
    hyper = {
        "seed": np.arange(4),
        "density": np.float32([1.0, 0.05, 1.0, 0.05]),
        "lr": np.float32([rate] * 2 + [1e-2] * 2),
    }
    pop = population(20, 5, hyper, Recipe(steps=30), expectation="monte_carlo", size=1, block=4)
    result = fit(pop, steps=30, key=KEY, mesh=None)
    assert (result.frozen_at[:2] >= 0).all()
    assert (result.frozen_at[2:] < 0).all()


def test_what_a_hook_between_chunks_breaks_is_frozen_as_it_was():
    """After the last step too."""

    def between(members, hyper, source, key, step):
        members.params[1] = np.nan
        return members

    pop = Population(quadratic(between=between), sgd(4), {**seeds(3), "w": np.ones((3, 3), np.float32)}, block=2)
    result = fit(pop, source=Batches(), steps=4, key=KEY, between_at=[4])
    assert result.frozen_at.tolist() == [-1, 4, -1]
    assert np.isfinite(result.params).all()


@pytest.mark.parametrize("where", ["project", "grads"])
def test_a_hook_that_makes_nan_freezes_its_member_and_not_the_parameters(where):
    """At the very last step too."""
    bad = {
        "project": {"project": lambda w, hyper, step: jnp.where(hyper["bad"] & (step == 4), jnp.nan, w)},
        "grads": {"grads": lambda w, g: jnp.where(jnp.abs(w) > 2, jnp.nan, g)},
    }[where]
    start = np.array([[1, 1, 1], [5, 1, 1]], np.float32)
    pop = Population(quadratic(**bad), sgd(5), {**seeds(2), "w": start, "bad": np.array([False, True])})
    result = fit(pop, source=Batches(), steps=5, key=KEY)
    assert result.frozen_at.tolist() == [-1, 4 if where == "project" else 0]
    assert np.isfinite(result.params).all()
    sound = fit(Population(quadratic(), sgd(4), pop.hyper), source=Batches(), steps=4, key=KEY).params
    np.testing.assert_array_equal(result.params[1], sound[1] if where == "project" else start[1])


# ---- evaluation


@pytest.mark.parametrize("shared", [False, True])
def test_evaluate_is_the_mean_of_the_loss(shared):
    def loss(params, state, batch, key, step, hyper):
        value = jnp.sum((params - batch) ** 2) * hyper["gain"] + jax.random.uniform(key) + state
        return value, (state, {"twice": 2 * value})

    sample = (
        (lambda key: jax.random.normal(key, (3,))) if shared else (lambda k, h: h["gain"] * jax.random.normal(k, (3,)))
    )
    source, gain = Sampler(sample, shared), np.float32([1, 2, 3, 4, 5])
    pop = Population(Objective(lambda k, h: None, loss), sgd(1), {**seeds(5), "gain": gain}, block=2)
    params = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    state = np.arange(5, dtype=np.float32)
    found = evaluate(pop, params, state, key=KEY, source=source, batches=3)
    want = np.zeros(5)
    for b in range(3):
        batch_key, loss_key = jax.random.split(jax.random.fold_in(KEY, b))
        draw = np.asarray(jax.random.normal(batch_key, (3,)))
        for i in range(5):  # the same draws for all members
            batch = draw if shared else gain[i] * draw
            want[i] += ((params[i] - batch) ** 2).sum() * gain[i] + float(jax.random.uniform(loss_key)) + state[i]
    np.testing.assert_allclose(found["loss"], want / 3, rtol=1e-6)
    np.testing.assert_allclose(found["twice"], want / 1.5, rtol=1e-6)
    assert found["loss"].shape == (5,)


def test_evaluate_on_a_stream_and_at_a_step():
    def loss(params, state, batch, key, step, hyper):
        return jnp.sum((params - batch) ** 2) + step, (state, {})

    pop = Population(Objective(lambda k, h: None, loss), sgd(1), seeds(3), block=2)
    params = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    stream = Batches()
    found = evaluate(pop, params, key=KEY, source=stream, batches=2, step=7)["loss"]
    want = np.mean([((params - Batches().batch(t)) ** 2).sum(1) for t in (0, 1)], 0) + 7
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert stream.at == 2

    class Broken(Batches):
        def batch(self, t):
            return super().batch(t) * (np.nan if t == 1 else 1)

    with pytest.raises(ValueError, match="batch 1 of the evaluation has 3 of 3 values that are not finite"):
        evaluate(pop, params, key=KEY, source=Broken(), batches=2)


def test_evaluate_wants_as_many_members_as_hyper_has():
    pop = Population(quadratic(), sgd(1), {**seeds(3), "w": np.zeros((3, 3), np.float32)})
    source = Sampler(lambda key: jnp.zeros(3), shared=True)
    for size in (2, 17):
        with pytest.raises(ValueError, match=rf"params and state need 3 members, as hyper has, got .*{size}"):
            evaluate(pop, np.zeros((size, 3), np.float32), key=KEY, source=source)


def test_evaluate_needs_a_source():
    pop = Population(quadratic(), sgd(1), {**seeds(1), "w": np.zeros((1, 3), np.float32)})
    for arguments in ({}, {"source": Sampler(lambda key: jnp.zeros(3), shared=True), "batches": 0}):
        with pytest.raises(ValueError, match="evaluate needs a source, of the population or given, and at least one"):
            evaluate(pop, pop.hyper["w"], key=KEY, **arguments)


# ---- small print


@pytest.mark.parametrize("block", [1, 2])
def test_plain_numbers_and_small_types(block):
    """Python numbers as state and metric, a bool, and bfloat16 whose sum over 600 steps is far beyond its precision."""

    def loss(params, state, batch, key, step, hyper):
        tiny = jnp.asarray(1.0, jnp.bfloat16)
        return jnp.sum(params**2), (state + 1, {"half": step % 2 == 0, "one": tiny, "python": 3.0})

    pop = Population(Objective(lambda k, h: (jnp.ones(2), 0), loss), sgd(600), seeds(3), block=block)
    result = fit(pop, source=Batches(), steps=600, key=KEY, log_every=600)
    for name, mean in {"half": 0.5, "one": 1.0, "python": 3.0}.items():
        np.testing.assert_array_equal(result.history[name], [[mean] * 3])
    assert result.state.tolist() == [600] * 3


GOOD = dict(steps=4, key=KEY, source=Batches())
W = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("hyper", "settings", "sentence"),
    [
        ({}, dict(steps=0), "steps must be a whole number of at least 1, got 0"),
        ({}, dict(log_every=0), "log_every must be a whole number of at least 1, got 0"),
        ({}, dict(max_members=0), "max_members must be a whole number of at least 1, got 0"),
        ({}, dict(record_at=(0, 5)), r"record_at must lie in \[0, 4\], got \[0, 5\]"),
        ({}, dict(record_at=(-1,)), r"record_at must lie in \[0, 4\], got \[-1\]"),
        ({}, dict(source=None), "population 'members' has no source, and none was given to fit"),
        ({}, dict(populations={}), "there is nothing to train: give at least one population"),
        ({"seed": None}, {}, "population 'members' has no 'seed' in its hyper: a member's key comes from its seed"),
        ({"seed": [0.0, 1.0]}, {}, "the seeds of population 'members' must be integers of at most 32 bits"),
        ({"seed": [0, 2**32]}, {}, "the seeds of population 'members' must be integers of at most 32 bits"),
        ({"seed": []}, {}, "every entry of hyper of population 'members' needs the same length N >= 1"),
        ({"lr": [0.1]}, {}, "needs the same length N >= 1, got {'seed': 2, 'w': 2, 'lr': 1}"),
        ({"lr": 0.1}, {}, "needs the same length N >= 1, got {'seed': 2, 'w': 2, 'lr': None}"),
        ({"weight_decay": [0.1, 0.2]}, dict(recipe=Recipe(steps=4)), "adam takes no weight decay"),
        ({}, dict(between_at=(0, 5)), r"between_at must lie in \[0, 4\], got \[0, 5\]"),
        ({}, dict(between_at=(2,)), "between_at and an objective's between need each other: give both or neither"),
        ({}, dict(hook=lambda *a: a[0]), "between_at and an objective's between need each other"),
        ({}, dict(hook=lambda *a: a[0]._replace(params=a[0].params[:1]), between_at=(2,)), "changed the structure"),
        ({}, dict(hook=lambda *a: None, between_at=(2,)), "changed the structure, a shape or a dtype of its members"),
        (
            {},
            dict(recipe=Recipe(steps=9, schedule="cosine")),
            "the schedule of population 'members' is made for 9 steps",
        ),
        ({}, dict(block=0), "block of population 'members' must be at least 1, got 0"),
        ({}, dict(own=Sampler(lambda key: 0, shared=True)), "the source of population 'members' is shared: give it"),
    ],
)
def test_bad_arguments_are_refused(hyper, settings, sentence):
    values = {k: v for k, v in {**seeds(2), "w": W, **hyper}.items() if v is not None}
    settings = {**GOOD, **settings}
    recipe, own = settings.pop("recipe", sgd(4)), settings.pop("own", None)
    pop = Population(quadratic(between=settings.pop("hook", None)), recipe, values, own, settings.pop("block", 4))
    with pytest.raises(ValueError, match=sentence):
        fit(settings.pop("populations", pop), **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(steps=4.5), "steps must be a whole number of at least 1, got 4.5"),
        (dict(log_every="2"), "log_every must be a whole number of at least 1, got '2'"),
        (dict(record_at=(1.5,)), "record_at must hold whole numbers, got 1.5"),
    ],
)
def test_numbers_that_are_not_whole_are_refused(settings, sentence):
    pop = Population(quadratic(), sgd(4), {**seeds(2), "w": W})
    with pytest.raises(ValueError, match=sentence):
        inspect.unwrap(fit)(pop, **{**GOOD, **settings})  # before the types are checked as in these tests


def test_typed_keys_are_no_state():
    objective = Objective(lambda key, hyper: (hyper["w"], key), quadratic().loss)
    with pytest.raises(ValueError, match=r"can't hold typed random keys: keep jax.random.key_data\(key\) instead"):
        fit(Population(objective, sgd(4), {**seeds(2), "w": W}), **GOOD)


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_metrics_have_names_of_their_own(name):
    loss = lambda w, state, batch, key, step, hyper: (jnp.sum(w**2), (state, {name: jnp.sum(w)}))  # noqa: E731
    pop = Population(Objective(lambda key, hyper: (hyper["w"], ()), loss), sgd(4), {**seeds(2), "w": W})
    with pytest.raises(ValueError, match=f"a metric of an objective can't be named {name}: rename it"):
        fit(pop, **GOOD)


def test_an_iterator_without_a_position_is_refused():
    pop = Population(quadratic(), sgd(4), {**seeds(2), "w": W})
    with pytest.raises(ValueError, match=r"source must be a Sampler or a Stream \(next, get_state, set_state\), got"):
        inspect.unwrap(fit)(pop, **{**GOOD, "source": iter([W])})  # before the types are checked as in these tests


@pytest.mark.parametrize("shared", [True, False])
def test_a_sampler_s_values_that_are_not_finite_are_counted_and_refused(shared):
    """They are no divergence: the batch is drawn again once a member stops, and looked at."""

    def sample(key, hyper=None):
        x = jax.random.normal(key, (32, 8))
        return jnp.where(x > 3.2, jnp.inf, x)  # about 1 of 1,455 values

    init = lambda key, hyper: (jnp.zeros(8), ())  # noqa: E731
    loss = lambda w, state, x, key, step, hyper: (jnp.mean((x - w) ** 2), (state, {}))  # noqa: E731
    models = Population(Objective(init, loss), Recipe(steps=20, lr=0.01), {"seed": np.array([5, 9])})
    said = r"^the sampler's batch for step \d+ of population 'members' has \d+ of 256 values that are not finite: mend"
    with pytest.raises(ValueError, match=said):
        fit(models, steps=20, key=jax.random.key(0), log_every=5, source=Sampler(sample, shared), mesh=None)
