/**
 * The client against a real worker at JOBWIRE_URL, over the transport in JOBWIRE_TRANSPORT. JOBWIRE_DIRECT_URL is the
 * same worker without whatever stands before it: connections to JOBWIRE_URL may be cut at any byte.
 */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {JobCancelled, connect, watch} from "../jobwire.js";

const {JOBWIRE_URL: url, JOBWIRE_DIRECT_URL: directUrl = url, JOBWIRE_TRANSPORT: transport} = process.env;
const {JOBWIRE_TOKEN: token} = process.env;
const OPTIONS = {transport, token, backoffMs: [5, 50]};
const COUNT = {temperature: 0, max_tokens: 200};

/** The text of a job as the worker has it. */
async function textAtWorker(job) {
  const headers = {Accept: "application/json", ...(token && {Authorization: `Bearer ${token}`})};
  const response = await fetch(`${directUrl}/v1/jobs/${job.id}`, {headers});
  return (await response.json()).text;
}

suite("Worker", {skip: url ? false : "JOBWIRE_URL is not set", timeout: 90_000}, () => {
  const client = (t) => {
    const jw = connect(url, OPTIONS);
    t.after(() => jw.close());
    return jw;
  };

  test("a job tells its text, its narration and its end", async (t) => {
    const job = client(t).run("Count from 1 to 60", COUNT);
    const events = [];
    for await (const event of job) events.push(event);
    const text = events.map((event) => (event.type === "token" ? event.text : "")).join("");
    assert.match(text, /^1[ ,]+2[ ,]+3[ ,]+4/);
    assert.equal(text, await textAtWorker(job));
    assert.equal(text, await job.text());
    const end = events.at(-1);
    assert.deepEqual([end.type, end.status, job.end], ["end", "completed", end]);
    assert.equal(end.usage.completion_tokens, events.reduce((n, e) => n + (e.type === "token" ? (e.n ?? 1) : 0), 0));
    const actions = events.filter((event) => event.type === "narration").map((event) => event.action);
    assert(actions.includes("admitted"), String(actions));
  });

  test("twenty jobs at once, each exact", async (t) => {
    const jw = client(t);
    const jobs = Array.from({length: 20}, (_, i) => jw.run(`Count from ${i + 1} to 99`, {...COUNT, max_tokens: 60}));
    const texts = await Promise.all(jobs.map((job) => job.text()));
    assert.deepEqual(texts, await Promise.all(jobs.map(textAtWorker)));
  });

  test("a second reader joins in the middle, a third comes late", async (t) => {
    const [jw, second, third] = [client(t), client(t), client(t)];
    const job = jw.run("Count from 1 to 60", COUNT);
    let cursor = null, head = "";
    for await (const event of job) {
      if (event.type !== "token") continue;
      ({cursor} = job);
      head += event.text;
      break;
    }
    const tail = await second.subscribe(job.id, {after: cursor}).text();
    assert.equal(head + tail, await job.text());
    assert.equal(await third.subscribe(job.id).text(), head + tail);
  });

  test("cancel ends the job", async (t) => {
    const job = await client(t).create("Count from 1 to 99", {...COUNT, max_tokens: 1500});
    await job.cancel();
    await assert.rejects(job.text(), JobCancelled);
    assert.equal(job.end.status, "cancelled");
    await job.cancel();
  });

  test("an abort ends the job at the worker", async (t) => {
    const jw = client(t);
    const controller = new AbortController();
    const job = await jw.create("Count from 1 to 99", {...COUNT, max_tokens: 1500, signal: controller.signal});
    controller.abort();
    await assert.rejects(job.text(), {name: "AbortError"});
    const events = [];
    for await (const event of client(t).subscribe(job.id)) events.push(event);
    assert.equal(events.at(-1).status, "cancelled");
  });

  test("what is wrong is said", async (t) => {
    const jw = client(t);
    await assert.rejects(jw.create("Hi", {top_p: 7}), (error) => {
      assert.deepEqual([error.name, error.code, error.status], ["Refused", "invalid_params", 422]);
      assert.equal(error.problem.errors[0].pointer, "/top_p");
      return true;
    });
    await assert.rejects(jw.subscribe("no-such-job-anywhere").text(), {code: "job_not_found", status: 404});
  });

  test("with a window of one each is exact, and with one frame a paint", async (t) => {
    const jw = connect(url, {...OPTIONS, window: 1});
    t.after(() => jw.close());
    const how = (i) => (i % 2 ? {frames: "paint"} : {window: 1 + i});
    const jobs = Array.from({length: 8}, (_, i) => jw.run(`Count from ${i + 1} to 60`, {...COUNT, ...how(i)}));
    assert.deepEqual(await Promise.all(jobs.map((job) => job.text())), await Promise.all(jobs.map(textAtWorker)));
  });

  test("reconnects lose and double nothing", async (t) => {
    const jw = client(t);
    const job = jw.run("Count from 1 to 60", COUNT);
    let cuts = 0;
    for await (const event of job) if (event.type === "token" && cuts++ < 5) jw.reconnect();
    assert.equal(await job.text(), await textAtWorker(job));
  });

  test("choices have their own texts, and tokens their likelihoods", async (t) => {
    const params = {n: 2, seed: 7, temperature: 1, max_tokens: 20, include: ["ids", "logprobs"]};
    const job = client(t).run("Tell me a story about a fox", {...params, deadline_ms: 60_000, coalesce_ms: 5});
    const counts = [0, 0];
    for await (const {type, index = 0, n = 1, ids, logprobs} of job) {
      if (type !== "token") continue;
      assert.deepEqual([ids.length, logprobs.length], [n, n]);
      counts[index] += n;
    }
    const texts = await job.texts();
    assert.deepEqual([texts.length, texts[0] === texts[1]], [2, false]);
    assert.deepEqual(counts, [20, 20]);
  });

  test("priority can be changed while it runs, over a WebSocket", async (t) => {
    const job = await client(t).create("Count from 1 to 99", {...COUNT, max_tokens: 1500});
    if (transport === "websocket") assert.equal((await job.update({priority: 9})).job_id, job.id);
    else await assert.rejects(job.update({priority: 9}), {code: "unsupported_operation"});
    await job.cancel();
  });

  test("a share link tells the same", async (t) => {
    const job = await client(t).create("Count from 1 to 60", COUNT);
    const link = new URL(job.accepted.sse_url, url);
    assert.equal(link.searchParams.has("ticket"), Boolean(token));
    const [text, shared] = await Promise.all([job.text(), watch(link, {backoffMs: [5, 50]}).text()]);
    assert.equal(text, shared);
    assert.equal(text, await textAtWorker(job));
    if (!token) return;
    link.searchParams.set("ticket", "forged");
    await assert.rejects(watch(link).text(), {name: "Refused", code: "unauthorized"});
  });

  test("a job left unread is whole when it is read", async (t) => {
    const jw = connect(url, {...OPTIONS, unreadBytesMax: 2_000});
    t.after(() => jw.close());
    const unread = await jw.create("Count from 1 to 60", COUNT);
    await jw.run("Count from 1 to 60", COUNT).text();
    assert.equal(await unread.text(), await textAtWorker(unread));
  });
});
