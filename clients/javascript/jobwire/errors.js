/** What may go wrong. Programs see JobwireError and what derives from it; a Cut stays inside and is mended. */

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

/** There is no connection for now. Trying again makes sense, but not before `retryMs`. It stays inside and is mended. */
export class Cut extends Error {
  constructor(detail, retryMs = 0, options = undefined) {
    super(detail, options);
    this.retryMs = retryMs;
  }
}

/** The program's function for the key failed, perhaps for now only. */
export class NoKey extends Cut {}
