"""A function whose examples are not independent is refused, whatever couples them."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tensorgrad_jax.per_example import Squares, per_example, report

W = jnp.linspace(-1, 1, 12).reshape(4, 3)
X = jnp.sin(jnp.arange(24.0)).reshape(6, 4)
Y = jnp.arange(6) % 3


def _check(fun, batch=(X, Y), **options):
    reduce = per_example(lambda w, batch: fun(w, *batch), Squares(), **options)
    return jax.eval_shape(reduce, W, batch)


def _half(x):
    return jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)


def _batch_norm(w, x, y):
    del y
    norm = nnx.BatchNorm(3, use_running_average=False, rngs=nnx.Rngs(0))
    return jnp.mean(norm(x @ w) ** 2)


def _entropy(w, x, y):
    return -jax.nn.log_softmax(x @ w)[jnp.arange(len(x)), y].mean()


def _steps(w, x, y):
    del y
    turn = lambda h, t: (jnp.tanh(h + t[:, None] * w[0]), h)
    return jnp.mean(jax.lax.scan(turn, jnp.zeros((len(x), 3)), x.T)[1] ** 2)


INDEPENDENT = {
    "mean": lambda w, x, y: jnp.mean((x @ w) ** 2),
    "sum over number": lambda w, x, y: jnp.sum((x @ w) ** 2) / len(x),
    "two means": lambda w, x, y: jnp.mean(x @ w) + 0.1 * jnp.mean(jnp.tanh(x @ w)),
    "penalty": lambda w, x, y: jnp.mean(x @ w) + jnp.sum(w**2),
    "labels by number": _entropy,
    "labels by one-hot": lambda w, x, y: jnp.mean(
        jnp.sum(jax.nn.one_hot(y, 3) * jax.nn.log_softmax(x @ w), -1)
    ),
    "labels taken along": lambda w, x, y: jnp.mean(jnp.take_along_axis(x @ w, y[:, None], 1)),
    "one mask for all": lambda w, x, y: jnp.mean(jnp.where(_half(x[0]), x, 0) @ w),
    "vmap": lambda w, x, y: jnp.mean(jax.vmap(lambda x: jnp.sum(jnp.tanh(x @ w)))(x)),
    "merged with positions": lambda w, x, y: jnp.mean(
        jnp.sin(x.reshape(-1, 1) * w[0]).reshape(len(x), -1)
    ),
    "steps": _steps,
    "checkpoint": lambda w, x, y: jnp.mean(jax.checkpoint(lambda x: jnp.tanh(x @ w))(x)),
    "sorted within": lambda w, x, y: jnp.mean(jnp.sort(x @ w, 1)[:, 0]),
    "choice": lambda w, x, y: jnp.mean(jax.lax.cond(w[0, 0] > 0, jnp.sin, jnp.cos, x @ w)),
    "two halves": lambda w, x, y: jnp.mean(
        (jnp.concatenate([x, 2 * x]) @ w).reshape(2, len(x), 3).prod(0)
    ),
    "written to a column": lambda w, x, y: jnp.mean(x.at[:, 1].set(0.0) @ w),
}

DEPENDENT = {
    "batch norm": (_batch_norm, "uses a sum over the batch"),
    "centred": (lambda w, x, y: jnp.mean((x @ w - (x @ w).mean(0)) ** 2), "uses a sum"),
    "contrastive": (lambda w, x, y: jnp.mean((x @ w) @ (x @ w).T), "every example with every"),
    "mask's total": (
        lambda w, x, y: jnp.sum((x @ w).sum(-1) * (y > 0)) / jnp.sum(y > 0),
        "div uses a sum over the batch",
    ),
    "root of the mean": (lambda w, x, y: jnp.sqrt(jnp.mean((x @ w) ** 2)), "sqrt uses a sum"),
    "maximum": (lambda w, x, y: jnp.max(x @ w), "reduce_max reduces over the examples"),
    "neighbours": (lambda w, x, y: jnp.mean((x @ w) * jnp.roll(x @ w, 1, 0)), "slice takes some"),
    "ranked": (lambda w, x, y: jnp.mean(jnp.sort(x @ w, 0) ** 2), "sort mixes"),
    "running sum": (lambda w, x, y: jnp.mean(jnp.cumsum(x @ w, 0)), "cumsum mixes"),
    "mask for the batch": (
        lambda w, x, y: jnp.mean(jnp.where(_half(x), x, 0) @ w),
        "Put a key per example into the batch",
    ),
    "scan over examples": (
        lambda w, x, y: jax.lax.scan(lambda h, x: (jnp.sum(jnp.tanh(h + x @ w)), 0), 0.0, x)[0],
        "scan runs over the examples",
    ),
    "first": (lambda w, x, y: jnp.mean(x[:1] @ w), "slice takes some of the examples"),
    "other's label": (
        lambda w, x, y: jnp.mean((x @ w)[jnp.arange(len(x))[::-1], y]),
        "gather|depends on their number",
    ),
    "scaled inside": (lambda w, x, y: jnp.mean(jnp.exp(x @ w / len(x))), "their number"),
    "penalty over number": (
        lambda w, x, y: jnp.mean(x @ w) + jnp.sum(w**2) / len(x),
        "depends on their number",
    ),
    "mean and sum": (lambda w, x, y: jnp.mean(x @ w) + jnp.sum(x @ w), "combines a mean"),
    "twice the mean": (lambda w, x, y: jnp.sum(x @ w) / len(x) ** 2, "their number"),
    "torn": (lambda w, x, y: jnp.mean(x.reshape(-1, 8)[:, :4] @ w), "reshape tears"),
    "unknown": (
        lambda w, x, y: jnp.mean(jnp.linalg.solve(x.T @ x, x.T @ (x @ w))),
        "uses a sum over the batch|nothing is known of the primitive",
    ),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_examples_pass(name):
    _check(INDEPENDENT[name])


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("method", ["exact", "auto"])
def test_dependent_examples_are_refused(name, method):
    fun, message = DEPENDENT[name]
    with pytest.raises(ValueError, match=f"not independent.*({message})"):
        _check(fun, method=method)


def test_what_mixes_examples_is_named_with_the_parameter_before_it():
    """Batch normalisation in training, between two layers."""
    params = {"inner": W, "outer": W.T}

    def loss(params, x):
        norm = nnx.BatchNorm(3, use_running_average=False, rngs=nnx.Rngs(0))
        return jnp.mean((norm(jnp.tanh(x @ params["inner"])) @ params["outer"]) ** 2)

    message = r"square uses a sum over the batch \(.*, after parameter \['inner'\]"
    for function in (per_example(loss, Squares()), report(loss, Squares())):
        with pytest.raises(ValueError, match=message):
            function(params, X)
    assert [r.method for r in report(loss, Squares(), check_independence=False)(params, X)]
    ranked = lambda p, x: jnp.mean(jax.checkpoint(lambda y: jnp.sort(y, 0) ** 2)(x @ p["inner"]))
    with pytest.raises(ValueError, match=r"sort mixes.*, after parameter \['inner'\]"):
        report(ranked, Squares())(params, X)


def test_the_user_may_know_better():
    centred, _ = DEPENDENT["centred"]
    _check(centred, check_independence=False)


def test_a_batch_of_one_has_nothing_to_mix():
    centred, _ = DEPENDENT["centred"]
    _check(centred, (X[:1], Y[:1]))


def test_a_sum_is_not_taken_for_a_mean():
    total, mean = lambda w, x, y: jnp.sum(x @ w), INDEPENDENT["mean"]
    _check(total, loss_reduction="sum")
    with pytest.raises(ValueError, match="'mean' but fun returns the sum"):
        _check(total)
    with pytest.raises(ValueError, match="'sum' but fun returns the mean"):
        _check(mean, loss_reduction="sum")
    penalised = lambda w, x, y: jnp.sum(x @ w) + jnp.sum(w**2)
    with pytest.raises(ValueError, match="adds something without examples"):
        _check(penalised, loss_reduction="sum")


@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_passes_is_the_mean_over_examples(name):
    fun = INDEPENDENT[name]
    alone = [fun(W, X[i : i + 1], Y[i : i + 1]) for i in range(len(X))]
    assert jnp.allclose(fun(W, X, Y), jnp.mean(jnp.stack(alone)), rtol=1e-5)
