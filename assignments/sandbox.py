"""Runs one command where it sees only what it needs, has no network, and ends with everything that it started.

python sandbox.py KIND SHARED DATA HIDE... -- COMMAND

SHARED is a folder to write to; the files of DATA, but no notebooks, lie where the command starts; HIDE is never seen.

KIND is one of `KINDS`, the best first: bubblewrap (`bwrap`); the same with Linux's own namespaces, for which no
program is needed; limits alone, where a machine has neither. `best()` tries which work. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "bubblewrap": "each submission runs in bubblewrap: no network, no other files, nothing left behind",
    "namespaces": "each submission runs in namespaces of its own: no network, no other files, nothing left behind",
    "limits": "NOT ISOLATED: submissions run as you, with your files and your network; install bubblewrap, or use the "
    "container in assignments/Containerfile",
}
MEMORY_GB = int(os.environ.get("MEMORY_GB", 8))
FILES = 256 << 20  # bytes that a submission may write in all, as far as the kind can say so
LIMITS = {
    "RLIMIT_AS": MEMORY_GB << 30, "RLIMIT_FSIZE": FILES // 4, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 1024,
    "RLIMIT_CPU": 3600,
}  # fmt: skip
PROCESSES = 512  # and threads, above those that the user has; not counted for root
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache")
WORK = "/tmp/work"


def environment(kind: str, shared: str) -> dict[str, str]:
    """Nothing of the caller's environment but language, time zone and number of threads."""
    home = "/tmp/home" if kind != "limits" else shared
    kept = {name: os.environ[name] for name in ("LANG", "OMP_NUM_THREADS", "TZ") if name in os.environ}
    kept.setdefault("OMP_NUM_THREADS", "1")  # on a busy machine, threads that wait for each other cost whole cells
    return kept | {
        "HOME": home, "USER": "student", "LOGNAME": "student", "TMPDIR": "/tmp" if kind != "limits" else shared,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "IPYTHONDIR": f"{home}/ipython", "MPLCONFIGDIR": f"{home}/matplotlib",
        "JUPYTER_PLATFORM_DIRS": "1", "CUDA_VISIBLE_DEVICES": "", "NBGRADER_EXECUTION": "autograde",
    }  # fmt: skip


def readable() -> list[Path]:
    """What a submission may read: the system's programs, this Python and its packages, and `expr_lib`."""
    own = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1], ROOT / "expr_lib"}
    paths = [Path(p) for p in SYSTEM] + sorted(own)
    return [p for p in paths if p.exists() and not any(up in paths for up in p.parents)]


def data_files(data: str) -> list[Path]:
    return [f for f in sorted(Path(data).iterdir()) if f.is_file() and not f.is_symlink() and f.suffix != ".ipynb"]


def hidden(hide: Sequence[str]) -> list[str]:
    """Folders that lie inside of what may be read, and must not be."""
    return [h for h in hide if any(p in Path(h).parents or p == Path(h) for p in readable())]


# -- bubblewrap ----------------------------------------------------------------------------------------------------


def bubblewrap(shared: str, data: str, hide: Sequence[str]) -> list[str]:
    options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "ALL"]
    if "--disable-userns" in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout:  # 0.8
        options += ["--disable-userns"]
    options += ["--proc", "/proc", "--remount-ro", "/proc"]  # root may write /proc/sys without any capability
    options += ["--dev", "/dev", "--size", str(FILES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    options += ["--size", str(FILES), "--tmpfs", "/tmp", "--dir", "/tmp/home", "--dir", WORK]
    for path in readable():
        link = path.is_symlink() and str(path) in SYSTEM
        options += ["--symlink", os.readlink(path), str(path)] if link else ["--ro-bind", str(path), str(path)]
    for path in hidden(hide):
        options += ["--tmpfs", path, "--remount-ro", path]
    for file in data_files(data):
        options += ["--ro-bind", str(file), f"{WORK}/{file.name}"]
    return ["bwrap", *options, "--bind", shared, shared, "--remount-ro", "/", "--chdir", WORK, "--"]


# -- namespaces, by hand -------------------------------------------------------------------------------------------

NEW = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
NOSUID, NODEV, BIND, RECURSIVE, PRIVATE = 2, 4, 4096, 16384, 1 << 18
READ_ONLY = 1 | 2 | 4  # and no device or set-uid file works
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38


def call(name: str, *arguments: object) -> None:
    """A function of the C library; `OSError` where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [a.encode() if isinstance(a, str) else a for a in arguments]
    plain = [ctypes.c_ulong(a) if isinstance(a, int) and a >= 0 else a for a in plain]
    if getattr(libc, name)(*plain) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def read_only(path: str, *, below: bool = True) -> None:
    """Nothing can be written to a mount and, with `below`, to those in it (mount_setattr, Linux 5.12)."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    size = ctypes.sizeof(wanted := Attributes(READ_ONLY, 0, 0, 0))
    call("syscall", 442, ctypes.c_long(-100), path, 0x8000 if below else 0, ctypes.byref(wanted), size)


def leave(shared: str, data: str, hide: Sequence[str]) -> None:
    """Take the calling process, the first of new namespaces, to a root of its own that holds only what it may see."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("mount", None, "/", None, RECURSIVE | PRIVATE, None)
    root = f"{shared}/root"
    os.mkdir(root)
    call("mount", "tmpfs", root, "tmpfs", NOSUID | NODEV, "size=16m,mode=755")

    def bind(source: str, target: str) -> None:
        to = Path(root + target)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.mkdir(exist_ok=True) if os.path.isdir(source) else to.touch()
        call("mount", source, str(to), None, BIND | RECURSIVE, None)

    def empty(target: str, size: int) -> None:
        Path(root + target).mkdir(parents=True, exist_ok=True)
        call("mount", "tmpfs", root + target, "tmpfs", NOSUID | NODEV, f"size={size},mode=755")

    for path in readable():
        if path.is_symlink() and str(path) in SYSTEM:
            os.symlink(os.readlink(path), root + str(path))
        else:
            bind(str(path), str(path))
            read_only(root + str(path))
    for path in hidden(hide):
        empty(path, 4096)
        read_only(root + path)
    empty("/tmp", FILES)
    os.mkdir(f"{root}/tmp/home")
    os.mkdir(root + WORK)
    for file in data_files(data):
        bind(str(file), f"{WORK}/{file.name}")
        read_only(f"{root}{WORK}/{file.name}")
    for device in ("null", "zero", "full", "random", "urandom"):
        bind(f"/dev/{device}", f"/dev/{device}")
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{root}/dev/{name}")
    empty("/dev/shm", FILES)
    Path(root + "/proc").mkdir()
    call("mount", "proc", root + "/proc", "proc", NOSUID | NODEV | 8, None)
    Path(root + shared).mkdir(parents=True, exist_ok=True)
    call("mount", shared, root + shared, None, BIND, None)
    os.chdir(root)
    call("pivot_root", ".", ".")
    call("umount2", ".", 2)
    read_only("/", below=False)
    os.chdir(WORK)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")  # none within this one
    read_only("/proc")  # root may write /proc/sys without any capability
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(41):
        call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)


def in_namespaces(command: list[str], env: dict[str, str], shared: str, data: str, hide: Sequence[str]) -> int:
    user, group = os.getuid(), os.getgid()
    call("unshare", sum(NEW.values()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    first = os.fork()
    if first:  # outside: when the first process of the namespace ends, all in it end
        return exit_code(os.waitpid(first, 0)[1])
    try:
        leave(shared, data, hide)
        child = os.fork()
        if not child:
            os.execvpe(command[0], command, env)
        while True:
            pid, status = os.wait()  # and the orphans of others
            if pid == child:
                os._exit(exit_code(status))
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
    os._exit(125)


def exit_code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


# -- limits alone --------------------------------------------------------------------------------------------------


def with_limits(command: list[str], env: dict[str, str], data: str) -> int:
    """Run the command, then end whatever it has started and left behind, as far as this system can tell."""
    if sys.platform == "linux":
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come back to this process
    work = tempfile.mkdtemp(dir=env["TMPDIR"])
    for file in data_files(data):
        shutil.copy(file, work)
    child = subprocess.Popen(command, env=env, cwd=work)
    signal.signal(signal.SIGTERM, lambda *_: child.kill())
    code = child.wait()
    for _ in range(50):  # a child of a child comes back once its parent has ended
        left = list(children(os.getpid()))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if not left:
            break
        for pid in left:
            os.waitpid(pid, 0)
        time.sleep(0.01)
    return code


def children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(entry.parent.name)
        except OSError:
            continue  # it has ended


# -- one of the three ----------------------------------------------------------------------------------------------


def threads_now() -> int:
    """Processes and threads of this user, for what a submission may start is counted together with them."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if status.stat().st_uid == os.getuid():
                total += int(status.read_text().split("Threads:")[1].split()[0])
        except (OSError, IndexError):
            continue  # it has ended
    return total


def run(kind: str, shared: str, data: str, hide: Sequence[str], command: list[str]) -> int:
    if kind not in KINDS:
        raise SystemExit(f"found the sandbox {kind!r}, expected one of {', '.join(KINDS)}")
    for name, most in (LIMITS | {"RLIMIT_NPROC": threads_now() + PROCESSES}).items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(which, (most, most))
        except (ValueError, OSError):  # macOS knows no limit of memory
            print(f"no {name} here", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an endless cell is interrupted, not what runs it
    env = environment(kind, shared)
    if kind == "bubblewrap":
        os.execvpe("bwrap", [*bubblewrap(shared, data, hide), *command], env)
    if kind == "namespaces":
        return in_namespaces(command, env, shared, data, hide)
    return with_limits(command, env, data)


def best() -> str:
    """The best kind that works on this machine; SANDBOX=name asks for one."""
    kinds = [asked] if (asked := os.environ.get("SANDBOX")) else list(KINDS)
    for kind in kinds:
        with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as data:
            command = [
                sys.executable,
                __file__,
                kind,
                shared,
                data,
                "--",
                sys.executable,
                "-c",
                "import expr_lib, torch",
            ]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                return kind
    raise SystemExit(f"SANDBOX={asked}: does not work here: {done.stderr.strip()[-300:]}; expected {', '.join(KINDS)}")


if __name__ == "__main__":
    at = sys.argv.index("--")
    sys.exit(run(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:at], sys.argv[at + 1 :]))
