/** Errors. Programs see JobwireError and its subclasses; a Cut stays inside, and the client recovers from it. */

/** Base of all errors of this client. `code` is stable; `retryAfterMs` is set only when a retry makes sense. */
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

  /** Build the error from the worker's problem object (RFC 9457). */
  static of(problem) {
    return new this(problem.detail ?? problem.title ?? "No detail", problem.code ?? "error", problem);
  }
}

/** The worker refused a request. */
export class Refused extends JobwireError {}

/** The job ended as failed or expired. */
export class JobFailed extends JobwireError {}

/** The whole text was requested, but the job was cancelled; `text` is the text up to then. */
export class JobCancelled extends JobwireError {
  text = "";
}

/** Given up: a wrong key, no answer for `retryTimeoutMs`, or closed by the program. Jobs continue at the worker. */
export class ConnectionFailed extends JobwireError {}

/** There is no connection for now. Another attempt makes sense, but not before `retryMs`. */
export class Cut extends Error {
  constructor(detail, retryMs = 0, options = undefined) {
    super(detail, options);
    this.retryMs = retryMs;
  }
}

/** The program's function for the key failed, perhaps only this time. */
export class NoKey extends Cut {}
