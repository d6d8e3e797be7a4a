/** Refusals and failures: which reject, with which code, and which are waited out. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {ConnectionFailed, JobFailed, Refused} from "../jobwire.js";
import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {ID, client, cutAfter, deferred, end, eventsOf, serves, token} from "./steps.js";

suite("Refusals", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("a refusal rejects with its code", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      peer.refuse(await peer.receive("create"), "queue_full", 429, {retry_after_ms: 700});
      peer.refuse(await peer.receive("create"), "invalid_params", 422, {errors: [{pointer: "/top_p"}]});
    }]});
    const jw = client(t, worker.url);
    await assert.rejects(jw.create("Hi"), {name: "Refused", code: "queue_full", status: 429, retryAfterMs: 700});
    await assert.rejects(jw.run("Hi", {top_p: 7}).text(), (error) => {
      assert(error instanceof Refused);
      assert.deepEqual([error.problem.errors, error.retryAfterMs], [[{pointer: "/top_p"}], undefined]);
      return true;
    });
  });

  test("a request too large is refused here and hurts no other", async (t) => {
    const hello = {limits: {max_frame_bytes: 1000}};
    const worker = await scripted(t, {hello, sockets: [serves(token(1, "a"), end(2))]});
    const jw = client(t, worker.url);
    await assert.rejects(jw.create("ü".repeat(500)), {code: "frame_too_large"});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });

  test("a resume that is refused for now waits, a lost job raises", async (t) => {
    const worker = await scripted(t, {sockets: [
      cutAfter(token(1, "a")),
      async (peer) => {
        peer.refuse(await peer.receive("create"), "overloaded", 503, {retry_after_ms: 5});
        assert.equal((await peer.accept()).after, "e-1");
        peer.cut();
      },
      async (peer) => peer.refuse(await peer.receive("create"), "job_lost", 410),
    ]});
    const job = client(t, worker.url).run("Hi", {job_id: ID});
    await assert.rejects(eventsOf(job), {name: "Refused", code: "job_lost"});
    assert.equal(job.cursor, "e-1");
  });

  test("a reader does not hurry a worker that asked to wait", async (t) => {
    const askedAt = [];
    const [refused, hear] = deferred();
    const onframe = ({type}) => type === "error" && hear();
    const worker = await scripted(t, {sockets: [
      cutAfter(token(1, "a"), token(2, "b", {index: 1}), token(3, "c")),
      async (peer) => {
        const request = await peer.receive("create");
        askedAt.push(performance.now());
        peer.refuse(request, "overloaded", 503, {retry_after_ms: 200});
        assert.equal((await peer.accept()).after, "e-3");
        askedAt.push(performance.now());
        peer.send(end(4));
      },
    ]});
    const job = client(t, worker.url, {window: 9, onframe}).run("Hi", {job_id: ID});
    await refused;
    assert.deepEqual(await job.texts(), ["ac", "b"]);
    assert(askedAt[1] - askedAt[0] >= 195, `${askedAt[1] - askedAt[0]} ms`);
  });

  for (const status of ["failed", "expired"]) {
    test(`a job that ends as ${status} raises`, async (t) => {
      const error = {code: "engine_failed", detail: "It broke."};
      const worker = await scripted(t, {sockets: [serves(token(1, "a"), end(2, status, {error}))]});
      const job = client(t, worker.url).run("Hi", {job_id: ID});
      for (let i = 0; i < 2; i++) {
        await assert.rejects(job.text(), (error) => error instanceof JobFailed && error.code === "engine_failed");
      }
      assert.equal(job.end.status, status);
    });
  }

  const finalCodes = {1000: "closed_1000", 4400: "protocol_abuse", 4401: "unauthorized", 4403: "forbidden",
    4406: "version", 4408: "auth_timeout", 4499: "closed_4499"};
  for (const [closeCode, code] of Object.entries(finalCodes)) {
    test(`close code ${closeCode} raises`, async (t) => {
      const worker = await scripted(t, {sockets: [async (peer) => {
        await peer.accept();
        peer.close(Number(closeCode), "because");
      }]});
      const jw = client(t, worker.url);
      await assert.rejects(jw.run("Hi", {job_id: ID}).text(), {name: "ConnectionFailed", code, detail: "because"});
      assert.throws(() => jw.run("Again"), ConnectionFailed);
      assert.equal(worker.peers.length, 1);
    });
  }
});
