/** Windows: how many frames the worker sends ahead of the reader, and frames for paint. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {connect} from "../jobwire.js";
import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {ID, OTHER, OVER_SSE, client, created, deferred, end, firstOf, streams, token, turn} from "./steps.js";

suite("Windows", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("text is exact through cuts, and no frame comes without credit", async (t) => {
    const log = Array.from({length: 30}, (_, i) => token(i + 1, `${i + 1} `)).concat(end(31));
    let window, plan;
    const worker = await scripted(t, {sockets: [async (peer) => {
      const request = await peer.accept();
      assert.equal(request.window, window);
      let at = Number((request.after ?? "e-0").slice(2));
      const [count, merge] = plan.shift() ?? [log.length, 2];
      const inFlight = [];
      for (let i = 0; i < count; i++) {
        while (inFlight.length === window) {
          const heard = Number((await peer.receive("ack")).cursor.slice(2));
          while (inFlight[0] <= heard) inFlight.shift();
        }
        const run = at < 30 ? log.slice(at, Math.min(at + merge, 30)) : log.slice(30);
        at += run.length;
        peer.send({...run.at(-1), ...(at <= 30 && {text: run.map((frame) => frame.text).join(""), n: run.length})});
        inFlight.push(at);
        if (at === log.length) return;
      }
      peer.cut();
    }]});
    for (let seed = 0; seed < 40; seed++) {
      window = 1 + (seed % 4);
      plan = Array.from({length: seed % 7}, (_, i) => [(seed * 7 + i * 5) % 11, 1 + ((seed + i) % 4)]);
      const job = client(t, worker.url, {window}).run("Count", {job_id: ID});
      let read = 0;
      for await (const _ of job) for (let i = (seed + read++) % 3; i > 0; i--) await turn();
      assert.equal(await job.text(), log.slice(0, 30).map((frame) => frame.text).join(""));
    }
  });

  test("nothing is acknowledged that nobody took", async (t) => {
    const [heard, hear] = deferred();
    const worker = await scripted(t, {sockets: [async (peer) => {
      assert.equal((await peer.accept()).window, 2);
      peer.send(token(1, "a"), token(2, "b", {index: 1}));
      assert.equal((await peer.accept()).window, undefined); // what comes next from the client is this, and no ack
      peer.send({...end(1), job_id: OTHER});
      assert.deepEqual(await peer.receive("ack"), {type: "ack", job_id: ID, cursor: "e-1"});
      hear();
      peer.send(end(3));
    }]});
    const jw = client(t, worker.url, {window: 2});
    const job = await jw.create("Hi", {job_id: ID});
    await jw.run("Hi", {job_id: OTHER, window: 0}).text();
    await firstOf(job);
    await heard;
    assert.deepEqual(await job.texts(), ["a", "b"]);
  });

  for (const [offered, sent] of [[0, undefined], [3, 3], [99, 5]]) {
    test(`a window of 5 is ${sent} where the worker offers ${offered}`, async (t) => {
      const worker = await scripted(t, {hello: {limits: {max_window: offered}}, sockets: [async (peer) => {
        assert.equal((await peer.accept("subscribe")).window, sent);
        peer.send(token(1, "a"), end(2));
      }]});
      assert.equal(await client(t, worker.url).subscribe(ID, {window: 5}).text(), "a");
    });
  }

  test("frames for paint: one is read, and one more asked for, at each paint", async (t) => {
    const paints = [];
    globalThis.requestAnimationFrame = (callback) => paints.push(callback);
    t.after(() => delete globalThis.requestAnimationFrame);
    const painted = async () => {
      while (!paints.length) await turn();
      paints.shift()();
    };
    let acks = 0;
    const worker = await scripted(t, {sockets: [async (peer) => {
      assert.equal((await peer.accept()).window, 1);
      for (let n = 1; n <= 3; n++) {
        peer.send(token(n, `${n}`));
        await peer.receive("ack");
        acks++;
      }
      peer.send(end(4));
    }]});
    const text = client(t, worker.url).run("Hi", {job_id: ID, frames: "paint"}).text();
    for (let n = 0; n < 4; n++) {
      while (!paints.length) await turn();
      assert.equal(acks, n); // the worker heard of those read so far, and of no other before the paint
      await painted();
    }
    assert.equal(await text, "123");
  });

  test("a page that is not seen is read by the clock, and no paints pile up", async (t) => {
    const waiting = new Set();
    Object.assign(globalThis, {
      requestAnimationFrame: (callback) => waiting.add(callback).size,
      cancelAnimationFrame: () => waiting.clear(),
    });
    t.after(() => {
      delete globalThis.requestAnimationFrame;
      delete globalThis.cancelAnimationFrame;
    });
    const worker = await scripted(t, {requests: [created, streams(token(1, "a"), end(2))]});
    assert.equal(await client(t, worker.url, {...OVER_SSE, frames: "paint"}).run("Hi", {job_id: ID}).text(), "a");
    assert.equal(waiting.size, 0);
  });

  test("where nothing is painted, paint goes by the clock; over SSE too", async (t) => {
    const worker = await scripted(t, {requests: [created, streams(token(1, "a"), token(2, "b"), end(3))]});
    const jw = client(t, worker.url, {...OVER_SSE, frames: "paint"});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "ab");
    assert.equal(worker.requests[0].body.window, undefined);
    assert.throws(() => connect(worker.url, {frames: "film"}), /film/);
  });
});
