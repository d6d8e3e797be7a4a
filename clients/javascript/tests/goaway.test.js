/** A worker that goes away: old jobs finish where they are, new ones go elsewhere. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {GOAWAY, ID, OTHER, client, deferred, end, firstOf, goOnAfterA, serves, token, turn} from "./steps.js";

suite("Goaway", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("after goaway old jobs finish and new ones go to a new connection", async (t) => {
    const [mayFinish, finish] = deferred();
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send(token(1, "a"), GOAWAY);
        await mayFinish;
        await peer.accept("cancel"); // what is asked about an old job stays with it
        peer.send(token(2, "b"), end(3, "cancelled"));
      },
      async (peer) => {
        assert.equal((await peer.accept()).job_id, OTHER);
        peer.send({...token(1, "new"), job_id: OTHER}, {...end(2), job_id: OTHER});
      },
    ]});
    const jw = client(t, worker.url);
    const old = jw.run("Hi", {job_id: ID});
    await firstOf(old);
    while (!worker.peers.length) await turn();
    assert.equal(await jw.run("Hi", {job_id: OTHER}).text(), "new");
    finish();
    await old.cancel();
    await assert.rejects(old.text(), {name: "JobCancelled", text: "ab"});
    await worker.peers[0].closed;
    assert.deepEqual([worker.peers.length, worker.peers[0].closeCode], [2, 1000]);
  });

  test("an old connection that ends hands its jobs over", async (t) => {
    const [secondIsUp, hear] = deferred();
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send(token(1, "a"), GOAWAY);
        await secondIsUp;
        peer.close(1012, "restart");
      },
      async (peer) => {
        await peer.accept();
        hear();
        const resumed = await peer.accept();
        assert.deepEqual([resumed.job_id, resumed.after], [ID, "e-1"]);
        peer.send(token(2, "b"), end(3), {...end(1), job_id: OTHER});
      },
    ]});
    const jw = client(t, worker.url);
    const old = jw.run("Hi", {job_id: ID});
    await firstOf(old);
    await turn();
    assert.deepEqual(await Promise.all([old.text(), jw.run("Hi", {job_id: OTHER}).text()]), ["ab", ""]);
    assert.equal(worker.peers.length, 2);
  });

  test("after goaway no close code is final", async (t) => {
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send(token(1, "a"), GOAWAY);
        peer.close(1000);
      },
      goOnAfterA,
    ]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "ab");
  });

  test("goaway is the least to wait", async (t) => {
    let cutAt, waitedMs;
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send({...GOAWAY, retry_ms: 150});
        cutAt = performance.now();
        peer.cut();
      },
      async (peer) => {
        waitedMs = performance.now() - cutAt;
        await peer.accept();
        peer.send(end(1));
      },
    ]});
    assert.equal(await client(t, worker.url).run("Hi", {job_id: ID}).text(), "");
    assert(waitedMs >= 145, `${waitedMs} ms`);
  });

  test("without jobs a goaway closes, and the next job opens another", async (t) => {
    const worker = await scripted(t, {sockets: [
      serves(end(1), GOAWAY),
      serves(token(1, "a"), end(2)),
    ]});
    const jw = client(t, worker.url);
    await jw.run("Hi", {job_id: ID}).text();
    await worker.peers[0].closed;
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });
});
