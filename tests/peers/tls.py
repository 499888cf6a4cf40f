"""An https upstream: its answers pass where its certificate is good, and nothing passes where it is not.

Run by scripts/test-peers with `known` where the certificate's authority is known to deferd, else `unknown`.
"""

import sys
import unittest

from upstreams import DEFERD, ask, deferred


class Known(unittest.TestCase):
    def test_answers_pass_directly_and_as_results(self):
        with open(f"{WWW}/large.bin", "rb") as file:
            large = file.read()
        for _ in range(3):
            self.assertEqual(ask(DEFERD, "GET", "/tls/hello.txt")[::2], (200, b"hello\n"))
            self.assertEqual(deferred("GET", "/tls/large.bin")[::2], (200, large))
            self.assertEqual(ask(DEFERD, "GET", "/tls/none")[0], 404)

    def test_a_certificate_for_another_name_is_refused(self):
        refused(self, "/address/hello.txt")

    def test_what_speaks_no_tls_is_refused(self):
        refused(self, "/plain/hello.txt")


class Unknown(unittest.TestCase):
    def test_a_certificate_of_an_unknown_authority_is_refused(self):
        refused(self, "/tls/hello.txt")


def refused(test, path):
    """A 502, at once and as a result, that says why, without the file and without the upstream's address."""
    for status, _, content in ask(DEFERD, "GET", path), deferred("GET", path):
        test.assertEqual(status, 502, content)
        test.assertIn(b"the upstream: no secure connection", content)
        test.assertNotIn(b"hello", content)
        test.assertNotIn(b"127.0.0.1", content)


if __name__ == "__main__":
    WWW = sys.argv[2]
    case = {"known": Known, "unknown": Unknown}[sys.argv[1]]
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    sys.exit(not unittest.TextTestRunner(verbosity=0).run(suite).wasSuccessful())
