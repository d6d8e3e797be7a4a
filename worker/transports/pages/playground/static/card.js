/** One job on the page: its state, text and narration as they arrive, its usage, and the buttons to act on it. */

import {Curve} from "./curve.js";
import {beforePaint, el, setText, svg} from "./dom.js";

const PRIORITY_MAX = 9;
const SPARK = {width: 64, height: 20};

/**
 * The actions of a card's buttons.
 * @typedef {Record<"cancel" | "dismiss" | "priority" | "read" | "share" | "code", Function>} Actions
 */

export class Card {
  #state;
  #actions;
  #pending = []; // pieces that wait for the next paint
  #choices = []; // {element, tail}: the tail is the text node that grows
  #lastNote = null; // narration that the next one of its kind replaces
  #spark;
  #away = false;

  /** @param {import("./job-state.js").JobState} state @param {Partial<Actions>} actions an absent one has no button */
  constructor(state, actions) {
    this.#state = state;
    this.#actions = actions;
    const name = idOf(state);
    const viewBox = `0 0 ${SPARK.width} ${SPARK.height}`;
    const spark = svg("svg", {class: "spark", viewBox, preserveAspectRatio: "none", "aria-hidden": "true"});
    this.#spark = new Curve(spark, SPARK.width, SPARK.height);
    this.badge = el("span", {className: "badge"});
    this.bar = el("i");
    this.flow = el("div", {className: "flow"});
    this.cursor = el("span", {className: "cursor"});
    this.numbers = el("p", {className: "numbers"});
    const number = el("span", {className: "number"}, `#${state.name}`);
    const label = `Text of job ${state.name}`;
    const log = {className: "log", role: "log", "aria-live": "off", "aria-label": label, tabIndex: 0};
    this.element = el(
      "article", {className: "card", tabIndex: -1, "aria-labelledby": name},
      el("header", {}, el("h3", {id: name}, number, " ", el("bdi", {title: state.title}, state.title)), this.badge),
      el("div", {className: "bar", "aria-hidden": "true"}, this.bar),
      el("div", log, this.flow),
      el("footer", {}, el("div", {className: "pace"}, this.numbers, spark), this.#buttons()),
    );
    this.element.style.setProperty("--hue", String(hueOf(state.number)));
    for (let index = 0; index < state.choices; index++) this.#addChoice(index);
    this.#paint();
  }

  /** Show the piece of an event before the next paint. @param {import("./job-state.js").Piece | null} piece */
  add(piece) {
    if (piece) this.#pending.push(piece);
    beforePaint(this.#paint);
  }

  /**
   * Show the events of a job until its end. An error is shown as the job's failure, and thrown.
   * @param {import("./jobwire.js").Job} job @param {{onchange?: () => void, ontext?: (text: string) => void}} [hooks]
   */
  async follow(job, {onchange = () => {}, ontext = () => {}} = {}) {
    const state = this.#state;
    try {
      for await (const event of job) {
        const before = state.state;
        this.add(state.receive(event));
        if (event.type === "token" && (event.index ?? 0) === 0) ontext(event.text);
        if (state.state !== before) onchange();
      }
    } catch (error) {
      if (job.end) state.receive(job.end); // it holds more than the error
      if (state.live) state.fail(error);
      this.add(null);
      throw error;
    }
  }

  /** Show whether the connection is lost. */
  setAway(away) {
    this.#away = away;
    beforePaint(this.#paint);
  }

  /** Measure the rate. @param {number} now */
  tick(now) {
    if (!this.#state.sample(now)) return;
    this.#spark.draw(this.#state.samples, this.#state.peak);
    beforePaint(this.#paint);
  }

  #paint = () => {
    for (const piece of this.#pending.splice(0)) this.#show(piece);
    const state = this.#state;
    const isAway = this.#away && state.live;
    const done = state.live && !state.tokens ? 0 : 1;
    this.element.dataset.state = isAway ? "away" : state.state;
    setText(this.badge, isAway ? "Reconnecting" : labelOf(state));
    this.bar.style.setProperty("--done", String(state.state === "reading" ? state.progress : done));
    setText(this.numbers, numbersOf(state));
    this.#paintCursor(state.cursor);
    if (state.error) this.#showError(state.error);
    this.#paintButtons(state);
  };

  #paintButtons(state) {
    const ends = state.live ? "Cancel" : "Dismiss";
    if (this.cancelButton) setText(this.cancelButton, this.#actions.cancel ? ends : "Close");
    if (this.priorityText) {
      setText(this.priorityText, String(state.priority));
      this.lower.disabled = !state.live || state.priority <= 0;
      this.higher.disabled = !state.live || state.priority >= PRIORITY_MAX;
    }
    if (this.shareButton) this.shareButton.disabled = this.readButton.disabled = !state.sseUrl;
  }

  /** Show the reader's cursor at the end of its text. The style sheet shows the number, so that it is never copied. */
  #paintCursor(cursor) {
    const at = cursor.split("-").at(-1);
    if (this.cursor.dataset.at === at) return;
    this.cursor.dataset.at = at;
    this.cursor.title = `cursor ${cursor}: event ${at} of the job's log was the last one read`;
  }

  #show(piece) {
    if (piece.kind === "text") return this.#write(piece);
    if (piece.kind === "reset") {
      this.flow.replaceChildren();
      this.#choices = [];
      this.#lastNote = null;
      for (let index = 0; index < this.#state.choices; index++) this.#addChoice(index);
      return undefined;
    }
    // Places in the queue and shares of the prompt replace each other: the newest is enough.
    const note = el("p", {className: `note ${piece.level ?? ""}`}, el("span", {}, piece.human));
    if (piece.cute) note.append(" · ", el("span", {className: "cute"}, piece.cute));
    const [choice] = this.#choices;
    if (this.#lastNote?.action === piece.action) this.#lastNote.note.replaceWith(note);
    // The sentence about the first token arrives after that token, and must not split the text.
    else if (piece.action === "first_token" && choice.tail) return choice.tail.parentElement.before(note);
    else choice.element.append(note);
    note.append(this.cursor);
    choice.tail = null;
    this.#lastNote = {action: piece.action, note};
    return undefined;
  }

  #write({index, text}) {
    const choice = this.#choices[index] ?? this.#addChoice(index);
    if (!choice.tail) {
      choice.tail = document.createTextNode("");
      choice.element.append(el("p", {className: "text", dir: "auto"}, choice.tail));
    }
    choice.tail.appendData(text);
    if (this.cursor.previousSibling !== choice.tail) choice.tail.after(this.cursor);
    if (index === 0) this.#lastNote = null;
  }

  #addChoice(index) {
    const element = el("div", {className: "choice"});
    if (this.#state.choices > 1) element.append(el("h4", {}, `Choice ${index + 1}`));
    this.flow.append(element);
    this.#choices[index] = {element, tail: null};
    return this.#choices[index];
  }

  #showError({code, detail}) {
    if (this.flow.querySelector(".error")) return;
    this.flow.append(el("p", {className: "note error"}, `${detail ?? "It failed."} (${code})`, this.cursor));
  }

  #buttons() {
    const {cancel, dismiss, priority, read, share, code} = this.#actions;
    const {number} = this.#state;
    const button = (text, label, onclick) =>
      el("button", {type: "button", onclick, "aria-label": `${label} ${number}`}, text);
    const row = el("div", {className: "actions"});
    if (priority) {
      this.lower = button("−", "Lower the priority of job", () => priority(-1));
      this.higher = button("+", "Raise the priority of job", () => priority(1));
      this.priorityText = el("span", {className: "priority-value"});
      const group = {className: "priority", role: "group", "aria-label": `Priority of job ${number}`};
      row.append(el("span", group, this.lower, this.priorityText, this.higher));
    }
    if (read) row.append((this.readButton = button("+ Reader", "Open another reader of job", read)));
    if (share) row.append((this.shareButton = button("Share", "Share job", share)));
    if (code) row.append(button("Code", "Code for job", code));
    if (dismiss) {
      const onclick = () => (cancel && this.#state.live ? cancel() : dismiss());
      const described = {"aria-describedby": idOf(this.#state)};
      this.cancelButton = el("button", {type: "button", className: "cancel", onclick, ...described});
      row.append(this.cancelButton);
    }
    return row;
  }
}

const idOf = ({number, reader}) => (reader > 1 ? `job-${number}-${reader}` : `job-${number}`);

/** Return a job's hue, far from those of its neighbours: the golden angle. */
export const hueOf = (number) => Math.round(150 + number * 137.508) % 360;

/** Return the state in a word or two. */
export function labelOf(state) {
  const {queue} = state;
  switch (state.state) {
    case "sent": return "Sending";
    case "queued": return queue ? `Queued ${queue.position}${inSeconds(queue.eta_ms)}` : "Queued";
    case "reading": return `Reading ${Math.round(state.progress * 100)} %`;
    case "writing": return "Writing";
    case "recovering": return "Engine restarts";
    case "completed": return state.finish === "length" ? "Done, cut at max tokens" : "Done";
    case "cancelled": return "Cancelled";
    case "expired": return "Expired";
    default: return "Failed";
  }
}

const inSeconds = (etaMs) => (etaMs ? ` · ~${Math.ceil(etaMs / 1000)} s` : "");

function numbersOf({tokens, rate, usage, live}) {
  if (live || !usage) return tokens ? `${tokens} tokens · ${Math.round(rate)}/s` : "";
  const first = usage.completion_tokens ? ` · first after ${seconds(usage.ttft_ms)}` : "";
  return `${usage.completion_tokens} tokens · ${Math.round(usage.tokens_per_s)}/s${first}`;
}

/** Return a duration in short form. @param {number} ms */
export const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`);
