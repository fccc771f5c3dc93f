"""The conformance kit: it passes what is right, and each check catches the error that it is there for."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import broken_losses as losses
import broken_others as others
import broken_samplers as samplers
import correct_energies as energies
import correct_losses
import correct_samplers
import numpy as np
import pytest
import torch

from ebm_plugin_cd.loss import ContrastiveDivergence
from ebmcore import BaseContrastiveDivergence, BaseLoss, BaseSampler, host
from ebmcore.cli import main
from ebmcore.errors import UsageError
from ebmcore.host.manager import get_manager
from ebmcore.testing import Boltzmann, ExactGaussian, Identity, SiteGibbs, checks, conformance, run_checks, summary
from ebmcore.testing.cases import LossCase
from ebmcore.testing.runner import find, load_check, run_check

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).parent / "broken_recipes"

# Which error each check is there to catch. Every check has at least one.
WRONG = {
    "loss": [
        (losses.Keywords, "check_unknown_keywords_are_rejected"),
        (losses.Lambda, "check_it_can_be_pickled"),
        (losses.SameOnAllRanks, "check_another_generator_gives_another_result"),
        (losses.BatchStatistics, "check_sampling_moves_no_batch_statistics"),
        (losses.LeftFrozen, "check_no_trace_is_left_on_the_energy"),
        (losses.Unfrozen, "check_no_trace_is_left_on_the_energy"),
        (losses.Swallowing, "check_an_energy_that_raises_is_not_swallowed"),
        (losses.MovesTheBatch, "check_inputs_are_unchanged"),
        (losses.SumOverLastAxis, "check_images_equal_flattened"),
        (losses.Waiting, "check_nothing_waits_for_the_device"),
        (losses.MaskIndex, "check_nothing_waits_for_the_device"),
        (losses.Hoarding, "check_memory_stays_flat"),
        (losses.TupleLess, "check_it_returns_a_finite_scalar_loss"),
        (losses.PerExample, "check_it_returns_a_finite_scalar_loss"),
        (losses.LeftFrozen, "check_gradients_reach_the_energy_and_nothing_else"),
        (losses.Attached, "check_negatives_are_detached"),
        (losses.EvalNegatives, "check_data_and_negatives_are_scored_in_one_mode"),
        (losses.Noise, "check_chains_start_at_a_copy_of_the_data"),
        (losses.Alias, "check_chains_start_at_a_copy_of_the_data"),
        (losses.OneTransition, "check_it_makes_k_transitions"),
        (losses.FixedBatch, "check_the_first_call_and_any_batch_size_work"),
        (losses.PlainMetrics, "check_metrics_are_detached_scalars"),
        (losses.OwnCall, "check_forward_hooks_fire"),
        (losses.CachedDtype, "check_to_moves_everything"),
        (losses.WithinReturn, "check_to_moves_everything"),
        (losses.LateBuffer, "check_the_state_of_a_used_loss_loads_into_a_fresh_one"),
        (losses.Twice, "check_the_model_stands_once_in_the_state"),
        (losses.Unsaved, "check_resumed_is_not_stopped"),
        (losses.Shared, "check_copies_are_independent"),
        (losses.SamplerFirst, "check_the_constructor_takes_the_energy_first"),
        (losses.Summed, "check_two_processes_give_the_gradient_of_the_whole_batch"),
        (losses.SameOnAllRanks, "check_two_processes_give_the_gradient_of_the_whole_batch"),
        (losses.SignFlip, "check_the_gradient_is_that_of_the_energy_gap"),
        (losses.Scaled, "check_the_gradient_is_that_of_the_energy_gap"),
        (losses.Graph, "check_forward_gives_the_loss_of_its_negatives"),
        (losses.Regularised, "check_a_constant_added_to_the_energy_changes_nothing"),
        (losses.Doubled, "check_the_regulariser_is_exact_and_reported_apart"),
        (losses.Scaled, "check_averaged_over_the_model_it_is_the_likelihood_gradient"),
        (losses.HalfStays, "check_exact_negatives_give_the_likelihood_gradient"),
        (losses.OneTransition, "check_the_bias_falls_as_the_second_eigenvalue_says"),
        (losses.NaNGradient, "check_the_gradient_is_that_of_the_energy_gap"),
        (losses.NaNGradient, "check_exact_negatives_give_the_likelihood_gradient"),
        (losses.ClampedLoss, "check_no_energy_and_no_gradient_is_too_large"),
        (losses.ClampedNegatives, "check_no_energy_and_no_gradient_is_too_large"),
        (losses.InitUnfrozen, "check_sampling_moves_no_batch_statistics"),
        (losses.Peeking, "check_sampling_moves_no_batch_statistics"),
        (losses.Peeking, "check_training_mode_is_for_what_is_trained_on"),
        (losses.PeekingScoreMatching, "check_training_mode_is_for_what_is_trained_on"),
        (losses.PartlyEval, "check_data_and_negatives_are_scored_in_one_mode"),
        (losses.RolledLabels, "check_each_example_is_scored_under_its_own_label"),
        (losses.OthersLabels, "check_each_example_is_scored_under_its_own_label"),
        (losses.TargetsAsConditions, "check_targets_never_reach_the_energy"),
        (losses.IgnoresTargets, "check_targets_never_reach_the_energy"),
        (losses.UnknownLabels, "check_what_it_declares_is_known"),
        (losses.UnknownExpectation, "check_expected_failures_name_checks_and_reasons"),
        (losses.Renamed, "check_it_keeps_each_option_under_its_own_name"),
        (losses.Stray, "check_gradients_reach_the_energy_and_nothing_else"),
        (losses.LeftOut, "check_every_parameter_is_in_one_group"),
        (losses.InTwoGroups, "check_every_parameter_is_in_one_group"),
        (losses.CompiledByTorch, "check_it_trains_after_compile"),
        (losses.UndeclaredScoreMatching, "check_it_differentiates_no_gradient"),
        (losses.MetricsReplaced, "check_metrics_of_the_whole_call_are_kept"),
        (losses.StepLost, "check_the_step_is_part_of_the_state"),
        (losses.HalfEnergies, "check_energies_are_those_of_the_energy"),
        (losses.BeginsUnfrozen, "check_the_sampler_receives_a_frozen_energy"),
        (losses.InitUnfrozen, "check_the_sampler_receives_a_frozen_energy"),
        (losses.StaleShortRun, "check_what_the_sampler_cached_is_up_to_date"),
        (losses.NotRefreshed, "check_what_the_sampler_cached_is_up_to_date"),
        (losses.ByAddress, "check_the_loss_depends_on_values_alone"),
        (losses.LabelsByAddress, "check_the_loss_depends_on_values_alone_with_labels"),
        (losses.Unnormalised, "check_weights_of_the_energy_gap_are_weights"),
        (losses.OwnConditions, "check_negatives_can_be_given_conditions"),
        (losses.Annealing, "check_the_sampler_stays_as_it_is"),
        (losses.KeywordLabelsLost, "check_labels_travel_with_their_chain"),
        (losses.RestartsKeepLabels, "check_labels_travel_with_their_chain"),
        (losses.GlobalRestarts, "check_the_global_random_state_is_untouched"),
        (losses.SameStart, "check_two_processes_give_the_gradient_of_the_whole_batch"),
        (losses.SummedScoreMatching, "check_two_processes_give_the_gradient_of_the_whole_batch"),
        (losses.Origin, "check_chains_are_allocated_as_the_contract_says"),
        (losses.NormalStart, "check_chains_start_in_the_state_space_of_the_energy"),
        (losses.Reused, "check_negatives_stay_as_they_were_returned"),
        (losses.LiveNegatives, "check_negatives_stay_as_they_were_returned"),
        (losses.Undeclared, "check_chains_persist_only_where_declared"),
        (losses.OtherFamily, "check_the_family_is_that_of_its_base"),
        (losses.EveryTenth, "check_nothing_waits_for_the_device"),
        (losses.ToTheHost, "check_nothing_waits_for_the_device"),
        (losses.WeakScoreMatching, "check_it_fits_a_gaussian"),
        (losses.SignFlip, "check_it_fits_a_gaussian"),
        (losses.WrongScoreMatching, "check_it_fits_a_gaussian"),
        (losses.OneDirection, "check_it_fits_a_gaussian"),
        (losses.ScaledLaplacian, "check_it_fits_a_gaussian"),
        (losses.FlippedDenoising, "check_it_fits_a_gaussian"),
        (losses.UndeclaredSmoothing, "check_it_fits_a_gaussian"),
        (losses.RatioLost, "check_it_fits_a_gaussian"),
        (losses.HalfOdds, "check_it_fits_a_boltzmann_machine"),
        (losses.Stands, "check_a_chain_goes_on_where_it_stopped"),
        (losses.FirstInFirstOut, "check_no_chain_is_lost_or_doubled"),
        (losses.WithReplacement, "check_no_chain_is_drawn_twice"),
        (losses.DeadSlots, "check_every_chain_is_drawn_equally_often"),
        (losses.Resets, "check_a_smaller_last_batch_keeps_the_chains"),
        (losses.NotLive, "check_chains_are_allocated_as_the_contract_says"),
        (losses.NudgedRestarts, "check_a_restart_is_a_fresh_sample_of_the_initial_distribution"),
        (losses.RareRestarts, "check_chains_restart_as_often_as_asked"),
        (losses.Renumbered, "check_ids_and_ages_follow_the_chains"),
        (losses.LabelsLost, "check_labels_travel_with_their_chain"),
        (losses.PositionsOnly, "check_the_whole_state_of_the_sampler_persists"),
        (losses.NotRefreshed, "check_the_whole_state_of_the_sampler_persists"),
        (losses.Quantised, "check_chains_keep_their_digits"),
        (losses.LosesChains, "check_no_chain_is_lost_when_the_energy_raises"),
        (losses.Constant, "check_a_lost_chain_has_no_weight"),
        (losses.ZeroFilled, "check_a_lost_chain_has_no_weight"),
        (losses.KeepsNaN, "check_a_lost_chain_has_no_weight"),
        (losses.AlwaysANumber, "check_losing_every_chain_is_an_error"),
    ],
    "sampler": [
        (samplers.Keywords, "check_unknown_keywords_are_rejected"),
        (samplers.Lambda, "check_it_can_be_pickled"),
        (samplers.Renamed, "check_it_keeps_each_option_under_its_own_name"),
        (samplers.Singleton, "check_it_can_be_copied"),
        (samplers.Elsewhere, "check_it_works_in_a_spawned_process"),
        (samplers.GlobalNoise, "check_the_global_random_state_is_untouched"),
        (samplers.GlobalPython, "check_the_global_random_state_is_untouched"),
        (samplers.Unseeded, "check_the_same_generator_gives_the_same_result"),
        (samplers.Reseeded, "check_another_generator_gives_another_result"),
        (samplers.NeedsGrad, "check_it_works_under_no_grad"),
        (samplers.NoDriver, "check_inference_mode_is_refused"),
        (samplers.Training, "check_no_trace_is_left_on_the_energy"),
        (samplers.Swallowing, "check_an_energy_that_raises_is_not_swallowed"),
        (samplers.InPlace, "check_inputs_are_unchanged"),
        (samplers.LastAxis, "check_images_equal_flattened"),
        (samplers.Single, "check_float64_stays_float64"),
        (samplers.HalfUnderAutocast, "check_bfloat16_autocast"),
        (samplers.Waiting, "check_nothing_waits_for_the_device"),
        (samplers.Listing, "check_nothing_waits_for_the_device"),
        (samplers.Hoarding, "check_memory_stays_flat"),
        (samplers.OneNumber, "check_a_step_returns_a_state_and_information_per_chain"),
        (samplers.Hiding, "check_a_step_is_pure"),
        (samplers.Hiding, "check_chains_resume_from_their_state"),
        (samplers.InPlace, "check_a_step_is_pure"),
        (samplers.Coupled, "check_chains_do_not_know_each_other"),
        (samplers.UndeclaredRecord, "check_refresh_keeps_positions_and_renews_what_was_cached"),
        (samplers.StaleCache, "check_refresh_keeps_positions_and_renews_what_was_cached"),
        (samplers.StaleAfterRejection, "check_what_is_cached_follows_the_chain"),
        (samplers.Constant, "check_a_chain_without_energy_is_given_up_and_the_others_go_on"),
        (samplers.Accepting, "check_a_proposal_without_energy_is_rejected"),
        (samplers.Breaking, "check_compiled_steps_are_the_steps"),
        (samplers.Undeclared, "check_a_sampler_says_what_it_samples"),
        (samplers.Forgetful, "check_a_memory_is_declared"),
        (samplers.StuckBelow, "check_the_transition_matrix_leaves_the_target_invariant"),
        (samplers.MeanField, "check_the_transition_matrix_leaves_the_target_invariant"),
        (samplers.WrongSwap, "check_the_law_of_the_whole_state_has_the_target_in_it"),
        (samplers.Sequential, "check_the_transition_matrix_is_in_detailed_balance"),
        (samplers.MeanField, "check_exact_samples_of_a_discrete_target_stay_exact"),
        (samplers.WithoutReverse, "check_exact_samples_of_a_density_stay_exact"),
        (samplers.ClippedProposal, "check_exact_samples_of_a_density_stay_exact"),
        (samplers.ColdAcceptance, "check_exact_samples_of_a_density_stay_exact"),
        (samplers.LastAxis, "check_moments_on_gaussians"),
        (samplers.OneAfterTheOther, "check_steps_are_in_detailed_balance"),
        (samplers.SharedNoise, "check_the_bias_on_gaussians_is_the_predicted_one"),
        (samplers.UniformNoise, "check_the_bias_on_gaussians_is_the_predicted_one"),
        (samplers.LargerSteps, "check_the_bias_on_gaussians_is_the_predicted_one"),
        (samplers.HalfAcceptance, "check_acceptance_is_not_in_half_precision"),
        (samplers.TaylorAcceptance, "check_exact_samples_of_a_density_stay_exact"),
        (samplers.Coin, "check_a_sampler_says_what_it_samples"),
        (samplers.NoRate, "check_a_step_returns_a_state_and_information_per_chain"),
        (samplers.OwnSample, "check_no_trace_is_left_on_the_energy"),
        (samplers.OwnSample, "check_the_global_random_state_is_untouched"),
        (samplers.Undamped, "check_the_bias_on_gaussians_is_the_predicted_one"),
        (samplers.TooHot, "check_the_bias_on_gaussians_is_the_predicted_one"),
        (samplers.HiddenTemperature, "check_the_noise_follows_from_step_size_and_temperature"),
        (samplers.Clipped, "check_nothing_is_clipped_unless_asked"),
        (samplers.SlowStart, "check_it_finds_the_target_from_a_bad_start"),
        (samplers.StuckBelow, "check_it_finds_the_target_from_a_bad_start"),
    ],
    "energy": [
        (others.Column, "check_it_returns_one_energy_for_each_example"),
        (others.BatchDependent, "check_it_returns_one_energy_for_each_example"),
        (others.Detached, "check_it_is_differentiable"),
        (others.DetachedLabel, "check_it_is_differentiable"),
        (others.InfiniteSlope, "check_it_is_differentiable"),
        (others.PathDetached, "check_its_gradients_are_those_of_its_values"),
        (others.Unused, "check_its_gradients_are_those_of_its_values"),
        (others.ClampsExamples, "check_evaluating_it_changes_nothing"),
        (others.Counting, "check_evaluating_it_changes_nothing"),
        (others.Noisy, "check_evaluating_it_changes_nothing"),
        (others.Training, "check_evaluating_it_changes_nothing"),
        (others.SinglePrecision, "check_it_moves_to_float64"),
        (others.WrongGradient, "check_value_and_grad_agree_with_forward"),
        (others.WrongConditional, "check_the_conditionals_agree_with_the_energy"),
        (others.ColdConditional, "check_the_conditionals_agree_with_the_energy_at_each_temperature"),
        (others.ProbabilitiesForLogits, "check_hidden_logits_are_those_of_its_draws"),
        (others.WrongTempering, "check_tempering_ends_at_the_energy"),
        (others.OneTemperature, "check_tempering_ends_at_the_energy"),
        (others.WrongNormaliser, "check_log_partition_is_the_sum_over_all_states"),
        (others.SingleNormaliser, "check_log_partition_is_the_sum_over_all_states"),
        (others.GreyStart, "check_chains_can_start_at_its_initial_distribution"),
    ],
    "dataset": [
        (others.Flat, "check_it_holds_examples_of_its_shape"),
        (others.Integers, "check_it_holds_examples_of_its_shape"),
        (others.Signs, "check_it_lies_in_its_state_space"),
        (others.Unseeded, "check_it_is_the_same_each_time"),
    ],
    "metric": [
        (others.Tensors, "check_it_returns_named_numbers"),
        (others.Optimistic, "check_the_log_likelihood_is_the_exact_one"),
        (others.Late, "check_it_refuses_before_it_measures"),
        (others.Timid, "check_it_refuses_before_it_measures"),
        (others.Converting, "check_measuring_leaves_no_trace"),
    ],
    "observer": [
        (others.WithoutRun, "check_it_takes_every_event"),
        (others.Misspelt, "check_it_names_no_event_that_does_not_exist"),
        (others.Returning, "check_it_follows_a_run"),
        (others.NeedsDirectory, "check_it_follows_a_run"),
        (others.Littering, "check_it_changes_nothing_of_the_run"),
        (others.Freezing, "check_it_changes_nothing_of_the_run"),
        (others.Sampling, "check_it_changes_nothing_of_the_run"),
        (others.Ending, "check_it_changes_nothing_of_the_run"),
    ],
    "recipe": [
        (RECIPES / "a-list.yaml", "check_it_is_a_mapping_of_settings"),
        (RECIPES / "no-source.yaml", "check_it_is_a_mapping_of_settings"),
        (RECIPES / "unknown-option.yaml", "check_its_components_take_their_options"),
    ],
    "command": [
        (others.silent, "check_it_prints_help"),
        (others.failing, "check_it_prints_help"),
    ],
}
RAISING = {samplers.NeedsGrad, losses.FixedBatch, losses.CachedDtype, others.NeedsDirectory}
CASES = [(kind, wrong, name) for kind, pairs in WRONG.items() for wrong, name in pairs]


def name_of(target):
    return target.stem if isinstance(target, Path) else target.__name__


def component(kind, target):
    if kind == "recipe":  # the host knows it by a string and loads it as a path
        return SimpleNamespace(kind=kind, name=name_of(target), target=target)
    return host.Component(kind, name_of(target), target, "not installed", "")


@pytest.mark.parametrize(("kind", "wrong", "name"), CASES, ids=[f"{name_of(w)}-{name}" for _, w, name in CASES])
def test_check_catches_error(kind, wrong, name):
    """Each error is caught by its check, with a message that names the rule."""
    result = run_check(component(kind, wrong), name)
    assert result.outcome == "failed", result
    # Seen by the check and measured, not an accident on the way; a component that only raises is one that says so.
    assert isinstance(result.error, AssertionError) or wrong in RAISING, result
    rule, _, found = result.detail.partition(" But here: ")
    assert rule.endswith(".")
    assert found


def test_every_check_catches_an_error():
    known = {name for kind in checks.MODULES for name in checks.names(kind)}
    assert known == {name for _, _, name in CASES}


RIGHT = [
    cls
    for module in (correct_samplers, correct_losses)
    for cls in vars(module).values()
    if inspect.isclass(cls) and cls.__module__ == module.__name__ and issubclass(cls, BaseSampler | BaseLoss)
]


@pytest.mark.parametrize("cls", RIGHT, ids=lambda cls: cls.__name__)
def test_right_components_pass(cls):
    results = run_checks(cls)
    assert [r for r in results if r.outcome == "failed"] == []
    assert len([r for r in results if r.outcome == "passed"]) >= 20


@pytest.mark.parametrize("cls", [losses.Unlabelled, losses.UnlabelledPCD], ids=lambda cls: cls.__name__)
def test_dropped_labels_have_advice(cls):
    """The message says to hand *args and **kwargs on."""
    name = "check_labels_travel_with_their_chain" if cls.persistent else "check_each_example_is_scored_under_its_own_label"
    result = run_check(component("loss", cls), name)
    assert isinstance(result.error, AssertionError)
    assert "hand on *args and **kwargs" in result.detail


ENERGIES = [cls for cls in vars(energies).values() if inspect.isclass(cls) and cls.__module__ == energies.__name__]


@pytest.mark.parametrize("cls", ENERGIES, ids=lambda cls: cls.__name__)
def test_unusual_right_energies_pass(cls):
    results = [run_check(component("energy", cls), name) for name in checks.names("energy")]
    assert [r for r in results if r.outcome == "failed"] == []


def test_first_party_plugins_expect_no_failure():
    for plugin in (ROOT / "plugins").iterdir():
        if "entry-points" not in (plugin / "pyproject.toml").read_text():  # it brings no component
            continue
        (tests,) = plugin.glob("tests/test_*_conformance.py")
        assert f'\ntest_conformance = ebmcore.testing.conformance("{plugin.name}"' in tests.read_text()
        sources = [path.read_text() for path in plugin.glob("ebm_plugin_*/*.py")]
        assert not any("expected_failures" in source for source in sources)


def run_pytest(folder, *arguments, test=""):
    if test:
        (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder)]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)


ONE_LINE = 'import ebmcore.testing\ntest_conformance = ebmcore.testing.conformance("ebm-plugin-datasets:digits")\n'


def test_one_line_runs_each_check(tmp_path):
    """One line in a plugin's tests runs each check as a test."""
    done = run_pytest(tmp_path, "-v", test=ONE_LINE)
    assert done.returncode == 0, done.stdout
    assert "test_conformance[digits-check_it_is_the_same_each_time] PASSED" in done.stdout
    assert re.search(r"digits: 7 checks ran in [\d.]+ s, 7 passed, 0 did not apply", done.stdout)


def test_pytest_option_runs_checks(tmp_path):
    done = run_pytest(tmp_path, "-v", "--ebm-conformance", "ebm-plugin-datasets:digits", "--ebm-conformance", "rbm")
    assert done.returncode == 0, done.stdout
    assert "conformance[digits-check_it_is_the_same_each_time] PASSED" in done.stdout
    assert "conformance[rbm-check_it_is_differentiable] PASSED" in done.stdout
    assert "two-moons" not in done.stdout
    assert re.search(r"rbm: 16 checks ran in [\d.]+ s, 16 passed, 0 did not apply", done.stdout)


def test_summary_explains_what_did_not_apply(tmp_path):
    done = run_pytest(tmp_path, "--ebm-conformance", "mlp")
    assert "mlp: 9 checks ran" in done.stdout
    reason = (
        "check_value_and_grad_agree_with_forward did not apply: applies to energies with the capability SupportsValueAndGrad"
    )
    assert reason in done.stdout


def test_unknown_name_suggests_close_match(tmp_path):
    done = run_pytest(tmp_path, "--ebm-conformance", "ebm-plugin-dataset")
    assert done.returncode == 4
    assert "did you mean 'ebm-plugin-datasets'?" in done.stderr


def test_collection_imports_no_torch(tmp_path):
    """Collecting imports no torch, and the pytest plugin adds no fixture."""
    probe = "import sys\ndef pytest_collection_finish(session):\n    print('torch is', 'torch' in sys.modules)\n"
    (tmp_path / "conftest.py").write_text(probe)
    done = run_pytest(tmp_path, "--collect-only", "--ebm-conformance", "ebm-plugin-pcd", test=ONE_LINE)
    assert "conformance[pcd-check_no_chain_is_lost_or_doubled]" in done.stdout
    assert "test_conformance[digits-check_it_is_the_same_each_time]" in done.stdout
    assert "torch is False" in done.stdout
    assert not re.search(
        r"ebm\w*( --|\[)|ebmcore.testing", run_pytest(tmp_path, "--fixtures").stdout.partition("plugins:")[2]
    )


def test_failure_names_rule_and_distance(tmp_path):
    """A failure names the component, the check, its rule and how far off it is."""
    test = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "conformance")!r})
from broken_losses import Scaled
from ebmcore.host import Component
from ebmcore.testing.runner import Item
def test_it():
    Item(Component("loss", "scaled", Scaled, "x", "1"), "check_the_gradient_is_that_of_the_energy_gap").run(print)
"""
    done = run_pytest(tmp_path, test=test)
    assert done.returncode == 1
    assert "scaled breaks check_the_gradient_is_that_of_the_energy_gap: For given negatives, the gradient of" in done.stdout
    assert "along the right one it is 1.05 times as long" in done.stdout


class ExpectedScale(losses.Scaled):
    expected_failures = {"check_the_gradient_is_that_of_the_energy_gap": "scaled on purpose"}


def test_expected_failure_is_counted_apart():
    result = run_check(component("loss", ExpectedScale), *ExpectedScale.expected_failures)
    assert (result.outcome, result.detail) == ("failed as expected", "scaled on purpose")
    assert "1 failed as expected" in summary([result])[0]


def test_passing_expected_failure_fails():
    class Right(ContrastiveDivergence):
        expected_failures = ExpectedScale.expected_failures

    result = run_check(component("loss", Right), *Right.expected_failures)
    assert result.outcome == "failed"
    assert "(scaled on purpose), but it passed: remove it from the list" in result.detail


def test_inapplicable_expected_failure_fails():
    class Right(ContrastiveDivergence):
        expected_failures = {"check_no_chain_is_lost_or_doubled": "no chains"}

    result = run_check(component("loss", Right), *Right.expected_failures)
    assert result.outcome == "failed"
    assert "but it applies to persistent losses" in result.detail


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"check_it_is_the_same": "typo"}, "'check_it_is_the_same' is not a check; similar names: check_"),
        ({"check_it_can_be_pickled": ""}, "must say why"),
    ],
)
def test_expected_failures_are_checked(expected, message):
    cls = type("Declared", (ContrastiveDivergence,), {"expected_failures": expected})
    result = run_check(component("loss", cls), "check_expected_failures_name_checks_and_reasons")
    assert message in result.detail


EXPECTING_DATASET = """
class Numbers:
    expected_failures = {"check_it_lies_in_its_state_space": "spins, on purpose"}
    shape, state_space = (2,), "binary"
    def __init__(self):
        import torch
        self.train = self.test = torch.ones(4, 2) * 2
class Plugin:
    import ebmcore
    @ebmcore.hookimpl
    def ebmcore_register(self, register):
        register.dataset("numbers", Numbers)
"""


def test_both_roads_read_expected_failures(tmp_path):
    """The command ends with status 0 where only expected failures fail, and pytest reports them as xfailed."""
    (tmp_path / "numbers_plugin.py").write_text(EXPECTING_DATASET)
    common = "import ebmcore, numbers_plugin\nwith ebmcore.temporary_plugin(numbers_plugin.Plugin(), 'numbers-plugin'):\n"
    command = common + "    from ebmcore.cli import main\n    raise SystemExit(main(['check', 'numbers']))\n"
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 failed as expected" in done.stdout
    test = (
        "import ebmcore, ebmcore.testing, numbers_plugin\n"
        "plugin = ebmcore.temporary_plugin(numbers_plugin.Plugin(), 'numbers-plugin')\n"
        "plugin.__enter__()\n"
        "test_conformance = ebmcore.testing.conformance('numbers-plugin')\n"
    )
    done = run_pytest(tmp_path, "-p", "no:randomly", test=test)
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout


def test_options_come_before_example_options():
    class Wide(Identity):
        example_options = {"width": 1.0}

        def __init__(self, width: float):
            assert width == 2.0
            self.width = width

    name = "check_it_can_be_copied"
    assert run_check(component("sampler", Wide), name, {"width": 2.0}).outcome == "passed"
    assert run_check(component("sampler", Wide), name).outcome == "failed"


def test_plain_data_names_kit_samplers():
    class Inner(Identity):
        example_options = {"inner": "ebmcore.testing:SiteGibbs"}

        def __init__(self, inner):
            assert isinstance(inner, SiteGibbs)

    assert run_check(component("sampler", Inner), "check_it_can_be_copied").outcome == "passed"


def test_options_of_unknown_component_fail():
    with pytest.raises(UsageError, match="'nothing', which is none of the components here: digits"):
        run_checks("digits", options={"nothing": {}})


def test_every_failure_has_message():
    """An error without a text shows its type and its line."""

    class Bare(Identity):
        def step(self, energy, state, *, generator=None):
            raise AssertionError

    found = [r.detail for r in run_checks(Bare) if r.outcome == "failed"]
    assert found
    assert all(detail.rpartition(" But here: ")[2].strip() for detail in found)
    assert any(re.search(r"AssertionError at .*test_conformance.py:\d+: raise AssertionError", detail) for detail in found)


def test_kit_has_no_bare_assertion():
    for path in (ROOT / "ebmcore/testing").rglob("*.py"):
        bare = [
            node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert) and not node.msg
        ]
        assert not bare, f"{path.name}, lines {bare}: say in words what was expected"


def test_exact_gaussian_names_its_energies():
    with pytest.raises(UsageError, match="Quadratic and Gaussian of ebmcore.testing, not Boltzmann"):
        ExactGaussian().sample(Boltzmann(2), torch.zeros(1, 2), 1)


def denoising(value):
    return type(f"Sigma{value}", (correct_losses.DenoisingScoreMatching,), {"example_options": {"sigma": value}})


def noise(value):
    return type(f"Noise{value}", (correct_losses.NoiseContrastive,), {"example_options": {"noise_std": value}})


FITTING = [*map(denoising, (1.0, 0.5, 0.2, 0.1, 0.05)), *map(noise, (1.5, 2.0, 3.0, 6.0, 10.0))]


@pytest.mark.parametrize("cls", FITTING, ids=lambda cls: cls.__name__)
def test_right_losses_fit_at_any_noise(cls):
    assert run_check(component("loss", cls), "check_it_fits_a_gaussian").outcome == "passed"


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (losses.WrongScoreMatching, "the sign of the energy is wrong"),
        (losses.SignFlip, "runs away from the data: is the sign of the loss wrong?"),
        (losses.ScaledLaplacian, "the scale is wrong: the precision is 0.5"),
        (losses.OneDirection, "the direction is wrong"),
        (losses.UndeclaredSmoothing, "the error depends on the variance: a loss that smooths the data"),
        (losses.RatioLost, "nats: do the logits contain the ratio of noise to data?"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fit_names_sign_scale_or_direction(cls, message):
    assert message in run_check(component("loss", cls), "check_it_fits_a_gaussian").detail


def test_exiting_component_fails():
    """A component that ends the interpreter fails, and the kit continues."""

    class Exiting(SiteGibbs):
        def step(self, energy, state, *, generator=None):
            sys.exit("gone")

    failed = [r for r in run_checks(Exiting) if r.outcome == "failed"]
    assert any("SystemExit: gone" in r.detail for r in failed)


def test_unloadable_component_fails_once(monkeypatch):
    broken = host.Component("loss", "broken", "no_such_module:Loss", "ebm-plugin-cd", "1")
    monkeypatch.setattr("ebmcore.testing.runner.find", lambda target: [broken])
    monkeypatch.setattr("ebmcore.host.load", lambda kind, name: get_manager().load(broken))
    (result,) = run_checks("broken")
    assert (result.check, result.outcome) == ("it can be loaded", "failed")
    assert "no_such_module" in result.detail


def test_component_without_checks_fails(monkeypatch):
    monkeypatch.setattr("ebmcore.testing.checks.MODULES", {"sampler": ("gradients",)})
    monkeypatch.setattr("ebmcore.testing.rules.Check.obstacle", lambda check, case: "applies to nothing")
    last = run_checks(Identity)[-1]
    assert last.outcome == "failed"
    assert "no check applies to it" in last.detail


def test_check_keeps_global_random_state():
    before = torch.get_rng_state()
    run_check(component("sampler", samplers.GlobalNoise), "check_the_same_generator_gives_the_same_result")
    assert torch.equal(before, torch.get_rng_state())


def test_class_can_be_checked():
    """A class that is not installed can be checked."""
    assert {r.outcome for r in run_checks(Identity)} == {"passed", "did not apply"}


def test_uncheckable_target_has_advice():
    with pytest.raises(UsageError, match="neither a loss, a sampler nor an energy"):
        find(dict)
    with pytest.raises(UsageError, match="did you mean 'pcd'"):
        find("pdc")
    with pytest.raises(UsageError, match="'ebm-plugin-nothing'"):
        conformance("ebm-plugin-nothing")


def test_command_prints_table_and_summary(capsys):
    assert main(["check", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["COMPONENT", "CHECK", "OUTCOME", "SECONDS"]
    assert lines[1].split()[:3] == ["digits", "check_unknown_keywords_are_rejected", "passed"]
    assert lines[-1].startswith("digits: 7 checks ran")


def test_command_prints_json(capsys):
    assert main(["check", "digits", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"component", "check", "outcome", "seconds", "detail"} == set(rows[0])


def test_command_status_of_failure(capsys, monkeypatch):
    """The exit status is 1 where a check fails."""
    wrong = component("dataset", others.Signs)
    monkeypatch.setattr("ebmcore.testing.runner.find", lambda target: [wrong])
    assert main(["check", "signs"]) == 1
    assert "Signs breaks check_it_lies_in_its_state_space" in capsys.readouterr().out


def test_command_takes_options(capsys, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=grey, x_test=grey[:2])
    assert main(["check", "mnist"]) == 1
    assert "`ebmcore check NAME --option`" in capsys.readouterr().out
    assert main(["check", "mnist", "--option", f"directory={tmp_path}", "--option", "binary=false"]) == 0
    assert main(["check", "ebm-plugin-datasets", "--option", "seed=1"]) == 2
    assert "check one of them by its name" in capsys.readouterr().err


def test_command_names_unknown_component(capsys):
    assert main(["check", "pdc"]) == 2
    assert "did you mean 'pcd'?" in capsys.readouterr().err


def test_unmakable_component_fails_once():
    class NeedsOption(BaseSampler):
        def __init__(self, step_size: float):
            self.step_size = step_size

        def step(self, energy, state, *, generator=None):
            return state, {}

    failed = [r for r in run_checks(NeedsOption) if r.outcome == "failed"]
    (result,) = failed
    assert result.check == "it can be made"
    assert "step_size" in result.detail
    assert "example_options" in result.detail


def documented_checks():
    """The part of the page that lists every check, as it must be."""
    lines = ["## Every check", ""]
    for kind in checks.MODULES:
        lines += [f"### Of a {kind}" if kind not in ("energy", "observer") else f"### Of an {kind}", ""]
        lines += ["| check | since | applies | rule |", "|---|---|---|---|"]
        for check in (load_check(name) for name in checks.names(kind)):
            where = " and ".join(condition.where for condition in check.when) or "to all"
            lines.append(f"| `{check.name}` | {check.since} | {where} | {check.rule} |")
        lines.append("")
    return "\n".join(lines)


def test_page_lists_every_check():
    """The page has each check with its rule and what it applies to."""
    page = (ROOT / "docs/conformance.md").read_text()
    assert page.endswith(documented_checks()), f"the end of docs/conformance.md must be:\n\n{documented_checks()}"


def test_page_names_every_declared_attribute():
    page = (ROOT / "docs/conformance.md").read_text()
    for base in (BaseLoss, BaseContrastiveDivergence, BaseSampler):
        declared = [name for name in vars(base)["__annotations__"] if not name.startswith("_")]
        assert declared
        assert [name for name in declared if f"`{name}`" not in page] == []


def test_rules_are_sentences():
    for name in {name for kind in checks.MODULES for name in checks.names(kind)}:
        rule = load_check(name).rule
        assert rule.endswith(".")
        assert len(rule) > 20
        assert re.fullmatch(r"\d+\.\d+", load_check(name).since)


def test_categorical_losses_get_one_hot_examples():
    """The kit tries a loss with the option state_space in that space, on examples of several units of several values."""
    case = LossCase("the loss", correct_losses.PseudoLikelihood, {"state_space": "categorical"})
    x = case.start(8)
    assert x.shape == (8, 2, 2)
    assert x.unique().tolist() == [0, 1]
    assert (x.sum(-1) == 1).all()
    assert LossCase("the loss", correct_losses.PseudoLikelihood).start(8).shape == (8, 4)
