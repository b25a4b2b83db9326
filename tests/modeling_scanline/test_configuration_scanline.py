"""What a configuration holds, refuses and keeps."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig

from modeling_scanline import ScanlineCausalConfig, ScanlineCNNConfig, ScanlineLRCNConfig, ScanlineViTConfig
from modeling_scanline.configuration_scanline import CALIBRATION_ENTRIES

BOTH = pytest.mark.parametrize("config_class", [ScanlineViTConfig, ScanlineCausalConfig])
EVERY = pytest.mark.parametrize(
    "config_class", [ScanlineViTConfig, ScanlineCausalConfig, ScanlineCNNConfig, ScanlineLRCNConfig]
)


@BOTH
def test_defaults_are_those_of_the_log(config_class):
    config = config_class()
    assert (config.pixels_per_line, config.max_lines) == (128, 128)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (256, 6, 8)
    assert (config.intermediate_size, config.hidden_dropout_prob, config.class_weights) == (1024, 0.1, None)


def test_causal_defaults_are_a_streaming_model_with_context():
    config = ScanlineCausalConfig()
    assert config.tokenizer_channels == [32, 64, 128]
    assert config.tokenizer_kernel_sizes == [7, 3, 3]
    assert config.tokenizer_strides == [1, 1, 1]
    assert (config.tokenizer_context_lines, config.sliding_window) == (5, 128)
    assert config.position_embedding_type == "rotary"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels_per_line": 0}, "pixels_per_line must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must lie in"),
        ({"class_weights": [1.0, -1.0]}, "class_weights must not be negative"),
        (
            {"hidden_act": "gelou"},
            "hidden_act must be the name of an activation in .*, got 'gelou'",
        ),
        ({"max_lines": 0}, "max_lines must be at least 1"),
    ],
)
@EVERY
def test_impossible_values_are_refused(config_class, changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config_class(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"num_attention_heads": 7}, "hidden_size must be a multiple of num_attention_heads, got 256 and 7"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob must lie in \[0, 1\], got 1.5"),
        ({"attention_probs_dropout_prob": -1}, r"attention_probs_dropout_prob must lie in \[0, 1\], got -1"),
    ],
)
@BOTH
def test_impossible_transformers_are_refused(config_class, changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config_class(**changes)


@pytest.mark.parametrize(
    ("config_class", "changes", "message"),
    [
        (ScanlineCNNConfig, {"conv_channels": []}, "conv_channels must be at least 1, one entry a block, got"),
        (ScanlineLRCNConfig, {"conv_channels": [8, 0]}, "conv_channels must be at least 1"),
        (
            ScanlineCNNConfig,
            {"classifier_dropout_prob": 1.5},
            r"classifier_dropout_prob must lie in \[0, 1\], got 1.5",
        ),
        (ScanlineCNNConfig, {"max_lines": 14}, "max_lines=14 lines of pixels_per_line=128 are too few for 3 blocks"),
        (ScanlineCNNConfig, {"pixels_per_line": 14}, "max_lines=128 lines of pixels_per_line=14 are too few"),
        (ScanlineLRCNConfig, {"window_lines": 14}, "window_lines=14 lines of pixels_per_line=128 are too few"),
        (ScanlineLRCNConfig, {"window_lines": 0}, "window_lines=0 lines of pixels_per_line=128 are too few"),
        (ScanlineLRCNConfig, {"window_stride": 0}, "window_stride must be at least 1, got 0"),
        (ScanlineLRCNConfig, {"window_stride": 21}, "window_stride must be at most window_lines, .* got 21 and 20"),
        (ScanlineLRCNConfig, {"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        (ScanlineLRCNConfig, {"line_loss_weighting": "first"}, "line_loss_weighting must be one of uniform, linear"),
    ],
)
def test_impossible_convolutions_are_refused(config_class, changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config_class(**changes)


def test_defaults_of_the_comparators_are_the_published_ones():
    cnn, lrcn = ScanlineCNNConfig(), ScanlineLRCNConfig()
    assert cnn.conv_channels == lrcn.conv_channels == [32, 64, 128]
    assert cnn.hidden_act == lrcn.hidden_act == "relu"
    assert (lrcn.window_lines, lrcn.window_stride, lrcn.hidden_size) == (20, 1, 256)
    assert (cnn.feature_map_size(128), lrcn.feature_map_size(20)) == ((8, 8), (1, 8))


def test_saved_configurations_keep_their_keys():
    shared = {"pixels_per_line", "max_lines", "hidden_act", "initializer_range", "class_weights", "label_smoothing"}
    transformer = shared | {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob",
        "attention_probs_dropout_prob", "layer_norm_eps",
    }  # fmt: skip
    assert transformer <= set(ScanlineViTConfig().to_dict()) and transformer <= set(ScanlineCausalConfig().to_dict())
    for config in (ScanlineCNNConfig(), ScanlineLRCNConfig()):
        assert shared <= set(config.to_dict()) and "num_attention_heads" not in config.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_channels": [8, 8]}, "must have one entry a convolution"),
        (
            {"tokenizer_channels": [], "tokenizer_kernel_sizes": [], "tokenizer_strides": []},
            "must have one entry a convolution",
        ),
        ({"tokenizer_strides": [2]}, "must have one entry a convolution"),
        ({"tokenizer_kernel_sizes": [7, 4, 3]}, "tokenizer_kernel_sizes must be odd"),
        ({"tokenizer_channels": [8, 0, 8]}, "must be at least 1"),
        ({"tokenizer_strides": [1, 0, 1]}, "must be at least 1"),
        ({"tokenizer_context_lines": 0}, "tokenizer_context_lines must be at least 1, got 0"),
        ({"pixels_per_line": 7}, "pixels_per_line=7 is too narrow for 3 convolutions"),
        ({"pixels_per_line": 32, "tokenizer_strides": [2, 2, 2]}, "is too narrow"),
        ({"tokenizer_pooling": "median"}, "tokenizer_pooling must be one of mean, mean_max, got 'median'"),
        ({"position_embedding_type": "learned"}, "position_embedding_type must be one of"),
        ({"line_loss_weighting": "first"}, "line_loss_weighting must be one of uniform, linear, last"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "rotary positions need an even width per head"),
        (
            {"hidden_size": 33, "num_attention_heads": 3, "position_embedding_type": "sinusoidal"},
            "sinusoidal positions need an even hidden_size, got 33",
        ),
        ({"position_base": 0}, "position_base must be greater than 0"),
        ({"sliding_window": 1}, "sliding_window must be at least 2, got 1"),
        ({"next_line_weight": -1.0}, "next_line_weight must not be negative, got -1.0"),
        ({"next_line_steps": []}, "next_line_steps must be different numbers of at least 1"),
        ({"next_line_steps": [0, 1]}, "next_line_steps must be different numbers of at least 1"),
        ({"next_line_steps": [2, 2]}, "next_line_steps must be different numbers of at least 1"),
    ],
)
def test_impossible_causal_values_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ScanlineCausalConfig(**changes)


@BOTH
def test_a_value_of_another_type_is_refused(config_class):
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        config_class(hidden_size="wide")


@BOTH
def test_errors_are_one_sentence(config_class):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        config_class(num_attention_heads=7)
    sentence = str(error.value.__cause__)
    assert sentence.endswith(".") and "\n" not in sentence and sentence.count(". ") == 0


@EVERY
def test_labels_come_from_the_data(config_class):
    config = config_class(id2label={0: "rows", 1: "dimers", 2: "defect"}, label2id={"rows": 0})
    assert config.num_labels == 3
    assert config_class(num_labels=5).num_labels == 5
    assert config_class(num_labels=5).id2label[4] == "LABEL_4"


@pytest.mark.parametrize(
    "config",
    [
        ScanlineViTConfig(
            max_lines=40, id2label={0: "a", 1: "b", 2: "c"}, class_weights=[0.5, 1, 2], label_smoothing=0.1
        ),
        ScanlineCausalConfig(
            tokenizer_channels=(8, 16),
            tokenizer_kernel_sizes=(5, 3),
            tokenizer_strides=(2, 1),
            sliding_window=None,
            position_embedding_type="sinusoidal",
            line_loss_weighting="last",
        ),
        ScanlineCNNConfig(conv_channels=(8, 16), max_lines=40, num_labels=3, label_smoothing=0.1),
        ScanlineLRCNConfig(conv_channels=(8, 16), window_lines=12, window_stride=3, line_loss_weighting="last"),
    ],
    ids=["vit", "causal", "cnn", "lrcn"],
)
def test_saving_and_loading_keeps_every_value(config, tmp_path):
    config.save_pretrained(tmp_path)
    for loaded in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is type(config)
        saved, again = config.to_dict(), loaded.to_dict()
        # saving names the class of the configuration itself
        assert again.pop("auto_map").items() >= saved.pop("auto_map").items()
        again["_name_or_path"] = saved["_name_or_path"]
        assert again == saved


@BOTH
def test_loading_takes_changes(config_class, tmp_path):
    config_class(hidden_size=64).save_pretrained(tmp_path)
    changed = config_class.from_pretrained(tmp_path, class_weights=[1.0, 2.0, 3.0], id2label={0: "a", 1: "b", 2: "c"})
    assert (changed.hidden_size, changed.num_labels, changed.class_weights) == (64, 3, [1.0, 2.0, 3.0])


@EVERY
def test_an_unknown_key_survives_a_round_trip(config_class, tmp_path):
    config_class(microscope="Omicron").save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).microscope == "Omicron"


@EVERY
def test_auto_map_names_the_bare_model(config_class):
    assert config_class().auto_map["AutoModel"].startswith(f"modeling_{config_class.model_type}.Scanline")


def test_a_configuration_that_became_impossible_is_not_saved(tmp_path):
    config = ScanlineCausalConfig()
    config.sliding_window = 1
    with pytest.raises(StrictDataclassClassValidationError, match="sliding_window"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration_lines": [5, 10], "calibration_temperatures": [1.0]},
        {"calibration_lines": [10, 5], "calibration_temperatures": [1.0, 1.0]},
        {"calibration_lines": [0], "calibration_temperatures": [1.0]},
        {"calibration_lines": [5], "calibration_temperatures": [0.0]},
        {"calibration_temperatures": [1.0]},
    ],
)
def test_impossible_temperatures_are_refused(changes):
    with pytest.raises(StrictDataclassClassValidationError, match="calibration_lines must be rising"):
        ScanlineCausalConfig(**changes)


@pytest.mark.parametrize("exponents", [[0.1], [0.1, 0.2, 0.3], [0.1, -1.0], []])
def test_impossible_exponents_are_refused(exponents):
    calibration = {"calibration_lines": [5, 10], "calibration_temperatures": [1.0, 1.0]}
    with pytest.raises(
        StrictDataclassClassValidationError, match="calibration_exponents must have one entry for each"
    ):
        ScanlineCausalConfig(**calibration, calibration_exponents=exponents)


@pytest.mark.parametrize("biases", [[[0.0, 0.0]], [[0.0, 0.0], [0.0]], [[0.0, 0.0, 0.0]] * 2, []])
def test_impossible_biases_are_refused(biases):
    calibration = {"calibration_lines": [5, 10], "calibration_temperatures": [1.0, 1.0]}
    with pytest.raises(StrictDataclassClassValidationError, match="calibration_biases must have one entry for each"):
        ScanlineCausalConfig(num_labels=2, **calibration, calibration_biases=biases)


FAMILIARITY = {
    "familiarity_mean": [0.0, 0.0], "familiarity_whitening": [1.0, 0.0, 1.0],
    "familiarity_lines": [10, 20], "familiarity_thresholds": [1.0, 2.0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"familiarity_whitening": [1.0]}, "for the 2 of familiarity_mean, 3 numbers, got 1"),
        ({"familiarity_mean": None}, "for the 0 of familiarity_mean, 0 numbers, got 3"),
        ({"familiarity_thresholds": [1.0]}, "familiarity_lines must be rising and as many"),
        ({"familiarity_thresholds": [1.0, 0.0]}, "familiarity_lines must be rising and as many"),
        ({"familiarity_lines": [20, 10]}, "familiarity_lines must be rising and as many"),
        ({"familiarity_lines": None, "familiarity_thresholds": None}, "none only without familiarity_mean"),
    ],
)
def test_impossible_familiarity_is_refused(changes, reason):
    ScanlineCausalConfig(**FAMILIARITY)
    with pytest.raises(StrictDataclassClassValidationError, match=reason):
        ScanlineCausalConfig(**{**FAMILIARITY, **changes})


@pytest.mark.parametrize(
    "states",
    [{"num_labels": 3}, {"id2label": {0: "step", 1: "terrace", 2: "noise"}}],
    ids=lambda states: next(iter(states)),
)
def test_another_number_of_states_leaves_out_what_was_found_for_the_saved_classifier(states, tmp_path):
    """As for another surface: neither the calibration nor the weights of four classes mean anything for three."""
    saved = ScanlineCausalConfig(
        num_labels=4,
        class_weights=[1.0, 2.0, 3.0, 4.0],
        calibration_lines=[5],
        calibration_temperatures=[1.5],
        calibration_exponents=[0.5],
        calibration_biases=[[0.1, 0.2, 0.3, 0.4]],
        decision_alphas=[0.1],
        decision_thresholds=[0.9],
        change_threshold=0.7,
    )
    saved.save_pretrained(tmp_path)
    found = ("class_weights", *CALIBRATION_ENTRIES)
    other = ScanlineCausalConfig.from_pretrained(tmp_path, **states)
    assert other.num_labels == 3 and other.change_threshold == 0.7
    assert {name: getattr(other, name) for name in found} == dict.fromkeys(found)
    renamed = ScanlineCausalConfig.from_pretrained(tmp_path, id2label=dict(enumerate("abcd")))
    for same in (ScanlineCausalConfig.from_pretrained(tmp_path, num_labels=4), renamed):
        assert {name: getattr(same, name) for name in found} == {name: getattr(saved, name) for name in found}
