#!/usr/bin/env python3
"""Loads deferd for a minute while a Prometheus scrapes it each second, and compares the two accounts.

What clients have seen is counted here, request by request: jobs by route and outcome, refusals, requests. In the end
Prometheus is asked for the same, through its own query language.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

SPAN = 52
DEFERD = urllib.parse.urlsplit(os.environ["DEFERD_URL"]).netloc
# Each with its route, and how it ends.
WORK = [
    ("/run/s-exit?0", "/run/", "ok"),
    ("/run/s-exit?3", "/run/", "error"),
    ("/run/s-forever", "/run/", "timeout"),
    ("/_api/version", "/_api/", "ok"),
    ("/_api/job/1", "/_api/", "error"),
    ("/_admin/sleep?duration=3600", "/_admin/", "canceled"),
]

done = Counter()
lock = threading.Lock()


def count(name, **labels):
    with lock:
        done[(name, *sorted(labels.items()))] += 1


class Client:
    """One connection, on which every request is counted."""

    def __init__(self):
        self.connection = http.client.HTTPConnection(DEFERD)

    def ask(self, method, target, **fields):
        self.connection.request(method, target, headers=fields)
        answer = self.connection.getresponse()
        answer.read()
        count("deferd_http_request_duration_seconds_count")
        return answer


def load(end, number):
    """Submits jobs until the end, and waits for each."""
    client = Client()
    turn = number
    while time.monotonic() < end:
        # Scripts that last for ever only now and then: each holds a worker for a second.
        turn += 1
        target, route, outcome = WORK[turn % len(WORK)]
        if outcome == "timeout" and turn % 60 >= len(WORK):
            continue
        accepted = client.ask("GET", target, **{"x-arango-async": "store"})
        if accepted.status == 503:
            count("deferd_jobs_refused_total", reason="queue_full")
            continue
        job = "/_api/job/" + accepted.headers["x-arango-async-id"]
        count("deferd_jobs_submitted_total", route=route)
        if outcome == "canceled":
            client.ask("POST", job + "/cancel")
        while client.ask("GET", job, prefer="wait=10").status == 204:
            pass
        count("deferd_jobs_finished_total", route=route, outcome=outcome)
        # What is cancelled may have begun before, or not.
        if outcome != "canceled":
            count("deferd_job_run_seconds_count")
        result = client.ask("PUT", job)
        expected = {"ok": 200, "timeout": 504, "canceled": 410}.get(outcome)
        assert expected in (None, result.status), (target, result.status)


def fill(end):
    """Fills the queue every few seconds, so that jobs are refused."""
    client = Client()
    while time.monotonic() < end:
        time.sleep(3)
        for _ in range(100):
            status = client.ask("GET", "/run/s-exit?0", **{"x-arango-async": "true"}).status
            if status == 202:
                count("deferd_jobs_submitted_total", route="/run/")
                count("deferd_jobs_finished_total", route="/run/", outcome="ok")
                count("deferd_job_run_seconds_count")
            else:
                assert status == 503, status
                count("deferd_jobs_refused_total", reason="queue_full")


def start_prometheus(directory):
    """Starts a Prometheus that scrapes deferd; returns it and where it listens."""
    config = Path(directory, "prometheus.yml")
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        "  - {job_name: deferd, metrics_path: /_admin/metrics, "
        f"static_configs: [{{targets: ['{DEFERD}']}}]}}\n"
    )
    port = 20000 + os.getpid() % 20000
    log = open(Path(directory, "log"), "w", encoding="utf-8")
    process = subprocess.Popen(
        ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=log, stderr=subprocess.STDOUT,
    )
    return process, f"http://127.0.0.1:{port}"


def query(prometheus, text):
    url = f"{prometheus}/api/v1/query?query={urllib.parse.quote(text)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        result = json.load(answer)["data"]["result"]
    return [(sample["metric"], float(sample["value"][1])) for sample in result]


def one(prometheus, text):
    samples = query(prometheus, text)
    assert len(samples) == 1, (text, samples)
    return samples[0][1]


def scrapes(prometheus):
    return one(prometheus, "count_over_time(up[5m])")


def wait_for_prometheus(process, prometheus):
    for _ in range(100):
        assert process.poll() is None, "prometheus has ended"
        try:
            if query(prometheus, "up"):
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("prometheus does not scrape")


def run_load():
    end = time.monotonic() + SPAN
    threads = [threading.Thread(target=load, args=(end, number)) for number in range(4)]
    threads.append(threading.Thread(target=fill, args=(end,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def compare(prometheus):
    """Compares all that was done with what Prometheus knows; returns how many counters agree."""
    wrong = []
    for (name, *labels), expected in sorted(done.items()):
        selector = ",".join(f'{label}="{value}"' for label, value in labels)
        found = one(prometheus, f"{name}{{{selector}}}")
        slack = 0
        if name == "deferd_job_run_seconds_count":
            slack = one(prometheus, 'sum(deferd_jobs_finished_total{outcome="canceled"})')
        elif name.startswith("deferd_http"):
            # What scrapes it is a client as well.
            slack = scrapes(prometheus) + 1
        if not expected <= found <= expected + slack:
            wrong.append((name, labels, expected, found))
    for name in ("deferd_jobs_submitted_total", "deferd_jobs_finished_total", "deferd_jobs_refused_total"):
        total = sum(value for (key, *_), value in done.items() if key == name)
        if one(prometheus, f"sum({name})") != total:
            wrong.append((name, total, query(prometheus, name)))
    assert not wrong, wrong
    return len(done)


def main():
    with tempfile.TemporaryDirectory() as directory:
        process, prometheus = start_prometheus(directory)
        try:
            wait_for_prometheus(process, prometheus)
            run_load()
            while query(prometheus, 'sum(deferd_jobs{state!="done"}) > 0'):
                time.sleep(0.2)
            # What was done last is in the scrape after the next.
            before = scrapes(prometheus)
            while scrapes(prometheus) < before + 2:
                time.sleep(0.2)
            agree = compare(prometheus)
            assert one(prometheus, "min_over_time(up[5m])") == 1, "a scrape failed"
            assert one(prometheus, "count_over_time(up[5m])") >= SPAN - 5
            rate = one(prometheus, "sum(increase(deferd_jobs_finished_total[1m]))")
            median = one(prometheus, "histogram_quantile(0.5, rate(deferd_job_run_seconds_bucket[1m]))")
            print(f"{agree} counters agree; about {rate:.0f} jobs in the last minute, median run {median:.4f} s")
        except BaseException:
            print(Path(directory, "log").read_text(encoding="utf-8")[-2000:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


main()
