/** A job, for its reader. */
import {JobCancelled, JobFailed, Refused} from "./errors.js";
import {nextPaint} from "./waiting.js";

/**
 * The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.
 * Leaving a loop early leaves the job as it is: iterate again, `cancel()` it, or `close()` to stop watching it.
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

  /** The worker's latest answer: state, queue, sse_url; null before it. */
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
    return unheard(this.#ask({type: "cancel"}).then(() => undefined));
  }

  /** Change the priority of a job that waits; resolves to the answer. Rejects with Refused, over SSE always. */
  update({priority}) {
    return unheard(this.#ask({type: "update", priority}).then((answer) => answer ?? this.accepted));
  }

  /** Stop watching the job, which goes on. */
  close() {
    this.#done = true;
    this.#subscription.close();
  }

  /** Ask the worker; resolves to its answer, or to nothing when the job has ended. */
  async #ask(frame) {
    if (this.#subscription.ended) return null;
    const ask = this.#subscription.ask(frame);
    await this.#until(() => ask.answer || this.#subscription.ended);
    if (ask.answer?.type === "error") throw Refused.of(ask.answer.error);
    return ask.answer;
  }

  async #next() {
    if (!this.#done) await this.#until(() => this.#subscription.hasNews);
    if (!this.#done && this.#subscription.paint) await nextPaint();
    const event = this.#done ? undefined : this.#subscription.take();
    this.#done = !event || event.type === "end";
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
      await this.#subscription.changed.wait();
    }
  }
}

/** A promise whose failure need not be heard of by who does not wait for it. */
function unheard(promise) {
  promise.catch(() => {});
  return promise;
}
