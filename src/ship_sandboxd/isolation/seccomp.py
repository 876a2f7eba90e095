"""The system calls that a sandbox may not make, as a BPF program from libseccomp.

The list is what container runtimes deny by default: what reaches the kernel's rarely walked corners or changes the
machine. A denied call answers EPERM, or ENOSYS where programs then fall back to an older call.
"""

import ctypes
import errno
import os

from ..errors import SetupError

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EQ, _GE, _MASKED_EQ = 4, 5, 7

_DENIED = [
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "vhangup",
    "vm86",
    "vm86old",
]
# clone3 hides its flags behind a pointer, where no filter can look; io_uring makes calls that no filter sees.
_ABSENT = ["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"]
_NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
# Unix, IPv4, IPv6 and netlink remain. Above all no AF_VSOCK: it is not bound to a network namespace.
_ALLOWED_FAMILIES = (1, 2, 10, 16)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def program() -> bytes:
    """The filter, ready for `bwrap --seccomp`. Raises SetupError `seccomp_missing`."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise SetupError(
            "libseccomp.so.2 is missing: install the package libseccomp2", "seccomp_missing"
        ) from error
    return _Filter(library).build()


class _Filter:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_release.argtypes = [ctypes.c_void_p]
        library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(_Comparison),
        ]
        self._context = ctypes.c_void_p(library.seccomp_init(_ALLOW))

    def build(self) -> bytes:
        for name in _DENIED:
            self._deny(name)
        for name in _ABSENT:
            self._deny(name, errno.ENOSYS)
        for flag in _NEW_NAMESPACES:
            self._deny("clone", errno.EPERM, _Comparison(0, _MASKED_EQ, flag, flag))
        for request in _TERMINAL_INJECTION:
            self._deny("ioctl", errno.EPERM, _Comparison(1, _MASKED_EQ, 0xFFFFFFFF, request))
        for call in ("socket", "socketpair"):
            self._deny_families(call)
        try:
            return self._export()
        finally:
            self._library.seccomp_release(self._context)

    def _deny_families(self, call: str) -> None:
        for family in range(max(_ALLOWED_FAMILIES)):
            if family not in _ALLOWED_FAMILIES:
                self._deny(call, errno.EAFNOSUPPORT, _Comparison(0, _EQ, family, 0))
        self._deny(call, errno.EAFNOSUPPORT, _Comparison(0, _GE, max(_ALLOWED_FAMILIES) + 1, 0))

    def _deny(self, name: str, error: int = errno.EPERM, *comparisons: _Comparison) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # this architecture or version has no such call
        array = (_Comparison * len(comparisons))(*comparisons) if comparisons else None
        result = self._library.seccomp_rule_add_array(
            self._context, _ERRNO | error, number, len(comparisons), array
        )
        if result != 0:
            raise SetupError(
                f"libseccomp refuses the rule for {name}: {os.strerror(-result)}", "seccomp_failed"
            )

    def _export(self) -> bytes:
        fd = os.memfd_create("seccomp")
        try:
            if self._library.seccomp_export_bpf(self._context, fd) != 0:
                raise SetupError("libseccomp could not export the filter", "seccomp_failed")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)
