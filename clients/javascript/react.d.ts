/** Hooks for React >= 18. */
import type {EndEvent, Jobwire, Message, NarrationEvent, Options, QueuePlace, RunParams} from "./jobwire.js";

/** A client for as long as the component lives: null at first, and a new one when `url` changes. */
export function useClient(url?: string, options?: Options): Jobwire | null;

/** A job, as far as it is. It is shown once a paint. */
export interface ShownJob {
  readonly id: string | null;
  readonly state: "idle" | "queued" | "running" | "completed" | "cancelled" | "failed";
  readonly text: string;
  /** Of each choice, for a job with `n`. */
  readonly texts: readonly string[];
  readonly narration: readonly NarrationEvent[];
  /** Where the job waits, while it does. */
  readonly queue: QueuePlace | null;
  readonly end: EndEvent | null;
  /** Why it failed; the end does not say it of a job that was refused or lost. */
  readonly error: Error | null;
  /** Start a job in place of the one of now. Throws while there is no client. */
  run(prompt: string | Message[], params?: RunParams): void;
  /** Cancel the job of now, if there is one; its end follows. */
  cancel(): Promise<void>;
}

/**
 * One job at a time, and what there is of it. With a prompt it runs at once, and anew when prompt or params change; else
 * when `run` is called. A job whose component is gone, or that another one replaces, is cancelled unless it was created
 * with `detach`.
 */
export function useJob(client: Jobwire | null, prompt?: string | Message[] | null, params?: RunParams): ShownJob;
