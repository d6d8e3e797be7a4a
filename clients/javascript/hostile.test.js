/** What goes wrong in a long life, against scripted peers: wrong keys, proxies, callbacks that fail, thousands of jobs. */
import assert from "node:assert/strict";
import {getEventListeners, once} from "node:events";
import {suite, test} from "node:test";
import {setFlagsFromString} from "node:v8";
import {runInNewContext} from "node:vm";

import {ConnectionFailed} from "./jobwire.js";
import {ID, NO_WEBSOCKET, OTHER, client, created, end, eventsOf, scripted, silent, sse, streams, token} from "./scripted.js";

const HELLO = {type: "hello", protocol: "jobwire.v1", limits: {heartbeat_s: 15}};
const over = {transport: "sse"};
const turn = () => new Promise(setImmediate);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The worker's answer to a create, and a job of two choices. */
function serveJob(link, {job_id, ref}) {
  link.send({type: "accepted", job_id, ref, state: "running"});
  link.send({...token(1, "a"), job_id}, {...token(2, "b", {index: 1}), job_id}, {...end(3), job_id});
}

/** Collect garbage. */
function collect() {
  setFlagsFromString("--expose_gc");
  runInNewContext("gc")();
}

suite("Hostile connections", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("a key that is refused twice in a row is wrong after a cut too", async (t) => {
    const peer = await scripted(t, {greets: false, sockets: [
      async (link) => {
        link.send(HELLO);
        await link.accept();
        link.cut();
      },
      (link) => link.close(4401, "unknown key"),
    ]});
    let asked = 0;
    const jw = client(t, peer.url, {token: () => `key-${++asked}`});
    await assert.rejects(jw.run("Hi", {job_id: ID}).text(), {code: "unauthorized", detail: "unknown key"});
    assert.deepEqual([asked, peer.links.length], [3, 3]);
  });

  for (const first of [{type: "error", error: {code: "bad_frame"}}, {}]) {
    test(`who says ${JSON.stringify(first)} and not hello is no worker`, async (t) => {
      const peer = await scripted(t, {greets: false, sockets: [(link) => link.send(first)]});
      const jw = client(t, peer.url, {retryTimeoutMs: 50, transport: "websocket"});
      await assert.rejects(jw.run("Hi").text(), {code: "connection_failed", message: /hello/});
    });
  }

  test("a WebSocket that may not be made is no hang: it is SSE", async (t) => {
    class Forbidden {
      constructor() {
        throw new Error("An insecure WebSocket may not be made from a page of https");
      }
    }
    const ok = ({response}) => response.end("Jobwire");
    const peer = await scripted(t, {requests: [ok, created, streams(token(1, "a"), end(2))]});
    assert.equal(await client(t, peer.url, {WebSocket: Forbidden}).run("Hi", {job_id: ID}).text(), "a");
    const jw = client(t, peer.url, {WebSocket: Forbidden, transport: "websocket", retryTimeoutMs: 50});
    await assert.rejects(jw.run("Hi").text(), {code: "connection_failed", message: /insecure/});
  });

  test("a worker that was away for a moment is not taken for a proxy without WebSockets", async (t) => {
    let refusedAt;
    const root = ({response}) => response.writeHead(performance.now() - refusedAt < 100 ? 502 : 200).end();
    const peer = await scripted(t, {refuseSockets: 1, requests: [root, root], sockets: [async (link) => {
      await link.accept();
      link.send(end(1));
    }]});
    const jw = client(t, peer.url, {backoffMs: [300, 300]});
    const job = jw.run("Hi", {job_id: ID});
    while (!peer.upgrades.length) await turn();
    refusedAt = performance.now();
    assert.equal(await job.text(), "");
    assert.equal(jw.transport, "websocket");
  });

  test("a connection that the program drops before it stands is not taken for a proxy either", async (t) => {
    let greet;
    const greeted = new Promise((resolve) => (greet = resolve));
    const root = ({response}) => response.end("Jobwire");
    const peer = await scripted(t, {greets: false, requests: [root], sockets: [silent, async (link) => {
      link.send(HELLO);
      await link.accept();
      link.send(end(1));
      greet();
    }]});
    const jw = client(t, peer.url);
    const job = jw.run("Hi", {job_id: ID});
    while (!peer.links.length) await turn();
    jw.reconnect();
    await greeted;
    assert.deepEqual([await job.text(), jw.transport], ["", "websocket"]);
  });

  test("a cancel while there is no connection waits for one", async (t) => {
    let say;
    const said = new Promise((resolve) => (say = resolve));
    const peer = await scripted(t, {greets: false, sockets: [
      async (link) => {
        link.send(HELLO);
        await link.accept();
        link.send(token(1, "a"));
        link.cut();
      },
      async (link) => {
        await said;
        link.send(HELLO);
        assert.equal((await link.accept()).after, "e-1");
        await link.accept("cancel");
        link.send(end(2, "cancelled"));
      },
    ]});
    const job = client(t, peer.url).run("Hi", {job_id: ID});
    while (peer.links.length < 2) await turn();
    const cancelling = job.cancel();
    say();
    await cancelling;
    await assert.rejects(job.text(), {name: "JobCancelled"});
  });

  test("a reader does not hurry a worker that asked to wait", async (t) => {
    const askedAt = [];
    let hear;
    const refused = new Promise((resolve) => (hear = resolve));
    const onframe = ({type}) => type === "error" && hear();
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"), token(2, "b", {index: 1}), token(3, "c"));
        link.cut();
      },
      async (link) => {
        const request = await link.receive("create");
        askedAt.push(performance.now());
        link.refuse(request, "overloaded", 503, {retry_after_ms: 200});
        assert.equal((await link.accept()).after, "e-3");
        askedAt.push(performance.now());
        link.send(end(4));
      },
    ]});
    const job = client(t, peer.url, {window: 9, onframe}).run("Hi", {job_id: ID});
    await refused;
    assert.deepEqual(await job.texts(), ["ac", "b"]);
    assert(askedAt[1] - askedAt[0] >= 195, `${askedAt[1] - askedAt[0]} ms`);
  });

  test("what a newer worker says is ignored", async (t) => {
    const hello = {protocol: "jobwire.v1.7", features: ["telepathy"], limits: {max_thoughts: 9}};
    const peer = await scripted(t, {hello, sockets: [async (link) => {
      link.send({type: "news", job_id: ID, ref: "1"}, {type: "pong", t: 5});
      await link.accept("create", {features: {a: [1]}});
      link.send({type: "accepted", job_id: ID, ref: "77"}, {type: "audio", job_id: ID, cursor: "e-1"});
      link.send(token(2, "a", {voice: {name: "b"}}), {type: "end2", job_id: OTHER}, end(3, "completed", {mood: "fine"}));
    }]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "a");
  });
});

suite("Hostile programs", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("an onframe that throws loses no text", async (t) => {
    t.mock.method(console, "error", () => {});
    const onframe = () => {
      throw new Error("a bug in an inspector");
    };
    const peer = await scripted(t, {requests: [created, streams(token(1, "a"), end(2))], sockets: [async (link) => {
      await link.accept();
      link.send(token(1, "a"), token(2, "b"), end(3));
    }]});
    assert.equal(await client(t, peer.url, {onframe}).run("Hi", {job_id: ID}).text(), "ab");
    assert.equal(await client(t, peer.url, {onframe, ...over}).run("Hi", {job_id: ID}).text(), "a");
    assert(console.error.mock.callCount() > 6);
  });

  test("who does not wait for a cancel need not hear that it failed", async (t) => {
    const unheard = t.mock.fn();
    process.on("unhandledRejection", unheard);
    t.after(() => process.off("unhandledRejection", unheard));
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      await link.closed;
    }]});
    const jw = client(t, peer.url);
    const job = await jw.create("Hi");
    job.cancel();
    job.update({priority: 9});
    jw.close();
    await turn();
    await turn();
    assert.equal(unheard.mock.callCount(), 0);
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

  test("an abort after close cancels nothing", async (t) => {
    const controller = new AbortController();
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      await link.receive("unsubscribe");
      await link.accept("subscribe"); // and no cancel
      link.send({...end(1), job_id: OTHER});
    }]});
    const jw = client(t, peer.url);
    const job = await jw.create("Hi", {job_id: ID, signal: controller.signal});
    job.close();
    controller.abort();
    assert.equal((await eventsOf(jw.subscribe(OTHER))).length, 1);
  });
});

suite("A long life", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  /** Start jobs of every fate. Each holds `held` in its request. */
  async function live(t, options, held) {
    const peer = await scripted(t, {
      hello: {limits: {max_frame_bytes: 1_000}},
      requests: Array(500).fill(({method, url, body, response}) => {
        if (method === "POST") return created({method, url, body, response});
        return streams({...token(1, "a"), job_id: url.split("/")[3]}, {...end(3), job_id: url.split("/")[3]})({response});
      }),
      sockets: [async (link) => {
        for (;;) {
          const request = await link.receive();
          if (request.type !== "create") continue;
          if (request.prompt === "refuse") link.refuse(request, "queue_full", 429);
          else serveJob(link, request);
        }
      }],
    });
    const jw = client(t, peer.url, options);
    const {signal} = new AbortController();
    for (let i = 0; i < 20; i++) {
      const params = {logit_bias: held(), signal};
      await jw.run("read", params).text();
      jw.run("dropped", params);
      for await (const _ of jw.run("left", params)) break;
      (await jw.create("closed", params)).close();
      if (jw.transport === "sse") continue;
      for (const prompt of ["refuse", "x".repeat(1_000)]) await assert.rejects(jw.create(prompt, params), {name: "Refused"});
    }
    await jw.run("last").text(); // all before it is answered
    for (let i = 0; i < 50 && getEventListeners(signal, "abort").length; i++) await pause(10); // the last streams are ending
    assert.equal(getEventListeners(signal, "abort").length, 0);
    return jw;
  }

  for (const [name, options] of [["a WebSocket", {window: 2}], ["SSE", over]]) {
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
      const refuse = async (link) => {
        await link.accept();
        link.send(token(1, "a"));
        link.cut();
      };
      const peer = await scripted(t, {
        requests: [created, ({response}) => response.writeHead(200).write(sse(token(1, "a"))), () => {}, () => {}],
        sockets: [refuse, async (link) => {
          link.refuse(await link.receive("create"), "overloaded", 503, {retry_after_ms: 30_000});
          await link.closed;
        }],
      });
      const jw = client(t, peer.url, {...options, retryTimeoutMs: 60_000});
      const job = jw.run("Hi", {job_id: ID});
      for await (const _ of job) break;
      while (peer.links.length + peer.requests.length < 2) await turn();
      jw.run("Never answered", {job_id: OTHER}).cancel();
      await pause(50);
      jw.close();
      await pause(50);
      assert.equal(timers(), before);
    });
  }

  test("streams that are cut while a job waits long are no outage", async (t) => {
    const real = performance.now.bind(performance);
    t.mock.method(performance, "now", () => real() * 100);
    const waits = async ({response}) => {
      response.writeHead(200).write(": hb\n\n");
      await pause(80);
      response.end();
    };
    const peer = await scripted(t, {requests: [created, ...Array(8).fill(waits), streams(token(1, "a"), end(2))]});
    const jw = client(t, peer.url, {...over, retryTimeoutMs: 20_000});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });

  for (const status of [502, 503, 504]) {
    test(`requests wait for a worker that restarts behind a proxy which says ${status}`, async (t) => {
      const away = ({response}) => response.writeHead(status, {"Retry-After": "0"}).end();
      let stream;
      const peer = await scripted(t, {requests: [
        away, created,
        ({response}) => (stream = response).writeHead(200).write(sse(token(1, "a"))),
        away,
        ({method, response}) => {
          assert.equal(method, "DELETE");
          response.end("{}");
          stream.end(sse(end(2, "cancelled")));
        },
      ]});
      const job = client(t, peer.url, over).run("Hi", {job_id: ID});
      for await (const _ of job) break;
      await job.cancel();
      await eventsOf(job);
    });
  }

  test("a client that is closed says so to whoever comes late", async (t) => {
    const peer = await scripted(t, {sockets: [(link) => link.closed]});
    const jw = client(t, peer.url);
    jw.close();
    assert.throws(() => jw.run("Hi"), ConnectionFailed);
    await once(process, "none", {signal: AbortSignal.timeout(20)}).catch(() => {});
    assert.equal(peer.upgrades.length, 0);
  });
});
