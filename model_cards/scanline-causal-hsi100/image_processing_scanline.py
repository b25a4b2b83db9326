"""From a scan of any size to the lines that a Scanline model reads."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

logger = logging.get_logger(__name__)

NORMALIZATIONS = ("line", "flat_line", "global", "none")


class ScanlineImageProcessorKwargs(ImagesKwargs, total=False):
    """
    pixels_per_line (`int`): width of a model line.
    normalization (`str`): `"line"`, `"flat_line"`, `"global"` or `"none"`.
    max_lines (`int`): keep the first lines only.
    num_channels (`int`): make images of so many equal channels and `max_lines` lines, in place of lines and a mask.
    """

    pixels_per_line: int | None
    normalization: str | None
    max_lines: int | None
    num_channels: int | None


def num_model_lines(num_lines: int, width: int, pixels_per_line: int) -> int:
    """Model lines that `num_lines` lines of `width` pixels cover completely, at least 1: 47 of 300 px make 20."""
    return max(1, num_lines * pixels_per_line // width)


def area_weights(num_in: int, num_out: int, scale: float) -> torch.Tensor:
    """Share of each input in each output, `[num_out, num_in]`; output `i` covers `scale` inputs, from `i * scale`."""
    edges = torch.arange(num_out + 1, dtype=torch.float64) * scale
    inputs = torch.arange(num_in, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], inputs + 1) - torch.maximum(edges[:-1, None], inputs)
    return overlap.clamp(min=0)


def weights_across(width: int, pixels_per_line: int) -> torch.Tensor:
    """
    Share of each pixel of a raw line in each of a model line, `[pixels_per_line, width]`.

    By area; of a narrower line the straight line between the middles of its pixels.
    """
    if width >= pixels_per_line:
        return area_weights(width, pixels_per_line, width / pixels_per_line)
    places = (torch.arange(pixels_per_line, dtype=torch.float64) + 0.5) * width / pixels_per_line - 0.5
    return (1 - (places[:, None].clamp(0, width - 1) - torch.arange(width)).abs()).clamp(min=0)


def weights_along(num_lines: int, num_out: int, width: int, pixels_per_line: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Share of each raw line in each model line, `[num_out, num_lines]`, and the raw lines that must have been measured.

    By area. Narrow scans have several model lines for a raw one: these go in equal steps from the raw line before to
    this one, which the last of them equals, so that none needs a raw line that has not come. Copies of one line would
    look like a tip that changes with every raw line.
    """
    if width >= pixels_per_line:
        along = area_weights(num_lines, num_out, width / pixels_per_line)
        return along, along
    bottom = torch.arange(1, num_out + 1) * width  # in raw lines, times pixels_per_line: whole numbers do not round
    latest = (bottom - 1) // pixels_per_line
    needed = torch.nn.functional.one_hot(latest, num_lines).double()
    share = ((bottom - latest * pixels_per_line).double() / pixels_per_line).unsqueeze(1)
    before = torch.nn.functional.one_hot((latest - 1).clamp(min=0), num_lines)
    return share * needed + (1 - share) * before, needed


def resample_lines(scans: torch.Tensor, pixels_per_line: int, max_lines: int | None = None) -> torch.Tensor:
    """
    Resamples scans to `pixels_per_line`, lines by the same factor, so that pixels stay square.

    By area; narrower scans by straight lines between their pixels, see [`weights_across`] and [`weights_along`].

    Args:
        scans: `[batch, lines, width]`, NaN where nothing was measured.
        pixels_per_line: width of the result.
        max_lines: keep the first lines only.

    Returns:
        `[batch, lines', pixels_per_line]` in float32. A pixel is NaN where nothing of its area was measured, and in a
        narrow scan where nothing of the latest raw line was that it is made of; a last line that is not covered
        completely is left out, as it would change when the next line comes.
    """
    num_lines, width = scans.shape[-2:]
    num_out = num_model_lines(num_lines, width, pixels_per_line)
    if max_lines is not None:
        num_out = min(num_out, max_lines)
    if width == pixels_per_line:
        return scans[:, :num_out].float()
    across = weights_across(width, pixels_per_line)
    along, needed = weights_along(num_lines, num_out, width, pixels_per_line)
    # float64, or a constant line among lines far from its height would come out as noise
    measured = scans.isfinite()
    if bool(measured.all()):
        return (along @ (scans.double() @ across.T) / (along.sum(dim=1, keepdim=True) * across.sum(dim=1))).float()
    shares = measured.double() @ across.T
    heights = along @ (scans.masked_fill(~measured, 0).double() @ across.T) / (along @ shares)
    # relative to a whole pixel: rounding of the edges is no measurement
    tiny = 1e-9 * max(1.0, width / pixels_per_line) ** 2
    return heights.masked_fill(needed @ shares <= tiny, float("nan")).float()


def flatten_lines(scans: np.ndarray) -> np.ndarray:
    """
    Takes out of each line `[..., pixels]` the slope of the straight line that fits it best, and leaves its mean.

    NaN, where nothing was measured, stays.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of the largest numbers there are: such a line becomes NaN
        measured = np.isfinite(scans)
        count = np.maximum(np.add.reduce(measured, axis=-1, keepdims=True), 1)
        pixels = np.arange(scans.shape[-1], dtype=scans.dtype)
        places = (pixels - np.add.reduce(pixels * measured, axis=-1, keepdims=True) / count) * measured
        values = np.where(measured, scans, 0)
        values = (values - np.add.reduce(values, axis=-1, keepdims=True) / count) * measured
        squares = np.maximum(np.add.reduce(places * places, axis=-1, keepdims=True), 1)
        slope = np.add.reduce(values * places, axis=-1, keepdims=True) / squares
        # once more for what rounding leaves
        slope += np.add.reduce((values - slope * places) * places, axis=-1, keepdims=True) / squares
        return (scans - slope * places).astype(scans.dtype, copy=False)


def normalize_heights(lines: np.ndarray, normalization: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Normalizes heights and says which lines were measured.

    Args:
        lines: `[..., lines, pixels]` in floating point, NaN where nothing was measured.
        normalization: `"line"` brings every line to mean 0 and standard deviation 1, which takes out drift, height
            jumps between lines and tilt across them (Gordon et al. 2020, for flattened scans); `"flat_line"` takes out
            a straight line first, for heights as the microscope measures them, where the tilt along a line outweighs
            all atoms; `"global"` is for the scan as a whole, and thereby lets a line know of those after it; `"none"`
            leaves heights alone.

    Returns:
        Lines of the same shape with 0 where nothing was measured, and the mask `[..., lines]` of lines with any
        measured pixel. A line without any variation becomes 0.
    """
    measured = np.isfinite(lines)
    if normalization == "flat_line":
        lines = flatten_lines(lines)
    values = np.where(measured, lines, lines.dtype.type(0))
    if normalization != "none":
        over = (-2, -1) if normalization == "global" else -1
        tiny, epsilon = np.finfo(values.dtype).tiny, np.finfo(values.dtype).eps
        count = np.maximum(np.add.reduce(measured, axis=over, keepdims=True, dtype=values.dtype), 1)
        largest = np.maximum.reduce(np.abs(values), axis=over, keepdims=True)
        huge = largest > np.sqrt(np.finfo(values.dtype).max)
        if huge.any():  # no height is, but a number that stands for none may be: their sums would overflow
            values /= np.where(huge, largest, 1)
            largest = np.where(huge, 1, largest)
        for _ in range(2):  # once more for what rounding leaves of a mean far larger than the variation
            values -= np.add.reduce(values, axis=over, keepdims=True) / count
            values *= measured
        # scaled first: squares of heights in metres (1e-12) vanish in float32
        peak = np.maximum.reduce(np.abs(values), axis=over, keepdims=True)
        values /= np.maximum(peak, tiny)
        spread = np.sqrt(np.add.reduce(values * values, axis=over, keepdims=True) / count)
        # what is left of a constant line after subtracting its mean is rounding
        constant = peak <= 8 * epsilon * largest
        values /= np.maximum(spread, tiny)
        values *= ~constant
    return values, measured.any(axis=-1)


def normalize_lines(lines: torch.Tensor, normalization: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[`normalize_heights`] of a tensor; the mask is int64, as models take it."""
    values, measured = normalize_heights(lines.numpy(), normalization)  # which is faster than torch, if there are few
    return torch.from_numpy(values), torch.from_numpy(measured).long()


def as_images(
    pixel_values: torch.Tensor, attention_mask: torch.Tensor | None, max_lines: int, num_channels: int = 1
) -> torch.Tensor:
    """
    Makes images of one size from scans of any number of lines, for models that know nothing of lines.

    Args:
        pixel_values: `[batch, lines, pixels_per_line]`.
        attention_mask: `[batch, lines]`, 1 where a line was measured; `None` if all were.
        max_lines: height of the images.
        num_channels: number of channels, all the same.

    Returns:
        `[batch, num_channels, max_lines, pixels_per_line]`, zero where nothing was measured and beyond the last line.

    Raises:
        ValueError: for more lines than `max_lines`.
    """
    num_lines = pixel_values.shape[1]
    if num_lines > max_lines:
        raise ValueError(
            f"This model was built for at most max_lines={max_lines} lines, got {num_lines}: cut the scan, or use a "
            "causal model, which has no limit."
        )
    if attention_mask is not None:
        pixel_values = pixel_values.masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0)
    images = torch.nn.functional.pad(pixel_values, (0, 0, 0, max_lines - num_lines)).unsqueeze(1)
    return images.expand(-1, num_channels, -1, -1)


def heights_from_colours(image: np.ndarray) -> np.ndarray:
    """
    Heights of a coloured picture of a scan, `[lines, pixels, 3 or 4]` to `[lines, pixels]`.

    Grey pictures, and the black-orange-white colour map of SPM software (R = 2k, G = k, B = 2k - 255, cut to
    0..255), hold the height in the green channel. Of any other colour map the luminance is taken (ITU-R 601).
    """
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    full = 255.0 if image.dtype == np.uint8 else float(max(red.max(initial=0), 1))
    step = full / 255 if image.dtype.kind == "f" else 1.0  # colours between 0 and 1 are all within 2 of each other
    grey = np.abs(red - green).max(initial=0) <= 2 * step and np.abs(blue - green).max(initial=0) <= 2 * step
    orange = (
        np.abs(red - np.minimum(full, 2 * green)).max(initial=0) <= 3 * step
        and np.abs(blue - np.maximum(0, 2 * green - full)).max(initial=0) <= 3 * step
    )
    return green if grey or orange else 0.299 * red + 0.587 * green + 0.114 * blue


class ScanlineImageProcessor(PilBackend):
    """
    Turns scans into `pixel_values` `[batch, lines, pixels_per_line]` and `attention_mask` `[batch, lines]`.

    Takes PIL images, files of pictures or 2-D arrays `[lines, pixels]` of any size, row 0 acquired first, one or a
    list (a 3-D array is a batch, unless its last dimension is the colour). NaN, or the mask of a masked array, marks
    what was not measured; lines without any measured pixel get 0 in the mask, as does the padding of shorter scans.

    Args:
        pixels_per_line (`int`, *optional*, defaults to 128):
            Width of the model. Scans are resampled to it, lines by the same factor, see [`resample_lines`].
        normalization (`str`, *optional*, defaults to `"line"`):
            See [`normalize_heights`].
        max_lines (`int`, *optional*):
            Keep the first lines of longer scans only.
        num_channels (`int`, *optional*):
            For image models of the library, which know no lines: makes images `[batch, num_channels, max_lines,
            pixels_per_line]`, zero where nothing was measured, and no mask. Needs `max_lines`.
    """

    model_input_names = ["pixel_values", "attention_mask"]
    valid_kwargs = ScanlineImageProcessorKwargs
    pixels_per_line = 128
    normalization = "line"
    max_lines = None
    num_channels = None

    def __init__(self, **kwargs: Unpack[ScanlineImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]  # the library takes what valid_kwargs names, undeclared

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        images = self.fetch_images(images)
        if isinstance(images, list | tuple):
            return [image for entry in images for image in self._prepare_images_structure(entry)]
        if hasattr(images, "ndim") and images.ndim == 3 and images.shape[-1] == 1:
            images = images[..., 0]
        if hasattr(images, "ndim") and images.ndim == 3 and images.shape[-1] not in (3, 4):
            return list(images)
        return [images]

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """As the library, but a picture in a file keeps its heights: the library makes 8 bits of 16."""
        if isinstance(image_url_or_urls, str | PathLike) and Path(image_url_or_urls).is_file():
            with Image.open(image_url_or_urls) as image:
                return image.copy()
        return super().fetch_images(image_url_or_urls)

    def process_image(  # type: ignore[override]  # no channels to convert or to look for
        self, image: Any, **kwargs
    ) -> np.ndarray:
        """One image of any kind to heights `[lines, pixels]` in floating point."""
        kind = type(image).__name__
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        if getattr(image, "mode", None) in ("P", "PA", "LA", "1", "CMYK", "YCbCr", "HSV", "LAB"):
            image = image.convert("RGB")
        if isinstance(image, np.ma.MaskedArray):
            image = np.ma.filled(image.astype(np.result_type(image.dtype, np.float32)), np.nan)
        heights = np.asarray(image)
        if heights.ndim == 3 and heights.dtype == np.uint8 and (np.mean(heights == 255) > 0.5 or heights.max() <= 1):
            logger.warning_once(
                "A picture is mostly white, or all black: the library's pipelines make 8 bits of pictures that have "
                "more, and cut off what is above. Give the processor the file itself, or the heights."
            )
        if heights.ndim == 3 and heights.shape[-1] in (3, 4):
            heights = heights_from_colours(heights)
        if heights.ndim != 2 or 0 in heights.shape or heights.dtype.kind not in "fiub":
            raise ValueError(
                "Expected a PIL image or a 2-D array [lines, pixels] of numbers with at least one line and one pixel, "
                f"got {kind} of shape {list(heights.shape)} and type {heights.dtype}."
            )
        return heights if heights.dtype == np.float64 else heights.astype(np.float32, copy=False)

    def _preprocess(  # type: ignore[override]  # the settings of this class, in place of the library's
        self,
        images: list[np.ndarray],
        pixels_per_line: int,
        normalization: str,
        max_lines: int | None,
        num_channels: int | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}.")
        sizes = {"pixels_per_line": pixels_per_line, "max_lines": max_lines, "num_channels": num_channels}
        for name, number in sizes.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if num_channels is not None and max_lines is None:
            raise ValueError(f"num_channels={num_channels} makes images, whose height max_lines must be given too.")
        if not images:
            raise ValueError("Expected at least one image, got none.")
        after_flattening = "line" if normalization == "flat_line" else normalization
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(image.shape, []).append(index)
        processed: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(images)
        for indices in by_shape.values():
            scans = np.stack([images[index] for index in indices])
            if normalization == "flat_line":  # before: what is resampled is no longer quite straight
                scans = flatten_lines(scans)
            lines = resample_lines(torch.from_numpy(scans), pixels_per_line, max_lines)
            for index, values, mask in zip(indices, *normalize_lines(lines, after_flattening), strict=True):
                processed[index] = (values, mask)
        values, masks = zip(*processed, strict=True)
        data: dict[str, Any] = {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(values, batch_first=True),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(masks, batch_first=True),
        }
        if num_channels is not None and max_lines is not None:
            data = {"pixel_values": as_images(**data, max_lines=max_lines, num_channels=num_channels).contiguous()}
        if return_tensors not in ("pt", TensorType.PYTORCH):
            data = {name: tensor.numpy() for name, tensor in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)


__all__ = [
    "ScanlineImageProcessor",
    "ScanlineImageProcessorKwargs",
    "as_images",
    "flatten_lines",
    "normalize_lines",
    "resample_lines",
]
