"""
What README.md quotes, written from the results; and the run of the tool that it shows.

    python -m benchmarks.readme             # writes the blocks of README.md
    python -m benchmarks.readme --check     # exits with 1 if README.md is not what this writes
    python -m benchmarks.readme --replay    # first simulates a scan, replays it, and writes replay.png and .json

A block stands between two comments, `<!-- NAME: ... -->` and `<!-- end of NAME -->`. Its figures come from
results/*.json and from the released model's release.json; nothing between the comments is written by hand.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import run_streaming
from benchmarks.accuracy import UNKNOWN
from benchmarks.accuracy_report import PUBLISHED, PUBLISHED_SCANS, SPLITS, folds_of
from benchmarks.pages import RESULTS
from data_scripts.readers import DRAWN
from data_scripts.simulation import TIP_STATES, SimulationOptions, simulate
from live.records import RECORDS_SUFFIX

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RELEASED = ROOT / "model_cards" / "scanline-causal-hsi100"
COMMAND = "python -m benchmarks.readme"
FIGURES = ("balanced_accuracy", "auroc")
LINES = "20"  # as few as the published LRCN can do with
ALPHA = 0.1
# the scan that is shown: clear states, a calm instrument, and a tip that changes
SIMULATION = {"seed": 0, "noise": 0.5, "clarity": 3.0, "pixels_per_period": 4.0}
PLACE = 148  # in the stream of these; looked for until one showed a change that is found
NAMES = {
    "ensemble": "causal transformers, pre-trained, a full-size and a small one side by side (released)",
    "ensemble_small": "three small ones side by side",
    "finetune_early": "full size, next lines told, simulated scans among the real ones",
    "finetune_next": "full size, next lines told; the one of the released two",
    "finetune_early_small": "small, next lines told, simulated scans among the real ones; the other of them",
    "finetune_next_small": "small, next lines told",
    "finetune_small": "small",
    "finetune_tiny": "tiny (released, too)",
    "lrcn": "LRCN as published, trained here",
    "lrcn_small": "LRCN as published, every tenth line, trained here",
    "cnn": "CNN as published, for whole scans, trained here",
    "cnn_padding": "CNN as published, but on partial scans too, trained here",
    "library_vit": "the library's ViT, trained here",
    "library_convnext": "the library's ConvNeXt, trained here",
}
PROTOCOLS = {
    "sessions": "Sessions that the model has not seen: cross-validation by sessions of the microscope",
    "random": "Scans drawn at random, so that a session stands on both sides, as published",
}


class ReadmeError(Exception):
    """README.md or a result is not as expected; the message says what to do."""


def read_result(path: Path) -> Any:
    """A JSON file, or [`ReadmeError`]."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadmeError(f"{path}: cannot be read ({error}); run the benchmark that writes it.") from error


def accuracy(results: Path) -> str:
    """The models beside each other, a table a split, those with most balanced accuracy on whole scans first."""
    rows = read_result(results / "accuracy.json")["results"]
    parts = [
        "Balanced accuracy / AUROC (macro, one against the rest); unanimous labels, complete scans, last epoch, "
        "before calibration (the cards have both)."
    ]
    for split in reversed(SPLITS):  # the honest one first
        of_split = [row for row in rows if row["split"] == split]
        if not of_split:
            continue
        of_split.sort(key=lambda row: -row["figures"]["whole"][FIGURES[0]]["mean"])
        lines = [f"**{PROTOCOLS[split]}**", ""]
        lines += [f"| model | parameters | after {LINES} lines | whole scan | its 95 % interval | scored on |"]
        lines += ["|---|---|---|---|---|---|", *map(accuracy_row, of_split)]
        if split == "random":
            lines += [
                f"| {name}, its authors' figures | | | {balanced:.3f} / {area:.3f} | | {PUBLISHED_SCANS} other scans |"
                for name, (balanced, area) in PUBLISHED.items()
            ]
        parts.append("\n".join(lines))
        # the folds of sessions are the same scans for every seed
        scored = [
            folds
            for row in of_split
            for folds in ([row["folds_by_seed"]] if split == "random" else row["folds_by_seed"].values())
        ]
        if len({json.dumps(folds, sort_keys=True) for folds in scored}) > 1:
            parts.append("Rows with other folds or seeds were scored on other scans: compare them with care.")
        if split == "random":
            parts.append(against_published(of_split))
    parts.append(
        "After 5 to 128 lines, and which differences are more than chance: [results](benchmarks/results/accuracy.md)."
    )
    return "\n\n".join(parts)


def accuracy_row(row: dict[str, Any]) -> str:
    """One model of one split."""
    after, whole = (row["figures"][key] for key in (LINES, "whole"))
    cells = [" / ".join(f"{figures[name]['mean']:.3f}" for name in FIGURES) for figures in (after, whole)]
    intervals = " / ".join("{:.3f}–{:.3f}".format(*whole[name]["interval"]) for name in FIGURES)
    scans = sorted(set(row["num_scans"].values()))
    scored = [f"{' or '.join(map(str, scans))} scans of {row['num_sessions']} sessions"]
    if row["split"] == "sessions":
        scored.append(f"{folds_of(row)} folds")
    seeds = list(row["folds_by_seed"])
    start = {None: "", UNKNOWN: " from other weights"}.get(row["start"], f" after {row['start']} scans")
    some = f" for {row['rehearsing_members']} of the models" if row.get("members") else ""
    rehearsed = f", {row['rehearsed']:,} of these among the real ones{some}" if row.get("rehearsed") else ""
    taught = f", learning from {row['teachers']} teachers" if row.get("teachers") else ""
    joined = f"{row['members']} models, joined: " if row.get("members") else ""
    scored += [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}",
        f"{joined}{row['epochs']:g} epochs of {row['optimizer']}{start}{rehearsed}{taught}",
    ]
    name = NAMES.get(row["model"])
    model = f"`{row['model']}`" if name is None else f"{name}, `{row['model']}`"
    return f"| {model} | {row['num_parameters']:,} | {cells[0]} | {cells[1]} | {intervals} | {', '.join(scored)} |"


def against_published(rows: Sequence[dict[str, Any]]) -> str:
    """Where the best of the models here stands beside the best published figures."""
    sentence = []
    for place, name in enumerate(FIGURES):
        best = max(row["figures"]["whole"][name]["mean"] for row in rows)
        figure = name.replace("_", " ").replace("auroc", "AUROC")
        value = max(figures[place] for figures in PUBLISHED.values())
        of_all = "more" if value > best else "no more"
        sentence.append(f"{of_all} {figure} ({value:.3f}) than the best model here ({best:.3f})")
    return (
        f"On whole scans, the figures that Gordon et al. report of their own random split have {sentence[0]}, and "
        f"{sentence[1]}. They are of other scans and of more training scans."
    )


def live(results: Path) -> str:
    """What an operator wants to know: time, tip changes, early decisions, and whether a probability can be trusted."""
    streaming, release = read_result(results / "streaming.json"), read_result(RELEASED / "release.json")
    times = streaming["times"]["stream"].values()
    median, late = (max(of_range[name] for of_range in times) for name in ("median_ms", "p99_ms"))
    early = next(rule for rule in release["decisions"]["early"] if rule["alpha"] == ALPHA)
    seeds = f"seed{'s' * (len(release['seeds']) > 1)} {', '.join(map(str, release['seeds']))}"
    scans = f"{release['num_scans']} scans, {release['num_folds']} folds of sessions, {seeds}"
    by_lines = release["by_lines"]
    rows = [
        (
            "time for a line",
            f"{median:.1f} ms in the median, {late:.1f} ms in the 99th percentile",
            f"one CPU thread, {streaming['num_parameters'] / 1e6:.1f} M parameters; "
            f"load of the machine {streaming['load']:.1f}",
        ),
        (
            f"decided at an error of {ALPHA:.0%}".replace("%", " %"),
            f"{1 - early['abstention']:.1%} of the scans, half of them within {early['median_lines']:g} lines; "
            f"{early['error']:.1%} of these wrong".replace("%", " %"),
            scans,
        ),
        (
            "calibration error",
            f"{by_lines[LINES]['expected_calibration_error']:.3f} after {LINES} lines, "
            f"{by_lines['whole']['expected_calibration_error']:.3f} on whole scans",
            scans,
        ),
        *(
            (
                "tip changes found, ±3 lines",
                f"{row['recall']:.1%} of them; {row['precision']:.1%} of the alarms are right; "
                f"{row['false_alarms_per_100']:.1f} false alarms per 100 scans without a change".replace("%", " %"),
                f"{row['changes']} changes, {row['scans']}",
            )
            for row in release["tip_change"]
        ),
    ]
    return "\n".join(["| | | measured on |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def replay_caption(results: Path) -> str:
    """The picture, and what was said of the scan."""
    facts = read_result(results / "replay.json")
    decided = [f"after {line + 1} lines it decides for {state}" for line, state in facts["decisions"]]
    before = [text for text, (line, _) in zip(decided, facts["decisions"], strict=True) if line < facts["told_at"]]
    after = decided[len(before) :]
    first, second = facts["states"]
    simulation = facts["simulation"]
    said = [
        *before,
        f"the tip changes at line {facts['change_line']}, from one that resolves {first} to one that resolves "
        f"{second}",
        f"a change at line {facts['found']} is reported {facts['told_at'] - facts['change_line']} lines later",
        *after,
    ]
    return (
        f"![a scan, the state of the tip after every line, and the line where it changed]"
        f"(benchmarks/results/replay.png)\n\n"
        f"*`run_streaming.py replay --alpha {facts['alpha']:g}` with the released model: {'; '.join(said)}. The scan "
        f"is **simulated** (stream of seed {simulation['seed']}, scan {facts['place']}, {facts['size_nm']:.1f} nm, "
        f"{simulation['noise']:g} times the usual noise, clear states) and **chosen** to show a change that is "
        f"found; how many are, is under [results](#results). `{COMMAND} --replay` draws it.*"
    )


def replay(results: Path) -> None:
    """Simulates the scan, sends it through the tool as a user does, and keeps its picture and what it said."""
    options = SimulationOptions(**SIMULATION, class_probabilities=(0.0, 0.0, 0.0, 1.0))  # type: ignore[arg-type]
    scans = simulate(1, options, start=PLACE)
    states = scans.line_states[0]
    changes = np.flatnonzero(np.diff(states)) + 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.npy"
        np.save(path, scans.lines[0])
        if run_streaming.main(["replay", str(path), "--model", str(RELEASED), "--alpha", str(ALPHA)]):
            raise ReadmeError("run_streaming.py failed; see above.")
        records = [json.loads(line) for line in path.with_name(path.name + RECORDS_SUFFIX).read_text().splitlines()]
        shutil.copy(path.with_name(path.name + DRAWN), results / "replay.png")
    found = [record for record in records if record["change_line"] is not None]
    if len(changes) != 1 or len(found) != 1:
        raise ReadmeError(f"Expected a scan with one change, found once, got {changes} and {len(found)} reports.")
    decisions, before = [], None
    for record in records:
        if record["decision"] is not None and record["decision"] != before:
            decisions.append((record["line"], record["decision"]))
        before = record["decision"]
    facts = {
        "model": RELEASED.name,
        "alpha": ALPHA,
        "simulation": SIMULATION,
        "place": PLACE,
        "size_nm": round(float(scans.sizes_nm[0]), 3),
        "states": [TIP_STATES[states[0]], TIP_STATES[states[-1]]],
        "change_line": int(changes[0]),
        "found": found[0]["change_line"],
        "told_at": found[0]["line"],
        "decisions": decisions,
        "last": {"state": records[-1]["state"], "probabilities": records[-1]["probabilities"]},
        "unfamiliarity": records[-1]["unfamiliarity"],
    }
    (results / "replay.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


BLOCKS: dict[str, Callable[[Path], str]] = {"replay": replay_caption, "accuracy": accuracy, "live": live}


def pattern(name: str) -> re.Pattern[str]:
    """Matches a block with its comments, which are its first and third group."""
    return re.compile(rf"(<!-- {name}: [^>]*-->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)


def write_blocks(text: str, results: Path = RESULTS) -> str:
    """The text with every block as the results have it; raises [`ReadmeError`] where one is missing or there twice."""
    for name, render in BLOCKS.items():
        found = pattern(name).findall(text)
        if len(found) != 1:
            raise ReadmeError(f"Expected one block <!-- {name}: ... --> to <!-- end of {name} -->, got {len(found)}.")
        block = render(results)
        text = pattern(name).sub(lambda match, block=block: match[1] + block + "\n" + match[3], text)  # type: ignore[misc]
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if README.md is out of date")
    parser.add_argument("--replay", action="store_true", help="simulate the scan and replay it anew first")
    parser.add_argument("--readme", type=Path, default=README, help="file with the blocks (README.md)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    arguments = parser.parse_args(argv)
    if arguments.check and arguments.replay:
        parser.error("--check writes nothing, --replay does: give one of them.")
    try:
        if arguments.replay:
            replay(arguments.results)
        old = arguments.readme.read_text(encoding="utf-8")
        new = write_blocks(old, arguments.results)
    except (ReadmeError, OSError) as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        stale = [name for name in BLOCKS if pattern(name).findall(old) != pattern(name).findall(new)]
        if stale:
            print(f"{arguments.readme} is out of date ({', '.join(stale)}): run {COMMAND}.", file=sys.stderr)
        return int(bool(stale))
    arguments.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
