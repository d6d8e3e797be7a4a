/**
 * Client for Jobwire: create a job, read its text while it is generated, cancel it, and survive every cut.
 * ES modules without dependencies or a build, for browsers and Node >= 20: this one and the folder jobwire beside it.
 *
 *     const jw = connect("http://127.0.0.1:8080");
 *     for await (const event of jw.run("Tell me a story about a fox", {max_tokens: 200})) {
 *       if (event.type === "token") process.stdout.write(event.text);
 *     }
 *     jw.close();
 *
 * One WebSocket carries any number of jobs. Where there is no WebSocket (Node 20, a proxy that lets none through) each
 * job is an event stream over fetch. After a cut the client reconnects and repeats its request with the cursor of the
 * last event it received: no text is lost or doubled.
 *
 * Backpressure: no job ever blocks another one. Unread events of a job are kept in the client, and unread tokens are
 * merged. A job with more than `unreadBytesMax` unread is paused (unsubscribed, or its stream is not read) until its
 * reader comes back: the worker keeps its log. Nothing is dropped and memory is bounded. With `window` the worker
 * itself waits: at most that many frames of a job are in flight or unread. The worker cancels a job that nobody has
 * followed for its `orphan_ttl_s`, unless the job was created with `detach: true`.
 *
 * The modules, in the order in which to read them and in the words of the Python client:
 *
 *     errors options         the words of the client's users
 *     subscription unread    one job without I/O: what to send, what its frames mean, its unread events
 *     job                    the same job for its reader
 *     retry waiting wire     pauses between attempts; ways to wait; JSON and HTTP errors
 *     connection websocket   all jobs over one WebSocket, and over its successor
 *     sse                    each job over HTTP
 */
import {ConnectionFailed} from "./jobwire/errors.js";
import {Job} from "./jobwire/job.js";
import {settingsOf} from "./jobwire/options.js";
import {SseTransport} from "./jobwire/sse.js";
import {Subscription, Subscriptions} from "./jobwire/subscription.js";
import {WebSocketTransport} from "./jobwire/websocket.js";

export {ConnectionFailed, JobCancelled, JobFailed, JobwireError, Refused} from "./jobwire/errors.js";

/** Return a client for the worker at `url` (http, https, ws or wss; in a page by default its own origin). */
export function connect(url = globalThis.location?.origin, options = {}) {
  return new Jobwire(url, options);
}

/** Watch a job by its `sse_url`, which may carry a ticket in place of a key: a share link, which is read-only. */
export function watch(sse_url, {after, signal, ...options} = {}) {
  const {origin, pathname, search} = new URL(sse_url, globalThis.location?.href);
  const [, prefix, id] = pathname.match(/^(.*)\/v1\/jobs\/([^/]+)\/stream$/) ?? [];
  if (!id) throw new TypeError(`Expected a URL like http://127.0.0.1:8080/v1/jobs/.../stream, got ${sse_url}`);
  const jw = new Jobwire(origin + prefix, {...options, transport: "sse"});
  return jw.follow({type: "subscribe", job_id: decodeURIComponent(id)}, {after, signal, search});
}

/** The jobs of one program at one worker. What its methods promise is in jobwire.d.ts. */
class Jobwire {
  #settings;
  #subscriptions = new Subscriptions();
  #transport;
  #failure = null;

  constructor(url, options) {
    this.#settings = settingsOf(url, options);
    const {transport, WebSocket} = this.#settings;
    if (transport === "sse" || !WebSocket) this.#fallBack();
    else {
      const fallBack = transport === "auto" ? () => this.#fallBack() : null;
      this.#transport = new WebSocketTransport(this.#settings, this.#subscriptions, (e) => this.#fail(e), fallBack);
    }
  }

  /** The current transport: "websocket" or "sse". */
  get transport() {
    return this.#transport.name;
  }

  /** Start a job and return it at once; a refusal is thrown to its reader. */
  run(prompt, {job_id = newId(), after, signal, window, frames, ...params} = {}) {
    const source = typeof prompt === "string" ? {prompt} : {messages: prompt};
    return this.follow({type: "create", job_id, ...source, ...params}, {after, signal, window, frames});
  }

  /** Start a job like `run`; resolves to it when the worker has accepted it. Rejects with Refused. */
  async create(prompt, params) {
    return this.run(prompt, params).waitAccepted();
  }

  /** Watch a job that was created elsewhere, from its start or after a cursor. */
  subscribe(job_id, {channels, ...how} = {}) {
    return this.follow({type: "subscribe", job_id, channels}, how);
  }

  /** Drop the connection and open another one, on which all jobs resume. */
  reconnect() {
    this.#transport.reconnect();
  }

  /** End all waits for jobs with ConnectionFailed and close the connection. Jobs continue at the worker. */
  close() {
    this.#fail(new ConnectionFailed("The client is closed", "closed"));
    this.#transport.close();
  }

  /** Follow the job of a request, which `run` and `subscribe` build. */
  follow(request, {signal, ...how}) {
    signal?.throwIfAborted();
    if (this.#failure) throw this.#failure;
    if (this.#subscriptions.has(request.job_id)) {
      throw new TypeError(`This client watches job ${request.job_id} already`);
    }
    const settings = {...this.#settings, ...defined(how)};
    const subscription = new Subscription(request, settings, () => this.#notify(subscription));
    if (signal) subscription.closeOn(signal);
    this.#notify(subscription);
    return new Job(subscription, signal);
  }

  /** Pass on a subscription with something to send: a new one, or a closed one that is to be cancelled. */
  #notify(subscription) {
    if (this.#failure) subscription.fail(this.#failure);
    else if (!subscription.over) {
      if (!this.#subscriptions.has(subscription.id)) this.#subscriptions.set(subscription.id, subscription);
      this.#transport.notify(subscription);
    }
  }

  #fail(error) {
    this.#failure ??= error;
    for (const subscription of this.#subscriptions.values()) subscription.fail(this.#failure);
    this.#subscriptions.clear();
  }

  #fallBack() {
    this.#transport = new SseTransport(this.#settings, this.#subscriptions);
    for (const subscription of this.#subscriptions.values()) this.#transport.notify(subscription);
  }
}

/** Return the options that are not undefined. */
function defined(options) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/** Return an id of 128 random bits. crypto.randomUUID is missing in pages without https. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `job-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
