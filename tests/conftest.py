"""Options of the test suite, what may run beside what, and what no test may leave unseen."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.metadata
import logging
import pkgutil
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import mesh
from tests.support.again import Failed
from tests.support.processes import nothing_forgotten
from tests.support.server import NotInstalledError, missing

# What takes long begins first, so that in the end nobody waits for one process. The rest is in any order.
LONG_FIRST = (
    "tests/kubernetes/",
    "tests/compose/test_compose",
    "tests/faults/test_every_broker",
    "tests/http/test_reload",
    "tests/meta/",
    "tests/contract/test_faults",
    "tests/contract",
    "tests/e2e/test_every_broker",
    "tests/browser/",
    "tests/faults",
    "tests/sdk",
    "tests/stores",
    "tests/e2e",
    "tests/brokers_security",
    "tests/grpc",
    "tests/http",
)

# They share a server of each kind, or one server.
SHARING = (
    "tests/contract/",
    "tests/faults/test_every_broker",
    "tests/faults/test_two_hosts",
    "tests/e2e/test_every_broker",
    "tests/e2e/test_faststream",
)
# What tells how much of mesh/ is tested; elsewhere the same lines are run again, and to note each takes time.
MEASURED = re.compile(
    r"tests/(middleware/|unit/|trust/|contract/[^[]*(\[(memory|nats)\b|$)|(grpc|http)/(?!.*\[nats\b))"
)
MODULES = (
    "tests/bindings/test_databases",
    "tests/bindings/test_queues",
    "tests/browser/",
    "tests/contract/",
    "tests/grpc/",
    "tests/http/",
    "tests/native/",
    "tests/trust/",
    "tests/unit/",  # Many stand on what a module of theirs alone imports, and to hand out each by itself costs, too.
    "tests/compose/",
    "tests/e2e/test_service",
    "tests/faults/test_resiliency_table",
    "tests/brokers_security/test_bindings",
    "tests/brokers_security/test_kafka",
    "tests/stores/test_azure",
    "tests/stores/test_cassandra",
    "tests/stores/test_pluggable",
    "tests/stores/test_redis_layout",
    "tests/stores/test_redis_documents",
    "tests/stores/test_redis_search",
    "tests/stores/test_secret_vendors",
)

ALONE = "tests/http/test_reload"  # They wait for files to be looked at; whatever runs beside them is for nothing.


_read_entry_points = importlib.metadata.entry_points


@cache
def _entry_points_of(path: tuple[str, ...], wanted: tuple[tuple[str, Any], ...]) -> importlib.metadata.EntryPoints:
    return _read_entry_points(**dict(wanted))


def _entry_points(**wanted: Any) -> importlib.metadata.EntryPoints:
    return _entry_points_of(tuple(sys.path), tuple(wanted.items()))


# Each of some thousand gateways asks what is installed, and a file of each library is read for that: 10 ms.
# A test that installs a package puts a folder of its own on the path.
importlib.metadata.entry_points = _entry_points


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--broker", action="append", metavar="NAME", help="run the contract against this broker only")
    parser.addoption("--failed", type=Path, metavar="FILE", help="write down which tests failed")
    parser.addoption("--uvloop", action="store_true", help="run on uvloop, as a gateway does")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than 15 s, most of it waiting")
    config.addinivalue_line(
        "markers", "costly: takes much time or much of the processor, so that `make quick` leaves it out"
    )
    config.addinivalue_line("markers", "leaves_sockets: a library leaves lost sockets to the garbage collector")
    config.option.loadscopereorder = False  # By how many tests, and not by how long they take.
    if (failed := config.getoption("--failed")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failed(failed))
    if config.getoption("--uvloop"):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@contextmanager
def unmeasured(config: pytest.Config) -> Iterator[None]:
    """Note no lines meanwhile: most of what that takes is to be told of each call of a function, of any library."""
    measuring = getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if measuring is None or not (hasattr(config, "workerinput") or config.option.dist == "no"):
        yield
        return
    measuring.pause()
    try:
        yield
    finally:
        measuring.resume()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Leave the tests out of what is looked through for what nobody needs any more: they stay, and are many."""
    gc.disable()
    if session.config.pluginmanager.hasplugin("_cov"):
        for module in pkgutil.walk_packages(mesh.__path__, "mesh."):
            importlib.import_module(module.name)  # Whoever imports it first, what it runs then is measured.
    try:
        with unmeasured(session.config):
            return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure only what is said above."""
    with nullcontext() if MEASURED.match(item.nodeid) else unmeasured(item.config):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip a test whose fixture starts a server that is not installed."""
    with _skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip a test that starts one itself."""
    with _skipping():
        return (yield)


@contextmanager
def _skipping() -> Iterator[None]:
    try:
        yield
    except NotInstalledError as error:
        missing(f"{error}; make provision")


def rank(nodeid: str) -> int:
    """Tell when a test is due; the lower, the sooner."""
    return next((number for number, path in enumerate(LONG_FIRST) if nodeid.startswith(path)), len(LONG_FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares a server, when several processes run the tests; all else may run anywhere."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Scheduling(config, log)


def group_of(nodeid: str) -> str:
    """Tell which tests one process runs one after the other: those with the same answer."""
    path, _, test = nodeid.partition("::")
    if path.startswith("tests/meta/"):
        return "tests/meta"  # They read all sources, each process by itself.
    if path.startswith("tests/kubernetes/"):
        return "tests/kubernetes"  # They share one cluster.
    backend = re.search(r"\[([a-z]+)[]-]", test)
    if backend and path.startswith(SHARING):
        alone = path.endswith(("contract/test_faults.py", "test_faststream.py"))  # They have a server of their own.
        return f"{path if alone else path.split('/')[1]} on {backend[1]}"
    if path.startswith("tests/bindings/") and test.endswith("]") and not path.startswith(MODULES):
        return f"tests/bindings on {test[test.index('[') + 1 : -1]}"
    if path.startswith("tests/stores/") and test.endswith("]") and not path.startswith(MODULES):
        return f"{path} on {test[test.index('[') + 1 : -1].partition('-')[0]}"
    return path if path.startswith(MODULES) and not path.startswith(ALONE) else nodeid


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Collect what a library has left where it was left, and not within the test of something else.

    It is done last: what a test has logged may hold on to it, and pytest keeps that until here.
    """
    try:
        return (yield)
    finally:
        if item.get_closest_marker("leaves_sockets"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


class _Forgotten(logging.Handler):
    """Keeps what asyncio says when it drops a task or its error."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Give a folder that other users of the machine can look into, as they cannot into ``tmp_path``."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made).resolve()
        path.chmod(0o755)
        yield path


@pytest.fixture(autouse=True)
def _nothing_forgotten() -> Iterator[None]:
    """Fail a test in whose time an error was lost on its way to whoever should have it."""
    handler, logger = _Forgotten(), logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    nothing_forgotten("\n".join(handler.said))
