/** Tells a screen reader what changes, without flooding it: many changes within a moment become one sentence. */

import {byId} from "./dom.js";

const QUIET_MS = 700;
const ALL_MAX = 3;

let waiting = [];
let timer;

/** Say a sentence soon. `summary` says instead what is, when too much happens at once. @param {() => string} [summary] */
export function announce(sentence, summary = () => "") {
  waiting.push(sentence);
  clearTimeout(timer);
  timer = setTimeout(() => {
    const short = waiting.length > ALL_MAX ? summary() : "";
    byId("announcer").textContent = short || waiting.slice(-ALL_MAX).join(". ");
    waiting = [];
  }, QUIET_MS);
}
