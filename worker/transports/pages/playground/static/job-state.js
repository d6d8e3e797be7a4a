/** A job's state as its events change it. No DOM and no clock here: times are passed in. */

const SAMPLES_MAX = 64;
const SAMPLE_MS = 100;

/** The state for each phase of narration; other phases change nothing. */
const STATE_OF_PHASE = {queued: "queued", prefill: "reading", decode: "writing", recovery: "recovering"};
const LIVE = new Set(["sent", "queued", "reading", "writing", "recovering"]);

/**
 * A piece to show: text of a choice, a sentence of narration, or a reset of everything.
 * @typedef {{kind: "text", index: number, text: string} | {kind: "note", action: string, human: string, cute?: string,
 *   level?: string} | {kind: "reset"}} Piece
 */

export class JobState {
  state = "sent";
  /** @type {{position: number, eta_ms?: number} | null} */
  queue = null;
  progress = 0; // of reading the prompt, 0 to 1
  tokens = 0;
  /** @type {string[]} */
  texts = [];
  usage = null;
  error = null;
  finish = "";
  cuts = 0;
  readers = 1; // of its log, on this page
  sseUrl = "";
  cursor = ""; // of the last event that was read
  rate = 0; // tokens per second, of the last sample
  peak = 0;
  /** Tokens per second over the whole life: above SAMPLES_MAX, two neighbours become one. @type {number[]} */
  samples = [];
  #sampleMs = SAMPLE_MS;
  #sampledAt = 0;
  #sampledTokens = 0;

  /** @param {number} number @param {string} id @param {Record<string, any>} params @param {number} [reader] */
  constructor(number, id, params, reader = 1) {
    this.number = number;
    this.reader = reader;
    this.id = id;
    this.params = params;
    this.priority = params.priority ?? 5;
    this.choices = params.n ?? 1;
  }

  /** The line that identifies this job. */
  get title() {
    const {prompt, messages} = this.params;
    return prompt ?? messages?.at(-1)?.content ?? this.id;
  }

  /** The name of the job and of the reader of its log. */
  get name() {
    return this.reader > 1 ? `${this.number}, reader ${this.reader}` : String(this.number);
  }

  /** Whether the job has not ended. */
  get live() {
    return LIVE.has(this.state);
  }

  /** Whether the job holds slots of the engine. */
  get running() {
    return this.state === "reading" || this.state === "writing";
  }

  /** Record the worker's answer. */
  accept(accepted) {
    this.sseUrl = accepted.sse_url ?? this.sseUrl;
    this.priority = accepted.priority ?? this.priority;
    if (this.state === "sent" && accepted.state === "queued") this.state = "queued";
    if (accepted.queue) this.queue = accepted.queue;
  }

  /** Record an event; return the piece to show. @returns {Piece | null} */
  receive(event) {
    this.cursor = event.cursor ?? this.cursor;
    if (event.type === "token") return this.#write(event);
    if (event.type === "narration") return this.#narrate(event);
    if (event.type === "reset") {
      this.texts = [];
      this.tokens = this.#sampledTokens = 0;
      return {kind: "reset"};
    }
    this.state = event.status;
    this.usage = event.usage ?? null;
    this.error = event.error ?? null;
    this.finish = event.finish_reason ?? "";
    this.queue = null;
    return null;
  }

  /** Record that the job could not be followed, or that the worker refused it. */
  fail(error) {
    this.state = "failed";
    this.queue = null;
    this.error = {code: error.code ?? "error", detail: error.detail ?? error.message};
  }

  /** Measure the rate; to be called regularly. @param {number} now in ms @returns {boolean} whether it is new */
  sample(now) {
    if (!this.tokens) return false;
    if (!this.#sampledAt) this.#sampledAt = now - this.#sampleMs;
    const passedMs = now - this.#sampledAt;
    if (passedMs < this.#sampleMs && this.live) return false;
    // The last sample of a job is short, and would look like a drop or a jump.
    if (!this.live && passedMs < this.#sampleMs && this.samples.length) return false;
    this.rate = ((this.tokens - this.#sampledTokens) * 1000) / Math.max(passedMs, 1);
    this.peak = Math.max(this.peak, this.rate);
    this.#sampledAt = now;
    this.#sampledTokens = this.tokens;
    this.samples.push(this.rate);
    if (this.samples.length > SAMPLES_MAX) {
      this.samples = this.samples.flatMap((rate, i, all) => (i % 2 ? [] : [(rate + (all[i + 1] ?? rate)) / 2]));
      this.#sampleMs *= 2;
    }
    return true;
  }

  #write(event) {
    const index = event.index ?? 0;
    this.state = "writing";
    this.queue = null;
    this.tokens += event.n ?? 1;
    this.texts[index] = (this.texts[index] ?? "") + event.text;
    return {kind: "text", index, text: event.text};
  }

  #narrate({phase, action, human, cute, level, queue, progress}) {
    this.state = STATE_OF_PHASE[phase] ?? this.state;
    this.queue = this.state === "queued" ? (queue ?? this.queue) : null;
    if (progress !== undefined) this.progress = progress;
    return {kind: "note", action, human, cute, level};
  }
}
