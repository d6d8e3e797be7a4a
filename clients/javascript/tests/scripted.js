/**
 * Scripted workers for the tests, which misbehave on purpose, over real sockets.
 * The behaviour of the real worker is tested in tests/clients. Here a script decides what each connection sees.
 */
import assert from "node:assert/strict";
import {createHash} from "node:crypto";
import {once} from "node:events";
import {createServer} from "node:http";

export const NO_WEBSOCKET = globalThis.WebSocket ? false : "run it with --experimental-websocket";
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455
const TEXT = 1, CLOSE = 8;

/** The worker's end of one WebSocket connection. */
export class Peer {
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
 * Serve until the test ends. WebSocket connections go to `sockets` in order, and all further ones to the last script;
 * the first `refuseSockets` are refused. HTTP requests go to `requests` in order; each is {method, url, headers, body,
 * response}. Resolves to what the worker has seen.
 */
export async function scripted(test, scripts) {
  const worker = new ScriptedWorker(scripts);
  await worker.listen();
  test.after(() => {
    worker.stop();
    if (worker.failures.length) throw worker.failures[0];
  });
  return worker;
}

/** What a scripted worker has seen: WebSocket connections, their handshakes, HTTP requests. */
class ScriptedWorker {
  peers = [];
  upgrades = [];
  requests = [];
  failures = []; // of scripts
  #scripts;
  #open = new Set();
  #server;

  constructor({sockets = [], requests = [], hello = {}, greets = true, refuseSockets = 0}) {
    this.#scripts = {sockets, requests, hello, greets, refuseSockets};
    this.#server = createServer((request, response) => this.#answer(request, response));
    this.#server.on("connection", (socket) => this.#open.add(socket.on("error", () => {})));
    this.#server.on("upgrade", (request, socket) => this.#upgrade(request, socket));
  }

  async listen() {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    this.url = `http://127.0.0.1:${this.#server.address().port}`;
  }

  stop() {
    this.#server.close();
    for (const socket of this.#open) socket.destroy();
  }

  async #answer(request, response) {
    const body = await new Response(request).text();
    const exchange = {method: request.method, url: request.url, headers: request.headers, response};
    exchange.body = body && JSON.parse(body);
    this.requests.push(exchange);
    const unexpected = () => assert.fail(`unexpected ${request.method} ${request.url}`);
    const script = this.#scripts.requests[this.requests.length - 1] ?? unexpected;
    if (await this.#attempt(script, exchange)) response.destroy();
  }

  async #upgrade(request, socket) {
    const {sockets, hello, greets, refuseSockets} = this.#scripts;
    this.upgrades.push(request);
    if (this.upgrades.length <= refuseSockets) {
      socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
      return;
    }
    const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + GUID).digest("base64");
    const head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
    head.push(`Sec-WebSocket-Accept: ${accept}`, "Sec-WebSocket-Protocol: jobwire.v1", "", "");
    socket.write(head.join("\r\n"));
    const peer = new Peer(socket);
    this.peers.push(peer);
    if (greets) peer.send({type: "hello", protocol: "jobwire.v1", limits: {heartbeat_s: 15}, ...hello});
    const script = sockets[Math.min(this.peers.length, sockets.length) - 1];
    if (await this.#attempt(script, peer)) peer.close(4400, "the script failed"); // which the client does not retry
  }

  /** Run a script; resolve to its error, if it has one. */
  async #attempt(script, given) {
    try {
      await script(given);
      return null;
    } catch (error) {
      if (!(error instanceof Left)) this.failures.push(error);
      return error;
    }
  }
}
