// The page /_admin/ui in Chromium, as its readers use it: ui.mjs, beside a deferd (DEFERD_URL) that has tests/scripts
// behind /run/ and /cgi/. With --auth, DEFERD_USERS are two users and their tokens, `ann:TOKEN bob:TOKEN`.
//
// Whatever a test does, the page must ask nobody but this deferd and leave no message on the console.

import assert from "node:assert/strict";
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

// Installed elsewhere than beside this file.
const { chromium } = createRequire(join(process.env.NODE_PATH, "x"))("playwright-core");

const URL = process.env.DEFERD_URL;
const PATIENCE = 60_000;
const FLAGS =
  "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking" +
  " --disable-component-update --disable-sync --disable-dev-shm-usage";
const USERS = (process.env.DEFERD_USERS ?? "").split(/\s+/).filter(Boolean).map((user) => {
  const [username, password] = user.split(":");
  return { username, password };
});

/** Waits until this holds. */
async function eventually(what, holds) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    if (await holds()) return;
    assert(Date.now() < end, `not within ${PATIENCE / 1000} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const credentials = (user) =>
  user ? { authorization: `Basic ${Buffer.from(`${user.username}:${user.password}`).toString("base64")}` } : {};

async function ask(path, options = {}, user = USERS[0]) {
  return fetch(URL + path, { ...options, headers: { ...credentials(user), ...options.headers } });
}

/** Submits a job; its id. */
async function submit(path, options = {}, user = USERS[0]) {
  const answer = await ask(path, { ...options, headers: { "x-arango-async": "store" } }, user);
  assert.equal(answer.status, 202);
  return answer.headers.get("x-arango-async-id");
}

/** A run of f-tell, which writes to stderr what it is told. */
class Teller {
  constructor(context) {
    this.dir = mkdtempSync(join(tmpdir(), "deferd-ui-"));
    this.told = 0;
    context.after(() => rmSync(this.dir, { recursive: true, force: true }));
  }

  async start(name = "") {
    this.id = await submit(`/run/f-tell?${this.dir}${name}`);
    return this.id;
  }

  put(name, text) {
    writeFileSync(join(this.dir, "new"), text);
    renameSync(join(this.dir, "new"), join(this.dir, name));
  }

  tell(text) {
    this.put(`${++this.told}`, text);
  }

  end(how = "0") {
    this.put("go", how);
  }
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", headless: true, args: FLAGS.split(" ") });
test.after(() => browser.close());

/** Opens the page; at the test's end, nothing may have gone wrong with it. */
async function open(context, options = {}) {
  const viewport = { width: 1200, height: 900 };
  const viewer = await browser.newContext({ viewport, httpCredentials: USERS[0], ...options });
  const page = await viewer.newPage();
  page.setDefaultTimeout(PATIENCE);
  const wrong = [];
  page.on("console", (message) => wrong.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => wrong.push(`error: ${error.message}`));
  page.on("dialog", (dialog) => wrong.push(`dialog: ${dialog.message()}`));
  page.on("request", (request) => request.url().startsWith(`${URL}/`) || wrong.push(`elsewhere: ${request.url()}`));
  context.after(async () => {
    await viewer.close();
    assert.deepEqual(wrong, []);
  });
  const answer = await page.goto(`${URL}/_admin/ui`);
  assert.equal(answer.status(), 200);
  await page.locator("#live", { hasText: "live" }).waitFor();
  return page;
}

const row = (page, text) => page.locator(".job", { hasText: text });
const has = (locator, text) => locator.filter({ hasText: text }).first().waitFor();

test("a slow script's progress changes, its log is followed, and it is cancelled", async (context) => {
  const teller = new Teller(context);
  await teller.start("&slow");
  const page = await open(context);
  const job = row(page, "&slow");
  await has(job.locator(".state"), "running");
  teller.tell("step 1/4\n");
  await has(job.locator(".note"), "step 1/4");
  await eventually("the bar is at a quarter", () => job.locator(".bar").evaluate((bar) => bar.style.width === "25%"));
  await job.click();
  await has(page.locator("#log"), "step 1/4");
  teller.tell("step 2/4\n");
  const log = () => page.locator("#log").textContent();
  await eventually("the line has come", async () => (await log()) === "step 1/4\nstep 2/4\n");
  await has(page.locator("#verdict"), "step 2/4");
  // The reader is asked once more.
  await page.locator("#cancel").click();
  await has(page.locator("#cancel"), "Really cancel?");
  await page.locator("#cancel").click();
  await has(page.locator("#verdict .state"), "canceled");
  assert.equal((await ask(`/_api/job/${teller.id}/result`)).status, 410);
  await has(page.locator("#content"), "canceled request");
  await page.locator("#close").click();
  await has(job.locator(".state"), "canceled");
});

test("what failed says why, and can be run again and deleted", async (context) => {
  const id = await submit("/run/s-fail?7");
  const slow = await submit("/_api/job/1");
  const page = await open(context);
  const job = page.locator("#group-failed .job", { hasText: "/run/s-fail?7" });
  await has(job.locator(".note"), "exit code 7 · no paper");
  await has(page.locator("#group-failed .job", { hasText: "/_api/job/1" }).locator(".note"), "status 404 · not found");
  await job.first().click();
  await has(page.locator("#why"), "exit code 7 · no paper");
  await has(page.locator("#log"), "printing");
  await has(page.locator("#facts"), id);
  await page.locator("#again").click();
  await eventually("the new job is shown", async () => {
    const facts = await page.locator("#facts").textContent();
    return /Id\d+/.test(facts) && !facts.includes(id);
  });
  await has(page.locator("#why"), "exit code 7 · no paper");
  const again = (await page.locator("#facts dd").first().textContent()).trim();
  await page.locator("#delete").click();
  await page.locator("#delete").click();
  await eventually("it is deleted", async () => (await ask(`/_api/job/${again}`)).status === 404);
  await page.locator("#sheet").waitFor({ state: "hidden" });
  // Content is not kept, so it cannot be sent again.
  const content = await submit("/run/s-fail?7", { method: "POST", body: "x" });
  await page.evaluate((id) => (location.hash = id), content);
  await has(page.locator("#why"), "exit code 7 · no paper");
  assert.equal(await page.locator("#again").isVisible(), false);
  for (const job of [id, slow, content]) await ask(`/_api/job/${job}`, { method: "DELETE" });
});

test("nothing that a client or a script says is read as HTML", async (context) => {
  const none = async () => assert.equal(await page.locator("img, b, main script, dialog script").count(), 0);
  const html = `<img src=x onerror="alert(1)"><b>bold</b><script>alert(2)</script>`;
  const teller = new Teller(context);
  await teller.start(`&${encodeURIComponent(html)}`);
  const page = await open(context);
  teller.tell(`${html}\n`);
  const job = page.locator(".job.running").first();
  await has(job.locator(".target"), encodeURIComponent("<b>bold"));
  await has(job.locator(".note"), html);
  await none();
  await job.click();
  await has(page.locator("#name"), encodeURIComponent("<b>bold"));
  await has(page.locator("#log"), html);
  await none();
  teller.end("3");
  await has(page.locator("#why"), html);
  await none();
  const result = await submit("/run/s-cat", { method: "POST", body: html });
  await page.evaluate((id) => (location.hash = id), result);
  await has(page.locator("#content"), html);
  await none();
  // A hash that is no id closes the sheet.
  await page.evaluate((id) => (location.hash = id), "<img src=x>");
  await page.locator("#sheet").waitFor({ state: "hidden" });
  await none();
  // The id of no job.
  await page.evaluate((id) => (location.hash = id), "1");
  await has(page.locator("#verdict .state"), "gone");
  await none();
  for (const id of [result, teller.id]) await ask(`/_api/job/${id}`, { method: "DELETE" });
});

test("the plots show what has ended, and what ends meanwhile", async (context) => {
  const ids = [];
  const run = async () => {
    const two = [await submit("/run/s-cat"), await submit("/run/s-cat")];
    ids.push(...two);
    for (const id of two) await eventually("it is done", async () => (await ask(`/_api/job/${id}`)).status === 200);
  };
  await run();
  const page = await open(context);
  const lines = () => page.locator(".plot svg path").evaluateAll((paths) => paths.map((path) => path.getAttribute("d")));
  await eventually("all lines are drawn", async () => (await lines()).length >= 3 && (await lines()).every(Boolean));
  const done = async () => Number(/(\d+) done/.exec(await page.locator(".plot .key").nth(1).textContent())?.[1]);
  const before = await done();
  assert(before >= 2, `${before} done`);
  assert((await page.locator(".plot svg rect.done").count()) >= 1);
  await run();
  await eventually("two more are counted", async () => (await done()) === before + 2);
  assert((await lines()).length >= 3 && (await lines()).every(Boolean));
  for (const id of ids) await ask(`/_api/job/${id}`, { method: "DELETE" });
});

test("a thousand jobs are shown, filtered, and used by the keyboard alone", async (context) => {
  const ids = [];
  for (let n = 0; n < 1000; n += 20) {
    ids.push(...(await Promise.all(Array.from({ length: 20 }, (_, m) => submit(`/_api/version?many=${n + m}.`)))));
  }
  const page = await open(context);
  await page.locator("#views button", { hasText: "Done" }).click();
  await has(page.locator("#group-done .more"), "Show more");
  await page.locator("#group-done .more").click();
  await eventually("all are shown", async () => (await page.locator("#group-done .job").count()) >= 1000);
  const begin = Date.now();
  await page.keyboard.press("/");
  await page.keyboard.type("many=777.");
  await eventually("one is left", async () => (await page.locator(".job").count()) === 1);
  assert(Date.now() - begin < 10_000, `${Date.now() - begin} ms`);
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await has(page.locator("#content"), `{"server":"arango"`);
  const focused = () => page.evaluate(() => document.activeElement.closest("dialog") !== null);
  assert.equal(await focused(), true);
  await page.keyboard.press("Tab");
  assert.equal(await focused(), true);
  await page.keyboard.press("Escape");
  await page.locator("#sheet").waitFor({ state: "hidden" });
  await eventually("the job has the focus again", () =>
    page.evaluate(() => document.activeElement.textContent.includes("many=777.") && location.hash === ""));
  // The dialog's close event comes a frame late: another job that is open by then stays, and so does the focus.
  const close = (then) => page.evaluate(async ([then, id]) => {
    document.getElementById("sheet").close();
    if (then === "open") location.hash = id;
    else document.getElementById("find").focus();
    for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame);
    return document.activeElement.id;
  }, [then, ids[0]]);
  await page.keyboard.press("Enter");
  await has(page.locator("#content"), `{"server":"arango"`);
  await close("open");
  await has(page.locator("#facts"), ids[0]);
  await has(page.locator("#content"), `{"server":"arango"`);
  assert.equal(await close("type"), "find");
  await page.keyboard.press("Escape");
  await eventually("all are back", async () => (await page.locator(".job").count()) >= 1000);
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  await page.keyboard.press("k");
  const texts = await page.locator(".job").evaluateAll((rows) => rows.indexOf(document.activeElement));
  assert.equal(texts, 0);
  // Every button is reached in its turn.
  await page.locator("#views button").first().focus();
  for (const name of ["Running", "Waiting", "Failed", "Done"]) {
    await page.keyboard.press("Tab");
    assert((await page.evaluate(() => document.activeElement.textContent)).startsWith(name), name);
  }
  await ask("/_api/job/all", { method: "DELETE" });
  await has(page.locator(".empty"), "");
});

test("on a phone nothing is cut off", async (context) => {
  const teller = new Teller(context);
  await teller.start(`&${"long".repeat(50)}`);
  const page = await open(context, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  teller.tell(`${"words ".repeat(100)}\n${"x".repeat(300)}\n`);
  const tooWide = () => page.evaluate(() => {
    const all = [document.documentElement, ...document.querySelectorAll("body *")];
    return all.filter((it) => it.getBoundingClientRect().right > innerWidth + 1).map((it) => it.id || it.className);
  });
  const job = row(page, "longlong");
  await has(job.locator(".note"), "xxx");
  assert.deepEqual(await tooWide(), []);
  await job.tap();
  await has(page.locator("#log"), "words words");
  assert.deepEqual(await tooWide(), []);
  teller.end();
  await has(page.locator("#verdict .state"), "done");
  await ask(`/_api/job/${teller.id}`, { method: "DELETE" });
});

test("light and dark follow the reader's choice, and text can be read in both", async (context) => {
  const id = await submit("/run/s-fail?7");
  for (const [colorScheme, isDark] of [["light", false], ["dark", true]]) {
    const page = await open(context, { colorScheme });
    await has(page.locator("#group-failed .note"), "no paper");
    // WCAG 2.2 section 1.4.3: a contrast of 4.5.
    const contrasts = await page.evaluate(() => {
      const light = (color) => {
        const [red, green, blue] = color.match(/\d+/g).map((part) => {
          const share = part / 255;
          return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      };
      const ground = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return color === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : color;
      };
      const kinds = "h1, h2, small, .muted, .state, .target, .note, .time, .ago, nav button";
      const texts = [...document.querySelectorAll(kinds)];
      return texts.filter((it) => it.textContent && it.offsetParent).map((it) => {
        const [a, b] = [light(getComputedStyle(it).color), light(ground(it))].sort((a, b) => b - a);
        return [it.className || it.tagName, (a + 0.05) / (b + 0.05)];
      });
    });
    assert(contrasts.length > 10);
    assert.deepEqual(contrasts.filter(([, contrast]) => contrast < 4.5), [], colorScheme);
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
    assert.equal(ground.every((part) => part < 64), isDark, colorScheme);
  }
  await ask(`/_api/job/${id}`, { method: "DELETE" });
});

test("a reader sees the jobs of one user alone", { skip: USERS.length === 0 }, async (context) => {
  const [ann, bob] = USERS;
  const [hers, his] = [await submit("/_api/version?ann", {}, ann), await submit("/_api/version?bob", {}, bob)];
  assert.equal((await fetch(`${URL}/_admin/ui`)).status, 401);
  for (const [user, own, other] of [[ann, "?ann", his], [bob, "?bob", hers]]) {
    const page = await open(context, { httpCredentials: user });
    await has(row(page, own), "");
    assert.equal(await page.locator(".job").count(), 1);
    await page.evaluate((id) => (location.hash = id), other);
    await has(page.locator("#verdict .state"), "gone");
    assert(!(await page.locator("#sheet").textContent()).includes("/_api/version"));
  }
});
