/** A shared job: read-only, by its link alone. `#watch=` holds the path of its event stream. */

import {announce} from "./announcer.js";
import {Card, labelOf} from "./card.js";
import {BASE} from "./connection.js";
import {byId, el, setText} from "./dom.js";
import {JobState} from "./job-state.js";
import {watch} from "./jobwire.js";

const MARK = "#watch=";
const TICK_MS = 100;

/** Return the link that opens a job's stream in another tab. */
export const watchLink = (sseUrl) => `${BASE}/${MARK}${encodeURIComponent(sseUrl)}`;

/** Return the URL of the stream that this page was opened for, or null. Other workers' streams are ignored. */
export function watchedUrl() {
  if (!location.hash.startsWith(MARK)) return null;
  try {
    const url = new URL(decodeURIComponent(location.hash.slice(MARK.length)), `${BASE}/`);
    return url.origin === location.origin && url.pathname.includes("/v1/jobs/") ? url.href : null;
  } catch {
    return null;
  }
}

/** Show one job instead of the playground. @param {string} url */
export async function showWatched(url) {
  document.body.classList.add("watching");
  const jobs = byId("jobs");
  byId("jobs-title").textContent = "A shared job";
  setText(byId("jobs-summary"), "read-only, live by server-sent events");
  byId("link").hidden = true;
  jobs.replaceChildren();
  const playground = el("a", {href: `${BASE}/`}, "Open the playground");
  jobs.after(el("p", {className: "quiet"}, playground, " to run your own jobs."));
  let job;
  try {
    job = watch(url);
  } catch (error) {
    jobs.append(el("p", {className: "empty"}, `This link is not valid: ${error.message}`));
    return;
  }
  const state = new JobState(1, job.id, {prompt: job.id});
  const card = new Card(state, {});
  jobs.append(card.element);
  const timer = setInterval(() => card.tick(performance.now()), TICK_MS);
  await card.follow(job, {onchange: () => announce(state.id, labelOf(state))}).catch(() => {}); // the card shows it
  clearInterval(timer);
}
