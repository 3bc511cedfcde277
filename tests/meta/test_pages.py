"""The pages: links, words, generated parts, and examples that are data."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from bindings.kubernetes.injector import Injection, injected
from docs.generate import changes, rendered
from docs.reference import own_types
from gateway.bridge_file import read_bridge_file
from gateway.cli.template_schema import Template
from mesh.errors import ConfigError, Problem
from mesh.resources.loader import (
    is_bridge_file,
    is_run_file,
    load_configuration_file,
    load_resources,
    parse_documents,
    validate,
)
from mesh.resources.subscription import METADATA
from tests.meta.sources import PACKAGES, ROOT, Block, blocks, pages
from tests.support.stores import STATE

_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

# Terms that have another name here, words that promise, and places of one machine.
# What all have in common stands in front: this is asked of each place in some nine million.
_FORBIDDEN = re.compile(
    r"\b(?:message bus|packet(?!_id\b)|kick|leverag|seamless|blazing|effortless|cutting.edge|world.class"
    r"|site-packages|index-url|registry\.npmjs|pypi\.org)|/(?:work|root)/(?<![\w.~$}]/(?:work|root)/)",
    re.IGNORECASE,
)
_TEXT_SUFFIXES = {".md", ".py", ".toml", ".yaml", ".yml", ".js", ".sh", ""}


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _broken_links(page: Path) -> Iterator[str]:
    for found in _LINK.finditer(_CODE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = unquote(found["target"]).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page if not target else (page.parent / target).resolve()
        if not file.exists() or ROOT not in (file, *file.parents):
            yield f"{page.relative_to(ROOT)}: {found['target']}"
        elif anchor and anchor not in _anchors(file):
            yield f"{page.relative_to(ROOT)}: {found['target']} (no such heading)"


def test_internal_links_resolve() -> None:
    """A link leads to a file that exists, and to a heading in it."""
    assert not [each for page in pages() for each in _broken_links(page)]


def test_every_page_is_linked() -> None:
    """Every page of docs/ can be reached from the README."""
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = (found["target"].partition("#")[0] for found in _LINK.finditer(page.read_text(encoding="utf-8")))
        waiting += [(page.parent / target).resolve() for target in targets if target and "://" not in target]
    assert set((ROOT / "docs").rglob("*.md")) <= reached


def test_generated_parts_are_up_to_date() -> None:
    """``python -m docs.generate`` would change nothing."""
    texts = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages()}
    assert not [name for name, text in texts.items() if rendered(text) != text], "stale; run: python -m docs.generate"


def test_generated_files_are_up_to_date() -> None:
    """``python -m docs.generate`` would write no file anew, and remove none."""
    assert not [str(path.relative_to(ROOT)) for path in changes()], "stale; run: python -m docs.generate"


def _our_files() -> list[Path]:
    git = shutil.which("git")
    command = [git or "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False) if git else None
    if listed is not None and listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:  # A tree without git, such as an unpacked archive.
        folders = (*PACKAGES, "docs", "tests", "examples", "bench")
        files = [file for folder in folders for file in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.*"))
    return [file for file in files if file.suffix in _TEXT_SUFFIXES and file.is_file()]


def test_state_stores_say_whether_they_are_tested() -> None:
    """What a store is said to be tested with, the suites of ``tests/stores`` run against; and no other one is there."""
    stores = [each for each in own_types() if each.name.startswith("state.") and each.provider]
    rows = {kind.type for kind in STATE.values()}
    tested = {each.provider for each in stores if each.name in rows}
    assert {each.provider for each in stores if not each.tested.startswith("not run")} == tested


def test_no_forbidden_words() -> None:
    """Neither pages nor code use words that mean something else here, or places of one machine."""
    found = []
    for file in _our_files():
        if file == Path(__file__):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if match := _FORBIDDEN.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {match[0]!r}")
    assert not found


def test_readme_and_contributing_are_short() -> None:
    """The first pages can be read in one go."""
    lengths = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in ("README.md", "CONTRIBUTING.md")
    }
    assert lengths["README.md"] <= 140
    assert lengths["CONTRIBUTING.md"] < 150


def test_decisions_have_one_form() -> None:
    """Every ADR has its number, its parts, and fits on a page."""
    names = sorted(page.name for page in (ROOT / "docs" / "adr").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        text = (ROOT / "docs" / "adr" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {int(name[:4])}. "), name
        parts = ["**Status:**", "## Context", "## Decision", "## Consequences"]
        assert sorted(parts, key=text.index) == parts, name
        assert len(text.splitlines()) < 70, name


def test_decisions_named_in_code_exist() -> None:
    """``ADR 5`` in a docstring or comment names a page."""
    numbers = {int(page.name[:4]) for page in (ROOT / "docs" / "adr").glob("*.md")}
    # A hyphen (ADR-8) names one of NATS's own.
    named = {
        (str(file.relative_to(ROOT)), int(number))
        for file in _our_files()
        if file.suffix == ".py"
        for number in re.findall(r"\bADR (\d+)\b", file.read_text(encoding="utf-8"))
        if file != Path(__file__)
    }
    assert not [each for each in named if each[1] not in numbers]


def test_files_named_in_code_exist() -> None:
    """A page or test that a docstring or comment names is there."""
    named = re.compile(r"\b((?:docs|tests|mesh|brokers|gateway|bindings)/[\w/]+\.(?:md|py))\b")
    missing = [
        f"{file.relative_to(ROOT)} names {name}"
        for file in _our_files()
        if file.suffix == ".py" and file.relative_to(ROOT).parts[0] in PACKAGES
        for name in named.findall(file.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert not missing


_YAML = [block for block in blocks() if block.language == "yaml"]


@pytest.mark.parametrize("block", _YAML, ids=map(str, _YAML))
def test_yaml_examples_are_valid(block: Block, tmp_path: Path) -> None:
    """A resource or template in a page loads without a problem or a warning."""
    file = tmp_path / "example.yaml"
    file.write_text(block.text, encoding="utf-8")
    problems: list[Problem] = []
    documents = parse_documents(block.text, str(block), problems)
    assert documents
    assert not problems
    for document in documents:
        if is_bridge_file(document):
            read_bridge_file(file)
            return
        if is_run_file(document):
            validate(document, Template, problems, problems)
            assert not problems
            return
    if any(document.get("kind") == "Deployment" for document in documents):
        for each in yaml.safe_load_all(block.text):
            pod = injected(each["spec"]["template"], Injection(image="mesh"), "key")
            assert pod.patch
            assert not pod.problems
            assert not pod.warnings
        return
    assert all(document.get("kind") for document in documents), "an example is a resource or a template"
    if all(str(document.get("apiVersion")) in ("v1", "apps/v1") for document in documents):
        return  # The cluster's own.
    try:
        loaded = load_resources([file])
        if loaded.configurations:
            load_configuration_file(file, {}, [])
    except ConfigError as error:
        pytest.fail("\n".join(map(str, error.problems)))
    assert not loaded.warnings


def test_other_examples_parse() -> None:
    """Python, JSON and shell in a page are at least that; YAML is marked as YAML."""
    for block in blocks():
        match block.language:
            case "python":
                ast.parse(block.text)
            case "json":
                json.loads(block.text)
            case "bash":
                shlex.split(block.text, comments=True)
            case "text" | "":
                assert "apiVersion:" not in block.text, block
            case "yaml":
                list(yaml.safe_load_all(block.text))
            case "sql":
                assert block.text.rstrip().endswith(";"), block  # tests/stores run it.
            case "javascript":
                assert "file=" in block.info, block  # tests/e2e/test_docs.py runs it.
            case language:
                pytest.fail(f"{block}: unknown language {language!r}")


@pytest.mark.parametrize("name", ["pubsub.md", "resources.md"])
def test_metadata_of_a_subscription_is_documented(name: str) -> None:
    """Both pages list all of it."""
    rows = re.findall(r"^\| (.*)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
    start = "`spec.metadata` |" if name == "resources.md" else "`"
    listed = {word for row in rows if row.startswith(start) for word in re.findall(r"`(\w+)`", row)}
    assert set(METADATA) <= listed
