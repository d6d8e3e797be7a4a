/** Cancel, abort and update: requests about a job that runs or waits. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {JobCancelled} from "../jobwire.js";
import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {HELLO, ID, OTHER, client, deferred, end, eventsOf, token, turn} from "./steps.js";

suite("Cancel", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("cancel before accepted", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      const create = await peer.receive("create");
      const cancel = await peer.receive("cancel");
      peer.send({type: "accepted", job_id: ID, ref: create.ref, state: "queued"});
      peer.send({type: "accepted", job_id: ID, ref: cancel.ref, state: "queued"}, end(1, "cancelled"));
    }]});
    const job = client(t, worker.url).run("Hi", {job_id: ID});
    await job.cancel();
    assert.deepEqual((await eventsOf(job)).map((event) => event.status), ["cancelled"]);
    await job.cancel(); // again is success, without a frame
  });

  test("a cancel survives a cut", async (t) => {
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send(token(1, "a"));
        await peer.receive("cancel");
        peer.cut();
      },
      async (peer) => {
        assert.equal((await peer.accept()).after, "e-1");
        await peer.accept("cancel");
        peer.send(end(2, "cancelled"));
      },
    ]});
    const job = client(t, worker.url).run("Hi", {job_id: ID});
    for await (const event of job) {
      assert.equal(event.text, "a");
      break;
    }
    await job.cancel();
    await assert.rejects(job.text(), (error) => error instanceof JobCancelled && error.text === "a");
  });

  test("a cancel while there is no connection waits for one", async (t) => {
    const [said, say] = deferred();
    const worker = await scripted(t, {greets: false, sockets: [
      async (peer) => {
        peer.send(HELLO);
        await peer.accept();
        peer.send(token(1, "a"));
        peer.cut();
      },
      async (peer) => {
        await said;
        peer.send(HELLO);
        assert.equal((await peer.accept()).after, "e-1");
        await peer.accept("cancel");
        peer.send(end(2, "cancelled"));
      },
    ]});
    const job = client(t, worker.url).run("Hi", {job_id: ID});
    while (worker.peers.length < 2) await turn();
    const cancelling = job.cancel();
    say();
    await cancelling;
    await assert.rejects(job.text(), {name: "JobCancelled"});
  });

  test("a closed job can be cancelled", async (t) => {
    const [left, leave] = deferred();
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      await peer.receive("unsubscribe");
      leave();
      assert.equal((await peer.accept("cancel")).job_id, ID);
    }]});
    const jw = client(t, worker.url);
    const job = await jw.create("Hi", {job_id: ID});
    job.close();
    await left;
    await job.cancel();
    jw.close();
    job.close(); // too late, and harmless
  });

  test("an abort cancels the job and rejects with its reason", async (t) => {
    const controller = new AbortController();
    const [heard, hear] = deferred();
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      peer.send(token(1, "a"));
      await peer.accept("cancel");
      await peer.receive("unsubscribe");
      hear();
    }]});
    const jw = client(t, worker.url);
    const job = jw.run("Hi", {job_id: ID, signal: controller.signal});
    await assert.rejects(async () => {
      for await (const event of job) {
        assert.equal(event.text, "a");
        controller.abort();
      }
    }, {name: "AbortError"});
    await assert.rejects(job.text(), {name: "AbortError"});
    assert.throws(() => jw.run("Hi", {signal: controller.signal}), {name: "AbortError"});
    await heard;
  });

  test("an abort after close cancels nothing", async (t) => {
    const controller = new AbortController();
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      await peer.receive("unsubscribe");
      await peer.accept("subscribe"); // and no cancel
      peer.send({...end(1), job_id: OTHER});
    }]});
    const jw = client(t, worker.url);
    const job = await jw.create("Hi", {job_id: ID, signal: controller.signal});
    job.close();
    controller.abort();
    assert.equal((await eventsOf(jw.subscribe(OTHER))).length, 1);
  });

  test("who does not wait for a cancel need not hear that it failed", async (t) => {
    const unheard = t.mock.fn();
    process.on("unhandledRejection", unheard);
    t.after(() => process.off("unhandledRejection", unheard));
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      await peer.closed;
    }]});
    const jw = client(t, worker.url);
    const job = await jw.create("Hi");
    job.cancel();
    job.update({priority: 9});
    jw.close();
    await turn();
    await turn();
    assert.equal(unheard.mock.callCount(), 0);
  });

  test("update changes the priority and tells the place", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept("create", {state: "queued", queue: {position: 9}});
      const {job_id, priority} = await peer.accept("update", {state: "queued", queue: {position: 1}});
      assert.deepEqual([job_id, priority], [ID, 9]);
      peer.refuse(await peer.receive("update"), "invalid_params", 422);
      peer.send(token(1, "a"), end(2));
    }]});
    const job = client(t, worker.url).run("Hi", {job_id: ID, priority: 1});
    assert.equal((await job.update({priority: 9})).queue.position, 1);
    await assert.rejects(job.update({priority: 10}), {code: "invalid_params"});
    assert.equal(await job.text(), "a"); // a refused update is no failure of the job
    await job.update({priority: 0}); // after the end there is nothing to ask
  });

  test("an update survives a cut", async (t) => {
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        await peer.receive("update");
        peer.cut();
      },
      async (peer) => {
        await peer.accept();
        assert.equal((await peer.accept("update")).priority, 7);
        peer.send(end(1));
      },
    ]});
    const job = client(t, worker.url).run("Hi", {job_id: ID});
    await job.update({priority: 7});
    assert.equal(await job.text(), "");
  });
});
