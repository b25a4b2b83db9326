"""The published CNN for whole scans (Gordon et al. 2020): VGG-like, without normalization. For comparison."""

import torch
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scanline import ScanlineCNNConfig
from .image_processing_scanline import as_images
from .layers_scanline import (
    ScanlineConvolutionalPreTrainedModel,
    ScanlineConvolutions,
    check_pixel_values,
    tip_state_loss,
)


class ScanlineCNNPreTrainedModel(ScanlineConvolutionalPreTrainedModel):
    """The configuration of the published CNN."""

    config_class = ScanlineCNNConfig
    config: ScanlineCNNConfig


class ScanlineCNNModel(ScanlineCNNPreTrainedModel):
    """The bare CNN: convolutions over an image of `max_lines` lines, flattened."""

    def __init__(self, config: ScanlineCNNConfig):
        super().__init__(config)
        self.convolutions = ScanlineConvolutions(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.convolutions.get_submodule("blocks.0.conv1")

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`, at most `max_lines` lines; those missing are zero.
            attention_mask: `[batch, lines]`, 1 where a line was measured, 0 elsewhere; those lines are zero too.

        Returns:
            `last_hidden_state` `[batch, channels, height, width]` and `pooler_output`, the same flattened.

        Raises:
            ValueError: for inputs of another shape, or more lines than the image has.
        """
        check_pixel_values(pixel_values, attention_mask, self.config.pixels_per_line)
        images = as_images(pixel_values, attention_mask, self.config.max_lines)
        features = self.convolutions(images.to(self.dtype))
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=features, pooler_output=features.flatten(1))


class ScanlineCNNForImageClassification(ScanlineCNNPreTrainedModel):
    """The published CNN with a linear head."""

    def __init__(self, config: ScanlineCNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.scanline = ScanlineCNNModel(config)
        height, width = config.feature_map_size(config.max_lines)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Linear(config.conv_channels[-1] * height * width, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`.
            attention_mask: `[batch, lines]`, 1 where a line was measured, 0 elsewhere.
            labels: class indices `[batch]` or scores `[batch, num_labels]`, see [`tip_state_loss`].
            num_items_in_batch: see [`tip_state_loss`].

        Returns:
            `logits` `[batch, num_labels]`, and the loss where there are labels.
        """
        outputs = self.scanline(pixel_values, attention_mask=attention_mask, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = tip_state_loss(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["ScanlineCNNForImageClassification", "ScanlineCNNModel", "ScanlineCNNPreTrainedModel"]
