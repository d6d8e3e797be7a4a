/** Client for Jobwire: create a job, read its text while it is generated, cancel it, and survive every cut. */
import type {
  AcceptedFrame, ClientFrame, CreateBody, EndFrame, Message, NarrationFrame, Problem, ServerFrame, TokenFrame,
} from "./protocol.js";

export type {
  ClientFrame, ErrorCode, LikelyToken, Message, Problem, QueuePlace, ResponseFormat, ServerFrame, Usage,
} from "./protocol.js";

/** A piece of text: `n` (default 1) tokens of the choice `index` (default 0). */
export type TokenEvent = TokenFrame;

/** A change in the life of the job, with one sentence for people (`human`). */
export type NarrationEvent = NarrationFrame;

/** The last event of every job. */
export type EndEvent = EndFrame;

/** The worker lost its log of the job and starts over: discard all text so far. Rare. */
export interface ResetEvent {
  type: "reset";
  job_id: string;
}

/** Reading throws JobFailed in place of a failed or expired end, Refused, and ConnectionFailed. */
export type JobEvent = TokenEvent | NarrationEvent | EndEvent | ResetEvent;

/** The worker's answer to a request. */
export type Accepted = AcceptedFrame;

/** How frames are delivered. A client's options may set both for all its jobs. */
export interface Credit {
  /** How many frames the worker may send ahead of the reader. Default any number. Without effect over SSE. */
  window?: number;
  /** "paint": at most one event per paint of the page, and one frame ahead unless `window` is set. */
  frames?: "all" | "paint";
}

/** How to watch a job. */
export interface WatchParams extends Credit {
  /** Continue after this cursor; never runs a job again. */
  after?: string;
  /** Aborting cancels the job unless it is closed, and all its waits reject with the signal's reason. */
  signal?: AbortSignal;
  channels?: CreateBody["channels"];
}

/** The parameters of a job, as on the wire; the worker checks them and names the wrong ones. */
export interface RunParams
  extends WatchParams, Omit<CreateBody, "prompt" | "messages" | "ref" | keyof WatchParams> {
  /** Parameters of another operation or of a newer worker. */
  [field: string]: unknown;
}

/**
 * The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.
 * Leaving a loop early changes nothing: iterate again, `cancel()` the job, or `close()` to stop watching it.
 *
 * A wait that is no longer needed may be left unawaited: no event is lost with it. The methods may be called while
 * other calls are pending. When several loops iterate at once, each event goes to one of them.
 */
export interface Job extends AsyncIterable<JobEvent> {
  readonly id: string;
  /** The position of the reader: `subscribe(id, {after: cursor})` continues from it, in any client. */
  readonly cursor: string | null;
  /** The last event, once it is read. */
  readonly end: EndEvent | null;
  /** The worker's latest answer; null before the first one. */
  readonly accepted: Accepted | null;
  /** Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted. */
  readonly ignored: readonly string[];
  /** Wait until the worker has accepted the job; resolves to the job. Rejects with Refused, ConnectionFailed. */
  waitAccepted(): Promise<Job>;
  /**
   * Wait for the end; resolves to the whole text of a choice (default 0), including the text that was read before.
   * Rejects with JobCancelled if the job was cancelled, and with the errors of iterating. Each of several calls at once
   * resolves to the whole text.
   */
  text(index?: number): Promise<string>;
  /** The same for all choices of a job with `n`. */
  texts(): Promise<string[]>;
  /**
   * Ask the worker to cancel the job, now or after the next reconnect; resolves when it has answered, and an end
   * follows. A job that has ended is success. Rejects with Refused, ConnectionFailed. It need not be awaited.
   */
  cancel(): Promise<void>;
  /**
   * Change the priority of a queued job (0 to 9, higher first); resolves to the worker's answer. A job that has ended
   * is left as it is. Rejects with Refused (over SSE always), ConnectionFailed. It need not be awaited; the last call
   * wins.
   */
  update(change: {priority: number}): Promise<Accepted>;
  /** Stop watching the job, which continues at the worker. Loops end. Never throws; calling it again does nothing. */
  close(): void;
}

/** A key, or a function that returns one: called for each connection, before a key expires, and when one is refused. */
export type Token = string | (() => string | Promise<string>);

export interface Options extends Credit {
  /** For workers that require one. */
  token?: Token;
  /** "auto" (default): a WebSocket, or SSE if there is none or none gets through. */
  transport?: "auto" | "websocket" | "sse";
  /** How long one outage may last. Default 60000. */
  retryTimeoutMs?: number;
  /** The first and the longest pause between two attempts. Default [250, 10000]. */
  backoffMs?: [first: number, most: number];
  /** Roughly how many unread bytes of one job are kept here. Default 4 MiB. */
  unreadBytesMax?: number;
  /** A constructor like the browser's, where there is none. */
  WebSocket?: new (url: string, protocols?: string[]) => any;
  fetch?: typeof fetch;
  /** Called with every frame, for inspectors. A request over SSE is shown as its frame. Keys are hidden. */
  onframe?: (frame: ClientFrame | ServerFrame, direction: "in" | "out") => void;
}

/** The jobs of one program at one worker. It connects with the first job; `close()` ends it. */
export interface Jobwire {
  /** The current transport. */
  readonly transport: "websocket" | "sse";
  /**
   * Start a job and return it at once, before the worker has answered. A refusal is thrown to the job's reader. Throws
   * ConnectionFailed if the client is closed, TypeError if it watches this job already, and the reason of an aborted
   * signal.
   */
  run(prompt: string | Message[], params?: RunParams): Job;
  /**
   * Start a job like `run`; resolves to it when the worker has accepted it. Rejects with Refused, and with the errors
   * of `run`. An abort while it is pending cancels the job.
   */
  create(prompt: string | Message[], params?: RunParams): Promise<Job>;
  /**
   * Watch a job that was created elsewhere, from its start or after a cursor, and return it at once. Throws the errors
   * of `run`. A job that the worker does not know is Refused, which is thrown to the reader.
   */
  subscribe(job_id: string, params?: WatchParams): Job;
  /** Drop the connection and open another one, on which all jobs resume. Never throws. */
  reconnect(): void;
  /**
   * End all waits for jobs with ConnectionFailed and close the connection. Jobs continue at the worker. Never throws;
   * calling it again does nothing.
   */
  close(): void;
}

/**
 * Return a client for the worker at `url` (http, https, ws or wss; in a page by default its own origin). It connects
 * with the first job. Throws TypeError for a wrong URL or option.
 */
export function connect(url?: string, options?: Options): Jobwire;

export interface WatchOptions extends Omit<WatchParams, "channels" | "signal">, Omit<Options, "transport"> {
  /** Aborting stops watching, and all waits reject with the signal's reason. The job continues. */
  signal?: AbortSignal;
}

/**
 * Watch a job by its `sse_url`, which may carry a ticket in place of a key: a share link, which is read-only. Returns
 * at once. Throws TypeError for a wrong URL.
 */
export function watch(sse_url: string | URL, options?: WatchOptions): Omit<Job, "cancel" | "update">;

/** Base of all errors of this client. `code` is stable; `retryAfterMs` is set only when a retry makes sense. */
export class JobwireError extends Error {
  readonly code: string;
  readonly detail: string;
  readonly status?: number;
  readonly retryAfterMs?: number;
  readonly problem: Partial<Problem>;
}

/** The worker refused a request. */
export class Refused extends JobwireError {}

/** The job ended as failed or expired. */
export class JobFailed extends JobwireError {}

/** The whole text was requested, but the job was cancelled; `text` is the text up to then. */
export class JobCancelled extends JobwireError {
  readonly text: string;
}

/** Given up: a wrong key, no answer for `retryTimeoutMs`, or closed by the program. Jobs continue at the worker. */
export class ConnectionFailed extends JobwireError {}
