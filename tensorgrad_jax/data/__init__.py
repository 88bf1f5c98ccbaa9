"""Data sets: generating, storing, reading, normalising and batching them."""

from tensorgrad_jax.data.burgers import solve_burgers as solve_burgers
from tensorgrad_jax.data.convert import convert as convert
from tensorgrad_jax.data.darcy import solve_darcy as solve_darcy
from tensorgrad_jax.data.generate import generate_burgers as generate_burgers
from tensorgrad_jax.data.generate import generate_darcy as generate_darcy
from tensorgrad_jax.data.generate import generate_navier_stokes as generate_navier_stokes
from tensorgrad_jax.data.hdf5 import FieldSource as FieldSource
from tensorgrad_jax.data.hdf5 import open_dataset as open_dataset
from tensorgrad_jax.data.loaders import batches as batches
from tensorgrad_jax.data.loaders import n_batches as n_batches
from tensorgrad_jax.data.navier_stokes import solve_navier_stokes as solve_navier_stokes
from tensorgrad_jax.data.normalizers import UnitGaussianNormalizer as UnitGaussianNormalizer
from tensorgrad_jax.data.random_fields import periodic_gaussian_field as periodic_gaussian_field
from tensorgrad_jax.data.samples import DataError as DataError
