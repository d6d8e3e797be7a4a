/** What a connection agrees on, against scripted peers: keys, credit, priority, moving away; and share links. */
import assert from "node:assert/strict";
import {once} from "node:events";
import {suite, test} from "node:test";

import {connect, watch} from "./jobwire.js";
import {ID, NO_WEBSOCKET, OTHER, client, created, end, eventsOf, scripted, silent, sse, streams, token} from "./scripted.js";

const over = {transport: "sse"};

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
    const peer = await scripted(t, {hello: {expires_in: 0.05}, sockets: [async (link) => {
      await link.accept();
      assert.equal((await link.receive("auth")).token, "key-2");
      assert.equal((await link.receive("auth")).token, "key-3");
      link.send(token(1, "a"), end(2));
    }]});
    assert.equal(await client(t, peer.url, {token: keys()}).run("Hi", {job_id: ID}).text(), "a");
    assert.deepEqual([peer.links.length, keyOf(peer.upgrades[0])], [1, "key-1"]);
  });

  test("a function that fails for now is asked again", async (t) => {
    t.mock.method(console, "warn", () => {});
    const peer = await scripted(t, {hello: {expires_in: 0.05}, sockets: [async (link) => {
      await link.accept();
      assert.equal((await link.receive("auth")).token, "key-4");
      link.send(end(1));
    }]});
    const token = keys({failAt: 3});
    const failing = async () => {
      if (token.asked === 1) return token().then(() => Promise.reject(new Error("closed")));
      return token();
    };
    assert.equal(await client(t, peer.url, {token: failing}).run("Hi", {job_id: ID}).text(), "");
    assert.equal(console.warn.mock.callCount(), 2);
  });

  test("a function that fails at first is tried again until the outage is too long", async (t) => {
    const jw = client(t, "http://127.0.0.1:1", {retryTimeoutMs: 50, token: () => Promise.reject(new Error("no shop"))});
    await assert.rejects(jw.run("Hi").text(), {code: "connection_failed", message: /no shop/});
  });

  test("an expired key is replaced and the job goes on, also when nothing happens", async (t) => {
    const expires = async (link) => {
      await link.accept();
      link.close(4401, "expired");
    };
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"));
        link.close(4401, "expired");
      },
      expires, expires,
      async (link) => {
        assert.equal((await link.accept()).after, "e-1");
        link.send(token(2, "b"), end(3));
      },
    ]});
    assert.equal(await client(t, peer.url, {token: keys()}).run("Hi", {job_id: ID}).text(), "ab");
    assert.deepEqual(peer.upgrades.map(keyOf), ["key-1", "key-2", "key-3", "key-4"]);
  });

  test("a key that is refused twice in a row is wrong", async (t) => {
    const peer = await scripted(t, {greets: false, sockets: [(link) => link.close(4401, "unknown key")]});
    const token = keys();
    await assert.rejects(client(t, peer.url, {token}).run("Hi").text(), {code: "unauthorized", detail: "unknown key"});
    assert.deepEqual([token.asked, peer.links.length], [2, 2]);
  });

  test("the key of the moment goes as a frame when the worker asks, and another hello follows", async (t) => {
    const peer = await scripted(t, {hello: {auth: "required"}, sockets: [async (link) => {
      assert.equal((await link.receive("auth")).token, "key-1");
      link.send({type: "hello", protocol: "jobwire.v1", auth: "ok", expires_in: 0.01});
      await link.accept();
      assert.equal((await link.receive("auth")).token, "key-2");
      link.send(end(1));
    }]});
    assert.equal(await client(t, peer.url, {token: keys()}).run("Hi", {job_id: ID}).text(), "");
  });

  test("over SSE every request has the key of the moment", async (t) => {
    const refuse = ({response}) => response.writeHead(401).end(JSON.stringify({code: "unauthorized", status: 401}));
    const peer = await scripted(t, {requests: [created, refuse, streams(end(1)), refuse, refuse]});
    const jw = client(t, peer.url, {...over, token: keys()});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "");
    const seen = peer.requests.map(({headers}) => headers.authorization);
    assert.deepEqual(seen, ["Bearer key-1", "Bearer key-2", "Bearer key-3"]);
    await assert.rejects(jw.create("Hi"), {code: "unauthorized"});
  });
});

suite("Credit", {skip: NO_WEBSOCKET, timeout: 30_000}, () => {
  test("text is exact through cuts, and no frame comes without credit", async (t) => {
    const log = Array.from({length: 30}, (_, i) => token(i + 1, `${i + 1} `)).concat(end(31));
    let window, plan;
    const peer = await scripted(t, {sockets: [async (link) => {
      const request = await link.accept();
      assert.equal(request.window, window);
      let at = Number((request.after ?? "e-0").slice(2));
      const [count, merge] = plan.shift() ?? [log.length, 2];
      const inFlight = [];
      for (let i = 0; i < count; i++) {
        while (inFlight.length === window) {
          const heard = Number((await link.receive("ack")).cursor.slice(2));
          while (inFlight[0] <= heard) inFlight.shift();
        }
        const run = at < 30 ? log.slice(at, Math.min(at + merge, 30)) : log.slice(30);
        at += run.length;
        link.send({...run.at(-1), ...(at <= 30 && {text: run.map((frame) => frame.text).join(""), n: run.length})});
        inFlight.push(at);
        if (at === log.length) return;
      }
      link.cut();
    }]});
    for (let seed = 0; seed < 40; seed++) {
      window = 1 + (seed % 4);
      plan = Array.from({length: seed % 7}, (_, i) => [(seed * 7 + i * 5) % 11, 1 + ((seed + i) % 4)]);
      const job = client(t, peer.url, {window}).run("Count", {job_id: ID});
      let read = 0;
      for await (const _ of job) for (let i = (seed + read++) % 3; i > 0; i--) await new Promise(setImmediate);
      assert.equal(await job.text(), log.slice(0, 30).map((frame) => frame.text).join(""));
    }
  });

  test("nothing is acknowledged that nobody took", async (t) => {
    let hear;
    const heard = new Promise((resolve) => (hear = resolve));
    const peer = await scripted(t, {sockets: [async (link) => {
      assert.equal((await link.accept()).window, 2);
      link.send(token(1, "a"), token(2, "b", {index: 1}));
      assert.equal((await link.accept()).window, undefined); // what comes next from the client is this, and no ack
      link.send({...end(1), job_id: OTHER});
      assert.deepEqual(await link.receive("ack"), {type: "ack", job_id: ID, cursor: "e-1"});
      hear();
      link.send(end(3));
    }]});
    const jw = client(t, peer.url, {window: 2});
    const job = await jw.create("Hi", {job_id: ID});
    await jw.run("Hi", {job_id: OTHER, window: 0}).text();
    for await (const _ of job) break;
    await heard;
    assert.deepEqual(await job.texts(), ["a", "b"]);
  });

  for (const [offered, sent] of [[0, undefined], [3, 3], [99, 5]]) {
    test(`a window of 5 is ${sent} where the worker offers ${offered}`, async (t) => {
      const peer = await scripted(t, {hello: {limits: {max_window: offered}}, sockets: [async (link) => {
        assert.equal((await link.accept("subscribe")).window, sent);
        link.send(token(1, "a"), end(2));
      }]});
      assert.equal(await client(t, peer.url).subscribe(ID, {window: 5}).text(), "a");
    });
  }

  test("frames for paint: one is read, and one more asked for, at each paint", async (t) => {
    const paints = [];
    globalThis.requestAnimationFrame = (callback) => paints.push(callback);
    t.after(() => delete globalThis.requestAnimationFrame);
    const painted = async () => {
      while (!paints.length) await new Promise(setImmediate);
      paints.shift()();
    };
    let acks = 0;
    const peer = await scripted(t, {sockets: [async (link) => {
      assert.equal((await link.accept()).window, 1);
      for (let n = 1; n <= 3; n++) {
        link.send(token(n, `${n}`));
        await link.receive("ack");
        acks++;
      }
      link.send(end(4));
    }]});
    const text = client(t, peer.url).run("Hi", {job_id: ID, frames: "paint"}).text();
    for (let n = 0; n < 4; n++) {
      while (!paints.length) await new Promise(setImmediate);
      assert.equal(acks, n); // the peer heard of those read so far, and of no other before the paint
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
    const peer = await scripted(t, {requests: [created, streams(token(1, "a"), end(2))]});
    assert.equal(await client(t, peer.url, {...over, frames: "paint"}).run("Hi", {job_id: ID}).text(), "a");
    assert.equal(waiting.size, 0);
  });

  test("where nothing is painted, paint goes by the clock; over SSE too", async (t) => {
    const peer = await scripted(t, {requests: [created, streams(token(1, "a"), token(2, "b"), end(3))]});
    const jw = client(t, peer.url, {...over, frames: "paint"});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "ab");
    assert.equal(peer.requests[0].body.window, undefined);
    assert.throws(() => connect(peer.url, {frames: "film"}), /film/);
  });
});

suite("Priority and choices", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("update changes the priority and tells the place", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept("create", {state: "queued", queue: {position: 9}});
      const {job_id, priority} = await link.accept("update", {state: "queued", queue: {position: 1}});
      assert.deepEqual([job_id, priority], [ID, 9]);
      link.refuse(await link.receive("update"), "invalid_params", 422);
      link.send(token(1, "a"), end(2));
    }]});
    const job = client(t, peer.url).run("Hi", {job_id: ID, priority: 1});
    assert.equal((await job.update({priority: 9})).queue.position, 1);
    await assert.rejects(job.update({priority: 10}), {code: "invalid_params"});
    assert.equal(await job.text(), "a"); // a refused update is no failure of the job
    await job.update({priority: 0}); // after the end there is nothing to ask
  });

  test("an update survives a cut", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        await link.receive("update");
        link.cut();
      },
      async (link) => {
        await link.accept();
        assert.equal((await link.accept("update")).priority, 7);
        link.send(end(1));
      },
    ]});
    const job = client(t, peer.url).run("Hi", {job_id: ID});
    await job.update({priority: 7});
    assert.equal(await job.text(), "");
  });

  test("over SSE there is no update", async (t) => {
    let finish;
    const peer = await scripted(t, {requests: [created, ({response}) => (finish = () => response.end(sse(end(1))))]});
    const job = client(t, peer.url, over).run("Hi", {job_id: ID});
    await assert.rejects(job.update({priority: 9}), {code: "unsupported_operation"});
    while (!finish) await new Promise(setImmediate);
    finish();
    assert.equal(await job.text(), "");
  });

  test("over SSE too, only the channels that were asked for are read", async (t) => {
    const note = {type: "narration", job_id: ID, cursor: "e-2", human: "Half."};
    const peer = await scripted(t, {requests: [streams(token(1, "a"), note, token(3, "b"), end(4))]});
    const events = await eventsOf(client(t, peer.url, over).subscribe(ID, {channels: ["narration"]}));
    assert.deepEqual(events, [note, end(4)]);
  });

  test("choices have their own texts", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      assert.equal((await link.accept()).n, 3);
      link.send(token(1, "a"), token(2, "x", {index: 1}), token(3, "b"), token(4, "hm", {kind: "reasoning"}), end(5));
    }]});
    assert.deepEqual(await client(t, peer.url).run("Hi", {job_id: ID, n: 3}).texts(), ["ab", "x", ""]);
  });
});

suite("Moving away", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  const goaway = {type: "goaway", reason: "shutdown", retry_ms: 1};

  test("after goaway old jobs finish and new ones go to a new connection", async (t) => {
    let finish;
    const mayFinish = new Promise((resolve) => (finish = resolve));
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"), goaway);
        await mayFinish;
        await link.accept("cancel"); // what is asked about an old job stays with it
        link.send(token(2, "b"), end(3, "cancelled"));
      },
      async (link) => {
        assert.equal((await link.accept()).job_id, OTHER);
        link.send({...token(1, "new"), job_id: OTHER}, {...end(2), job_id: OTHER});
      },
    ]});
    const jw = client(t, peer.url);
    const old = jw.run("Hi", {job_id: ID});
    for await (const _ of old) break;
    while (!peer.links.length) await new Promise(setImmediate);
    assert.equal(await jw.run("Hi", {job_id: OTHER}).text(), "new");
    finish();
    await old.cancel();
    await assert.rejects(old.text(), {name: "JobCancelled", text: "ab"});
    await peer.links[0].closed;
    assert.deepEqual([peer.links.length, peer.links[0].closeCode], [2, 1000]);
  });

  test("an old connection that ends hands its jobs over", async (t) => {
    let hear;
    const secondIsUp = new Promise((resolve) => (hear = resolve));
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"), goaway);
        await secondIsUp;
        link.close(1012, "restart");
      },
      async (link) => {
        await link.accept();
        hear();
        const resumed = await link.accept();
        assert.deepEqual([resumed.job_id, resumed.after], [ID, "e-1"]);
        link.send(token(2, "b"), end(3), {...end(1), job_id: OTHER});
      },
    ]});
    const jw = client(t, peer.url);
    const old = jw.run("Hi", {job_id: ID});
    for await (const _ of old) break;
    await new Promise(setImmediate);
    assert.deepEqual(await Promise.all([old.text(), jw.run("Hi", {job_id: OTHER}).text()]), ["ab", ""]);
    assert.equal(peer.links.length, 2);
  });

  test("after goaway no close code is final", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"), goaway);
        link.close(1000);
      },
      async (link) => {
        assert.equal((await link.accept()).after, "e-1");
        link.send(token(2, "b"), end(3));
      },
    ]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "ab");
  });

  test("goaway is the least to wait", async (t) => {
    let cutAt, waitedMs;
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send({...goaway, retry_ms: 150});
        cutAt = performance.now();
        link.cut();
      },
      async (link) => {
        waitedMs = performance.now() - cutAt;
        await link.accept();
        link.send(end(1));
      },
    ]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "");
    assert(waitedMs >= 145, `${waitedMs} ms`);
  });

  test("without jobs a goaway closes, and the next job opens another", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(end(1), goaway);
      },
      async (link) => {
        await link.accept();
        link.send(token(1, "a"), end(2));
      },
    ]});
    const jw = client(t, peer.url);
    await jw.run("Hi", {job_id: ID}).text();
    await peer.links[0].closed;
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });
});

suite("Share links", {timeout: 20_000}, () => {
  const watched = (peer, more) => watch(`${peer.url}/v1/jobs/${ID}/stream?ticket=t%2B`, {backoffMs: [1, 10], ...more});
  const ask = ({url, headers}) => [new URL(url, "http://x").searchParams.get("ticket"), headers["last-event-id"]];

  test("one is read to its end through a cut", async (t) => {
    const peer = await scripted(t, {requests: [
      streams({type: "narration", job_id: ID, cursor: "e-1", human: "First."}, token(2, "Hel")),
      streams(token(3, "lo"), end(4)),
    ]});
    const job = watched(peer);
    assert.equal((await job.waitAccepted()).id, ID);
    assert.equal((await eventsOf(job))[0].human, "First.");
    assert.deepEqual([await job.text(), job.cursor, job.end.status], ["Hello", "e-4", "completed"]);
    assert.deepEqual(peer.requests.map(ask), [["t+", undefined], ["t+", "e-2"]]);
  });

  test("at the end already it has nothing to say", async (t) => {
    const peer = await scripted(t, {requests: [({response}) => response.writeHead(204).end()]});
    assert.deepEqual(await eventsOf(watched(peer, {after: "e-9"})), []);
    assert.deepEqual(peer.requests.map(ask), [["t+", "e-9"]]);
  });

  test("with a ticket that is refused it says so", async (t) => {
    const body = JSON.stringify({code: "unauthorized", status: 401, detail: "No."});
    const peer = await scripted(t, {requests: [({response}) => response.writeHead(401).end(body)]});
    await assert.rejects(watched(peer).text(), {name: "Refused", code: "unauthorized"});
  });

  test("one is left when it is closed", async (t) => {
    let left;
    const peer = await scripted(t, {requests: [({response}) => {
      left = once(response, "close");
      response.writeHead(200, {"Content-Type": "text/event-stream"}).write(sse(token(1, "a")));
    }]});
    const job = watched(peer);
    for await (const _ of job) break;
    job.close();
    await left;
    assert.deepEqual(await eventsOf(job), []);
  });

  test("an abort leaves it, and cancels nothing", async (t) => {
    const controller = new AbortController();
    let left;
    const peer = await scripted(t, {requests: [({response}) => {
      left = once(response, "close");
      response.writeHead(200, {"Content-Type": "text/event-stream"}).write(sse(token(1, "a")));
    }]});
    const job = watched(peer, {signal: controller.signal});
    for await (const _ of job) break;
    controller.abort(new Error("enough"));
    await assert.rejects(job.text(), /enough/);
    await left;
    await new Promise((resolve) => setTimeout(resolve, 50)); // a DELETE would be here by now
    assert.equal(peer.requests.length, 1);
  });

  test("only those of jobs are taken", () => {
    assert.throws(() => watch("http://127.0.0.1:1/elsewhere"), /Expected a URL/);
  });
});
