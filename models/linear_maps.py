"""Linear maps whose transpose is written by hand, for rules of `jax.custom_jvp`.

A gradient that is written by hand with `jax.custom_vjp` takes forward mode away. `jax.custom_jvp`
keeps it, but then the gradient is what JAX makes of the tangent map by transposing it. A tangent
made with `linear_map` has a transpose of its own, and works under `vmap` and in both modes to every
order: it is a primitive of JAX, whose rules are below.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

# Of (what is kept, what the map is linear in).
Function = Callable[[Sequence[Array], Sequence[Array]], Sequence[Array]]


def linear_map(
    function: Function, transpose: Function, kept: Sequence[Array], x: Sequence[Array]
) -> tuple[Array, ...]:
    """`function(kept, x)`, linear in `x`, of which the transpose is `transpose`.

    Args:
        function: of (kept, x). Derivatives with respect to `kept`, thus second ones, are made of
            it alone: JAX must be able to differentiate it.
        transpose: of (kept, cotangent of the result), the cotangent of `x`. JAX takes no
            derivative of it.
        kept: what both depend on. Neither may close over other traced arrays.
        x: floating-point arrays.
    """
    structs = jax.eval_shape(tuple, x)

    def plain_transpose(kept, cotangent):
        return jax.linear_transpose(lambda *x: function(kept, x), *structs)(tuple(cotangent))

    return tuple(_bind(_Maps(function, transpose, function, plain_transpose), kept, x))


class _Maps(NamedTuple):
    """What is evaluated, the map and its transpose, and what is differentiated in their place."""

    run: Function
    transpose: Function
    plain: Function
    plain_transpose: Function

    @property
    def transposed(self):
        return _Maps(self.transpose, self.run, self.plain_transpose, self.plain)


def _bind(maps: _Maps, kept, x):
    jaxpr = jax.make_jaxpr(maps.run)(tuple(kept), tuple(x))
    return _linear_map_p.bind(*kept, *x, jaxpr=jaxpr, maps=maps, n_kept=len(kept))


_linear_map_p = Primitive("linear_map")
_linear_map_p.multiple_results = True


@_linear_map_p.def_impl
def _evaluate(*arrays, jaxpr: ClosedJaxpr, **_):
    return jaxpr_as_fun(jaxpr)(*arrays)


@_linear_map_p.def_abstract_eval
def _abstract(*_, jaxpr: ClosedJaxpr, **__):
    return jaxpr.out_avals


mlir.register_lowering(_linear_map_p, mlir.lower_fun(_evaluate, multiple_results=True))


def _jvp(primals, tangents, *, jaxpr, maps, n_kept):
    kept, x = primals[:n_kept], primals[n_kept:]
    dkept, dx = tangents[:n_kept], tangents[n_kept:]
    y = _linear_map_p.bind(*primals, jaxpr=jaxpr, maps=maps, n_kept=n_kept)
    parts = []
    if not all(map(_is_zero, dx)):
        parts.append(_bind(maps, kept, [ad.instantiate_zeros(t) for t in dx]))
    moving = [i for i, t in enumerate(dkept) if not _is_zero(t)]
    if moving:

        def at(*values):
            changed = dict(zip(moving, values, strict=True))
            return maps.plain(tuple(changed.get(i, a) for i, a in enumerate(kept)), x)

        parts.append(jax.jvp(at, [kept[i] for i in moving], [dkept[i] for i in moving])[1])
    return y, [sum(dy[1:], dy[0]) for dy in zip(*parts, strict=True)]


def _transpose(cotangents, *primals, maps, n_kept, **_):
    kept, x = primals[:n_kept], primals[n_kept:]
    dx = _bind(maps.transposed, kept, [ad.instantiate_zeros(g) for g in cotangents])
    wanted = map(ad.is_undefined_primal, x)
    return [None] * n_kept + [g if w else None for g, w in zip(dx, wanted, strict=True)]


def _batch(arrays, axes, *, maps, n_kept, **_):
    size = next(a.shape[d] for a, d in zip(arrays, axes, strict=True) if d is not None)
    kept, x = arrays[:n_kept], arrays[n_kept:]
    # All of x gets the axis: JAX sums the cotangents of what it repeats.
    x = [batching.bdim_at_front(a, d, size) for a, d in zip(x, axes[n_kept:], strict=True)]
    over = lambda function: jax.vmap(function, in_axes=(tuple(axes[:n_kept]), 0))
    y = _bind(_Maps(*map(over, maps)), kept, x)
    return y, [0] * len(y)


def _is_zero(tangent):
    return isinstance(tangent, ad.Zero)


ad.primitive_jvps[_linear_map_p] = _jvp
ad.primitive_transposes[_linear_map_p] = _transpose
batching.primitive_batchers[_linear_map_p] = _batch
