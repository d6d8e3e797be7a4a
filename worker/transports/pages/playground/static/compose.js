/** The form for requests. A chat is a prompt with a history. */

import {byId, el, setText} from "./dom.js";

const EXAMPLES = {
  "A story": "Tell me a story about a fox",
  "Count to 120": "Count from 1 to 120",
  "The Halden Vale": "What is the Halden Vale?",
  "A sum": "What is 12 plus 30?",
};
/** The worker's defaults: a field with its default is not sent, which keeps the code short. */
const DEFAULTS = {priority: 5, n: 1};
const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

/** A message of the chat. @typedef {{role: "user" | "assistant", content: string}} Message */

export class Compose {
  /** @type {Message[]} */
  #history = [];
  #form = byId("compose");

  /** @param {(params: Record<string, any>, copies: number) => void} onrun */
  constructor(onrun) {
    const run = (copies) => {
      const params = this.#params();
      if (params) onrun(params, copies);
    };
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      run(1);
    });
    byId("run-many").addEventListener("click", () => run(this.#copies()));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      run(event.shiftKey ? this.#copies() : 1);
    });
    setText(byId("run-keys"), isMac ? "⌘ ↵" : "Ctrl ↵");
    for (const [name, prompt] of Object.entries(EXAMPLES)) {
      const onclick = () => (byId("prompt").value = prompt);
      document.querySelector(".examples").append(el("button", {type: "button", className: "plain", onclick}, name));
    }
    for (const radio of this.#form.elements.mode) radio.addEventListener("change", () => this.#showMode());
    byId("chat-clear").addEventListener("click", () => this.#forget());
    this.#showMode(); // a reload keeps what was chosen
  }

  /** Whether the form is in chat mode. */
  get isChat() {
    return this.#form.elements.mode.value === "chat";
  }

  /** Show a message in the chat; return the functions with which its answer changes it. For one answer only. */
  say(content) {
    const turn = {role: "assistant", content: ""};
    const asked = {role: "user", content};
    const text = document.createTextNode("");
    const lines = [line(asked, document.createTextNode(content)), line(turn, text)];
    byId("history").append(...lines);
    byId("prompt").value = "";
    return {
      add: (piece) => text.appendData(piece),
      /** Add the complete answer to the history of the next requests. */
      keep: (whole) => {
        text.data = turn.content = whole;
        this.#history.push(asked, turn);
      },
      /** Withdraw a message that was not answered: it returns to the field, to be edited. */
      withdraw: () => {
        for (const element of lines) element.remove();
        byId("prompt").value ||= content;
      },
    };
  }

  /** Show the error of a request, and mark the fields that it names. @param {any} error a Refused */
  complain(error) {
    byId("complaint").textContent = error ? (error.detail ?? error.message) : "";
    for (const field of this.#form.elements) field.removeAttribute("aria-invalid");
    for (const {pointer} of error?.problem?.errors ?? []) {
      const name = pointer.split("/")[1];
      const field = this.#form.elements[name === "messages" ? "prompt" : name];
      field?.setAttribute("aria-invalid", "true");
      field?.setAttribute("aria-describedby", "complaint");
    }
  }

  #params() {
    const prompt = byId("prompt").value;
    this.complain(null);
    if (!prompt.trim()) {
      this.complain({detail: "Write a prompt first.", problem: {errors: [{pointer: "/prompt"}]}});
      byId("prompt").focus();
      return null;
    }
    const params = this.isChat ? {messages: [...this.#history, {role: "user", content: prompt}]} : {prompt};
    for (const name of ["max_tokens", "temperature", "top_p", "seed", "priority", "n"]) {
      const field = this.#form.elements[name];
      if (field.value !== "" && Number(field.value) !== DEFAULTS[name]) params[name] = Number(field.value);
    }
    return params;
  }

  #copies() {
    return Math.max(2, Math.min(200, Math.round(Number(byId("copies").value)) || 10));
  }

  #showMode() {
    byId("conversation").hidden = byId("chat-clear").hidden = !this.isChat;
    setText(byId("prompt-label"), this.isChat ? "Your message" : "Prompt");
  }

  #forget() {
    this.#history = [];
    byId("history").replaceChildren();
    byId("prompt").focus();
  }
}

function line({role}, text) {
  return el("li", {className: role}, el("b", {}, role === "user" ? "You" : "Worker"), el("p", {dir: "auto"}, text));
}
