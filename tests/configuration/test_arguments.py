"""Recipes and flags."""

import re

import pytest
import yaml
from transformers import AutoModelForImageClassification

from configuration import RECIPES, ConfigurationError, parse_arguments, resolved_recipe
from configuration.arguments import new_run_name
from configuration.command_line import read_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_whole_run(path, tmp_path):
    model, data, training = parse_arguments(["--config", str(path), "--output_dir", str(tmp_path)])
    config = model.config_class()(**model.config_overrides)
    assert config.model_type in (f"scanline_{model.model}", model.model.removeprefix("transformers:"))
    # new scans make up for it, or the log's runs had none
    assert (data.augmentation() is None) == (path.stem in ("quickstart", "log_baseline", "log_five_fixes"))
    assert training.do_eval and training.do_train == (path.stem != "ensemble")


def test_a_recipe_goes_by_its_name():
    assert read_recipe("causal_small") == read_recipe(RECIPES / "causal_small.yaml")


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1e-5\nnum_scans: 7\nbf16: false\n")
    _, data, training = parse_arguments(["--config", str(tmp_path / "recipe.yaml"), "--num_scans", "9"])
    assert (training.learning_rate, data.num_scans, training.num_train_epochs) == (1e-5, 9, 50)


def test_a_resolved_recipe_parses_to_the_same_run(tmp_path):
    flags = ["--config", "causal_small", "--learning_rate", "3e-4", "--no_augment", "--output_dir", str(tmp_path)]
    recipe = resolved_recipe(*parse_arguments(flags))
    assert recipe["learning_rate"] == 3e-4 and recipe["augment"] is False
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert resolved_recipe(*parse_arguments(["--config", str(tmp_path / "recipe.yaml")])) == recipe


def test_a_recipe_never_holds_a_token(tmp_path):
    flags = ["--hub_token", "hf_secret", "--output_dir", str(tmp_path)]
    assert "hf_secret" not in yaml.safe_dump(resolved_recipe(*parse_arguments(flags)))


def test_the_recipe_of_a_resumed_run_repeats_it_from_its_start(tmp_path):
    flags = ["--resume_from_checkpoint", "true", "--output_dir", str(tmp_path)]
    assert "resume_from_checkpoint" not in resolved_recipe(*parse_arguments(flags))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hiden_size: 3", "no option 'hiden_size'"),
        ("learning_rat: 3", "did you mean 'learning_rate'"),
        ("- model", "maps names"),
        ("pixels_per_line: 0", "pixels_per_line must be at least 1, got 0"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size must be at least 1, got 0"),
        ("learning_rate: -1.0", "learning_rate must be at least 0, got -1.0"),
        ("num_train_epochs: [3]", "num_train_epochs must be at least 0, got [3]"),
        ("seed: -1", "seed must be at least 0"),
        ("plateau_factor: 1.5", "plateau_factor must lie in (0, 1), got 1.5"),
        ("model: [", "not YAML"),
        ("model: resnet", "must be one of causal, vit, cnn, lrcn, or transformers:"),
        ("model: 'transformers:convnet'", "no image classifier 'convnet'; did you mean 'convnext'"),
        ("model: 'transformers:bert'", "no image classifier 'bert'"),
        ("model: 'transformers:vit'\nconfig_overrides: {hidden_sice: 3}", "did you mean 'hidden_size'"),
        ("config_overrides: {layers: 3}", "no option 'layers'"),
        ("lr_scheduler_type: polynomial", "must be one of"),
        ("class_weights: heavy", "class_weights"),
        ("eval_line_counts: [0, 5]", "eval_line_counts must be at least 1"),
        ("early_stopping_patience: 3\neval_strategy: 'no'\nload_best_model_at_end: false", "eval_strategy"),
        ("label_smoothing_factor: 0.1", """--config_overrides '{"label_smoothing": 0.1}'"""),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs is not heeded"),
    ],
)
def test_a_recipe_that_makes_no_run_is_refused(text, says, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        parse_arguments(["--config", str(tmp_path / "recipe.yaml")])


def test_a_missing_recipe_names_those_there_are():
    with pytest.raises(ConfigurationError, match="causal_small"):
        parse_arguments(["--config", "nowhere.yaml"])


def test_processes_that_would_train_alone_are_refused(monkeypatch, tmp_path):
    _, _, training = parse_arguments(["--output_dir", str(tmp_path)])
    monkeypatch.setattr(type(training), "world_size", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="train alone"):
        training.check_processes()


def test_runs_are_named_by_time_and_job(monkeypatch):
    monkeypatch.delenv("SCANLINE_RUN_TIME", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "324891")
    name = new_run_name()
    assert re.fullmatch(r"\d{8}_\d{6}_j324891", name)
    assert new_run_name() == name
    monkeypatch.delenv("SLURM_JOB_ID")
    assert re.fullmatch(r"\d{8}_\d{6}", new_run_name())


@pytest.mark.parametrize("recipe", ["causal_small", "library_vit", "library_convnext"])
def test_the_small_recipes_have_about_a_million_parameters(recipe):
    model, _, _ = parse_arguments(["--config", recipe])
    config = model.config_class()(**model.config_overrides)
    assert 0.7e6 < AutoModelForImageClassification.from_config(config).num_parameters() < 1.3e6


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert "--dataset hsi100" in text and "Probability of mirroring a scan." in text


def test_share_of_the_training_scans_is_one():
    for share in ("0", "1.5"):
        with pytest.raises(ConfigurationError, match=r"train_fraction must lie in \(0, 1\]"):
            parse_arguments(["--train_fraction", share])


@pytest.mark.parametrize(
    ("metric", "more_is_better"),
    [
        ("balanced_accuracy", True), ("auroc_at_20", True), ("loss", False), ("eval_loss", False),
        ("expected_calibration_error_at_20", False),
    ],
)  # fmt: skip
def test_the_best_epoch_is_the_one_with_the_lowest_loss_or_error(metric, more_is_better):
    assert parse_arguments(["--metric_for_best_model", metric])[2].greater_is_better == more_is_better
    assert (
        parse_arguments(["--metric_for_best_model", metric, "--greater_is_better", "no"])[2].greater_is_better is False
    )


def test_a_flag_changes_entries_of_a_recipe_and_leaves_the_rest():
    recipe = read_recipe("causal_small")["config_overrides"]
    flags = ["--config", "causal_small", "--config_overrides", '{"num_hidden_layers": 3, "hidden_dropout_prob": 0.3}']
    model, _, _ = parse_arguments(flags)
    assert model.config_overrides == recipe | {"num_hidden_layers": 3, "hidden_dropout_prob": 0.3} != recipe
    model, _, _ = parse_arguments([*flags, "--model", "vit"])  # those of another model make no sense here
    assert model.config_overrides == {"num_hidden_layers": 3, "hidden_dropout_prob": 0.3}
