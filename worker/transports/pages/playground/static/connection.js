/** The page's one connection to its worker: the client, the key, and the state of the socket. */

import {byId, setText} from "./dom.js";
import {connect} from "./jobwire.js";

const UNAUTHORIZED = 4401;
const TUNNEL_MS = 1500; // long enough for a cut to be noticed
const WORDS = {
  idle: "connects with the first job", connecting: "connecting", open: "connected by WebSocket",
  lost: "connection lost, reconnecting", refused: "needs a key", sse: "connected by server-sent events",
};

/** The URL of this page's worker, which may lie below a path of a proxy. */
export const BASE = new URL(".", document.baseURI).href.replace(/\/$/, "");

/** Return the name of something that this tab keeps. Pages of workers below other paths share the tab's storage. */
export const keptAs = (name) => `jobwire-${name}${BASE.slice(location.origin.length)}`;

const KEY = keptAs("key");

export class Connection {
  /** @type {import("./jobwire.js").Jobwire} */
  client;
  hello = null;
  #onframe;
  #onstate;

  /** @param {(frame: object, direction: string) => void} onframe @param {(state: string) => void} onstate */
  constructor(onframe, onstate) {
    this.#onframe = onframe;
    this.#onstate = onstate;
    byId("key-save").addEventListener("click", () => this.#setKey(byId("key").value.trim()));
    byId("key").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      byId("key-save").click();
    });
    this.#open();
  }

  get key() {
    return sessionStorage.getItem(KEY) ?? undefined;
  }

  /** Headers for the page's own requests. */
  get headers() {
    return this.key ? {Authorization: `Bearer ${this.key}`} : {};
  }

  /** Find out whether the worker requires a key, before anything is refused. Resolves to whether the page may start. */
  async probe() {
    if (!this.key && (await wantsKey())) this.askKey();
    return !this.locked;
  }

  /** Whether the page waits for a key, so that no request can be sent yet. */
  get locked() {
    return !byId("key-row").hidden;
  }

  /** Show the field for the key; a job was refused, or would be. */
  askKey() {
    if (this.key) setText(byId("key-label"), "This worker does not know that key");
    sessionStorage.removeItem(KEY);
    byId("key-row").hidden = false;
    this.#set("refused");
  }

  /** Lose the connection, as on a train in a tunnel. */
  cut() {
    this.client.reconnect();
  }

  /** Return a second client, for another reader. @param {(frame: object, direction: string) => void} onframe */
  another(onframe) {
    return connect(BASE, {token: this.key, frames: "paint", onframe});
  }

  #setKey(key) {
    if (!key) return;
    sessionStorage.setItem(KEY, key);
    byId("key").value = "";
    byId("key-row").hidden = true;
    byId("prompt").focus();
    this.client.close();
    this.#open();
    this.#set("idle");
  }

  #open() {
    this.client = connect(BASE, {
      token: this.key,
      frames: "paint", // text arrives no faster than it can be painted
      backoffMs: [TUNNEL_MS, 10_000],
      WebSocket: this.#watchedSocket(),
      onframe: (frame, direction) => {
        if (frame.type === "hello") this.hello = frame;
        if (this.client?.transport === "sse") this.#set("sse");
        this.#onframe(frame, direction);
      },
    });
  }

  /** Return a WebSocket class whose state the page shows. */
  #watchedSocket() {
    const set = (state) => this.#set(state);
    return class extends WebSocket {
      constructor(url, protocols) {
        super(url, protocols);
        set("connecting");
        this.addEventListener("open", () => set("open"));
        this.addEventListener("close", ({code}) => set(code === UNAUTHORIZED ? "refused" : "lost"));
      }
    };
  }

  #set(state) {
    byId("link").dataset.state = state;
    setText(byId("link-text"), WORDS[state]);
    this.#onstate(state);
  }
}

/** Resolve to whether the worker requires a key, as its hello states. */
function wantsKey() {
  return new Promise((resolve) => {
    const socket = new WebSocket(`${BASE.replace(/^http/, "ws")}/v1/ws`, ["jobwire.v1"]);
    socket.onmessage = ({data}) => {
      resolve(JSON.parse(data).auth === "required");
      socket.close(1000);
    };
    socket.onclose = ({code}) => resolve(code === UNAUTHORIZED);
  });
}
