/** Jobs over HTTP and SSE: cuts, resets, refusals, cancel. */
import assert from "node:assert/strict";
import {once} from "node:events";
import {suite, test} from "node:test";

import {scripted} from "./scripted.js";
import {
  ID, OVER_SSE, client, created, deferred, end, eventsOf, firstOf, opens, settle, sse, streams, token, turn,
} from "./steps.js";

suite("SSE", {timeout: 20_000}, () => {
  test("one job from POST to end", async (t) => {
    const worker = await scripted(t, {requests: [
      created,
      streams({type: "narration", job_id: ID, cursor: "e-1", human: "First."}, token(2, "Hel"), {type: "weather"},
        token(3, "lo"), end(4)),
    ]});
    const jw = client(t, worker.url, {...OVER_SSE, token: "key"});
    const job = await jw.create("Hi", {job_id: ID, max_tokens: 5});
    assert.equal(job.accepted.state, "queued");
    assert.equal((await eventsOf(job))[0].human, "First.");
    assert.deepEqual([await job.text(), job.cursor, jw.transport], ["Hello", "e-4", "sse"]);
    const [post, get] = worker.requests;
    assert.deepEqual(post.body, {job_id: ID, prompt: "Hi", max_tokens: 5});
    assert.equal(post.headers.accept, "application/json");
    assert.deepEqual([get.url, get.headers.accept], [`/v1/jobs/${ID}/stream`, "text/event-stream"]);
    assert.equal(get.headers["last-event-id"], undefined);
    assert.deepEqual([post.headers.authorization, get.headers.authorization], ["Bearer key", "Bearer key"]);
  });

  for (const newline of ["\n", "\r\n"]) {
    test(`pieces of one byte, lines that end in ${JSON.stringify(newline)}`, async (t) => {
      const text = "a\u2028b\u2029c\x85d\x0be\x0cf\rg\u{1f469}\u200d\u{1f680}";
      const bytes = Buffer.from(sse(token(1, text), end(2)).replaceAll("\n", newline));
      const worker = await scripted(t, {requests: [created, async ({response}) => {
        response.writeHead(200, {"Content-Type": "text/event-stream"});
        for (const byte of bytes) {
          await new Promise((resolve) => response.write(Buffer.of(byte), resolve));
          await turn(); // writes of one turn would go as one chunk
        }
        response.end();
      }]});
      assert.equal(await client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID}).text(), text);
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
        return exchange.response.write(rest.slice(0, cut), () => exchange.response.destroy());
      };
      const worker = await scripted(t, {requests: Array(4).fill(serve)});
      assert.equal(await client(t, worker.url, OVER_SSE).run("Count", {job_id: ID}).text(), "1 2 3 4 5 6 7 8 9 10 ");
    }
  });

  test("reconnect drops the stream, and onframe sees both sides", async (t) => {
    const worker = await scripted(t, {requests: [
      created,
      opens(token(1, "a")),
      streams(token(2, "b"), end(3)),
    ]});
    const seen = [];
    const onframe = (frame, direction) => seen.push(`${direction} ${frame.type} ${frame.cursor ?? ""}`);
    const jw = client(t, worker.url, {...OVER_SSE, onframe});
    const job = jw.run("Hi", {job_id: ID});
    await firstOf(job);
    jw.reconnect();
    assert.equal(await job.text(), "ab");
    assert.deepEqual(seen, ["out create ", "in accepted ", "in token e-1", "in token e-2", "in end e-3"]);
    assert.equal(worker.requests[2].headers["last-event-id"], "e-1");
  });

  test("a POST without an answer is repeated with the same id", async (t) => {
    const worker = await scripted(t, {requests: [({response}) => response.destroy(), created, streams(end(1))]});
    assert.equal(await client(t, worker.url, OVER_SSE).run("Hi").text().catch((error) => error.code), "");
    assert.deepEqual(worker.requests[0].body, worker.requests[1].body);
  });

  test("204 ends it", async (t) => {
    const worker = await scripted(t, {requests: [({response}) => response.writeHead(204).end()]});
    assert.deepEqual(await eventsOf(client(t, worker.url, OVER_SSE).subscribe(ID, {after: "e-9"})), []);
    const [{url, headers}] = worker.requests;
    assert.deepEqual([url, headers["last-event-id"]], [`/v1/jobs/${ID}/stream`, "e-9"]);
  });

  test("a prompt with a cursor resumes and never creates", async (t) => {
    const worker = await scripted(t, {requests: [streams(token(3, "c"), end(4))]});
    assert.equal(await client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID, after: "e-2"}).text(), "c");
    assert.deepEqual([worker.requests[0].method, worker.requests[0].headers["last-event-id"]], ["GET", "e-2"]);
  });

  test("reset starts the text over", async (t) => {
    const anew = [{...token(1, "anew"), cursor: "f-1"}, {...end(2), cursor: "f-2"}];
    const worker = await scripted(t, {requests: [
      created, streams(token(1, "lost")), streams({type: "accepted", reset: true}, ...anew),
    ]});
    const job = client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID});
    const types = (await eventsOf(job)).map((event) => event.type);
    assert.deepEqual(types.slice(-3), ["reset", "token", "end"]);
    assert.equal(await job.text(), "anew");
  });

  for (const [status, code] of [[404, "job_not_found"], [410, "job_lost"], [401, "unauthorized"], [418, "http_418"]]) {
    test(`a stream refused with ${status} rejects`, async (t) => {
      const body = status === 418 ? "<h1>Teapot</h1>" : JSON.stringify({code, status, detail: "No."});
      const worker = await scripted(t, {requests: [({response}) => response.writeHead(status).end(body)]});
      await assert.rejects(client(t, worker.url, OVER_SSE).subscribe(ID).text(), {name: "Refused", code, status});
    });
  }

  test("a refused POST rejects and says when to retry", async (t) => {
    const problem = {code: "queue_full", status: 429, detail: "Full.", retry_after_ms: 900};
    const busy = ({response}) => response.writeHead(429).end(JSON.stringify(problem));
    const worker = await scripted(t, {requests: [busy]});
    await assert.rejects(client(t, worker.url, OVER_SSE).create("Hi"), {code: "queue_full", retryAfterMs: 900});
  });

  for (const status of [429, 502, 503, 504]) {
    test(`a proxy that says ${status} in between is waited for`, async (t) => {
      const away = ({response}) => response.writeHead(status, {"Retry-After": "0"}).end();
      const worker = await scripted(t, {requests: [created, streams(token(1, "a")), away, streams(end(2))]});
      assert.equal(await client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID}).text(), "a");
    });
  }

  test("an outage is bounded in time", async (t) => {
    const worker = await scripted(t, {requests: [created, opens(token(1, "a"))]});
    const job = client(t, worker.url, {...OVER_SSE, retryTimeoutMs: 200}).run("Hi", {job_id: ID});
    await firstOf(job);
    worker.stop();
    await assert.rejects(job.text(), {name: "ConnectionFailed", code: "connection_failed"});
  });

  test("cancel is a DELETE, after the POST", async (t) => {
    let stream;
    const worker = await scripted(t, {requests: [
      created,
      ({response}) => (stream = response).writeHead(200).write(sse(token(1, "a"))),
      ({method, url, response}) => {
        assert.deepEqual([method, url], ["DELETE", `/v1/jobs/${ID}`]);
        response.end(JSON.stringify({job_id: ID, status: "cancelled"}));
        stream.end(sse(end(2, "cancelled")));
      },
    ]});
    const job = client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID});
    await firstOf(job);
    await job.cancel();
    await assert.rejects(job.text(), {name: "JobCancelled", text: "a"});
    await job.cancel(); // after the end there is nothing to ask
  });

  test("a cancel waits for the answer to the POST", async (t) => {
    const order = [];
    const [asked, cancel] = deferred();
    const worker = await scripted(t, {requests: [
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
    const job = client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID});
    while (!worker.requests.length) await turn();
    job.cancel();
    await settle(); // a DELETE that does not wait is here before
    cancel();
    assert.deepEqual((await eventsOf(job)).map((event) => event.status), ["cancelled"]);
    assert.deepEqual([order[0], order.length], ["POST answered", 3]);
  });

  test("an abort cancels the job and closes its stream", async (t) => {
    const controller = new AbortController();
    let closed;
    const worker = await scripted(t, {requests: [
      created,
      ({response}) => {
        closed = once(response, "close");
        response.writeHead(200).write(sse(token(1, "a")));
      },
      ({response}) => response.end("{}"),
    ]});
    const job = client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID, signal: controller.signal});
    await firstOf(job);
    controller.abort(new Error("enough"));
    await assert.rejects(job.text(), /enough/);
    await closed;
    while (worker.requests.length < 3) await turn();
    assert.equal(worker.requests[2].method, "DELETE");
  });

  test("over SSE there is no update", async (t) => {
    let finish;
    const worker = await scripted(t, {requests: [created, ({response}) => (finish = () => response.end(sse(end(1))))]});
    const job = client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID});
    await assert.rejects(job.update({priority: 9}), {code: "unsupported_operation"});
    while (!finish) await turn();
    finish();
    assert.equal(await job.text(), "");
  });

  test("over SSE too, only the channels that were asked for are read", async (t) => {
    const note = {type: "narration", job_id: ID, cursor: "e-2", human: "Half."};
    const worker = await scripted(t, {requests: [streams(token(1, "a"), note, token(3, "b"), end(4))]});
    const events = await eventsOf(client(t, worker.url, OVER_SSE).subscribe(ID, {channels: ["narration"]}));
    assert.deepEqual(events, [note, end(4)]);
  });

  for (const status of [502, 503, 504]) {
    test(`requests wait for a worker that restarts behind a proxy which says ${status}`, async (t) => {
      const away = ({response}) => response.writeHead(status, {"Retry-After": "0"}).end();
      let stream;
      const worker = await scripted(t, {requests: [
        away, created,
        ({response}) => (stream = response).writeHead(200).write(sse(token(1, "a"))),
        away,
        ({method, response}) => {
          assert.equal(method, "DELETE");
          response.end("{}");
          stream.end(sse(end(2, "cancelled")));
        },
      ]});
      const job = client(t, worker.url, OVER_SSE).run("Hi", {job_id: ID});
      await firstOf(job);
      await job.cancel();
      await eventsOf(job);
    });
  }
});
