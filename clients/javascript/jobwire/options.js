/** How a client behaves. */
import {NoKey} from "./errors.js";
import {within} from "./waiting.js";
import {CONNECT_TIMEOUT_MS} from "./wire.js";

/** Return the options of one client, all of them. */
export function settingsOf(url, {onframe = () => {}, ...options}) {
  const settings = {
    transport: "auto",
    retryTimeoutMs: 60_000,
    backoffMs: [250, 10_000],
    unreadBytesMax: 4 << 20,
    frames: "all",
    WebSocket: globalThis.WebSocket,
    fetch: globalThis.fetch.bind(globalThis),
    ...options,
    onframe: guarded(onframe),
    base: baseUrl(url),
  };
  const {transport, frames, WebSocket} = settings;
  if (!["all", "paint"].includes(frames)) throw new TypeError(`Unknown frames ${frames}`);
  if (!["auto", "websocket", "sse"].includes(transport)) throw new TypeError(`Unknown transport ${transport}`);
  if (transport === "websocket" && !WebSocket) throw new TypeError("There is no WebSocket here: pass one as an option");
  return settings;
}

/** Whether another key may be had when one is refused. */
export function renews({token}) {
  return typeof token === "function";
}

/** The key of this moment, empty without one. Rejects with NoKey. */
export async function keyOf({token}) {
  if (typeof token !== "function") return token ?? "";
  try {
    return (await within(CONNECT_TIMEOUT_MS, token())) ?? "";
  } catch (failure) {
    throw new NoKey(`The function for the token failed: ${failure?.message ?? failure}`, 0, {cause: failure});
  }
}

/** The http(s) URL that the paths of the protocol follow, whatever form of the worker's address is given. */
function baseUrl(url) {
  const {protocol, host, pathname} = new URL(url, globalThis.location?.href);
  const scheme = {"http:": "http", "https:": "https", "ws:": "http", "wss:": "https"}[protocol];
  if (!scheme) throw new TypeError(`Expected a URL like http://127.0.0.1:8080, got ${url}`);
  return `${scheme}://${host}${pathname.replace(/\/+$/, "").replace(/\/v1\/ws$/, "")}`;
}

/** A function of the program that may fail without harm to the frames it sees. */
function guarded(onframe) {
  return (frame, direction) => {
    try {
      onframe(frame, direction);
    } catch (error) {
      console.error("jobwire: onframe failed", error);
    }
  };
}
