/** Keys: fixed ones, functions for them, refused and expired ones. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {NO_WEBSOCKET, scripted} from "./scripted.js";
import {HELLO, ID, OVER_SSE, client, created, end, goOnAfterA, streams, token, turn} from "./steps.js";

/** A function for keys that counts: key-1, key-2 and so on. */
function keys({failAt = 0} = {}) {
  const next = async () => {
    if (++next.asked === failAt) throw new Error("the shop is closed");
    return `key-${next.asked}`;
  };
  next.asked = 0;
  return next;
}

/** The key in a WebSocket handshake. */
function keyOf({headers}) {
  const offered = headers["sec-websocket-protocol"].split(/, ?/).at(-1);
  return Buffer.from(offered.replace("bearer.", ""), "base64url").toString();
}

suite("Keys", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("another key is sent before the first expires", async (t) => {
    const worker = await scripted(t, {hello: {expires_in: 0.05}, sockets: [async (peer) => {
      await peer.accept();
      assert.equal((await peer.receive("auth")).token, "key-2");
      assert.equal((await peer.receive("auth")).token, "key-3");
      peer.send(token(1, "a"), end(2));
    }]});
    assert.equal(await client(t, worker.url, {token: keys()}).run("Hi", {job_id: ID}).text(), "a");
    assert.deepEqual([worker.peers.length, keyOf(worker.upgrades[0])], [1, "key-1"]);
  });

  test("a function that fails for now is asked again", async (t) => {
    t.mock.method(console, "warn", () => {});
    const worker = await scripted(t, {hello: {expires_in: 0.05}, sockets: [async (peer) => {
      await peer.accept();
      assert.equal((await peer.receive("auth")).token, "key-4");
      peer.send(end(1));
    }]});
    const token = keys({failAt: 3});
    const failing = async () => {
      if (token.asked === 1) return token().then(() => Promise.reject(new Error("closed")));
      return token();
    };
    assert.equal(await client(t, worker.url, {token: failing}).run("Hi", {job_id: ID}).text(), "");
    assert.equal(console.warn.mock.callCount(), 2);
  });

  test("a function that fails at first is tried again until the outage is too long", async (t) => {
    const jw = client(t, "http://127.0.0.1:1", {retryTimeoutMs: 50, token: () => Promise.reject(new Error("no shop"))});
    await assert.rejects(jw.run("Hi").text(), {code: "connection_failed", message: /no shop/});
  });

  test("a key that never comes is an outage, not a hang", async (t) => {
    t.mock.timers.enable({apis: ["setTimeout"]});
    const jw = client(t, "http://127.0.0.1:1", {token: () => new Promise(() => {}), retryTimeoutMs: 0});
    const text = jw.run("Hi").text();
    text.catch(() => {});
    for (let i = 0; i < 5; i++) await turn();
    t.mock.timers.tick(10_000);
    await assert.rejects(text, {code: "connection_failed", message: /function for the token/});
  });

  test("an expired key is replaced and the job goes on, also when nothing happens", async (t) => {
    const expires = async (peer) => {
      await peer.accept();
      peer.close(4401, "expired");
    };
    const worker = await scripted(t, {sockets: [
      async (peer) => {
        await peer.accept();
        peer.send(token(1, "a"));
        peer.close(4401, "expired");
      },
      expires, expires,
      goOnAfterA,
    ]});
    assert.equal(await client(t, worker.url, {token: keys()}).run("Hi", {job_id: ID}).text(), "ab");
    assert.deepEqual(worker.upgrades.map(keyOf), ["key-1", "key-2", "key-3", "key-4"]);
  });

  test("a key that is refused twice in a row is wrong", async (t) => {
    const worker = await scripted(t, {greets: false, sockets: [(peer) => peer.close(4401, "unknown key")]});
    const token = keys();
    const job = client(t, worker.url, {token}).run("Hi");
    await assert.rejects(job.text(), {code: "unauthorized", detail: "unknown key"});
    assert.deepEqual([token.asked, worker.peers.length], [2, 2]);
  });

  test("a key that is refused twice in a row is wrong after a cut too", async (t) => {
    const worker = await scripted(t, {greets: false, sockets: [
      async (peer) => {
        peer.send(HELLO);
        await peer.accept();
        peer.cut();
      },
      (peer) => peer.close(4401, "unknown key"),
    ]});
    let asked = 0;
    const jw = client(t, worker.url, {token: () => `key-${++asked}`});
    await assert.rejects(jw.run("Hi", {job_id: ID}).text(), {code: "unauthorized", detail: "unknown key"});
    assert.deepEqual([asked, worker.peers.length], [3, 3]);
  });

  test("the key goes as a frame when the worker asks", async (t) => {
    const worker = await scripted(t, {hello: {auth: "required"}, sockets: [async (peer) => {
      assert.equal((await peer.receive("auth")).token, "key");
      peer.send({type: "hello", protocol: "jobwire.v1", auth: "ok"});
      await peer.accept();
      peer.send(end(1));
    }]});
    const seen = [];
    const jw = client(t, worker.url, {token: "key", onframe: (frame) => seen.push(frame)});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "");
    assert.doesNotMatch(JSON.stringify(seen), /key/);
  });

  test("the key of the moment goes as a frame when the worker asks, and another hello follows", async (t) => {
    const worker = await scripted(t, {hello: {auth: "required"}, sockets: [async (peer) => {
      assert.equal((await peer.receive("auth")).token, "key-1");
      peer.send({type: "hello", protocol: "jobwire.v1", auth: "ok", expires_in: 0.01});
      await peer.accept();
      assert.equal((await peer.receive("auth")).token, "key-2");
      peer.send(end(1));
    }]});
    assert.equal(await client(t, worker.url, {token: keys()}).run("Hi", {job_id: ID}).text(), "");
  });

  test("over SSE every request has the key of the moment", async (t) => {
    const refuse = ({response}) => response.writeHead(401).end(JSON.stringify({code: "unauthorized", status: 401}));
    const worker = await scripted(t, {requests: [created, refuse, streams(end(1)), refuse, refuse]});
    const jw = client(t, worker.url, {...OVER_SSE, token: keys()});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "");
    const seen = worker.requests.map(({headers}) => headers.authorization);
    assert.deepEqual(seen, ["Bearer key-1", "Bearer key-2", "Bearer key-3"]);
    await assert.rejects(jw.create("Hi"), {code: "unauthorized"});
  });
});
