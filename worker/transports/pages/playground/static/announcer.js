/** Announces changes to screen readers without flooding them: the newest per subject, and one summary for many. */

import {byId} from "./dom.js";

const QUIET_MS = 700;
const SUBJECTS_MAX = 3;

const waiting = new Map(); // sentences by subject
let timer;

/**
 * Announce a sentence soon, unless a newer one about the same subject replaces it.
 * @param {string} subject @param {string} sentence
 * @param {() => string} [summary] the announcement when too many subjects change at once
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
