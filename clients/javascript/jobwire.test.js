/** The client against scripted peers: cuts, resets, refusals, silence, slow readers; over WebSocket and over SSE. */
import assert from "node:assert/strict";
import {once} from "node:events";
import {suite, test} from "node:test";

import {ConnectionFailed, JobCancelled, JobFailed, Refused, connect} from "./jobwire.js";
import {
  ID, NO_WEBSOCKET, OTHER, client, created, end, eventsOf, scripted, silent, sse, streams, token,
} from "./scripted.js";

suite("WebSocket", {skip: NO_WEBSOCKET, timeout: 20_000}, () => {
  test("one job from create to end", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      const request = await link.accept();
      assert.deepEqual(request, {type: "create", job_id: ID, prompt: "Hi", max_tokens: 5, ref: "1"});
      link.send({type: "narration", job_id: ID, cursor: "e-1", action: "queued", human: "First."});
      link.send(token(2, "Hel"), token(4, "lo", {n: 2}), end(5, "completed", {finish_reason: "stop"}));
      await link.closed;
      assert.equal(link.closeCode, 1000);
    }]});
    const jw = client(t, peer.url, {token: "key ü"});
    const job = await jw.create("Hi", {job_id: ID, max_tokens: 5});
    assert.equal(job.accepted.state, "running");
    const events = await eventsOf(job);
    assert.equal(events[0].human, "First.");
    assert.equal(events.at(-1).finish_reason, "stop");
    assert.equal(await job.text(), "Hello");
    assert.deepEqual([job.cursor, job.end], ["e-5", events.at(-1)]);
    assert.equal(jw.transport, "websocket");
    const offered = peer.upgrades[0].headers["sec-websocket-protocol"].split(/, ?/);
    assert.deepEqual(offered, ["jobwire.v1", `bearer.${Buffer.from("key ü").toString("base64url")}`]);
    jw.close();
    await peer.links[0].closed;
  });

  test("messages go as messages and the id is made up", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      const request = await link.accept();
      assert.deepEqual(request.messages, [{role: "user", content: "Hi"}]);
      assert.match(request.job_id, /^[A-Za-z0-9_-]{16,64}$/);
      link.send({...end(1), job_id: request.job_id});
    }]});
    assert.equal(await client(t, peer.url).run([{role: "user", content: "Hi"}]).text(), "");
  });

  test("unknown types and fields are ignored", async (t) => {
    t.mock.method(console, "warn", () => {});
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept("create", {novelty: 1});
      link.send({type: "weather", job_id: ID}, {no: "type"}, token(1, "a", {mood: "fine"}));
      link.send({type: "error", error: {code: "bad_frame"}}, {...token(9, "not mine"), job_id: OTHER}, end(2));
    }]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "a");
    assert.equal(console.warn.mock.callCount(), 1);
  });

  for (const half of ["", "\x81", "\x81\x7e\x01", '\x81\x7e\x01\x00{"type":"token","tex']) {
    test(`a cut after ${half.length} bytes of a frame is resumed with the same request`, async (t) => {
      const requests = [];
      const peer = await scripted(t, {sockets: [
        async (link) => {
          requests.push(await link.accept());
          link.send(token(1, "one "), token(2, "two "));
          link.cut(Buffer.from(half, "latin1"));
        },
        async (link) => {
          requests.push(await link.accept("create", {replayed: true}));
          link.send(token(3, "three"), end(4));
        },
      ]});
      assert.equal(await client(t, peer.url).run("Count", {job_id: ID, seed: 1}).text(), "one two three");
      assert.deepEqual(requests[1], {...requests[0], after: "e-2"});
    });
  }

  test("text is exact wherever the connection is cut and however tokens are merged", async (t) => {
    const log = Array.from({length: 30}, (_, i) => token(i + 1, `${i + 1} `)).concat(end(31));
    let plan;
    const serve = async (link) => {
      const request = await link.accept();
      let at = Number((request.after ?? "e-0").slice(2));
      const [count, merge] = plan.shift() ?? [log.length, 1];
      for (let i = 0; i < count && at < log.length; i++) {
        const run = log.slice(at, Math.max(at + 1, Math.min(at + merge, 30)));
        link.send({...run.at(-1), ...(run[0].text && {text: run.map((frame) => frame.text).join(""), n: run.length})});
        at += run.length;
      }
      if (at < log.length) link.cut();
    };
    const peer = await scripted(t, {sockets: [serve]});
    for (let seed = 0; seed < 40; seed++) {
      plan = Array.from({length: seed % 7}, (_, i) => [(seed * 7 + i * 5) % 11, 1 + ((seed + i) % 4)]);
      const events = await eventsOf(client(t, peer.url).run("Count", {job_id: ID}));
      const texts = events.filter((event) => event.type === "token");
      assert.equal(texts.map((event) => event.text).join(""), log.slice(0, 30).map((frame) => frame.text).join(""));
      assert.equal(texts.reduce((sum, event) => sum + (event.n ?? 1), 0), 30);
    }
  });

  test("reconnect drops the socket, and onframe sees both sides", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"));
        await link.closed;
      },
      async (link) => {
        assert.equal((await link.accept()).after, "e-1");
        link.send(token(2, "b"), end(3));
      },
    ]});
    const seen = [];
    const onframe = (frame, direction) => seen.push(`${direction} ${frame.type} ${frame.cursor ?? frame.after ?? ""}`);
    const jw = client(t, peer.url, {onframe});
    jw.reconnect(); // there is nothing to drop yet
    const job = jw.run("Hi", {job_id: ID});
    for await (const _ of job) break;
    jw.reconnect();
    assert.equal(await job.text(), "ab");
    assert.deepEqual(seen, [
      "in hello ", "out create ", "in accepted ", "in token e-1",
      "in hello ", "out create e-1", "in accepted ", "in token e-2", "in end e-3",
    ]);
  });

  test("reset starts the text over", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "lost "));
        link.cut();
      },
      async (link) => {
        assert.equal((await link.accept("create", {reset: true})).after, "e-1");
        link.send({...token(1, "anew"), cursor: "f-1"});
        link.cut();
      },
      async (link) => {
        assert.equal((await link.accept()).after, "f-1");
        link.send({...end(2), cursor: "f-2"});
      },
    ]});
    const job = client(t, peer.url).run("Hi", {job_id: ID});
    const types = (await eventsOf(job)).map((event) => event.type);
    assert.deepEqual(types.filter((type) => type !== "token"), ["reset", "end"]);
    assert.equal(await job.text(), "anew");
  });

  test("what was unread before a reset is never read", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "lost "));
        link.cut();
      },
      async (link) => {
        await link.accept("create", {reset: true});
        link.send({...token(1, "anew"), cursor: "f-1"}, {...end(2), cursor: "f-2"});
        await link.accept("subscribe");
      },
    ]});
    const jw = client(t, peer.url);
    const job = jw.run("Hi", {job_id: ID});
    while (!job.accepted?.reset) await new Promise(setImmediate); // before anything is read
    await jw.subscribe(OTHER).waitAccepted();
    assert.deepEqual((await eventsOf(job)).map((event) => event.type), ["reset", "token", "end"]);
    assert.equal(await job.text(), "anew");
  });

  const finalCodes = {1000: "closed_1000", 4400: "protocol_abuse", 4401: "unauthorized", 4403: "forbidden",
    4406: "version", 4408: "auth_timeout", 4499: "closed_4499"};
  for (const [closeCode, code] of Object.entries(finalCodes)) {
    test(`close code ${closeCode} raises`, async (t) => {
      const peer = await scripted(t, {sockets: [async (link) => {
        await link.accept();
        link.close(Number(closeCode), "because");
      }]});
      const jw = client(t, peer.url);
      await assert.rejects(jw.run("Hi", {job_id: ID}).text(), {name: "ConnectionFailed", code, detail: "because"});
      assert.throws(() => jw.run("Again"), ConnectionFailed);
      assert.equal(peer.links.length, 1);
    });
  }

  for (const closeCode of [1001, 1009, 1011, 1012, 4503, 4504, 4000]) {
    test(`close code ${closeCode} reconnects`, async (t) => {
      const peer = await scripted(t, {sockets: [
        async (link) => {
          await link.accept();
          link.send(token(1, "a"));
          link.close(closeCode);
        },
        async (link) => {
          assert.equal((await link.accept()).after, "e-1");
          link.send(token(2, "b"), end(3));
        },
      ]});
      assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "ab");
    });
  }

  test("two silent heartbeats are a cut", async (t) => {
    const peer = await scripted(t, {hello: {limits: {heartbeat_s: 0.05}}, sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"));
        await link.closed;
      },
      async (link) => {
        assert.equal((await link.accept()).after, "e-1");
        link.send({type: "pong"}, end(2));
      },
    ]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "a");
    assert.equal(peer.links.length, 2);
  });

  test("signs of life hold the connection", async (t) => {
    const peer = await scripted(t, {hello: {limits: {heartbeat_s: 0.5}}, sockets: [async (link) => {
      await link.accept();
      for (let i = 0; i < 7; i++) {
        link.send({type: "pong"});
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      link.send(end(1));
    }]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "");
    assert.equal(peer.links.length, 1);
  });

  test("an outage is bounded in time", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      await link.closed;
    }]});
    const jw = client(t, peer.url, {retryTimeoutMs: 300, backoffMs: [10, 50]});
    const job = await jw.create("Hi");
    peer.stop();
    await assert.rejects(job.text(), {name: "ConnectionFailed", code: "connection_failed"});
  });

  test("no reconnect while nothing is wanted", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(end(1));
        await cut;
        link.cut();
      },
      async (link) => {
        await link.accept();
        link.send(token(1, "a"), end(2));
      },
    ]});
    let doCut;
    const cut = new Promise((resolve) => (doCut = resolve));
    const jw = client(t, peer.url);
    await jw.run("Hi", {job_id: ID}).text();
    doCut();
    await peer.links[0].closed;
    await new Promise((resolve) => setTimeout(resolve, 40)); // many times the first pause
    assert.equal(peer.links.length, 1);
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });

  test("goaway is the least to wait", async (t) => {
    let cutAt, waitedMs;
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send({type: "goaway", reason: "draining", retry_ms: 200});
        cutAt = performance.now();
        link.cut();
      },
      async (link) => {
        waitedMs = performance.now() - cutAt;
        await link.accept();
        link.send(end(1));
      },
    ]});
    await client(t, peer.url).run("Hi", {job_id: ID}).text();
    assert(waitedMs >= 190, `waited ${waitedMs} ms`);
  });

  test("a refusal rejects with its code", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      link.refuse(await link.receive("create"), "queue_full", 429, {retry_after_ms: 700});
      link.refuse(await link.receive("create"), "invalid_params", 422, {errors: [{pointer: "/top_p"}]});
    }]});
    const jw = client(t, peer.url);
    await assert.rejects(jw.create("Hi"), {name: "Refused", code: "queue_full", status: 429, retryAfterMs: 700});
    await assert.rejects(jw.run("Hi", {top_p: 7}).text(), (error) => {
      assert(error instanceof Refused);
      assert.deepEqual([error.problem.errors, error.retryAfterMs], [[{pointer: "/top_p"}], undefined]);
      return true;
    });
  });

  test("a resume that is refused for now waits, a lost job raises", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"));
        link.cut();
      },
      async (link) => {
        link.refuse(await link.receive("create"), "overloaded", 503, {retry_after_ms: 5});
        assert.equal((await link.accept()).after, "e-1");
        link.cut();
      },
      async (link) => link.refuse(await link.receive("create"), "job_lost", 410),
    ]});
    const job = client(t, peer.url).run("Hi", {job_id: ID});
    await assert.rejects(eventsOf(job), {name: "Refused", code: "job_lost"});
    assert.equal(job.cursor, "e-1");
  });

  test("cancel before accepted", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      const create = await link.receive("create");
      const cancel = await link.receive("cancel");
      link.send({type: "accepted", job_id: ID, ref: create.ref, state: "queued"});
      link.send({type: "accepted", job_id: ID, ref: cancel.ref, state: "queued"}, end(1, "cancelled"));
    }]});
    const job = client(t, peer.url).run("Hi", {job_id: ID});
    await job.cancel();
    assert.deepEqual((await eventsOf(job)).map((event) => event.status), ["cancelled"]);
    await job.cancel(); // again is success, without a frame
  });

  test("a cancel survives a cut", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.send(token(1, "a"));
        await link.receive("cancel");
        link.cut();
      },
      async (link) => {
        assert.equal((await link.accept()).after, "e-1");
        await link.accept("cancel");
        link.send(end(2, "cancelled"));
      },
    ]});
    const job = client(t, peer.url).run("Hi", {job_id: ID});
    for await (const event of job) {
      assert.equal(event.text, "a");
      break;
    }
    await job.cancel();
    await assert.rejects(job.text(), (error) => error instanceof JobCancelled && error.text === "a");
  });

  test("an abort cancels the job and rejects with its reason", async (t) => {
    const controller = new AbortController();
    let hear;
    const heard = new Promise((resolve) => (hear = resolve));
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      link.send(token(1, "a"));
      await link.accept("cancel");
      await link.receive("unsubscribe");
      hear();
    }]});
    const jw = client(t, peer.url);
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

  for (const status of ["failed", "expired"]) {
    test(`a job that ends as ${status} raises`, async (t) => {
      const peer = await scripted(t, {sockets: [async (link) => {
        await link.accept();
        link.send(token(1, "a"), end(2, status, {error: {code: "engine_failed", detail: "It broke."}}));
      }]});
      const job = client(t, peer.url).run("Hi", {job_id: ID});
      for (let i = 0; i < 2; i++) {
        await assert.rejects(job.text(), (error) => error instanceof JobFailed && error.code === "engine_failed");
      }
      assert.equal(job.end.status, status);
    });
  }

  test("jobs share a connection and keep apart", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      const ids = [];
      for (let i = 0; i < 20; i++) ids.push((await link.accept()).job_id);
      for (let n = 1; n <= 10; n++) for (const id of ids) link.send({...token(n, `${id.slice(-2)}:${n} `), job_id: id});
      for (const id of ids) link.send({...end(11), job_id: id});
    }]});
    const jw = client(t, peer.url);
    const jobs = Array.from({length: 20}, (_, i) => jw.run("Count", {job_id: `0123456789abcdef-${10 + i}`}));
    assert.throws(() => jw.run("Count", {job_id: jobs[0].id}), /watches job/);
    const texts = await Promise.all(jobs.map((job) => job.text()));
    assert.deepEqual(texts, jobs.map((_, i) => Array.from({length: 10}, (_, n) => `${10 + i}:${n + 1} `).join("")));
    assert.equal(peer.links.length, 1);
  });

  test("subscribe goes on from a cursor, or has nothing to say", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      const request = await link.accept("subscribe");
      assert.deepEqual([request.job_id, request.after, request.channels], [ID, "e-3", ["token"]]);
      link.send(token(4, "d"), end(5));
      await link.accept("subscribe", {state: "ended", over: true});
      link.refuse(await link.receive("subscribe"), "job_not_found", 404);
    }]});
    const jw = client(t, peer.url);
    assert.equal(await jw.subscribe(ID, {after: "e-3", channels: ["token"]}).text(), "d");
    assert.deepEqual(await eventsOf(jw.subscribe(ID, {after: "e-5"})), []);
    await assert.rejects(jw.subscribe("no-such-job-anywhere").text(), {code: "job_not_found"});
  });

  test("tokens that wait are read as one", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      link.send(...[1, 2, 3, 4, 5].map((n) => token(n, `${n} `, {ids: [n]})), token(6, "other", {index: 1}), end(7));
      await link.accept();
    }]});
    const jw = client(t, peer.url);
    const job = jw.run("Count", {job_id: ID});
    await jw.create("Hi", {job_id: OTHER}); // accepted after all events of the first are here
    const [merged, other, last] = await eventsOf(job);
    assert.deepEqual(merged, token(5, "1 2 3 4 5 ", {n: 5, ids: [1, 2, 3, 4, 5]}));
    assert.deepEqual([other.text, other.index, last.type], ["other", 1, "end"]);
    assert.equal(await job.text(1), "other");
  });

  test("an unread job is put down and taken up again", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      await link.accept();
      let sent = 0, down = false;
      const putDown = link.receive("unsubscribe").then(() => (down = true));
      while (!down) {
        link.send(token(++sent, `${sent} `));
        await new Promise(setImmediate);
      }
      await putDown;
      for (let n = 1; n <= 3; n++) link.send(token(sent + n, `${sent + n} `)); // on their way when it was put down
      for (let n = 1; n < 30; n++) link.send({...token(n, `${n} `), job_id: OTHER});
      link.send({...end(30), job_id: OTHER});
      const request = await link.receive("create");
      const after = Number(request.after.slice(2));
      assert(after > 0 && after <= sent, request.after);
      link.send(token(sent + 3, `${sent + 3} `)); // still from before
      link.send({type: "accepted", job_id: ID, ref: request.ref, state: "running"});
      for (let n = after + 1; n <= sent + 10; n++) link.send(token(n, `${n} `));
      link.send(end(sent + 11));
    }]});
    const jw = client(t, peer.url, {unreadBytesMax: 10_000});
    const unread = jw.run("Count", {job_id: ID});
    assert.match(await jw.run("Count", {job_id: OTHER}).text(), /^1 2 .* 29 $/);
    const numbers = (await unread.text()).trim().split(" ").map(Number);
    assert.deepEqual(numbers, numbers.map((_, i) => i + 1));
    assert(numbers.length > 20);
  });

  test("close unsubscribes and frees the id", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      assert.equal((await link.receive("unsubscribe")).job_id, ID);
      assert.equal((await link.accept("subscribe")).after, undefined);
      link.send(token(1, "a"), end(2));
    }]});
    const jw = client(t, peer.url);
    const job = await jw.create("Hi", {job_id: ID});
    job.close();
    assert.deepEqual(await eventsOf(job), []);
    assert.equal(await jw.subscribe(ID).text(), "a");
  });

  test("a job closed at once runs all the same", async (t) => {
    let hear;
    const heard = new Promise((resolve) => (hear = resolve));
    const peer = await scripted(t, {sockets: [async (link) => {
      assert((await link.accept()).detach);
      assert.equal((await link.receive("unsubscribe")).job_id, ID);
      hear();
    }]});
    client(t, peer.url).run("Hi", {job_id: ID, detach: true}).close();
    await heard;
  });

  test("a closed job can be cancelled", async (t) => {
    let leave;
    const left = new Promise((resolve) => (leave = resolve));
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      await link.receive("unsubscribe");
      leave();
      assert.equal((await link.accept("cancel")).job_id, ID);
    }]});
    const jw = client(t, peer.url);
    const job = await jw.create("Hi", {job_id: ID});
    job.close();
    await left;
    await job.cancel();
    jw.close();
    job.close(); // too late, and harmless
  });

  test("closing the client ends every wait", async (t) => {
    const peer = await scripted(t, {sockets: [async (link) => {
      await link.accept();
      await link.closed;
    }]});
    const jw = client(t, peer.url);
    const job = await jw.create("Hi");
    const reading = job.text();
    const cancelling = job.cancel();
    jw.close();
    await assert.rejects(reading, {code: "closed"});
    await assert.rejects(cancelling, {code: "closed"});
    job.close(); // too late, and harmless
    assert.throws(() => jw.run("Hi"), ConnectionFailed);
    await peer.links[0].closed;
    assert.equal(peer.links.length, 1);
  });

  test("a request too large is refused here and hurts no other", async (t) => {
    const peer = await scripted(t, {hello: {limits: {max_frame_bytes: 1000}}, sockets: [async (link) => {
      await link.accept();
      link.send(token(1, "a"), end(2));
    }]});
    const jw = client(t, peer.url);
    await assert.rejects(jw.create("ü".repeat(500)), {code: "frame_too_large"});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
  });

  test("the key goes as a frame when the worker asks", async (t) => {
    const peer = await scripted(t, {hello: {auth: "required"}, sockets: [async (link) => {
      assert.equal((await link.receive("auth")).token, "key");
      link.send({type: "hello", protocol: "jobwire.v1", auth: "ok"});
      await link.accept();
      link.send(end(1));
    }]});
    const seen = [];
    const jw = client(t, peer.url, {token: "key", onframe: (frame) => seen.push(frame)});
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "");
    assert.doesNotMatch(JSON.stringify(seen), /key/);
  });

  test("a peer that speaks no JSON is a cut", async (t) => {
    const peer = await scripted(t, {sockets: [
      async (link) => {
        await link.accept();
        link.sendText("[not an object]");
      },
      async (link) => {
        await link.accept();
        link.send(end(1));
      },
    ]});
    assert.equal(await client(t, peer.url).run("Hi", {job_id: ID}).text(), "");
  });

  test("all forms of the URL reach the same socket", async (t) => {
    const peer = await scripted(t, {sockets: [silent]});
    const ws = peer.url.replace("http", "ws");
    for (const url of [peer.url, `${peer.url}/`, ws, `${ws}/v1/ws`]) await connectOnce(t, url);
    assert.deepEqual(peer.upgrades.map((request) => request.url), Array(4).fill("/v1/ws"));

    async function connectOnce(t, url) {
      const before = peer.links.length;
      const jw = client(t, url);
      const job = jw.run("Hi");
      job.text().catch(() => {});
      while (peer.links.length === before) await new Promise(setImmediate);
      jw.close();
    }
  });

  test("a proxy that lets no WebSocket through is answered with SSE", async (t) => {
    const ok = ({response}) => response.end("Jobwire");
    const peer = await scripted(t, {refuseSockets: Infinity, requests: [ok, created, streams(token(1, "a"), end(2))]});
    const jw = client(t, peer.url);
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "a");
    assert.equal(jw.transport, "sse");
    assert.equal(peer.upgrades.length, 1);
  });

  test("a worker that is away is not taken for such a proxy", async (t) => {
    const badGateway = ({response}) => response.writeHead(502).end();
    const peer = await scripted(t, {refuseSockets: Infinity, requests: Array(1000).fill(badGateway)});
    const jw = client(t, peer.url, {retryTimeoutMs: 200, backoffMs: [5, 20]});
    await assert.rejects(jw.run("Hi").text(), {code: "connection_failed"});
    assert.equal(jw.transport, "websocket");
  });
});

suite("SSE", {timeout: 20_000}, () => {
  const over = {transport: "sse"};

  test("one job from POST to end", async (t) => {
    const peer = await scripted(t, {requests: [
      created,
      streams({type: "narration", job_id: ID, cursor: "e-1", human: "First."}, token(2, "Hel"), {type: "weather"},
        token(3, "lo"), end(4)),
    ]});
    const jw = client(t, peer.url, {...over, token: "key"});
    const job = await jw.create("Hi", {job_id: ID, max_tokens: 5});
    assert.equal(job.accepted.state, "queued");
    assert.equal((await eventsOf(job))[0].human, "First.");
    assert.deepEqual([await job.text(), job.cursor, jw.transport], ["Hello", "e-4", "sse"]);
    const [post, get] = peer.requests;
    assert.deepEqual(post.body, {job_id: ID, prompt: "Hi", max_tokens: 5});
    assert.equal(post.headers.accept, "application/json");
    assert.deepEqual([get.url, get.headers.accept], [`/v1/jobs/${ID}/stream`, "text/event-stream"]);
    assert.equal(get.headers["last-event-id"], undefined);
    assert.deepEqual([post.headers.authorization, get.headers.authorization], ["Bearer key", "Bearer key"]);
  });

  test("without a WebSocket constructor it is SSE", async (t) => {
    const peer = await scripted(t, {requests: [created, streams(end(1))]});
    const jw = client(t, peer.url, {WebSocket: undefined});
    assert.equal(jw.transport, "sse");
    assert.equal(await jw.run("Hi", {job_id: ID}).text(), "");
  });

  for (const newline of ["\n", "\r\n"]) {
    test(`pieces of one byte, lines that end in ${JSON.stringify(newline)}`, async (t) => {
      const text = "a\u2028b\u2029c\x85d\x0be\x0cf\rg\u{1f469}\u200d\u{1f680}";
      const bytes = Buffer.from(sse(token(1, text), end(2)).replaceAll("\n", newline));
      const peer = await scripted(t, {requests: [created, async ({response}) => {
        response.writeHead(200, {"Content-Type": "text/event-stream"});
        for (const byte of bytes) {
          await new Promise((resolve) => response.write(Buffer.of(byte), resolve));
          await new Promise(setImmediate); // writes of one turn would go as one chunk
        }
        response.end();
      }]});
      assert.equal(await client(t, peer.url, over).run("Hi", {job_id: ID}).text(), text);
    });
  }

  test("text is exact wherever the stream is cut", async (t) => {
    const log = Array.from({length: 10}, (_, i) => token(i + 1, `${i + 1} `)).concat(end(11));
    const bytes = sse(...log).length;
    for (let cut = 0; cut < bytes; cut += 13) {
      let cuts = 2;
      const serve = (exchange) => {
        if (exchange.method === "POST") return created(exchange);
        const rest = sse(...log.slice(Number((exchange.headers["last-event-id"] ?? "e-0").slice(2))));
        exchange.response.writeHead(200, {"Content-Type": "text/event-stream"});
        if (!cuts--) return exchange.response.end(rest);
        exchange.response.write(rest.slice(0, cut), () => exchange.response.destroy());
      };
      const peer = await scripted(t, {requests: Array(4).fill(serve)});
      assert.equal(await client(t, peer.url, over).run("Count", {job_id: ID}).text(), "1 2 3 4 5 6 7 8 9 10 ");
    }
  });

  test("reconnect drops the stream, and onframe sees both sides", async (t) => {
    const peer = await scripted(t, {requests: [
      created,
      ({response}) => response.writeHead(200).write(sse(token(1, "a"))),
      streams(token(2, "b"), end(3)),
    ]});
    const seen = [];
    const onframe = (frame, direction) => seen.push(`${direction} ${frame.type} ${frame.cursor ?? ""}`);
    const jw = client(t, peer.url, {...over, onframe});
    const job = jw.run("Hi", {job_id: ID});
    for await (const _ of job) break;
    jw.reconnect();
    assert.equal(await job.text(), "ab");
    assert.deepEqual(seen, ["out create ", "in accepted ", "in token e-1", "in token e-2", "in end e-3"]);
    assert.equal(peer.requests[2].headers["last-event-id"], "e-1");
  });

  test("a POST without an answer is repeated with the same id", async (t) => {
    const peer = await scripted(t, {requests: [({response}) => response.destroy(), created, streams(end(1))]});
    assert.equal(await client(t, peer.url, over).run("Hi").text().catch((error) => error.code), "");
    assert.deepEqual(peer.requests[0].body, peer.requests[1].body);
  });

  test("204 ends it", async (t) => {
    const peer = await scripted(t, {requests: [({response}) => response.writeHead(204).end()]});
    assert.deepEqual(await eventsOf(client(t, peer.url, over).subscribe(ID, {after: "e-9"})), []);
    assert.deepEqual([peer.requests[0].url, peer.requests[0].headers["last-event-id"]], [`/v1/jobs/${ID}/stream`, "e-9"]);
  });

  test("a prompt with a cursor resumes and never creates", async (t) => {
    const peer = await scripted(t, {requests: [streams(token(3, "c"), end(4))]});
    assert.equal(await client(t, peer.url, over).run("Hi", {job_id: ID, after: "e-2"}).text(), "c");
    assert.deepEqual([peer.requests[0].method, peer.requests[0].headers["last-event-id"]], ["GET", "e-2"]);
  });

  test("reset starts the text over", async (t) => {
    const anew = [{...token(1, "anew"), cursor: "f-1"}, {...end(2), cursor: "f-2"}];
    const peer = await scripted(t, {requests: [
      created, streams(token(1, "lost")), streams({type: "accepted", reset: true}, ...anew),
    ]});
    const job = client(t, peer.url, over).run("Hi", {job_id: ID});
    const types = (await eventsOf(job)).map((event) => event.type);
    assert.deepEqual(types.slice(-3), ["reset", "token", "end"]);
    assert.equal(await job.text(), "anew");
  });

  for (const [status, code] of [[404, "job_not_found"], [410, "job_lost"], [401, "unauthorized"], [418, "http_418"]]) {
    test(`a stream refused with ${status} rejects`, async (t) => {
      const body = status === 418 ? "<h1>Teapot</h1>" : JSON.stringify({code, status, detail: "No."});
      const peer = await scripted(t, {requests: [({response}) => response.writeHead(status).end(body)]});
      await assert.rejects(client(t, peer.url, over).subscribe(ID).text(), {name: "Refused", code, status});
    });
  }

  test("a refused POST rejects and says when to retry", async (t) => {
    const problem = {code: "queue_full", status: 429, detail: "Full.", retry_after_ms: 900};
    const peer = await scripted(t, {requests: [({response}) => response.writeHead(429).end(JSON.stringify(problem))]});
    await assert.rejects(client(t, peer.url, over).create("Hi"), {code: "queue_full", retryAfterMs: 900});
  });

  for (const status of [429, 502, 503, 504]) {
    test(`a proxy that says ${status} in between is waited for`, async (t) => {
      const away = ({response}) => response.writeHead(status, {"Retry-After": "0"}).end();
      const peer = await scripted(t, {requests: [created, streams(token(1, "a")), away, streams(end(2))]});
      assert.equal(await client(t, peer.url, over).run("Hi", {job_id: ID}).text(), "a");
    });
  }

  test("an outage is bounded in time", async (t) => {
    const peer = await scripted(t, {requests: [created, ({response}) => {
      response.writeHead(200).write(sse(token(1, "a")));
    }]});
    const job = client(t, peer.url, {...over, retryTimeoutMs: 200}).run("Hi", {job_id: ID});
    for await (const _ of job) break;
    peer.stop();
    await assert.rejects(job.text(), {name: "ConnectionFailed", code: "connection_failed"});
  });

  test("cancel is a DELETE, after the POST", async (t) => {
    let stream;
    const peer = await scripted(t, {requests: [
      created,
      ({response}) => (stream = response).writeHead(200).write(sse(token(1, "a"))),
      ({method, url, response}) => {
        assert.deepEqual([method, url], ["DELETE", `/v1/jobs/${ID}`]);
        response.end(JSON.stringify({job_id: ID, status: "cancelled"}));
        stream.end(sse(end(2, "cancelled")));
      },
    ]});
    const job = client(t, peer.url, over).run("Hi", {job_id: ID});
    for await (const _ of job) break;
    await job.cancel();
    await assert.rejects(job.text(), {name: "JobCancelled", text: "a"});
    await job.cancel(); // after the end there is nothing to ask
  });

  test("a cancel waits for the answer to the POST", async (t) => {
    const order = [];
    let cancel;
    const asked = new Promise((resolve) => (cancel = resolve));
    const peer = await scripted(t, {requests: [
      async (exchange) => {
        await asked;
        order.push("POST answered");
        created(exchange);
      },
      ...Array(2).fill(({method, response}) => {
        order.push(method);
        response.end(method === "DELETE" ? "{}" : sse(end(1, "cancelled")));
      }),
    ]});
    const job = client(t, peer.url, over).run("Hi", {job_id: ID});
    while (!peer.requests.length) await new Promise(setImmediate);
    job.cancel();
    setTimeout(cancel, 50); // a DELETE that does not wait is here before
    assert.deepEqual((await eventsOf(job)).map((event) => event.status), ["cancelled"]);
    assert.deepEqual([order[0], order.length], ["POST answered", 3]);
  });

  test("an abort cancels the job and closes its stream", async (t) => {
    const controller = new AbortController();
    let closed;
    const peer = await scripted(t, {requests: [
      created,
      ({response}) => {
        closed = once(response, "close");
        response.writeHead(200).write(sse(token(1, "a")));
      },
      ({response}) => response.end("{}"),
    ]});
    const job = client(t, peer.url, over).run("Hi", {job_id: ID, signal: controller.signal});
    for await (const _ of job) break;
    controller.abort(new Error("enough"));
    await assert.rejects(job.text(), /enough/);
    await closed;
    while (peer.requests.length < 3) await new Promise(setImmediate);
    assert.equal(peer.requests[2].method, "DELETE");
  });

  test("a job that nobody reads is not read on", async (t) => {
    const total = 20_000;
    let written = 0;
    const peer = await scripted(t, {requests: [created, async ({response}) => {
      response.writeHead(200);
      while (written < total) {
        const frame = sse(token(++written, `${written} `, {padding: "x".repeat(1000)}));
        if (!response.write(frame)) await once(response, "drain");
      }
      response.end(sse(end(total + 1)));
    }]});
    const job = await client(t, peer.url, {...over, unreadBytesMax: 100_000}).create("Count", {job_id: ID});
    for (let before = -1; before !== written; ) { // until the writer is stuck
      before = written;
      await new Promise((resolve) => setTimeout(resolve, 600)); // the kernel alone may take 200 ms between two windows
    }
    assert(written < total, "everything was read though nobody asked");
    const numbers = (await job.text()).trim().split(" ").map(Number);
    assert.equal(numbers.length, total);
    assert.deepEqual(numbers.slice(-2), [total - 1, total]);
  });

  test("closing the client ends every wait", async (t) => {
    const peer = await scripted(t, {requests: [created, ({response}) => response.writeHead(200).write(sse(token(1, "a")))]});
    const jw = client(t, peer.url, over);
    const job = jw.run("Hi", {job_id: ID});
    for await (const _ of job) break;
    const reading = job.text();
    jw.close();
    await assert.rejects(reading, {code: "closed"});
    assert.throws(() => jw.run("Hi"), ConnectionFailed);
  });
});

suite("Arguments", () => {
  test("wrong ones are refused", () => {
    assert.throws(() => connect("ftp://worker"), /Expected a URL/);
    assert.throws(() => connect("no url"), TypeError);
    assert.throws(() => connect("http://x", {transport: "pigeon"}), /pigeon/);
    assert.throws(() => connect("http://x", {transport: "websocket", WebSocket: undefined}), /no WebSocket/);
  });
});
