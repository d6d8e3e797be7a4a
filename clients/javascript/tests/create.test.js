/** A job from its request to its end: create, subscribe, events and texts. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {ID, OTHER, OVER_SSE, client, created, deferred, end, eventsOf, serves, streams, token, turn} from "./steps.js";

suite("Create", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("one job from create to end", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      const request = await peer.accept();
      assert.deepEqual(request, {type: "create", job_id: ID, prompt: "Hi", max_tokens: 5, ref: "1"});
      peer.send({type: "narration", job_id: ID, cursor: "e-1", action: "queued", human: "First."});
      peer.send(token(2, "Hel"), token(4, "lo", {n: 2}), end(5, "completed", {finish_reason: "stop"}));
      await peer.closed;
      assert.equal(peer.closeCode, 1000);
    }]});
    const jw = client(t, worker.url, {token: "key ü"});
    const job = await jw.create("Hi", {job_id: ID, max_tokens: 5});
    assert.equal(job.accepted.state, "running");
    const events = await eventsOf(job);
    assert.equal(events[0].human, "First.");
    assert.equal(events.at(-1).finish_reason, "stop");
    assert.equal(await job.text(), "Hello");
    assert.deepEqual([job.cursor, job.end], ["e-5", events.at(-1)]);
    assert.equal(jw.transport, "websocket");
    const offered = worker.upgrades[0].headers["sec-websocket-protocol"].split(/, ?/);
    assert.deepEqual(offered, ["jobwire.v1", `bearer.${Buffer.from("key ü").toString("base64url")}`]);
    jw.close();
    await worker.peers[0].closed;
  });

  test("messages go as messages and the id is made up", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      const request = await peer.accept();
      assert.deepEqual(request.messages, [{role: "user", content: "Hi"}]);
      assert.match(request.job_id, /^[A-Za-z0-9_-]{16,64}$/);
      peer.send({...end(1), job_id: request.job_id});
    }]});
    assert.equal(await client(t, worker.url).run([{role: "user", content: "Hi"}]).text(), "");
  });

  test("jobs share a connection and keep apart", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      const ids = [];
      for (let i = 0; i < 20; i++) ids.push((await peer.accept()).job_id);
      for (let n = 1; n <= 10; n++) for (const id of ids) peer.send({...token(n, `${id.slice(-2)}:${n} `), job_id: id});
      for (const id of ids) peer.send({...end(11), job_id: id});
    }]});
    const jw = client(t, worker.url);
    const jobs = Array.from({length: 20}, (_, i) => jw.run("Count", {job_id: `0123456789abcdef-${10 + i}`}));
    assert.throws(() => jw.run("Count", {job_id: jobs[0].id}), /watches job/);
    const texts = await Promise.all(jobs.map((job) => job.text()));
    assert.deepEqual(texts, jobs.map((_, i) => Array.from({length: 10}, (_, n) => `${10 + i}:${n + 1} `).join("")));
    assert.equal(worker.peers.length, 1);
  });

  for (const frames of ["all", "paint"]) {
    test(`many may wait for one job, with ${frames} frames`, async (t) => {
      const [readersWait, go] = deferred();
      const worker = await scripted(t, {sockets: [async (peer) => {
        await peer.accept();
        await readersWait;
        for (let n = 1; n <= 8; n++) {
          peer.send(token(n, `${n} `, {index: n % 2}));
          await turn();
        }
        peer.send(end(9));
      }]});
      const job = await client(t, worker.url, {frames}).create("Count", {job_id: ID});
      const whole = Promise.all([job.text(1), job.text(1), job.text(1)]);
      const iterating = Promise.all([eventsOf(job), eventsOf(job), eventsOf(job)]);
      go();
      assert.deepEqual(await whole, Array(3).fill("1 3 5 7 "));
      const read = (await iterating).flat().map((event) => event.cursor);
      assert.equal(read.length, new Set(read).size);
      assert.equal(await job.text(), "2 4 6 8 ");
    });
  }

  test("subscribe goes on from a cursor, or has nothing to say", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      const request = await peer.accept("subscribe");
      assert.deepEqual([request.job_id, request.after, request.channels], [ID, "e-3", ["token"]]);
      peer.send(token(4, "d"), end(5));
      await peer.accept("subscribe", {state: "ended", over: true});
      peer.refuse(await peer.receive("subscribe"), "job_not_found", 404);
    }]});
    const jw = client(t, worker.url);
    assert.equal(await jw.subscribe(ID, {after: "e-3", channels: ["token"]}).text(), "d");
    assert.deepEqual(await eventsOf(jw.subscribe(ID, {after: "e-5"})), []);
    await assert.rejects(jw.subscribe("no-such-job-anywhere").text(), {code: "job_not_found"});
  });

  test("choices have their own texts", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      assert.equal((await peer.accept()).n, 3);
      peer.send(token(1, "a"), token(2, "x", {index: 1}), token(3, "b"), token(4, "hm", {kind: "reasoning"}), end(5));
    }]});
    assert.deepEqual(await client(t, worker.url).run("Hi", {job_id: ID, n: 3}).texts(), ["ab", "x", ""]);
  });

  test("unknown types and fields are ignored", async (t) => {
    t.mock.method(console, "warn", () => {});
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept("create", {novelty: 1});
      peer.send({type: "weather", job_id: ID}, {no: "type"}, token(1, "a", {mood: "fine"}));
      peer.send({type: "error", error: {code: "bad_frame"}}, {...token(9, "not mine"), job_id: OTHER}, end(2));
    }]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "a");
    assert.equal(console.warn.mock.callCount(), 1);
  });

  test("what a newer worker says is ignored", async (t) => {
    const hello = {protocol: "jobwire.v1.7", features: ["telepathy"], limits: {max_thoughts: 9}};
    const worker = await scripted(t, {hello, sockets: [async (peer) => {
      peer.send({type: "news", job_id: ID, ref: "1"}, {type: "pong", t: 5});
      await peer.accept("create", {features: {a: [1]}});
      peer.send({type: "accepted", job_id: ID, ref: "77"}, {type: "audio", job_id: ID, cursor: "e-1"});
      peer.send(token(2, "a", {voice: {name: "b"}}), {type: "end2", job_id: OTHER});
      peer.send(end(3, "completed", {mood: "fine"}));
    }]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "a");
  });

  test("an onframe that throws loses no text", async (t) => {
    t.mock.method(console, "error", () => {});
    const onframe = () => {
      throw new Error("a bug in an inspector");
    };
    const worker = await scripted(t, {
      requests: [created, streams(token(1, "a"), end(2))],
      sockets: [serves(token(1, "a"), token(2, "b"), end(3))],
    });
    assert.equal(await client(t, worker.url, {onframe}).run("Hi", {job_id: ID}).text(), "ab");
    assert.equal(await client(t, worker.url, {onframe, ...OVER_SSE}).run("Hi", {job_id: ID}).text(), "a");
    assert(console.error.mock.callCount() > 6);
  });
});
