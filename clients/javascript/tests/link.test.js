/** How a job stands with its connection: the table of links, entry by entry. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";

import {settingsOf} from "../jobwire/options.js";
import {Subscription} from "../jobwire/subscription.js";
import {ID} from "./steps.js";

const STEPS = ["ask", "attach", "refuse", "ask again", "detach"];
const EXPECTED = {
  away: {ask: "asked", attach: "attached", detach: "away"},
  waiting: {"ask again": "away", detach: "away"},
  asked: {attach: "attached", refuse: "waiting", detach: "away"},
  attached: {attach: "attached", detach: "away"},
};

suite("Link", () => {
  for (const [link, expected] of Object.entries(EXPECTED)) {
    for (const step of STEPS) {
      test(`${link} meets ${step}`, () => {
        const settings = settingsOf("http://127.0.0.1:1", {});
        const subscription = new Subscription({type: "create", job_id: ID}, settings, () => {});
        subscription.link = link;
        if (!expected[step]) return assert.throws(() => subscription.step(step), /cannot/);
        subscription.step(step);
        return assert.equal(subscription.link, expected[step]);
      });
    }
  }
});
