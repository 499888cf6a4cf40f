#!/usr/bin/env python3
"""Chromium loads pages that try to run a script of deferd: hostile.py refused|lifted.

Runs beside a deferd (DEFERD_URL, DEFERD_LOG) that has tests/scripts behind /run/ and /cgi/. `refused`: every
attempt of a foreign page gets 403, and the script has not run. `lifted`: the same attempts run it, which shows
that Chromium really makes them. In both, pages of deferd's own origin and typed addresses run it."""

import contextlib
import http.server
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit

PATIENCE = 60
BROWSERS = 3
HERE = pathlib.Path(__file__).parent
URL, LOG = os.environ["DEFERD_URL"], pathlib.Path(os.environ["DEFERD_LOG"])
CHROMIUM = (
    "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --disable-popup-blocking"
).split()

# By the names that hostile.html gives them. Not among them: what Chromium may put off while a page is hidden, or leave
# out at all (icon, prefetch, preload, video). An attempt of these that is made is refused as well.
ATTEMPTS = set(
    "stylesheet background img script module iframe refresh sandbox frame-location object embed form-post ping"
    " fetch-no-cors fetch-cors fetch-post fetch-put beacon event-source window-open location".split()
)
OWN = {"own-img", "own-fetch", "own-put", "own-beacon", "own-frame"}


def comes(holds, seconds):
    """Whether this holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait(what, holds):
    if not comes(holds, PATIENCE):
        raise SystemExit(f"not within {PATIENCE} s: {what()}")


@contextlib.contextmanager
def chromium(address):
    """Chromium with a profile of its own, which opens this address as if the reader had typed it."""
    profile = tempfile.mkdtemp()
    command = [*CHROMIUM, f"--user-data-dir={profile}/data", address]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Its temporary files go with the profile, and its helpers with the group.
    own = {"env": {**os.environ, "TMPDIR": profile}, "start_new_session": True}
    with subprocess.Popen(command, **quiet, **own) as browser:
        try:
            yield
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
    # They end a little later than the browser, and write until then.
    remove = lambda: shutil.rmtree(profile, ignore_errors=True) or not os.path.exists(profile)
    wait(lambda: f"{profile} is removed", remove)


class Page(http.server.BaseHTTPRequestHandler):
    """Serves the hostile page, and learns from it that all attempts were made."""

    def do_GET(self):
        pages = {
            "/": (HERE / "hostile.html").read_text(),
            "/location": '<script>location = "TARGETlocation"</script>',
        }
        self.answer(pages.get(self.path, "").replace("TARGET", self.server.target).encode())

    def do_POST(self):
        self.server.reported.set()
        self.answer(b"")

    def answer(self, content):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def statuses(trace):
    """The status codes that deferd's log has for each attempt which names this file."""
    found = {}
    pattern = re.compile(rf"target=\S*\?{re.escape(str(trace))}&([a-z-]+)\S* .* status=(\d+)")
    for name, status in pattern.findall(LOG.read_text()):
        found.setdefault(name, set()).add(int(status))
    return found


def runs(trace):
    """The attempts that have run the script."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return {line.split("&")[1].rstrip("?=") for line in lines}


def foreign(host, trace, mode):
    """A page of another port, under this name, tries everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        server.reported, server.target = threading.Event(), f"{URL}/run/p-trace?{trace}&"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = statuses if mode == "refused" else runs
        complete = lambda: server.reported.is_set() and ATTEMPTS <= set(seen(trace))
        # tiny_http may let a connection wait until another one of the same browser ends, which can be for ever.
        for _ in range(BROWSERS):
            with chromium(f"http://{host}:{server.server_port}/"):
                if comes(complete, PATIENCE / BROWSERS):
                    break
        else:
            missing = sorted(ATTEMPTS - set(seen(trace)))
            raise SystemExit(f"page of {host}: reported={server.reported.is_set()} {missing=}")
        server.shutdown()
    if mode == "refused":
        answered = {name: codes for name, codes in statuses(trace).items() if codes != {403}}
        assert not answered, f"page of {host}: {answered}"
        assert not trace.exists(), f"page of {host}: the script has run: {runs(trace)}"
    print(f"page of {host}, {mode}: {len(statuses(trace))} kinds of attempts")


def own(trace):
    """A page of deferd's own, opened by its address, and the script itself, opened likewise."""
    with chromium(f"{URL}/cgi/p-page?{trace}"):
        wait(lambda: f"own page: ran={sorted(runs(trace))}", lambda: OWN <= runs(trace))
    with chromium(f"{URL}/run/p-trace?{trace}&typed"):
        wait(lambda: "the typed address runs the script", lambda: "typed" in runs(trace))


def main():
    mode = sys.argv[1]
    assert urlsplit(URL).hostname == "127.0.0.1", URL
    with tempfile.TemporaryDirectory() as directory:
        for host in ["localhost", "127.0.0.1"]:  # another site, and another origin of the same site
            foreign(host, pathlib.Path(directory, host), mode)
        own(pathlib.Path(directory, "own"))


main()
