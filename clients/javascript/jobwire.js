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
 * read on) until its reader comes: the worker keeps its log. Nothing is dropped and memory is bounded. But the worker
 * gives up a job that nobody follows for its `orphan_ttl_s`, unless the job was created with `detach: true`.
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
const DROPPED = 4000; // the close code of `reconnect`
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
      ...options,
      base: baseUrl(url),
    };
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
  run(prompt, {job_id = newId(), after, signal, ...params} = {}) {
    const source = typeof prompt === "string" ? {prompt} : {messages: prompt};
    return this.#start({type: "create", job_id, ...source, ...params}, after, signal);
  }

  /** Start a job like `run` and wait until the worker has accepted it. Rejects with Refused. */
  async create(prompt, params) {
    return this.run(prompt, params).waitAccepted();
  }

  /** Watch a job that was created elsewhere, from its beginning or after a cursor. */
  subscribe(job_id, {after, signal, channels} = {}) {
    return this.#start({type: "subscribe", job_id, channels}, after, signal);
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

  #start(request, after, signal) {
    signal?.throwIfAborted();
    if (this.#failure) throw this.#failure;
    const id = request.job_id;
    if (this.#subscriptions.has(id)) throw new TypeError(`This client watches job ${id} already`);
    const subscription = new Subscription(request, after, this.#options, () => {
      if (this.#failure) subscription.fail(this.#failure);
      else this.#transport.notify(subscription);
    });
    this.#subscriptions.set(id, subscription);
    subscription.notify();
    return new Job(subscription, after, signal);
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

  constructor(subscription, after, signal) {
    this.id = subscription.id;
    this.cursor = after ?? null;
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

  /** Cancel the job; resolves when the worker has heard it, and the end follows. A job that has ended is success. */
  cancel() {
    this.#subscription.cancel();
    const heard = this.#until(() => this.#subscription.cancelled || this.#subscription.ended);
    heard.catch(() => {}); // a caller that does not wait for it meets the failure as a reader
    return heard;
  }

  /** Stop watching the job, which goes on. */
  close() {
    this.#done = true;
    this.#subscription.close();
  }

  #abort = () => {
    this.#subscription.cancel();
    this.#subscription.close();
  };

  async #next() {
    if (!this.#done) await this.#until(() => this.#subscription.hasNews);
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
  #unread = [];
  #unreadBytes = 0;
  #cancelWanted = false;
  #cancelSent = false;
  #waiting = [];

  constructor(request, after, options, notify) {
    this.id = request.job_id;
    this.request = request;
    this.received = after ?? null;
    this.notify = notify;
    this.retry = new Retry(options);
    this.unreadBytesMax = options.unreadBytesMax;
  }

  /** Nothing more will be sent or received. */
  get over() {
    if (this.ended || this.failure) return true;
    return this.closed && this.link === AWAY && this.exists && (this.cancelled || !this.#cancelWanted);
  }

  /** The worker knows the job: to stop watching it, or to cancel it, need not wait until it is created. */
  get exists() {
    return this.accepted !== null || this.received !== null || this.request.type === "subscribe";
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

  cancel() {
    this.#cancelWanted = true;
    this.notify();
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
    this.#cancelSent = false;
  }

  /** Whether a cancel is to be sent now; it counts as sent. */
  takeCancel() {
    const due = this.#cancelWanted && !this.#cancelSent && !this.cancelled && !this.over;
    this.#cancelSent ||= due;
    return due;
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
    return count === 1 ? run[0] : merge(run);
  }

  /** What to send over a socket now; it counts as sent. `ref` keeps who wants the answer. */
  *frames(ref) {
    if (this.link === AWAY && !this.over && (this.watching || !this.exists)) {
      this.link = ASKED;
      yield {...this.request, after: this.received ?? undefined, ref: ref((answer) => this.answered(answer))};
    }
    if (this.takeCancel()) {
      yield {type: "cancel", job_id: this.id, ref: ref((answer) => this.cancelAnswered(answer))};
    }
    if (this.link === ATTACHED && !this.watching) {
      this.link = AWAY;
      yield {type: "unsubscribe", job_id: this.id};
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

  cancelAnswered(answer) {
    if (answer.type === "error") return this.fail(Refused.of(answer.error));
    this.cancelled = true;
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
  }
}

/** All jobs over one WebSocket, kept up while a job is not over. */
class SocketTransport {
  kind = "websocket";
  hello = {};
  #options;
  #subscriptions;
  #fail;
  #fallBack;
  #retry;
  #socket = null;
  #greeted = false; // by the worker, on this socket
  #openedAt = 0;
  #heardAt = 0;
  #goawayMs = 0;
  #timer; // of silence while there is a socket, of the next attempt while there is none
  #changed = new Set(); // subscriptions whose frames are to be sent
  #answers = new Map(); // by ref, of this socket
  #refs = 0;

  constructor(options, subscriptions, fail, fallBack) {
    this.#options = options;
    this.#subscriptions = subscriptions;
    this.#fail = fail;
    this.#fallBack = fallBack;
    this.#retry = new Retry(options);
  }

  notify(subscription) {
    if (subscription.over) return;
    const {id} = subscription;
    if (!this.#subscriptions.has(id)) this.#subscriptions.set(id, subscription); // closed before, to be cancelled now
    this.#changed.add(subscription);
    if (this.#greeted) this.#send();
    else if (!this.#socket && this.#timer === undefined) this.#open();
  }

  reconnect() {
    if (this.#socket) this.#lost(DROPPED, "Dropped by the program");
  }

  close() {
    this.#leave();
    this.#changed.clear();
  }

  #open() {
    const {WebSocket, base, token} = this.#options;
    const protocols = token ? ["jobwire.v1", `bearer.${base64url(token)}`] : ["jobwire.v1"];
    const socket = new WebSocket(`${base.replace(/^http/, "ws")}/v1/ws`, protocols);
    this.#socket = socket;
    this.#heardAt = this.#openedAt = performance.now();
    this.#watchSilence(CONNECT_TIMEOUT_MS);
    // A socket that was left behind may still call: it is no longer ours.
    socket.onmessage = ({data}) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({code, reason}) => socket === this.#socket && this.#lost(code, reason);
    socket.onerror = () => {
      // A close follows, but Node 20 forgets it for a socket that could not be opened.
      if (socket === this.#socket && socket.readyState === 0) this.#lost(1006, "The WebSocket could not be opened");
    };
  }

  #receive(data) {
    this.#heardAt = performance.now();
    const frame = parse(data);
    if (!frame) return this.#lost(1007, "The worker sent something that is no JSON object");
    this.#options.onframe(frame, "in");
    if (!this.#greeted) return this.#greet(frame);
    const subscription = this.#subscriptions.get(frame.job_id);
    if (frame.type === "accepted" || frame.type === "error") {
      const answered = this.#answers.get(frame.ref);
      this.#answers.delete(frame.ref);
      if (answered) answered(frame);
      else if (frame.type === "error") console.warn("jobwire: the worker reports", frame.error);
    } else if (frame.type === "goaway") {
      this.#goawayMs = frame.retry_ms ?? 0;
    } else if (subscription && EVENT_TYPES.has(frame.type)) {
      this.#retry.clear();
      this.#goawayMs = 0;
      subscription.receive(frame);
    }
    if (subscription) this.#forgetIfOver(subscription);
  }

  #greet(hello) {
    this.hello = hello;
    this.#greeted = true;
    this.#fallBack = null; // WebSockets work here
    this.#watchSilence(2 * (hello.limits?.heartbeat_s * 1000 || HEARTBEAT_MS));
    if (hello.auth === "required") this.#authenticate();
    for (const subscription of this.#subscriptions.values()) this.#changed.add(subscription);
    this.#send();
  }

  #authenticate() {
    this.#options.onframe({type: "auth", token: HIDDEN}, "out");
    this.#socket.send(JSON.stringify({type: "auth", token: this.#options.token ?? ""}));
  }

  #send() {
    const bytesMax = this.hello.limits?.max_frame_bytes ?? Infinity;
    const ref = (answered) => {
      this.#answers.set(String(++this.#refs), answered);
      return String(this.#refs);
    };
    for (const subscription of this.#changed) {
      this.#changed.delete(subscription);
      for (const frame of subscription.frames(ref)) {
        const message = JSON.stringify(frame);
        const bytes = new TextEncoder().encode(message).length;
        if (bytes > bytesMax) { // the worker would close the connection of all jobs
          subscription.fail(new Refused(`Expected at most ${bytesMax} bytes, got ${bytes}`, "frame_too_large"));
          break;
        }
        this.#options.onframe(frame, "out");
        this.#socket.send(message);
      }
      this.#forgetIfOver(subscription);
    }
  }

  /** The socket is closed or as good as closed: come back, unless the code says that it is of no use. */
  #lost(code, reason) {
    if (performance.now() - this.#openedAt > STABLE_MS) this.#retry.clear();
    this.#leave();
    if (code === 1000 || (code >= 4400 && code < 4500)) {
      const detail = reason || `The worker closed the connection with ${code}`;
      return this.#fail(new ConnectionFailed(detail, CLOSE_CODES.get(code) ?? `closed_${code}`));
    }
    for (const subscription of this.#subscriptions.values()) {
      subscription.detach();
      this.#forgetIfOver(subscription);
    }
    if (!this.#subscriptions.size) return; // the next job connects
    const cause = new Error(reason || `The connection was lost (${code})`);
    try {
      this.#timer = setTimeout(() => this.#again(), this.#retry.delayMs(cause, this.#goawayMs));
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Connect again; if no WebSocket ever worked here though the worker answers over HTTP, go on over HTTP. */
  async #again() {
    if (this.#fallBack && (await this.#answersHttp())) return this.#fallBack();
    this.#timer = undefined;
    if (this.#subscriptions.size) this.#open();
  }

  async #answersHttp() {
    try {
      const signal = AbortSignal.timeout(CONNECT_TIMEOUT_MS);
      return (await this.#options.fetch(`${this.#options.base}/`, {signal})).ok;
    } catch {
      return false;
    }
  }

  #leave() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const socket = this.#socket;
    this.#socket = null;
    this.#greeted = false;
    this.#answers.clear();
    socket?.close(1000); // a bare close() reports 1005
  }

  #watchSilence(silenceMs) {
    clearTimeout(this.#timer);
    const check = () => {
      const leftMs = this.#heardAt + silenceMs - performance.now();
      if (leftMs > 0) this.#timer = setTimeout(check, leftMs);
      else this.#lost(1006, `Nothing was heard for ${silenceMs} ms`);
    };
    this.#timer = setTimeout(check, silenceMs);
  }

  #forgetIfOver(subscription) {
    const {id, over} = subscription;
    if (over && this.#subscriptions.get(id) === subscription) this.#subscriptions.delete(id);
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
    const {closed, over, exists} = subscription;
    if (closed) this.#streams.get(subscription)?.abort();
    else if (!over && !this.#streams.has(subscription)) this.#run(subscription);
    if (exists && subscription.takeCancel()) this.#cancel(subscription);
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
      this.#forgetIfOver(subscription);
    }
  }

  async #follow(subscription, signal) {
    let path = `${jobPath(subscription)}/stream`;
    const {type, ...body} = subscription.request;
    if (type === "create" && subscription.received === null) {
      this.#options.onframe(subscription.request, "out");
      const answer = {...(await this.#request("POST", "/v1/jobs", body)), type: "accepted"};
      this.#options.onframe(answer, "in");
      subscription.answered(answer);
      path = answer.sse_url;
    }
    const retry = new Retry(this.#options);
    while (!signal.aborted && !subscription.over) {
      try {
        await this.#read(path, subscription, signal, retry);
        if (!subscription.over) throw new Error("The stream stopped before the end of the job");
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused && error.retryAfterMs === undefined) throw error;
        await sleep(retry.delayMs(error, error.retryAfterMs), signal);
      }
    }
  }

  /** Read one stream until it ends, is silent, or the job is over. */
  async #read(path, subscription, signal, retry) {
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
      const headers = {Accept: "text/event-stream", ...resume, ...this.#authorization()};
      const init = {headers, signal: attempt.signal, cache: "no-store"};
      const response = await within(CONNECT_TIMEOUT_MS, this.#options.fetch(this.#options.base + path, init));
      if (response.status === 204) return subscription.nothingFollows();
      if (!response.ok) throw await refusalOf(response);
      subscription.link = ATTACHED;
      const reader = response.body.getReader();
      for await (const data of eventData(() => within(2 * HEARTBEAT_MS, reader.read()))) {
        const frame = parse(data);
        if (frame) this.#options.onframe(frame, "in");
        if (frame?.reset) subscription.reset();
        else if (EVENT_TYPES.has(frame?.type)) subscription.receive(frame);
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

  async #cancel(subscription) {
    try {
      await this.#request("DELETE", jobPath(subscription));
      subscription.cancelled = true;
      subscription.wake();
    } catch (error) {
      subscription.fail(error);
    }
    this.#forgetIfOver(subscription);
  }

  /** One idempotent request, repeated while there is no answer. Throws Refused and ConnectionFailed. */
  async #request(method, path, body) {
    const headers = {Accept: "application/json", ...this.#authorization()};
    if (body) headers["Content-Type"] = "application/json";
    const retry = new Retry(this.#options);
    for (;;) {
      try {
        const signal = AbortSignal.timeout(2 * HEARTBEAT_MS);
        const init = {method, headers, signal, body: body && JSON.stringify(body)};
        const response = await this.#options.fetch(this.#options.base + path, init);
        if (!response.ok) throw await refusalOf(response);
        return await response.json();
      } catch (error) {
        if (error instanceof Refused) throw error;
        await sleep(retry.delayMs(error), this.#closing.signal);
        if (this.#closing.signal.aborted) throw error;
      }
    }
  }

  #authorization() {
    return this.#options.token ? {Authorization: `Bearer ${this.#options.token}`} : {};
  }

  #forgetIfOver(subscription) {
    const {id, over} = subscription;
    if (over && this.#subscriptions.get(id) === subscription) this.#subscriptions.delete(id);
  }
}

/** Spaces the attempts of one outage, with jitter, and says when it has lasted too long. */
class Retry {
  #tries = 0;
  #since = Infinity;

  constructor({retryTimeoutMs, backoffMs}) {
    this.timeoutMs = retryTimeoutMs;
    [this.firstMs, this.mostMs] = backoffMs;
  }

  /** The outage is over. */
  clear() {
    this.#tries = 0;
    this.#since = Infinity;
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
