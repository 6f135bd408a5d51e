// One call of the official JavaScript client, unmodified: node client.mjs URL WAY CALL ARGUMENTS, run where node_modules lies.
// WAY is how the hosted addresses are replaced: proxy or middleware. What came of it is written as one line of JSON.
import { createRequire } from "node:module";

const { fal, ApiError, ValidationError } = createRequire(`${process.cwd()}/`)("@fal-ai/client");
const [url, way, call, text] = process.argv.slice(2);
const { app, input, requestId, bytes, seconds, size, webhookUrl } = JSON.parse(text);

const rewritten = (target) =>
  target.replace(/^https:\/\/(?:(queue|rest)\.)?fal\.(?:run|ai)/, (_, kind) => `${url}/fal/${kind ?? "run"}`);
fal.config(
  way === "proxy"
    ? { credentials: "local", proxyUrl: { url: `${url}/fal/proxy`, when: "always" } }
    : {
        credentials: "local",
        requestMiddleware: async (request) => ({ ...request, url: rewritten(request.url) }),
      },
);

const updates = [];
const onQueueUpdate = (update) => updates.push({ status: update.status, logs: (update.logs ?? []).length });
const calls = {
  poll: () => fal.subscribe(app, { input, logs: true, pollInterval: 50, onQueueUpdate }),
  stream: () => fal.subscribe(app, { input, mode: "streaming", logs: true, onQueueUpdate }),
  run: () => fal.run(app, { input }),
  submit: () => fal.queue.submit(app, { input, webhookUrl }),
  status: () => fal.queue.status(app, { requestId, logs: true }),
  result: () => fal.queue.result(app, { requestId }),
  cancel: () => fal.queue.cancel(app, { requestId }),
  options: () =>
    fal.subscribe(app, {
      input,
      priority: "low",
      hint: "a-runner",
      startTimeout: 60,
      headers: { "x-of-mine": "1" },
      storageSettings: { expiresIn: seconds, initialAcl: { default: "hide" } },
      onEnqueue: (id) => updates.push({ status: id, logs: 0 }),
    }),
  events: async () => {
    const { request_id } = await fal.queue.submit(app, { input });
    const events = await fal.queue.streamStatus(app, { requestId: request_id, logs: true });
    for await (const event of events) onQueueUpdate(event);
    return events.done();
  },
  aborted: () => fal.run(app, { input, abortSignal: AbortSignal.timeout(1000 * seconds) }).catch((error) => error.name),
  impatient: () => fal.subscribe(app, { input, startTimeout: seconds }),
  upload: () =>
    fal.storage.upload(new File([Buffer.from(bytes, "base64")], "speech.opus", { type: "audio/ogg" })),
  large: () => fal.storage.upload(new File([Buffer.alloc(size, "audio")], "large.bin")),
  file: () =>
    fal.subscribe(app, {
      input: { ...input, audio_url: new File([Buffer.from(bytes, "base64")], "speech.opus", { type: "audio/ogg" }) },
    }),
};
let outcome;
try {
  outcome = { value: (await calls[call]()) ?? null };
} catch (error) {
  if (!(error instanceof ApiError)) throw error;
  outcome = {
    error: error.name,
    status: error.status,
    body: error.body,
    requestId: error.requestId,
    userTimeout: error.isUserTimeout,
    fields: error instanceof ValidationError ? error.fieldErrors : null,
  };
}
process.stdout.write(`${JSON.stringify({ ...outcome, updates })}\n`);
