/** The page's one connection to its worker: the client, the key, and what the socket is doing. */

import {byId, setText} from "./dom.js";
import {connect} from "./jobwire.js";

const KEY = "jobwire-key";
const UNAUTHORIZED = 4401;
const TUNNEL_MS = 1500; // a cut that lasts long enough to be seen
const WORDS = {
  idle: "connects with the first job", connecting: "connecting", open: "connected by WebSocket", lost: "connection lost, coming back",
  refused: "needs a key", sse: "connected by server-sent events",
};

/** Where this page's worker is; a proxy may have put it below a path. */
export const BASE = new URL(".", document.baseURI).href.replace(/\/$/, "");

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

  /** Ask the worker whether it wants a key, before anything is refused. Resolves to whether the page may go on. */
  async probe() {
    if (!this.key && (await wantsKey())) this.askKey();
    return !this.locked;
  }

  /** The page waits for a key: nothing can be asked of the worker yet. */
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

  /** Lose the connection, as a train in a tunnel does. */
  cut() {
    this.client.reconnect();
  }

  /** A connection of its own, for a reader beside this one's. @param {(frame: object, direction: string) => void} onframe */
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
      frames: "paint", // text comes as fast as it can be painted, and no faster
      backoffMs: [TUNNEL_MS, 10_000],
      WebSocket: this.#watchedSocket(),
      onframe: (frame, direction) => {
        if (frame.type === "hello") this.hello = frame;
        if (this.client?.transport === "sse") this.#set("sse");
        this.#onframe(frame, direction);
      },
    });
  }

  /** A WebSocket whose ups and downs the page sees. */
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

/** Look at the worker's greeting: it tells an unknown caller whether a key is required. */
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
