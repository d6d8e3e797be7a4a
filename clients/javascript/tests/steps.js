/** What the tests are made of: frames, scripts that many of them share, clients that end with their test, and time. */
import assert from "node:assert/strict";

import {connect} from "../jobwire.js";

const QUICK = {backoffMs: [1, 10]};
const TURNS = 200;
export const ID = "job-0123456789abcdef";
export const OTHER = "second-job-012345";
export const OVER_SSE = {transport: "sse"};
export const HELLO = {type: "hello", protocol: "jobwire.v1", limits: {heartbeat_s: 15}};
export const GOAWAY = {type: "goaway", reason: "draining", retry_ms: 1};

/** A client that is closed when the test ends. */
export function client(t, url, options = {}) {
  const jw = connect(url, {...QUICK, ...options});
  t.after(() => jw.close());
  return jw;
}

export async function firstOf(job) {
  return (await job[Symbol.asyncIterator]().next()).value;
}

export async function eventsOf(job) {
  const events = [];
  for await (const event of job) events.push(event);
  return events;
}

// ---- time

export const turn = () => new Promise(setImmediate);
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Let everything happen that needs no time: what was sent on this machine is there to be received at once. */
export async function settle() {
  for (let i = 0; i < TURNS; i++) await turn();
}

/** A promise, and the function that resolves it. */
export function deferred() {
  let resolve;
  return [new Promise((given) => (resolve = given)), resolve];
}

/** Let time stand still for the client; the returned function lets some of it pass. */
export function stopClock(t) {
  let nowMs = 1_000_000;
  t.mock.method(performance, "now", () => nowMs);
  t.mock.timers.enable({apis: ["setTimeout"]});
  return (ms) => {
    nowMs += ms;
    t.mock.timers.tick(ms);
  };
}

// ---- frames

export const token = (at, text, more = {}) => ({type: "token", job_id: ID, cursor: `e-${at}`, text, ...more});

export function end(at, status = "completed", more = {}) {
  return {type: "end", job_id: ID, cursor: `e-${at}`, status, ...more};
}

/** Encode frames as the worker does: unnamed events, the cursor as id. */
export function sse(...frames) {
  const event = (frame) => `${frame.cursor ? `id: ${frame.cursor}\n` : ""}data: ${JSON.stringify(frame)}\n\n`;
  return frames.map(event).join("");
}

// ---- scripts for a WebSocket

/** Say nothing after the hello. */
export const silent = (peer) => peer.closed;

/** A script that accepts a job and sends frames. */
export function serves(...frames) {
  return async (peer) => {
    await peer.accept();
    peer.send(...frames);
  };
}

/** A script that accepts a job, sends frames and is cut. */
export function cutAfter(...frames) {
  return async (peer) => {
    await peer.accept();
    peer.send(...frames);
    peer.cut();
  };
}

/** Resume the job of a client that has received "a": send the rest, and the end. */
export async function goOnAfterA(peer) {
  assert.equal((await peer.accept()).after, "e-1");
  peer.send(token(2, "b"), end(3));
}

// ---- scripts for HTTP

/** Accept a POST. */
export function created({method, url, body, response}) {
  assert.deepEqual([method, url], ["POST", "/v1/jobs"]);
  const sse_url = `/v1/jobs/${body.job_id}/stream?ticket=t`;
  response.writeHead(200, {"Content-Type": "application/json"});
  response.end(JSON.stringify({job_id: body.job_id, sse_url, state: "queued"}));
}

/** A script that streams frames and leaves the response open. */
export function opens(...frames) {
  return ({response}) => response.writeHead(200, {"Content-Type": "text/event-stream"}).write(sse(...frames));
}

/** A script that streams frames and then ends the response: a cut unless the job has ended. */
export function streams(...frames) {
  return ({response}) => {
    response.writeHead(200, {"Content-Type": "text/event-stream"});
    response.end(`retry: 1000\n\n: hb\n\n${sse(...frames)}`);
  };
}
