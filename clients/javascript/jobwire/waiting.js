/** Ways to wait. */
import {Cut} from "./errors.js";

const PAINT_MS = 16; // where nothing is painted
const HIDDEN_PAINT_MS = 1_000; // a page that is not seen is not painted

/** Something to wait for until it is told that it may be different. */
export class Changes {
  #waiting = [];

  wait() {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  tell() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** Wait for the next paint of the page, or for the time of one where nothing is painted. */
export function nextPaint() {
  return new Promise((resolve) => {
    const frame = globalThis.requestAnimationFrame?.(() => {
      clearTimeout(timer);
      resolve();
    });
    const timer = setTimeout(() => {
      globalThis.cancelAnimationFrame?.(frame); // else they pile up until the page is seen again
      resolve();
    }, frame === undefined ? PAINT_MS : HIDDEN_PAINT_MS);
  });
}

/** Settle like a promise, or reject with a Cut when that takes too long. */
export function within(limitMs, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Cut(`Nothing was heard for ${limitMs / 1000} s`)), limitMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Wait, and reject with its reason when a signal is aborted. */
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
