/** The request as a program in three languages. Each runs as it stands; a key is read from a variable. */

const KEY = "JOBWIRE_API_KEY";

/**
 * The request to write a program for.
 * @typedef {{base: string, params: Record<string, any>, copies: number, keyed: boolean}} Request
 */

/** Languages and their writers, in the order of their tabs. @type {Record<string, (request: Request) => string>} */
export const LANGUAGES = {JavaScript: javascript, Python: python, curl};

function javascript({base, params, copies, keyed}) {
  const {prompt, messages, ...rest} = params;
  const fields = Object.entries(rest).map(([name, value]) => `${name}: ${js(value)}`);
  const options = fields.length ? `, {${fields.join(", ")}}` : "";
  const run = `jw.run(${js(prompt ?? messages)}${options})`;
  const key = keyed ? `, {token: process.env.${KEY}}` : "";
  const head = `// npm install ./clients/javascript
import {connect} from "jobwire";

const jw = connect(${js(base)}${key});
`;
  if (copies > 1) {
    return `${head}const jobs = Array.from({length: ${copies}}, () => ${run});
for (const job of jobs) console.log(await job.text());
jw.close();
`;
  }
  return `${head}for await (const event of ${run}) {
  if (event.type === "token") process.stdout.write(event.text);
  if (event.type === "narration") console.error(\`-- \${event.human}\`);
}
jw.close();
`;
}

function python({base, params, copies, keyed}) {
  const {prompt, messages, ...rest} = params;
  const options = Object.entries(rest).map(([name, value]) => `, ${name}=${js(value)}`).join("");
  const run = `jw.run(${js(prompt ?? messages)}${options})`;
  const key = keyed ? `, token=os.environ["${KEY}"]` : "";
  const body = copies > 1
    ? `        jobs = [${run} for _ in range(${copies})]
        for text in await asyncio.gather(*(job.text() for job in jobs)):
            print(text)`
    : `        async for event in ${run}:
            if isinstance(event, Token):
                print(event.text, end="", flush=True)
            elif isinstance(event, Narration):
                print("--", event.human, file=sys.stderr)`;
  const modules = ["asyncio", ...(keyed ? ["os"] : []), ...(copies > 1 ? [] : ["sys"])];
  return `# pip install ./clients/python
${modules.map((name) => `import ${name}`).join("\n")}

from jobwire_client import ${copies > 1 ? "connect" : "Narration, Token, connect"}


async def main() -> None:
    async with connect(${js(base)}${key}) as jw:
${body}


asyncio.run(main())
`;
}

function curl({base, params, copies, keyed}) {
  const key = keyed ? ` \\\n  -H "Authorization: Bearer $${KEY}"` : "";
  const line = `curl -sN ${base}/v1/jobs \\
  -H 'Accept: text/event-stream' -H 'Content-Type: application/json'${key} \\
  -d ${shell(JSON.stringify(params))}`;
  return copies > 1 ? `for job in $(seq ${copies}); do\n${line} &\ndone\nwait\n` : `${line}\n`;
}

/** Return a value as JSON: a literal in JavaScript and, for the values of a request, in Python. */
const js = (value) => JSON.stringify(value).replaceAll("\u2028", "\\u2028").replaceAll("\u2029", "\\u2029");

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
