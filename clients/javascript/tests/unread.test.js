/** Jobs that are not read, for now or for good: merging, unsubscribing, closing. */
import assert from "node:assert/strict";
import {once} from "node:events";
import {suite, test} from "node:test";

import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {ID, OTHER, OVER_SSE, client, created, deferred, end, eventsOf, settle, sse, token, turn} from "./steps.js";

suite("Unread", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("tokens that wait are read as one", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      peer.send(...[1, 2, 3, 4, 5].map((n) => token(n, `${n} `, {ids: [n]})), token(6, "other", {index: 1}), end(7));
      await peer.accept();
    }]});
    const jw = client(t, worker.url);
    const job = jw.run("Count", {job_id: ID});
    await jw.create("Hi", {job_id: OTHER}); // accepted after all events of the first are here
    const [merged, other, last] = await eventsOf(job);
    assert.deepEqual(merged, token(5, "1 2 3 4 5 ", {n: 5, ids: [1, 2, 3, 4, 5]}));
    assert.deepEqual([other.text, other.index, last.type], ["other", 1, "end"]);
    assert.equal(await job.text(1), "other");
  });

  test("an unread job is put down and taken up again", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      await peer.accept();
      let sent = 0, down = false;
      const putDown = peer.receive("unsubscribe").then(() => (down = true));
      while (!down) {
        peer.send(token(++sent, `${sent} `));
        await turn();
      }
      await putDown;
      for (let n = 1; n <= 3; n++) peer.send(token(sent + n, `${sent + n} `)); // on their way when it was put down
      for (let n = 1; n < 30; n++) peer.send({...token(n, `${n} `), job_id: OTHER});
      peer.send({...end(30), job_id: OTHER});
      const request = await peer.receive("create");
      const after = Number(request.after.slice(2));
      assert(after > 0 && after <= sent, request.after);
      peer.send(token(sent + 3, `${sent + 3} `)); // still from before
      peer.send({type: "accepted", job_id: ID, ref: request.ref, state: "running"});
      for (let n = after + 1; n <= sent + 10; n++) peer.send(token(n, `${n} `));
      peer.send(end(sent + 11));
    }]});
    const jw = client(t, worker.url, {unreadBytesMax: 10_000});
    const unread = jw.run("Count", {job_id: ID});
    assert.match(await jw.run("Count", {job_id: OTHER}).text(), /^1 2 .* 29 $/);
    const numbers = (await unread.text()).trim().split(" ").map(Number);
    assert.deepEqual(numbers, numbers.map((_, i) => i + 1));
    assert(numbers.length > 20);
  });

  test("close unsubscribes and frees the id", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      assert.equal((await peer.receive("unsubscribe")).job_id, ID);
      assert.equal((await peer.accept("subscribe")).after, undefined);
      peer.send(token(1, "a"), end(2));
    }]});
    const jw = client(t, worker.url);
    const job = await jw.create("Hi", {job_id: ID});
    job.close();
    assert.deepEqual(await eventsOf(job), []);
    assert.equal(await jw.subscribe(ID).text(), "a");
  });

  test("a job closed at once runs all the same", async (t) => {
    const [heard, hear] = deferred();
    const worker = await scripted(t, {sockets: [async (peer) => {
      assert((await peer.accept()).detach);
      assert.equal((await peer.receive("unsubscribe")).job_id, ID);
      hear();
    }]});
    client(t, worker.url).run("Hi", {job_id: ID, detach: true}).close();
    await heard;
  });

  test("a job that nobody reads is not read on", async (t) => {
    const total = 20_000;
    let written = 0;
    const worker = await scripted(t, {requests: [created, async ({response}) => {
      response.writeHead(200);
      while (written < total) {
        const frame = sse(token(++written, `${written} `, {padding: "x".repeat(1000)}));
        if (!response.write(frame)) await once(response, "drain");
      }
      response.end(sse(end(total + 1)));
    }]});
    const job = await client(t, worker.url, {...OVER_SSE, unreadBytesMax: 100_000}).create("Count", {job_id: ID});
    while (!written) await turn();
    for (let before = 0; before !== written;) { // until the writer is stuck
      before = written;
      await settle();
    }
    assert(written < total, "everything was read though nobody asked");
    const numbers = (await job.text()).trim().split(" ").map(Number);
    assert.equal(numbers.length, total);
    assert.deepEqual(numbers.slice(-2), [total - 1, total]);
  });
});
