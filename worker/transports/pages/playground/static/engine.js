/** The batch: the jobs that share the engine's next step, the use of its cache, the queue, and the speed. */

import {hueOf} from "./card.js";
import {BASE} from "./connection.js";
import {Curve} from "./curve.js";
import {beforePaint, byId, el, setText} from "./dom.js";

const BUSY_POLL_MS = 400;
const IDLE_POLL_MS = 1000;
const CELLS_MAX = 256;
const TICKS_MAX = 96;
const HISTORY = 120;
/** Why the engine does not work, by its phase. */
const PHASES = {
  loading: "the model is loading", restarting: "the engine is restarting",
  failed: "the model cannot be loaded; trying again", closed: "the worker is shutting down",
};

const count = new Intl.NumberFormat("en", {maximumFractionDigits: 0});

export class Engine {
  #connection;
  #jobs;
  #stats = {};
  #cells = []; // of the grid: {element, owner}
  #rates = [];
  #curve = new Curve(byId("rate"), 240, 80);
  #facts = new Map();
  #timer;
  #asking = false;

  /**
   * @param {import("./connection.js").Connection} connection
   * @param {() => import("./job-state.js").JobState[]} jobs returns those of this page
   */
  constructor(connection, jobs) {
    this.#connection = connection;
    this.#jobs = jobs;
    document.addEventListener("visibilitychange", () => this.start());
  }

  /** Fetch the figures now, and regularly while the page is visible. */
  start() {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#poll();
  }

  /** Draw before the next paint: a job of this page has changed its state. */
  refresh() {
    beforePaint(this.#paint);
  }

  async #poll() {
    if (this.#asking) return;
    this.#asking = true;
    try {
      await this.#look();
    } catch {
      this.#stats = {...this.#stats, away: true};
    }
    this.#asking = false;
    this.refresh();
    const busy = this.#stats.running || this.#jobs().some((job) => job.live);
    this.#timer = setTimeout(() => this.start(), busy ? BUSY_POLL_MS : IDLE_POLL_MS);
  }

  async #look() {
    const headers = {Accept: "application/json", ...this.#connection.headers};
    const response = await fetch(`${BASE}/v1/stats`, {headers});
    if (response.status === 401) return this.#connection.askKey();
    this.#stats = {...(await response.json()), away: false};
    this.#rates.push(this.#stats.decode_tokens_per_s);
    if (this.#rates.length > HISTORY) this.#rates.shift();
    return undefined;
  }

  #paint = () => {
    const mine = this.#jobs();
    this.#paintSlots(mine.filter((job) => job.running));
    this.#paintQueue(mine.filter((job) => job.state === "queued"));
    this.#paintGauges();
  };

  #paintSlots(running) {
    const {slots_total: total = 0, running: all = 0} = this.#stats;
    byId("slots").dataset.size = total <= 64 ? "large" : total <= 128 ? "medium" : "small";
    while (this.#cells.length < Math.min(total, CELLS_MAX)) {
      const element = el("i");
      byId("slots").append(element);
      this.#cells.push({element, owner: null, look: ""});
    }
    // A sequence keeps its cell while it runs; its slot in the engine does not matter here.
    const wanted = new Map(running.map((job) => [job, job.choices]));
    for (const cell of this.#cells) {
      const left = wanted.get(cell.owner) ?? 0;
      if (left > 0) wanted.set(cell.owner, left - 1);
      else cell.owner = null;
    }
    const free = this.#cells.filter((cell) => !cell.owner);
    let shown = this.#cells.length - free.length;
    for (const [job, left] of wanted) {
      for (const cell of free.splice(0, left)) {
        cell.owner = job;
        shown += 1;
      }
    }
    const others = Math.max(0, all - shown);
    free.forEach((cell, i) => (cell.other = i < others));
    for (const cell of this.#cells) dress(cell);
  }

  #paintQueue(waiting) {
    const total = Math.max(this.#stats.waiting ?? 0, waiting.length);
    waiting.sort((a, b) => (a.queue?.position ?? Infinity) - (b.queue?.position ?? Infinity));
    const row = byId("queue");
    const shown = Math.min(total, TICKS_MAX);
    while (row.children.length > shown) row.lastChild.remove();
    while (row.children.length < shown) row.append(el("i"));
    for (const [i, tick] of [...row.children].entries()) {
      tick.className = waiting[i] ? "mine" : "";
      if (waiting[i]) tick.style.setProperty("--hue", String(hueOf(waiting[i].number)));
    }
    const shownOnly = total > shown ? `, ${shown} shown` : "";
    setText(byId("queue-text"), total ? `${count.format(total)} waiting${shownOnly}` : "empty");
  }

  #paintGauges() {
    const {running, waiting, slots_total: slots, away, engine_phase: phase} = this.#stats;
    const {kv_tokens_used: used, kv_tokens_total: room} = this.#stats;
    const peak = Math.max(...this.#rates, 1);
    this.#curve.draw(this.#rates, peak * 1.15, HISTORY);
    const rate = peak > 1 ? `${count.format(this.#rates.at(-1))} now, ${count.format(peak)} at the peak` : "";
    setText(byId("rate-now"), rate);
    byId("kv").style.setProperty("--done", String(room ? used / room : 0));
    const share = `${((100 * used) / room).toFixed(1)} %`;
    setText(byId("kv-text"), room ? `${count.format(used)} of ${count.format(room)} tokens, ${share}` : "");
    const words = phase === "ready" ? `${running} of ${slots} slots busy, ${waiting} waiting` : (PHASES[phase] ?? "");
    byId("gauges").classList.toggle("stale", Boolean(away));
    setText(byId("engine-summary"), away ? "the worker does not answer" : words);
    this.#paintFacts();
  }

  #paintFacts() {
    const {step_ms: step, prefill_tokens_per_s: prefill, sockets, restarts} = this.#stats;
    const {uptime_s: uptime, jobs_live: jobs} = this.#stats;
    if (uptime === undefined) return;
    const facts = {
      "Step": step ? `${step.toFixed(1)} ms` : "idle",
      "Prefill": prefill ? `${count.format(prefill)} tokens/s` : "idle",
      "Jobs": count.format(jobs),
      "Connections": count.format(sockets),
      "Up": duration(uptime),
      ...(restarts ? {"Engine restarts": count.format(restarts)} : {}),
    };
    for (const [name, value] of Object.entries(facts)) {
      if (!this.#facts.has(name)) {
        this.#facts.set(name, el("dd"));
        byId("facts").append(el("div", {}, el("dt", {}, name), this.#facts.get(name)));
      }
      setText(this.#facts.get(name), value);
    }
  }
}

/** Give a cell the look of its owner, if that has changed. */
function dress(cell) {
  const {owner, other, element} = cell;
  const look = owner ? `mine ${owner.state} ${owner.number}` : other ? "other" : "";
  if (look === cell.look) return;
  cell.look = look;
  element.className = look.replace(/ \d+$/, "");
  if (owner) element.style.setProperty("--hue", String(hueOf(owner.number)));
  element.title = owner ? `#${owner.number} ${owner.title}` : "";
}

/** Return a duration in short form. @param {number} s */
export function duration(s) {
  const [minutes, hours] = [Math.floor(s / 60), Math.floor(s / 3600)];
  return hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min` : `${Math.floor(s)} s`;
}
