/** What the types promise, checked by `tsc --strict`; it is never run. */
import {JobCancelled, Refused, connect, watch} from "jobwire";
import type {Job, JobEvent, Options, RunParams} from "jobwire";
import type {CreateFrame, FrameOf} from "jobwire/protocol";
import {useClient, useJob} from "jobwire/react";

const options: Options = {token: async () => "key", transport: "sse", window: 4, frames: "paint", backoffMs: [1, 2]};
const jw = connect("http://127.0.0.1:8080", options);

const params: RunParams = {n: 2, include: ["ids", "top_logprobs"], response_format: {type: "regex", pattern: "a*"}};
const job: Job = jw.run("Hi", {...params, signal: AbortSignal.timeout(1), priority: 3, window: 1, of_a_newer_worker: 1});
const created: Job = await jw.create([{role: "user", content: "Hi"}], {max_tokens: 5});
const place: number | undefined = (await created.update({priority: 9})).queue?.position;
const texts: string[] = await created.texts();

for await (const event of job) {
  switch (event.type) {
    case "token": {
      const likely: number | undefined = event.top_logprobs?.[0]?.[0]?.logprob;
      console.log(event.text, event.ids, likely);
      break;
    }
    case "narration":
      console.log(event.human, event.progress, event.queue?.eta_ms);
      break;
    case "end":
      console.log(event.usage.tokens_per_s, event.error?.code, event.finish_reasons?.length);
      break;
    case "reset":
      console.log(event.job_id);
      break;
    default: {
      const nothing: never = event;
      console.log(nothing);
    }
  }
}
try {
  await jw.subscribe(job.id, {after: job.cursor ?? undefined, channels: ["token"]}).text();
} catch (error) {
  if (error instanceof Refused) console.log(error.code, error.retryAfterMs, error.problem.errors?.[0]?.pointer);
  if (error instanceof JobCancelled) console.log(error.text);
}
const seen: JobEvent[] = [];
const shared = watch(new URL("http://127.0.0.1:8080/v1/jobs/x/stream"), {signal: AbortSignal.timeout(1)});
for await (const event of shared) seen.push(event);
connect(undefined, {onframe: (frame, direction) => direction === "in" && frame.type === "hello" && frame.limits});

export function Component(): string {
  const {text, narration, state, error, queue, run, cancel} = useJob(useClient(), null);
  run("Hi", {max_tokens: 5});
  void cancel();
  return [text, narration.length, state, error?.message, queue?.position].join();
}

const frame: CreateFrame = {type: "create", prompt: "Hi"};
const end: FrameOf<"end">["status"] = "completed";
console.log(place, texts, frame, end);

// @ts-expect-error: no such channel
jw.subscribe("x", {channels: ["smell"]});
// @ts-expect-error: a prompt is needed
jw.run({max_tokens: 5});
// @ts-expect-error: a share link can only be read
shared.cancel();
// @ts-expect-error: a number
jw.run("Hi", {max_tokens: "5"});
// @ts-expect-error: no such transport
connect("x", {transport: "pigeon"});
