/**
 * Scripted peers for the tests: they play a worker that misbehaves on purpose, over real sockets.
 * The behaviour of the real worker is tested in tests/clients. Here a script decides what each connection sees.
 */
import assert from "node:assert/strict";
import {createHash} from "node:crypto";
import {once} from "node:events";
import {createServer} from "node:http";

import {connect} from "./jobwire.js";

export const ID = "job-0123456789abcdef";
export const OTHER = "second-job-012345";
const QUICK = {backoffMs: [1, 10]};
export const NO_WEBSOCKET = globalThis.WebSocket ? false : "run it with --experimental-websocket";

export const token = (at, text, more = {}) => ({type: "token", job_id: ID, cursor: `e-${at}`, text, ...more});
export const end = (at, status = "completed", more = {}) => ({type: "end", job_id: ID, cursor: `e-${at}`, status, ...more});
export const silent = (link) => link.closed;

export async function eventsOf(job) {
  const events = [];
  for await (const event of job) events.push(event);
  return events;
}

/** A client that is closed when the test ends. */
export function client(t, url, options = {}) {
  const jw = connect(url, {...QUICK, ...options});
  t.after(() => jw.close());
  return jw;
}

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455
const TEXT = 1, CLOSE = 8;

/** The worker's end of one WebSocket connection. */
export class Link {
  #socket;
  #bytes = Buffer.alloc(0);
  #frames = [];
  #waiting = [];
  closeCode = null;

  constructor(socket) {
    this.#socket = socket;
    socket.on("data", (bytes) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes]);
      while (this.#takeFrame());
    });
    this.closed = new Promise((resolve) => socket.on("close", resolve));
  }

  send(...frames) {
    for (const frame of frames) this.sendText(JSON.stringify(frame));
  }

  sendText(text) {
    this.#write(TEXT, Buffer.from(text));
  }

  /** Wait for the next frame, which must be of this type if one is given. */
  async receive(type) {
    while (!this.#frames.length) {
      await Promise.race([new Promise((resolve) => this.#waiting.push(resolve)), this.closed]);
      if (this.#socket.destroyed && !this.#frames.length) throw new Left();
    }
    const frame = this.#frames.shift();
    assert.equal(frame.type, type ?? frame.type, JSON.stringify(frame));
    return frame;
  }

  /** Wait for a request of this type and accept it; return the request. */
  async accept(type = "create", more = {}) {
    const request = await this.receive(type);
    this.send({type: "accepted", job_id: request.job_id, ref: request.ref, state: "running", ...more});
    return request;
  }

  /** Answer a request with an error. */
  refuse(request, code, status, more = {}) {
    this.send({type: "error", ref: request.ref, error: {code, status, detail: `Refused: ${code}`, ...more}});
  }

  close(code, reason = "") {
    const body = Buffer.alloc(2);
    body.writeUInt16BE(code);
    this.#write(CLOSE, Buffer.concat([body, Buffer.from(reason)]));
    this.#socket.end();
  }

  /** End the TCP connection without a close frame, after some bytes of a frame. */
  cut(half = Buffer.alloc(0)) {
    this.#socket.write(half, () => this.#socket.destroy());
  }

  #write(opcode, payload) {
    const length = payload.length < 126 ? [payload.length] : [126, payload.length >> 8, payload.length & 255];
    this.#socket.write(Buffer.concat([Buffer.from([0x80 | opcode, ...length]), payload]));
  }

  #takeFrame() {
    const bytes = this.#bytes;
    if (bytes.length < 2) return false;
    const short = bytes[1] & 127;
    assert(short < 127, "the tests send no such long frames");
    const at = short === 126 ? 4 : 2;
    if (bytes.length < at + 4) return false;
    const end = at + 4 + (short === 126 ? bytes.readUInt16BE(2) : short);
    if (bytes.length < end) return false;
    const payload = Buffer.from(bytes.subarray(at + 4, end).map((byte, i) => byte ^ bytes[at + (i % 4)]));
    this.#bytes = bytes.subarray(end);
    if ((bytes[0] & 15) === TEXT) this.#frames.push(JSON.parse(payload));
    if ((bytes[0] & 15) === CLOSE) {
      this.closeCode = payload.length ? payload.readUInt16BE(0) : 1005;
      this.#socket.end();
    }
    for (const resolve of this.#waiting.splice(0)) resolve();
    return true;
  }
}

/** The client left; what it has seen is for the test to judge. */
class Left extends Error {}

/**
 * Serve until the test ends. WebSocket connections go to `sockets` in order, the last script serves all the rest; the
 * first `refuseSockets` are refused. HTTP requests go to `requests` in order, each is {method, url, headers, body, response}.
 */
export async function scripted(test, {sockets = [], requests = [], hello = {}, greets = true, refuseSockets = 0}) {
  const seen = {links: [], upgrades: [], requests: [], url: ""};
  const failures = [];
  const open = new Set();
  const attempt = async (script, ...given) => {
    try {
      await script(...given);
    } catch (error) {
      if (!(error instanceof Left)) failures.push(error);
      return error;
    }
  };
  const server = createServer(async (request, response) => {
    const body = await new Response(request).text();
    const exchange = {method: request.method, url: request.url, headers: request.headers, response};
    exchange.body = body && JSON.parse(body);
    seen.requests.push(exchange);
    const script = requests[seen.requests.length - 1] ?? assert.fail(`unexpected ${request.method} ${request.url}`);
    if (await attempt(script, exchange)) response.destroy();
  });
  server.on("connection", (socket) => open.add(socket.on("error", () => {})));
  server.on("upgrade", async (request, socket) => {
    seen.upgrades.push(request);
    if (seen.upgrades.length <= refuseSockets) return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + GUID).digest("base64");
    const head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
    head.push(`Sec-WebSocket-Accept: ${accept}`, "Sec-WebSocket-Protocol: jobwire.v1", "", "");
    socket.write(head.join("\r\n"));
    const link = new Link(socket);
    seen.links.push(link);
    if (greets) link.send({type: "hello", protocol: "jobwire.v1", limits: {heartbeat_s: 15}, ...hello});
    const script = sockets[Math.min(seen.links.length, sockets.length) - 1];
    if (await attempt(script, link)) link.close(4400, "the script failed"); // which the client does not retry
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  seen.url = `http://127.0.0.1:${server.address().port}`;
  seen.stop = () => {
    server.close();
    for (const socket of open) socket.destroy();
  };
  test.after(() => {
    seen.stop();
    if (failures.length) throw failures[0];
  });
  return seen;
}

/** Accept a POST. */
export function created({method, url, body, response}) {
  assert.deepEqual([method, url], ["POST", "/v1/jobs"]);
  const sse_url = `/v1/jobs/${body.job_id}/stream?ticket=t`;
  response.writeHead(200, {"Content-Type": "application/json"});
  response.end(JSON.stringify({job_id: body.job_id, sse_url, state: "queued"}));
}

export function sse(...frames) {
  return frames.map((frame) => (frame.cursor ? `id: ${frame.cursor}\n` : "") + `data: ${JSON.stringify(frame)}\n\n`).join("");
}

/** A script that streams frames and then ends the response: a cut unless the job has ended. */
export function streams(...frames) {
  return ({response}) => {
    response.writeHead(200, {"Content-Type": "text/event-stream"});
    response.end(`retry: 1000\n\n: hb\n\n${sse(...frames)}`);
  };
}
