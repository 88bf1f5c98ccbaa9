"""What compressing the 5-D weight of a three-dimensional FNO saves, and what it keeps.

The tensor stands for the gradient of a spectral weight of shape (modes, modes, modes, channels,
channels): complex noise that falls off with the frequency and along the channels. Prints for every
projection the bytes of Adam's moments and of the basis, their share of Adam's, and the energy of
the tensor G that the compact form captures: 1 - |G - lift(project(G))|^2 / |G|^2.
"""

import jax
import numpy as np
import optax

import tensorgrad_jax as tg


def gradient(shape=(16, 16, 9, 16, 16)):
    """Return noise with entries divided by 1 + |k|, k the frequencies, and 1 + channel index."""
    real, imaginary = np.random.default_rng(0).normal(size=(2, *shape))
    k = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in (*shape[:2], 2 * shape[2])], indexing="ij")
    decay = 1 / (1 + np.sqrt(sum(x**2 for x in k)))[:, :, : shape[2], None, None]
    channels = 1 / np.arange(1, 17)
    noise = (real + 1j * imaginary) * decay * channels * channels[:, None]
    return noise.astype(np.complex64)


def captured_energy(projection, g):
    """Return the share of the energy of `g` in the subspace that the projection chooses for it."""
    kept = tg.filter_by(projection)

    @jax.jit
    def squares(g):
        filtered, _ = kept.update(g, kept.init(g))
        return [optax.tree.norm(t, squared=True) for t in (optax.tree.sub(g, filtered), g)]

    lost, whole = squares(g)
    return 1 - float(lost / whole)


g = {"spectral_weight": gradient()}
adam = tg.state_bytes(tg.scale_by_adam().init(g))["total"]
print(f"complex weight {g['spectral_weight'].shape}, Adam's moments: {adam:,} bytes")
print(f"{'':28} {'moments':>10} {'basis':>9} {'of Adam':>9} {'energy':>7}")
for name, projection in {
    "Tucker 25%": tg.Tucker(0.25),
    "Tucker 5%": tg.Tucker(0.05),
    "Tucker, ranks (8, 8, 6, 6, 6)": tg.Tucker((8, 8, 6, 6, 6)),
    "random 5%, then Tucker 20%": tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.20)),
    "largest 5%, then Tucker 20%": tg.Residual(
        tg.UnstructuredSparse(0.05, "topk"), tg.Tucker(0.20)
    ),
}.items():
    optimizer = tg.in_subspace(tg.scale_by_adam(), projection)
    n = tg.state_bytes(jax.eval_shape(optimizer.init, g))
    row = f"{n['moments']:10,} {n['basis']:9,} {n['total'] / adam:9.1%}"
    print(f"{name:28} {row} {captured_energy(projection, g):7.1%}")
