// deferd as arangojs sees it, through the driver's own public interface.
//
// Needs DEFERD_URL, of a deferd with one worker and with `/cgi/` for the scripts of the tests, and
// DEFERD_TOKEN, the token of `root`; empty where deferd asks for no credentials. The driver is found
// by NODE_PATH.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { afterEach, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

const require = createRequire(import.meta.url);
const { Database } = require("arangojs");
const { ArangoError } = require("arangojs/errors");

const url = process.env.DEFERD_URL;
const token = process.env.DEFERD_TOKEN;
const HOUR = 3600;

const connect = (username, password, databaseName = "_system") =>
  new Database({ url, databaseName, auth: { username, password } });

const db = connect("root", token);

afterEach(async () => {
  for (const id of await db.listPendingJobs()) await db.job(id).cancel();
  await db.deleteAllJobResults();
});

/**
 * A job of whatever request `call` makes. When its result is an error, the driver rejects the promise
 * of that request as well as `load`'s: unless somebody catches it, Node.js ends the process.
 */
const jobOf = (call, database = db) =>
  database.createJob(() => {
    const request = call(database);
    request.catch(() => {});
    return request;
  });
const defer = (method, pathname, search) =>
  jobOf(() => db.request({ method, pathname, search }, (response) => response));
const sleep = (duration) => defer("GET", "/_admin/sleep", { duration });
// Holds the one worker until it is cancelled, as a deferred sleep does not.
const occupy = () => defer("GET", "/cgi/s-forever");
const version = (database) => jobOf((database) => database.version(), database);

async function untilDone(job) {
  const deadline = Date.now() + 60_000;
  while (!(await job.getCompleted())) {
    assert(Date.now() < deadline, "the job is not done");
    await pause(10);
  }
}

/** Asserts an ArangoError; the driver's own `code` is the status code. */
const fails = (promise, code, errorNum) =>
  assert.rejects(promise, (error) => {
    assert(error instanceof ArangoError, `${error}`);
    assert.deepEqual([error.code, error.errorNum], [code, errorNum]);
    return true;
  });

test("what answers at once is understood", async () => {
  assert.equal((await db.version()).version, "1.4.3");
  assert("deferd-version" in (await db.version(true)).details);
  assert(Math.abs((await db.time()) - Date.now()) < 60_000);
  assert.deepEqual(await db.listCollections(), []);
});

test("a deferred result is that of the waiting request, and stays with the job", async () => {
  const job = await version();
  assert.match(job.id, /^[1-9][0-9]*$/);
  await untilDone(job);
  assert.equal(job.isLoaded, false);
  const result = await job.load();
  assert.equal(result.version, "1.4.3");
  assert.equal(job.isLoaded, true);
  assert.deepEqual(job.result, result);
  assert.deepEqual(await job.load(), result, "loaded results are asked for once");
  await fails(db.job(job.id).load(), 404, 404);
});

test("a job is pending, then done, and its result waits", async () => {
  const running = await occupy();
  const queued = await version();
  for (const job of [running, queued]) {
    assert.equal(await job.getCompleted(), false);
    assert.equal(await job.load(), undefined);
    assert.equal(job.isLoaded, false);
  }
  await running.cancel();
  await untilDone(queued);
  assert.equal((await queued.load()).version, "1.4.3");
});

test("a slow request ends by itself", async () => {
  const job = await sleep(0.3);
  await untilDone(job);
  assert.equal((await job.load()).parsedBody.duration, 0.3);
});

test("many jobs each get their own result", async () => {
  const jobs = [];
  for (let n = 0; n < 40; n++) jobs.push(await defer("GET", "/_admin/echo", { n }));
  for (const [n, job] of jobs.entries()) {
    await untilDone(job);
    assert.equal((await job.load()).parsedBody.query, `n=${n}`);
  }
});

test("a failed result is raised with its number", async () => {
  const job = await jobOf(() => db.createCollection(" this name is invalid "));
  await untilDone(job);
  await fails(job.load(), 400, 1208);
  await fails(db.job(job.id).load(), 404, 404);
});

test("a missing job is told", async () => {
  const { id } = await version();
  await untilDone(db.job(id));
  await db.job(id).load();
  for (const action of ["load", "getCompleted", "cancel", "deleteResult"]) {
    await fails(db.job(id)[action](), 404, 404);
  }
});

test("a cancelled job says so", async () => {
  const running = await occupy();
  const queued = await sleep(HOUR);
  for (const job of [queued, running]) {
    await job.cancel();
    await untilDone(job);
    await fails(job.load(), 410, 21);
  }
});

test("cancelling what is done changes nothing", async () => {
  const job = await version();
  await untilDone(job);
  await job.cancel();
  assert.equal((await job.load()).version, "1.4.3");
});

test("a deleted result is gone, whether pending or done", async () => {
  const done = await version();
  await untilDone(done);
  const pending = await sleep(0.2);
  for (const job of [done, pending]) {
    await job.deleteResult();
    await fails(job.getCompleted(), 404, 404);
  }
});

test("lists are of ids", async () => {
  const done = [await version(), await version()];
  for (const job of done) await untilDone(job);
  const pending = [await sleep(HOUR), await sleep(HOUR)];
  const ids = (jobs) => jobs.map((job) => job.id);
  assert.deepEqual(await db.listCompletedJobs(), ids(done));
  assert.deepEqual(await db.listPendingJobs(), ids(pending));
});

test("deleting the expired spares what is younger", async () => {
  const job = await version();
  await untilDone(job);
  await db.deleteExpiredJobResults(Date.now() - 60_001);
  assert.deepEqual(await db.listCompletedJobs(), [job.id]);
  await db.deleteExpiredJobResults(Date.now() + 60_001);
  assert.deepEqual(await db.listCompletedJobs(), []);
});

test("deleting all spares nothing", async () => {
  await untilDone(await version());
  await sleep(0.2);
  await db.deleteAllJobResults();
  assert.deepEqual(await db.listPendingJobs(), []);
  assert.deepEqual(await db.listCompletedJobs(), []);
});

test("an own 204 of a job is a result", async () => {
  const job = await defer("GET", "/cgi/c-status?204");
  await untilDone(job);
  await job.load();
  // The driver cannot tell it from a pending job's; deferd has delivered it.
  await fails(job.getCompleted(), 404, 404);
});

test("the result of a HEAD request has no content and ends", async () => {
  // Not of an endpoint that answers with JSON: the driver would parse what is not there.
  const job = await defer("HEAD", "/cgi/c-status?200");
  await untilDone(job);
  assert.equal((await job.load()).status, 200);
});

test("an unknown database is 1228", async () => {
  const other = connect("root", token, "nowhere");
  await fails(other.version(), 404, 1228);
  await fails(version(other), 404, 1228);
});

test("wrong credentials are 11 where credentials are asked for", async () => {
  for (const stranger of [connect("root", "wrong"), connect("nobody", token)]) {
    if (!token) {
      assert.equal((await stranger.version()).version, "1.4.3");
      continue;
    }
    await fails(stranger.version(), 401, 11);
    await fails(version(stranger), 401, 11);
  }
});

test("the token is welcome as a bearer's", async () => {
  const bearer = new Database({ url, databaseName: "_system" }).useBearerAuth(token || "any");
  assert.equal((await bearer.version()).version, "1.4.3");
});
