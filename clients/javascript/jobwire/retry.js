/** When to try again, and for how long. */
import {ConnectionFailed, JobwireError} from "./errors.js";

/** How long one attempt may last: a key, a connection and a hello. */
export const ATTEMPT_MS_MAX = 30_000;

/** A connection that lasted this long ends an outage, even if nothing happened on it. */
export const STABLE_MS = 5_000;

/** Spaces the attempts of one outage, with jitter, and ends it when it has lasted too long. */
export class Retry {
  #tries = 0;
  #outageMs = 0;
  #askedAt = 0;
  #delayMs = 0;

  constructor({retryTimeoutMs, backoffMs}) {
    this.timeoutMs = retryTimeoutMs;
    [this.firstMs, this.mostMs] = backoffMs;
  }

  /** End the outage: the next pause is short again. */
  clear() {
    this.#tries = this.#outageMs = 0;
  }

  /**
   * Return the pause before the next attempt. Throws `cause` when the outage has lasted too long; an error of another
   * library as ConnectionFailed.
   */
  delayMs(cause, atLeastMs = 0) {
    const now = performance.now();
    // Time beyond the pause and an attempt does not count: no job needed a connection, or the machine slept.
    if (this.#tries) this.#outageMs += Math.min(now - this.#askedAt, this.#delayMs + ATTEMPT_MS_MAX);
    // A worker sends many clients the same time to wait. Jitter is added to it, or they would all return at once.
    const jitter = 0.5 + Math.random() / 2;
    const delayMs = atLeastMs + Math.min(this.mostMs, this.firstMs * 2 ** this.#tries) * jitter;
    if (this.#outageMs + delayMs > this.timeoutMs) {
      if (cause instanceof JobwireError) throw cause;
      const detail = `No answer for ${this.timeoutMs / 1000} s: ${cause.message}`;
      throw new ConnectionFailed(detail, "connection_failed", {}, {cause});
    }
    this.#tries++;
    this.#askedAt = now;
    this.#delayMs = delayMs;
    return delayMs;
  }
}
