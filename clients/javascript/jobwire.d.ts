/** Client for Jobwire: create a job, read its text as it is made, cancel it, and survive every cut in between. */
import type {
  AcceptedFrame, ClientFrame, CreateBody, EndFrame, Message, NarrationFrame, Problem, ServerFrame, TokenFrame,
} from "./protocol.js";

export type {
  ClientFrame, ErrorCode, LikelyToken, Message, Problem, QueuePlace, ResponseFormat, ServerFrame, Usage,
} from "./protocol.js";

/** A piece of text: `n` (default 1) tokens of the choice `index` (default 0). */
export type TokenEvent = TokenFrame;

/** What happens to the job, in one sentence for people (`human`). */
export type NarrationEvent = NarrationFrame;

/** The last event of every job. */
export type EndEvent = EndFrame;

/** The worker lost its log of the job and starts it over: forget all text so far. Rare. */
export interface ResetEvent {
  type: "reset";
  job_id: string;
}

/** Reading also throws: Refused, JobFailed instead of a failed or expired end, ConnectionFailed. */
export type JobEvent = TokenEvent | NarrationEvent | EndEvent | ResetEvent;

/** The worker's answer to a request. */
export type Accepted = AcceptedFrame;

/** How frames come. All of it may be set for a client too. */
export interface Credit {
  /** How many frames the worker may send ahead of the reader: any number. Over SSE it does not matter. */
  window?: number;
  /** "paint": at most one event at each paint of the page, and (unless `window` says else) one frame ahead. */
  frames?: "all" | "paint";
}

/** How to watch a job. */
export interface WatchParams extends Credit {
  /** Go on from this cursor; never runs a job again. */
  after?: string;
  /** Aborting cancels the job, unless it is closed, and reading rejects with the signal's reason. */
  signal?: AbortSignal;
  channels?: CreateBody["channels"];
}

/** What a job may ask for, as on the wire; the worker checks it and says what is wrong with it. */
export interface RunParams
  extends WatchParams, Omit<CreateBody, "prompt" | "messages" | "ref" | keyof WatchParams> {
  /** More, of another operation or a newer worker. */
  [field: string]: unknown;
}

/**
 * The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.
 * Leaving a loop early leaves the job as it is: iterate again, `cancel()` it, or `close()` to stop watching it.
 */
export interface Job extends AsyncIterable<JobEvent> {
  readonly id: string;
  /** Where the reader is: give it to `subscribe(id, {after})`, anywhere, to go on from there. */
  readonly cursor: string | null;
  readonly end: EndEvent | null;
  readonly accepted: Accepted | null;
  /** Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted. */
  readonly ignored: readonly string[];
  /** Wait until the worker has accepted the job; resolves to the job. Rejects with Refused. */
  waitAccepted(): Promise<Job>;
  /**
   * Wait for the end and return the whole text of a choice (default 0): what was read before and the rest.
   * Rejects with JobCancelled when there is no whole text, and with what iterating throws.
   */
  text(index?: number): Promise<string>;
  /** Likewise, of every choice, for a job with `n`. */
  texts(): Promise<string[]>;
  /** Cancel the job; resolves when the worker has heard it, and the end follows. A job that has ended is success. */
  cancel(): Promise<void>;
  /** Change the priority of a job that waits; resolves to the answer. Rejects with Refused, over SSE always. */
  update(change: {priority: number}): Promise<Accepted>;
  /** Stop watching the job, which goes on. */
  close(): void;
}

/** A key, or a function that is asked for one: at each connection, before it expires, and when it is refused. */
export type Token = string | (() => string | Promise<string>);

export interface Options extends Credit {
  /** For workers that want one. */
  token?: Token;
  /** "auto" (default): a WebSocket, or SSE where there is none or none gets through. */
  transport?: "auto" | "websocket" | "sse";
  /** How long one outage may last: 60000. */
  retryTimeoutMs?: number;
  /** The first and the longest pause between two attempts: [250, 10000]. */
  backoffMs?: [first: number, most: number];
  /** How much of a job may wait for its reader here, roughly: 4 MiB. */
  unreadBytesMax?: number;
  /** A constructor like the browser's, for places without one. */
  WebSocket?: new (url: string, protocols?: string[]) => any;
  fetch?: typeof fetch;
  /** Sees every frame, for inspectors. Over SSE a request counts as the frame it stands for. Keys are hidden. */
  onframe?: (frame: ClientFrame | ServerFrame, direction: "in" | "out") => void;
}

/** The jobs of one program at one worker. It connects with the first job; `close()` ends it. */
export interface Jobwire {
  /** What carries the jobs now. */
  readonly transport: "websocket" | "sse";
  /** Start a job and return at once; a refusal meets its reader. */
  run(prompt: string | Message[], params?: RunParams): Job;
  /** Start a job like `run` and wait until the worker has accepted it. Rejects with Refused. */
  create(prompt: string | Message[], params?: RunParams): Promise<Job>;
  /** Watch a job that was created elsewhere, from its beginning or after a cursor. */
  subscribe(job_id: string, params?: WatchParams): Job;
  /** Drop the connection now and come back: jobs resume where they are. */
  reconnect(): void;
  /** Close the connection. Jobs go on at the worker; who waits for one here gets ConnectionFailed. */
  close(): void;
}

/** Return a client for the worker at `url` (http, https, ws or wss; in a page by default its own origin). */
export function connect(url?: string, options?: Options): Jobwire;

export interface WatchOptions extends Omit<WatchParams, "channels" | "signal">, Omit<Options, "transport"> {
  /** Aborting stops watching, and reading rejects with the signal's reason. The job goes on. */
  signal?: AbortSignal;
}

/** Watch a job by its `sse_url`, which may carry a ticket in place of a key: a share link. It can be read only. */
export function watch(sse_url: string | URL, options?: WatchOptions): Omit<Job, "cancel" | "update">;

/** Base of all errors here. `code` is stable; `retryAfterMs` is set exactly when a retry makes sense. */
export class JobwireError extends Error {
  readonly code: string;
  readonly detail: string;
  readonly status?: number;
  readonly retryAfterMs?: number;
  readonly problem: Partial<Problem>;
}

/** The worker said no to a request. */
export class Refused extends JobwireError {}

/** The job ended as failed or expired. */
export class JobFailed extends JobwireError {}

/** The whole text was asked for, but the job was cancelled; `text` is what there is. */
export class JobCancelled extends JobwireError {
  readonly text: string;
}

/** Gone for good: a wrong key, no answer for `retryTimeoutMs`, or closed by the program. Jobs go on at the worker. */
export class ConnectionFailed extends JobwireError {}
