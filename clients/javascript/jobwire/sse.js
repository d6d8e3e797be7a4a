/** Each job as a POST and an event stream. */
import {ConnectionFailed, Cut, JobwireError, Refused} from "./errors.js";
import {keyOf, renews} from "./options.js";
import {Retry, STABLE_MS} from "./retry.js";
import {ATTACH, DETACH} from "./subscription.js";
import {sleep, within} from "./waiting.js";
import {EVENT_TYPES, HEARTBEAT_MS, parse, refusalOf} from "./wire.js";

/** Each job as a POST and an event stream over fetch, which resumes with Last-Event-ID. */
export class SseTransport {
  name = "sse";
  #settings;
  #subscriptions;
  #streams = new Map(); // subscription -> the controller that ends its stream
  #attempts = new Set(); // controllers of requests
  #closing = new AbortController();

  constructor(settings, subscriptions) {
    this.#settings = settings;
    this.#subscriptions = subscriptions;
  }

  notify(subscription) {
    const {closed, exists} = subscription;
    if (closed && exists) this.#streams.get(subscription)?.abort();
    else if (!this.#streams.has(subscription)) this.#run(subscription);
    if (exists) for (const ask of subscription.unsentAsks()) this.#ask(subscription, ask);
  }

  reconnect() {
    for (const attempt of this.#attempts) attempt.abort();
  }

  close() {
    this.#closing.abort(new ConnectionFailed("The client is closed", "closed"));
    for (const controller of this.#streams.values()) controller.abort();
  }

  async #run(subscription) {
    const controller = new AbortController();
    this.#streams.set(subscription, controller);
    try {
      await this.#follow(subscription, controller.signal);
    } catch (error) {
      if (!controller.signal.aborted) subscription.fail(error);
    }
    subscription.step(DETACH);
    this.#streams.delete(subscription);
    this.#subscriptions.forgetIfOver(subscription);
  }

  async #follow(subscription, signal) {
    if (!subscription.exists) {
      const {type, ...body} = subscription.request;
      this.#settings.onframe(subscription.request, "out");
      this.#answered(subscription, await this.#request("POST", "/v1/jobs", body));
    }
    const retry = new Retry(this.#settings);
    while (!subscription.over && !subscription.closed) {
      try {
        await this.#attempt(signal, (signal) => this.#read(subscription, retry, signal));
      } catch (error) {
        const atLeastMs = error instanceof Cut ? error.retryMs : error.retryAfterMs;
        if (atLeastMs === undefined) throw error;
        await sleep(retry.delayMs(error, atLeastMs), signal);
      }
    }
  }

  /** Read one stream until the job is over or closed, no faster than the job's reader. Rejects with Cut. */
  async #read(subscription, retry, signal) {
    const resume = subscription.received === null ? {} : {"Last-Event-ID": subscription.received};
    const path = `${jobPath(subscription)}/stream`;
    const headers = {Accept: "text/event-stream", ...resume};
    const response = await this.#answer("GET", path + (subscription.search ?? ""), headers, signal);
    if (response.status === 204) {
      subscription.nothingFollows();
      return;
    }
    const openedAt = performance.now();
    if (!subscription.accepted) {
      const sse_url = new URL(this.#settings.base + path).pathname;
      this.#answered(subscription, {job_id: subscription.id, state: "running", sse_url});
    }
    subscription.step(ATTACH);
    try {
      const reader = response.body.getReader();
      for await (const data of eventData(() => within(2 * HEARTBEAT_MS, reader.read()))) {
        retry.clear();
        this.#receive(subscription, parse(data));
        while (!subscription.watching && !subscription.closed && !subscription.over) await subscription.changed.wait();
        if (subscription.over || subscription.closed) return;
      }
    } finally {
      if (performance.now() - openedAt > STABLE_MS) retry.clear();
    }
    throw new Cut("The stream stopped before the end of the job");
  }

  #answered(subscription, answer) {
    const accepted = {...answer, type: "accepted"};
    this.#settings.onframe(accepted, "in");
    subscription.answered(accepted);
  }

  #receive(subscription, frame) {
    this.#settings.onframe(frame, "in");
    if (frame.reset) subscription.reset();
    else if (EVENT_TYPES.has(frame.type) && isWanted(subscription, frame.type)) subscription.receive(frame);
  }

  async #ask(subscription, ask) {
    try {
      if (ask.frame.type !== "cancel") {
        throw new Refused("A priority can be changed over a WebSocket only", "unsupported_operation");
      }
      subscription.settle(ask, await this.#request("DELETE", jobPath(subscription)));
    } catch ({code, detail, problem}) {
      subscription.settle(ask, {type: "error", error: {code, detail, ...problem}});
    }
    this.#subscriptions.forgetIfOver(subscription);
  }

  /** Send an idempotent request until there is an answer. Rejects with Refused, ConnectionFailed. */
  async #request(method, path, body) {
    const headers = {Accept: "application/json", ...(body && {"Content-Type": "application/json"})};
    const retry = new Retry(this.#settings);
    for (;;) {
      try {
        return await this.#attempt(this.#closing.signal, async (signal) => {
          const response = await this.#answer(method, path, headers, signal, body && JSON.stringify(body));
          return parse(await within(2 * HEARTBEAT_MS, response.text()));
        });
      } catch (error) {
        if (!(error instanceof Cut)) throw error;
        await sleep(retry.delayMs(error, error.retryMs), this.#closing.signal);
      }
    }
  }

  /** Attempt some work, and leave no request behind. An error of the network rejects as a Cut. */
  async #attempt(signal, work) {
    signal.throwIfAborted();
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    this.#attempts.add(attempt);
    try {
      return await work(attempt.signal);
    } catch (error) {
      signal.throwIfAborted();
      throw error instanceof JobwireError || error instanceof Cut ? error : new Cut(error.message, 0, {cause: error});
    } finally {
      signal.removeEventListener("abort", stop);
      this.#attempts.delete(attempt);
      stop();
    }
  }

  /** Send a request, with another key if the first one is refused. Rejects with Refused, Cut. */
  async #answer(method, path, headers, signal, body) {
    for (let hasAnotherKey = renews(this.#settings); ; hasAnotherKey = false) {
      const key = await keyOf(this.#settings);
      const every = key ? {...headers, Authorization: `Bearer ${key}`} : headers;
      const init = {method, headers: every, body, signal, cache: "no-store"};
      const response = await within(2 * HEARTBEAT_MS, this.#settings.fetch(this.#settings.base + path, init));
      if (response.ok) return response;
      const text = await within(2 * HEARTBEAT_MS, response.text());
      if (response.status !== 401 || !hasAnotherKey) throw refusalOf(response, text);
    }
  }
}

/** Return whether the job's channels include a type. A WebSocket carries those alone; a stream has all. */
function isWanted(subscription, type) {
  return type === "end" || (subscription.request.channels?.includes(type) ?? true);
}

/** Yield the data of the events in a stream, whose chunks `read` returns. Lines end in LF or CRLF. */
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

function jobPath(subscription) {
  return `/v1/jobs/${encodeURIComponent(subscription.id)}`;
}
