/** Hooks for React >= 18. */
import type {EndEvent, Jobwire, Message, NarrationEvent, Options, QueuePlace, RunParams} from "./jobwire.js";

/** Return a client that lives as long as the component: null at first, and another one when `url` changes. */
export function useClient(url?: string, options?: Options): Jobwire | null;

/** The state of a job, updated at most once per paint. */
export interface ShownJob {
  readonly id: string | null;
  readonly state: "idle" | "queued" | "running" | "completed" | "cancelled" | "failed";
  readonly text: string;
  /** The text of each choice, for a job with `n`. */
  readonly texts: readonly string[];
  readonly narration: readonly NarrationEvent[];
  /** The job's place in the queue, while it is queued. */
  readonly queue: QueuePlace | null;
  readonly end: EndEvent | null;
  /** Why the job failed. A job that was refused or lost has no end. */
  readonly error: Error | null;
  /** Start a job in place of the current one. Throws while there is no client. */
  run(prompt: string | Message[], params?: RunParams): void;
  /** Cancel the current job, if there is one; its end follows. */
  cancel(): Promise<void>;
}

/**
 * One job at a time, and its state. With a prompt the job runs at once, and again when prompt or params change; else
 * when `run` is called. A job is cancelled when its component unmounts or another job replaces it, unless it was
 * created with `detach`.
 */
export function useJob(client: Jobwire | null, prompt?: string | Message[] | null, params?: RunParams): ShownJob;
