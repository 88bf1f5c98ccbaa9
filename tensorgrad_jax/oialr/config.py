"""The options of the training method, under the original's names and with its defaults."""

from __future__ import annotations

import dataclasses
import warnings

from tensorgrad_jax.oialr.moments import MOMENTS
from tensorgrad_jax.projections.plain import check_choice, make_plain, number, whole

UVH_THRESHOLD = 0.999
AXIS_THRESHOLD = 0.99


@dataclasses.dataclass(frozen=True)
class Config:
    """When kernels become low-rank, when their ranks are looked at, and by which rules.

    Attributes:
        stability_frequency: steps between checks.
        delay: steps of dense training; at the step of that number, counted from 1, kernels become
            low-rank and the first check is made. Without warm-up, the step of the first check.
        uvhthreshold: stability from which on a layer becomes low-rank, and overlap from which on an
            axis of a tensor gets its factor; under `freeze="stability"` alone. None: 0.999 for
            layers, 0.99 for axes.
        sigma_cutoff_fraction: singular values below this share of the largest are cut off.
        keep_first_layer: the first layer worth factoring stays dense.
        keep_last_layer: the last layer worth factoring stays dense. A head of 10 classes behind
            128 channels is not worth it by its shape: the one before it is then the last.
        reinit_shapes: whether cores shrink; False: zeros outside the rank, in arrays of one shape,
            so that no program is compiled anew.
        stable_update_delay: number of checks that a layer skips behind one that it had.
        step_on_forward: whether a step does what is due; False: it counts, and `update` does.
        full_rank_warmup: dense until `delay`; False: low-rank from the beginning.
        network_layer_perc_step: share p of the low-rank layers; check j looks at the last
            ceil(p L j) of L.
        use_ddp: whether work is divided among the devices that hold the parameters.
        distributed_updates: whether the decompositions of a check are, layer i on device i modulo
            their number; both must be true for it.
        fixed_inner_dim: no checks: ranks stay.
        inner_dim_init_ratio: share of the singular values that is kept at first.
        freeze: "delay": all layers become low-rank at `delay`. "stability": each at the first
            check from `delay` on since whose predecessor its basis had at least the stability
            `uvhthreshold`; of a tensor every axis by itself, by the overlap of its leading
            subspaces (`oialr.axes`), while the other axes stay whole.
        moments: what happens to the optimizer's moments, see `oialr.moments`: "transport",
            "zero", "zero+reset_count".
        bucket: physical sizes of cores are multiples of it, so that programs are compiled anew only
            when a rank falls below a multiple.
        legacy_selection: the original's choice of layers at a check: the last j floor(p (L - 1)),
            all where that is 0, and `stable_update_delay` one shorter than said.

    Raises:
        ValueError: if an option is not one of these.
        DeprecationWarning: if `uvhthreshold` is given without effect, as for long in the original.
    """

    stability_frequency: int = 100
    delay: int = 1000
    uvhthreshold: float | None = None
    sigma_cutoff_fraction: float = 0.1
    keep_first_layer: bool = False
    keep_last_layer: bool = True
    reinit_shapes: bool = True
    stable_update_delay: int = 0
    step_on_forward: bool = True
    full_rank_warmup: bool = True
    network_layer_perc_step: float = 0.1
    use_ddp: bool = True
    distributed_updates: bool = True
    fixed_inner_dim: bool = False
    inner_dim_init_ratio: float = 1.0
    freeze: str = "delay"
    moments: str = "transport"
    bucket: int = 32
    legacy_selection: bool = False

    def __post_init__(self):
        """Check every option."""
        make_plain(self)
        owner = "oialr"
        for name, least in (
            ("stability_frequency", 1), ("delay", 0), ("stable_update_delay", 0), ("bucket", 1),
        ):  # fmt: skip
            whole(owner, name, getattr(self, name), least, 2**31)
        share = lambda name, allowed, holds: number(
            owner, name, getattr(self, name), f"a number in {allowed}", holds
        )
        share("sigma_cutoff_fraction", "[0, 1)", lambda x: 0 <= x < 1)
        for name in ("inner_dim_init_ratio", "network_layer_perc_step"):
            share(name, "(0, 1]", lambda x: 0 < x <= 1)
        if self.uvhthreshold is not None:
            share("uvhthreshold", "[-1, 1]", lambda x: -1 <= x <= 1)
        check_choice(owner, "freeze", self.freeze, ("delay", "stability"))
        check_choice(owner, "moments", self.moments, MOMENTS)
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                value = getattr(self, field.name)
                # 0 and 1 are not truth values here: `in` would take them for such.
                if not isinstance(value, bool):
                    raise ValueError(f"{owner}: {field.name} must be True or False, got {value!r}")
        if self.freeze == "stability" and (self.delay == 0 or not self.full_rank_warmup):
            raise ValueError(
                "oialr: freeze='stability' needs delay >= 1 and full_rank_warmup=True, got "
                f"delay={self.delay}, full_rank_warmup={self.full_rank_warmup}"
            )
        if self.freeze == "delay" and self.uvhthreshold not in (None, UVH_THRESHOLD):
            warnings.warn(
                f"oialr: uvhthreshold={self.uvhthreshold} has no effect under freeze='delay', as "
                "in the original; freeze='stability' uses it",
                DeprecationWarning,
                stacklevel=3,
            )

    def threshold(self, of_axes: bool) -> float:
        """Return the stability, or of axes of tensors the overlap, from which on they freeze."""
        if self.uvhthreshold is not None:
            return self.uvhthreshold
        return AXIS_THRESHOLD if of_axes else UVH_THRESHOLD
