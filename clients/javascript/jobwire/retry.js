/** When to try again, and for how long. */
import {ConnectionFailed, JobwireError} from "./errors.js";

export const ATTEMPT_MS_MAX = 30_000; // what one attempt may take: a key, a connection and a hello
export const STABLE_MS = 5_000; // a connection that lasted this long ends an outage, even if nothing happened on it

/** Spaces the attempts of one outage, with jitter, and says when it has lasted too long. */
export class Retry {
  #tries = 0;
  #outageMs = 0;
  #askedAt = 0;
  #delayMs = 0;

  constructor({retryTimeoutMs, backoffMs}) {
    this.timeoutMs = retryTimeoutMs;
    [this.firstMs, this.mostMs] = backoffMs;
  }

  /** The outage is over. */
  clear() {
    this.#tries = this.#outageMs = 0;
  }

  /** How long to wait now. Throws `cause`, as a ConnectionFailed if it is none of ours. */
  delayMs(cause, atLeastMs = 0) {
    const now = performance.now();
    // What was neither pause nor attempt is no outage: nothing was wanted, or the machine slept.
    if (this.#tries) this.#outageMs += Math.min(now - this.#askedAt, this.#delayMs + ATTEMPT_MS_MAX);
    // Many clients are told the same time at once, and must not come back at once: jitter goes on top of it.
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
