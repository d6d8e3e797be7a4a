/**
 * Client for Jobwire: create a job, read its text as it is made, cancel it, and survive every cut in between.
 * One ES module without dependencies, for browsers and Node >= 20. Types: jobwire.d.ts.
 *
 *     const jw = connect("http://127.0.0.1:8080");
 *     for await (const event of jw.run("Tell me a story about a fox", {max_tokens: 200})) {
 *       if (event.type === "token") process.stdout.write(event.text);
 *     }
 *     jw.close();
 *
 * One WebSocket carries any number of jobs. Where there is none (Node 20, a proxy that lets none through) each job is
 * an event stream over fetch. After a cut the client comes back with the cursor of the last event it received: no text
 * is lost or doubled.
 *
 * Backpressure: no job ever blocks another one. What the reader of a job has not read yet waits here, and tokens that
 * wait are read as one. A job with more than `unreadBytesMax` waiting is put down (unsubscribed, or its stream is not
 * read on) until its reader comes: the worker keeps its log. Nothing is dropped and memory is bounded. With `window` the
 * worker itself waits: at most so many frames of a job are on their way or unread. But it gives up a job that nobody
 * follows for its `orphan_ttl_s`, unless the job was created with `detach: true`.
 */

const HEARTBEAT_MS = 15_000; // the worker's own default, until its hello says otherwise
const CONNECT_TIMEOUT_MS = 10_000;
const STABLE_MS = 5_000; // a connection that lasted this long ends an outage, even if nothing happened on it
const EVENT_COST_BYTES = 256; // what an unread event costs beside its text, roughly
const EVENT_TYPES = new Set(["token", "narration", "end"]);
const CLOSE_CODES = new Map([
  [4400, "protocol_abuse"], [4401, "unauthorized"], [4403, "forbidden"], [4406, "version"], [4408, "auth_timeout"],
]);
const HIDDEN = "..."; // what `onframe` sees of a key
const DROPPED = 4000; // given up by this side
const DONE = 1000;
const CLOSED = 2; // of EventSource: it does not come back
const LOST = 1006;
const UNAUTHORIZED = 4401;
const REFRESH_AT = 0.8; // of a token's time to live: when the next one is asked for
const REFRESH_AGAIN_AT = 0.05; // likewise, after an attempt that failed
const EXPIRES_S_MIN = 0.5; // what a time to live of 0 s stands for: it comes in whole seconds
const TIMER_MS_MAX = 2 ** 31 - 1;
const PAINT_MS = 16; // where nothing is painted
const HIDDEN_PAINT_MS = 1_000; // a page that is not seen is not painted
const WITHOUT_WORKER = new Set([429, 502, 503, 504]); // what a proxy says while the worker restarts

/** Base of all errors here. `code` is stable; `retryAfterMs` is set exactly when a retry makes sense. */
export class JobwireError extends Error {
  constructor(detail, code, problem = {}, options = undefined) {
    super(`${detail} (${code})`, options);
    this.name = new.target.name;
    this.detail = detail;
    this.code = code;
    this.problem = problem;
    this.status = problem.status;
    this.retryAfterMs = problem.retry_after_ms;
  }

  /** Build it from the worker's problem object (RFC 9457). */
  static of(problem) {
    return new this(problem.detail ?? problem.title ?? "No detail", problem.code ?? "error", problem);
  }
}

/** The worker said no to a request. */
export class Refused extends JobwireError {}

/** The job ended as failed or expired. */
export class JobFailed extends JobwireError {}

/** The whole text was asked for, but the job was cancelled; `text` is what there is. */
export class JobCancelled extends JobwireError {
  text = "";
}

/** Gone for good: a wrong key, no answer for `retryTimeoutMs`, or closed by the program. Jobs go on at the worker. */
export class ConnectionFailed extends JobwireError {}

/** Return a client for the worker at `url` (http, https, ws or wss; in a page by default its own origin). */
export function connect(url = globalThis.location?.origin, options = {}) {
  return new Jobwire(url, options);
}

/**
 * Watch a job by its `sse_url`, which may carry a ticket in place of a key: a share link. It can be read, and no more.
 * Over EventSource where there is one, else over fetch.
 */
export function watch(sse_url, {after, signal, ...options} = {}) {
  const {origin, pathname, search} = new URL(sse_url, globalThis.location?.href);
  const [, prefix, id] = pathname.match(/^(.*)\/v1\/jobs\/([^/]+)\/stream$/) ?? [];
  if (!id) throw new TypeError(`Expected a URL like http://127.0.0.1:8080/v1/jobs/.../stream, got ${sse_url}`);
  const jw = new Jobwire(origin + prefix, {EventSource: globalThis.EventSource, ...options, transport: "sse"});
  return jw.follow({type: "subscribe", job_id: decodeURIComponent(id)}, {after, signal, search});
}

/** The jobs of one program at one worker. It connects with the first job; `close()` ends it. */
class Jobwire {
  #options;
  #subscriptions = new Map(); // by job id, those that are not over
  #transport;
  #failure = null;

  constructor(url, options) {
    this.#options = {
      retryTimeoutMs: 60_000,
      backoffMs: [250, 10_000],
      unreadBytesMax: 4 << 20,
      WebSocket: globalThis.WebSocket,
      fetch: globalThis.fetch.bind(globalThis),
      onframe: () => {},
      frames: "all",
      ...options,
      base: baseUrl(url),
    };
    if (!["all", "paint"].includes(this.#options.frames)) throw new TypeError(`Unknown frames ${this.#options.frames}`);
    const kind = options.transport ?? "auto";
    if (!["auto", "websocket", "sse"].includes(kind)) throw new TypeError(`Unknown transport ${JSON.stringify(kind)}`);
    const {WebSocket} = this.#options;
    if (kind === "websocket" && !WebSocket) throw new TypeError("There is no WebSocket here: pass one as an option");
    if (kind === "sse" || !WebSocket) this.#fallBack();
    else {
      const fallBack = kind === "auto" ? () => this.#fallBack() : null;
      this.#transport = new SocketTransport(this.#options, this.#subscriptions, (e) => this.#fail(e), fallBack);
    }
  }

  /** What carries the jobs now: "websocket" or "sse". */
  get transport() {
    return this.#transport.kind;
  }

  /** Start a job and return at once; a refusal meets its reader. */
  run(prompt, {job_id = newId(), after, signal, window, frames, ...params} = {}) {
    const source = typeof prompt === "string" ? {prompt} : {messages: prompt};
    return this.follow({type: "create", job_id, ...source, ...params}, {after, signal, window, frames});
  }

  /** Start a job like `run` and wait until the worker has accepted it. Rejects with Refused. */
  async create(prompt, params) {
    return this.run(prompt, params).waitAccepted();
  }

  /** Watch a job that was created elsewhere, from its beginning or after a cursor. */
  subscribe(job_id, {channels, ...how} = {}) {
    return this.follow({type: "subscribe", job_id, channels}, how);
  }

  /** Drop the connection now and come back: jobs resume where they are. */
  reconnect() {
    this.#transport.reconnect();
  }

  /** Close the connection. Jobs go on at the worker; who waits for one here gets ConnectionFailed. */
  close() {
    this.#fail(new ConnectionFailed("The client is closed", "closed"));
    this.#transport.close();
  }

  /** Follow the job of a request; `run` and `subscribe` make one. */
  follow(request, {signal, ...how}) {
    signal?.throwIfAborted();
    if (this.#failure) throw this.#failure;
    const id = request.job_id;
    if (this.#subscriptions.has(id)) throw new TypeError(`This client watches job ${id} already`);
    const subscription = new Subscription(request, {...this.#options, ...defined(how)}, () => {
      if (this.#failure) subscription.fail(this.#failure);
      else if (!subscription.over) {
        if (!this.#subscriptions.has(id)) this.#subscriptions.set(id, subscription); // closed before, to be cancelled now
        this.#transport.notify(subscription);
      }
    });
    subscription.notify();
    return new Job(subscription, signal);
  }

  #fail(error) {
    this.#failure ??= error;
    for (const subscription of this.#subscriptions.values()) subscription.fail(this.#failure);
    this.#subscriptions.clear();
  }

  #fallBack() {
    this.#transport = new SseTransport(this.#options, this.#subscriptions);
    for (const subscription of this.#subscriptions.values()) this.#transport.notify(subscription);
  }
}

/**
 * The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.
 * Leaving a loop early leaves the job as it is: iterate again, `cancel()` it, or `close()` to stop watching it.
 */
class Job {
  #subscription;
  #signal;
  #texts = new Map(); // by choice
  #done = false;

  constructor(subscription, signal) {
    this.id = subscription.id;
    this.cursor = subscription.received;
    this.end = null;
    this.#subscription = subscription;
    this.#signal = signal;
    signal?.addEventListener("abort", this.#abort);
  }

  /** The worker's latest answer: state, queue, sse_url; null before it. */
  get accepted() {
    return this.#subscription.accepted;
  }

  /** Wait until the worker has accepted the job; resolves to the job. Rejects with Refused. */
  async waitAccepted() {
    await this.#until(() => this.#subscription.accepted);
    return this;
  }

  [Symbol.asyncIterator]() {
    return {next: () => this.#next()};
  }

  /** Wait for the end and return the whole text of a choice: what was read before and the rest. */
  async text(index = 0) {
    while (!(await this.#next()).done);
    this.#checkEnd();
    const text = (this.#texts.get(index) ?? []).join("");
    if (this.end?.status !== "cancelled") return text;
    const cancelled = new JobCancelled(`The job was cancelled: ${this.end.reason ?? "by request"}`, "cancelled");
    cancelled.text = text;
    throw cancelled;
  }

  /** Wait for the end and return the whole text of each choice, for a job with `n`. */
  async texts() {
    const first = await this.text();
    const count = Math.max(this.#subscription.request.n ?? 1, ...[...this.#texts.keys()].map((index) => index + 1));
    return [first, ...Array.from({length: count - 1}, (_, i) => (this.#texts.get(i + 1) ?? []).join(""))];
  }

  /** Cancel the job; resolves when the worker has heard it, and the end follows. A job that has ended is success. */
  cancel() {
    const {cancelled, ended} = this.#subscription;
    return cancelled || ended ? Promise.resolve() : this.#ask({type: "cancel"}, () => undefined);
  }

  /** Change the priority of a job that waits; resolves to the answer. Rejects with Refused, over SSE always. */
  update({priority}) {
    if (this.#subscription.ended) return Promise.resolve(this.accepted);
    return this.#ask({type: "update", priority}, (answer) => answer ?? this.accepted);
  }

  /** Stop watching the job, which goes on. */
  close() {
    this.#done = true;
    this.#subscription.close();
  }

  #abort = () => {
    if (!this.#subscription.cancelled) this.#subscription.ask({type: "cancel"});
    this.#subscription.close();
  };

  #ask(frame, resultOf) {
    const ask = this.#subscription.ask(frame);
    const answered = this.#until(() => ask.answer || this.#subscription.ended).then(() => {
      if (ask.answer?.type === "error") throw Refused.of(ask.answer.error);
      return resultOf(ask.answer);
    });
    answered.catch(() => {}); // who does not wait for it need not hear of it
    return answered;
  }

  async #next() {
    if (!this.#done) await this.#until(() => this.#subscription.hasNews);
    if (!this.#done && this.#subscription.paint) await nextPaint();
    const event = this.#done ? undefined : this.#subscription.take();
    if (!event || event.type === "end") {
      this.#done = true;
      this.#signal?.removeEventListener("abort", this.#abort);
    }
    if (!event) return {done: true, value: undefined};
    this.#fold(event);
    this.#checkEnd();
    return {done: false, value: event};
  }

  #fold(event) {
    this.cursor = event.cursor ?? null;
    if (event.type === "reset") this.#texts.clear();
    else if (event.type === "end") this.end = event;
    else if (event.type === "token" && (event.kind ?? "text") === "text") {
      const index = event.index ?? 0;
      if (!this.#texts.has(index)) this.#texts.set(index, []);
      this.#texts.get(index).push(event.text);
    }
  }

  #checkEnd() {
    const end = this.end;
    if (end?.status !== "failed" && end?.status !== "expired") return;
    throw JobFailed.of(end.error ?? {code: end.status, detail: end.reason});
  }

  async #until(condition) {
    for (;;) {
      this.#signal?.throwIfAborted();
      if (condition()) return;
      if (this.#subscription.failure) throw this.#subscription.failure;
      await this.#subscription.changed();
    }
  }
}

/** How a job stands with the connection of this moment. Events count only when ATTACHED. */
const AWAY = "away", ASKED = "asked", ATTACHED = "attached";

/**
 * One job, without I/O: what to send for it, what its frames mean, what waits for its reader. `notify` tells the
 * transport that something is new; after a cut, `detach` makes it begin again, so that the worker is always brought
 * from where it is to what the job wants now.
 */
class Subscription {
  accepted = null;
  failure = null;
  ended = false; // the end is received, though perhaps not read
  cancelled = false; // the worker has heard of the cancel
  closed = false;
  watching = true;
  link = AWAY;
  #window;
  #unread = [];
  #unreadBytes = 0;
  #taken = null; // the cursor of an event that was taken and not acknowledged
  #asks = []; // requests beside following the job, sent again after a cut until they are answered
  #waiting = [];

  constructor(request, options, notify) {
    this.id = request.job_id;
    this.request = request;
    this.received = options.after ?? null;
    this.notify = notify;
    this.search = options.search ?? ""; // with the ticket of a share link
    this.paint = options.frames === "paint";
    this.#window = options.window ?? (this.paint ? 1 : 0);
    this.retry = new Retry(options);
    this.unreadBytesMax = options.unreadBytesMax;
  }

  /** Nothing more will be sent or received. */
  get over() {
    if (this.ended || this.failure) return true;
    return this.closed && this.link === AWAY && this.exists && !this.#asks.length;
  }

  /** The worker knows the job: to stop watching it, or to cancel it, need not wait until it is created. */
  get exists() {
    return this.accepted !== null || this.received !== null || this.request.type === "subscribe";
  }

  /** Whether events of a type are to be read. A WebSocket brings no others; an event stream has them all. */
  wants(type) {
    return type === "end" || (this.request.channels?.includes(type) ?? true);
  }

  /** The reader need not wait. */
  get hasNews() {
    return this.#unread.length > 0 || this.ended || this.closed;
  }

  /** Wait until anything is different. */
  changed() {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  wake() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  ask(frame) {
    const ask = {frame: {...frame, job_id: this.id}, sent: false, answer: null};
    this.#asks.push(ask);
    this.notify();
    return ask;
  }

  close() {
    this.closed = true;
    this.watching = false;
    this.#dropUnread();
    this.notify();
    this.wake();
  }

  fail(error) {
    this.failure ??= error;
    this.wake();
  }

  /** The connection is gone. */
  detach() {
    this.link = AWAY;
    for (const ask of this.#asks) ask.sent = false;
  }

  /** What is to be asked now; it counts as sent. */
  takeAsks() {
    const asks = this.over ? [] : this.#asks.filter((ask) => !ask.sent);
    for (const ask of asks) ask.sent = true;
    return asks;
  }

  /** Take the oldest unread event; tokens that wait behind a token come with it. */
  take() {
    const unread = this.#unread;
    if (!unread.length) return undefined;
    let count = 1;
    while (count < unread.length && isMergeable(unread[0], unread[count])) count++;
    const run = unread.splice(0, count);
    for (const event of run) this.#unreadBytes -= costBytes(event);
    if (!this.watching && !this.closed && this.#unreadBytes <= this.unreadBytesMax / 2) {
      this.watching = true;
      this.notify();
      this.wake();
    }
    if (this.#window && run.at(-1).cursor) {
      this.#taken = run.at(-1).cursor;
      this.notify();
    }
    return count === 1 ? run[0] : merge(run);
  }

  /** What to send over a socket now; it counts as sent. `ref` keeps who wants the answer. */
  *frames(ref, windowMax) {
    if (this.link === AWAY && !this.over && (this.watching || !this.exists)) {
      this.link = ASKED;
      const resume = {after: this.received ?? undefined, window: Math.min(this.#window, windowMax) || undefined};
      yield {...this.request, ...resume, ref: ref((answer) => this.answered(answer))};
    }
    for (const ask of this.takeAsks()) yield {...ask.frame, ref: ref((answer) => this.settle(ask, answer))};
    if (this.link === ATTACHED && !this.watching) {
      this.link = AWAY;
      yield {type: "unsubscribe", job_id: this.id};
    } else if (this.link === ATTACHED && this.#taken !== null && windowMax) {
      const cursor = this.#taken;
      this.#taken = null;
      yield {type: "ack", job_id: this.id, cursor};
    }
  }

  answered(answer) {
    if (answer.type === "error") return this.#refused(Refused.of(answer.error));
    this.link = ATTACHED;
    this.retry.clear();
    this.accepted = answer;
    if (answer.reset) this.reset();
    if (answer.over) this.nothingFollows();
    this.notify();
    this.wake();
  }

  settle(ask, answer) {
    ask.answer = answer;
    this.#asks.splice(this.#asks.indexOf(ask), 1);
    this.cancelled ||= ask.frame.type === "cancel" && answer.type !== "error";
    this.wake();
  }

  /** The cursor is at the end already. */
  nothingFollows() {
    this.ended = true;
    this.wake();
  }

  /** The worker tells the job again from its start. */
  reset() {
    this.#dropUnread();
    this.received = null;
    this.#push({type: "reset", job_id: this.id});
  }

  /** Take in an event, unless it was on its way since before an unsubscribe: then it comes again. */
  receive(event) {
    if (this.link !== ATTACHED) return;
    this.received = event.cursor;
    this.ended = event.type === "end";
    this.#push(event);
    if (this.watching && this.#unreadBytes > this.unreadBytesMax && !this.ended) {
      this.watching = false;
      this.notify();
    }
  }

  /** A job that was accepted before and is refused for now, waits; any other refusal is final. */
  #refused(refusal) {
    this.link = AWAY;
    if (!this.accepted || refusal.retryAfterMs === undefined) return this.fail(refusal);
    try {
      setTimeout(this.notify, this.retry.delayMs(refusal, refusal.retryAfterMs));
    } catch (error) {
      this.fail(error);
    }
  }

  #push(event) {
    if (!this.closed) {
      this.#unread.push(event);
      this.#unreadBytes += costBytes(event);
    }
    this.wake();
  }

  #dropUnread() {
    this.#unread = [];
    this.#unreadBytes = 0;
    this.#taken = null;
  }
}

/**
 * All jobs over one WebSocket, which is opened again after a cut when a job needs it. After a goaway there may be a
 * second one: the old one carries its jobs to their end, or to its own.
 */
class SocketTransport {
  kind = "websocket";
  #options;
  #subscriptions;
  #fail;
  #fallBack;
  #retry;
  #connections = []; // that have said hello
  #opening = null; // the one that has not, or true while its key is fetched
  #timer; // of the next attempt
  #notBefore = 0; // the worker asked to wait until then
  #keyRefused = false;
  #closed = false;

  constructor(options, subscriptions, fail, fallBack) {
    this.#options = options;
    this.#subscriptions = subscriptions;
    this.#fail = fail;
    this.#fallBack = fallBack;
    this.#retry = new Retry(options);
  }

  notify(subscription) {
    const connection = this.#carrier(subscription) ?? this.#current;
    if (connection) connection.notify(subscription);
    else this.#seek();
  }

  reconnect() {
    const open = this.#opening instanceof Connection ? [...this.#connections, this.#opening] : [...this.#connections];
    for (const connection of open) connection.lose(DROPPED, "Dropped by the program");
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.reconnect();
  }

  greeted(connection) {
    this.#fallBack = null; // WebSockets work here
    this.#opening = null;
    const homeless = this.#homeless;
    this.#connections.push(connection);
    for (const subscription of homeless) connection.notify(subscription);
  }

  keyTaken() {
    this.#keyRefused = false;
  }

  works() {
    this.#retry.clear();
  }

  leaving({reason, retry_ms = 0}) {
    this.#notBefore = performance.now() + retry_ms;
    this.#seek(new Error(`The worker goes away: ${reason}`));
  }

  /** A connection is closed or as good as closed: come back, unless the code says that it is of no use. */
  lost(connection, code, reason) {
    this.#connections = this.#connections.filter((other) => other !== connection);
    if (this.#opening === connection) this.#opening = null;
    for (const subscription of connection.jobs.values()) {
      subscription.detach();
      forgetIfOver(this.#subscriptions, subscription);
    }
    if (this.#closed) return;
    if (connection.lastedMs > STABLE_MS) this.#retry.clear();
    if (this.#current) {
      for (const subscription of this.#homeless) this.#current.notify(subscription);
    } else if (!connection.leaving && this.#isFinal(code)) {
      const detail = reason || `The worker closed the connection with ${code}`;
      this.#fail(new ConnectionFailed(detail, CLOSE_CODES.get(code) ?? `closed_${code}`));
    } else this.#seek(new Error(reason || `The connection was lost (${code})`), code === LOST && this.#fallBack);
  }

  /** A refused key is final, unless there is a function for others and it was not the second in a row. */
  #isFinal(code) {
    if (code === UNAUTHORIZED && typeof this.#options.token === "function" && !this.#keyRefused) {
      this.#keyRefused = true;
      return false;
    }
    return code === DONE || (code >= 4400 && code < 4500);
  }

  get #current() {
    return this.#connections.find((connection) => !connection.leaving);
  }

  #carrier(subscription) {
    return this.#connections.find(({jobs}) => jobs.get(subscription.id) === subscription);
  }

  get #homeless() {
    return [...this.#subscriptions.values()].filter((subscription) => !this.#carrier(subscription));
  }

  /** See to it that there is a connection again, if a job needs one: after a loss by and by, else at once. */
  #seek(cause, fallBack) {
    if (this.#closed || this.#current || this.#opening || this.#timer !== undefined || !this.#homeless.length) return;
    let delayMs = Math.max(this.#notBefore - performance.now(), 0);
    try {
      if (cause) delayMs = this.#retry.delayMs(cause, delayMs);
    } catch (error) {
      return this.#fail(error);
    }
    if (!delayMs) return this.#open();
    this.#timer = setTimeout(async () => {
      // If no WebSocket ever worked here though the worker answers over HTTP, go on over HTTP.
      if (fallBack && (await this.#answersHttp()) && !this.#closed) return fallBack();
      this.#timer = undefined;
      if (this.#homeless.length) this.#open();
    }, delayMs);
  }

  async #open() {
    this.#opening = true;
    let key;
    try {
      key = await keyOf(this.#options);
    } catch (error) {
      this.#opening = null;
      return this.#seek(error);
    }
    if (!this.#closed) this.#opening = new Connection(this.#options, key, this.#subscriptions, this);
  }

  async #answersHttp() {
    try {
      const signal = AbortSignal.timeout(CONNECT_TIMEOUT_MS);
      return (await this.#options.fetch(`${this.#options.base}/`, {signal})).ok;
    } catch {
      return false;
    }
  }
}

/** One WebSocket, and the jobs that it carries once it is open. */
class Connection {
  jobs = new Map(); // subscriptions, by id
  leaving = false; // it takes no new jobs
  #options;
  #key;
  #subscriptions;
  #transport;
  #socket;
  #hello = null;
  #openedAt = performance.now();
  #heardAt = performance.now();
  #silence; // the timer that watches for it
  #renewal; // the timer of the next key
  #changed = new Set(); // subscriptions whose frames are to be sent
  #answers = new Map(); // by ref: whose answer it is, and what it does
  #refs = 0;

  constructor(options, key, subscriptions, transport) {
    this.#options = options;
    this.#key = key;
    this.#subscriptions = subscriptions;
    this.#transport = transport;
    const protocols = key ? ["jobwire.v1", `bearer.${base64url(key)}`] : ["jobwire.v1"];
    const socket = new options.WebSocket(`${options.base.replace(/^http/, "ws")}/v1/ws`, protocols);
    this.#socket = socket;
    this.#watchSilence(CONNECT_TIMEOUT_MS);
    socket.onmessage = ({data}) => this.#socket && this.#receive(data);
    socket.onclose = ({code, reason}) => this.lose(code, reason);
    socket.onerror = () => {
      // A close follows, but Node 20 forgets it for a socket that could not be opened.
      if (socket.readyState === 0) this.lose(LOST, "The WebSocket could not be opened");
    };
  }

  get lastedMs() {
    return performance.now() - this.#openedAt;
  }

  /** Send what a subscription has to say. */
  notify(subscription) {
    this.jobs.set(subscription.id, subscription);
    this.#changed.add(subscription);
    this.#flush();
  }

  /** Take it for closed, whatever the socket still does. */
  lose(code, reason) {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = null;
    clearTimeout(this.#silence);
    clearTimeout(this.#renewal);
    socket.close(DONE); // a bare close() reports 1005
    this.#transport.lost(this, code, reason);
  }

  #receive(data) {
    this.#heardAt = performance.now();
    const frame = parse(data);
    if (!frame) return this.lose(1007, "The worker sent something that is no JSON object");
    this.#options.onframe(frame, "in");
    if (!this.#hello || frame.type === "hello") return this.#greet(frame);
    let subscription = this.jobs.get(frame.job_id);
    if (frame.type === "accepted" || frame.type === "error") {
      const answer = this.#answers.get(frame.ref);
      this.#answers.delete(frame.ref);
      subscription = answer?.subscription;
      if (answer) answer.answered(frame);
      else if (frame.type === "error") console.warn("jobwire: the worker reports", frame.error);
    } else if (frame.type === "goaway") {
      this.leaving = true;
      this.#transport.leaving(frame);
    } else if (subscription && EVENT_TYPES.has(frame.type)) {
      this.#transport.works();
      subscription.receive(frame);
    }
    if (subscription) this.#forgetIfOver(subscription);
    if (this.leaving && !this.jobs.size) this.lose(DROPPED);
  }

  #greet(hello) {
    const isFirst = !this.#hello; // another one follows a key in the first frame
    this.#hello = hello;
    if (hello.auth !== "required") this.#transport.keyTaken();
    clearTimeout(this.#renewal);
    if (hello.expires_in !== undefined && typeof this.#options.token === "function") this.#renew(REFRESH_AT);
    if (!isFirst) return;
    this.#watchSilence(2 * (hello.limits?.heartbeat_s * 1000 || HEARTBEAT_MS));
    if (hello.auth === "required") this.#authenticate(this.#key);
    this.#transport.greeted(this);
  }

  /** Send another key before the time of the one in use is over. */
  #renew(share) {
    const delayMs = Math.min(share * (this.#hello.expires_in || EXPIRES_S_MIN) * 1000, TIMER_MS_MAX);
    this.#renewal = setTimeout(async () => {
      let next = REFRESH_AT;
      try {
        const key = await keyOf(this.#options);
        if (this.#socket) this.#authenticate(key);
      } catch (error) {
        console.warn("jobwire:", error);
        next = REFRESH_AGAIN_AT;
      }
      if (this.#socket) this.#renew(next);
    }, delayMs);
  }

  #authenticate(key) {
    this.#options.onframe({type: "auth", token: HIDDEN}, "out");
    this.#socket.send(JSON.stringify({type: "auth", token: key}));
  }

  #flush() {
    const {max_frame_bytes: bytesMax = Infinity, max_window: windowMax = Infinity} = this.#hello.limits ?? {};
    for (const subscription of this.#changed) {
      this.#changed.delete(subscription);
      const ref = (answered) => {
        this.#answers.set(String(++this.#refs), {subscription, answered});
        return String(this.#refs);
      };
      for (const frame of subscription.frames(ref, windowMax)) {
        const message = JSON.stringify(frame);
        const bytes = new TextEncoder().encode(message).length;
        if (bytes > bytesMax) { // the worker would close the connection of all jobs
          subscription.fail(new Refused(`Expected at most ${bytesMax} bytes, got ${bytes}`, "frame_too_large"));
          break;
        }
        this.#options.onframe(frame, "out");
        this.#socket?.send(message);
      }
      this.#forgetIfOver(subscription);
    }
  }

  #watchSilence(silenceMs) {
    clearTimeout(this.#silence);
    const check = () => {
      const leftMs = this.#heardAt + silenceMs - performance.now();
      if (leftMs > 0) this.#silence = setTimeout(check, leftMs);
      else this.lose(LOST, `Nothing was heard for ${silenceMs} ms`);
    };
    this.#silence = setTimeout(check, silenceMs);
  }

  #forgetIfOver(subscription) {
    if (subscription.over && this.jobs.get(subscription.id) === subscription) this.jobs.delete(subscription.id);
    forgetIfOver(this.#subscriptions, subscription);
  }
}

/** Each job as a POST and an event stream over fetch, which resumes with Last-Event-ID. */
class SseTransport {
  kind = "sse";
  #options;
  #subscriptions;
  #streams = new Map(); // subscription -> the controller that ends its stream
  #attempts = new Set(); // controllers of the requests for streams
  #closing = new AbortController();

  constructor(options, subscriptions) {
    this.#options = options;
    this.#subscriptions = subscriptions;
  }

  notify(subscription) {
    const {closed, exists} = subscription;
    if (closed && exists) this.#streams.get(subscription)?.abort();
    else if (!this.#streams.has(subscription)) this.#run(subscription);
    if (exists) for (const ask of subscription.takeAsks()) this.#ask(subscription, ask);
  }

  reconnect() {
    for (const attempt of this.#attempts) attempt.abort(new Error("Dropped by the program"));
  }

  close() {
    this.#closing.abort();
    for (const controller of this.#streams.values()) controller.abort();
  }

  async #run(subscription) {
    const controller = new AbortController();
    this.#streams.set(subscription, controller);
    try {
      await this.#follow(subscription, controller.signal);
    } catch (error) {
      subscription.fail(error);
    } finally {
      subscription.link = AWAY;
      this.#streams.delete(subscription);
      forgetIfOver(this.#subscriptions, subscription);
    }
  }

  async #follow(subscription, signal) {
    const {type, ...body} = subscription.request;
    if (!subscription.exists) {
      this.#options.onframe(subscription.request, "out");
      this.#answered(subscription, await this.#request("POST", "/v1/jobs", body));
    }
    if (this.#options.EventSource) await this.#watch(subscription, signal);
    const retry = new Retry(this.#options);
    while (!signal.aborted && !subscription.over && !subscription.closed) {
      try {
        await this.#read(subscription, signal, retry);
        if (!subscription.over) throw new Error("The stream stopped before the end of the job");
      } catch (error) {
        if (signal.aborted) return;
        if (this.#isWorthAnotherKey(error, retry)) continue;
        if (error instanceof Refused && error.retryAfterMs === undefined) throw error;
        await sleep(retry.delayMs(error, error.retryAfterMs), signal);
      }
    }
  }

  #answered(subscription, answer) {
    const accepted = {...answer, type: "accepted"};
    this.#options.onframe(accepted, "in");
    subscription.answered(accepted);
  }

  /** Follow a job by EventSource, which comes back by itself, until it gives up: then fetch says why. */
  async #watch(subscription, signal) {
    while (!signal.aborted && !subscription.over) {
      const query = new URLSearchParams(subscription.search);
      if (subscription.received !== null) query.set("after", subscription.received);
      const source = new this.#options.EventSource(`${this.#options.base}${jobPath(subscription)}/stream?${query}`);
      source.onerror = () => subscription.wake();
      source.onmessage = ({data}) => this.#take(subscription, parse(data));
      source.onopen = () => this.#opened(subscription);
      try {
        const isRead = () => subscription.watching && !subscription.over;
        while (isRead() && !signal.aborted && source.readyState !== CLOSED) await subscription.changed();
        if (isRead()) return;
      } finally {
        source.close();
      }
      while (!subscription.watching && !signal.aborted && !subscription.over) await subscription.changed();
    }
  }

  #opened(subscription) {
    if (!subscription.accepted) {
      const sse_url = `${jobPath(subscription)}/stream`;
      this.#answered(subscription, {job_id: subscription.id, state: "running", sse_url});
    }
    subscription.link = ATTACHED;
  }

  #take(subscription, frame) {
    if (frame) this.#options.onframe(frame, "in");
    if (frame?.reset) subscription.reset();
    else if (EVENT_TYPES.has(frame?.type) && subscription.wants(frame.type)) subscription.receive(frame);
  }

  /** Once in a row, if there is a function for keys. */
  #isWorthAnotherKey(error, retry) {
    const worth = error.status === 401 && typeof this.#options.token === "function" && !retry.keyRefused;
    if (error.status === 401) retry.keyRefused = true;
    return worth;
  }

  /** Read one stream until it ends, is silent, or the job is over. */
  async #read(subscription, signal, retry) {
    const attempt = new AbortController();
    this.#attempts.add(attempt);
    const stop = () => attempt.abort(new Error("The stream was silent"));
    signal.addEventListener("abort", stop);
    const within = async (limitMs, promise) => {
      const timer = setTimeout(stop, limitMs);
      return promise.finally(() => clearTimeout(timer));
    };
    try {
      const resume = subscription.received === null ? {} : {"Last-Event-ID": subscription.received};
      const headers = {Accept: "text/event-stream", ...resume, ...(await this.#authorization())};
      const init = {headers, signal: attempt.signal, cache: "no-store"};
      const url = `${this.#options.base}${jobPath(subscription)}/stream${subscription.search}`;
      const response = await within(CONNECT_TIMEOUT_MS, this.#options.fetch(url, init));
      if (response.status === 204) return subscription.nothingFollows();
      if (!response.ok) throw await refusalOf(response);
      this.#opened(subscription);
      const reader = response.body.getReader();
      for await (const data of eventData(() => within(2 * HEARTBEAT_MS, reader.read()))) {
        this.#take(subscription, parse(data));
        retry.clear();
        while (!subscription.watching && !subscription.closed && !subscription.over) await subscription.changed();
        if (subscription.over || signal.aborted) return;
      }
    } finally {
      signal.removeEventListener("abort", stop);
      this.#attempts.delete(attempt);
      attempt.abort();
    }
  }

  async #ask(subscription, ask) {
    try {
      if (ask.frame.type !== "cancel") {
        throw new Refused("Over SSE a priority is not changed; a WebSocket can", "unsupported_operation");
      }
      subscription.settle(ask, await this.#request("DELETE", jobPath(subscription)));
    } catch ({code, detail, problem}) {
      subscription.settle(ask, {type: "error", error: {code, detail, ...problem}});
    }
    forgetIfOver(this.#subscriptions, subscription);
  }

  /** One idempotent request, repeated while there is no answer. Throws Refused and ConnectionFailed. */
  async #request(method, path, body) {
    const retry = new Retry(this.#options);
    for (;;) {
      try {
        const headers = {Accept: "application/json", ...(await this.#authorization())};
        if (body) headers["Content-Type"] = "application/json";
        const signal = AbortSignal.timeout(2 * HEARTBEAT_MS);
        const init = {method, headers, signal, body: body && JSON.stringify(body)};
        const response = await this.#options.fetch(this.#options.base + path, init);
        if (!response.ok) throw await refusalOf(response);
        return await response.json();
      } catch (error) {
        if (this.#isWorthAnotherKey(error, retry)) continue;
        if (error instanceof Refused) throw error;
        await sleep(retry.delayMs(error), this.#closing.signal);
        if (this.#closing.signal.aborted) throw error;
      }
    }
  }

  async #authorization() {
    const key = await keyOf(this.#options);
    return key ? {Authorization: `Bearer ${key}`} : {};
  }
}

/** Spaces the attempts of one outage, with jitter, and says when it has lasted too long. */
class Retry {
  #tries = 0;
  #since = Infinity;
  keyRefused = false;

  constructor({retryTimeoutMs, backoffMs}) {
    this.timeoutMs = retryTimeoutMs;
    [this.firstMs, this.mostMs] = backoffMs;
  }

  /** The outage is over. */
  clear() {
    this.#tries = 0;
    this.#since = Infinity;
    this.keyRefused = false;
  }

  /** How long to wait now. Throws `cause`, as a ConnectionFailed if it is none of ours. */
  delayMs(cause, atLeastMs = 0) {
    const now = performance.now();
    this.#since = Math.min(this.#since, now);
    const jitter = 0.5 + Math.random() / 2;
    const delayMs = Math.max(Math.min(this.mostMs, this.firstMs * 2 ** this.#tries) * jitter, atLeastMs);
    if (now + delayMs - this.#since > this.timeoutMs) {
      if (cause instanceof JobwireError) throw cause;
      const detail = `No answer for ${this.timeoutMs / 1000} s: ${cause.message}`;
      throw new ConnectionFailed(detail, "connection_failed", {}, {cause});
    }
    this.#tries++;
    return delayMs;
  }
}

/** The data of the events in a stream whose chunks `read` gives. Lines end in LF or CRLF. */
async function* eventData(read) {
  const decoder = new TextDecoder();
  let rest = "", data = "";
  for (let chunk = await read(); !chunk.done; chunk = await read()) {
    const lines = (rest + decoder.decode(chunk.value, {stream: true})).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data += line.slice(5);
      else if (data && (line === "" || line === "\r")) {
        yield data;
        data = "";
      }
    }
  }
}

/** The error in an HTTP answer, the worker's own or that of a proxy before it (which may stand for a restart). */
async function refusalOf(response) {
  const problem = parse(await response.text());
  if (problem?.code) return Refused.of(problem);
  const {status} = response;
  const seconds = Number(response.headers.get("Retry-After") ?? 1);
  const retry = WITHOUT_WORKER.has(status) ? {retry_after_ms: 1000 * (seconds >= 0 ? seconds : 1)} : {};
  return Refused.of({code: `http_${status}`, detail: `HTTP status ${status}`, status, ...retry});
}

/** The http(s) URL that the paths of the protocol follow, whatever form of the worker's address is given. */
function baseUrl(url) {
  const {protocol, host, pathname} = new URL(url, globalThis.location?.href);
  const scheme = {"http:": "http", "https:": "https", "ws:": "http", "wss:": "https"}[protocol];
  if (!scheme) throw new TypeError(`Expected a URL like http://127.0.0.1:8080, got ${url}`);
  return `${scheme}://${host}${pathname.replace(/\/+$/, "").replace(/\/v1\/ws$/, "")}`;
}

function jobPath(subscription) {
  return `/v1/jobs/${encodeURIComponent(subscription.id)}`;
}

/** The key of this moment, empty without one. */
async function keyOf({token}) {
  return (typeof token === "function" ? await token() : token) ?? "";
}

function forgetIfOver(subscriptions, subscription) {
  if (subscription.over && subscriptions.get(subscription.id) === subscription) subscriptions.delete(subscription.id);
}

/** The options that are given at all. */
function defined(options) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/** Wait for the next paint of the page, or for the time of one where nothing is painted. */
function nextPaint() {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, globalThis.requestAnimationFrame ? HIDDEN_PAINT_MS : PAINT_MS);
    globalThis.requestAnimationFrame?.(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** 128 random bits. crypto.randomUUID is missing in pages without https. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `job-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function base64url(text) {
  const binary = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The object in a JSON text, or null. */
function parse(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

function sleep(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}

function costBytes(event) {
  return EVENT_COST_BYTES + (event.text ?? event.human ?? "").length;
}

function isMergeable(a, b) {
  if (a.type !== "token" || b.type !== "token") return false;
  return (a.index ?? 0) === (b.index ?? 0) && (a.kind ?? "text") === (b.kind ?? "text");
}

/** One token event for a run of them: the text together, the cursor of the last. */
function merge(run) {
  const merged = {...run.at(-1), text: run.map((event) => event.text).join("")};
  merged.n = run.reduce((sum, event) => sum + (event.n ?? 1), 0);
  for (const name of ["ids", "logprobs", "top_logprobs"]) {
    if (run.some((event) => event[name])) merged[name] = run.flatMap((event) => event[name] ?? []);
  }
  return merged;
}
