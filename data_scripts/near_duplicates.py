"""Finds scans that are copies of one another, whatever was done to the copy.

A copy may be mirrored or turned by 90 degrees, shifted by a few pixels, and have another contrast (any increasing
function of the heights) and some noise on top. Scans of one lattice look alike without being copies: what tells them
apart is all that is not periodic, so every spatial frequency counts about as much as its neighbours, and the few
strong ones of the lattice do not decide.

Two steps. Moduli of the spatial frequencies do not see shifts: one matrix product for each of four symmetries finds
the candidates. Candidates are then aligned, and correlated as what is left of both scans once lines and columns have
mean 0, heights are ranks, and the spectrum is flat. Their similarity is the geometric mean of the correlation over the
frame and its median over the parts of the frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Bit 4: lines and pixels change places. Then bit 2: the order of lines turns round. Then bit 1: that of pixels.
TRANSFORMATIONS = (
    "as it is",
    "mirrored left to right",
    "mirrored top to bottom",
    "turned by 180°",
    "transposed",
    "turned by 90° clockwise",
    "turned by 90° counterclockwise",
    "transposed across the other diagonal",
)
TURNED = 3  # `index ^ TURNED` is the same symmetry, turned by 180 degrees, with the same moduli
# Of 200 copies under 8 symmetries, shifts and contrasts, the least alike reach 0.62 (0.44 with 2 % of noise); of 1.1
# million pairs of other scans, all but one stay below 0.40: `python -m benchmarks.leakage`.
THRESHOLD = 0.42
MIN_CORRELATION = 0.25  # of aligned spectra; what has less is not looked at any further
CANDIDATE_THRESHOLD = 0.27
MAX_FREQUENCY = 24  # cycles per frame; what is finer is noise, and does not survive resampling
NEIGHBOURHOOD = 9  # frequencies whose mean modulus a frequency is compared to
FLATNESS = 0.5  # 0 leaves the spectrum as it is, 1 keeps nothing but phases
MAX_SHIFT = 10  # 128ths of the frame
PARTS, POINTS = 4, 12  # a frame is cut into 4 x 4 parts of 12 x 12 points
MAX_ONE_HEIGHT = 0.75  # of a scan; where more is of one height, too little is left to tell scans apart
MIN_LINES = 64  # 128ths of the frame; fewer lines have too little in them to tell scans apart
HEIGHT_STEP = 0.8  # scans that were broken off are compared at common numbers of lines, in steps of this factor
MAX_CANDIDATES = 100  # for each scan, on average
CHUNK_SIZE = 64
BLOCK_SIZE = 1024


@dataclass(frozen=True)
class NearDuplicates:
    """
    Pairs of near-duplicates, the most similar first.

    Attributes:
        pairs: indices of two scans, the lower first, int64 `[num_pairs, 2]`.
        similarity: of each pair, float32 `[num_pairs]` in [0, 1]; 1 for the same scan.
        transformations: what turns the first scan into the second, index into `TRANSFORMATIONS`, int64 `[num_pairs]`.
        compared: scans that could be compared at all, bool `[num_scans]`: not those with too few lines, or of one
            height nearly everywhere.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    transformations: np.ndarray
    compared: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)


def transform(lines: torch.Tensor, transformation: int) -> torch.Tensor:
    """Applies one of `TRANSFORMATIONS`, by index, to the last two axes of scans `[..., num_lines, pixels]`."""
    if transformation & 4:
        lines = lines.transpose(-2, -1)
    return lines.flip([axis for axis, bit in ((-2, 2), (-1, 1)) if transformation & bit])


def undo_transform(lines: torch.Tensor, transformation: int) -> torch.Tensor:
    """Undoes [`transform`]."""
    lines = transform(lines, transformation & TURNED)
    return lines.transpose(-2, -1) if transformation & 4 else lines


def equalize(lines: torch.Tensor) -> torch.Tensor:
    """
    What of the heights does not depend on their scale, nor on tilt and the offset of a line.

    Args:
        lines: heights `[num_scans, num_lines, pixels]`, NaN where nothing was measured.

    Returns:
        Ranks within each scan, from -0.5 to 0.5, less the means of lines and of columns; both once more of the result;
        of the same shape; 0 where nothing was measured.
    """
    measured = lines.isfinite()
    values = lines
    for _ in range(2):  # once more when flat: at first tilt and steps take most of the ranks, and streaks the highest
        values = _without_means(_ranks(values, measured), measured)
    return values


def _share_of_one_height(lines: torch.Tensor) -> np.ndarray:
    """Share of the measured pixels of each scan that have its most frequent height, `[num_scans]`."""
    shares = []
    for block in lines.split(CHUNK_SIZE):
        ordered = block.flatten(1).sort(dim=1).values  # NaN last
        places = torch.arange(ordered.shape[1]).expand_as(ordered)
        edge = torch.ones(len(ordered), 1, dtype=torch.bool)
        starts = (
            torch.where(torch.cat([edge, ordered[:, 1:] != ordered[:, :-1]], dim=1), places, 0).cummax(dim=1).values
        )
        runs = (places - starts + 1).masked_fill(ordered.isnan(), 0)
        shares.append(runs.amax(dim=1) / ordered.isfinite().sum(dim=1).clamp(min=1))
    return torch.cat(shares).numpy() if shares else np.empty(0)


def _ranks(values: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Ranks of the values of each scan that were measured, from -0.5 to 0.5, of the same shape; 0 for the others."""
    ordered, places = torch.where(measured, values, torch.inf).flatten(1).sort(dim=1)
    index = torch.arange(ordered.shape[1], dtype=torch.float32).expand_as(ordered)
    # equal heights share the mean of their ranks: pictures have few levels, and an order among equals would be made up
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones(len(ordered), 1, dtype=torch.bool)
    first = torch.where(torch.cat([edge, changes], dim=1), index, 0).cummax(dim=1).values
    last = torch.where(torch.cat([changes, edge], dim=1), index, torch.inf).flip(1).cummin(dim=1).values.flip(1)
    ranks = torch.empty_like(index).scatter_(1, places, (first + last) / 2).view(values.shape)
    count = measured.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return torch.where(measured, (ranks + 0.5) / count - 0.5, 0)


def _without_means(values: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Values `[num_scans, num_lines, pixels]` less the means of their lines and columns; 0 where not measured."""
    for axis in (2, 1):
        mean = values.sum(dim=axis, keepdim=True) / measured.sum(dim=axis, keepdim=True).clamp(min=1)
        values = torch.where(measured, values - mean, 0)
    return values


def find_near_duplicates(
    lines: torch.Tensor, threshold: float = THRESHOLD, on_progress: Callable[[float], None] | None = None
) -> NearDuplicates:
    """
    Finds near-duplicates among scans.

    Scans that were broken off are compared with the first lines of others, mirrored or not, but not turned by 90
    degrees.

    Args:
        lines: heights in any unit `[num_scans, num_lines, pixels]` in float32, NaN where nothing was measured.
        threshold: least similarity of near-duplicates, in [0, 1].
        on_progress: called with the share of the work that is done.

    Returns:
        All pairs of at least that similarity.

    Raises:
        ValueError: for lines of another shape, or a threshold outside [0, 1].
    """
    if lines.ndim != 3:
        raise ValueError(f"Expected lines [num_scans, num_lines, pixels], got shape {list(lines.shape)}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}.")
    num_scans, num_lines, width = lines.shape
    frame = max(num_lines, width)
    heights = _heights(lines)
    enough = (heights >= max(4, MIN_LINES * frame / 128)) & (_share_of_one_height(lines) <= MAX_ONE_HEIGHT)
    steps = np.ceil(np.log(np.maximum(heights, 1) / max(num_lines, 1)) / np.log(HEIGHT_STEP) - 1e-9)
    compared = np.zeros(num_scans, dtype=bool)
    found = []
    rounds = np.unique(steps[enough])
    for number, step in enumerate(rounds):

        def report(share: float, number: int = number) -> None:
            if on_progress is not None:
                on_progress((number + share) / len(rounds))

        shortest = enough & (steps == step)
        height = int(heights[shortest].min())
        members = np.flatnonzero(enough & (heights >= height))
        spectra = _spectra(lines, members, height, frame, lambda share: report(0.5 * share))
        compared[members] |= shortest[members] & (spectra.abs().amax(dim=(1, 2)) > 0).numpy()
        entries = _candidates(spectra, torch.from_numpy(shortest[members]), lambda share: report(0.5 + 0.25 * share))
        pairs, similarity, transformations = _align(spectra, entries, lambda share: report(0.75 + 0.25 * share))
        likely = similarity >= MIN_CORRELATION
        pairs, similarity, transformations = pairs[likely], similarity[likely], transformations[likely]
        everywhere = _local_similarity(spectra, pairs, transformations, (height / frame, width / frame))
        similarity = np.sqrt(similarity * everywhere.clip(0, 1))
        report(1)
        found.append((members[pairs], similarity, transformations))
    if not found:
        return NearDuplicates(np.empty((0, 2), np.int64), np.empty(0, np.float32), np.empty(0, np.int64), compared)
    pairs, similarity, transformations = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # the best of the ways in which a pair was aligned
    order = np.lexsort((transformations, pairs[:, 1], pairs[:, 0], -similarity))
    _, best = np.unique(pairs[order], axis=0, return_index=True)
    chosen = order[np.sort(best)]
    chosen = chosen[similarity[chosen] >= threshold]
    return NearDuplicates(pairs[chosen], similarity[chosen], transformations[chosen], compared)


def _heights(lines: torch.Tensor) -> np.ndarray:
    """Lines of each scan up to the last with anything measured."""
    measured = torch.cat([chunk.isfinite().any(dim=2) for chunk in lines.split(CHUNK_SIZE)]) if len(lines) else lines
    return (measured * torch.arange(1, lines.shape[1] + 1)).amax(dim=1).numpy() if len(lines) else np.empty(0, int)


def _frequencies(frame: int) -> torch.Tensor:
    """Cycles per frame but for 0, where lines and columns of mean 0 have nothing, `[2 * highest]`."""
    highest = min(MAX_FREQUENCY, frame // 2 - 1)
    return torch.tensor([k for k in range(-highest, highest + 1) if k != 0], dtype=torch.float32)


def _waves(length: int, frame: int) -> torch.Tensor:
    """Windowed waves around the middle, so that mirroring conjugates them, complex `[2 * highest, length]`."""
    place = torch.arange(length) - (length - 1) / 2
    window = torch.cos(np.pi * place / length) ** 2
    angle = 2 * np.pi / frame * _frequencies(frame)[:, None] * place
    return torch.polar(window.expand_as(angle).contiguous(), -angle)


def _spectra(
    lines: torch.Tensor, members: np.ndarray, height: int, frame: int, report: Callable[[float], None]
) -> torch.Tensor:
    """
    Flattened spectra of the first lines of scans, of norm 1, or 0 for a scan of one height.

    Half of the plane, since the other half is conjugate: complex64 `[num_members, 2 * highest, highest]`.
    """
    waves = _waves(height, frame)
    half = _waves(lines.shape[2], frame).chunk(2)[1].T.contiguous()
    spectra = []
    for start in range(0, len(members), CHUNK_SIZE):
        values = equalize(lines[members[start : start + CHUNK_SIZE], :height])
        spectrum = waves @ (values.to(half.dtype) @ half)
        modulus = spectrum.abs()
        spectrum = spectrum / _local_mean(modulus).clamp(min=1e-6)
        spectrum = spectrum * (spectrum.abs() + 1e-6) ** -FLATNESS
        spectra.append(spectrum / torch.linalg.vector_norm(spectrum, dim=(1, 2), keepdim=True).clamp(min=1e-6))
        report((start + len(values)) / len(members))
    return torch.cat(spectra)


def _whole(half: torch.Tensor) -> torch.Tensor:
    """Both halves of the plane, `[..., 2 * highest, 2 * highest]`."""
    return torch.cat([half.flip(-2, -1).conj(), half], dim=-1)


def _local_mean(modulus: torch.Tensor) -> torch.Tensor:
    """Mean over neighbouring frequencies, of the same shape as the half plane."""
    whole = torch.cat([modulus.flip(-2, -1), modulus], dim=-1)
    means = torch.nn.functional.avg_pool2d(
        whole[:, None], NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False
    )
    return means[:, 0, :, modulus.shape[-1] :]


def _candidates(spectra: torch.Tensor, wanted: torch.Tensor, report: Callable[[float], None]) -> torch.Tensor:
    """
    Pairs with similar moduli, at least one of them wanted, with the symmetry under which they are.

    Returns:
        int64 `[num_candidates, 3]`: first scan, second scan, transformation up to a turn by 180 degrees.
    """
    highest = spectra.shape[-1]
    modulus = spectra.abs()
    modulus = (modulus / _local_mean(modulus).clamp(min=1e-9)).clamp(max=2.5)
    modulus = modulus - modulus.mean(dim=(1, 2), keepdim=True)
    modulus = modulus / torch.linalg.vector_norm(modulus, dim=(1, 2), keepdim=True).clamp(min=1e-6)
    modulus[spectra.abs().amax(dim=(1, 2)) == 0] = 0
    features = modulus.flatten(1)
    found, scores = [], []
    for start in range(0, len(features), BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, len(features))
        whole = torch.cat([modulus[start:stop].flip(-2, -1), modulus[start:stop]], dim=-1)
        later = torch.arange(start, len(features)) > torch.arange(start, stop)[:, None]
        later &= wanted[start:stop, None] | wanted[start:]
        for transformation in (0, 1, 4, 5):
            turned = transform(whole, transformation)[..., highest:].flatten(1)
            score = (turned @ features[start:].T).masked_fill_(~later, 0)
            places = (score >= CANDIDATE_THRESHOLD).nonzero()
            scores.append(score[places[:, 0], places[:, 1]])
            label = torch.full((len(places), 1), transformation)
            found.append(torch.cat([places + start, label], dim=1))
        report(stop / len(features))
    entries = torch.cat(found)
    most = MAX_CANDIDATES * len(features)
    return entries if len(entries) <= most else entries[torch.cat(scores).topk(most).indices]


def _shifts(highest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frequencies `[2 * highest]`, and what shifts by lines `[shifts, 2 * highest]` and pixels make of their waves."""
    frequencies = torch.cat([-torch.arange(highest, 0, -1), torch.arange(1, highest + 1)])
    shifts = torch.arange(-MAX_SHIFT, MAX_SHIFT + 1) / 128
    angle = 2 * np.pi * shifts[:, None] * frequencies
    over_lines = torch.polar(torch.ones_like(angle), angle)
    return frequencies, over_lines, over_lines[:, highest:].T.contiguous()


def _align(
    spectra: torch.Tensor, entries: torch.Tensor, report: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarity of candidates, each at the better of two turns and at the best small shift."""
    highest = spectra.shape[-1]
    _, over_lines, over_pixels = _shifts(highest)
    similarities = torch.zeros(len(entries))
    transformations = entries[:, 2].clone()
    for start in range(0, len(entries), 4 * CHUNK_SIZE):
        chunk = entries[start : start + 4 * CHUNK_SIZE]
        second = spectra[chunk[:, 1]].conj()
        for transformation in (0, 1, 4, 5):
            of_kind = (chunk[:, 2] == transformation).nonzero()[:, 0]
            whole = _whole(spectra[chunk[of_kind, 0]])
            for turned in (transformation, transformation ^ TURNED):
                product = transform(whole, turned)[..., highest:] * second[of_kind]
                correlation = (over_lines @ (product @ over_pixels)).real.amax(dim=(1, 2))
                places = start + of_kind
                better = correlation > similarities[places]
                similarities[places[better]] = correlation[better]
                transformations[places[better]] = turned
        report(min(1.0, (start + len(chunk)) / max(len(entries), 1)))
    return entries[:, :2].numpy(), similarities.clamp(max=1).numpy(), transformations.numpy()


def _local_similarity(
    spectra: torch.Tensor, pairs: np.ndarray, transformations: np.ndarray, extent: tuple[float, float]
) -> np.ndarray:
    """
    Median correlation of aligned pairs over the parts of what was measured, lines and pixels as shares of the frame:
    `[num_pairs]`.

    Two scans that have nothing but a streak of one line in common are alike there, and nowhere else.
    """
    highest = spectra.shape[-1]
    frequencies, over_lines, over_pixels = _shifts(highest)
    place = (torch.arange(PARTS * POINTS) + 0.5) / (PARTS * POINTS) - 0.5
    over, along = (
        torch.polar(torch.ones_like(angle), angle)
        for angle in (2 * np.pi * share * place[:, None] * frequencies for share in extent)
    )
    result = np.empty(len(pairs), dtype=np.float32)
    for transformation in np.unique(transformations):
        of_kind = np.flatnonzero(transformations == transformation)
        for chunk in np.array_split(of_kind, 1 + len(of_kind) // CHUNK_SIZE):
            first = transform(_whole(spectra[pairs[chunk, 0]]), int(transformation))
            second = _whole(spectra[pairs[chunk, 1]])
            product = (first * second.conj())[..., highest:]
            best = (over_lines @ (product @ over_pixels)).real.flatten(1).argmax(dim=1)
            shift = over_lines[best // len(over_lines)][:, :, None] * over_lines[best % len(over_lines)][:, None, :]
            one, other = ((over @ (values @ along.T)).real for values in (first * shift, second))
            parts = [
                values.unflatten(2, (PARTS, POINTS)).unflatten(1, (PARTS, POINTS)).transpose(2, 3).flatten(3)
                for values in (one, other)
            ]
            correlation = torch.nn.functional.cosine_similarity(parts[0], parts[1], dim=-1)
            result[chunk] = correlation.flatten(1).median(dim=1).values.numpy()
    return result


def merge_groups(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """
    Makes one group of all that near-duplicates connect, so that a split by groups keeps them on one side.

    Args:
        groups: name of the group of each scan, str `[num_scans]`.
        pairs: indices of near-duplicates `[num_pairs, 2]`.

    Returns:
        New names `[num_scans]`: of the groups that became one, that which comes first in the alphabet.
    """
    names, places = np.unique(groups, return_inverse=True)
    ends = places[np.asarray(pairs, dtype=np.int64).reshape(-1, 2)]
    graph = coo_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, components = connected_components(graph, directed=False)
    _, firsts = np.unique(components, return_index=True)
    return names[firsts[components[places]]]


def keep_together(
    method: str, sessions: np.ndarray, scan_ids: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, str]:
    """
    What a split that knows near-duplicates holds together.

    Args:
        method: how it splits: by `"sessions"`, or single scans, `"random"`, or not at all, `"all"` and `"validation"`.
        sessions: of the scans, `[num_scans]`.
        scan_ids: of the scans, `[num_scans]`.
        pairs: near-duplicates, `[num_pairs, 2]`.

    Returns:
        Groups `[num_scans]`, and the method that splits by them: sessions that share near-duplicates are one group; of
        single scans, each with its near-duplicates is.
    """
    groups = merge_groups(scan_ids if method == "random" else sessions, pairs)
    return groups, method if method in ("all", "validation") else "sessions"


def across_sides(pairs: np.ndarray, parts: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """
    Near-duplicates on different sides of a split.

    Args:
        pairs: indices of near-duplicates `[num_pairs, 2]`.
        parts: indices of the scans of each part.

    Returns:
        For each two parts, in the order of `parts`, the places in `pairs` of what they share.
    """
    names = list(parts)
    sides = {int(scan): side for side, name in enumerate(names) for scan in parts[name]}
    of_pair = np.array([sorted(sides.get(int(scan), -1) for scan in pair) for pair in pairs]).reshape(-1, 2)
    return {
        (names[first], names[second]): np.flatnonzero((of_pair[:, 0] == first) & (of_pair[:, 1] == second))
        for first in range(len(names))
        for second in range(first + 1, len(names))
    }
