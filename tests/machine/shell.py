"""Runs in the virtual machine: one command of its root for each connection. The command comes in, to the end of the stream;
out go its exit status, as four bytes, and what it printed."""

import socketserver
import subprocess
import sys


class Shell(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        command = self.rfile.read()
        done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wfile.write(done.returncode.to_bytes(4, "big", signed=True) + done.stdout)


socketserver.ThreadingTCPServer(("", int(sys.argv[1])), Shell).serve_forever()
