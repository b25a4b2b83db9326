import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.augmentation import Augmentation
from modeling_scanline.image_processing_scanline import NORMALIZATIONS, normalize_lines

NUM_SCANS, NUM_LINES, NUM_PIXELS = 12, 24, 20
COUNTS = torch.tensor([NUM_LINES, 7, 1, 0] * 3)  # measured lines: whole, partial, one, none
SWITCHES = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "min_crop": 0.6,
    "max_crop": 2.0,
    "rotation": 30.0,
    "shear": 0.3,
    "contrast": 0.5,
    "noise": 0.3,
    "line_dropout": 0.3,
    "random_cutoff": 0.5,
}
KEEP_COUNT = [name for name in SWITCHES if name != "random_cutoff"]
single = pytest.mark.parametrize("switch", SWITCHES)


def augment(lines: torch.Tensor, seed: int = 0, **settings) -> torch.Tensor:
    return Augmentation(**settings)(lines, torch.Generator().manual_seed(seed))


def num_measured(lines: torch.Tensor) -> torch.Tensor:
    return lines.isfinite().any(dim=-1).sum(dim=1)


def partial(lines: torch.Tensor, counts: torch.Tensor = COUNTS) -> torch.Tensor:
    beyond = torch.arange(lines.shape[1]) >= counts[:, None]
    return lines.masked_fill(beyond[..., None], float("nan"))


@pytest.fixture
def whole() -> torch.Tensor:
    """Scans without a gap, far from height zero."""
    return torch.randn(NUM_SCANS, NUM_LINES, NUM_PIXELS, generator=torch.Generator().manual_seed(7)) + 50


@pytest.fixture
def scans(whole) -> torch.Tensor:
    """Whole and partial scans, one without any line."""
    return partial(whole)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    np.testing.assert_array_equal(one.numpy(), other.numpy())


class TestEverySwitch:
    def test_all_off_is_identity(self, scans):
        assert_same(augment(scans), scans)

    @single
    def test_on_changes_scans_and_leaves_its_input(self, switch, scans):
        before = scans.clone()
        after = augment(scans, **{switch: SWITCHES[switch]})
        assert after.shape == scans.shape and after.dtype == torch.float32
        assert not after.equal(before) and not after.nan_to_num(0).equal(before.nan_to_num(0))
        assert_same(scans, before)

    @single
    def test_generator_decides(self, switch, scans):
        first, again, other = (augment(scans, seed, **{switch: SWITCHES[switch]}) for seed in (1, 1, 2))
        assert_same(first, again)
        assert not first.nan_to_num(0).equal(other.nan_to_num(0))

    @single
    def test_global_random_numbers_are_left_alone(self, switch, scans):
        state = torch.get_rng_state()
        augment(scans, **{switch: SWITCHES[switch]})
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("switch", KEEP_COUNT)
    def test_partial_scan_stays_as_partial(self, switch, scans):
        after = augment(scans, **{switch: SWITCHES[switch]})
        assert_same(after.isfinite(), scans.isfinite())

    def test_together_on_partial_scans(self, scans):
        after = augment(scans, **{name: SWITCHES[name] for name in KEEP_COUNT})
        assert_same(after.isfinite(), scans.isfinite())

    @pytest.mark.parametrize("switch", ["contrast", "noise", "line_dropout"])
    def test_nan_never_spreads(self, switch, whole):
        gaps = whole.masked_fill(
            torch.rand(whole.shape, generator=torch.Generator().manual_seed(1)) < 0.3, float("nan")
        )
        assert_same(augment(gaps, **{switch: SWITCHES[switch]}).isfinite(), gaps.isfinite())

    @pytest.mark.parametrize("switch", ["horizontal_flip", "vertical_flip", "min_crop"])
    def test_scans_do_not_mix(self, switch, whole):
        whole = whole + 1000 * torch.arange(NUM_SCANS)[:, None, None]
        after = augment(whole, **{switch: SWITCHES[switch]})
        assert ((after / 1000).floor() == torch.arange(NUM_SCANS)[:, None, None]).all()


class TestFlips:
    def test_horizontal(self, scans):
        assert_same(augment(scans, horizontal_flip=1.0), scans.flip(-1))

    def test_horizontal_of_some(self, scans):
        after = augment(scans, horizontal_flip=0.5)
        flipped = [
            not torch.equal(one[:count], two[:count])
            for one, two, count in zip(after, scans, COUNTS.tolist(), strict=True)
        ]
        assert 0 < sum(flipped) < sum(COUNTS > 0)
        expected = torch.where(torch.tensor(flipped)[:, None, None], scans.flip(-1), scans)
        assert_same(after, expected)

    def test_vertical_reverses_measured_lines_only(self, scans):
        after = augment(scans, vertical_flip=1.0)
        for before, reversed_, count in zip(scans, after, COUNTS.tolist(), strict=True):
            assert_same(reversed_[:count], before[:count].flip(0))
            assert reversed_[count:].isnan().all()

    def test_vertical_keeps_a_gap_in_its_place(self, whole):
        whole[:, 3] = float("nan")
        assert_same(augment(whole, vertical_flip=1.0), whole.flip(1))

    def test_constant_line_stays_constant_beside_a_strong_one(self, whole):
        whole[:, ::2] = 5.0
        whole[:, 1::2] *= 1000
        after = augment(whole, horizontal_flip=1.0, vertical_flip=1.0)
        assert_same(after, whole.flip(1, 2))


class TestLargerAreas:
    def test_hold_the_whole_scan_and_its_mirror_images(self, whole):
        slope = 3.0 * torch.arange(NUM_LINES)[:, None] + 2.0 * torch.arange(NUM_PIXELS)
        after = augment(slope.expand(NUM_SCANS, -1, -1), min_crop=1.0, max_crop=2.0)
        assert after.min() >= slope.min() and after.max() <= slope.max()
        steps = after.diff(dim=2).abs().amax(dim=(1, 2))
        assert (steps <= 4.001).all() and (steps >= 2).all() and steps.std() > 0.1  # pixels up to twice as large
        # most of the scan, which ends between two places, is there
        assert (after.amin(dim=(1, 2)) < slope.min() + 6).all() and (after.amax(dim=(1, 2)) > slope.max() - 6).all()

    def test_stripes_get_finer_and_stay_stripes(self):
        waves = torch.sin(torch.arange(64) * 2 * np.pi / 16).expand(NUM_SCANS, 64, 64)
        after = augment(waves, max_crop=2.0)
        assert after.abs().max() <= 1 and (after.std(dim=1) < 1e-5).all()
        crossings = (after[:, 0, 1:] * after[:, 0, :-1] < 0).sum(dim=1)
        assert crossings.min() >= 7 and 10 <= crossings.max() <= 17


class TestCrop:
    def test_pixels_stay_square(self):
        """On a slope, a zoom divides the steps along lines and pixels by the same factor."""
        slope = 3.0 * torch.arange(NUM_LINES)[:, None] + 2.0 * torch.arange(NUM_PIXELS)
        after = augment(slope.expand(NUM_SCANS, -1, -1), min_crop=0.5)[:, 2:-2, 2:-2]
        along, across = after.diff(dim=1), after.diff(dim=2)
        zoom = across.mean(dim=(1, 2), keepdim=True) / 2
        torch.testing.assert_close(along / 3, zoom.expand_as(along), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(across / 2, zoom.expand_as(across), rtol=1e-3, atol=1e-3)
        assert zoom.min() >= 0.5 - 1e-3 and zoom.max() <= 1 + 1e-3 and zoom.std() > 0.05

    def test_partial_scan_is_zoomed_within_its_lines(self):
        slope = torch.arange(float(NUM_LINES))[:, None].expand(NUM_LINES, NUM_PIXELS)
        before = partial(slope.repeat(NUM_SCANS, 1, 1), torch.full((NUM_SCANS,), 10))
        after = augment(before, min_crop=0.5)
        assert (num_measured(after) == 10).all()
        assert after.nan_to_num(0).min() >= 0 and after.nan_to_num(0).max() <= 9 + 1e-4
        steps = after[:, 1:9, 0].diff(dim=1)
        assert (steps > 0.49).all() and (steps < 1.01).all()

    def test_window_moves(self):
        slope = torch.arange(float(NUM_PIXELS)).expand(200, NUM_LINES, NUM_PIXELS)
        first = augment(slope, min_crop=0.5)[:, 0, 0]
        assert first.min() < 1 and first.max() > 0.4 * NUM_PIXELS

    def test_heights_next_to_a_gap_are_not_pulled_to_zero(self, whole):
        whole[:, 5:9, 4:11] = float("nan")
        after = augment(whole, min_crop=0.7)
        assert after.isnan().any()
        assert after.nan_to_num(50).min() > 40


class TestContrast:
    def test_keeps_lowest_highest_and_order(self, scans):
        after = augment(scans, contrast=1.0)
        for before, changed, count in zip(scans, after, COUNTS.tolist(), strict=True):
            if not count:
                continue
            before, changed = before[:count].ravel(), changed[:count].ravel()
            torch.testing.assert_close(changed.aminmax(), before.aminmax())
            assert (changed[before.argsort()].diff() >= 0).all()

    def test_power_within_bounds(self, whole):
        after = augment(whole, contrast=0.5)
        low, high = whole.amin(dim=(1, 2), keepdim=True), whole.amax(dim=(1, 2), keepdim=True)
        before, changed = (whole - low) / (high - low), (after - low) / (high - low)
        middle = (before > 0.2) & (before < 0.8)
        powers = changed[middle].log() / before[middle].log()
        assert powers.min() > np.exp(-0.51) and powers.max() < np.exp(0.51) and powers.std() > 0.1

    def test_constant_scan_stays(self):
        flat = torch.full((3, 4, 5), 2.5)
        assert_same(augment(flat, contrast=1.0), flat)


class TestNoise:
    def test_is_a_share_of_the_spread_of_the_line(self):
        wave = torch.sin(torch.arange(2000.0)) * torch.tensor([1.0, 100.0])[:, None]
        after = augment(wave.repeat(40, 1, 1), noise=0.2)
        share = (after - wave).std(dim=-1) / wave.std(dim=-1)
        assert share.max() <= 0.21
        torch.testing.assert_close(share[:, 0], share[:, 1], rtol=0.15, atol=0.0)  # one strength a scan
        assert share.mean() == pytest.approx(0.1, abs=0.03) and share[:, 0].std() > 0.03

    def test_gap_in_a_line_does_not_count_as_height_zero(self, whole):
        half = whole.clone()
        half[..., NUM_PIXELS // 2 :] = float("nan")
        assert (augment(half, noise=0.2) - half).abs().nan_to_num(0).max() < 1.5

    def test_constant_line_stays(self):
        flat = torch.full((3, 4, 5), 2.5)
        assert_same(augment(flat, noise=1.0), flat)

    def test_line_of_one_pixel_stays(self):
        narrow = torch.arange(6.0).view(2, 3, 1)
        assert_same(augment(narrow, noise=1.0), narrow)


class TestLineDropout:
    def test_makes_some_lines_constant_and_leaves_the_others(self, scans):
        after = augment(scans, line_dropout=0.3)
        measured = scans.isfinite().all(dim=-1)
        constant = (after == after[..., :1]).all(dim=-1) & measured
        assert_same(after[measured & ~constant], scans[measured & ~constant])
        assert 0.1 < constant.sum() / measured.sum() < 0.5
        values, mask = normalize_lines(after, "line")
        assert (values[constant] == 0).all() and mask[constant].all()

    def test_of_all(self, scans):
        after = augment(scans, line_dropout=1.0)
        means = scans.mean(dim=-1, keepdim=True).expand_as(scans)
        torch.testing.assert_close(after, means, equal_nan=True)

    def test_constant_is_the_mean_of_what_was_measured(self, whole):
        whole[..., 3:] = float("nan")
        after = augment(whole, line_dropout=1.0)[..., :3]
        torch.testing.assert_close(after, whole[..., :3].mean(dim=-1, keepdim=True).expand_as(after))


class TestCutoff:
    @pytest.mark.parametrize("fewest", [1, 5, NUM_LINES, 2 * NUM_LINES])
    def test_leaves_the_first_lines(self, fewest, whole):
        after = augment(whole.repeat(20, 1, 1), random_cutoff=1.0, min_cutoff_lines=fewest)
        counts = num_measured(after)
        assert counts.min() == min(fewest, NUM_LINES) and counts.max() == NUM_LINES
        assert_same(after, partial(whole.repeat(20, 1, 1), counts))

    def test_never_cuts_a_partial_scan_below_its_bound(self, scans):
        counts = num_measured(augment(scans, random_cutoff=1.0, min_cutoff_lines=6))
        assert (counts >= COUNTS.clamp(max=6)).all() and (counts <= COUNTS).all()

    def test_probability(self, whole):
        counts = num_measured(augment(whole.repeat(50, 1, 1), random_cutoff=0.4, min_cutoff_lines=1))
        assert (counts < NUM_LINES).float().mean() == pytest.approx(0.4 * (1 - 1 / NUM_LINES), abs=0.06)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    offset=st.sampled_from([0.0, 1e-9, 1e4]),
    normalization=st.sampled_from(NORMALIZATIONS),
    seed=st.integers(0, 10**6),
)
def test_model_never_sees_nan(shape, share, offset, normalization, seed):
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(shape, generator=generator) + offset
    lines[torch.rand(shape, generator=generator) < share] = float("nan")
    after = Augmentation(**SWITCHES)(lines, generator)
    values, mask = normalize_lines(after, normalization)
    assert after.shape == values.shape == shape and mask.shape == shape[:2]
    assert values.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        *(
            ({name: value}, f"{name} is a probability")
            for name in ("horizontal_flip", "vertical_flip", "line_dropout", "random_cutoff")
            for value in (-0.1, 1.1, float("nan"))
        ),
        *(({"min_crop": value}, "min_crop is a share") for value in (0, -1, 1.5, float("nan"))),
        *(
            ({name: value}, "must not be negative")
            for name in ("contrast", "noise")
            for value in (-0.1, float("nan"), float("inf"))
        ),
        ({"min_cutoff_lines": 0}, "min_cutoff_lines at least 1"),
    ],
)
def test_impossible_settings(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Augmentation(**settings)


class TestTurning:
    """Of planes, whose slopes tell what was done to them; the middle is free of mirrored corners."""

    Y, X = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    MIDDLE = (slice(None), slice(8, 16), slice(8, 16))

    def slopes(self, heights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, x = torch.gradient(heights[self.MIDDLE], dim=(1, 2))
        return x.mean(dim=(1, 2)), y.mean(dim=(1, 2))

    def test_keeps_the_slope_and_turns_its_direction(self):
        x, y = self.slopes(augment(self.X.expand(50, -1, -1), rotation=20.0))
        torch.testing.assert_close(torch.hypot(x, y), torch.ones(50), atol=1e-4, rtol=0)
        angle = torch.atan2(y, x).abs().rad2deg()
        assert angle.max() <= 20 + 1e-3 and angle.max() > 15

    def test_shear_moves_lines_along_themselves(self):
        x, y = self.slopes(augment(self.X.expand(50, -1, -1), shear=0.3))
        torch.testing.assert_close(x, torch.ones(50), atol=1e-4, rtol=0)
        assert 0.2 < y.abs().max() <= 0.3 + 1e-4
        still = self.Y.expand(5, -1, -1)
        torch.testing.assert_close(augment(still, shear=0.3), still)

    def test_nothing_from_beyond_the_scan(self):
        lines = partial(torch.rand(12, 24, 20), COUNTS)
        turned = augment(lines, rotation=180.0)
        np.testing.assert_array_equal(num_measured(turned), num_measured(lines))
        assert turned.nan_to_num(0.5).min() >= 0 and turned.nan_to_num(0.5).max() <= 1

    @pytest.mark.parametrize("settings", [{"rotation": 181}, {"rotation": -1}, {"shear": 1.5}])
    def test_impossible(self, settings):
        with pytest.raises(ValueError, match="rotation must lie in"):
            Augmentation(**settings)
