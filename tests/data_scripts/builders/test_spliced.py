import numpy as np
import pytest

from data_scripts import ScanReadError, read_scan
from data_scripts.builders.spliced import MIN_LINES, splice_lines
from data_scripts.scan_dataset import lines_of

WIDTH = 40
VOTES = {"individual_atoms": [0, 1, 0, 0, 0, 0], "rows": [0, 0, 0, 1, 0, 0], "defect": [0, 0, 0, 0, 0, 1]}


@pytest.fixture
def toolbox(tmp_path, draw, write_votes):
    """Two sessions of scans with clear votes, some of which must not be spliced."""
    root, votes = tmp_path / "SPM-Toolbox", {}
    states = ["individual_atoms", "rows", "rows", "defect", "individual_atoms", "rows"]
    for session in ("2015Sep30-094843", "2015Oct01-101112"):
        for frame, state in enumerate(states):
            name = f"default_{session}_STM--12_{frame}.png"
            draw(root / "Images (Flat)" / name, 20 if frame == 5 else WIDTH, WIDTH)  # the last was aborted
            votes[name] = VOTES[state]
    write_votes(root, votes)
    return root


@pytest.fixture
def spliced(toolbox, load):
    return load("spliced", toolbox, pixels_per_line=WIDTH, max_lines=WIDTH, num_scans=40)


def test_every_other_scan_has_one_change(spliced):
    changes = spliced["change_lines"][:]
    assert all(len(lines) == number % 2 for number, lines in enumerate(changes))
    assert all(MIN_LINES <= line <= WIDTH - MIN_LINES for lines in changes for line in lines)
    assert len({line for lines in changes for line in lines}) > 3


def test_lines_before_are_the_first_scan_and_whole_scans_are_untouched(spliced, toolbox):
    lines = lines_of(spliced, WIDTH).numpy()
    for number, scan in enumerate(spliced):
        first = read_scan(toolbox / "Images (Flat)" / f"{scan['scan_id'].split('-', 2)[2]}.png").lines
        line = scan["change_lines"][0] if scan["change_lines"] else WIDTH
        np.testing.assert_array_equal(lines[number, :line], first[:line])
        assert line == WIDTH or not np.allclose(lines[number, line:], first[line:])


def test_states_change_at_the_splice(spliced):
    assert spliced.features["label"].names[3] == "generic_defect"
    for scan in spliced:
        states = scan["line_labels"]
        changed = [line for line in range(1, WIDTH) if states[line] != states[line - 1]]
        assert changed == scan["change_lines"]  # the sessions have both states
        assert scan["label"] == (3 if changed else states[0]) and set(states) <= {0, 2}


def test_both_scans_are_of_the_session_complete_and_clear(spliced, toolbox):
    for scan in spliced:
        assert scan["session"] in scan["scan_id"]
    used = {scan["scan_id"].rsplit("_", 1)[1] for scan in spliced}
    assert used == {"0", "1", "2", "4"}  # not the defect, not the aborted one


def test_seed_decides(toolbox, load, spliced):
    options = {"pixels_per_line": WIDTH, "max_lines": WIDTH, "num_scans": 10}
    again, other = (load("spliced", toolbox, **options, simulation_seed=seed) for seed in (0, 1))
    assert again["scan_id"][:] == spliced["scan_id"][:10] and again["scan_id"][:] != other["scan_id"][:]


def test_offset_and_spread_are_those_of_the_first():
    rng = np.random.default_rng(0)
    first, second = rng.normal(5, 2, (60, 400)), rng.normal(-70, 0.1, (60, 400))
    joined = splice_lines(first, second, 20)
    np.testing.assert_array_equal(joined[:20], first[:20].astype(np.float32))
    assert joined[20:24].mean() == pytest.approx(first[16:20].mean(), abs=1e-3)
    assert joined[20:].std(axis=1).mean() == pytest.approx(2, rel=0.05)
    assert np.corrcoef(joined[30], second[30])[0, 1] > 0.999


def test_nothing_to_splice(toolbox, load, write_votes):
    write_votes(toolbox, {})
    with pytest.raises(ScanReadError, match="no session has two complete scans of clear states"):
        load("spliced", toolbox, pixels_per_line=WIDTH, max_lines=WIDTH)


def test_too_few_lines_for_a_splice(toolbox, load):
    with pytest.raises(ScanReadError, match=f"needs max_lines of at least {2 * MIN_LINES}"):
        load("spliced", toolbox, pixels_per_line=WIDTH, max_lines=20)
