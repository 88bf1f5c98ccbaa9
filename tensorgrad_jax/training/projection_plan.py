"""Which projection the options ask for.

1. Is the gradient compressed? `opt.tensorgrad` decides; where it is null, `opt.optimizer_type`
   does: adamw is plain AdamW, the others compress.
2. One projection or two? A given `opt.second_proj_type` means two, a given `opt.proj_type` alone
   means one. With neither, tensorgrad and tensorgrad_sum take the setting of the TensorGRaD paper
   (5% random entries, then a Tucker core of 20%), adamw and subspace_momentum take one low-rank
   projection.
3. A missing `opt.proj_type` is unstructured_sparse where there are two and low_rank where there
   is one.
4. Two projections form a sum with tensorgrad_sum (both see the gradient) and a residual
   otherwise (the second sees what the first left over).

The first projection takes `opt.rank`, `opt.sparse_ratio` and `opt.sparse_type`; the second takes
`opt.second_rank`, `opt.second_sparse_ratio` and `opt.second_sparse_type`. `opt.scale` and
`opt.scale_by_mask_ratio` belong to the first alone. With `opt.naive_galore` low rank means that of
a matrix view, which has one rank.

| options                                                      | projection                |
|--------------------------------------------------------------|---------------------------|
| (none)                                                       | residual: 5% + 20%        |
| optimizer_type tensorgrad_sum                                | sum: 5% + 20%             |
| proj_type low_rank, rank 0.25                                | single: low rank 25%      |
| proj_type low_rank, second_proj_type unstructured_sparse     | residual: low rank first  |
| optimizer_type adamw, tensorgrad True                        | single: low rank          |
| optimizer_type subspace_momentum                             | single: low rank          |
| tensorgrad False, or optimizer_type adamw                    | none                      |
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from tensorgrad_jax.training.allowed import ConfigError, show
from tensorgrad_jax.training.options import OptConfig, ProjectionKind, Rank, SparseType

PART_OPTIONS = {
    "low_rank": ("rank",),
    "structured_sparse": ("sparse_ratio", "sparse_type"),
    "unstructured_sparse": ("sparse_ratio", "sparse_type"),
}
"""The options of a first projection of each kind; those of a second one start with `second_`."""


@dataclasses.dataclass(frozen=True)
class ProjectionPart:
    """One projection. The attributes of the other kind are None.

    Attributes:
        kind: low_rank (Tucker), structured_sparse (slices), unstructured_sparse (single entries).
        rank: low_rank: a budget (float), a rank (int), or a tuple of one of the two.
        sparse_ratio: sparse kinds: kept entries / entries of the tensor.
        sparse_type: sparse kinds: how entries or slices are selected.
        scale_by_mask_ratio: whether what is lifted gets the factor sqrt(entries / kept entries).
        weight: factor of this part's lifted update.
    """

    kind: ProjectionKind
    rank: Rank | None = None
    sparse_ratio: float | None = None
    sparse_type: SparseType | None = None
    scale_by_mask_ratio: bool = False
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class ProjectionPlan:
    """A projection and how its parts are combined.

    Attributes:
        kind: none (plain AdamW), single, residual or sum.
        parts: no part, one, or two in the order in which they are applied.
    """

    kind: Literal["none", "single", "residual", "sum"]
    parts: tuple[ProjectionPart, ...] = ()


def resolve_projection_plan(opt: OptConfig) -> ProjectionPlan:
    """The projection that the options ask for, by the rules at the top of this file.

    In a composite, `opt.tensorgrad_sum_lambda_sparse` weighs the update of every sparse part.

    Raises:
        ConfigError: tensorgrad_sum with a single projection; a list of ranks for a matrix.
    """
    composite_type = opt.optimizer_type in ("tensorgrad", "tensorgrad_sum")
    compressed = opt.optimizer_type != "adamw" if opt.tensorgrad is None else opt.tensorgrad
    if not compressed:
        return ProjectionPlan("none")
    first, second = opt.proj_type, opt.second_proj_type
    if first is None and second is None and composite_type:
        first, second = "unstructured_sparse", "low_rank"
    if second is None:
        if opt.optimizer_type == "tensorgrad_sum":
            raise ConfigError(
                "opt.second_proj_type: got null with opt.optimizer_type tensorgrad_sum and a given "
                "opt.proj_type, expected a second projection: a sum has two parts"
            )
        part = _part(opt, first or "low_rank", "")
        return ProjectionPlan("single", (dataclasses.replace(part, weight=opt.scale),))
    kind = "sum" if opt.optimizer_type == "tensorgrad_sum" else "residual"
    parts = _part(opt, first or "unstructured_sparse", ""), _part(opt, second, "second_")
    factors = (opt.scale, 1.0)
    sparse = [
        1.0 if part.kind == "low_rank" else opt.tensorgrad_sum_lambda_sparse for part in parts
    ]
    weighted = (
        dataclasses.replace(part, weight=factor * of_sparse)
        for part, factor, of_sparse in zip(parts, factors, sparse, strict=True)
    )
    return ProjectionPlan(kind, tuple(weighted))


def _part(opt: OptConfig, kind: ProjectionKind, prefix: str) -> ProjectionPart:
    values = {name: getattr(opt, prefix + name) for name in PART_OPTIONS[kind]}
    rank = values.get("rank")
    if opt.naive_galore and isinstance(rank, tuple):
        raise ConfigError(
            f"opt.{prefix}rank: got {show(rank)}, expected a number in (0, 1] or an integer >= 1 "
            "with opt.naive_galore: a matrix has one rank"
        )
    if not prefix and kind != "low_rank":
        values["scale_by_mask_ratio"] = opt.scale_by_mask_ratio
    return ProjectionPart(kind, **values)
