/** Tells a screen reader what changes, without flooding it: of each subject the newest, and of many only the sum. */

import {byId} from "./dom.js";

const QUIET_MS = 700;
const SUBJECTS_MAX = 3;

const waiting = new Map(); // what to say, by subject
let timer;

/**
 * Say a sentence soon, unless a newer one about the same subject comes before.
 * @param {string} subject @param {string} sentence @param {() => string} [summary] what is said when too much happens at once
 */
export function announce(subject, sentence, summary = () => "") {
  waiting.delete(subject);
  waiting.set(subject, sentence);
  clearTimeout(timer);
  timer = setTimeout(() => {
    const sentences = [...waiting.values()];
    const short = sentences.length > SUBJECTS_MAX ? summary() : "";
    byId("announcer").textContent = short || sentences.slice(-SUBJECTS_MAX).join(". ");
    waiting.clear();
  }, QUIET_MS);
}
