import importlib.util
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.near_duplicates import (
    THRESHOLD,
    TRANSFORMATIONS,
    across_sides,
    equalize,
    find_near_duplicates,
    merge_groups,
    transform,
    undo_transform,
)
from data_scripts.simulation import SimulationOptions, simulate
from data_scripts.splits import Split

needs_command = pytest.mark.skipif(
    importlib.util.find_spec("data_scripts.source") is None, reason="data_scripts.source is not there yet"
)
quick = settings(deadline=None, derandomize=True, max_examples=25)
NUM_SCANS, MARGIN, SIZE = 24, 8, 128
MIDDLE = slice(MARGIN, MARGIN + SIZE)


@pytest.fixture(scope="module")
def larger() -> torch.Tensor:
    """Scans of one or two sessions with a margin, to cut shifted copies from `[24, 144, 144]`."""
    size = SIZE + 2 * MARGIN
    scans = simulate(NUM_SCANS, SimulationOptions(seed=5), pixels_per_line=size, num_lines=size)
    return torch.from_numpy(scans.lines)


@pytest.fixture(scope="module")
def scans(larger) -> torch.Tensor:
    return larger[:, MIDDLE, MIDDLE].clone()


def assert_copies(found, num_scans: int = NUM_SCANS, transformation: int | None = None) -> None:
    """Scan i and scan i + num_scans are copies, and there is no other pair."""
    first = np.arange(num_scans)
    np.testing.assert_array_equal(found.pairs[found.pairs[:, 0].argsort()], np.stack([first, first + num_scans], 1))
    if transformation is not None:
        assert set(found.transformations.tolist()) == {transformation}


class TestTransform:
    def test_names_are_true(self):
        scan = torch.arange(6.0).view(2, 3)
        expected = (
            scan,
            torch.fliplr(scan),
            torch.flipud(scan),
            torch.rot90(scan, 2),
            scan.T,
            torch.rot90(scan, -1),  # torch turns counterclockwise
            torch.rot90(scan, 1),
            torch.rot90(scan, 2).T,
        )
        for index, (name, wanted) in enumerate(zip(TRANSFORMATIONS, expected, strict=True)):
            torch.testing.assert_close(transform(scan, index), wanted, msg=name)
            torch.testing.assert_close(undo_transform(transform(scan, index), index), scan, msg=name)

    def test_eight_different(self):
        scan = torch.arange(9.0).view(3, 3)
        assert len({tuple(transform(scan, index).flatten().tolist()) for index in range(8)}) == 8


def flat_spread(scans):
    """Standard deviation of heights less the means of lines and columns, `[num_scans, 1, 1]`."""
    flat = scans - scans.mean(dim=1, keepdim=True)
    return (flat - flat.mean(dim=2, keepdim=True)).std(dim=(1, 2), keepdim=True)


class TestEqualize:
    def test_increasing_function_changes_nothing(self, scans):
        heights = scans[:2].double() * 1e9
        torch.testing.assert_close(equalize(heights), equalize(torch.exp(heights) + 7))

    def test_equal_heights_share_a_rank(self):
        heights = torch.zeros(1, 4, 6)
        heights[:, 1, 2] = 1
        expected = equalize(transform(heights, 3))
        torch.testing.assert_close(transform(equalize(heights), 3), expected)
        assert len(equalize(heights).unique()) == 4  # the pixel, its line, its column, the rest

    def test_not_measured_is_zero(self, scans):
        heights = scans[:2].clone()
        heights[:, 50:] = torch.nan
        assert (equalize(heights)[:, 50:] == 0).all()
        torch.testing.assert_close(equalize(heights)[:, :50], equalize(heights[:, :50]))


class TestFindNearDuplicates:
    @pytest.mark.parametrize("transformation", range(8))
    def test_symmetries(self, scans, transformation):
        found = find_near_duplicates(torch.cat([scans, transform(scans, transformation)]))
        assert_copies(found, transformation=transformation)
        np.testing.assert_allclose(found.similarity, 1, atol=1e-3)

    def test_different_scans_of_a_session(self, scans):
        found = find_near_duplicates(scans)
        assert len(found) == 0
        assert found.compared.all()

    @pytest.mark.parametrize("shift", [(8, 8), (-8, 3), (1, -8)])
    @pytest.mark.parametrize("transformation", [0, 5])
    def test_shifts(self, larger, scans, shift, transformation):
        rows, columns = (slice(MARGIN + step, MARGIN + step + SIZE) for step in shift)
        copies = transform(larger[:, rows, columns], transformation)
        assert_copies(find_near_duplicates(torch.cat([scans, copies])), transformation=transformation)

    def test_shifts_that_wrap_around(self, scans):
        copies = scans.roll((7, -8), dims=(1, 2))
        assert_copies(find_near_duplicates(torch.cat([scans, copies])))

    @pytest.mark.parametrize("power", [0.5, 2.0])
    def test_contrast(self, scans, power):
        low, high = scans.amin(dim=(1, 2), keepdim=True), scans.amax(dim=(1, 2), keepdim=True)
        copies = 255 * ((scans - low) / (high - low)) ** power - 40
        found = find_near_duplicates(torch.cat([scans, copies]))
        assert_copies(found)
        assert found.similarity.min() > 0.8

    def test_pictures_of_8_bits(self, scans):
        low, high = scans.amin(dim=(1, 2), keepdim=True), scans.amax(dim=(1, 2), keepdim=True)
        copies = transform(torch.round(255 * (scans - low) / (high - low)), 6)
        assert_copies(find_near_duplicates(torch.cat([scans, copies])), transformation=6)

    def test_all_at_once(self, larger, scans):
        generator = torch.Generator().manual_seed(0)
        copies = larger[:, 2 : 2 + SIZE, 15 : 15 + SIZE]
        low, high = copies.amin(dim=(1, 2), keepdim=True), copies.amax(dim=(1, 2), keepdim=True)
        copies = ((copies - low) / (high - low)) ** 1.5
        noise = torch.randn(copies.shape, generator=generator)
        copies = transform(copies + 0.01 * flat_spread(copies) * noise, 7)
        assert_copies(find_near_duplicates(torch.cat([scans, copies])), transformation=7)

    def test_inverted_heights_are_no_copy(self, scans):
        assert len(find_near_duplicates(torch.cat([scans, -scans]))) == 0

    def test_same_lattice_is_no_copy(self):
        # one perfect lattice under different noise, the phases of its rows and dimers included
        generator = torch.Generator().manual_seed(0)
        place = torch.arange(SIZE, dtype=torch.float32)
        rows = torch.sin(0.7 * place + 0.3 * place[:, None]) + torch.sin(1.3 * place[:, None] - 0.5 * place)
        lattices = rows + torch.randn(6, SIZE, SIZE, generator=generator)
        assert len(find_near_duplicates(lattices)) == 0

    def test_one_lattice_under_another_noise_of_a_copy(self, scans):
        # the counterpart: noise alone does not hide a copy
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(scans.shape, generator=generator) * flat_spread(scans)
        assert_copies(find_near_duplicates(torch.cat([scans, scans + 0.05 * noise])))

    def test_broken_off(self, scans):
        copies = scans.clone()
        for index, height in enumerate(np.linspace(64, 120, NUM_SCANS).astype(int)):
            copies[index, height:] = torch.nan
        found = find_near_duplicates(torch.cat([scans, transform(copies, 1)]))
        assert_copies(found, transformation=1)

    def test_two_that_were_broken_off(self, scans):
        short = scans.clone()
        short[:, 80:] = torch.nan
        upside_down = short.clone()
        upside_down[:, :80] = short[:, :80].flip(1)
        assert_copies(find_near_duplicates(torch.cat([short, upside_down])), transformation=2)

    def test_what_cannot_be_compared(self, scans):
        lines = scans[[0, 0, 1, 1, 2]].clone()
        lines[0, 10:] = torch.nan
        lines[2:4] = 3.0
        found = find_near_duplicates(lines)
        np.testing.assert_array_equal(found.compared, [False, True, False, False, True])
        assert len(found) == 0

    def test_nearly_blank_scans_are_no_copies(self):
        scans = torch.zeros(6, 64, 64)
        scans[:, 20:24, 30:34] = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0))
        found = find_near_duplicates(scans)
        assert len(found) == 0 and not found.compared.any()

    def test_wide_and_tall(self, scans):
        wide = scans[:, :64]
        assert_copies(find_near_duplicates(torch.cat([wide, transform(wide, 3)])), transformation=3)
        tall = scans[:, :, :64]
        assert_copies(find_near_duplicates(torch.cat([tall, transform(tall, 2)])), transformation=2)

    def test_threshold_keeps_the_most_similar(self, larger, scans):
        copies = torch.cat([scans, larger[:, 3 : 3 + SIZE, MIDDLE]])
        every = find_near_duplicates(copies)
        assert (np.diff(every.similarity) <= 0).all()
        least = float(every.similarity[4])
        some = find_near_duplicates(copies, least)
        np.testing.assert_array_equal(some.pairs, every.pairs[:5])
        assert some.similarity.min() >= least > THRESHOLD

    def test_progress(self, scans):
        shares = []
        find_near_duplicates(scans[:4], on_progress=shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)

    def test_none(self):
        assert len(find_near_duplicates(torch.empty(0, 128, 128))) == 0
        assert len(find_near_duplicates(torch.full((3, 128, 128), torch.nan))) == 0

    def test_refused(self, scans):
        with pytest.raises(
            ValueError, match=r"Expected lines \[num_scans, num_lines, pixels\], got shape \[128, 128\]"
        ):
            find_near_duplicates(scans[0])
        with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 1.5"):
            find_near_duplicates(scans, 1.5)


class TestMergeGroups:
    def test_transitive(self):
        groups = np.array(["c", "b", "b", "a", "d", "e"])
        merged = merge_groups(groups, np.array([[0, 1], [2, 3]]))
        np.testing.assert_array_equal(merged, ["a", "a", "a", "a", "d", "e"])

    def test_no_pair(self):
        groups = np.array(["b", "a", "b"])
        np.testing.assert_array_equal(merge_groups(groups, np.empty((0, 2), np.int64)), groups)

    @quick
    @given(st.data())
    def test_coarsest_needed(self, data):
        num_scans = data.draw(st.integers(1, 20))
        scan = st.integers(0, num_scans - 1)
        groups = np.array(data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=num_scans, max_size=num_scans)))
        pairs = np.array(data.draw(st.lists(st.tuples(scan, scan), max_size=10)), np.int64).reshape(-1, 2)
        merged = merge_groups(groups, pairs)
        assert (merged[pairs[:, 0]] == merged[pairs[:, 1]]).all()
        # union-find by hand
        names = {name: name for name in groups.tolist()}
        for first, second in groups[pairs]:
            one, other = names[first], names[second]
            names = {name: min(one, other) if root in (one, other) else root for name, root in names.items()}
        assert merged.tolist() == [names[name] for name in groups.tolist()]


class TestAcrossSides:
    def test_counts(self):
        pairs = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [0, 4], [5, 0]])
        parts = {"train": np.array([0, 1]), "validation": np.array([2, 5]), "test": np.array([4])}
        across = across_sides(pairs, parts)
        assert {names: places.tolist() for names, places in across.items()} == {
            ("train", "validation"): [1, 5],
            ("train", "test"): [4],
            ("validation", "test"): [],
        }

    def test_no_pair(self):
        across = across_sides(np.empty((0, 2), np.int64), {"train": np.array([0]), "validation": np.array([1])})
        assert across["train", "validation"].tolist() == []


@needs_command
class TestCommand:
    @pytest.fixture
    def arrays(self, scans, tmp_path):
        """24 scans in 12 sessions and copies of the first 4, turned, in the next session."""
        path = tmp_path / "scans.npz"
        images = torch.cat([scans, transform(scans[:4], 5)]).numpy()
        sessions = np.array([f"session {number // 2}" for number in range(NUM_SCANS)] + ["session 9"] * 4)
        labels = np.array([0, 1] * (len(images) // 2))
        scan_ids = np.array([f"scan {number}" for number in range(len(images))])
        np.savez(path, images=images, labels=labels, sessions=sessions, scan_ids=scan_ids)
        return path

    @pytest.fixture
    def run(self, arrays, tmp_path, capsys):
        from data_scripts.leakage import main

        def run(*options: str) -> tuple[int, str, str]:
            where = ["--dataset", "npz", "--data_dir", str(arrays), "--cache_dir", str(tmp_path / "cache")]
            code = main([*where, "--output_dir", str(tmp_path / "report"), "--num_pictures", "2", *options])
            return (code, *capsys.readouterr())

        return run

    def test_split_file(self, run, tmp_path):
        split = tmp_path / "split.json"
        ids = [f"scan {number}" for number in range(NUM_SCANS + 4)]
        Split("sessions", 0, "npz", {"train": ids[:26], "validation": ids[26:]}).save(split)
        code, out, _ = run("--split_file", str(split))
        assert code == 0
        assert "across sides" in out
        report = json.loads((tmp_path / "report" / "leakage.json").read_text())
        assert (report["num_pairs"], report["num_pairs_across"]) == (4, 2)
        assert report["num_pairs_by_parts"] == {
            "within train": 2,
            "train and validation": 2,
            "within validation": 0,
            "with a scan in no part": 0,
        }
        assert sorted(pair["scan_ids"] for pair in report["pairs_across"]) == [
            ["scan 2", "scan 26"],
            ["scan 3", "scan 27"],
        ]
        for pair in report["pairs_across"]:
            assert pair["parts"] == ["train", "validation"]
            assert pair["transformation"] == "turned by 90° clockwise"
            assert pair["similarity"] > 0.99
        assert (tmp_path / "report" / "leakage.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("method", ["sessions", "random"])
    def test_dedupe(self, run, tmp_path, method):
        report = tmp_path / "report"
        seeds = [str(seed) for seed in range(4)]
        leaks = []
        for seed in seeds:
            assert run("--split", method, "--split_seed", seed, "--num_pictures", "0")[0] == 0
            leaks.append(json.loads((report / "leakage.json").read_text())["num_pairs_across"])
        leaky = seeds[int(np.argmax(leaks))]
        assert max(leaks) > 0
        assert not (report / "split.json").exists()
        assert run("--split", method, "--split_seed", leaky, "--dedupe")[0] == 0
        assert json.loads((report / "leakage.json").read_text())["num_pairs_across"] == 0
        assert run("--split_file", str(report / "split.json"))[0] == 0
        written = json.loads((report / "leakage.json").read_text())
        assert (written["num_pairs_across"], written["num_pairs"]) == (0, 4)

    def test_bad_input(self, run, tmp_path):
        code, out, error = run("--split_file", str(tmp_path / "nowhere.json"))
        assert (code, out) == (2, "")
        assert error.splitlines()[-1].startswith(f"Error: {tmp_path / 'nowhere.json'}: not a split")
        split = tmp_path / "split.json"
        Split("sessions", 0, "npz", {"train": ["scan 0"], "validation": ["elsewhere"]}).save(split)
        code, _, error = run("--split_file", str(split))
        assert (code, "1 scans of the split are not in this dataset, elsewhere for one" in error) == (2, True)
        assert run("--split_file", str(split), "--dedupe")[0] == 2
        code, _, error = run("--threshold", "2")
        assert (code, error.splitlines()[-1]) == (2, "Error: threshold must lie in [0, 1], got 2.0.")

    def test_help(self, capsys):
        from data_scripts.leakage import main

        with pytest.raises(SystemExit) as stopped:
            main(["--help"])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert all(option in out for option in ("--dataset", "--split_file", "--dedupe", "--threshold"))
