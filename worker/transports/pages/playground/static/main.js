/** The playground: wires its parts, each with a module of its own. jobwire.js is the client that anybody can use. */

import {LANGUAGES} from "./code.js";
import {Compose} from "./compose.js";
import {BASE, Connection} from "./connection.js";
import {byId, el, setText} from "./dom.js";
import {Engine} from "./engine.js";
import {Inspector} from "./inspector.js";
import {Jobs} from "./jobs.js";
import {announce} from "./announcer.js";
import {showWatched, watchedUrl} from "./watch.js";

function start() {
  let jobs = null;
  let engine = null;
  const inspector = new Inspector();
  const onframe = (frame, direction) => {
    inspector.add(frame, direction);
    if (direction === "out" && frame.after) jobs.markResumed(frame.job_id, frame.after);
  };
  const connection = new Connection(onframe, (state) => jobs?.setAway(state === "lost"));
  const code = showCode(connection);
  const oncode = (params, focus) => code(params, 1, focus);
  jobs = new Jobs(connection, inspector, {onchange: () => engine?.refresh(), oncode});
  engine = new Engine(connection, () => jobs.states);
  const compose = new Compose((params, copies) => run(params, copies));
  const run = runner(connection, jobs, compose, code);
  const open = () => {
    engine.start();
    jobs.restore();
  };
  byId("cut").addEventListener("click", () => {
    connection.cut();
    announce("connection", "The connection was cut");
  });
  byId("cancel-all").addEventListener("click", () => jobs.cancelAll());
  byId("clear").addEventListener("click", () => jobs.clear());
  byId("key-save").addEventListener("click", () => {
    compose.complain(null);
    open();
  });
  byId("share-copy").addEventListener("click", () => copy(byId("share-link").value, byId("share-copy")));
  code({prompt: byId("prompt").value, max_tokens: 400}, 1);
  connection.probe().then((free) => free && open());
}

/** Return the function that runs a request of the form, once or in several copies. */
function runner(connection, jobs, compose, code) {
  const refuse = (error) => {
    if (error.code === "unauthorized") connection.askKey();
    else compose.complain(error);
  };
  return async (params, copies) => {
    if (connection.locked) {
      compose.complain({detail: "The worker needs its key first."});
      byId("key").focus();
      return;
    }
    code(params, copies);
    const turn = compose.isChat && copies === 1 ? compose.say(params.messages.at(-1).content) : null;
    for (let copy = 1; copy < copies; copy++) jobs.run(params).catch(refuse);
    try {
      const state = await jobs.run(params, turn?.add);
      if (state.state === "completed") turn?.keep(state.texts[0] ?? "");
    } catch (error) {
      turn?.withdraw();
      refuse(error);
    }
  };
}

/** Show a request as a program; return the function that shows another request. */
function showCode(connection) {
  let language = Object.keys(LANGUAGES)[0];
  let request = {params: {prompt: ""}, copies: 1};
  const tabs = Object.keys(LANGUAGES).map((name) => {
    const onclick = () => choose(name);
    return el("button", {type: "button", role: "tab", id: `code-${name}`, onclick, "aria-controls": "code"}, name);
  });
  const list = byId("code-title").parentElement.querySelector(".tabs");
  list.append(...tabs);
  list.addEventListener("keydown", ({key}) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[key];
    if (!step) return;
    const next = tabs[(tabs.findIndex(({textContent}) => textContent === language) + step + tabs.length) % tabs.length];
    choose(next.textContent);
    next.focus();
  });
  function choose(name) {
    language = name;
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab.textContent === name));
      tab.tabIndex = tab.textContent === name ? 0 : -1;
    }
    byId("code").setAttribute("aria-labelledby", `code-${name}`);
    setText(byId("code").firstChild, LANGUAGES[name]({base: BASE, keyed: Boolean(connection.key), ...request}));
  }
  byId("code-copy").addEventListener("click", () => copy(byId("code").textContent, byId("code-copy")));
  choose(language);
  return (params, copies, focus = false) => {
    request = {params, copies};
    choose(language);
    if (focus) byId("code").focus();
  };
}

/** Copy a text, and confirm it on the button for a moment. Pages without https have no clipboard. */
async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("copy", "Copied");
  } catch {
    button.textContent = "Select and copy by hand";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

async function showModel() {
  const response = await fetch(`${BASE}/health`);
  const {model, engine, device, version, message, context_tokens: context} = await response.json();
  const words = model
    ? `${model} on ${engine}, ${device}, ${context.toLocaleString("en")} tokens of context`
    : (message ?? "the model is loading");
  setText(byId("model"), `${words} · ${version}`);
  if (!model) setTimeout(showModel, 1000);
}

showModel().catch(() => setText(byId("model"), "the worker does not answer"));
const watched = watchedUrl();
if (watched) showWatched(watched);
else start();
// Another link may be opened in the same tab.
addEventListener("hashchange", () => watchedUrl() !== watched && location.reload());
