"""The hook of Scanbot: what it wants, and nothing that acts unless it is asked to."""

import pytest

from live.scanbot import Classifier
from modeling_scanline.streaming_scanline import ScanlineStreamer


def test_it_says_what_the_stream_says_and_leaves_the_tip_alone(model, lines):
    said = Classifier(model)(lines, "scan.sxm", [])
    last = ScanlineStreamer.from_pretrained(model).update_many(lines)[-1]
    assert said["state"] == last.state and said["probability"] == max(last.probabilities)
    assert (said["tipShape"], said["tipChanges"]) == (0, 0)


def test_it_acts_on_states_that_are_named_only(model, lines):
    state = Classifier(model)(lines)["state"]
    others = {"individual_atoms", "rows", "generic_defect"} - {state}
    assert Classifier(model, reshape_states=[state])(lines)["tipShape"] == 1
    assert Classifier(model, reshape_states=others)(lines)["tipShape"] == 0


def test_with_an_error_it_acts_on_decisions_only(model, lines):
    classify = Classifier(model, alpha=0.1, reshape_states=["individual_atoms", "rows", "generic_defect"])
    assert classify(lines[:3])["tipShape"] == 0 and classify(lines)["tipShape"] == 1


def test_a_scan_leaves_nothing_for_the_next(model, lines):
    classify = Classifier(model)
    first = classify(lines)
    classify(lines[::-1, ::-1])
    assert classify(lines) == first


def test_an_unknown_state_is_refused(model):
    with pytest.raises(ValueError, match="got blurry"):
        Classifier(model, reshape_states=["blurry"])
