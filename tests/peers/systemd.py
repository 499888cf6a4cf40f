"""deferd.service without systemd as the first process: its command is started by systemd-socket-activate, under
the unit's own system call filter and umask, and everything that needs the system is done once.

Run by scripts/test-services: systemd.py start BINARY UNIT DIR. `filtered` is how it runs the command.
"""

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

PATIENCE = 60


def setting(unit, name):
    """The value of a setting of the unit, which has it once."""
    with open(unit) as file:
        values = [line.split("=", 1)[1].strip() for line in file if line.startswith(f"{name}=")]
    (value,) = values
    return value


def members(group):
    """The system calls of a group of systemd's."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in (line.strip() for line in lines[1:]):
        if name.startswith("@"):
            yield from members(name)
        elif name and not name.startswith("#"):
            yield name


def filtered(unit, command):
    """Becomes this command, with no more than the system calls that the unit allows."""
    import seccomp

    group, error = setting(unit, "SystemCallFilter"), setting(unit, "SystemCallErrorNumber")
    allowed = set(members(group))
    rules = seccomp.SyscallFilter(seccomp.ERRNO(getattr(seccomp.errno, error)))
    for name in allowed:
        try:
            rules.add_rule(seccomp.ALLOW, name)
        except (RuntimeError, ValueError):
            pass  # Of another architecture, or newer than the library.
    os.umask(int(setting(unit, "UMask"), 8))
    rules.load()
    os.execv(command[0], command)


class Service(unittest.TestCase):
    def setUp(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program, option, _, *more = setting(UNIT, "ExecStart").split()
        self.assertEqual((os.path.basename(program), option), ("deferd", "--config"))
        # What systemd does for LoadCredential=, with its mode.
        name, _, _ = setting(UNIT, "LoadCredential").partition(":")
        credentials = f"{DIR}/credentials"
        os.mkdir(credentials, 0o700)
        token, line = subprocess.run(
            [BINARY, "token", "ann"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        with open(f"{credentials}/{name}", "w") as file:
            print(line.rpartition(": ")[2], file=file)
        os.chmod(f"{credentials}/{name}", 0o440)
        if os.getuid() == 0:
            os.chown(f"{credentials}/{name}", 0, 65534)  # No group of deferd's.
        self.token = token.rpartition(": ")[2]
        more = [word.replace("${CREDENTIALS_DIRECTORY}", credentials) for word in more]
        config = f"{DIR}/deferd.conf"
        with open(config, "w") as file:
            scripts = os.path.abspath("tests/scripts")
            print(f"data {DIR}/data\nroute /run/=run:{scripts}", file=file)
            # By name, so that it has to be resolved.
            print(f"route /self/=http://localhost:{self.port}/", file=file)
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.settimeout(PATIENCE)
        self.notified.bind(f"{DIR}/notify")
        under = ["/usr/bin/python3", os.path.abspath(__file__), "filtered", BINARY, UNIT]
        activate = ["systemd-socket-activate", f"--listen=127.0.0.1:{self.port}", f"--listen={DIR}/socket"]
        activate += ["-E", f"CREDENTIALS_DIRECTORY={credentials}"]
        self.log = open(f"{DIR}/log", "w+")
        self.deferd = subprocess.Popen(
            [*activate, "-E", f"NOTIFY_SOCKET={DIR}/notify", *under, BINARY, option, config, *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log,
        )

    def tearDown(self):
        self.deferd.kill()
        self.deferd.wait()
        self.notified.close()
        self.log.close()

    def ask(self, method, path, fields={}, token=None):
        """Status code, id, content; connects until somebody listens."""
        pair = base64.b64encode(f"ann:{token or self.token}".encode()).decode()
        fields = {**fields, "authorization": f"Basic {pair}"}
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                connection.connect()
                break
            except ConnectionRefusedError:
                self.assertIsNone(self.deferd.poll(), self.said())
                self.assertLess(time.monotonic(), deadline, self.said())
                time.sleep(0.02)
        connection.request(method, path, headers=fields)
        response = connection.getresponse()
        answer = response.status, response.headers["x-arango-async-id"], response.read()
        connection.close()
        return answer

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def result(self, path):
        """What a job of it comes to."""
        status, id, content = self.ask("GET", path, {"x-arango-async": "store"})
        self.assertEqual(status, 202, content)
        status, found, content = self.ask("PUT", f"/_api/job/{id}", {"prefer": "wait=60"})
        self.assertEqual(found, id)
        return status, content

    def test_it_takes_the_socket_tells_ready_works_and_ends(self):
        # It is started by the first connection, which waits for it.
        self.assertEqual(self.ask("GET", "/_api/version")[0], 200, self.said())
        self.assertEqual(self.notified.recv(100), b"READY=1")
        with open(f"/proc/{self.deferd.pid}/status") as file:
            self.assertIn("Seccomp:\t2\n", file.readlines(), "the filter is on")
        self.assertEqual(self.result("/run/c-talk"), (500, b"output\n"))
        # Credentials end here, so the route to itself leads to what asks for none.
        self.assertEqual(self.result("/self/_admin/server/availability")[0], 200, self.said())
        # Users come from the credential, and the other socket is served too.
        self.assertEqual(self.ask("GET", "/_api/version", token="wrong")[0], 401)
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(PATIENCE)
            other.connect(f"{DIR}/socket")
            other.sendall(b"GET /_admin/server/availability HTTP/1.0\r\n\r\n")
            self.assertTrue(other.recv(100).startswith(b"HTTP/1.1 200 "), self.said())
        for path, _, files in os.walk(f"{DIR}/data"):
            for name in [path, *(f"{path}/{file}" for file in files)]:
                self.assertEqual(os.stat(name).st_mode & 0o077, 0, name)
        # A script that runs is cancelled, and its group killed.
        _, id, _ = self.ask("GET", f"/run/c-hold?{DIR}/h", {"x-arango-async": "store"})
        deadline = time.monotonic() + PATIENCE
        while not os.path.exists(f"{DIR}/h.started"):
            self.assertLess(time.monotonic(), deadline, self.said())
            time.sleep(0.02)
        self.assertEqual(self.ask("PUT", f"/_api/job/{id}/cancel")[0], 200)
        self.assertEqual(self.ask("PUT", f"/_api/job/{id}", {"prefer": "wait=60"})[:2], (410, id))
        # ExecReload.
        self.deferd.send_signal(signal.SIGHUP)
        self.assertEqual(self.ask("GET", "/_api/version")[0], 200, self.said())
        self.deferd.send_signal(signal.SIGTERM)
        self.assertEqual(self.notified.recv(100), b"STOPPING=1")
        self.assertEqual(self.deferd.wait(PATIENCE), 0, self.said())


if __name__ == "__main__":
    role, BINARY, UNIT, *rest = sys.argv[1:]
    if role == "filtered":
        filtered(UNIT, rest)
    (DIR,) = rest
    unittest.main(argv=sys.argv[:1])
