"""What hostile code in a sandbox tries. Run there as `python3 inside.py NAME PID…`; the last line says `held: …` or `ESCAPED: …`.
The PIDs are those of a neighbour's processes, as the machine counts them; `beside.py` runs there.

Standard library only, as it runs with the sandbox's own Python.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
# By a neighbour, see beside.py.
LOCKED = ["/usr/bin/sha1sum", "/etc/ssl/openssl.cnf"]

ATTACKS = {}


def attack(function):
    ATTACKS[function.__name__] = function
    return function


class Escaped(Exception):
    """The attack worked."""


def refused(work, *arguments):
    """Do what must fail, and say how it did."""
    try:
        answer = work(*arguments)
    except (OSError, PermissionError) as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    raise Escaped(f"{getattr(work, '__name__', work)}{arguments} gave {answer!r}")


def call(number, *arguments):
    """A bare system call; raises OSError."""
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def write(path, text):
    with Path(path).open("w") as file:
        file.write(text)
    return f"{path} was written"


# --- /proc and /sys


@attack
def kernel_settings():
    """A helper for core dumps or modules would run as root of the machine."""
    paths = (
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/hotplug",
        "vm/overcommit_memory",
        "fs/suid_dumpable",
    )
    return [refused(write, f"/proc/sys/{path}", "|/tmp/x") for path in paths]


@attack
def system_request():
    return refused(write, "/proc/sysrq-trigger", "c")


@attack
def kernel_memory():
    return [
        refused(Path(path).read_bytes)
        for path in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port", "/proc/kmsg")
    ]


@attack
def kernel_interfaces():
    """Nothing of /sys, and no control groups whose helpers the kernel would run."""
    seen = [
        path
        for path in ("/sys/kernel", "/sys/fs/cgroup", "/sys/firmware", "/sys/class")
        if Path(path).exists()
    ]
    if seen:
        raise Escaped(f"{seen} can be seen")
    return "nothing of /sys"


@attack
def environment_of_the_first_process():
    """The daemon was started with nothing that would be worth reading."""
    try:
        text = Path("/proc/1/environ").read_bytes()
    except PermissionError:
        return "unreadable"
    if any(word in text.upper() for word in (b"KEY", b"TOKEN", b"SECRET", b"PASS")):
        raise Escaped(repr(text))
    return repr(text)


@attack
def memory_of_the_first_process():
    """The daemon's token, by its memory."""
    how = [refused(os.open, "/proc/1/mem", os.O_RDONLY)]
    local, remote = ctypes.create_string_buffer(16), 0x400000
    vectors = struct.pack("PP", ctypes.addressof(local), 16), struct.pack("PP", remote, 16)
    how.append(refused(call, 310, 1, vectors[0], 1, vectors[1], 1, 0))  # process_vm_readv
    how.append(refused(call, 101, 16, 1, 0, 0))  # ptrace(PTRACE_ATTACH, 1)
    how.append(refused(lambda: call(438, call(434, 1, 0), 4, 0)))  # pidfd_getfd: its control socket
    return how


@attack
def root_of_the_first_process():
    """/proc/1/root leads back into the sandbox, never to the machine."""
    try:
        same = Path("/proc/1/root").stat().st_ino == Path("/").stat().st_ino
    except PermissionError:
        return "unreadable"
    if not same:
        raise Escaped("the first process has another root")
    return "the same root"


@attack
def end_the_first_process():
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
        with contextlib.suppress(OSError):
            os.kill(1, number)
    state = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[0]
    if state in "TtZ":
        raise Escaped(f"it is in state {state}")
    return f"it goes on, state {state}"


@attack
def out_of_memory_score():
    """A process that the kernel never picks would let others die in its place."""
    return refused(write, "/proc/self/oom_score_adj", "-1000")


# --- neighbours


@attack
def processes_of_a_neighbour():
    """By every call that names another process, and by all that /proc shows of one."""
    own = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
    targets = [pid for pid in map(int, sys.argv[2:]) if pid not in own]
    if not targets:
        raise Escaped("no process was named: this attack tries nothing")
    local = ctypes.create_string_buffer(16)
    here = struct.pack("PP", ctypes.addressof(local), 16)
    how = set()
    for pid in targets:
        calls = {
            "ptrace attach": (101, 16, pid, 0, 0),
            "ptrace seize": (101, 0x4206, pid, 0, 0),
            "process_vm_readv": (310, pid, here, 1, struct.pack("PP", 0x400000, 16), 1, 0),
            "process_vm_writev": (311, pid, here, 1, struct.pack("PP", 0x400000, 16), 1, 0),
            "pidfd_open": (434, pid, 0),
            "kcmp": (312, os.getpid(), pid, 0, 0, 0),
            "tgkill": (234, pid, pid, 0),
            "prlimit64": (302, pid, 7, None, ctypes.create_string_buffer(16)),
            "sched_setaffinity": (203, pid, 8, ctypes.create_string_buffer(b"\xff" * 8, 8)),
            "setpriority": (141, 0, pid, 19),
            "ioprio_set": (251, 1, pid, 0),
            "move_pages": (279, pid, 0, None, None, None, 0),
            "getpgid": (121, pid),
            "getsid": (124, pid),
        }
        for name, arguments in calls.items():
            how.add(f"{name}: {refused(call, *arguments)}")
        how.add(f"kill: {refused(os.kill, pid, 0)}")
        for name in (
            "mem",
            "root",
            "cwd",
            "exe",
            "fd",
            "environ",
            "maps",
            "ns/net",
            "task",
            "comm",
            "oom_score_adj",
        ):
            how.add(f"/proc: {refused(os.stat, f'/proc/{pid}/{name}')}")
    return sorted(how)


@attack
def numbers_of_processes():
    """No number leads to a process that /proc does not show."""
    found = set()
    for pid in range(2, 100_000):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            found.add(pid)
    tasks = {int(path.name) for path in Path("/proc").glob("[0-9]*/task/*")}
    if odd := found - tasks:
        raise Escaped(f"{odd} are there")
    return len(found)


KEY = 0x5317


@attack
def system_v_objects_of_a_neighbour():
    how = [refused(call, 29, KEY, 0, 0), refused(call, 68, KEY, 0), refused(call, 64, KEY, 0, 0)]
    for number in range(64):  # SHM_STAT, MSG_STAT and SEM_STAT go by a place in the table
        place = ctypes.create_string_buffer(256)
        how += [refused(call, 31, number, 13, place), refused(call, 71, number, 11, place)]
        how.append(refused(call, 66, number, 0, 18, place))
    return sorted(set(how))


@attack
def message_queue_of_a_neighbour():
    return [refused(call, 240, b"beside", os.O_RDWR, 0, None)]


@attack
def sockets_of_a_neighbour():
    how = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as visitor:
            how.append(refused(visitor.connect, f"\0beside-{int(kind)}"))
    with socket.socket() as visitor:
        how.append(refused(visitor.connect, ("127.0.0.1", 5317)))
    return how


@attack
def memory_files_of_a_neighbour():
    return [refused(os.stat, path) for path in ("/dev/shm/beside", "/tmp/beside", "/dev/mqueue/beside")]


@attack
def locks_of_a_neighbour():
    """Every file that a neighbour, or the machine, has locked can be locked here; what is locked here is free there."""
    for path in LOCKED:
        with Path(path).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Escaped(f"{path} is locked by somebody else") from None
    return LOCKED


@attack
def what_a_neighbour_opens():
    """Watched while the neighbour opens the same files over and over."""
    watch = libc.inotify_init1(os.O_NONBLOCK)
    for path in LOCKED:
        if libc.inotify_add_watch(watch, path.encode(), 0x20) < 0:  # IN_OPEN
            return "nothing can be watched"
    time.sleep(0.5)
    seen = refused(os.read, watch, 4096)
    with Path(LOCKED[0]).open("rb"):
        pass
    if not os.read(watch, 4096):
        raise Escaped("what is opened in here was not seen either: this attack tries nothing")
    return seen


# --- mounts and namespaces


@attack
def mounts():
    how = [refused(call, 165, b"none", b"/tmp", b"tmpfs", 0, None), refused(call, 166, b"/proc", 2)]
    how += [refused(call, number, -1, b"/", 0) for number in (428, 430)]  # open_tree, fsopen
    how += [refused(call, 155, b"/tmp", b"/tmp"), refused(os.chroot, "/tmp")]
    return how


@attack
def namespaces():
    how = [refused(call, 272, flag) for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000)]
    how.append(refused(call, 56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0))
    how.append(refused(call, 308, os.open("/proc/self/ns/net", os.O_RDONLY), 0))
    try:
        call(435, ctypes.create_string_buffer(88), 88)
    except OSError as error:
        return [*how, errno.errorcode[error.errno]]
    raise Escaped("clone3 is there")


@attack
def other_system_call_tables():
    """The filter must hold for the 32-bit and the x32 table too: what comes through them is ended or refused."""
    if os.uname().machine != "x86_64":
        return "one table only"
    how = []
    for name, work in (
        ("x32", lambda: call(0x40000000 + 165, b"none", b"/tmp", b"tmpfs", 0, None)),
        ("int80", _int80),
    ):
        child = os.fork()
        if child == 0:
            try:
                work()
            except OSError:
                os._exit(3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            raise Escaped(f"a call through the {name} table worked")
        how.append(f"{name}: {status}")
    return how


def _int80():
    """unshare(CLONE_NEWUSER) by number 310 of the 32-bit table."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xbb\x00\x00\x00\x10\xb8\x36\x01\x00\x00\xcd\x80\x5b\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() < 0:
        raise OSError(errno.EPERM, "refused")


@attack
def devices():
    how = [refused(os.mknod, "/tmp/disk", 0o600 | 0o060000, os.makedev(254, 0))]
    how.append(refused(os.mknod, "/tmp/memory", 0o600 | 0o020000, os.makedev(1, 1)))
    found = {entry.name for entry in Path("/dev").iterdir()}
    odd = found - {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"}
    odd -= {"stdout", "tty", "urandom", "zero", "mqueue"}
    if odd:
        raise Escaped(f"/dev has {odd}")
    return how


@attack
def privileges():
    """No way to another user: not by a call, not by a program with the set-user-id bit."""
    how = [refused(os.setuid, 0), refused(os.setgroups, [0]), refused(os.setresgid, 0, 0, 0)]
    copy = Path("/tmp/suid")
    copy.write_bytes(Path("/usr/bin/id").read_bytes())
    copy.chmod(0o6755)
    answer = os.popen("/tmp/suid -u").read().strip()
    if answer == "0":
        raise Escaped("a set-user-id copy ran as root")
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
    )
    # A kernel of gVisor's has no such line, and the copy above has shown it.
    if status["CapEff"].strip("0") or status.get("NoNewPrivs", "1") != "1" or status["CapBnd"].strip("0"):
        raise Escaped(f"capabilities {status['CapEff']}, bounding {status['CapBnd']}")
    return how


# --- sockets and keys


@attack
def socket_families():
    """Packet, vsock, Bluetooth, kernel crypto, and whatever else has a short history of review."""
    how = {}
    for family in range(46):
        if family in {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}:
            continue
        how[refused(socket.socket, family, socket.SOCK_STREAM)] = True
        how[refused(socket.socket, family, socket.SOCK_RAW)] = True
    how[refused(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)] = True
    return list(how)


@attack
def network_set_up():
    """Addresses, routes and packet filters belong to whoever holds the namespace."""
    how = []
    for kind in (20, 24, 16):  # RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWLINK
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
            route.settimeout(2)
            body = struct.pack("=BBBBIiiII", 2, 8, 0, 0, 1, 0, 0, 0, 0)
            route.send(struct.pack("=IHHII", 16 + len(body), kind, 0x0605, 1, 0) + body)
            code = struct.unpack_from("=i", route.recv(4096), 16)[0]
            if code == 0:
                raise Escaped(f"netlink message {kind} was taken")
            how.append(errno.errorcode.get(-code, code))
    return how


@attack
def abstract_sockets():
    """Names of Unix sockets belong to the network namespace: those of the machine cannot be seen."""
    names = [
        line.rsplit(" ", 1)[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if " @" in line
    ]
    if any("dbus" in name or "systemd" in name for name in names):
        raise Escaped(f"{names}")
    return names


@attack
def keyrings():
    how = [refused(call, 248, b"user", b"name", b"secret", 6, -3), refused(call, 250, 0, -3, 0)]
    how.append(refused(call, 249, b"user", b"name", None, -3))
    return how


@attack
def terminal_injection():
    master, slave = os.openpty()
    how = [refused(fcntl.ioctl, slave, request, b"x") for request in (0x5412, 0x541C)]
    # The upper half of the number is ignored by the kernel, so a filter that compares it whole could be passed.
    how.append(refused(call, 16, slave, ctypes.c_ulong(0x100005412), b"x"))
    os.close(master)
    return how


@attack
def kernel_corners():
    """bpf, perf, userfaultfd, io_uring, kexec, modules, file handles, kcmp, clocks."""
    numbers = (321, 298, 323, 425, 246, 320, 175, 313, 304, 312, 227, 164, 169, 103, 443, 167, 179)
    return sorted({refused(call, number, 0, 0, 0, 0, 0) for number in numbers})


# --- the daemon and its proxy


@attack
def control_socket():
    """The daemon's socket has no name in here."""
    for root in ("/run", "/tmp", "/home", "/var", "/dev"):
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                if path.is_socket():
                    raise Escaped(f"there is a socket at {path}")
    return "no socket anywhere"


@attack
def daemons_code():
    """The daemon's files are the machine's, shared by all sandboxes."""
    found = [Path(folder, name) for folder, _, names in os.walk("/run/envd/lib") for name in names]
    if not found:
        raise Escaped("the daemon's code was not found: this attack tries nothing")
    how = {refused(write, path, "x") for path in found}
    return sorted(how | {refused(os.unlink, found[0]), refused(os.rename, "/run/envd/lib", "/tmp/lib")})


@attack
def proxys_port():
    """Another listener on the proxy's port would get the other programs' requests."""
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return [refused(rival.bind, ("127.0.0.1", 3128))]


# --- bombs


@attack
def descriptors():
    """Every descriptor that one process may have, and as many processes as it takes."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    how = [refused(resource.setrlimit, resource.RLIMIT_NOFILE, (limit[1] + 1, limit[1] + 1))]
    held = []
    with contextlib.suppress(OSError):
        while len(held) < 200_000:
            held.append(os.open("/dev/null", os.O_RDONLY))
    if len(held) >= 200_000:
        raise Escaped("there is no limit")
    return [*how, len(held)]


@attack
def disk():
    """Write until it is full. Only where the machine limits disks."""
    written, block = 0, b"x" * (1 << 20)
    try:
        with Path("/home/user/bomb").open("wb", buffering=0) as file:
            while written < 3 << 30:
                written += file.write(block)
    except OSError as error:
        return [errno.errorcode[error.errno], written >> 20]
    raise Escaped(f"{written >> 20} MiB were written")


@attack
def inodes():
    """Empty files cost more than they seem to."""
    made = 0
    Path("/home/user/many").mkdir()
    try:
        while made < 3_000_000:
            os.close(os.open(f"/home/user/many/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        return [errno.errorcode[error.errno], made]
    raise Escaped(f"{made} files were made")


@attack
def shared_memory():
    """/dev/shm and memory files count as memory of the sandbox."""
    try:
        with Path("/dev/shm/bomb").open("wb", buffering=0) as file:
            for _ in range(4096):
                file.write(b"x" * (1 << 20))
    except OSError as error:
        return errno.errorcode[error.errno]
    raise Escaped("4 GiB of shared memory")


def main():
    started = time.monotonic()
    try:
        outcome = f"held: {ATTACKS[sys.argv[1]]()}"
    except Escaped as error:
        outcome = f"ESCAPED: {error}"
    print(f"{time.monotonic() - started:.2f} s")
    print(outcome)


if __name__ == "__main__":
    main()
