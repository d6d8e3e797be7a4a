/** Events that wait for their reader. */

const EVENT_COST_BYTES = 256; // what an unread event costs beside its text, roughly

/** The events of one job that nobody has read yet, in order; `costBytes` is roughly what they take. */
export class Unread {
  #events = [];
  costBytes = 0;

  get isEmpty() {
    return !this.#events.length;
  }

  push(event) {
    this.#events.push(event);
    this.costBytes += costBytes(event);
  }

  /** Take the oldest event; tokens that wait behind a token come with it, as one. */
  take() {
    let count = 1;
    while (count < this.#events.length && areMergeable(this.#events[0], this.#events[count])) count++;
    const run = this.#events.splice(0, count);
    for (const event of run) this.costBytes -= costBytes(event);
    return count === 1 ? run[0] : merge(run);
  }

  clear() {
    this.#events = [];
    this.costBytes = 0;
  }
}

function costBytes(event) {
  return EVENT_COST_BYTES + (event.text ?? event.human ?? "").length;
}

function areMergeable(a, b) {
  if (a.type !== "token" || b.type !== "token") return false;
  return (a.index ?? 0) === (b.index ?? 0) && (a.kind ?? "text") === (b.kind ?? "text");
}

/** One token event for a run of them: the text together, the cursor of the last. */
function merge(run) {
  const merged = {...run.at(-1), text: run.map((event) => event.text).join("")};
  merged.n = run.reduce((sum, event) => sum + (event.n ?? 1), 0);
  for (const name of ["ids", "logprobs", "top_logprobs"]) {
    if (run.some((event) => event[name])) merged[name] = run.flatMap((event) => event[name] ?? []);
  }
  return merged;
}
