"""What a processor or a compiler asks for, and the mathematics does not.

In exact arithmetic the functions here do nothing: they return their argument, or apply the function
that they are given. What they change is when something is computed, how much of it at a time, and
in which type it is moved. Each was measured on one backend, XLA's for CPUs, and does so there
alone; every other backend gets the plain operation (`jax.lax.platform_dependent`, which also holds
for programs that are exported from a CPU).

A trick stays while it is worth 3% of a training step or 5% of its peak memory; the list, with the
numbers and what was taken out, is in docs/measurements.md. This room imports nothing of ours.
"""
