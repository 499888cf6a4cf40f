"""deferd as python-arango sees it, through the driver's own public interface.

Needs DEFERD_URL, of a deferd with one worker and with `/cgi/` for the scripts of the tests, and
DEFERD_TOKEN, the token of `root`; empty where deferd asks for no credentials.
"""

import os
import time
import unittest

from arango import ArangoClient
from arango.exceptions import (
    AsyncExecuteError,
    AsyncJobCancelError,
    AsyncJobClearError,
    AsyncJobListError,
    AsyncJobResultError,
    AsyncJobStatusError,
    CollectionCreateError,
    ServerConnectionError,
    ServerVersionError,
)
from arango.executor import AsyncApiExecutor
from arango.job import AsyncJob
from arango.request import Request

URL = os.environ["DEFERD_URL"]
TOKEN = os.environ["DEFERD_TOKEN"]
VERSION = "1.4.3"
HOUR = 3600


def until_done(job):
    """Waits with a deadline; a job that is not found ends the wait with its error."""
    deadline = time.monotonic() + 60
    while job.status() != "done":
        assert time.monotonic() < deadline, "the job is not done"
        time.sleep(0.01)


class PythonArango(unittest.TestCase):
    def setUp(self):
        client = ArangoClient(hosts=URL)
        self.addCleanup(client.close)
        self.client = client
        self.db = client.db("_system", username="root", password=TOKEN, verify=True)
        self.deferred = self.db.begin_async_execution(return_result=True)
        self.addCleanup(self.end_all)

    def end_all(self):
        for id in self.db.async_jobs("pending", count=1000):
            AsyncJob(self.db.conn, id, lambda response: response).cancel(ignore_missing=True)
        self.db.clear_async_jobs()

    def defer(self, method, endpoint, params=None, keep=True):
        """A job for which the driver has no method of its own; its result is the whole response."""
        request = Request(method, endpoint, params=params)
        return AsyncApiExecutor(self.db.conn, keep).execute(request, lambda response: response)

    def sleep(self, seconds):
        return self.defer("get", "/_admin/sleep", {"duration": seconds})

    def occupy(self):
        """A job that holds the one worker until it is cancelled, as a deferred sleep does not."""
        return self.defer("get", "/cgi/s-forever")

    def missing(self):
        """A job whose result was collected."""
        job = self.deferred.version()
        until_done(job)
        job.result()
        return job

    def assert_error(self, kind, http, number, action):
        with self.assertRaises(kind) as raised:
            action()
        error = raised.exception
        self.assertEqual((error.http_code, error.error_code), (http, number), error)
        return error

    def test_what_answers_at_once_is_understood(self):
        self.assertEqual(self.db.version(), VERSION)
        self.assertEqual(self.db.version(details=True)["version"], VERSION)
        self.assertLess(abs(self.db.time().timestamp() - time.time()), 60)
        self.assertEqual(self.db.collections(), [])
        self.assertEqual(self.db.echo({"a": 1})["method"], "POST")

    def test_a_deferred_result_is_that_of_the_waiting_request(self):
        job = self.deferred.version()
        self.assertRegex(job.id, r"^[1-9][0-9]*$")
        until_done(job)
        self.assertEqual(job.result(), VERSION)
        job = self.deferred.echo({"name": "größe"})
        until_done(job)
        self.assertEqual(job.result()["body"], self.db.echo({"name": "größe"})["body"])

    def test_without_results_there_is_no_job(self):
        self.assertIsNone(self.db.begin_async_execution(return_result=False).version())
        self.assertIsNone(self.defer("get", "/_admin/sleep", {"duration": 0.2}, keep=False))
        self.assertEqual(self.db.async_jobs("pending") + self.db.async_jobs("done"), [])

    def test_a_job_is_pending_then_done_and_its_result_waits(self):
        running = self.occupy()
        queued = self.deferred.version()
        for job in (running, queued):
            self.assertEqual(job.status(), "pending")
            error = self.assert_error(AsyncJobResultError, 204, 204, job.result)
            self.assertIn("not done", str(error))
        self.assertTrue(running.cancel())
        until_done(queued)
        self.assertEqual(queued.status(), "done")
        self.assertEqual(queued.result(), VERSION)

    def test_a_slow_request_ends_by_itself(self):
        job = self.sleep(0.3)
        until_done(job)
        response = job.result()
        self.assertEqual((response.status_code, response.body["duration"]), (200, 0.3))

    def test_a_failed_result_is_raised_with_its_number(self):
        job = self.deferred.create_collection(" this name is invalid ")
        until_done(job)
        error = self.assert_error(CollectionCreateError, 400, 1208, job.result)
        self.assertIn("illegal name", error.error_message)
        self.assert_error(AsyncJobResultError, 404, 404, job.result)

    def test_a_missing_job_is_told(self):
        job = self.missing()
        for kind, action in (
            (AsyncJobStatusError, job.status),
            (AsyncJobResultError, job.result),
            (AsyncJobCancelError, job.cancel),
            (AsyncJobClearError, job.clear),
        ):
            error = self.assert_error(kind, 404, 404, action)
            self.assertIn(f"job {job.id} not found", str(error))
        self.assertFalse(job.cancel(ignore_missing=True))
        self.assertFalse(job.clear(ignore_missing=True))

    def test_a_jobs_own_404_and_204_are_no_missing_and_no_pending_job(self):
        for status in (404, 204):
            job = self.defer("get", f"/cgi/c-status?{status}")
            until_done(job)
            self.assertEqual(job.result().status_code, status)
            self.assert_error(AsyncJobStatusError, 404, 404, job.status)

    def test_the_result_of_a_head_request_has_no_content_and_ends(self):
        job = self.defer("head", "/_api/version")
        until_done(job)
        response = job.result()
        self.assertEqual((response.status_code, response.raw_body), (200, ""))

    def test_a_cancelled_job_says_so(self):
        running, queued = self.occupy(), self.sleep(HOUR)
        for job in (queued, running):
            self.assertTrue(job.cancel())
            until_done(job)
            response = job.result()
            self.assertEqual((response.status_code, response.error_code), (410, 21))
            self.assertEqual(response.error_message, "canceled request")

    def test_cancelling_what_is_done_changes_nothing(self):
        job = self.deferred.version()
        until_done(job)
        self.assertTrue(job.cancel())
        self.assertEqual(job.result(), VERSION)

    def test_a_cleared_job_is_gone_whether_pending_or_done(self):
        done = self.deferred.version()
        until_done(done)
        pending = self.sleep(0.2)
        for job in (done, pending):
            self.assertTrue(job.clear())
            self.assert_error(AsyncJobStatusError, 404, 404, job.status)

    def test_lists_are_of_ids_and_no_longer_than_asked(self):
        done = [self.deferred.version() for _ in range(3)]
        for job in done:
            until_done(job)
        pending = [self.sleep(HOUR) for _ in range(3)]
        for status, jobs in (("done", done), ("pending", pending)):
            ids = [job.id for job in jobs]
            self.assertEqual(self.db.async_jobs(status), ids)
            self.assertEqual(self.db.async_jobs(status, count=2), ids[:2])
            self.assertEqual(self.db.async_jobs(status, count=100), ids)
        self.assert_error(AsyncJobListError, 400, 400, lambda: self.db.async_jobs("other"))

    def test_clearing_by_threshold_spares_what_is_younger(self):
        job = self.deferred.version()
        until_done(job)
        now = int(time.time())
        self.assertTrue(self.db.clear_async_jobs(threshold=now - 60))
        self.assertEqual(self.db.async_jobs("done"), [job.id])
        self.assertTrue(self.db.clear_async_jobs(threshold=now + 60))
        self.assertEqual(self.db.async_jobs("done"), [])

    def test_clearing_all_spares_nothing(self):
        until_done(self.deferred.version())
        self.sleep(0.2)
        self.assertTrue(self.db.clear_async_jobs())
        self.assertEqual(self.db.async_jobs("pending") + self.db.async_jobs("done"), [])

    def test_the_job_resource_can_be_deferred_too(self):
        job = self.deferred.async_jobs("done")
        until_done(job)
        self.assertIsInstance(job.result(), list)

    def test_an_unknown_database_is_1228(self):
        other = self.client.db("nowhere", username="root", password=TOKEN)
        self.assert_error(ServerVersionError, 404, 1228, other.version)
        deferred = other.begin_async_execution()
        self.assert_error(AsyncExecuteError, 404, 1228, deferred.version)

    def test_wrong_credentials_are_11_where_credentials_are_asked_for(self):
        for user, password in (("root", "wrong"), ("nobody", TOKEN)):
            stranger = self.client.db("_system", username=user, password=password)
            if not TOKEN:
                self.assertEqual(stranger.version(), VERSION)
                continue
            self.assert_error(ServerVersionError, 401, 11, stranger.version)
            deferred = stranger.begin_async_execution()
            self.assert_error(AsyncExecuteError, 401, 11, deferred.version)
            with self.assertRaises(ServerConnectionError):
                self.client.db("_system", username=user, password=password, verify=True)
        self.assertEqual(self.db.async_jobs("done"), [])


if __name__ == "__main__":
    unittest.main()
