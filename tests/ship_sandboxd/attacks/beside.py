"""What a neighbour of hostile code holds that a program could find by its name. Runs on once it has said `ready`."""

import ctypes
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
KEY = 0x5317
SHARED = ("/usr/bin/sha1sum", "/etc/ssl/openssl.cnf")

assert libc.shmget(KEY, 4096, 0o1666) >= 0
assert libc.msgget(KEY, 0o1666) >= 0
assert libc.semget(KEY, 1, 0o1666) >= 0
queue = libc.syscall(240, b"beside", os.O_CREAT | os.O_RDWR, 0o666, None)
assert queue >= 0 or ctypes.get_errno() == errno.ENOSYS
held = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    held.append(socket.socket(socket.AF_UNIX, kind))
    held[-1].bind(f"\0beside-{int(kind)}")
    if kind != socket.SOCK_DGRAM:
        held[-1].listen()
held.append(socket.create_server(("127.0.0.1", 5317)))
for folder in ("/dev/shm", "/tmp"):
    Path(folder, "beside").write_text("private")
for path in SHARED:
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
print("ready", flush=True)
while True:
    for path in SHARED:
        with Path(path).open("rb"):
            time.sleep(0.02)
