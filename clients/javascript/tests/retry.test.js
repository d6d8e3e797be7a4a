/** Pauses between attempts, by a clock that the tests set. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {ConnectionFailed, Refused} from "../jobwire.js";
import {ATTEMPT_MS_MAX, Retry} from "../jobwire/retry.js";
import {stopClock} from "./steps.js";

const CUT = new Error("cut");
const HOUR_MS = 3_600_000;
const retryOf = (retryTimeoutMs) => new Retry({retryTimeoutMs, backoffMs: [250, 10_000]});

suite("Retry", () => {
  test("pauses grow to a limit, and an outage that is over starts them anew", () => {
    const retry = retryOf(HOUR_MS);
    for (let outage = 0; outage < 2; outage++) {
      for (let n = 0; n < 40; n++) {
        const longest = Math.min(250 * 2 ** n, 10_000);
        const delayMs = retry.delayMs(CUT);
        assert(delayMs >= longest / 2 && delayMs <= longest, `${n}: ${delayMs}`);
      }
      retry.clear();
    }
  });

  test("an outage ends in time and says why", (t) => {
    const wait = stopClock(t);
    const startedMs = performance.now();
    const retry = retryOf(60_000);
    assert.throws(() => {
      for (;;) wait(retry.delayMs(CUT) + 1_000);
    }, {name: "ConnectionFailed", message: /No answer for 60 s: cut/, cause: CUT});
    const lastedMs = performance.now() - startedMs;
    assert(lastedMs >= 45_000 && lastedMs <= 75_000, `${lastedMs}`);
  });

  test("an error of our own is thrown as it is", () => {
    const refusal = new Refused("Busy", "overloaded");
    assert.throws(() => retryOf(1_000).delayMs(refusal, 2_000), (error) => error === refusal);
  });

  test("clients that are told the same time do not come back at once", () => {
    const delays = new Set(Array.from({length: 20}, () => retryOf(60_000).delayMs(CUT, 2_000)));
    assert(delays.size > 10);
    assert(Math.min(...delays) >= 2_000);
  });

  test("a machine that slept in an outage goes on trying", (t) => {
    const wait = stopClock(t);
    const retry = retryOf(60_000);
    wait(retry.delayMs(CUT));
    wait(HOUR_MS);
    const wokenMs = performance.now();
    assert.throws(() => {
      for (;;) wait(retry.delayMs(CUT));
    }, ConnectionFailed);
    // The sleep counts as one attempt, of at most 30 s; the rest of the 60 s is left, but for a pause that is too long.
    const leftMs = performance.now() - wokenMs;
    assert(leftMs >= 60_000 - ATTEMPT_MS_MAX - 11_000 && leftMs <= 60_000 - ATTEMPT_MS_MAX, `${leftMs}`);
  });

  test("time in which nothing was wanted is no outage", (t) => {
    const wait = stopClock(t);
    const retry = retryOf(60_000);
    retry.delayMs(CUT);
    wait(24 * HOUR_MS);
    assert(retry.delayMs(CUT) < 1_000);
  });
});
