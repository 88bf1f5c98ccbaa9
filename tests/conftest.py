"""Run-time checks of annotated arrays, and what several test files share."""

import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path

# Eight host devices for the sharding tests. The rest is for speed: the suite's time is the
# compiler's, its arrays are tiny. All must be set before the first use of JAX.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

# The suite builds the same programs many times (train.py started anew, single operations in every
# file): compile them once.
_CACHE = tempfile.TemporaryDirectory(prefix="tensorgrad-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("tensorgrad_jax", "beartype.beartype")


@pytest.fixture
def unchecked():
    """Switch the checks off: wrong arguments are to meet the library's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs():
    """Forget the programs of a file when it is done: of all files they are gigabytes a worker."""
    yield
    jax.clear_caches()


# Programs that recorded the golden vectors, with packages that the tests do without.
collect_ignore = ["golden"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

# The half of the suite that `make test-newest` runs: what depends most on the versions of Python,
# JAX (what reads its programs above all), Flax, Optax, Grain and Orbax for its seconds. Of these
# files, the tests named below take long for what they add.
NEWEST = {
    "test_composability.py",
    "test_data_files.py",
    "test_data_layout.py",
    "test_data_sets.py",
    "test_export.py",
    "test_golden_trajectories.py",
    "test_independence.py",
    "test_models_golden.py",
    "test_per_example.py",
    "test_same_derivative.py",
    "test_train.py",
    "test_train_refusals.py",
    "test_training_config.py",
    "test_training_report.py",
    "test_warnings.py",
}
NOT_NEWEST = ("test_a_run_stopped_by_a_signal_continues_exactly[8]",)

# Tests that take long for what they add to the others of their files. They run with `make
# test-newest` alone, so that `make test` stays below ten minutes and all run in every check.
THOROUGH = {
    "test_composability.py": (
        "test_masked_and_partition[tensorgrad]",
        "test_scan_eval_shape_and_struct_init[tensorgrad]",
        "test_sharded_parameters_have_stable_shardings[tensorgrad]",
        "test_multi_steps_are_the_full_batch[tensorgrad]",
        "test_checkpoints_continue_exactly[tensorgrad]",
        "test_checkpoints_continue_exactly[subspace_momentum]",
        "test_scan_eval_shape_and_struct_init[subspace_momentum]",
        "test_scan_eval_shape_and_struct_init[tensor_muon]",
        "test_convergence_on_a_parabola[subspace_momentum]",
        "test_apply_if_finite_restores_everything[tensorgrad]",
    ),
    "test_docs.py": (
        "test_programs_run[docs/truegrad.md]",
        "test_programs_run[docs/oialr.md]",
        "test_programs_run[docs/how-to/own-projection.md]",
        "test_programs_run[docs/how-to/equinox.md]",
        "test_programs_run[docs/hessian.md]",
    ),
    "test_eight_bits.py": (
        "test_at_a_refresh_it_is_carried_over_as_float32_is[True]",
        "test_the_recommended_optimizer_trains_with_it",
        "test_at_a_refresh_it_is_carried_over_as_float32_is[False]",
    ),
    "test_everywhere.py": (
        "test_bfloat16_parameters_in_conditions[tensorgrad]",
        "test_entries_in_proportion_to_their_magnitudes_in_tensorgrad",
        "test_equinox_modules_with_holes[True-tensorgrad]",
        "test_explicit_mesh_axes[tensorgrad]",
        "test_flax_serialization_and_a_linen_train_state[tensorgrad]",
        "test_python_numbers_and_numpy_arrays_as_leaves[tensorgrad]",
        "test_bfloat16_parameters_in_conditions[projected_adamw]",
        "test_bfloat16_parameters_in_conditions[subspace_momentum]",
        "test_bfloat16_parameters_in_conditions[tensor_muon]",
        "test_equinox_modules_with_holes[True-subspace_momentum]",
        "test_equinox_modules_with_holes[False-subspace_momentum]",
        "test_equinox_modules_with_holes[False-tensor_muon]",
        "test_explicit_mesh_axes[subspace_momentum]",
        "test_flax_serialization_and_a_linen_train_state[subspace_momentum]",
        "test_python_numbers_and_numpy_arrays_as_leaves[subspace_momentum]",
        "test_equinox_modules_with_holes[False-tensorgrad]",
        "test_a_schedule_of_the_weight_decay[tensorgrad]",
        "test_explicit_mesh_axes[projected_adamw]",
    ),
    "test_examples.py": (
        "test_compress_5d",
        "test_fine_tune",
        "test_training",
        "test_own_loop",
    ),
    "test_export.py": (
        "test_optimizers[tensorgrad, gaps that grow]",
        "test_optimizers[tensor_muon, whole momentum]",
        "test_optimizers[subspace_momentum]",
        "test_projected_adamw[MatrixLowRank full]",
        "test_training_and_error_steps_of_every_precision[half]",
        "test_training_and_error_steps_of_every_precision[half, weights half]",
        "test_training_and_error_steps_of_every_precision[mixed, weights half]",
        "test_projected_adamw[Sum]",
        "test_projected_adamw[Tucker svd]",
        "test_projected_adamw[RandomProjection]",
        "test_projected_adamw[UnstructuredSparse randk]",
        "test_optimizers[tensorgrad]",
        "test_training_and_error_steps_of_every_precision[mixed]",
    ),
    "test_factored.py": ("test_momentum_in_bfloat16_is_half_as_large_also_of_complex_numbers",),
    "test_golden_projections.py": ("test_tucker_subspaces[10-real5d]",),
    "test_hessian.py": (
        "test_families_of_skerch_hold_its_tolerances",
        "test_forward_rules_of_the_operator_models_have_second_derivatives",
        "test_error_estimates_are_unbiased_and_hold_their_bounds",
        "test_nothing_warns_where_a_hessian_is_decomposed",
        "test_at_equal_products_lanczos_is_next_to_the_best_and_a_sketch_within_bounds",
        "test_singular_values_of_any_operator[True]",
        "test_families_of_matrices_are_recovered[lowrank-float32-0.0001-srft]",
    ),
    "test_hessian_files.py": (
        "test_a_worker_that_fails_is_told",
        "test_the_sequence_of_commands_ends_with_the_solution",
        "test_workers_of_one_machine_measure_and_solve",
        "test_the_log_of_a_solution_holds_what_the_papers_figures_need",
        "test_a_damaged_file_among_150_is_named_and_made_anew[nan]",
        "test_a_damaged_file_among_150_is_named_and_made_anew[another]",
        "test_a_damaged_file_among_150_is_named_and_made_anew[cut]",
        "test_the_job_script_says_what_is_not_set_and_measures_its_share",
    ),
    "test_hessian_skerch.py": (
        "test_its_tests_of_eigenvalues_hold[complex128-3e-08]",
        "test_its_tests_of_singular_values_hold[20-30-complex128-3e-08]",
        "test_its_tests_of_singular_values_hold[30-20-complex128-3e-08]",
        "test_its_tests_of_scree_bounds_hold[0.05-0.02]",
    ),
    "test_in_subspace.py": (
        "test_one_parameter_after_the_other_needs_less_memory",
        "test_tensorgrad_options_change_the_update",
        "test_an_update_needs_little_more_than_one_tensor[bfloat16]",
        "test_the_order_of_work_does_not_change_the_result[True]",
    ),
    "test_models_factored.py": (
        "test_bfloat16_products_stay_as_near_as_those_of_the_array[half-grid]",
        "test_bfloat16_products_stay_as_near_as_those_of_the_array[mixed-modes]",
        "test_bfloat16_products_stay_as_near_as_those_of_the_array[mixed-grid]",
        "test_every_order_is_the_convolution_with_the_weight[grid-1-fft-False]",
        "test_a_jacobian_by_forward_mode",
        "test_an_operator_trains_factors_and_cores[False]",
        "test_coarse_grids_and_the_shift_of_the_reference[False]",
        "test_every_order_is_the_convolution_with_the_weight[grid-2-matrix-False]",
    ),
    "test_models_forward_mode.py": (
        "test_derivatives_are_those_of_the_float32_model[recomputed mixed]",
        "test_derivatives_are_those_of_the_float32_model[recomputed]",
        "test_derivatives_are_those_of_the_float32_model[half weights]",
        "test_derivatives_are_those_of_the_float32_model[half]",
    ),
    "test_models_layers.py": ("test_low_rank_adapters_are_the_merged_kernel[lora_linear-full]",),
    "test_models_properties.py": (
        "test_activation_checkpoint_saves_memory_and_keeps_gradients",
        "test_gradients_under_shard_map",
        "test_derivatives_are_those_of_the_function[convolution]",
    ),
    "test_models_stacked.py": (
        "test_stacked_layers_are_updated_like_single_ones[projected_adamw]",
    ),
    "test_oialr_axes.py": (
        "test_a_subspace_of_other_parameters_is_no_matter",
        "test_a_history_tells_of_every_axis_by_itself",
    ),
    "test_oialr_controller.py": (
        "test_any_optax_state_is_carried[clip]",
        "test_any_optax_state_is_carried[multi]",
        "test_no_spike_behind_the_conversion[100]",
        "test_shapes_that_stay_compile_one_program",
        "test_no_spike_behind_the_conversion[300]",
        "test_any_optax_state_is_carried[inject]",
        "test_any_optax_state_is_carried[adamax]",
    ),
    "test_oialr_layers.py": (
        "test_a_run_resumed_across_rank_changes_is_the_run[zero]",
        "test_a_wrapped_model_trains_through_conversion_and_checks",
        "test_layers_of_ones_own_are_their_own",
        "test_masked_and_sliced_runs_agree",
    ),
    "test_oialr_study.py": ("*",),
    "test_oialr_tensors.py": (
        "test_a_check_turns_factors_and_cuts",
        "test_an_operator_trains_with_cores[adamw]",
    ),
    "test_orthogonalize.py": (
        "test_a_core_of_full_rank_is_the_whole_momentum",
        "test_a_weight_of_what_lies_outside_compresses_the_momentum_after_every_step[True]",
    ),
    "test_own_projection.py": (
        "test_it_trains_in_every_composition[drop-bfloat16-nested]",
        "test_it_trains_in_every_composition[drop-bfloat16-sum]",
        "test_it_trains_in_every_composition[drop-complex-sum]",
        "test_it_trains_in_every_composition[drop-stacked-sum]",
        "test_it_trains_in_every_composition[drop-stacked-residual]",
        "test_it_trains_in_every_composition[drop-stacked-residual, first]",
        "test_it_trains_in_every_composition[pass-bfloat16-sum]",
        "test_it_trains_in_every_composition[pass-complex-nested]",
        "test_it_trains_in_every_composition[pass-stacked-nested]",
        "test_it_trains_in_every_composition[pass-stacked-residual]",
        "test_it_trains_in_every_composition[pass-stacked-residual, first]",
        "test_it_trains_in_every_composition[pass-stacked-sum]",
        "test_it_trains_in_every_composition[pass-pair-nested]",
        "test_it_trains_in_every_composition[pass-real-nested]",
    ),
    "test_per_example.py": (
        "test_squares_are_those_of_explicit_gradients[attention-auto]",
        "test_squares_are_those_of_explicit_gradients[encoder-auto]",
        "test_squares_are_those_of_explicit_gradients[fno-auto]",
        "test_squares_are_those_of_explicit_gradients[fno, norm, padding, fft, checkpoint-auto]",
        "test_squares_are_those_of_explicit_gradients[fno, separable-auto]",
        "test_squares_are_those_of_explicit_gradients[recurrent-auto]",
        "test_stack_and_features[1-exact-encoder]",
        "test_stack_and_features[2-auto-encoder]",
        "test_squares_are_those_of_explicit_gradients[recurrent-exact]",
        "test_squares_are_those_of_explicit_gradients[scan over layers-auto]",
        "test_stack_and_features[1-auto-encoder]",
        "test_products_with_few_positions_are_squared_by_their_factors",
        "test_squares_are_those_of_explicit_gradients[conv groups-auto]",
        "test_squares_are_those_of_explicit_gradients[rest-auto]",
    ),
    "test_per_example_features.py": (
        "test_features_by_kronecker_products[encoder-auto]",
        "test_features_by_kronecker_products[fno-auto]",
        "test_features_by_slabs[fno]",
        "test_peak_memory_does_not_hold_examples_times_parameters[rademacher]",
        "test_peak_memory_does_not_hold_examples_times_parameters[sjlt]",
    ),
    "test_precision.py": (
        "test_first_moments_in_bfloat16_follow_the_float32_ones",
        "test_bfloat16_models_are_near_the_float32_model[mixed-tanh-group_norm]",
        "test_bfloat16_models_are_near_the_float32_model[half-half]",
    ),
    "test_projections.py": (
        "test_jit_and_vmap_change_nothing[nested]",
        "test_jit_and_vmap_change_nothing[random]",
        "test_more_rounds_and_a_warm_start_improve_the_randomized_method",
        "test_squares_are_transported_as_expected_variances[random-rademacher]",
        "test_squares_are_transported_as_expected_variances[random-sjlt]",
        "test_a_random_projection_does_not_see_the_tensor",
        "test_projections_commute_with_conjugation[tucker-hooi]",
        "test_projections_commute_with_conjugation[tucker-svd]",
        "test_lift_and_project_are_adjoint_and_right_on_average[random-sjlt]",
        "test_complement_is_what_the_lift_without_weights_leaves_over[sum]",
        "test_complement_is_what_the_lift_without_weights_leaves_over[residual-weights]",
        "test_complement_is_what_the_lift_without_weights_leaves_over[two-low-rank]",
        "test_complement_is_what_the_lift_without_weights_leaves_over[residual-swapped]",
        "test_transport_is_projection_of_the_lifted_part[tucker-hooi]",
    ),
    "test_properties.py": ("test_projections",),
    "test_random_matrices.py": (
        "test_slabs_of_rows_add_up[kron]",
        "test_slabs_of_rows_add_up[srft-blocks]",
        "test_tiles_of_transforms_change_nothing[60]",
        "test_batches_change_nothing[srft-blocks]",
        "test_batches_change_nothing[kron]",
        "test_tiles_change_no_bit[1-sjlt]",
        "test_tiles_change_no_bit[50-dense]",
        "test_tiles_change_no_bit[50-sjlt]",
        "test_tiles_change_no_bit[7-sjlt]",
        "test_slabs_of_rows_add_up[rademacher]",
        "test_single_columns_are_those_of_the_matrix[rademacher]",
        "test_tiles_change_no_bit[1-dense]",
        "test_batches_change_nothing[rademacher]",
        "test_batches_change_nothing[sjlt]",
        "test_the_transpose_is_the_adjoint[kron]",
        "test_tiles_of_transforms_change_nothing[1]",
    ),
    "test_same_derivative.py": (
        "test_features_of_an_operator[coarse-matrix]",
        "test_features_of_an_operator[1-D-matrix]",
        "test_features_of_an_operator[1-D-fft]",
        "test_features_of_an_operator[2-D-matrix]",
        "test_features_of_an_operator[coarse-fft]",
        "test_gradients_of_an_operator[options1]",
        "test_peak_memory_of_an_operators_features",
    ),
    "test_sizes.py": (
        "test_updates_are_as_large_as_adamws_whatever_the_gap[complex-transport-composite]",
        "test_match_size_makes_the_inner_optimizers_size[projection1-spec0]",
        "test_match_size_makes_the_inner_optimizers_size[projection0-spec1]",
        "test_a_pair_at_full_budget_gets_what_optax_makes_of_its_numbers[inner1]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[pair-reset-composite]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[real-reset-composite]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[real-transport-sparse 25%]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[real-reset-sparse 25%]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[real-reset-Tucker 25%]",
        "test_match_size_makes_the_inner_optimizers_size[projection1-spec1]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[pair-transport-composite]",
        "test_updates_are_as_large_as_adamws_whatever_the_gap[real-transport-Tucker 25%]",
    ),
    "test_subspace_muon.py": (
        "test_large_tensors_are_handled_one_by_one",
        "test_channels_need_not_be_the_last_axes",
        "test_polar_factors_have_the_size_that_is_asked_for[0.25]",
    ),
    "test_train.py": (
        "test_a_killed_run_continues_exactly",
        "test_a_run_stopped_by_a_signal_continues_exactly[2]",
        "test_a_run_stopped_by_a_signal_continues_exactly[5]",
        "test_half_precision",
    ),
    "test_train_grids.py": (
        "test_every_test_resolution_gets_its_errors_and_its_picture[1-16-tests0]",
    ),
    "test_train_low_rank.py": ("*",),
    "test_training_build.py": ("test_a_batch_in_halves_makes_the_same_step",),
    "test_training_loop.py": ("test_fitting_on_is_fitting_at_once",),
    "test_trak_projectors.py": (
        "test_all_classes_share_one_matrix[normal]",
        "test_all_classes_share_one_matrix[rademacher]",
    ),
    "test_trak_run.py": (
        "test_every_kind[kron]",
        "test_the_hessian_of_a_run_is_measured",
        "test_every_kind[sjlt]",
        "test_every_kind[normal]",
        "test_every_kind[srft]",
        "test_runs_are_averaged",
        "test_scores_are_those_of_whole_gradients",
    ),
    "test_trak_scores.py": (
        "test_features_of_a_backward_pass_are_those_of_gradients[chunked]",
        "test_features_of_a_backward_pass_are_those_of_gradients[<lambda>4]",
    ),
    "test_truegrad_subspace.py": (
        "test_train_py_learns_with_squares_of_samples[tensorgrad]",
        "test_train_py_learns_with_squares_of_samples[adamw]",
    ),
}


def pytest_configure(config):
    """Notice a file that was renamed, rather than leave it out."""
    missing = sorted(name for name in NEWEST if not (Path(__file__).parent / name).is_file())
    if missing:
        raise pytest.UsageError(f"tests/conftest.py: NEWEST has {missing}, which are not there")


def pytest_sessionstart(session):
    """Say which versions the result holds for."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not hasattr(session.config, "workerinput"):
        versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        reporter.write_line(f"Python {platform.python_version()}, {', '.join(versions)}")


def pytest_collection_modifyitems(items):
    """Start with the runs of train.py, the file that takes longest."""
    for item in items:
        if item.path.name in NEWEST and item.name not in NOT_NEWEST:
            item.add_marker(pytest.mark.newest)
        # A name without brackets stands for all cases of a test, * for all tests of a file.
        names = ("*", item.name, item.name.partition("[")[0])
        if any(name in THOROUGH.get(item.path.name, ()) for name in names):
            item.add_marker(pytest.mark.thorough)
    items.sort(key=lambda item: item.path.name != "test_train.py")
