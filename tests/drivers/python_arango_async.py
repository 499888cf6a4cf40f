"""deferd as python-arango-async sees it, through the driver's own public interface.

Needs DEFERD_URL, of a deferd with one worker and with `/cgi/` for the scripts of the tests, and
DEFERD_TOKEN, the token of `root`; empty where deferd asks for no credentials.
"""

import asyncio
import os
import time
import unittest

from aiohttp import TCPConnector
from arangoasync import ArangoClient
from arangoasync.auth import Auth
from arangoasync.exceptions import (
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
from arangoasync.executor import AsyncApiExecutor
from arangoasync.http import AioHTTPClient
from arangoasync.job import AsyncJob
from arangoasync.request import Method, Request

URL = os.environ["DEFERD_URL"]
TOKEN = os.environ["DEFERD_TOKEN"]
VERSION = "1.4.3"
HOUR = 3600


async def until_done(job):
    """Waits with a deadline; a job that is not found ends the wait with its error. The driver's own
    `wait` looks once a second."""
    deadline = time.monotonic() + 60
    while await job.status() != "done":
        assert time.monotonic() < deadline, "the job is not done"
        await asyncio.sleep(0.01)


class PythonArangoAsync(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        # The driver's hundred connections are more than the tiny_http front serves at once.
        connections = TCPConnector(limit=4)
        self.client = ArangoClient(hosts=URL, http_client=AioHTTPClient(connections))
        self.addAsyncCleanup(self.client.close)
        self.db = await self.client.db("_system", auth=Auth("root", TOKEN), verify=True)
        self.deferred = self.db.begin_async_execution(return_result=True)
        self.addAsyncCleanup(self.end_all)

    async def end_all(self):
        for id in await self.db.async_jobs("pending", count=1000):
            job = AsyncJob(self.db.connection, id, lambda response: response)
            await job.cancel(ignore_missing=True)
        await self.db.clear_async_jobs()

    async def defer(self, method, endpoint, params=None, keep=True):
        """A job for which the driver has no method of its own; its result is the whole response."""
        executor = AsyncApiExecutor(self.db.connection, keep)
        request = Request(method, endpoint, params=params)
        return await executor.execute(request, lambda response: response)

    async def sleep(self, seconds):
        return await self.defer(Method.GET, "/_admin/sleep", {"duration": seconds})

    async def occupy(self):
        """A job that holds the one worker until it is cancelled, as a deferred sleep does not."""
        return await self.defer(Method.GET, "/cgi/s-forever")

    async def assert_error(self, kind, http, number, action):
        with self.assertRaises(kind) as raised:
            await action()
        error = raised.exception
        self.assertEqual((error.http_code, error.error_code), (http, number), error)
        return error

    async def assert_version(self, answer):
        self.assertEqual((await answer)["version"], VERSION)

    async def test_what_answers_at_once_is_understood(self):
        await self.assert_version(self.db.version())
        self.assertIn("deferd-version", (await self.db.version(details=True))["details"])
        self.assertLess(abs((await self.db.time()).timestamp() - time.time()), 60)
        self.assertEqual(await self.db.collections(), [])
        self.assertEqual((await self.db.echo({"a": 1}))["method"], "POST")

    async def test_a_deferred_result_is_that_of_the_waiting_request(self):
        job = await self.deferred.version()
        self.assertRegex(job.id, r"^[1-9][0-9]*$")
        self.assertTrue(await job.wait(60))
        await self.assert_version(job.result())
        job = await self.deferred.echo({"name": "größe"})
        await until_done(job)
        waited = await self.db.echo({"name": "größe"})
        self.assertEqual((await job.result())["body"], waited["body"])

    async def test_without_results_there_is_no_job(self):
        self.assertIsNone(await self.db.begin_async_execution(return_result=False).version())
        self.assertIsNone(await self.defer(Method.GET, "/_admin/sleep", {"duration": 0.2}, False))
        self.assertEqual(await self.db.async_jobs("pending"), [])
        self.assertEqual(await self.db.async_jobs("done"), [])

    async def test_a_job_is_pending_then_done_and_its_result_waits(self):
        running = await self.occupy()
        queued = await self.deferred.version()
        for job in (running, queued):
            self.assertEqual(await job.status(), "pending")
            error = await self.assert_error(AsyncJobResultError, 204, 204, job.result)
            self.assertIn("not done", str(error))
        self.assertTrue(await running.cancel())
        await until_done(queued)
        await self.assert_version(queued.result())

    async def test_a_slow_request_ends_by_itself(self):
        job = await self.sleep(0.3)
        await until_done(job)
        response = await job.result()
        self.assertEqual(response.status_code, 200)
        self.assertEqual(self.db.deserializer.loads(response.raw_body)["duration"], 0.3)

    async def test_many_at_once_each_get_their_own_result(self):
        async def round_trip(n):
            job = await self.defer(Method.GET, "/_admin/echo", {"n": n})
            await until_done(job)
            return self.db.deserializer.loads((await job.result()).raw_body)["query"]

        queries = await asyncio.gather(*(round_trip(n) for n in range(40)))
        self.assertEqual(queries, [f"n={n}" for n in range(40)])

    async def test_a_failed_result_is_raised_with_its_number(self):
        job = await self.deferred.create_collection(" this name is invalid ")
        await until_done(job)
        error = await self.assert_error(CollectionCreateError, 400, 1208, job.result)
        self.assertIn("illegal name", error.error_message)
        await self.assert_error(AsyncJobResultError, 404, 404, job.result)

    async def test_a_missing_job_is_told(self):
        job = await self.deferred.version()
        await until_done(job)
        await job.result()
        for kind, action in (
            (AsyncJobStatusError, job.status),
            (AsyncJobResultError, job.result),
            (AsyncJobCancelError, job.cancel),
            (AsyncJobClearError, job.clear),
        ):
            error = await self.assert_error(kind, 404, 404, action)
            self.assertIn(f"job {job.id} not found", str(error))
        self.assertFalse(await job.cancel(ignore_missing=True))
        self.assertFalse(await job.clear(ignore_missing=True))

    async def test_a_jobs_own_404_and_204_are_no_missing_and_no_pending_job(self):
        for status in (404, 204):
            job = await self.defer(Method.GET, f"/cgi/c-status?{status}")
            await until_done(job)
            self.assertEqual((await job.result()).status_code, status)
            await self.assert_error(AsyncJobStatusError, 404, 404, job.status)

    async def test_the_result_of_a_head_request_has_no_content_and_ends(self):
        job = await self.defer(Method.HEAD, "/_api/version")
        await until_done(job)
        response = await job.result()
        self.assertEqual((response.status_code, response.raw_body), (200, b""))

    async def test_a_cancelled_job_says_so(self):
        running, queued = await self.occupy(), await self.sleep(HOUR)
        for job in (queued, running):
            self.assertTrue(await job.cancel())
            await until_done(job)
            response = await job.result()
            self.assertEqual((response.status_code, response.error_code), (410, 21))
            self.assertEqual(response.error_message, "canceled request")

    async def test_cancelling_what_is_done_changes_nothing(self):
        job = await self.deferred.version()
        await until_done(job)
        self.assertTrue(await job.cancel())
        await self.assert_version(job.result())

    async def test_a_cleared_job_is_gone_whether_pending_or_done(self):
        done = await self.deferred.version()
        await until_done(done)
        pending = await self.sleep(0.2)
        for job in (done, pending):
            self.assertTrue(await job.clear())
            await self.assert_error(AsyncJobStatusError, 404, 404, job.status)

    async def test_lists_are_of_ids_and_no_longer_than_asked(self):
        done = [await self.deferred.version() for _ in range(3)]
        for job in done:
            await until_done(job)
        pending = [await self.sleep(HOUR) for _ in range(3)]
        for status, jobs in (("done", done), ("pending", pending)):
            ids = [job.id for job in jobs]
            self.assertEqual(await self.db.async_jobs(status), ids)
            self.assertEqual(await self.db.async_jobs(status, count=2), ids[:2])
            self.assertEqual(await self.db.async_jobs(status, count=100), ids)
        await self.assert_error(AsyncJobListError, 400, 400, lambda: self.db.async_jobs("other"))

    async def test_clearing_by_threshold_spares_what_is_younger(self):
        job = await self.deferred.version()
        await until_done(job)
        await self.db.clear_async_jobs(threshold=time.time() - 60.5)
        self.assertEqual(await self.db.async_jobs("done"), [job.id])
        await self.db.clear_async_jobs(threshold=time.time() + 60.5)
        self.assertEqual(await self.db.async_jobs("done"), [])

    async def test_clearing_all_spares_nothing(self):
        await until_done(await self.deferred.version())
        await self.sleep(0.2)
        await self.db.clear_async_jobs()
        self.assertEqual(await self.db.async_jobs("pending"), [])
        self.assertEqual(await self.db.async_jobs("done"), [])

    async def test_the_job_resource_can_be_deferred_too(self):
        job = await self.defer(Method.GET, "/_api/job/done")
        await until_done(job)
        self.assertIsInstance(self.db.deserializer.loads((await job.result()).raw_body), list)

    async def test_an_unknown_database_is_1228(self):
        other = await self.client.db("nowhere", auth=Auth("root", TOKEN))
        await self.assert_error(ServerVersionError, 404, 1228, other.version)
        deferred = other.begin_async_execution()
        await self.assert_error(AsyncExecuteError, 404, 1228, deferred.version)

    async def test_wrong_credentials_are_11_where_credentials_are_asked_for(self):
        for auth in (Auth("root", "wrong"), Auth("nobody", TOKEN)):
            stranger = await self.client.db("_system", auth=auth)
            if not TOKEN:
                await self.assert_version(stranger.version())
                continue
            await self.assert_error(ServerVersionError, 401, 11, stranger.version)
            deferred = stranger.begin_async_execution()
            await self.assert_error(AsyncExecuteError, 401, 11, deferred.version)
            with self.assertRaises(ServerConnectionError):
                await self.client.db("_system", auth=auth, verify=True)
        self.assertEqual(await self.db.async_jobs("done"), [])


if __name__ == "__main__":
    unittest.main()
