/** All jobs of this page: starts them, follows them, and does to them what their cards ask for. */

import {announce} from "./announcer.js";
import {Card, labelOf} from "./card.js";
import {beforePaint, byId, setText} from "./dom.js";
import {JobState} from "./job-state.js";
import {watchLink} from "./watch.js";

const CARDS_MAX = 300;
const TICK_MS = 100;

export class Jobs {
  #connection;
  #inspector;
  #onchange;
  #oncode;
  #entries = new Map(); // by job id: {state, card, job}
  #numbers = 0;

  /**
   * @param {import("./connection.js").Connection} connection @param {import("./inspector.js").Inspector} inspector
   * @param {{onchange: () => void, oncode: (params: object, focus: boolean) => void}} hooks
   */
  constructor(connection, inspector, {onchange, oncode}) {
    this.#connection = connection;
    this.#inspector = inspector;
    this.#onchange = onchange;
    this.#oncode = oncode;
    setInterval(() => this.#tick(), TICK_MS);
  }

  /** @returns {JobState[]} */
  get states() {
    return [...this.#entries.values()].map(({state}) => state);
  }

  /**
   * Start a job. Resolves when it has ended, to its state; rejects with Refused when the worker does not want it.
   * @param {Record<string, any>} params @param {(text: string) => void} [ontext]
   */
  async run(params, ontext = () => {}) {
    const job = this.#connection.client.run(params.prompt ?? params.messages, without(params, "prompt", "messages"));
    const state = new JobState(++this.#numbers, job.id, params);
    const entry = {state, job, card: new Card(state, this.#actions(() => entry))};
    this.#add(entry);
    try {
      await this.#follow(entry, ontext);
    } catch (error) {
      if (state.live) state.fail(error); // else the end has told it already
      this.#changed(entry);
      if (error.name === "Refused" || error.code === "unauthorized") throw error;
    }
    return state;
  }

  /** The connection is away, or back. */
  setAway(away) {
    for (const {state, card} of this.#entries.values()) {
      if (state.live) card.setAway(away);
    }
  }

  /** A job was asked for again, after a cursor: its text shows where it was cut. */
  markResumed(id, after) {
    const {state, card} = this.#entries.get(id) ?? {};
    if (!state?.live) return;
    state.cuts += 1;
    card.take({kind: "note", action: `cut ${state.cuts}`, level: "cut", human: `The connection was cut. Resumed after ${after}.`});
  }

  cancelAll() {
    for (const {state, job} of this.#entries.values()) if (state.live) job.cancel();
  }

  clear() {
    for (const entry of [...this.#entries.values()]) if (!entry.state.live) this.#remove(entry);
  }

  async #follow(entry, ontext) {
    const {state, job, card} = entry;
    job.waitAccepted().then(() => {
      state.accept(job.accepted);
      this.#changed(entry);
    }, () => {}); // who iterates hears of it
    for await (const event of job) {
      const before = state.state;
      card.take(state.take(event));
      if (event.type === "token" && (event.index ?? 0) === 0) ontext(event.text);
      if (state.state !== before) this.#changed(entry);
    }
  }

  #actions(entry) {
    return {
      cancel: () => entry().job.cancel().catch((error) => this.#tell(error)),
      dismiss: () => {
        const next = entry().card.element.nextElementSibling ?? entry().card.element.previousElementSibling;
        this.#remove(entry());
        (next ?? byId("prompt")).focus();
      },
      priority: (step) => this.#setPriority(entry(), step),
      share: () => openShare(entry().state.sseUrl),
      code: () => this.#oncode(entry().state.params, true),
    };
  }

  async #setPriority(entry, step) {
    const {state, job, card} = entry;
    const wanted = state.priority + step;
    try {
      const answer = await job.update({priority: wanted});
      state.priority = wanted;
      if (answer?.queue && state.state === "queued") state.queue = answer.queue;
      announce(`${state.id} priority`, `Job ${state.number} has priority ${wanted}`);
    } catch (error) {
      this.#tell(error);
    }
    card.take(null);
  }

  #add(entry) {
    const {state, card} = entry;
    if (!this.#entries.size) byId("jobs").replaceChildren();
    this.#entries.set(state.id, entry);
    this.#inspector.addJob(state.id, state.number);
    byId("jobs").prepend(card.element);
    const ended = [...this.#entries.values()].filter((old) => !old.state.live);
    for (const old of ended.slice(0, Math.max(0, this.#entries.size - CARDS_MAX))) this.#remove(old);
    this.#changed(entry);
  }

  #remove({state, card}) {
    this.#entries.delete(state.id);
    this.#inspector.removeJob(state.id);
    card.element.remove();
    this.#summarize();
  }

  /** A job is in another state. */
  #changed({state, card}) {
    card.take(null);
    if (state.state !== "sent") announce(state.id, `Job ${state.number}: ${labelOf(state)}`, () => this.#summary());
    this.#summarize();
    this.#onchange();
  }

  #summarize() {
    beforePaint(this.#paintSummary);
  }

  #paintSummary = () => setText(byId("jobs-summary"), this.#summary());

  #summary() {
    const count = (wanted) => this.states.filter(wanted).length;
    const parts = [
      [count((job) => job.running), "running"], [count((job) => job.live && !job.running), "waiting"],
      [count((job) => job.state === "completed"), "done"], [count((job) => job.state === "cancelled"), "cancelled"],
      [count((job) => job.state === "failed" || job.state === "expired"), "failed"],
    ];
    return parts.filter(([number]) => number).map(([number, word]) => `${number} ${word}`).join(", ");
  }

  #tick() {
    const now = performance.now();
    for (const {state, card} of this.#entries.values()) if (state.live) card.tick(now);
  }

  #tell(error) {
    byId("complaint").textContent = error.detail ?? error.message;
  }
}

function openShare(sseUrl) {
  const link = watchLink(sseUrl);
  byId("share-link").value = link;
  byId("share-open").href = link;
  byId("share").showModal();
  byId("share-link").select();
}

function without(params, ...names) {
  return Object.fromEntries(Object.entries(params).filter(([name]) => !names.includes(name)));
}
