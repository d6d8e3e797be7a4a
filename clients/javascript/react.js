/**
 * Hooks for React >= 18. Types: react.d.ts.
 *
 *     const jw = useClient("http://127.0.0.1:8080");
 *     const {text, narration, state, run, cancel} = useJob(jw);
 *     return <button onClick={() => run("Tell me a story about a fox")}>{text || state}</button>;
 */
import {useCallback, useEffect, useReducer, useRef, useState} from "react";

import {connect} from "./jobwire.js";

const IDLE = {id: null, state: "idle", text: "", texts: [], narration: [], queue: null, end: null, error: null};

/** Return a client that lives as long as the component: null at first, and another one when `url` changes. */
export function useClient(url, options) {
  const [client, setClient] = useState(null);
  const latest = useRef(options);
  latest.current = options;
  useEffect(() => {
    const jw = connect(url, latest.current);
    setClient(jw);
    return () => {
      setClient(null);
      setTimeout(() => jw.close()); // not before the jobs of this component are cancelled
    };
  }, [url]);
  return client;
}

/**
 * One job at a time, and its state. With a prompt the job runs at once, and again when prompt or params change; else
 * when `run(prompt, params)` is called. A job is cancelled when its component unmounts or another job replaces it,
 * unless it was created with `detach`.
 */
export function useJob(client, prompt = null, params = {}) {
  const [shown, show] = useReducer(reduce, IDLE);
  const leave = useRef(null); // ends the current job
  const start = useCallback((prompt, params = {}) => {
    leave.current?.();
    if (!client) throw new Error("There is no client yet: run a job when useClient has returned one");
    leave.current = follow(client, prompt, params, show);
  }, [client]);
  const cancel = useCallback(() => leave.current?.job.cancel() ?? Promise.resolve(), []);
  const wanted = prompt === null ? null : JSON.stringify([prompt, params]);
  useEffect(() => {
    if (!client) return undefined;
    // Not at once: React's strict mode mounts twice.
    const timer = wanted && setTimeout(() => start(...JSON.parse(wanted)));
    return () => {
      clearTimeout(timer);
      leave.current?.();
      leave.current = null;
    };
  }, [client, wanted, start]);
  return {...shown, run: start, cancel};
}

/** Show a job until it ends, or until the returned function leaves it. */
function follow(client, prompt, params, show) {
  const job = client.run(prompt, {frames: "paint", ...params});
  let left = false;
  show({type: "start", id: job.id});
  const read = async () => {
    try {
      for await (const event of job) if (!left) show(event);
    } catch (error) {
      if (!left) show({type: "error", error, end: job.end});
    }
  };
  read();
  const leave = () => {
    left = true;
    if (!params.detach && !job.end) job.cancel();
    job.close();
  };
  leave.job = job;
  return leave;
}

function reduce(shown, event) {
  switch (event.type) {
    case "start":
      return {...IDLE, id: event.id, state: "queued"};
    case "reset":
      return {...shown, text: "", texts: []};
    case "narration":
      return {
        ...shown,
        narration: [...shown.narration, event],
        queue: event.queue ?? (event.phase === "queued" ? shown.queue : null),
        state: event.phase === "queued" ? shown.state : "running",
      };
    case "token": {
      const {index = 0, kind = "text"} = event;
      if (kind !== "text") return {...shown, state: "running", queue: null};
      const texts = Array.from({length: Math.max(shown.texts.length, index + 1)}, (_, i) => shown.texts[i] ?? "");
      texts[index] += event.text;
      return {...shown, state: "running", queue: null, text: texts[0], texts};
    }
    case "end":
      return {...shown, state: event.status, queue: null, end: event};
    case "error":
      return {...shown, state: "failed", queue: null, end: event.end, error: event.error};
    default:
      return shown;
  }
}
