"""A backbone or method owns its keys: the section of a config is that of the class that its name chooses."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mwuf_dist.backbones import BACKBONES, Shape, build_backbone
from mwuf_dist.backbones.afn import AfnConfig
from mwuf_dist.config import (
    MlpConfig,
    UserError,
    build,
    config_hash,
    load_config,
    load_run_config,
    merge,
    registry,
    to_dict,
    to_toml,
)
from mwuf_dist.config.registry import backbone_config, config_class, method_config, names
from mwuf_dist.methods import METHODS, Method, pretraining_of
from mwuf_dist.methods.base import Base
from mwuf_dist.serving.adopt.files import import_factory
from mwuf_dist.studies.compare import read_study, run_configs
from mwuf_dist.studies.records import config_differences
from tests.cli.command import Mwuf

ROOT = Path(__file__).resolve().parents[2]
SHAPE = Shape(dim=4, num_item_fields=2, num_user_fields=1)

OWN = """
import torch
from mwuf_dist.backbones import Backbone
from mwuf_dist.config import MethodConfig, MlpConfig, Positive, section
from mwuf_dist.methods import Method

@section
class Keys(MethodConfig):
    strength: Positive = 2.0  # How strong.

class Scaled(Method):
    Config = Keys
    def pretrain_item(self, item):
        return item * self.config.strength

class NoSection(Method):
    class Config:
        name = ""

class NoWeight(Backbone):
    uses_history = True
    def forward(self, item, context):
        return item.sum(1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"component_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_every_file_of_the_two_rooms_holds_one_class_of_its_name():
    assert names("backbone") == tuple(BACKBONES) and names("method") == tuple(METHODS)
    assert {"afn", "deepfm", "encoder", "wide_deep"} <= BACKBONES.keys()
    assert all(issubclass(method, Method) for method in METHODS.values())
    assert {"base", "map", "mwuf"} <= METHODS.keys() and METHODS["base"] is Base


def test_a_section_has_the_keys_of_the_chosen_class_alone():
    config = build({"backbone": {"name": "afn", "log_neurons": 7}, "method": {"name": "base"}})
    assert isinstance(config.backbone, AfnConfig) and config.backbone.log_neurons == 7
    assert set(to_dict(config)["method"]) == {"name", "variant", "initialisation"}
    assert isinstance(build({}).backbone, MlpConfig)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": {"name": "base", "neighbours": 5}},
            r"unknown key `method.neighbours`: it is a key of gme, not of base",
        ),
        (
            {"backbone": {"heads": 2}},
            r"unknown key `backbone.heads`: it is a key of encoder, not of wide_deep",
        ),
        (
            {"backbone": {"name": "afn", "log_neuron": 2}},
            r"`backbone.log_neuron`; did you mean `backbone.log_neurons`",
        ),
        (
            {"backbone": {"name": "afn", "log_neurons": 0}},
            r"here: `backbone.log_neurons` = 0: .* greater than",
        ),
        ({"backbone": {"name": 3}}, r"here: `backbone.name` = 3: Input should be a valid string"),
        ({"method": {"name": "mwaf"}}, r"here: method.name = 'mwaf': unknown; did you mean 'mwuf'\?"),
        ({"method": 3}, r"here: `method` must be a table of keys, not 3"),
    ],
)
def test_a_key_of_another_class_is_an_error_that_says_whose_it_is(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        build(values, "here")


@pytest.mark.parametrize("kind", ["backbone", "method"])
def test_every_config_survives_toml_and_pickle_and_keeps_its_hash(kind: str, tmp_path: Path):
    for name in names(kind):  # pyright: ignore[reportArgumentType]
        config = build({kind: {"name": name}})
        (tmp_path / "config.toml").write_text(to_toml(config))
        for again in (load_config(tmp_path / "config.toml"), pickle.loads(pickle.dumps(config))):
            assert again == config and config_hash(again) == config_hash(config), name


def test_another_name_above_drops_the_keys_that_it_does_not_have():
    below = {"backbone": {"name": "pnn", "product": "outer", "hidden": [8]}, "method": {"residual": False}}
    merged = merge(below, {"backbone": {"name": "afn"}, "method": {"name": "base"}})
    assert merged == {"backbone": {"name": "afn", "hidden": [8]}, "method": {"name": "base"}}
    assert merge(below, {"backbone": {"dropout": 0.1}})["backbone"] == below["backbone"] | {"dropout": 0.1}


def test_what_an_earlier_version_wrote_still_opens_and_is_the_same_run(tmp_path: Path):
    # In it every key of every backbone and method stood in every config.
    foreign = {"neighbours": 10, "latent_dim": 16, "item_dropout": 0.5, "residual": True}
    values = {"backbone": {"name": "wide_deep", "log_neurons": 32}, "method": {"name": "base"} | foreign}
    (tmp_path / "config.toml").write_text(to_toml(build({})).split("[backbone]")[0])
    (tmp_path / "config.toml").write_text(
        '[backbone]\nname = "wide_deep"\nlog_neurons = 32\n[method]\nname = "base"\nneighbours = 10\nresidual = true\n'
    )
    ours = build({"method": {"name": "base"}, "data": {"events": "all"}})  # as it was before there was the key
    assert load_run_config(tmp_path) == ours
    assert config_differences(values, to_dict(ours)) == []
    with pytest.raises(UserError, match="unknown key `method.no_such_key`"):
        build({"method": {"no_such_key": 1}}, of_any_version=True)


@pytest.fixture
def methods_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the methods' folder, in whose place it stands."""
    folder = tmp_path / "methods"
    shutil.copytree(ROOT / "mwuf_dist" / "methods", folder)
    monkeypatch.setattr(registry, "_folder", lambda kind: folder)
    registry._classes.cache_clear()
    yield folder
    registry._classes.cache_clear()


def test_a_file_is_a_method_by_the_class_of_its_name_and_no_other_file_is(methods_folder: Path):
    for name, text in {
        "clicks": "class Clicks:",
        "more_clicks": "class MoreClicks(nn.Module, Generic[T]):",
        "tools": "class Other(Method):",
        "new_one": "class NewOne(\n    Helper, methods.Gme\n):",
    }.items():
        (methods_folder / f"{name}.py").write_text(f"{text}\n    pass\n")
    assert names("method") == tuple(sorted({*METHODS, "new_one"}))
    with pytest.raises(UserError, match=r"mwuf_dist\.methods\.tools has no class of its own name .* from Method"):
        registry.find_class("method", "tools")


def test_the_command_line_has_the_keys_of_the_class_that_it_names(tmp_path: Path, mwuf: Mwuf):
    (tmp_path / "c.toml").write_text('[backbone]\nname = "pnn"\nproduct = "outer"\n')
    shown = mwuf("run", str(tmp_path / "c.toml"), "--backbone.name=afn", "--help").said
    assert "--backbone.log-neurons" in shown and "--backbone.product" not in shown
    assert "--method.residual" in shown and "--method.neighbours" not in shown


def test_a_command_line_key_reaches_the_runs_that_have_it():
    values = {"study": {"seeds": 1, "runs": [{"method": {"name": "base"}}, {"method": {"name": "mwuf"}}]}}
    study = read_study(values, "here")
    base, ours = run_configs(values, study, "here", {"method": {"residual": False}})
    assert base.method.name == "base" and ours.method == method_config("mwuf", residual=False)


def test_run_checks_the_sections_of_compare_and_tune_too(tmp_path: Path, mwuf: Mwuf):
    start = 'extends = "{}"\n'.format(ROOT / "configs/demo.toml")
    for section, message in (
        ("[study]\nseeds = 1\n[[study.runs]]\nmethod.nme = 'base'\n", "unknown key `method.nme`"),
        ("[[tune.settings]]\nwarm_up.learning_rat = 0.1\n", "unknown key `warm_up.learning_rat`"),
    ):
        (tmp_path / "c.toml").write_text(start + section)
        done = mwuf("run", str(tmp_path / "c.toml"), "--output", str(tmp_path / "run"))
        assert done.code == 2 and message in done.said
        assert not (tmp_path / "run").exists()


def test_ones_own_class_has_keys_of_its_own(own: str):
    config = build({"method": {"name": f"{own}:Scaled", "strength": 3.0}})
    assert to_dict(config)["method"]["strength"] == 3.0
    with pytest.raises(UserError, match=r"unknown key `method.strenth`; did you mean `method.strength`\?"):
        build({"method": {"name": f"{own}:Scaled", "strenth": 3.0}})
    with pytest.raises(UserError, match=r"its Config must be a subclass of mwuf_dist.config.MethodConfig under @"):
        config_class("method", f"{own}:NoSection")


def test_ones_own_code_is_named_before_it_runs_and_never_stands_in_for_a_library(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build({"method": {"name": f"{own}:Scaled"}})
    assert capsys.readouterr().err == f"method.name = '{own}:Scaled': runs code of {tmp_path / own}.py\n"
    (tmp_path / f"made_{own}.py").write_text("print('it runs')\ndef make(weights): ...\n")
    import_factory(f"made_{own}:make")
    said = capsys.readouterr()
    assert said.err == f"--model = 'made_{own}:make': runs code of {tmp_path}/made_{own}.py\n"
    assert said.out == "it runs\n"
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    (tmp_path / "colorsys.py").write_text("raise SystemExit('a file of the working folder')\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(UserError, match="has no function 'make'"):
        import_factory("colorsys:make")
    assert f"runs code of {os.path.dirname(os.__file__)}" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot import"):
        import_factory(":make")


def test_a_method_that_changes_pretrain_and_names_no_keys_shares_with_nobody_else(own: str):
    two, three = (method_config(f"{own}:Scaled", strength=strength) for strength in (2.0, 3.0))
    base = pretraining_of(method_config("base"))
    assert pretraining_of(two) != base and pretraining_of(two) != pretraining_of(three)
    assert pretraining_of(dataclasses.replace(two, variant="label")) == pretraining_of(two)
    assert pretraining_of(method_config("mwuf")) == base == pretraining_of(method_config("metaemb"))
    assert Method.pretrain_keys is None


def test_a_backbone_whose_forward_lacks_the_weight_is_refused_and_not_wrapped(own: str):
    with pytest.raises(UserError, match=r"needs a forward\(self, item, context, row_weight=None\)"):
        build_backbone(backbone_config(f"{own}:NoWeight"), SHAPE)


def test_every_backbone_builds_from_its_own_keys():
    for name in BACKBONES:
        backbone = build_backbone(backbone_config(name), SHAPE)
        assert isinstance(backbone.config, config_class("backbone", name))
        assert all(parameter.isfinite().all() for parameter in backbone.parameters())
        assert isinstance(backbone, torch.nn.Module)
