"""Fourth-order Runge-Kutta with an integrating factor, which treats linear decay exactly."""

from collections.abc import Callable

from jaxtyping import Array


def runge_kutta_step(
    slope: Callable[[Array], Array], half: Array, dt: Array
) -> Callable[[object, Array], Array]:
    """Return a step of dw/dt = -decay w + slope(w), as `jax.lax.fori_loop` calls it.

    Args:
        slope: what is not decay.
        half: exp(-decay dt / 2), the decay over half a step.
        dt: the time step.
    """
    full = half * half

    def step(_, w):
        a = slope(w)
        b = slope(half * (w + dt / 2 * a))
        c = slope(half * w + dt / 2 * b)
        d = slope(full * w + dt * half * c)
        return full * w + dt / 6 * (full * a + 2 * half * (b + c) + d)

    return step
