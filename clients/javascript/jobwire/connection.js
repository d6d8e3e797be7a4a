/** One WebSocket, and the jobs that it carries. */
import {ConnectionFailed, Cut} from "./errors.js";
import {keyOf, renews} from "./options.js";
import {Subscriptions} from "./subscription.js";
import {sleep} from "./waiting.js";
import {CONNECT_TIMEOUT_MS, EVENT_TYPES, HEARTBEAT_MS, parse} from "./wire.js";

/** The share of a key's time to live after which the next key is requested. */
const REFRESH_AT = 0.8;

/** The same after an attempt that failed. */
const REFRESH_AGAIN_AT = 0.05;

/** The meaning of a time to live of 0 s: the worker sends whole seconds. */
const EXPIRES_S_MIN = 0.5;

/** The longest time that a timer can wait. */
const TIMER_MS_MAX = 2 ** 31 - 1;

const DONE = 1000, LOST = 1006; // close codes
const CLOSE_CODES = new Map([
  [4400, "protocol_abuse"], [4401, "unauthorized"], [4403, "forbidden"], [4406, "version"], [4408, "auth_timeout"],
]);

/** Shown to `onframe` in place of a key. */
const HIDDEN = "...";

/** One WebSocket, and the jobs that it carries after the hello. */
export class Connection {
  jobs = new Subscriptions();
  greeted; // resolves with the worker's hello, rejects if there is none
  gone; // resolves to the reason when the connection accepts no more new jobs
  ended; // resolves when it carries no jobs
  #resolveGreeted;
  #rejectGreeted;
  #resolveGone;
  #resolveEnded;
  #settings;
  #key;
  #subscriptions;
  #retry;
  #socket;
  #hello = null;
  #isLeaving = false;
  #since = performance.now();
  #receivedAt = performance.now();
  #silence; // the timer that detects it
  #closing = new AbortController();
  #answers = new Map(); // by ref: {subscription, answered}
  #refs = 0;

  constructor(key, settings, subscriptions, retry) {
    this.#key = key;
    this.#settings = settings;
    this.#subscriptions = subscriptions;
    this.#retry = retry;
    this.greeted = new Promise((resolve, reject) => ([this.#resolveGreeted, this.#rejectGreeted] = [resolve, reject]));
    this.gone = new Promise((resolve) => (this.#resolveGone = resolve));
    this.ended = new Promise((resolve) => (this.#resolveEnded = resolve));
    this.#socket = this.#open();
    this.#watchSilence(CONNECT_TIMEOUT_MS);
  }

  /** Whether new jobs may be sent over it. */
  get acceptsJobs() {
    return this.#hello !== null && !this.#isLeaving;
  }

  get lastedMs() {
    return performance.now() - this.#since;
  }

  /** Accept no new jobs from now on. */
  go(reason) {
    this.#isLeaving = true;
    this.#resolveGone(reason);
  }

  /** Send the frames of a subscription. */
  notify(subscription) {
    this.jobs.set(subscription.id, subscription);
    const ref = (answered) => {
      this.#answers.set(String(++this.#refs), {subscription, answered});
      return String(this.#refs);
    };
    for (const frame of subscription.frames(ref, this.#hello.limits?.max_window ?? Infinity)) this.#send(frame);
    this.#forgetIfOver(subscription);
  }

  /** Treat the connection as closed, whatever the socket still does. */
  lose(reason) {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = null;
    clearTimeout(this.#silence);
    this.#closing.abort();
    socket.close(DONE); // a bare close() reports 1005
    this.go(reason);
    this.#rejectGreeted(reason);
    this.#resolveEnded();
  }

  #open() {
    const protocols = this.#key ? ["jobwire.v1", `bearer.${base64url(this.#key)}`] : ["jobwire.v1"];
    let socket;
    try {
      socket = new this.#settings.WebSocket(`${this.#settings.base.replace(/^http/, "ws")}/v1/ws`, protocols);
    } catch (error) { // an https page, or its policy, may forbid it
      throw new Cut(error.message, 0, {cause: error});
    }
    socket.onmessage = ({data}) => this.#socket && this.#receive(data);
    socket.onclose = ({code, reason}) => this.lose(reasonOf(code, reason));
    socket.onerror = () => {
      // A close event follows, but not in Node 20 for a socket that could not be opened.
      if (socket.readyState === 0) this.lose(reasonOf(LOST, "The WebSocket could not be opened"));
    };
    return socket;
  }

  #receive(data) {
    this.#receivedAt = performance.now();
    try {
      const frame = parse(data);
      this.#settings.onframe(frame, "in");
      if (this.acceptsJobs || this.#isLeaving) this.#process(frame);
      else this.#greet(frame);
    } catch (error) {
      this.lose(error);
    }
  }

  #greet(hello) {
    if (hello.type !== "hello") throw new Cut(`Expected the worker's hello, got ${hello.type}`);
    if (hello.auth === "required" && this.#key !== null) { // something in between removed the key
      this.#authenticate(this.#key);
      this.#key = null;
      return;
    }
    this.#hello = hello;
    this.#watchSilence(2 * (hello.limits?.heartbeat_s * 1000 || HEARTBEAT_MS));
    this.#keepAuthorized();
    this.#resolveGreeted();
  }

  #process(frame) {
    let subscription = this.jobs.get(frame.job_id);
    if (frame.type === "accepted" || frame.type === "error") {
      const answer = this.#answers.get(frame.ref);
      this.#answers.delete(frame.ref);
      subscription = answer?.subscription;
      if (answer) answer.answered(frame);
      else if (frame.type === "error") console.warn("jobwire: the worker reports", frame.error);
    } else if (frame.type === "goaway") {
      this.go(new Cut(`The worker goes away: ${frame.reason}`, frame.retry_ms));
    } else if (subscription && EVENT_TYPES.has(frame.type)) {
      this.#retry.clear();
      subscription.receive(frame);
    }
    if (subscription) this.#forgetIfOver(subscription);
    if (this.#isLeaving && !this.jobs.size) this.lose(new Cut("All jobs of this connection are over"));
  }

  #send(frame) {
    const message = JSON.stringify(frame);
    const bytes = new TextEncoder().encode(message).length;
    const bytesMax = this.#hello.limits?.max_frame_bytes ?? Infinity;
    if (bytes > bytesMax) { // the worker would close the connection of all jobs, so the request is refused here
      const detail = `Expected a request of at most ${bytesMax} bytes, got ${bytes}`;
      this.#process({type: "error", ref: frame.ref, error: {code: "frame_too_large", status: 413, detail}});
    } else if (this.#socket) { // else it was lost a moment ago, and everything is sent again over the next one
      this.#socket.send(message);
      this.#settings.onframe(frame, "out");
    }
  }

  /** Send another key before the current one expires. */
  async #keepAuthorized() {
    if (!renews(this.#settings) || this.#hello.expires_in === undefined) return;
    const expiresMs = 1000 * (this.#hello.expires_in || EXPIRES_S_MIN);
    let share = REFRESH_AT;
    while (this.#socket) {
      try {
        await sleep(Math.min(share * expiresMs, TIMER_MS_MAX), this.#closing.signal);
        this.#authenticate(await keyOf(this.#settings));
        share = REFRESH_AT;
      } catch (failure) {
        if (!this.#socket) return;
        console.warn("jobwire:", failure);
        share = REFRESH_AGAIN_AT;
      }
    }
  }

  #authenticate(key) {
    this.#socket.send(JSON.stringify({type: "auth", token: key}));
    this.#settings.onframe({type: "auth", token: HIDDEN}, "out");
  }

  #watchSilence(silenceMs) {
    clearTimeout(this.#silence);
    const check = () => {
      const leftMs = this.#receivedAt + silenceMs - performance.now();
      if (leftMs > 0) this.#silence = setTimeout(check, leftMs);
      else this.lose(new Cut(`Nothing was received for ${silenceMs / 1000} s`));
    };
    this.#silence = setTimeout(check, silenceMs);
  }

  #forgetIfOver(subscription) {
    this.jobs.forgetIfOver(subscription);
    this.#subscriptions.forgetIfOver(subscription);
  }
}

/** Return what the end of a connection means: a Cut, or ConnectionFailed if reconnecting is useless. */
export function reasonOf(code, reason) {
  if (code === DONE || (code >= 4400 && code < 4500)) {
    const detail = reason || `The worker closed the connection with ${code}`;
    return new ConnectionFailed(detail, CLOSE_CODES.get(code) ?? `closed_${code}`);
  }
  const cut = new Cut(reason || `The connection was lost (${code})`);
  if (code !== LOST) cut.closeCode = code;
  return cut;
}

function base64url(text) {
  const binary = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
