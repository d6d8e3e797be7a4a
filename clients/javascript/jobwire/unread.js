/** Events that wait for their reader. */

/** Roughly the memory of an unread event without its text. */
const EVENT_COST_BYTES = 256;

/** The unread events of one job, in order; `costBytes` is roughly their memory. */
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

  /** Pop the oldest event. A token is merged with the tokens that follow it. */
  pop() {
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

/** Return one token event for a run of them, with the whole text and the last cursor. */
function merge(run) {
  const merged = {...run.at(-1), text: run.map((event) => event.text).join("")};
  merged.n = run.reduce((sum, event) => sum + (event.n ?? 1), 0);
  for (const name of ["ids", "logprobs", "top_logprobs"]) {
    if (run.some((event) => event[name])) merged[name] = run.flatMap((event) => event[name] ?? []);
  }
  return merged;
}
