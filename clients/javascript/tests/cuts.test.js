/** Cuts: jobs resume after their cursor, and no text is lost or doubled. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {
  ID, OTHER, client, cutAfter, deferred, end, eventsOf, firstOf, goOnAfterA, serves, settle, stopClock,
  token, turn,
} from "./steps.js";

suite("Cuts", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  for (const half of ["", "\x81", "\x81\x7e\x01", '\x81\x7e\x01\x00{"type":"token","tex']) {
    test(`a cut after ${half.length} bytes of a frame is resumed with the same request`, async (t) => {
      const requests = [];
      const worker = await scripted(t, {sockets: [
        async (peer) => {
          requests.push(await peer.accept());
          peer.send(token(1, "one "), token(2, "two "));
          peer.cut(Buffer.from(half, "latin1"));
        },
        async (peer) => {
          requests.push(await peer.accept("create", {replayed: true}));
          peer.send(token(3, "three"), end(4));
        },
      ]});
      assert.equal(await client(t, worker.url).run("Count", {job_id: ID, seed: 1}).text(), "one two three");
      assert.deepEqual(requests[1], {...requests[0], after: "e-2"});
    });
  }

  test("text is exact wherever the connection is cut and however tokens are merged", async (t) => {
    const log = Array.from({length: 30}, (_, i) => token(i + 1, `${i + 1} `)).concat(end(31));
    let plan;
    const serve = async (peer) => {
      const request = await peer.accept();
      let at = Number((request.after ?? "e-0").slice(2));
      const [count, merge] = plan.shift() ?? [log.length, 1];
      for (let i = 0; i < count && at < log.length; i++) {
        const run = log.slice(at, Math.max(at + 1, Math.min(at + merge, 30)));
        peer.send({...run.at(-1), ...(run[0].text && {text: run.map((frame) => frame.text).join(""), n: run.length})});
        at += run.length;
      }
      if (at < log.length) peer.cut();
    };
    const worker = await scripted(t, {sockets: [serve]});
    for (let seed = 0; seed < 40; seed++) {
      plan = Array.from({length: seed % 7}, (_, i) => [(seed * 7 + i * 5) % 11, 1 + ((seed + i) % 4)]);
      const events = await eventsOf(client(t, worker.url).run("Count", {job_id: ID}));
      const texts = events.filter((event) => event.type === "token");
      assert.equal(texts.map((event) => event.text).join(""), log.slice(0, 30).map((frame) => frame.text).join(""));
      assert.equal(texts.reduce((sum, event) => sum + (event.n ?? 1), 0), 30);
    }
  });

  test("reconnect drops the socket, and onframe sees both sides", async (t) => {
    const worker = await scripted(t, {sockets: [
      serves(token(1, "a")),
      goOnAfterA,
    ]});
    const seen = [];
    const onframe = (frame, direction) => seen.push(`${direction} ${frame.type} ${frame.cursor ?? frame.after ?? ""}`);
    const jw = client(t, worker.url, {onframe});
    jw.reconnect(); // there is nothing to drop yet
    const job = jw.run("Hi", {job_id: ID});
    await firstOf(job);
    jw.reconnect();
    assert.equal(await job.text(), "ab");
    assert.deepEqual(seen, [
      "in hello ", "out create ", "in accepted ", "in token e-1",
      "in hello ", "out create e-1", "in accepted ", "in token e-2", "in end e-3",
    ]);
  });

  test("reset starts the text over", async (t) => {
    const worker = await scripted(t, {sockets: [
      cutAfter(token(1, "lost ")),
      async (peer) => {
        assert.equal((await peer.accept("create", {reset: true})).after, "e-1");
        peer.send({...token(1, "anew"), cursor: "f-1"});
        peer.cut();
      },
      async (peer) => {
        assert.equal((await peer.accept()).after, "f-1");
        peer.send({...end(2), cursor: "f-2"});
      },
    ]});
    const job = client(t, worker.url).run("Hi", {job_id: ID});
    const types = (await eventsOf(job)).map((event) => event.type);
    assert.deepEqual(types.filter((type) => type !== "token"), ["reset", "end"]);
    assert.equal(await job.text(), "anew");
  });

  test("what was unread before a reset is never read", async (t) => {
    const worker = await scripted(t, {sockets: [
      cutAfter(token(1, "lost ")),
      async (peer) => {
        await peer.accept("create", {reset: true});
        peer.send({...token(1, "anew"), cursor: "f-1"}, {...end(2), cursor: "f-2"});
        await peer.accept("subscribe");
      },
    ]});
    const jw = client(t, worker.url);
    const job = jw.run("Hi", {job_id: ID});
    while (!job.accepted?.reset) await turn(); // before anything is read
    await jw.subscribe(OTHER).waitAccepted();
    assert.deepEqual((await eventsOf(job)).map((event) => event.type), ["reset", "token", "end"]);
    assert.equal(await job.text(), "anew");
  });

  for (const closeCode of [1001, 1009, 1011, 1012, 4503, 4504, 4000]) {
    test(`close code ${closeCode} reconnects`, async (t) => {
      const worker = await scripted(t, {sockets: [
        async (peer) => {
          await peer.accept();
          peer.send(token(1, "a"));
          peer.close(closeCode);
        },
        goOnAfterA,
      ]});
      assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "ab");
    });
  }

  test("a worker that speaks no JSON is a cut", async (t) => {
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.sendText("[not an object]");
      },
      serves(end(1)),
    ]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "");
  });

  test("two silent heartbeats are a cut", async (t) => {
    const worker = await scripted(t, {hello: {limits: {heartbeat_s: 0.05}}, sockets: [
      serves(token(1, "a")),
      async (peer) => {
        assert.equal((await peer.accept()).after, "e-1");
        peer.send({type: "pong"}, end(2));
      },
    ]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "a");
    assert.equal(worker.peers.length, 2);
  });

  test("signs of life hold the connection", async (t) => {
    const wait = stopClock(t);
    const worker = await scripted(t, {hello: {limits: {heartbeat_s: 15}}, sockets: [async (peer) => {
      await peer.accept();
      for (let i = 0; i < 4; i++) {
        peer.send({type: "pong"});
        await settle(); // the client receives it
        wait(20_000);
      }
      peer.send(end(1));
    }]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "");
    assert.equal(worker.peers.length, 1);
  });

  test("an outage is bounded in time", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      await peer.closed;
    }]});
    const jw = client(t, worker.url, {retryTimeoutMs: 300, backoffMs: [10, 50]});
    const job = await jw.create("Hi");
    worker.stop();
    await assert.rejects(job.text(), {name: "ConnectionFailed", code: "connection_failed"});
  });

  test("no reconnect while nothing is wanted, and no pause when it is", async (t) => {
    const wait = stopClock(t);
    const pauseMs = 10_000;
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send(end(1));
        await cut;
        peer.cut();
      },
      serves(token(1, "a"), end(2)),
    ]});
    const [cut, doCut] = deferred();
    const jw = client(t, worker.url, {backoffMs: [pauseMs, pauseMs]});
    await jw.run("Hi", {job_id: ID}).text();
    doCut();
    await worker.peers[0].closed;
    await settle(); // the client sees the cut, and the pause begins
    wait(pauseMs);
    await settle();
    assert.equal(worker.peers.length, 1);
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });
});
