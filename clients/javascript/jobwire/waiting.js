/** Ways to wait. */
import {Cut} from "./errors.js";

/** The time between paints where nothing is painted. */
const PAINT_MS = 16;

/** The same for a hidden page, which the browser does not paint. */
const HIDDEN_PAINT_MS = 1_000;

/** Lets any number of functions wait for the next change. */
export class Changes {
  #waiting = [];

  wait() {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  notify() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** Wait for the next paint of the page; where nothing is painted, as long as between two paints. */
export function nextPaint() {
  return new Promise((resolve) => {
    const frame = globalThis.requestAnimationFrame?.(() => {
      clearTimeout(timer);
      resolve();
    });
    const timer = setTimeout(() => {
      globalThis.cancelAnimationFrame?.(frame); // else they pile up until the page is visible again
      resolve();
    }, frame === undefined ? PAINT_MS : HIDDEN_PAINT_MS);
  });
}

/** Settle like a promise, or reject with a Cut after a time limit. */
export function within(limitMs, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Cut(`Nothing was received for ${limitMs / 1000} s`)), limitMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Wait for a time. Rejects with the signal's reason when it is aborted. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort);
  });
}
