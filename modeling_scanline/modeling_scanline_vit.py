"""The scanline vision transformer: each line is a token, attention is global, the verdict is the CLS token's."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scanline import ScanlineViTConfig
from .layers_scanline import (
    ScanlineLayer,
    ScanlineTransformerPreTrainedModel,
    blank_unmeasured,
    check_pixel_values,
    tip_state_loss,
)


class ScanlineViTEmbeddings(nn.Module):
    """Lines `[batch, lines, pixels_per_line]` to tokens `[batch, 1 + lines, hidden]`, the CLS token first."""

    def __init__(self, config: ScanlineViTConfig):
        super().__init__()
        self.line_projection = nn.Linear(config.pixels_per_line, config.hidden_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, config.max_lines + 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch_size, num_lines, _ = pixel_values.shape
        cls_tokens = self.cls_token.expand(batch_size, -1, -1)
        tokens = torch.cat((cls_tokens, self.line_projection(pixel_values)), dim=1)
        return self.dropout(tokens + self.position_embeddings[:, : num_lines + 1])


class ScanlineViTPreTrainedModel(ScanlineTransformerPreTrainedModel):
    """Initialization of the scanline ViT."""

    config_class = ScanlineViTConfig
    config: ScanlineViTConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ScanlineViTEmbeddings):
            init.trunc_normal_(module.cls_token, mean=0.0, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, mean=0.0, std=self.config.initializer_range)


class ScanlineViTModel(ScanlineViTPreTrainedModel):
    """The bare scanline ViT (the experiments log's ScanLineEncoder)."""

    def __init__(self, config: ScanlineViTConfig):
        super().__init__(config)
        self.embeddings = ScanlineViTEmbeddings(config)
        self.layers = nn.ModuleList(
            ScanlineLayer(config, layer_idx, is_causal=False) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.line_projection

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`, at most `max_lines` lines.
            attention_mask: `[batch, lines]`, 1 where a line was measured, 0 elsewhere.

        Returns:
            `last_hidden_state` `[batch, 1 + lines, hidden]` and `pooler_output` `[batch, hidden]`, the CLS token.

        Raises:
            ValueError: for inputs of another shape, or more lines than positions.
        """
        check_pixel_values(pixel_values, attention_mask, self.config.pixels_per_line)
        if pixel_values.shape[1] > self.config.max_lines:
            raise ValueError(
                f"This model was built for at most max_lines={self.config.max_lines} lines, got "
                f"{pixel_values.shape[1]}: cut the scan, or use a causal model, which has no limit."
            )
        pixel_values = pixel_values.to(self.embeddings.cls_token.dtype)  # a Linear may be quantized
        pixel_values = blank_unmeasured(pixel_values, attention_mask)
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (1, 0), value=1)

        hidden_states = self.embeddings(pixel_values)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class ScanlineViTForImageClassification(ScanlineViTPreTrainedModel):
    """The scanline ViT with a linear head on the CLS token."""

    def __init__(self, config: ScanlineViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.scanline = ScanlineViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
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
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = tip_state_loss(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["ScanlineViTForImageClassification", "ScanlineViTModel", "ScanlineViTPreTrainedModel"]
