/** A long life: jobs of every fate, proxies that cut, timers that must not stay. */
import assert from "node:assert/strict";
import {getEventListeners} from "node:events";
import {suite, test} from "node:test";
import {setFlagsFromString} from "node:v8";
import {runInNewContext} from "node:vm";

import {STABLE_MS} from "../jobwire/retry.js";
import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {
  ID, OTHER, OVER_SSE, client, created, cutAfter, end, firstOf, opens, pause, settle, stopClock, streams, token, turn,
} from "./steps.js";

/** The worker's answer to a create, and a job of two choices. */
function serveJob(peer, {job_id, ref}) {
  peer.send({type: "accepted", job_id, ref, state: "running"});
  peer.send({...token(1, "a"), job_id}, {...token(2, "b", {index: 1}), job_id}, {...end(3), job_id});
}

/** Collect garbage. */
function collect() {
  setFlagsFromString("--expose_gc");
  runInNewContext("gc")();
}

suite("A long life", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  /** Start jobs of every fate. Each holds `held` in its request. */
  async function live(t, options, held) {
    const worker = await scripted(t, {
      hello: {limits: {max_frame_bytes: 1_000}},
      requests: Array(500).fill(({method, url, body, response}) => {
        if (method === "POST") return created({method, url, body, response});
        const job_id = url.split("/")[3];
        return streams({...token(1, "a"), job_id}, {...end(3), job_id})({response});
      }),
      sockets: [async (peer) => {
        for (;;) {
          const request = await peer.receive();
          if (request.type !== "create") continue;
          if (request.prompt === "refuse") peer.refuse(request, "queue_full", 429);
          else serveJob(peer, request);
        }
      }],
    });
    const jw = client(t, worker.url, options);
    const {signal} = new AbortController();
    for (let i = 0; i < 20; i++) {
      const params = {logit_bias: held(), signal};
      await jw.run("read", params).text();
      jw.run("dropped", params);
      for await (const _ of jw.run("left", params)) break;
      (await jw.create("closed", params)).close();
      if (jw.transport === "sse") continue;
      for (const prompt of ["refuse", "x".repeat(1_000)]) {
        await assert.rejects(jw.create(prompt, params), {name: "Refused"});
      }
    }
    await jw.run("last").text(); // all before it is answered
    await settle(); // the last streams are ending
    assert.equal(getEventListeners(signal, "abort").length, 0);
    return jw;
  }

  for (const [name, options] of [["a WebSocket", {window: 2}], ["SSE", OVER_SSE]]) {
    test(`over ${name} nothing is kept of jobs that are over`, async (t) => {
      const held = [];
      const jw = await live(t, options, () => {
        const params = {1: 1};
        held.push(new WeakRef(params));
        return params;
      });
      for (let i = 0; i < 20 && held.filter((params) => params.deref()).length > 1; i++) {
        await pause(10);
        collect();
      }
      assert(held.filter((params) => params.deref()).length <= 1); // the engine may hold on to the last one
      assert.equal(jw.transport, options.transport ?? "websocket");
    });

    test(`over ${name} a client that is closed leaves no timer`, async (t) => {
      const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
      const before = timers();
      const refuse = cutAfter(token(1, "a"));
      const worker = await scripted(t, {
        requests: [created, opens(token(1, "a")), () => {}, () => {}],
        sockets: [refuse, async (peer) => {
          peer.refuse(await peer.receive("create"), "overloaded", 503, {retry_after_ms: 30_000});
          await peer.closed;
        }],
      });
      const jw = client(t, worker.url, {...options, retryTimeoutMs: 60_000});
      const job = jw.run("Hi", {job_id: ID});
      await firstOf(job);
      while (worker.peers.length + worker.requests.length < 2) await turn();
      jw.run("Never answered", {job_id: OTHER}).cancel();
      await settle();
      jw.close();
      await settle();
      assert.equal(timers(), before);
    });
  }

  test("streams that are cut while a job waits long are no outage", async (t) => {
    const wait = stopClock(t);
    const lastsMs = STABLE_MS + 100;
    const waits = async ({response}) => {
      response.writeHead(200, {Connection: "close"}).write(": hb\n\n");
      await settle(); // the client reads the stream now
      wait(lastsMs);
      response.end();
      await settle();
      wait(10); // the pause
    };
    const worker = await scripted(t, {requests: [created, ...Array(3).fill(waits), streams(token(1, "a"), end(2))]});
    const jw = client(t, worker.url, {...OVER_SSE, retryTimeoutMs: lastsMs});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });
});
