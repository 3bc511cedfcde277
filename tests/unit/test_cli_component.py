"""``mesh component``: types as their adapters declare them, and files that ``mesh check`` finds fine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from gateway.cli import main
from gateway.cli.component import component_file
from mesh.blocks import BLOCKS
from mesh.blocks.secrets import MULTIPLE_VALUES
from mesh.node.catalogue import component_type
from mesh.registry import Registry
from mesh.resources.loader import load_resources
from mesh.resources.settings import BOOLEAN, COUNT, DURATION, SECONDS, Kind, Setting, choice, ignored, setting
from mesh.resources.settings import read_settings as read
from tests.unit.test_settings_model import component


@dataclass(frozen=True, slots=True)
class ToySettings:
    """Settings of every kind."""

    ignored: ClassVar[tuple[Setting, ...]] = ignored("there is no pool", "poolSize", "poolWait")

    host: str = setting("host", "Name and port.", required=True, aliases=("server",))
    password: str | None = setting("password", "To log in with.", required=True, secret=True)
    token: str | None = setting("token", "Another way.", secret=True)
    mode: str = setting("mode", "Which.", choice("node", "cluster"), required=True)
    many: int | None = setting("many", "How many: as many as it can.", COUNT)
    wait: float = setting("wait", "How long.", SECONDS, default=5.0)
    on: bool = setting("on", "Whether.", BOOLEAN, default=False)
    separator: str = setting("separator", "Between names.", default=": ")


class Toy:
    """A toy for tests. It does nothing."""

    settings = ToySettings
    capabilities: Any = ("ETAG", "TTL")
    capabilities_with: Any = {"TTL": "`mode` cluster"}  # noqa: RUF012 - as an adapter of others may write it
    tested = "itself"
    bound = True


class OtherToy:
    """Looks at its settings itself"""

    @property
    def capabilities(self) -> list[str]:
        """None before it is open."""
        return []


class Toys(Registry):
    """Has the toys besides what is installed."""

    def _all(self) -> dict[str, list[EntryPoint]]:
        toys = {"state.toy": "Toy", "state.other": "OtherToy", "pubsub.lacking": "x"}
        return {
            **super()._all(),
            **{
                name: [EntryPoint(name, f"{__name__ if what != 'x' else 'aiokafka_not_there'}:{what}", "g")]
                for name, what in toys.items()
            },
        }

    def load(self, name: str, layout: str = "") -> type:
        """Give ours by themselves: a test's module cannot be imported by its name."""
        found = {"state.toy": Toy, "state.other": OtherToy}.get(name)
        return super().load(name, layout) if found is None else found


def test_a_type_is_told_by_its_declarations() -> None:
    kind = component_type("state.toy", Toys(), BLOCKS)
    assert (kind.title, kind.abilities, kind.tested, kind.placement) == (
        "A toy for tests.",
        ("ETAG",),
        "itself",
        "local",
    )
    assert kind.told_abilities == ("ETAG", "TTL (with `mode` cluster)")
    assert kind.described()["abilitiesWith"] == {"TTL": "`mode` cluster"}
    described = {each["name"]: each for each in kind.described()["settings"]}  # type: ignore[attr-defined]
    assert described["host"] == {
        "name": "host",
        "aliases": ["server"],
        "about": "Name and port.",
        "kind": "text",
        "choices": [],
        "default": None,
        "required": True,
        "sensitive": False,
    }
    assert described["mode"]["choices"] == ["node", "cluster"]
    assert (described["wait"]["default"], described["on"]["default"]) == ("5s", "false")
    assert described["password"]["sensitive"]
    assert described["poolSize"] == {"name": "poolSize", "noEffect": "there is no pool"}
    assert "keyPrefix" in described, "what the block reads belongs to it"
    assert list(described)[-2:] == ["poolSize", "poolWait"]


@pytest.mark.parametrize(
    ("name", "ability"),
    [
        ("state.redis", "QUERY_API"),
        ("state.postgresql", "QUERY_API"),
        ("state.yugabytedb", "QUERY_API"),
        ("state.cockroachdb", None),
        ("state.aws.dynamodb", "TTL"),
        ("secretstores.local.file", MULTIPLE_VALUES),
        ("secretstores.hashicorp.vault", MULTIPLE_VALUES),
        ("secretstores.aws.secretmanager", MULTIPLE_VALUES),
        ("secretstores.kubernetes", None),
    ],
)
def test_abilities_that_depend_on_a_setting_name_it(name: str, ability: str | None) -> None:
    """And do not stand among those that are always there."""
    kind = component_type(name, Registry(), BLOCKS)
    assert list(kind.abilities_with) == ([] if ability is None else [ability])
    named = {text for what in kind.abilities_with.values() for text in re.findall("`(.+?)`", what)}
    assert named <= {"version", *(each.name for each in kind.all_settings)}
    assert not kind.abilities_with.keys() & set(kind.abilities)


def test_a_type_that_declares_nothing_and_one_that_lacks_its_library() -> None:
    other = component_type("state.other", Toys(), BLOCKS)
    assert (other.title, other.settings, other.abilities) == ("Looks at its settings itself", None, ())
    lacking = component_type("pubsub.lacking", Toys(), BLOCKS)
    assert lacking.needs == "pubsub.lacking needs the package aiokafka_not_there; install it with: " + (
        "pip install aiokafka_not_there"
    )


def test_a_new_file_has_every_setting() -> None:
    text = component_file(component_type("state.toy", Toys(), BLOCKS), "orders: 1")
    given = yaml.safe_load(text)
    assert given["metadata"]["name"] == "orders: 1"
    assert given["auth"] == {"secretStore": "secretstore"}
    entries = {each["name"]: each for each in given["spec"]["metadata"]}
    assert entries == {
        "host": {"name": "host", "value": "CHANGE-ME"},
        "password": {"name": "password", "secretKeyRef": {"name": "orders: 1", "key": "password"}},
        "mode": {"name": "mode", "value": "node"},
    }
    assert "poolSize" not in text

    whole = yaml.safe_load(re.sub(r"^    # (- name:|  value:|  secretKeyRef:)", r"    \1", text, flags=re.MULTILINE))
    entries = {each["name"]: each for each in whole["spec"]["metadata"]}
    assert {"token", "many", "wait", "on", "separator", "keyPrefix"} < entries.keys()
    values = {name: each["value"] for name, each in entries.items() if "value" in each}
    found = read(component(password="x", **values), ToySettings)  # What it shows is what may stand there.
    assert (found.many, found.wait, found.on, found.separator) == (1, 5.0, False, ":")


@pytest.mark.parametrize("name", Registry().types())
def test_a_new_file_of_every_type_is_fine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written to a file that was not there, and to the standard output."""
    monkeypatch.chdir(tmp_path)
    Path("secrets.json").write_text("{}", encoding="utf-8")
    file = "folders/that are not there/c.yaml"
    assert main(["component", "new", name.upper(), "-o", file]) == 0
    assert f"mesh check {file}" in capsys.readouterr().err
    assert main(["check", "--strict", file]) == 0, capsys.readouterr()
    assert main(["component", "new", name]) == 0
    capsys.readouterr()
    assert main(["component", "new", name, "-o", file]) == 1
    assert "there already" in capsys.readouterr().err


_COMMENTED = re.compile(r"^    # (- name:|  value:|  secretKeyRef:)", re.MULTILINE)


@pytest.mark.parametrize("name", Registry().types())
def test_every_setting_of_a_new_file_may_be_uncommented(name: str, tmp_path: Path) -> None:
    """Each has a value that its reader takes, durations with a unit; and a file without any is read, too."""
    kind = component_type(name, Registry(), BLOCKS)
    if kind.needs:
        pytest.skip(kind.needs)
    text = component_file(kind)
    file = tmp_path / "c.yaml"
    file.write_text(_COMMENTED.sub(r"    \1", text), encoding="utf-8")
    (made,) = load_resources([file]).components
    declared = {each.name: each for each in kind.all_settings}
    assert made.metadata or not declared
    for entry in made.metadata:
        given = entry.text()
        if given is None:  # A secret's.
            continue
        declared[entry.name].kind.parse(given)
        assert "duration" not in declared[entry.name].kind.name or given[-1] in "smh", entry.name


@pytest.mark.parametrize("name", Registry().types())
def test_versions_that_a_type_has_not_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = component_type(name, Registry(), BLOCKS)
    if kind.needs:
        pytest.skip(kind.needs)
    file = tmp_path / "c.yaml"
    file.write_text(component_file(kind, optional=False).replace(f"version: {kind.versions[0]}", "version: v9"))
    assert main(["check", str(file)]) == 1
    out = capsys.readouterr().out
    assert "(spec.version), not 'v9'" in out
    assert all(version in out for version in kind.versions)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.008, "8ms"), (0.25, "250ms"), (1.5, "1.5s"), (5.0, "5s"), (300.0, "5m"), (3600.0, "1h")]
)
def test_durations_are_shown_as_durations(seconds: float, shown: str) -> None:
    """Whatever the kind takes besides, as milliseconds without a unit."""
    for kind in (DURATION, SECONDS, Kind("duration, or milliseconds", DURATION.parse)):
        made = Setting("wait", "How long.", kind, default=seconds)
        assert made.shown_default == shown
        assert kind.parse(shown) == seconds


_ENTRY = re.compile(r"^    # (- name: (\S+))\n    # (  \w+: .*)$", re.MULTILINE)


@pytest.mark.costly
@pytest.mark.parametrize("name", Registry().types())
def test_every_value_that_is_shown_is_read(name: str) -> None:
    """All settings are uncommented at once; a default is shown as it is read. Secrets are not in the file."""
    kind = component_type(name, Registry(), BLOCKS)
    text = _ENTRY.sub(r"    \1\n    \3", component_file(kind))
    entries = {each["name"]: each.get("value") for each in yaml.safe_load(text)["spec"].get("metadata") or ()}
    used = [each for each in kind.all_settings if each.used]
    assert list(entries) == [each.name for each in sorted(used, key=lambda each: not (each.required or each.suggested))]
    for each in used:
        value = entries[each.name]
        assert (value is None) == each.secret, each.name
        if value is not None:
            each.kind.parse(value)
        if each.shown_default:
            assert each.kind.parse(each.shown_default) == each.default, each.name
        assert each.shown_default or each.default in (None, "", (), frozenset()), each.name


@pytest.mark.costly
@pytest.mark.parametrize("name", Registry().types())
def test_each_setting_can_be_uncommented_by_itself(name: str) -> None:
    text = component_file(component_type(name, Registry(), BLOCKS))
    found = list(_ENTRY.finditer(text))
    for each in found:
        alone = f"{text[: each.start()]}    {each[1]}\n    {each[3]}{text[each.end() :]}"
        names = [entry["name"] for entry in yaml.safe_load(alone)["spec"]["metadata"]]
        assert yaml.safe_load(each[2]) in names
    assert len(found) == text.count("    # - name: ")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["component", "new", "state.mesh", "-o", str(tmp_path / "file" / "c.yaml")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert "there already" not in said


def test_types_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["component", "types"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["TYPE", *Registry().types()]
    assert main(["component", "types", "-o", "json"]) == 0
    assert [each["type"] for each in json.loads(capsys.readouterr().out)] == Registry().types()
    assert main(["component", "types", "secretstores.local.file", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["settings"][0]["name"] == "secretsFile"
    assert main(["component", "types", "pubsub.redis"]) == 0
    out = capsys.readouterr().out
    assert "redisHost" in out
    assert "without effect:" in out


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("component", 2, "types|new"),
        ("component new", 2, "needs a type"),
        ("component new state.sqlit", 1, "did you mean 'state.sqlite'?"),
        ("component types state.nothing", 1, "there is no component type 'state.nothing'"),
        ("component types -o xml", 2, "'xml' is none of table, json, yaml"),
        ("component types --name x", 2, "--name belongs to"),
    ],
)
def test_what_is_wrong_is_said(line: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == code
    assert said in capsys.readouterr().err
