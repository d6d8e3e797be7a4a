/** A job for its reader. What its methods promise is in jobwire.d.ts. */
import {JobCancelled, JobFailed, Refused} from "./errors.js";
import {nextPaint} from "./waiting.js";

/**
 * The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.
 * Leaving a loop early changes nothing: iterate again, `cancel()` the job, or `close()` to stop watching it.
 */
export class Job {
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
  }

  /** The worker's latest answer: state, queue, sse_url; null before the first one. */
  get accepted() {
    return this.#subscription.accepted;
  }

  /** Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted. */
  get ignored() {
    return this.accepted?.ignored ?? [];
  }

  /** Wait until the worker has accepted the job; resolves to the job. Rejects with Refused. */
  async waitAccepted() {
    await this.#until(() => this.#subscription.accepted);
    return this;
  }

  [Symbol.asyncIterator]() {
    return {next: () => this.#next()};
  }

  /** Wait for the end and return the whole text of a choice, including the text that was read before. */
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

  /** Ask the worker to cancel the job; resolves when it has answered. A job that has ended is success. */
  cancel() {
    return optional(this.#ask({type: "cancel"}).then(() => undefined));
  }

  /** Change the priority of a queued job; resolves to the answer. Rejects with Refused, over SSE always. */
  update({priority}) {
    return optional(this.#ask({type: "update", priority}).then((answer) => answer ?? this.accepted));
  }

  /** Stop watching the job, which continues at the worker. */
  close() {
    this.#done = true;
    this.#subscription.close();
  }

  /** Send a request; resolves to the worker's answer, or to null if the job has ended. */
  async #ask(frame) {
    if (this.#subscription.ended) return null;
    const ask = this.#subscription.ask(frame);
    await this.#until(() => ask.answer || this.#subscription.ended);
    if (ask.answer?.type === "error") throw Refused.of(ask.answer.error);
    return ask.answer;
  }

  async #next() {
    while (!this.#done) {
      await this.#until(() => this.#done || this.#subscription.hasNews);
      if (!this.#done && this.#subscription.paint) await nextPaint();
      if (this.#done) break;
      const event = this.#subscription.pop();
      if (event) return this.#read(event);
      // Another reader has read the event meanwhile, unless nothing follows.
      this.#done = this.#subscription.ended || this.#subscription.closed;
    }
    return {done: true, value: undefined};
  }

  #read(event) {
    this.#done = event.type === "end";
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
      await this.#subscription.changed.wait();
    }
  }
}

/** Return a promise that may fail unobserved: a program need not wait for it. */
function optional(promise) {
  promise.catch(() => {});
  return promise;
}
