/** The hooks in a real React, against the worker at JOBWIRE_URL. Run in a project that has jobwire and react. */
import assert from "node:assert/strict";
import {suite, test} from "node:test";
import {StrictMode, createElement} from "react";
import {create} from "react-test-renderer";

import {connect} from "jobwire";
import {useClient, useJob} from "jobwire/react";

const url = process.env.JOBWIRE_URL;
const COUNT = {temperature: 0, max_tokens: 60};
const LONG = {temperature: 0, max_tokens: 1500};

console.error = () => {}; // react-test-renderer says that it is deprecated

async function until(condition) {
  for (;;) {
    const met = await condition();
    if (met) return met;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function atWorker(id) {
  return (await fetch(`${url}/v1/jobs/${id}`, {headers: {Accept: "application/json"}})).json();
}

/** What the hook says now, in a component that is gone when the test ends. */
function mounted(t, use, element = createElement) {
  const hook = {renders: 0};
  const Component = (props) => {
    hook.now = use(props);
    hook.renders++;
    return hook.now.text;
  };
  const root = create(element(Component), {unstable_isConcurrent: true});
  hook.unmount = () => root.unmount();
  hook.update = (props) => root.update(element(Component, props));
  t.after(hook.unmount);
  return hook;
}

suite("Hooks", {timeout: 60_000}, () => {
  test("a prompt runs at once and is shown to its end", async (t) => {
    const hook = mounted(t, () => useJob(useClient(url), "Count from 1 to 30", COUNT));
    await until(() => hook.now?.state === "completed");
    const {id, text, texts, narration, end, error, queue} = hook.now;
    assert.equal(text, (await atWorker(id)).text);
    assert.deepEqual([texts, end.status, error, queue], [[text], "completed", null, null]);
    assert(narration.some((event) => event.action === "admitted"));
  });

  test("strict mode makes one job of it, and another prompt replaces it", async (t) => {
    const listed = async () => (await (await fetch(`${url}/v1/jobs?limit=1000`)).json()).jobs.length;
    const before = await listed();
    const strict = (component, props) => createElement(StrictMode, null, createElement(component, props));
    const hook = mounted(t, ({last = 99}) => useJob(useClient(url), `Count from 1 to ${last}`, LONG), strict);
    const first = await until(() => hook.now?.text && hook.now.id);
    assert.equal(await listed(), before + 1);
    hook.update({last: 20});
    await until(() => hook.now.id !== first && hook.now.text);
    await until(async () => (await atWorker(first)).status === "cancelled");
  });

  test("run starts, starts over and cancel ends", async (t) => {
    const hook = mounted(t, () => ({...useJob(useClient(url)), client: true}));
    await until(() => hook.now);
    assert.equal(hook.now.state, "idle");
    await hook.now.cancel(); // of nothing
    await until(() => {
      try {
        hook.now.run("Count from 1 to 99", LONG);
        return true;
      } catch (error) {
        return !assert.match(error.message, /no client yet/) && false;
      }
    });
    await until(() => hook.now.state === "running");
    await hook.now.cancel();
    await until(() => hook.now.state === "cancelled");
    hook.now.run("Count from 1 to 10", COUNT);
    await until(() => hook.now.state === "completed");
  });

  test("a refusal is an error", async (t) => {
    const hook = mounted(t, () => useJob(useClient(url), "Hi", {top_p: 7}));
    await until(() => hook.now?.state === "failed");
    assert.equal(hook.now.error.code, "invalid_params");
  });

  for (const detach of [false, true]) {
    test(`a job whose component is gone ${detach ? "goes on with detach" : "is cancelled"}`, async (t) => {
      const hook = mounted(t, () => useJob(useClient(url), "Count from 1 to 99", {...LONG, detach}));
      const id = await until(() => hook.now?.text && hook.now.id);
      hook.unmount();
      const {status} = await until(async () => {
        const job = await atWorker(id);
        return job.state === "ended" && job;
      });
      assert.equal(status, detach ? "completed" : "cancelled");
    });
  }

  test("a shared client and several choices", async (t) => {
    const jw = connect(url);
    t.after(() => jw.close());
    const hook = mounted(t, () => useJob(jw, "Count from 1 to 30", {...COUNT, n: 2}));
    await until(() => hook.now?.state === "completed");
    assert.deepEqual(hook.now.texts, (await atWorker(hook.now.id)).texts);
  });
});
