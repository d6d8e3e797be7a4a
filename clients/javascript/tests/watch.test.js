/** Share links: a job that is read by its link, and no more. */
import assert from "node:assert/strict";
import {once} from "node:events";
import {suite, test} from "node:test";

import {watch} from "../jobwire.js";
import {scripted} from "./scripted.js";
import {ID, end, eventsOf, firstOf, settle, sse, streams, token} from "./steps.js";

suite("Share links", {timeout: 20_000}, () => {
  const watched = ({url}, more) => watch(`${url}/v1/jobs/${ID}/stream?ticket=t%2B`, {backoffMs: [1, 10], ...more});
  const ask = ({url, headers}) => [new URL(url, "http://x").searchParams.get("ticket"), headers["last-event-id"]];

  test("one is read to its end through a cut", async (t) => {
    const worker = await scripted(t, {requests: [
      streams({type: "narration", job_id: ID, cursor: "e-1", human: "First."}, token(2, "Hel")),
      streams(token(3, "lo"), end(4)),
    ]});
    const job = watched(worker);
    assert.equal((await job.waitAccepted()).id, ID);
    assert.equal((await eventsOf(job))[0].human, "First.");
    assert.deepEqual([await job.text(), job.cursor, job.end.status], ["Hello", "e-4", "completed"]);
    assert.deepEqual(worker.requests.map(ask), [["t+", undefined], ["t+", "e-2"]]);
  });

  test("at the end already it has nothing to say", async (t) => {
    const worker = await scripted(t, {requests: [({response}) => response.writeHead(204).end()]});
    assert.deepEqual(await eventsOf(watched(worker, {after: "e-9"})), []);
    assert.deepEqual(worker.requests.map(ask), [["t+", "e-9"]]);
  });

  test("with a ticket that is refused it says so", async (t) => {
    const body = JSON.stringify({code: "unauthorized", status: 401, detail: "No."});
    const worker = await scripted(t, {requests: [({response}) => response.writeHead(401).end(body)]});
    await assert.rejects(watched(worker).text(), {name: "Refused", code: "unauthorized"});
  });

  test("one is left when it is closed", async (t) => {
    let left;
    const worker = await scripted(t, {requests: [({response}) => {
      left = once(response, "close");
      response.writeHead(200, {"Content-Type": "text/event-stream"}).write(sse(token(1, "a")));
    }]});
    const job = watched(worker);
    await firstOf(job);
    job.close();
    await left;
    assert.deepEqual(await eventsOf(job), []);
  });

  test("an abort leaves it, and cancels nothing", async (t) => {
    const controller = new AbortController();
    let left;
    const worker = await scripted(t, {requests: [({response}) => {
      left = once(response, "close");
      response.writeHead(200, {"Content-Type": "text/event-stream"}).write(sse(token(1, "a")));
    }]});
    const job = watched(worker, {signal: controller.signal});
    await firstOf(job);
    controller.abort(new Error("enough"));
    await assert.rejects(job.text(), /enough/);
    await left;
    await settle(); // a DELETE would be here by now
    assert.equal(worker.requests.length, 1);
  });

  test("only those of jobs are taken", () => {
    assert.throws(() => watch("http://127.0.0.1:1/elsewhere"), /Expected a URL/);
  });
});
