"""The published LRCN for partial scans (Gordon et al. 2020): a CNN over a rolling window, an LSTM over the windows."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithNoAttention
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scanline import ScanlineLRCNConfig
from .layers_scanline import (
    ScanlineCausalOutput,
    ScanlineConvolutionalPreTrainedModel,
    ScanlineConvolutions,
    blank_unmeasured,
    check_pixel_values,
    judge_scans,
)


class ScanlineLRCNPreTrainedModel(ScanlineConvolutionalPreTrainedModel):
    """Initialization and capabilities of the published LRCN."""

    config_class = ScanlineLRCNConfig
    config: ScanlineLRCNConfig
    _no_split_modules = ["ScanlineConvolutionBlock", "LSTM"]
    _can_compile_fullgraph = False  # torch.compile leaves an LSTM to its own code

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):
            # gates that forget nothing at first, or no gradient would reach the first of many windows
            bias = module.get_parameter("bias_ih_l0")
            values = torch.zeros_like(bias)
            values[module.hidden_size : 2 * module.hidden_size] = 1
            init.copy_(bias, values)


class ScanlineLRCNModel(ScanlineLRCNPreTrainedModel):
    """
    The bare LRCN. A window ends at lines `window_stride`, twice that and so on, counted from 1.

    The published network is silent before the first `window_lines` lines. Here zeros stand before the scan, so that
    it speaks after the first `window_stride`.
    """

    def __init__(self, config: ScanlineLRCNConfig):
        super().__init__(config)
        self.convolutions = ScanlineConvolutions(config)
        height, width = config.feature_map_size(config.window_lines)
        self.lstm = nn.LSTM(config.conv_channels[-1] * height * width, config.hidden_size, batch_first=True)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.convolutions.get_submodule("blocks.0.conv1")

    def windows(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[batch, lines, pixels_per_line]` to `[batch, windows, window_lines, pixels_per_line]`, without copying."""
        num_lines, stride = self.config.window_lines, self.config.window_stride
        padded = nn.functional.pad(pixel_values, (0, 0, num_lines - stride, 0))
        return padded.unfold(1, num_lines, stride).transpose(2, 3)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithNoAttention:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`, any number of lines.
            attention_mask: `[batch, lines]`, 1 where a line was measured, 0 elsewhere.

        Returns:
            `last_hidden_state` `[batch, lines, hidden]`, at each line the state after the last window that has ended,
            zero before the first has; `hidden_states`, where asked for, of `batch * windows` windows.

        Raises:
            ValueError: for inputs of another shape.
        """
        check_pixel_values(pixel_values, attention_mask, self.config.pixels_per_line)
        batch_size, num_lines, _ = pixel_values.shape
        stride = self.config.window_stride
        pixel_values = blank_unmeasured(pixel_values.to(self.dtype), attention_mask)
        states = pixel_values.new_zeros(batch_size, stride - 1, self.config.hidden_size)
        if num_lines >= stride:
            features = self.convolutions(self.windows(pixel_values).flatten(0, 1).unsqueeze(1))
            self.lstm.flatten_parameters()  # loading leaves them scattered, and cuDNN would gather them at each call
            after_windows, _ = self.lstm(features.flatten(1).unflatten(0, (batch_size, -1)))
            states = torch.cat((states, after_windows.repeat_interleave(stride, dim=1)), dim=1)
        return BaseModelOutputWithNoAttention(last_hidden_state=states[:, :num_lines])


class ScanlineLRCNForImageClassification(ScanlineLRCNPreTrainedModel):
    """The published LRCN with a linear head at every line."""

    def __init__(self, config: ScanlineLRCNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.scanline = ScanlineLRCNModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
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
    ) -> ScanlineCausalOutput:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`.
            attention_mask: `[batch, lines]`, 1 where a line was measured, 0 elsewhere.
            labels: class indices `[batch]`, one a line `[batch, lines]`, or scores `[batch, num_labels]`; see
                [`tip_state_loss`].
            num_items_in_batch: see [`tip_state_loss`].

        Returns:
            `logits` of the last measured line `[batch, num_labels]`, `line_logits` `[batch, lines, num_labels]`, zero
            before the first window has ended, and the loss where there are labels.
        """
        outputs = self.scanline(pixel_values, attention_mask=attention_mask, **kwargs)
        line_logits = self.classifier(self.dropout(outputs.last_hidden_state))
        # before the first window has ended nothing is known, and the bias alone must not speak
        ended = torch.arange(line_logits.shape[1], device=line_logits.device) >= self.config.window_stride - 1
        line_logits = line_logits * ended.unsqueeze(-1)
        logits, loss = judge_scans(line_logits, attention_mask, labels, self.config, num_items_in_batch)
        return ScanlineCausalOutput(
            loss=loss, logits=logits, line_logits=line_logits, hidden_states=outputs.hidden_states
        )


__all__ = ["ScanlineLRCNForImageClassification", "ScanlineLRCNModel", "ScanlineLRCNPreTrainedModel"]
