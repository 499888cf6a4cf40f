"""Each callback is verified by the reference implementation of Standard Webhooks.

verified.py SECRETS [CERTIFICATE [REASON]]: starts a receiver, over https with CERTIFICATE.crt and .key, and beside it a
deferd that may call it and signs with each line of SECRETS. The receiver fails each first delivery, so that every
callback comes twice: with the same webhook-id, at another time. With REASON, deferd must give all up, send the receiver
none, and say this in its log.
"""

import http.server
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

JOBS = 20
BACKOFF = 5


class Receiver(http.server.BaseHTTPRequestHandler):
    deliveries = []
    lock = threading.Lock()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.lock:
            ids = [headers["webhook-id"] for _, headers, _ in self.deliveries]
            is_first = self.headers["webhook-id"] not in ids
            self.deliveries.append((time.monotonic(), dict(self.headers), body))
        self.send_response(503 if is_first else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


def submit(callback, reason):
    """Runs beside deferd: submits jobs that end in different ways, and waits until all are told, or given up."""
    for n in range(JOBS):
        request = urllib.request.Request(f"{os.environ['DEFERD_URL']}/run/s-exit?{n}", method="POST")
        request.add_header("x-arango-async", "store")
        request.add_header("prefer", f'callback; url="{callback}/{n}?a,b;c"')
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["preference-applied"] == "callback"
            print(answer.headers["x-arango-async-id"], flush=True)
    deadline = time.monotonic() + 120
    while True:
        with urllib.request.urlopen(f"{os.environ['DEFERD_URL']}/_admin/metrics") as answer:
            metrics = answer.read().decode()
        outcome = "error" if reason else "ok"
        if f'deferd_jobs_finished_total{{route="callback",outcome="{outcome}"}} {JOBS}\n' in metrics:
            break
        assert time.monotonic() < deadline, metrics
        time.sleep(0.1)
    with open(os.environ["DEFERD_LOG"]) as log:
        failed = [line for line in log if "callback=localhost:" in line and "the receiver answered 503" not in line]
    # After the first of them, the receiver is left alone for a while.
    assert bool(failed) == bool(reason), failed
    assert all(line.endswith(f": {reason}\n") for line in failed), failed


def verify(secrets, ids):
    told = {}
    for at, headers, body in Receiver.deliveries:
        for secret in secrets:
            record = Webhook(secret).verify(body, headers)
            for bad in (body + b" ", body.replace(b"done", b"gone")):
                try:
                    Webhook(secret).verify(bad, headers)
                except WebhookVerificationError:
                    continue
                raise AssertionError("content that was changed is verified")
        try:
            Webhook("whsec_" + "A" * 32).verify(body, headers)
            raise AssertionError("another secret verifies it")
        except WebhookVerificationError:
            pass
        assert headers["webhook-id"] == f"job_{record['id']}"
        assert record["exitCode"] == (int(record["target"].split("?")[1]) or None)
        told.setdefault(record["id"], []).append((at, body))
    assert sorted(told) == sorted(ids), (told.keys(), ids)
    for (first, body), (second, same) in told.values():
        assert body == same and second - first >= BACKOFF, second - first


def main(path, certificate=None, reason=None):
    secrets = open(path).read().split()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
        # Each connection's thread shakes hands for itself.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"{'https' if certificate else 'http'}://localhost:{server.server_port}/told"
    command = f"'{sys.executable}' tests/callbacks/verified.py --submit {url} '{reason or ''}'"
    options = ["--route", "/run/=run:tests/scripts", "--allow-callback", url, "--callback-secret", path]
    ran = subprocess.run(["scripts/with-deferd", command, *options], stdout=subprocess.PIPE, check=True, timeout=300)
    ids = ran.stdout.decode().split()
    if reason:
        assert not Receiver.deliveries
        print(f"{len(ids)} callbacks given up, none delivered: {reason}")
    else:
        verify(secrets, ids)
        print(f"{len(Receiver.deliveries)} callbacks of {JOBS} jobs verified with {len(secrets)} secrets: {url}")


if __name__ == "__main__":
    submit(*sys.argv[2:]) if sys.argv[1] == "--submit" else main(*sys.argv[1:])
