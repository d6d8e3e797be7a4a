/** All jobs of this page: starts them, follows them, and carries out the actions of their cards. */

import {announce} from "./announcer.js";
import {Card, labelOf} from "./card.js";
import {keptAs} from "./connection.js";
import {beforePaint, byId, setText} from "./dom.js";
import {duration} from "./engine.js";
import {JobState} from "./job-state.js";
import {watchLink} from "./watch.js";

const CARDS_MAX = 300;
const TICK_MS = 100;
const KEPT = keptAs("jobs"); // the key of the jobs that this tab resumes after a reload
const KEPT_MAX = 50;

export class Jobs {
  #connection;
  #inspector;
  #onchange;
  #oncode;
  #entries = new Map(); // by job id: {state, card, job, readers}
  #kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"); // {id, number, params} of jobs from before a reload
  #numbers = Math.max(0, ...this.#kept.map(({number}) => number));
  #empty = byId("jobs").firstElementChild;

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
   * Start a job. Resolves to its state when it has ended; rejects with Refused if the worker refuses it.
   * @param {Record<string, any>} params @param {(text: string) => void} [ontext]
   */
  async run(params, ontext = () => {}) {
    const job = this.#connection.client.run(params.prompt ?? params.messages, without(params, "prompt", "messages"));
    return this.#show(job, ++this.#numbers, params, ontext);
  }

  /** Resume the jobs of this tab after a reload. They have continued; jobs that the worker has forgotten are gone. */
  restore() {
    for (const {id, number, params} of this.#kept.splice(0)) {
      const job = this.#connection.client.subscribe(id);
      job.waitAccepted().then(() => this.#show(job, number, params)).catch(() => {});
    }
  }

  /** Show whether the connection is lost. */
  setAway(away) {
    for (const {state, card} of this.#entries.values()) {
      if (state.live) card.setAway(away);
    }
  }

  /** Mark the place in the text of a job where the connection was cut and the job resumed. */
  markResumed(id, after) {
    const {state, card} = this.#entries.get(id) ?? {};
    if (!state?.live) return;
    state.cuts += 1;
    const human = `The connection was cut. Resumed after ${after}.`;
    card.add({kind: "note", action: `cut ${state.cuts}`, level: "cut", human});
  }

  cancelAll() {
    for (const {state, job} of this.#entries.values()) if (state.live) job.cancel();
  }

  clear() {
    for (const entry of [...this.#entries.values()]) if (!entry.state.live) this.#remove(entry);
  }

  /** Put a job on the page and follow it to its end. */
  async #show(job, number, params, ontext) {
    const state = new JobState(number, job.id, params);
    const entry = {state, job, readers: [], card: new Card(state, this.#actions(() => entry))};
    const onchange = () => this.#changed(entry);
    this.#add(entry);
    job.waitAccepted().then(() => {
      state.accept(job.accepted);
      onchange();
    }, () => {}); // the card shows it
    try {
      await entry.card.follow(job, {onchange, ontext});
    } catch (error) {
      onchange();
      if (error.name === "Refused" || error.code === "unauthorized") throw error;
    }
    return state;
  }

  /** Read the log of a job again, from its start, on a connection of its own. */
  #read({state, card, readers}) {
    const client = this.#connection.another((frame, direction) => this.#inspector.add(frame, direction));
    const copy = new JobState(state.number, state.id, state.params, ++state.readers);
    const reader = {state: copy, client};
    reader.card = new Card(copy, {
      dismiss: () => {
        client.close();
        reader.card.element.remove();
        readers.splice(readers.indexOf(reader), 1);
        card.element.focus();
      },
    });
    (readers.at(-1)?.card ?? card).element.after(reader.card.element);
    readers.push(reader);
    reader.card.element.focus();
    reader.card.follow(client.subscribe(state.id)).catch(() => {}).finally(() => client.close()); // the card shows it
  }

  #actions(entry) {
    return {
      cancel: () => entry().job.cancel().catch((error) => this.#complain(error)),
      dismiss: () => {
        const {card, readers} = entry();
        const last = (readers.at(-1)?.card ?? card).element;
        const next = last.nextElementSibling ?? card.element.previousElementSibling;
        this.#remove(entry());
        (next ?? byId("prompt")).focus();
      },
      priority: (step) => this.#setPriority(entry(), step),
      read: () => this.#read(entry()),
      share: () => openShare(entry().state.sseUrl, this.#connection.hello?.limits.retention_s),
      code: () => this.#oncode(entry().state.params, true),
    };
  }

  async #setPriority(entry, step) {
    const {state, job, card} = entry;
    const wanted = state.priority + step;
    try {
      const answer = await job.update({priority: wanted});
      // A key may have less than what was asked for.
      state.priority = answer?.priority ?? wanted;
      if (answer?.queue && state.state === "queued") state.queue = answer.queue;
      announce(`${state.id} priority`, `Job ${state.number} has priority ${state.priority}`);
    } catch (error) {
      this.#complain(error);
    }
    card.add(null);
  }

  #add(entry) {
    const {state, card} = entry;
    this.#empty.remove();
    this.#entries.set(state.id, entry);
    this.#inspector.addJob(state.id, state.number);
    byId("jobs").prepend(card.element);
    const ended = [...this.#entries.values()].filter((old) => !old.state.live);
    for (const old of ended.slice(0, Math.max(0, this.#entries.size - CARDS_MAX))) this.#remove(old);
    beforePaint(this.#keep);
    this.#changed(entry);
  }

  #remove({state, card, readers}) {
    for (const reader of readers) {
      reader.client.close();
      reader.card.element.remove();
    }
    this.#entries.delete(state.id);
    this.#inspector.removeJob(state.id);
    card.element.remove();
    if (!this.#entries.size) byId("jobs").append(this.#empty);
    beforePaint(this.#keep);
    this.#summarize();
  }

  #keep = () => {
    const kept = this.states.slice(-KEPT_MAX).map(({id, number, params}) => ({id, number, params}));
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(kept));
    } catch {
      sessionStorage.removeItem(KEPT); // too long to be kept
    }
  };

  /** Show and announce the new state of a job. */
  #changed({state, card}) {
    card.add(null);
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
    for (const entry of this.#entries.values()) {
      for (const {state, card} of [entry, ...entry.readers]) if (state.live) card.tick(now);
    }
  }

  #complain(error) {
    byId("complaint").textContent = error.detail ?? error.message;
  }
}

function openShare(sseUrl, keptS) {
  const link = watchLink(sseUrl);
  if (keptS) setText(byId("share-time"), `and for ${duration(keptS)} after its end`);
  byId("share-link").value = link;
  byId("share-open").href = link;
  byId("share").showModal();
  byId("share-link").select();
}

function without(params, ...names) {
  return Object.fromEntries(Object.entries(params).filter(([name]) => !names.includes(name)));
}
