import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler

from data_scripts.augmentation import Augmentation
from data_scripts.builders import scan_features
from data_scripts.scan_dataset import ScanDataset, StoredLines, collate_batch, lines_of
from modeling_scanline.image_processing_scanline import NORMALIZATIONS, normalize_lines

NUM_LINES, WIDTH = 12, 8
COUNTS = [12, 5, 12, 1, 9, 3, 12, 7]
AUGMENTATION = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, min_crop=0.7, noise=0.2, contrast=0.3)
LABELS = np.arange(len(COUNTS)) % 3


@pytest.fixture
def lines() -> torch.Tensor:
    heights = torch.randn(len(COUNTS), NUM_LINES, WIDTH, generator=torch.Generator().manual_seed(0)) + 3
    for scan, count in zip(heights, COUNTS, strict=True):
        scan[count:] = float("nan")
    return heights


@pytest.fixture
def plain(lines) -> ScanDataset:
    return ScanDataset(lines, LABELS)


def assert_same_batch(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def augmented(lines: torch.Tensor, seed: int = 0, epoch: int = 0) -> ScanDataset:
    dataset = ScanDataset(lines, LABELS, augmentation=AUGMENTATION, seed=seed)
    dataset.set_epoch(epoch)
    return dataset


class TestBatch:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(
        indices=st.lists(st.integers(0, len(COUNTS) - 1), min_size=1, max_size=6),
        normalization=st.sampled_from(NORMALIZATIONS),
    )
    def test_is_its_single_scans_stacked(self, indices, normalization):
        heights = torch.arange(float(len(COUNTS) * NUM_LINES * WIDTH)).sin().view(len(COUNTS), NUM_LINES, WIDTH)
        beyond = torch.arange(NUM_LINES) >= torch.tensor(COUNTS)[:, None]
        dataset = ScanDataset(heights.masked_fill(beyond[..., None], float("nan")), LABELS, normalization)
        batch = dataset.__getitems__(indices)
        singles = [dataset[index] for index in indices]
        for name in ("pixel_values", "attention_mask"):
            stacked = torch.nn.utils.rnn.pad_sequence([single[name] for single in singles], batch_first=True)
            assert torch.equal(batch[name], stacked)
        assert batch["labels"].tolist() == [int(single["labels"]) for single in singles] == LABELS[indices].tolist()

    def test_is_the_normalized_scan(self, lines, plain):
        values, mask = normalize_lines(lines[2:3], "line")
        assert torch.equal(plain[2]["pixel_values"], values[0]) and torch.equal(plain[2]["attention_mask"], mask[0])

    def test_is_trimmed_to_its_longest_scan_and_masked(self, plain):
        batch = plain.__getitems__([1, 5, 3])
        assert batch["pixel_values"].shape == (3, 5, WIDTH)
        assert batch["attention_mask"].sum(dim=1).tolist() == [5, 3, 1]
        assert (batch["pixel_values"][batch["attention_mask"] == 0] == 0).all()

    def test_gap_within_a_scan_is_kept(self, lines):
        lines[0, 4] = float("nan")
        item = ScanDataset(lines, None)[0]
        assert item["attention_mask"].tolist() == [1] * 4 + [0] + [1] * 7

    def test_scan_without_any_line_leaves_one(self, lines):
        item = ScanDataset(torch.full_like(lines, float("nan")), None)[0]
        assert item["pixel_values"].shape == (1, WIDTH) and item["attention_mask"].tolist() == [0]

    def test_no_labels(self, lines):
        assert set(ScanDataset(lines, None)[0]) == {"pixel_values", "attention_mask"}

    def test_distributions_as_labels(self, lines):
        labels = np.full((len(COUNTS), 2), 0.5, dtype=np.float32)
        batch = ScanDataset(lines, labels).__getitems__([0, 1])
        assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (2, 2)

    def test_as_many_labels_as_scans(self, lines):
        with pytest.raises(ValueError, match="as many labels as scans, got 7 and 8"):
            ScanDataset(lines, LABELS[:-1])

    def test_scans_are_never_changed(self, lines):
        before = lines.clone()
        augmented(lines).__getitems__([0, 1, 2])
        np.testing.assert_array_equal(lines, before)

    def test_all_scans_in_turn(self, plain):
        assert len(list(plain)) == len(plain) == len(COUNTS)


class TestFirstLines:
    def test_are_those_of_the_scan(self, plain):
        short = plain.first_lines(4)
        assert len(short) == len(plain)
        for index in range(len(plain)):
            whole = plain[index]
            assert torch.equal(short[index]["pixel_values"], whole["pixel_values"][:4])
            assert torch.equal(short[index]["attention_mask"], whole["attention_mask"][:4])
            assert torch.equal(short[index]["labels"], whole["labels"])

    def test_do_not_see_the_rest(self, lines):
        changed = lines.clone()
        changed[:, 4:] = 100
        for normalization in ("line", "global"):
            one, other = (ScanDataset(heights, LABELS, normalization).first_lines(4) for heights in (lines, changed))
            assert_same_batch(one.__getitems__([0, 1, 3]), other.__getitems__([0, 1, 3]))

    def test_more_than_there_are(self, plain):
        assert_same_batch(plain.first_lines(99)[1], plain[1])


class TestSelect:
    @pytest.mark.parametrize("stored", [False, True])
    def test_is_these_scans_as_they_are(self, stored):
        scans = datasets.Dataset.from_dict(
            {"lines": [np.full((3, 4), float(number), dtype=np.float32) for number in range(5)]},
            features=datasets.Features({"lines": datasets.Array2D((None, 4), "float32")}),
        )
        lines = StoredLines(scans, 3) if stored else lines_of(scans, 3)
        dataset = ScanDataset(lines, torch.arange(5), "none", Augmentation(noise=0.5))
        batch = dataset.select(np.array([3, 1])).__getitems__([0, 1])
        assert batch["pixel_values"][:, 0, 0].tolist() == [3, 1] and batch["labels"].tolist() == [3, 1]


class TestAugmentation:
    def test_is_the_same_whatever_came_before(self, lines):
        one, other = augmented(lines, seed=3, epoch=2), augmented(lines, seed=3)
        one.__getitems__([4, 5])
        torch.rand(7)
        other.set_epoch(2)
        assert_same_batch(one.__getitems__([0, 2, 6]), other.__getitems__([0, 2, 6]))

    @pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
    def test_other_seed_or_epoch(self, change, lines):
        one, other = augmented(lines), augmented(lines, **change)
        assert not torch.equal(*(dataset.__getitems__([0, 2])["pixel_values"] for dataset in (one, other)))

    def test_seed_and_epoch_are_no_sum(self, lines):
        one, other = augmented(lines, seed=1, epoch=0), augmented(lines, seed=0, epoch=1)
        assert not torch.equal(*(dataset.__getitems__([0, 2])["pixel_values"] for dataset in (one, other)))

    def test_other_scans_in_the_batch(self, lines):
        dataset = augmented(lines)
        first, second = dataset.__getitems__([0, 2]), dataset.__getitems__([0, 6])
        assert not torch.equal(first["pixel_values"][0], second["pixel_values"][0])

    def test_none_without_it(self, plain):
        before = plain.__getitems__([0, 2])
        plain.set_epoch(5)
        assert_same_batch(plain.__getitems__([0, 2]), before)


@pytest.mark.parametrize("num_workers", [0, 1])
class TestLoader:
    def load(self, dataset, num_workers, **options):
        options = {"batch_size": 3, "collate_fn": collate_batch, **options}
        return list(DataLoader(dataset, num_workers=num_workers, **options))

    def test_hands_out_whole_batches(self, plain, num_workers):
        batches = self.load(plain, num_workers)
        for batch, indices in zip(batches, ([0, 1, 2], [3, 4, 5], [6, 7]), strict=True):
            assert_same_batch(batch, plain.__getitems__(indices))

    def test_augments_alike_with_any_number_of_workers(self, lines, num_workers):
        dataset = augmented(lines, seed=4, epoch=1)
        shuffled = RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
        order = list(RandomSampler(dataset, generator=torch.Generator().manual_seed(0)))
        batches = self.load(dataset, num_workers, sampler=shuffled, drop_last=True)
        for number, batch in enumerate(batches):
            assert_same_batch(batch, dataset.__getitems__(order[3 * number : 3 * number + 3]))
        assert len(batches) == 2


def table(counts: list[int], first: int = 0) -> datasets.Dataset:
    """Scans of these numbers of lines, with a gap in each; no height occurs twice."""
    rows = []
    for number, count in enumerate(counts, start=first):
        heights = 10_000.0 * number + np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH)
        heights[count // 2, 1] = np.nan
        rows.append(
            {
                "scan_id": str(number),
                "session": None,
                "lines": heights,
                "label": number % 2,
                "scores": [0.5, 0.5],
                "line_labels": None,
                "change_lines": None,
            }
        )
    return datasets.Dataset.from_list(rows, features=scan_features(["a", "b"], WIDTH))


def naive_lines(scans: datasets.Dataset, num_lines: int) -> np.ndarray:
    result = np.full((len(scans), num_lines, WIDTH), np.nan, dtype=np.float32)
    for row, lines in zip(result, scans["lines"], strict=True):
        lines = np.array(lines, dtype=np.float32)[:num_lines]
        row[: len(lines)] = lines
    return result


ARRANGEMENTS = {
    "as they are": lambda scans: scans,
    "shuffled": lambda scans: scans.shuffle(seed=1),
    "chosen": lambda scans: scans.select([6, 0, 3, 3, 1]),
    "a range": lambda scans: scans.select(range(2, 6)),
    "chosen from a range": lambda scans: scans.select(range(2, 8)).select([3, 0, 5]),
    "a shard": lambda scans: scans.shard(3, 1),
    "sorted": lambda scans: scans.sort("scan_id", reverse=True),
    "joined": lambda scans: datasets.concatenate_datasets([scans, table([2, 12], 20), scans.select(range(5, 8))]),
    "joined and shuffled": lambda scans: datasets.concatenate_datasets([scans, table([2, 12], 20)]).shuffle(seed=2),
    "a range over what was joined": lambda scans: datasets.concatenate_datasets([scans, table([2, 12], 20)]).select(
        range(6, 10)
    ),
    "joined from ranges": lambda scans: datasets.concatenate_datasets(
        [scans.select(range(1, 3)), scans.select(range(4, 6))]
    ),
    "filtered": lambda scans: scans.filter(lambda label: label == 1, input_columns="label"),
    "none": lambda scans: scans.select([]),
    "none by filter": lambda scans: scans.filter(lambda label: label > 5, input_columns="label"),
    "as torch": lambda scans: scans.with_format("torch").select([4, 1]),
    "some columns": lambda scans: scans.select_columns(["lines"]).select([4, 1]),
}


class TestLinesOf:
    @pytest.mark.filterwarnings("ignore::FutureWarning")  # of pyarrow, about how datasets sorts
    @pytest.mark.parametrize("num_lines", [1, 5, NUM_LINES, 20])
    @pytest.mark.parametrize("arrangement", ARRANGEMENTS)
    def test_equals_a_loop(self, arrangement, num_lines):
        scans = ARRANGEMENTS[arrangement](table(COUNTS))
        lines = lines_of(scans, num_lines)
        assert lines.dtype == torch.float32
        np.testing.assert_array_equal(lines, naive_lines(scans.with_format(None), num_lines))

    def test_of_a_dataset_from_disk(self, load, tmp_path):
        images = np.random.default_rng(0).normal(size=(70, 16, 16))
        np.savez(tmp_path / "scans.npz", images=images, labels=np.arange(70) % 2)
        scans = load("npz", tmp_path / "scans.npz", pixels_per_line=WIDTH, max_lines=NUM_LINES)
        for chosen in (scans, scans.shuffle(seed=0), scans.select(range(60, 70))):
            np.testing.assert_array_equal(lines_of(chosen, 6), naive_lines(chosen, 6))

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("arrangement", ARRANGEMENTS)
    def test_stored_lines_are_the_same_a_batch_at_a_time(self, arrangement):
        scans = ARRANGEMENTS[arrangement](table(COUNTS))
        whole, stored = lines_of(scans, 7), StoredLines(scans, 9).first_lines(7)
        assert stored.shape == tuple(whole.shape) and len(stored) == len(whole)
        chosen = np.arange(len(whole))[::-2].copy()
        for batch in (stored[chosen], stored[torch.from_numpy(chosen)], stored.select(chosen)[range(len(chosen))]):
            np.testing.assert_array_equal(batch, whole[chosen.copy()])
        np.testing.assert_array_equal(stored.count_measured(), whole.isfinite().any(dim=-1).sum(dim=1))

    def test_a_dataset_on_the_disk_gives_the_batches_of_one_in_memory(self):
        scans = table(COUNTS)
        one, other = (augmented(lines) for lines in (lines_of(scans, NUM_LINES), StoredLines(scans, NUM_LINES)))
        for indices in ([0, 5, 2], [7, 1]):
            assert_same_batch(one.__getitems__(indices), other.__getitems__(indices))
            assert_same_batch(one.first_lines(4).__getitems__(indices), other.first_lines(4).__getitems__(indices))
        assert torch.equal(one.measured, other.measured)

    def test_may_be_written_to(self):
        scans = table(COUNTS)
        lines_of(scans, NUM_LINES).zero_()
        np.testing.assert_array_equal(lines_of(scans, NUM_LINES), naive_lines(scans, NUM_LINES))


class TestSegments:
    LINES = torch.arange(30.0).view(1, 30, 1).expand(40, 30, 2).clone()

    def dataset(self) -> ScanDataset:
        lines = self.LINES.clone()
        lines[1, 12:] = float("nan")
        lines[2, 5:] = float("nan")
        return ScanDataset(lines, torch.zeros(40, dtype=torch.long), "none", segment_lines=8, segment_epochs=2)

    def test_are_consecutive_lines_from_anywhere(self):
        batch = self.dataset().__getitems__(list(range(40)))
        first, last = batch["pixel_values"][:, 0, 0], batch["pixel_values"][:, -1, 0]
        assert batch["pixel_values"].shape == (40, 8, 2)
        whole = torch.arange(40) != 2
        assert torch.equal((last - first)[whole], torch.full((39,), 7.0))
        assert first.min() == 0 and last.max() == 29 and last[1] <= 11
        assert batch["attention_mask"].sum(dim=1).tolist() == [8, 8, 5, *[8] * 37]

    def test_end_with_their_epochs(self):
        dataset = self.dataset()
        dataset.set_epoch(2)
        assert dataset.__getitems__([0, 3])["pixel_values"].shape == (2, 30, 2)

    def test_other_epochs_other_lines(self):
        dataset = self.dataset()
        first = dataset.__getitems__(list(range(40)))["pixel_values"]
        assert torch.equal(first, self.dataset().__getitems__(list(range(40)))["pixel_values"])
        dataset.set_epoch(1)
        assert not torch.equal(first, dataset.__getitems__(list(range(40)))["pixel_values"])

    @pytest.mark.parametrize("persistent_workers", [False, True])
    def test_end_in_workers_that_outlive_an_epoch_as_well(self, persistent_workers):
        dataset = self.dataset()
        options = {"num_workers": 1, "persistent_workers": persistent_workers, "collate_fn": collate_batch}
        loader = DataLoader(dataset, 40, **options)
        assert next(iter(loader))["pixel_values"].shape == (40, 8, 2)
        dataset.set_epoch(2)
        assert next(iter(loader))["pixel_values"].shape == (40, 30, 2)

    def test_not_where_scans_are_scored(self):
        assert self.dataset().select(np.arange(3)).__getitems__([0])["pixel_values"].shape == (1, 30, 2)
