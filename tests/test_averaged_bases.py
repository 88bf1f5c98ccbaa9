"""Tucker bases of averaged Gram matrices, and SOAP as Adam within one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.projections.pairs import as_pair

RNG = np.random.default_rng(0)


def draw(*shape, complex_=False):
    x = RNG.normal(size=shape) + (1j * RNG.normal(size=shape) if complex_ else 0)
    return jnp.asarray(x, jnp.complex64 if complex_ else jnp.float32)


def unfolding(x, mode):
    return np.moveaxis(np.asarray(x), mode, 0).reshape(x.shape[mode], -1)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("as_parts", [False, True])
def test_bases_are_leading_eigenvectors_of_the_average(complex_, as_parts):
    if as_parts and not complex_:
        pytest.skip("a real tensor has no parts")
    projection = tg.Tucker((2, 3, 3), gram_decay=0.8)
    tensors = [draw(4, 5, 6, complex_=complex_) for _ in range(3)]
    basis = projection.init(tensors[0])
    for x in tensors:
        given = as_pair(x) if as_parts else x
        basis = projection.refresh(jax.random.key(0), given, basis)
    for mode, r in enumerate((2, 3, 3)):
        grams = [unfolding(x, mode) @ unfolding(x, mode).conj().T for x in tensors]
        expected = sum(0.2 * 0.8 ** (2 - i) * gram for i, gram in enumerate(grams))
        np.testing.assert_allclose(basis.grams[mode], expected, rtol=1e-4, atol=1e-3)
        leading = np.linalg.eigh(expected)[1][:, -r:]
        U = np.asarray(basis.factors[mode])
        np.testing.assert_allclose(U @ U.conj().T, leading @ leading.conj().T, atol=1e-4)


def test_modes_of_an_ellipsis_are_left_alone_and_whole_modes_are_rotated():
    x = as_pair(draw(3, 4, 6, 6, complex_=True))
    projection = tg.Tucker((..., 1.0, 0.5), factors="real", gram_decay=0.5)
    basis = projection.init(jax.ShapeDtypeStruct((3, 4, 6, 6), jnp.complex64))
    basis = projection.refresh(jax.random.key(0), x, basis)
    shapes = [None if u is None else u.shape for u in basis.factors]
    assert shapes == [None, None, (6, 6), (6, 3)]
    assert [None if g is None else g.shape for g in basis.grams] == [None, None, (6, 6), (6, 6)]
    assert all(u.dtype == jnp.float32 for u in basis.factors if u is not None)
    both = np.asarray(x.parts)
    gram = sum(unfolding(part, 3) @ unfolding(part, 3).T for part in both)
    np.testing.assert_allclose(basis.grams[3], 0.5 * gram, rtol=1e-4, atol=1e-3)


def test_the_average_follows_many_gradients_where_the_last_one_follows_noise():
    """One direction in all gradients, below the noise of each."""
    direction = np.linalg.qr(RNG.normal(size=(20, 1)))[0]
    known = {0.0: [], 0.95: []}
    for decay in known:
        projection = tg.Tucker((1, 20), gram_decay=decay)
        basis = projection.init(jnp.zeros((20, 20)))
        for _ in range(80):
            x = draw(20, 20) + jnp.asarray(
                6 * direction @ RNG.normal(size=(1, 20)) / 4.5, jnp.float32
            )
            basis = projection.refresh(jax.random.key(0), x, basis)
            factors = basis if decay == 0 else basis.factors
            known[decay].append(abs(float((factors[0].T @ direction)[0, 0])))
    assert np.mean(known[0.95][40:]) > 0.9 > np.mean(known[0.0][40:])


def test_adam_within_is_soap():
    b1, b2, eps, steps = 0.95, 0.9, 1e-8, 6
    gradients = [draw(5, 7) for _ in range(steps)]

    def rotate_momentum_keep_squares(leaf, moments, old, new):
        return {"mu": leaf.transport(moments["mu"], old, new), "nu": moments["nu"]}

    ours = tg.in_subspace(
        tg.scale_by_adam(b1, b2, eps),
        tg.Tucker((1.0, 1.0), gram_decay=b2),
        update_proj_gap=1,
        on_refresh=rotate_momentum_keep_squares,
        specs=lambda params: jax.tree.map(lambda _: tg.TensorSpec(), params),
    )
    state = ours.init({"w": gradients[0]})
    left, right, mu, nu = np.zeros((5, 5)), np.zeros((7, 7)), np.zeros((5, 7)), np.zeros((5, 7))
    for t, g in enumerate(gradients, start=1):
        update, state = ours.update({"w": g}, state)
        g = np.asarray(g, np.float64)
        left = b2 * left + (1 - b2) * g @ g.T
        right = b2 * right + (1 - b2) * g.T @ g
        QL, QR = (np.linalg.eigh(m)[1][:, ::-1] for m in (left, right))
        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * (QL.T @ g @ QR) ** 2
        step = (QL.T @ mu @ QR) / (1 - b1**t) / (np.sqrt(nu / (1 - b2**t)) + eps)
        # Directions that no gradient had yet are arbitrary, and the bases with them.
        if t > 1:
            np.testing.assert_allclose(update["w"], QL @ step @ QR.T, rtol=2e-3, atol=2e-3)


def test_a_gradient_that_is_not_finite_leaves_the_average():
    optimizer = tg.in_subspace(tg.scale_by_adam(), tg.Tucker((2, 2, 2), gram_decay=0.5), 1)
    params = {"w": jnp.zeros((12, 12, 12))}
    state = optimizer.init(params)
    _, state = optimizer.update({"w": draw(12, 12, 12)}, state)
    before = state.basis["w"]
    _, state = optimizer.update({"w": jnp.full((12, 12, 12), jnp.nan)}, state)
    for old, new in zip(before, state.basis["w"], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "options", [{"gram_decay": 1.0}, {"gram_decay": "x"}, {"gram_decay": -0.1}]
)
def test_decays_out_of_range_are_refused(options, unchecked):
    with pytest.raises(ValueError, match=r"gram_decay must be a number in \[0, 1\)"):
        tg.Tucker(0.25, **options)


def test_other_methods_have_no_average():
    with pytest.raises(ValueError, match="gram_decay needs method='gram'"):
        tg.Tucker(0.25, method="svd", gram_decay=0.5)
