"""x."""
from tensorgrad_jax.per_example.engine import per_example as per_example, report as report
from tensorgrad_jax.per_example.reductions import InSubspace, Project, Squares, Stack
