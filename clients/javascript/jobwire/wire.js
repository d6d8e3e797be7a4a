/** What WebSocket and HTTP have in common: JSON, and errors in HTTP answers. */
import {Cut, Refused} from "./errors.js";

export const HEARTBEAT_MS = 15_000; // the worker's own default, until its hello says otherwise
export const CONNECT_TIMEOUT_MS = 10_000;
export const EVENT_TYPES = new Set(["token", "narration", "end"]);
const WITHOUT_WORKER = new Set([429, 502, 503, 504]); // what a proxy says while the worker restarts

/** The object in a JSON text. What is none counts as a cut connection. */
export function parse(text) {
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {}
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new Cut("The worker sent something that is no JSON object");
  }
  return value;
}

/** The error in an HTTP answer: the worker's own, or that of a proxy that has no worker for now. */
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
