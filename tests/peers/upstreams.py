"""Real servers behind deferd: what they answer directly, through it, and as a job's result is the same.

Run by scripts/test-peers, which says where they are: DEFERD_URL, and NGINX, LIGHTTPD and PYTHON as
host:port, each also at the route of its name in lower case.
"""

import http.client
import os
import threading
import time
import unittest

DEFERD = os.environ["DEFERD_URL"].removeprefix("http://")
PEERS = {name: os.environ[name.upper()] for name in ("nginx", "lighttpd", "python")}

# Of the connection, or of the moment; and what curl and others would not miss where the content is whole.
NOT_COMPARED = {
    "connection", "keep-alive", "transfer-encoding", "content-length", "date",
    "x-arango-async-id", "x-arango-async-job-id",
}


def ask(address, method, path, body=None, fields=()):
    """Status code, fields in order of name, content."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in fields:
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    content = response.read()
    found = sorted((name.lower(), value) for name, value in response.getheaders())
    connection.close()
    return response.status, found, content


def compared(answer):
    status, fields, content = answer
    return status, [field for field in fields if field[0] not in NOT_COMPARED], content


def deferred(method, path, body=None, fields=()):
    """The answer as the result of a job, waited for."""
    status, answer, _ = ask(DEFERD, method, path, body, [*fields, ("x-arango-async", "store")])
    assert status == 202, status
    job = "/_api/job/" + dict(answer)["x-arango-async-id"]
    status, _, _ = ask(DEFERD, "GET", job, fields=[("prefer", "wait=60")])
    assert status == 200, status
    return ask(DEFERD, "PUT", job)


class Upstreams(unittest.TestCase):
    def same(self, peer, method, path, body=None, fields=()):
        direct = compared(ask(PEERS[peer], method, path, body, fields))
        through = f"/{peer}{path}"
        for _ in range(2):
            self.assertEqual(compared(ask(DEFERD, method, through, body, fields)), direct)
            self.assertEqual(compared(deferred(method, through, body, fields)), direct)
        return direct

    def test_files_of_every_peer(self):
        for peer in PEERS:
            for name in ("hello.txt", "large.bin", "none"):
                for method in ("GET", "HEAD"):
                    with self.subTest(peer=peer, name=name, method=method):
                        self.same(peer, method, f"/{name}?query=1")

    def test_head_says_what_get_would_have(self):
        for peer in PEERS:
            direct = dict(ask(PEERS[peer], "HEAD", "/large.bin")[1])
            through = dict(ask(DEFERD, "HEAD", f"/{peer}/large.bin")[1])
            self.assertEqual(through["content-length"], direct["content-length"])

    def test_conditional_and_partial_requests(self):
        for peer in ("nginx", "lighttpd"):
            tag = dict(ask(PEERS[peer], "GET", "/hello.txt")[1])["etag"]
            status, _, content = self.same(peer, "GET", "/hello.txt", fields=[("if-none-match", tag)])
            self.assertEqual((status, content), (304, b""))
            status, _, content = self.same(peer, "GET", "/large.bin", fields=[("range", "bytes=10-19")])
            self.assertEqual((status, len(content)), (206, 10))

    def test_encodings_pass(self):
        for path in ("/zip/hello.txt", "/zip/large.bin"):
            _, fields, content = self.same("nginx", "GET", path, fields=[("accept-encoding", "gzip")])
            self.assertIn(("content-encoding", "gzip"), fields)
            self.assertEqual(content[:2], b"\x1f\x8b")

    def test_odd_answers_pass(self):
        for path, status in [("/empty", 204), ("/moved", 301), ("/teapot", 418), ("/cookies", 200)]:
            self.assertEqual(self.same("nginx", "GET", path)[0], status)
        self.assertEqual(self.same("lighttpd", "GET", "/moved")[0], 301)
        self.assertEqual(self.same("python", "POST", "/hello.txt", b"x")[0], 501)

    def test_what_an_upstream_is_asked(self):
        fields = dict(deferred("BREW", "/nginx/asked?x=%2F", b"tea", [("prefer", "respond-async")])[1])
        self.assertEqual(fields["x-asked"], "BREW /asked?x=%2F")
        self.assertEqual(fields["x-from"], "127.0.0.1|1.1 deferd||")

    def test_content_reaches_a_script_and_comes_back(self):
        for size in (0, 1, 100_000, 5_000_000):
            body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            status, _, content = self.same("lighttpd", "POST", "/cgi/echo", body)
            self.assertEqual((status, content), (200, body))

    def test_an_answer_in_chunks_is_whole(self):
        status, fields, content = ask(PEERS["lighttpd"], "GET", "/cgi/slowly")
        self.assertIn(("transfer-encoding", "chunked"), fields)
        self.assertEqual(self.same("lighttpd", "GET", "/cgi/slowly"), compared((status, fields, content)))

    def test_too_large_is_the_upstream_s_to_say(self):
        for size in (1_100_000, 12_000_000):
            status, _, content = deferred("POST", "/nginx/hello.txt", b"x" * size)
            self.assertEqual((status, b"nginx" in content), (413, True))

    def test_connections_that_the_upstream_closes_cost_nothing(self):
        # nginx closes each after three requests.
        for _ in range(50):
            self.assertEqual(ask(DEFERD, "GET", "/nginx/hello.txt")[0], 200)

    def test_many_at_once(self):
        failures = []

        def some():
            for _ in range(20):
                for peer in PEERS:
                    answer = deferred("GET", f"/{peer}/hello.txt")
                    if answer[0] != 200 or answer[2] != b"hello\n":
                        failures.append(answer)

        threads = [threading.Thread(target=some) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_retries_end_with_the_last_answer(self):
        begin = time.monotonic()
        status, fields, _ = deferred("GET", "/retried/busy")
        self.assertEqual((status, dict(fields)["x-attempts"]), (503, "2"))
        self.assertGreaterEqual(time.monotonic() - begin, 1)


if __name__ == "__main__":
    unittest.main()
