"""Configuration: what is right survives a round trip; what is wrong is one line with file, key, value, rule, remedy."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.errors import ConfigError
from radio.ofdm import PROFILES
from testbed import toml
from testbed.config import ConfigProblems, Experiment, Lab, Pair, load, load_lab, starter


def write(folder: Path, lab: str | None = None, experiment: str | None = None) -> Path:
    (folder / "lab.toml").write_text(lab if lab is not None else starter("lab.toml"))
    path = folder / "experiment.toml"
    path.write_text(experiment if experiment is not None else starter("experiment.toml"))
    return path


def problem(*overrides: str, path: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides=overrides)
    assert caught.value.exit_code == 2
    assert caught.value.remedy or isinstance(caught.value, ConfigProblems)
    return caught.value


def test_the_built_in_pair_is_eight_loopback_nodes() -> None:
    pair = load()
    assert len(pair.lab.nodes) == 8 and pair.lab_source == pair.experiment_source == "built-in"
    assert pair.lab.ether is not None and pair.lab.ether.preset == "pluto-stock" and pair.lab.ether.snr_db == 20.0
    assert pair.lab.server.control_port == pair.lab.server.events_port == pair.lab.ether_port == 0
    assert pair.lab.server.host == "127.0.0.1"
    assert pair.lab.radio_names == ("server", *(f"node-{k}" for k in range(1, 9)))


def test_starter_files_are_valid_and_bind_to_this_machine_only(tmp_path: Path) -> None:
    pair = load(write(tmp_path))
    assert pair.lab.server.host == "127.0.0.1"
    assert pair.lab.keys == str(tmp_path / "keys")


def test_resolved_files_give_the_same_pair_again(tmp_path: Path) -> None:
    pair = load(overrides=["scheme.keep=0.07", "lab.ether.radios.node-3.ppm=-25.0", "data.folder=some/where"])
    for name, text in pair.resolved().items():
        (tmp_path / name).write_text(text)
    again = load(tmp_path)
    assert again.lab == pair.lab
    assert again.experiment.model_dump(exclude={"data"}) == pair.experiment.model_dump(exclude={"data"})
    assert again.experiment.scheme.keep == 0.07
    assert load(tmp_path / "experiment.toml").lab == again.lab  # the lab beside the experiment is found


def test_another_preset_replaces_the_old_one_even_in_a_resolved_file(tmp_path: Path) -> None:
    for name, text in load(overrides=["lab.ether.adev=7e-10"]).resolved().items():
        (tmp_path / name).write_text(text)
    ether = load(tmp_path, overrides=["lab.ether.preset=ideal"]).lab.ether
    assert ether is not None and ether.preset == "ideal" and ether.ppm_max == 0.0 and ether.dac_bits == 0
    assert ether.adev == 7e-10 and ether.snr_db == 20.0 and ether.seed == 1  # what the user chose stays


@pytest.mark.parametrize(
    ("override", "words", "remedy"),
    [
        ("scheme.kep=0.1", ["--set", "scheme.kep", "unknown key"], "did you mean 'keep'"),
        ("skheme.keep=0.1", ["skheme", "unknown key"], "did you mean 'scheme'"),
        ("lab.ether.snr=3", ["lab.ether.snr", "unknown key"], "did you mean"),
        ("lab.nodes.2.antena=a", ["lab.nodes.2.antena"], "did you mean 'antenna'"),
        ("scheme.keep=3", ["scheme.keep = 3", "at most 1"], "at most 1"),
        ("scheme.keep=lots", ["scheme.keep = 'lots'", "must be a number"], "a number"),
        ("run.rounds=1.5", ["run.rounds = 1.5", "whole number"], "whole number"),
        ("run.rounds=0", ["run.rounds = 0", "at least 1"], "at least 1"),
        ("scheme.memory=perhaps", ["scheme.memory", "true or false"], "true or false"),
        ("model.name=mpl", ["model.name = 'mpl'"], "did you mean 'mlp'"),
        ("scheme.name=air-meta-plf", ["scheme.name = 'air-meta-plf'", "unknown scheme"], "did you mean 'air-meta-pfl'"),
        ("waveform.profile=pluto-900", ["waveform.profile", "unknown profile"], "did you mean 'pluto-915'"),
        ("waveform.mode=C", ["waveform.mode = 'C'", "pluto-915"], 'waveform.mode = "R"'),
        ("run.clients_per_round=9", ["run.clients_per_round = 9", "8 nodes"], "at most 8"),
        ("data.clients=9", ["data.clients = 9", "8 nodes"], "data.clients = 8"),
        ("data.ways=11", ["ways=11", "classes_per_client=10"], "raise classes_per_client"),
        ("lab.nodes.1.name=node-1", ["2 nodes are named 'node-1'"], "a name of its own"),
        ("lab.nodes.1.radio=loopback:node-1", ["'loopback:node-1' is used 2 times"], "a radio of its own"),
        ("lab.nodes.1.name=../etc", ["lab.nodes.1.name", "'../etc'"], "correct"),
        ("lab.nodes.9.name=x", ["rows 0 to 7"], "one of these"),
        ("lab.heartbeat.allowance_s=0.5", ["allowance_s", "not longer"], "three intervals"),
        ("lab.safety=eu-sdr", ["lab.safety", "no safety profile 'eu-sdr'"], "did you mean 'eu-srd'"),
        ("lab.server.control_port=70000", ["lab.server.control_port = 70000", "at most 65535"], "at most"),
        ("scheme.keep.x=1", ["single value"], "shorten"),
        ("scheme", ["KEY=VALUE"], "scheme.keep=0.04"),
    ],
)
def test_each_mistake_is_one_clear_line(override: str, words: list[str], remedy: str) -> None:
    error = problem(override)
    assert not isinstance(error, ConfigProblems), error
    assert "\n" not in str(error)
    for word in words:
        assert word in error.message
    assert remedy in error.remedy


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, experiment='[scheme]\nkeep = 3\n[run]\nrounds = "many"\n[modle]\nname = "mlp"\n')
    error = problem(path=path)
    assert isinstance(error, ConfigProblems) and len(error.problems) == 3
    assert all(str(path) in line.message and line.remedy for line in error.problems)
    assert [key in str(error) for key in ("scheme.keep", "run.rounds", "modle")] == [True] * 3


def test_both_files_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, lab="nodes = []\nsize = 3\n", experiment="[scheme]\nkeep = 0\n")
    error = problem(path=path)
    assert isinstance(error, ConfigProblems)
    assert {str(line).split(":")[0] for line in error.problems} == {str(path), str(tmp_path / "lab.toml")}


def test_a_broken_file_names_the_line(tmp_path: Path) -> None:
    error = problem(path=write(tmp_path, experiment="[run]\nrounds = = 3\n"))
    assert "line 2" in error.message and str(tmp_path) in error.message


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    error = problem(path=tmp_path / "none.toml")
    assert "none.toml" in error.message and "testbed init" in error.remedy


def test_more_nodes_than_verification_shifts(tmp_path: Path) -> None:
    most = PROFILES["pluto-915"].max_nodes
    rows = "".join(f'[[nodes]]\nname = "n{k}"\nradio = "loopback:n{k}"\n' for k in range(most + 1))
    path = write(tmp_path, lab='safety = "conducted"\n[ether]\n' + rows, experiment=f"[data]\nclients = {most + 1}\n")
    error = problem(path=path)
    assert f"{most + 1} nodes" in error.message and f"{most} verification shifts" in error.message


def test_loopback_radios_need_an_ether(tmp_path: Path) -> None:
    path = write(tmp_path, lab='safety = "conducted"\n[[nodes]]\nname = "a"\nradio = "loopback:a"\n')
    with pytest.raises(ConfigError, match="no \\[ether\\] table"):
        load(path, overrides=["data.clients=1", "run.clients_per_round=1"])


def test_overrides_read_toml_values_and_bare_words() -> None:
    pair = load(
        overrides=[
            "model.hidden=[32, 16]",
            "scheme.memory=false",
            'scheme.estimator="iht"',
            "learn.gradient=first-order",
            "lab.nodes.7.antenna=on the shelf",
            "lab.keys=",
        ]
    )
    assert pair.experiment.model.hidden == (32, 16) and pair.experiment.scheme.memory is False
    assert pair.experiment.scheme.estimator == "iht" and pair.experiment.learn.gradient == "first-order"
    assert pair.lab.nodes[7].antenna == "on the shelf" and pair.lab.keys == ""


def test_a_safety_profile_is_named_or_adjusted(tmp_path: Path) -> None:
    assert load().lab.safety.conducted
    rows = '[[nodes]]\nname = "a"\nradio = "pluto:usb:1"\n'
    lab = tmp_path / "lab.toml"
    lab.write_text('[safety]\nname = "us-15.249"\nantenna_gain_dbi = 3.0\n[server]\nradio = "pluto:usb:2"\n' + rows)
    safety = load_lab(lab).safety
    assert safety.antenna_gain_dbi == 3.0 and safety.band_of(915e6, 1e6) is not None and not safety.conducted
    head = '[server]\nradio = "pluto:usb:2"\n'
    for safety, words in (
        (
            '[safety]\nname = "us-15.249"\nbands = [{ low_hz = 900e6, high_hz = 928e6, eirp_dbm = -1.25 }]\n',
            "is wider than",
        ),
        ('[safety]\nname = "us-15.249"\nversion = 2\n', "is version 1 in this release, not 2"),
        ('[safety]\nname = "conducted"\n', "is for cables, and their attenuation is not declared"),
        ('[safety]\nname = "conducted"\nattenuation_db = 30.0\n', "at least 40, not 30"),
        ('[safety]\nfile = "mine.toml"\n', "mine.toml: cannot be read"),
    ):
        lab.write_text(safety + head + rows)
        with pytest.raises(ConfigError, match=words):
            load_lab(lab)
    mine = (
        'name = "jp"\nversion = 3\nlicence = "rule 1"\nbands = [{ low_hz = 920e6, high_hz = 928e6, eirp_dbm = 3.0 }]\n'
    )
    lab.write_text('[safety]\nfile = "mine.toml"\ncable_loss_db = 2.0\n' + head + rows)
    for version, words in ((1, ""), (2, r"mine.toml: profile 'jp' is of format 2, this release reads 1")):
        (tmp_path / "mine.toml").write_text(f"format = {version}\n{mine}")
        if words:
            with pytest.raises(ConfigError, match=words):
                load_lab(lab)
        else:
            own = load_lab(lab).safety
            assert (own.name, own.version, own.licence, own.cable_loss_db) == ("jp", 3, "rule 1", 2.0)
            (tmp_path / "whole").mkdir()
            (tmp_path / "whole" / "lab.toml").write_text(Pair(load_lab(lab), Experiment()).resolved()["lab.toml"])
            assert load_lab(tmp_path / "whole" / "lab.toml").safety == own  # a run folder stands alone
    lab.write_text(head + rows)
    with pytest.raises(ConfigError, match="safety: required"):  # nothing may radiate by default
        load_lab(lab)


def test_a_lab_alone_refuses_experiment_keys() -> None:
    assert load_lab(None, ["lab.ether_port=5"]).ether_address == "tcp://127.0.0.1:5"
    with pytest.raises(ConfigError, match="only lab keys"):
        load_lab(None, ["run.rounds=5"])


def test_uris_of_simulated_radios_become_addresses() -> None:
    lab = load_lab(None, ["lab.ether_port=5700", "lab.nodes.0.radio=pluto:usb:1.5.5"])
    assert lab.radio_uri("node-2") == "loopback:tcp://127.0.0.1:5700/node-2"
    assert lab.radio_uri("server") == "loopback:tcp://127.0.0.1:5700/server"
    assert lab.radio_uri("node-1") == "pluto:usb:1.5.5"
    assert lab.radio_names == ("server", *(f"node-{k}" for k in range(2, 9)))
    with pytest.raises(ConfigError, match="no node 'node-9'"):
        lab.radio_uri("node-9")


def test_the_fingerprint_follows_what_decides_the_numbers_and_nothing_else() -> None:
    plain = load().fingerprint()
    same = ["lab.server.control_port=9", "lab.keys=/tmp/k", "run.rounds=999", "lab.heartbeat.give_up_s=30.0"]
    assert load(overrides=same).fingerprint() == plain
    for override in ("run.seed=2", "scheme.keep=0.2", "lab.ether.snr_db=19.0", "waveform.beacons_per_cycle=4"):
        assert load(overrides=[override]).fingerprint() != plain


def test_every_setting_is_described() -> None:
    def walk(model: type, path: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            if not field.description and model.__module__ == "testbed.config":
                missing.append(f"{path}.{name}")
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                missing += walk(field.annotation, f"{path}.{name}")
        return missing

    assert walk(Lab, "lab") + walk(Experiment, "experiment") == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.lists(st.integers(0, 9))
)
TABLES = st.recursive(
    st.dictionaries(TEXT, SCALARS, max_size=4),
    lambda inner: st.dictionaries(TEXT, st.one_of(SCALARS, inner, st.lists(inner, max_size=3)), max_size=4),
    max_leaves=12,
)


@given(TABLES)
@settings(max_examples=200, deadline=None)
def test_toml_written_is_toml_read(table: dict) -> None:
    assert tomllib.loads(toml.dumps(table)) == table


def test_toml_leaves_out_what_it_cannot_say() -> None:
    assert tomllib.loads(toml.dumps({"a": None, "b": {"c": None}})) == {"b": {}}
    with pytest.raises(TypeError, match="bytes"):
        toml.dumps({"a": b"x"})
