"""A folder that is not there is told from a model of the Hub, without asking it."""

import pytest

from experiments.run_folder import check_model


class TestCheckModel:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "one").mkdir(parents=True)
        (tmp_path / "runs" / "one" / "config.json").write_text("{}")

    @pytest.mark.parametrize(
        "name", ["runs/two", "runs/a/b", "./somebody/model", "/somebody/model", "~/model", "no model"]
    )
    def test_a_folder_that_is_not_there(self, name):
        with pytest.raises(ValueError, match=r"there is no folder .* with a model here"):
            check_model(name)

    def test_a_folder_without_a_model(self):
        with pytest.raises(ValueError, match=r"runs holds no model: it has no config\.json"):
            check_model("runs")

    @pytest.mark.parametrize("name", ["runs/one", "somebody/model", "model"])
    def test_what_is_there_or_may_be_on_the_hub(self, name):
        check_model(name)

    def test_a_model_that_was_fetched_though_a_folder_has_its_owners_name(self, tmp_path, monkeypatch):
        fetched = tmp_path / "cache" / "models--runs--two"
        (fetched / "snapshots" / "abc").mkdir(parents=True)
        (fetched / "refs").mkdir()
        (fetched / "refs" / "main").write_text("abc")
        (fetched / "snapshots" / "abc" / "config.json").write_text("{}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        check_model("runs/two")
