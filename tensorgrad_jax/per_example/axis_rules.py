"""The rule of `batch_axis` for every primitive that has one."""

from __future__ import annotations

from tensorgrad_jax.per_example import axis_mixes as mixes
from tensorgrad_jax.per_example import axis_moves as moves
from tensorgrad_jax.per_example.batch_axis import Rule, elementwise

_padded = lambda operation, rank: [
    axis for axis, config in enumerate(operation.params["padding_config"]) if any(config)
]
_windowed = lambda operation, rank: [
    axis for axis, size in enumerate(operation.params["window_dimensions"]) if size != 1
]
_one = lambda name: lambda operation, rank: [operation.params[name] % rank]
_matrix = lambda operation, rank: [rank - 2, rank - 1]

_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter
    not or polygamma population_count pow random_fold_in random_gamma real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh threefry2x32 xor zeta
""".split()  # noqa: SIM905

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(
        [
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "reduce_xor",
            "argmax",
            "argmin",
        ],
        mixes.reduction,
    ),
    **dict.fromkeys(
        ["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], mixes.along(_one("axis"))
    ),
    **dict.fromkeys(
        ["reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"],
        mixes.along(_windowed),
    ),
    **dict.fromkeys(
        ["cholesky", "eigh", "lu", "qr", "svd", "triangular_solve"], mixes.along(_matrix)
    ),
    "argsort": mixes.along(_one("dimension")),
    "broadcast_in_dim": moves.broadcast,
    "concatenate": moves.concatenate,
    "conv_general_dilated": mixes.convolution,
    "dot_general": mixes.dot,
    "dynamic_slice": moves.dynamic_slices,
    "dynamic_update_slice": moves.dynamic_slices,
    "expand_dims": moves.reshape,
    "fft": mixes.along(lambda op, rank: range(rank - len(op.params["fft_lengths"]), rank)),
    "gather": mixes.gather,
    "iota": moves.iota,
    "pad": mixes.along(_padded),
    "bitcast_convert_type": moves.keys,
    "random_bits": moves.keys,
    "random_seed": moves.keys,
    "random_split": moves.keys,
    "random_unwrap": moves.keys,
    "random_wrap": moves.keys,
    "reshape": moves.reshape,
    "rev": mixes.along(lambda op, rank: op.params["dimensions"]),
    **dict.fromkeys(
        ["scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max"], mixes.scatter
    ),
    "slice": moves.slices,
    "sort": mixes.along(_one("dimension")),
    "split": mixes.along(_one("axis")),
    "squeeze": moves.squeeze,
    "stack": moves.stack,
    "tile": moves.tile,
    "top_k": mixes.along(lambda op, rank: [op.params.get("axis", -1) % rank]),
    "transpose": moves.transpose,
    "unstack": moves.unstack,
}
