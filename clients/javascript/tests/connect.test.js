/** Connecting and closing a client: addresses, the hello, what carries the jobs, and closing. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {ConnectionFailed, connect} from "../jobwire.js";
import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {
  HELLO, ID, OVER_SSE, client, created, deferred, end, firstOf, opens, serves, settle, silent, stopClock,
  streams, token, turn,
} from "./steps.js";

suite("Connect", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("wrong ones are refused", () => {
    assert.throws(() => connect("ftp://worker"), /Expected a URL/);
    assert.throws(() => connect("no url"), TypeError);
    assert.throws(() => connect("http://x", {transport: "pigeon"}), /pigeon/);
    assert.throws(() => connect("http://x", {transport: "websocket", WebSocket: undefined}), /no WebSocket/);
  });

  test("all forms of the URL reach the same socket", async (t) => {
    const worker = await scripted(t, {sockets: [silent]});
    const ws = worker.url.replace("http", "ws");
    for (const url of [worker.url, `${worker.url}/`, ws, `${ws}/v1/ws`]) await connectOnce(t, url);
    assert.deepEqual(worker.upgrades.map((request) => request.url), Array(4).fill("/v1/ws"));

    async function connectOnce(t, url) {
      const before = worker.peers.length;
      const jw = client(t, url);
      const job = jw.run("Hi");
      job.text().catch(() => {});
      while (worker.peers.length === before) await turn();
      jw.close();
    }
  });

  for (const first of [{type: "error", error: {code: "bad_frame"}}, {}]) {
    test(`who says ${JSON.stringify(first)} and not hello is no worker`, async (t) => {
      const worker = await scripted(t, {greets: false, sockets: [(peer) => peer.send(first)]});
      const jw = client(t, worker.url, {retryTimeoutMs: 50, transport: "websocket"});
      await assert.rejects(jw.run("Hi").text(), {code: "connection_failed", message: /hello/});
    });
  }

  test("a proxy that lets no WebSocket through is answered with SSE", async (t) => {
    const ok = ({response}) => response.end("Jobwire");
    const requests = [ok, created, streams(token(1, "a"), end(2))];
    const worker = await scripted(t, {refuseSockets: Infinity, requests});
    const jw = client(t, worker.url);
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
    assert.equal(jw.transport, "sse");
    assert.equal(worker.upgrades.length, 1);
  });

  test("without a WebSocket constructor it is SSE", async (t) => {
    const worker = await scripted(t, {requests: [created, streams(end(1))]});
    const jw = client(t, worker.url, {WebSocket: undefined});
    assert.equal(jw.transport, "sse");
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "");
  });

  test("a WebSocket that may not be made is no hang: it is SSE", async (t) => {
    class Forbidden {
      constructor() {
        throw new Error("An insecure WebSocket may not be made from a page of https");
      }
    }
    const ok = ({response}) => response.end("Jobwire");
    const worker = await scripted(t, {requests: [ok, created, streams(token(1, "a"), end(2))]});
    assert.equal(await client(t, worker.url, {WebSocket: Forbidden}).run("Hi", {job_id: ID}).text(), "a");
    const jw = client(t, worker.url, {WebSocket: Forbidden, transport: "websocket", retryTimeoutMs: 50});
    await assert.rejects(jw.run("Hi").text(), {code: "connection_failed", message: /insecure/});
  });

  test("a worker that is away is not taken for such a proxy", async (t) => {
    const badGateway = ({response}) => response.writeHead(502).end();
    const worker = await scripted(t, {refuseSockets: Infinity, requests: Array(1000).fill(badGateway)});
    const jw = client(t, worker.url, {retryTimeoutMs: 200, backoffMs: [5, 20]});
    await assert.rejects(jw.run("Hi").text(), {code: "connection_failed"});
    assert.equal(jw.transport, "websocket");
  });

  test("a worker that was away for a moment is not taken for a proxy without WebSockets", async (t) => {
    const wait = stopClock(t);
    let isBack = false;
    const root = ({response}) => response.writeHead(isBack ? 200 : 502).end();
    const worker = await scripted(t, {refuseSockets: 1, requests: [root, root], sockets: [serves(end(1))]});
    const jw = client(t, worker.url, {backoffMs: [300, 300]});
    const job = jw.run("Hi", {job_id: ID});
    while (!worker.upgrades.length) await turn();
    await settle(); // the client looks for the worker, and the pause begins
    isBack = true;
    wait(300);
    assert.equal(await job.text(), "");
    assert.equal(jw.transport, "websocket");
  });

  test("a connection that the program drops before it stands is not taken for a proxy either", async (t) => {
    const [greeted, greet] = deferred();
    const root = ({response}) => response.end("Jobwire");
    const worker = await scripted(t, {greets: false, requests: [root], sockets: [silent, async (peer) => {
      peer.send(HELLO);
      await peer.accept();
      peer.send(end(1));
      greet();
    }]});
    const jw = client(t, worker.url);
    const job = jw.run("Hi", {job_id: ID});
    while (!worker.peers.length) await turn();
    jw.reconnect();
    await greeted;
    assert.deepEqual([await job.text(), jw.transport], ["", "websocket"]);
  });

  test("closing the client ends every wait", async (t) => {
    const worker = await scripted(t, {sockets: [async (peer) => {
      await peer.accept();
      await peer.closed;
    }]});
    const jw = client(t, worker.url);
    const job = await jw.create("Hi");
    const reading = job.text();
    const cancelling = job.cancel();
    jw.close();
    await assert.rejects(reading, {code: "closed"});
    await assert.rejects(cancelling, {code: "closed"});
    job.close(); // too late, and harmless
    assert.throws(() => jw.run("Hi"), ConnectionFailed);
    await worker.peers[0].closed;
    assert.equal(worker.peers.length, 1);
  });

  test("closing the client ends every wait", async (t) => {
    const worker = await scripted(t, {requests: [created, opens(token(1, "a"))]});
    const jw = client(t, worker.url, OVER_SSE);
    const job = jw.run("Hi", {job_id: ID});
    await firstOf(job);
    const reading = job.text();
    jw.close();
    await assert.rejects(reading, {code: "closed"});
    assert.throws(() => jw.run("Hi"), ConnectionFailed);
  });

  test("a client that is closed says so to whoever comes late", async (t) => {
    const worker = await scripted(t, {sockets: [(peer) => peer.closed]});
    const jw = client(t, worker.url);
    jw.close();
    assert.throws(() => jw.run("Hi"), ConnectionFailed);
    await settle();
    assert.equal(worker.upgrades.length, 0);
  });
});
