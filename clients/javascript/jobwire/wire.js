/** What WebSocket and HTTP share: JSON, and errors in HTTP responses. */
import {Cut, Refused} from "./errors.js";

/** The worker's default, until its hello states another one. */
export const HEARTBEAT_MS = 15_000;

export const CONNECT_TIMEOUT_MS = 10_000;
export const EVENT_TYPES = new Set(["token", "narration", "end"]);

/** Statuses that a proxy returns while the worker restarts. */
const WITHOUT_WORKER = new Set([429, 502, 503, 504]);

/** Parse a message. Throws a Cut for anything but a JSON object. */
export function parse(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    value = null;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new Cut("The worker sent something that is no JSON object");
  }
  return value;
}

/** Return the error in an HTTP response: the worker's own, or a Cut if a proxy has no worker for now. */
export function refusalOf({status, headers}, text) {
  let problem;
  try {
    problem = parse(text);
  } catch {
    problem = {};
  }
  if (problem.code) return Refused.of(problem);
  const seconds = Number(headers.get("Retry-After") ?? 1);
  if (WITHOUT_WORKER.has(status)) return new Cut(`HTTP status ${status}`, 1000 * (seconds >= 0 ? seconds : 1));
  return Refused.of({code: `http_${status}`, detail: `HTTP status ${status}`, status});
}
