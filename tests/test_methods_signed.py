"""Settings of the methods' authors, and the test that holds the idea of each method."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from method_cases import USABLE

from suite import methods

HELD: dict[str, tuple[str, str]] = {
    "centrality": ("baselines_criteria", "centrality_removes_the_most_common_filter_first_and_the_most_isolated_last"),
    "chip": ("baselines_recent", "chip_is_the_nuclear_norm_that_is_lost_with_a_row"),
    "dense_control": ("grids", "a_comparison_grid_has_its_dense_control_on_every_base"),
    "depgraph": ("baselines_depgraph", "depgraph_has_the_groups_and_the_penalty_of_torch_pruning"),
    "dsp": ("dsp_parity", "parity_with_the_released_code"),
    "eagle_eye": ("baselines_recent", "eagle_eye_needs_re_estimated_statistics_to_tell_a_broken_network"),
    "equal_gkp": ("baselines_reconstruction", "equal_gkp_plans_the_planted_groups_and_their_own_channels"),
    "fpgm": ("baselines_norms", "fpgm_holds_a_zero_filter_at_zero_and_leaves_it_the_rest_of_its_momentum"),
    "fpgm_once": ("torch_pruning", "both_keep_the_same_filters"),
    "greg": ("baselines_learning", "greg_leaves_what_a_residual_sum_reads_and_releases_the_kept_filters"),
    "group_fisher": (
        "baselines_recent",
        "group_fisher_orders_channels_as_their_true_loss_change_for_each_mac",
    ),
    "group_sparse": (
        "baselines_abstract",
        "group_sparse_penalises_redundant_filters_and_spares_the_most_important",
    ),
    "halp": ("baselines_halp", "halp_solves_the_knapsack_where_a_greedy_order_loses_more"),
    "hrank": ("baselines_criteria", "hrank_ranks_a_rank_one_map_last_although_its_weights_are_largest"),
    "hspg": ("baselines_recent", "hspg_projects_a_planted_redundant_group_to_exactly_zero"),
    "l1_filter": ("torch_pruning", "both_keep_the_same_filters"),
    "l1_rates": ("baselines_controls", "rates_of_a_filter_pruning_run_are_those_of_every_layer"),
    "l2_filter": ("torch_pruning", "both_keep_the_same_filters"),
    "lapp": ("baselines_abstract", "lapp_trains_a_bypass_that_is_merged_into_the_centre_of_the_kernel"),
    "lasso_one_pass": (
        "baselines_reconstruction",
        "lasso_recovers_planted_channels_and_least_squares_gives_their_output",
    ),
    "one_by_n": ("baselines_recent", "one_by_n_removes_the_block_with_the_smallest_norm_for_all_its_filters"),
    "random_filter": ("baselines_norms", "random_filter_depends_on_the_seed_only"),
    "random_groups": ("gpu_speed", "random_groups_remove_what_the_budget_says"),
    "random_rates": ("baselines_controls", "rates_of_a_finer_run_are_its_shares_of_kernels"),
    "resrep": ("baselines_recent", "resrep_resets_the_task_for_the_least_row_alone"),
    "scratch": ("baselines_controls", "scratch_has_the_plan_that_it_follows"),
    "sfp": ("baselines_norms", "sfp_zeroes_the_least_filters_and_lets_one_grow_again"),
    "similarity": (
        "baselines_criteria",
        "similarity_removes_one_of_two_parallel_filters_first_although_both_are_large",
    ),
    "slimming": ("baselines_lasso", "slimming_selects_the_channels_of_a_stream_at_their_readers"),
    "ssl": ("baselines_lasso", "ssl_adds_the_gradient_of_its_penalty_and_nothing_where_a_norm_is_zero"),
    "taylor": ("baselines_learning", "taylor_removes_step_by_step_until_the_budget_is_met_and_keeps_the_filters_zero"),
    "taylor_once": ("torch_pruning", "both_keep_the_same_filters"),
    "thinet_one_pass": (
        "baselines_reconstruction",
        "thinet_removes_the_channel_whose_removal_changes_the_output_least",
    ),
    "tmi_gkp": ("baselines_recent", "tmi_gkp_plans_the_planted_groups_and_one_kernel_of_each_pair"),
    "uniform_width": ("baselines_criteria", "uniform_width_takes_the_same_share_of_every_layer"),
}
"""Method -> file and name, without `test_`, of the test of its idea."""

SETTINGS: dict[str, dict[str, Any]] = {
    "chip": {"images": 640, "ranking": "layer"},
    "depgraph": {"reg": 5e-4, "reduction": "mean", "ranking": "raw"},
    "fpgm": {"ranking": "layer"},
    "greg": {"release": 1e-4, "pick_limit": 0.01, "ceiling": 1.0, "ranking": "layer"},
    "group_fisher": {"interval": 10},
    "hrank": {"images": 500, "ranking": "layer"},
    "l1_filter": {"ranking": "layer", "scope": "inner"},
    "lasso_one_pass": {"images": 5000, "positions": 10},
    "resrep": {"lam": 1e-4, "momentum": 0.99, "interval": 200},
    "taylor": {"every": 30, "momentum": 0.9},
    "thinet_one_pass": {"images": 100, "positions": 10},
    "tmi_gkp": {"groups": 8, "ratio": 0.2, "balance": 8.0},
}
"""Method -> settings of its authors, as the sources state them."""
TRAINING = {
    "depgraph": {"lr": 0.01, "weight_decay": 0.0},
    "greg": {"lr": 1e-3},
    "resrep": {"lr": 0.01, "weight_decay": 1e-4},
    "slimming": {"lr": 0.1, "weight_decay": 1e-4, "shape": "steps"},
}


@pytest.mark.parametrize("method", USABLE)
def test_each_method_has_a_test_of_its_idea(method: str) -> None:
    file, name = HELD[method]
    tree = ast.parse((Path(__file__).parent / f"test_{file}.py").read_text())
    assert f"test_{name}" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    (note,) = methods.notes([method])
    assert note.signed


def test_no_test_is_listed_for_a_method_that_is_gone() -> None:
    assert set(HELD) == set(USABLE)


@pytest.mark.parametrize("method", SETTINGS)
def test_default_settings_are_those_of_the_authors(method: str) -> None:
    settings = methods.get(method)()
    assert {name: getattr(settings, name) for name in SETTINGS[method]} == SETTINGS[method]


@pytest.mark.parametrize("method", TRAINING)
def test_learning_has_the_rates_and_decay_of_the_authors(method: str) -> None:
    assert dict(methods.get(method).training) == TRAINING[method]


@pytest.mark.parametrize(("data", "classes"), [("cifar10", 10), ("tinyimagenet20", 20), ("imagenet", 1000)])
def test_thinet_takes_ten_images_a_class(data: str, classes: int) -> None:
    settings: Any = methods.get("thinet_one_pass").for_task(data, "resnet18")
    assert settings.images == 10 * classes


def test_taylor_takes_three_thousand_images_of_imagenet() -> None:
    settings: Any = methods.get("taylor_once").for_task("imagenet", "resnet50")
    assert settings.batches * settings.batch_size >= 3000


def test_tuning_scans_the_penalty_of_slimming() -> None:
    assert methods.get("slimming").start == "init"
    assert set(methods.get("slimming").search["lam"]) == {1e-5, 1e-4, 3e-4, 1e-3}
