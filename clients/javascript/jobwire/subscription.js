/** One job between the worker and its reader: a state machine without I/O, the same over WebSocket and SSE. */
import {Refused} from "./errors.js";
import {Retry} from "./retry.js";
import {Unread} from "./unread.js";
import {Changes} from "./waiting.js";

/** How a job stands with the current connection. WAITING is refused for now. Events count only when ATTACHED. */
const AWAY = "away", WAITING = "waiting", ASKED = "asked", ATTACHED = "attached";

/** What changes a link. */
export const ASK = "ask", ATTACH = "attach", REFUSE = "refuse", ASK_AGAIN = "ask again", DETACH = "detach";

/** The link that follows each step. A step that is not here is a bug of this client. */
export const NEXT = {
  // Over HTTP a stream is opened without a request that could be refused for now.
  [AWAY]: {[ASK]: ASKED, [ATTACH]: ATTACHED, [DETACH]: AWAY},
  [WAITING]: {[ASK_AGAIN]: AWAY, [DETACH]: AWAY},
  [ASKED]: {[ATTACH]: ATTACHED, [REFUSE]: WAITING, [DETACH]: AWAY},
  [ATTACHED]: {[ATTACH]: ATTACHED, [DETACH]: AWAY},
};

/**
 * What to send for a job, what its frames mean, and which events wait for its reader. Nothing is sent from here.
 * `notify` reports that there may be something to send. After a cut, `detach` makes `frames` start over, so that the
 * worker is always brought from its present state to what the job needs now.
 */
export class Subscription {
  accepted = null;
  failure = null;
  ended = false; // the end was received, though perhaps not read
  closed = false;
  watching = true;
  link = AWAY;
  changed = new Changes();
  #notify;
  #window;
  #unread = new Unread();
  #unreadBytesMax;
  #retry;
  #unacknowledged = null; // the cursor of the last event that was read
  #asks = []; // requests about the job, other than to follow it: sent again after each cut until they are answered
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

  /** Whether nothing is left to send or to receive. */
  get over() {
    if (this.ended || this.failure) return true;
    return this.closed && [AWAY, WAITING].includes(this.link) && this.exists && !this.#asks.length;
  }

  /** Whether the worker knows the job, so that requests about it need not wait until it is created. */
  get exists() {
    return this.accepted !== null || this.received !== null || this.request.type === "subscribe";
  }

  /** Whether the reader need not wait. */
  get hasNews() {
    return !this.#unread.isEmpty || this.ended || this.closed;
  }

  // ---- from the reader

  /** Pop the oldest unread event, merged with the tokens behind it if it is a token. */
  pop() {
    if (this.#unread.isEmpty) return undefined;
    const event = this.#unread.pop();
    if (!this.watching && !this.closed && this.#unread.costBytes <= this.#unreadBytesMax / 2) {
      this.watching = true;
      this.#notifyReader();
      this.#notify();
    }
    if (this.#window && event.cursor) {
      this.#unacknowledged = event.cursor;
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
    this.#notifyReader();
    this.#notify();
  }

  /** Cancel and close the job when a signal is aborted. A share link is read-only: it is only closed. */
  closeOn(signal) {
    const abort = () => {
      if (this.search === undefined) this.ask({type: "cancel"});
      this.close();
    };
    signal.addEventListener("abort", abort);
    this.#unlisten = () => signal.removeEventListener("abort", abort);
  }

  // ---- to the worker

  /**
   * Yield the frames to send over a WebSocket now; each counts as sent. `ref` registers a callback for the answer to a
   * frame and returns the reference to put into it.
   */
  *frames(ref, windowMax) {
    if (this.link === AWAY && !this.over && (this.watching || !this.exists)) {
      this.step(ASK);
      const resume = {after: this.received ?? undefined, window: Math.min(this.#window, windowMax) || undefined};
      yield {...this.request, ...resume, ref: ref((answer) => this.answered(answer))};
    }
    for (const ask of this.unsentAsks()) yield {...ask.frame, ref: ref((answer) => this.settle(ask, answer))};
    if (this.link === ATTACHED && !this.watching) {
      this.step(DETACH);
      yield {type: "unsubscribe", job_id: this.id};
    } else if (this.link === ATTACHED && this.#unacknowledged !== null && windowMax) {
      const cursor = this.#unacknowledged;
      this.#unacknowledged = null;
      yield {type: "ack", job_id: this.id, cursor};
    }
  }

  /** Return the requests to send now; each counts as sent. */
  unsentAsks() {
    const asks = this.over ? [] : this.#asks.filter((ask) => !ask.sent);
    for (const ask of asks) ask.sent = true;
    return asks;
  }

  // ---- from the worker

  /** Process the answer to the request to create or to follow the job. */
  answered(answer) {
    if (answer.type === "error") {
      this.#refused(Refused.of(answer.error));
      return;
    }
    this.step(ATTACH);
    this.#retry.clear();
    this.accepted = answer;
    if (answer.reset) this.reset();
    if (answer.over) this.nothingFollows();
    this.#notifyReader();
    this.#notify();
  }

  /** Process the answer to another request. */
  settle(ask, answer) {
    ask.answer = answer;
    this.#asks.splice(this.#asks.indexOf(ask), 1);
    this.#notifyReader();
  }

  /** Store an event. One that was sent before an unsubscribe is dropped: it will be sent again. */
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

  /** Forget all events: the worker sends the job again from its start. */
  reset() {
    this.#dropUnread();
    this.received = null;
    this.#push({type: "reset", job_id: this.id});
  }

  /** End the job without an event: the cursor is at its end already. */
  nothingFollows() {
    this.ended = true;
    this.#notifyReader();
  }

  /** Give up the job; the first error is kept for its reader. */
  fail(error) {
    this.failure ??= error;
    this.#notifyReader();
  }

  /** Start over after the connection is lost: follow the job and ask again on the next one. */
  detach() {
    this.step(DETACH);
    for (const ask of this.#asks) ask.sent = false;
  }

  /** Change the link as the table says. */
  step(step) {
    const next = NEXT[this.link][step];
    if (!next) throw new Error(`A job that is ${this.link} cannot ${step}`);
    this.link = next;
  }

  /** Wait if the job was accepted before and the refusal is for now; else give up. */
  #refused(refusal) {
    this.step(REFUSE);
    if (!this.accepted || refusal.retryAfterMs === undefined) {
      this.fail(refusal);
      return;
    }
    try {
      const timer = setTimeout(() => this.#askAgain(), this.#retry.delayMs(refusal, refusal.retryAfterMs));
      timer.unref?.(); // it must not keep a Node process alive
    } catch (error) {
      this.fail(error);
    }
  }

  #askAgain() {
    if (!NEXT[this.link][ASK_AGAIN]) return;
    this.step(ASK_AGAIN);
    this.#notify();
  }

  #push(event) {
    if (!this.closed) this.#unread.push(event);
    this.#notifyReader();
  }

  #dropUnread() {
    this.#unread.clear();
    this.#unacknowledged = null;
  }

  #notifyReader() {
    if (this.ended || this.failure || this.closed) this.#unlisten();
    this.changed.notify();
  }
}

/** The subscriptions that are not over, by job id. */
export class Subscriptions extends Map {
  forgetIfOver(subscription) {
    if (subscription.over && this.get(subscription.id) === subscription) this.delete(subscription.id);
  }
}
