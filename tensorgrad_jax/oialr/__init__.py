"""OIALR."""

from tensorgrad_jax.oialr.history import History as History
from tensorgrad_jax.oialr.history import stability_report as stability_report
from tensorgrad_jax.oialr.trees import param_report as param_report
