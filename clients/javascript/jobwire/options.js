/** The options of a client. */
import {NoKey} from "./errors.js";
import {within} from "./waiting.js";
import {CONNECT_TIMEOUT_MS} from "./wire.js";

/** Return the options of one client, complete. Throws TypeError for a wrong one. */
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

/** Return whether there may be another key when one is refused. */
export function renews({token}) {
  return typeof token === "function";
}

/** Return the current key, empty if there is none. Rejects with NoKey. */
export async function keyOf({token}) {
  if (typeof token !== "function") return token ?? "";
  try {
    return (await within(CONNECT_TIMEOUT_MS, token())) ?? "";
  } catch (failure) {
    throw new NoKey(`The function for the token failed: ${failure?.message ?? failure}`, 0, {cause: failure});
  }
}

/** Return the http(s) URL to which the protocol's paths are appended, for any form of the worker's address. */
function baseUrl(url) {
  const {protocol, host, pathname} = new URL(url, globalThis.location?.href);
  const scheme = {"http:": "http", "https:": "https", "ws:": "http", "wss:": "https"}[protocol];
  if (!scheme) throw new TypeError(`Expected a URL like http://127.0.0.1:8080, got ${url}`);
  return `${scheme}://${host}${pathname.replace(/\/+$/, "").replace(/\/v1\/ws$/, "")}`;
}

/** Return a function that calls the program's `onframe` and survives its errors. */
function guarded(onframe) {
  return (frame, direction) => {
    try {
      onframe(frame, direction);
    } catch (error) {
      console.error("jobwire: onframe failed", error);
    }
  };
}
