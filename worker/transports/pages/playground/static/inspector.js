/** The frames on the wire: the newest ones, filtered by job and type, and one frame in full. */

import {byId, el, setText} from "./dom.js";

const KEPT_MAX = 2000;
const ROWS_MAX = 120;
const PAINT_EVERY_MS = 120;
const NOT_ACK = "-ack"; // there is an ack for every frame, and they are all alike
const TYPES = [
  "create", "accepted", "narration", "token", "end", "error", "cancel", "update", "ack", "subscribe", "hello", "auth",
  "pong", "goaway",
];

const clock = (at) => new Date(at).toISOString().slice(11, 23);

export class Inspector {
  #kept = []; // {number, at, direction, frame, size}, oldest first
  #count = 0;
  #rows = []; // elements, reused; each shows one of #shown
  #shown = [];
  #selected = null;
  #names = new Map(); // of jobs, by id
  #panel = byId("inspector");
  #list = byId("frames");
  #dirty = false;

  constructor() {
    byId("frames-type").append(el("option", {value: NOT_ACK}, "all but ack"));
    byId("frames-type").value = NOT_ACK;
    for (const type of TYPES) byId("frames-type").append(el("option", {value: type}, type));
    this.#panel.addEventListener("toggle", () => this.#paint());
    for (const id of ["frames-type", "frames-job", "frames-pause"]) {
      byId(id).addEventListener("change", () => this.#paint());
    }
    byId("frames-clear").addEventListener("click", () => {
      this.#kept = [];
      this.#select(null);
      this.#paint();
    });
    this.#list.addEventListener("click", ({target}) => {
      this.#select(this.#shown[this.#rows.indexOf(target.closest(".row"))]);
    });
    this.#list.addEventListener("keydown", (event) => this.#onKey(event));
    setInterval(() => {
      if (this.#dirty && !document.hidden && this.#panel.open && !this.#paused) this.#paint();
    }, PAINT_EVERY_MS);
  }

  /** Add a job to the filter. */
  addJob(id, number) {
    this.#names.set(id, `#${number}`);
    byId("frames-job").append(el("option", {value: id}, `#${number}`));
  }

  removeJob(id) {
    byId("frames-job").querySelector(`[value="${CSS.escape(id)}"]`)?.remove();
  }

  /** Keep a frame. It is formatted only when it is shown. */
  add(frame, direction) {
    this.#kept.push({number: ++this.#count, at: Date.now(), direction, frame});
    if (this.#kept.length > 2 * KEPT_MAX) this.#kept = this.#kept.slice(-KEPT_MAX);
    this.#dirty = true;
  }

  get #paused() {
    return byId("frames-pause").checked;
  }

  #paint() {
    this.#dirty = false;
    const summary = this.#count ? `${this.#count.toLocaleString("en")} so far` : "the messages on the wire";
    setText(byId("frames-summary"), summary);
    if (!this.#panel.open) return;
    const atEnd = this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 40;
    this.#shown = this.#newest();
    while (this.#rows.length < this.#shown.length) this.#addRow();
    this.#rows.forEach((row, i) => this.#fill(row, this.#shown[i]));
    if (atEnd) this.#list.scrollTop = this.#list.scrollHeight;
  }

  /** The newest frames that pass the filters, oldest first. */
  #newest() {
    const [job, type] = [byId("frames-job").value, byId("frames-type").value];
    const isOfType = (frame) => !type || (type === NOT_ACK ? frame.type !== "ack" : frame.type === type);
    const found = [];
    for (let i = this.#kept.length - 1; i >= 0 && found.length < ROWS_MAX; i--) {
      const {frame} = this.#kept[i];
      if ((!job || frame.job_id === job) && isOfType(frame)) found.push(this.#kept[i]);
    }
    return found.reverse();
  }

  #addRow() {
    const id = `frame-${this.#rows.length}`;
    const row = el("div", {className: "row", role: "option", id, "aria-selected": "false"});
    for (const name of ["at", "direction", "job", "type", "rest"]) row.append(el("span", {className: name}));
    this.#rows.push(row);
    this.#list.append(row);
  }

  #fill(row, entry) {
    row.hidden = !entry;
    if (!entry) return;
    const {type, job_id, ...rest} = entry.frame;
    const [at, direction, job, name, text] = row.children;
    setText(at, clock(entry.at));
    setText(direction, entry.direction === "in" ? "↓" : "↑");
    direction.title = entry.direction === "in" ? "from the worker" : "to the worker";
    setText(job, this.#names.get(job_id) ?? "");
    setText(name, type);
    setText(text, JSON.stringify(rest).slice(0, 300));
    row.setAttribute("aria-selected", String(entry === this.#selected));
  }

  /** Show a frame in full, and pause the list while it is read. */
  #select(entry) {
    this.#selected = entry ?? null;
    if (entry) byId("frames-pause").checked = true;
    byId("frame").textContent = entry ? JSON.stringify(entry.frame, null, 2) : "";
    for (const [i, row] of this.#rows.entries()) this.#fill(row, this.#shown[i]);
    const index = this.#shown.indexOf(this.#selected);
    if (index < 0) return this.#list.removeAttribute("aria-activedescendant");
    this.#list.setAttribute("aria-activedescendant", this.#rows[index].id);
    this.#rows[index].scrollIntoView({block: "nearest"});
    return undefined;
  }

  #onKey(event) {
    const step = {ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
    if (step === undefined || !this.#shown.length) return;
    event.preventDefault();
    const last = this.#shown.length - 1;
    const now = this.#shown.indexOf(this.#selected);
    const from = now < 0 ? last + (step > 0 ? 0 : 1) : now;
    this.#select(this.#shown[Math.max(0, Math.min(last, from + step))]);
  }
}
