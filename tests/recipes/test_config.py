"""Settings: defaults once, YAML and key=value on top, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepsight.core import UserError
from keepsight.recipes.config import DEFAULT_METHODS, TuneConfig, as_yaml, resolve


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seeds: 7\nsplit: {labels: 50, validation: 0.1}\nfinetune_lora: {epochs: 3}\n")
    config = resolve("mnist-5k", file, {"split": {"labels": 60}}, ["split.labels=70", "finetune_lora.batch_size=4"])
    assert (config.seeds, config.split.labels, config.split.validation) == (7, 70, 0.1)
    assert (config.finetune_lora.epochs, config.finetune_lora.batch_size) == (3, 4)


def test_a_saved_config_reads_back_to_itself(tmp_path: Path) -> None:
    config = resolve("demo", assignments=["finetune_full.training.optim.lr=3.0e-5", "methods=[probe,knn]"])
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(config))
    assert resolve(config.data, file) == config


def test_adapters_keep_their_own_defaults_when_one_value_is_set() -> None:
    config = resolve("leaves", assignments=["finetune_full.epochs=2"])
    default = TuneConfig(data="leaves")
    expected = default.finetune_full.model_copy(update={"epochs": 2})
    assert config.finetune_full == expected
    assert config.finetune_lora == default.finetune_lora


def test_demo_is_the_promised_job() -> None:
    config = resolve("demo")
    assert (config.data, config.split.labels, config.split.test) == ("mnist-5k", 100, 1500)
    assert config.methods == DEFAULT_METHODS


def test_methods_come_in_order_of_cost() -> None:
    assert resolve("x", assignments=["methods=[finetune-full, knn]"]).methods == ("knn", "finetune-full")


WRONG = [
    (["sed=3"], r"no setting 'sed': did you mean 'seeds'"),
    (["split.label=3"], r"no setting 'split.label': did you mean 'labels'"),
    (
        ["finetune_lora.training.optim.learning_rate=1"],
        r"no setting 'finetune_lora.training.optim.learning_rate': there are",
    ),
    (["seeds=many"], r"seeds='many' is wrong: .*integer"),
    (["seeds=0"], r"seeds=0 is wrong"),
    (["seeds"], r"'seeds' is not understood: settings are given as key=value"),
    (["=3"], r"'=3' is not understood"),
    (["methods=[]"], r"methods=\[\] is wrong: name at least one method"),
    (["methods=[prob]"], r"methods.0='prob' is wrong: .*'probe'"),
    (["methods=[knn,knn]"], r"each once"),
    (["readout=8:gird2"], r"Readout '8:gird2' is not understood"),
    (["readout=0:cls"], r"Readout '0:cls' is not understood"),
    (["split.test=-1"], r"split.test.*=-1 is wrong"),
    (["split.test=1.5"], r"share below 1"),
    (["split.validation=2"], r"split.validation=2 is wrong"),
    (["finetune_lora.training.optim.lr=-1"], r"lr=-1 is wrong"),
    (["finetune_lora.training.optim.lr=.nan"], r"lr=nan is wrong"),
    (["finetune_lora.batch_size=0"], r"batch_size=0 is wrong"),
    (["finetune_lora.objective.lora.rank=0"], r"rank=0 is wrong"),
    (["finetune_lora.training.accumulate=-1"], r"accumulate=-1 is wrong"),
    (["backbone.size=large"], r"backbone.size='large' is wrong"),
    (["split=[1"], r"'split=\[1' is not valid YAML"),
    (["split=3"], r"split=3 is wrong"),
    (["knn.ks=[0]"], r"knn.ks.* is wrong"),
    (["label_propagation.alpha=1.5"], r"alpha=1.5 is wrong"),
]


@pytest.mark.parametrize(("assignments", "message"), WRONG, ids=[a[0][0] for a in WRONG])
def test_wrong_settings_are_one_sentence(assignments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve("mnist-5k", assignments=assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("a: [", "not valid YAML"), ("- 1", "must hold 'key: value'"), ("", "must hold")],
    ids=["missing", "broken", "list", "empty"],
)
def test_wrong_files(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        resolve("mnist-5k", file)
