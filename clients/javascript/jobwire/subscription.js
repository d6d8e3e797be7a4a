/** One job, as the worker and its reader leave it: a state machine without I/O, the same over WebSocket and SSE. */
import {Refused} from "./errors.js";
import {Retry} from "./retry.js";
import {Unread} from "./unread.js";
import {Changes} from "./waiting.js";

/** How a job stands with the connection of this moment. WAITING is refused for now. Events count only when ATTACHED. */
export const AWAY = "away", WAITING = "waiting", ASKED = "asked", ATTACHED = "attached";

/**
 * What to send for a job, what its frames mean, what waits for its reader. Nothing is sent from here. `notify` says that
 * there may be something new; after a cut, `detach` makes it begin again, so that the worker is always brought from where
 * it is to what the job wants now.
 */
export class Subscription {
  accepted = null;
  failure = null;
  ended = false; // the end is received, though perhaps not read
  closed = false;
  watching = true;
  link = AWAY;
  changed = new Changes();
  #notify;
  #window;
  #unread = new Unread();
  #unreadBytesMax;
  #retry;
  #taken = null; // the cursor of an event that was taken and not acknowledged
  #asks = []; // requests about the job, beside following it: sent again after a cut, until they are answered
  #unlisten = () => {};

  constructor(request, settings, notify) {
    this.id = request.job_id;
    this.request = request;
    this.received = settings.after ?? null;
    this.search = settings.search; // with the ticket of a share link
    this.paint = settings.frames === "paint";
    this.#notify = notify;
    this.#window = settings.window ?? (this.paint ? 1 : 0);
    this.#unreadBytesMax = settings.unreadBytesMax;
    this.#retry = new Retry(settings);
  }

  /** Nothing more will be sent or received. */
  get over() {
    if (this.ended || this.failure) return true;
    return this.closed && [AWAY, WAITING].includes(this.link) && this.exists && !this.#asks.length;
  }

  /** The worker knows the job: to stop watching it, or to ask for more, need not wait until it is created. */
  get exists() {
    return this.accepted !== null || this.received !== null || this.request.type === "subscribe";
  }

  /** The reader need not wait. */
  get hasNews() {
    return !this.#unread.isEmpty || this.ended || this.closed;
  }

  // ---- from the reader

  /** Take the oldest unread event; tokens that wait behind a token come with it. */
  take() {
    if (this.#unread.isEmpty) return undefined;
    const event = this.#unread.take();
    if (!this.watching && !this.closed && this.#unread.costBytes <= this.#unreadBytesMax / 2) {
      this.watching = true;
      this.#tell();
      this.#notify();
    }
    if (this.#window && event.cursor) {
      this.#taken = event.cursor;
      this.#notify();
    }
    return event;
  }

  ask(frame) {
    const ask = {frame: {...frame, job_id: this.id}, sent: false, answer: null};
    this.#asks.push(ask);
    this.#notify();
    return ask;
  }

  close() {
    this.closed = true;
    this.watching = false;
    this.#dropUnread();
    this.#tell();
    this.#notify();
  }

  /** Cancel and close the job when a signal is aborted. A share link can be read, and no more: it is only closed. */
  closeOn(signal) {
    const abort = () => {
      if (this.search === undefined) this.ask({type: "cancel"});
      this.close();
    };
    signal.addEventListener("abort", abort);
    this.#unlisten = () => signal.removeEventListener("abort", abort);
  }

  // ---- to the worker

  /** What to send over a WebSocket now; it counts as sent. `ref` keeps who wants the answer. */
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

  /** What is to be asked now; it counts as sent. */
  takeAsks() {
    const asks = this.over ? [] : this.#asks.filter((ask) => !ask.sent);
    for (const ask of asks) ask.sent = true;
    return asks;
  }

  // ---- from the worker

  /** The worker has answered the request to create or to follow the job. */
  answered(answer) {
    if (answer.type === "error") return this.#refused(Refused.of(answer.error));
    this.link = ATTACHED;
    this.#retry.clear();
    this.accepted = answer;
    if (answer.reset) this.reset();
    if (answer.over) this.nothingFollows();
    this.#tell();
    this.#notify();
  }

  /** The worker has answered another request. */
  settle(ask, answer) {
    ask.answer = answer;
    this.#asks.splice(this.#asks.indexOf(ask), 1);
    this.#tell();
  }

  /** Take in an event, unless it was on its way since before an unsubscribe: then it comes again. */
  receive(event) {
    if (this.link !== ATTACHED) return;
    this.received = event.cursor;
    this.ended = event.type === "end";
    this.#push(event);
    if (this.watching && this.#unread.costBytes > this.#unreadBytesMax && !this.ended) {
      this.watching = false;
      this.#notify();
    }
  }

  /** The worker tells the job again from its start. */
  reset() {
    this.#dropUnread();
    this.received = null;
    this.#push({type: "reset", job_id: this.id});
  }

  /** The cursor is at the end already. */
  nothingFollows() {
    this.ended = true;
    this.#tell();
  }

  /** The job cannot be followed any more. */
  fail(error) {
    this.failure ??= error;
    this.#tell();
  }

  /** The connection is gone. */
  detach() {
    this.link = AWAY;
    for (const ask of this.#asks) ask.sent = false;
  }

  /** A job that was accepted before and is refused for now, waits; any other refusal is final. */
  #refused(refusal) {
    this.link = WAITING;
    if (!this.accepted || refusal.retryAfterMs === undefined) return this.fail(refusal);
    try {
      const timer = setTimeout(() => this.#askAgain(), this.#retry.delayMs(refusal, refusal.retryAfterMs));
      timer.unref?.(); // it is no reason for Node to stay
    } catch (error) {
      this.fail(error);
    }
  }

  #askAgain() {
    if (this.link !== WAITING) return;
    this.link = AWAY;
    this.#notify();
  }

  #push(event) {
    if (!this.closed) this.#unread.push(event);
    this.#tell();
  }

  #dropUnread() {
    this.#unread.clear();
    this.#taken = null;
  }

  #tell() {
    if (this.ended || this.failure || this.closed) this.#unlisten();
    this.changed.tell();
  }
}

/** Those that are not over, by job id. */
export class Subscriptions extends Map {
  forgetIfOver(subscription) {
    if (subscription.over && this.get(subscription.id) === subscription) this.delete(subscription.id);
  }
}
