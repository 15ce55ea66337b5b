// Drives a server through the AI SDK. Usage: ai_sdk.mjs BASE_URL MODEL [KEY]
import assert from "node:assert";
import { createOpenAI } from "@ai-sdk/openai";
import * as ai from "ai";
import { z } from "zod";

const [baseURL, name, key] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey: key ?? "none" });
const model = openai.chat(name);
let count = 0;

function check(what, condition, found) {
  assert.ok(condition, what + ": " + JSON.stringify(found));
  count += 1;
  console.log("ok", what);
}

const ask = { model, maxRetries: 0, maxOutputTokens: 80, temperature: 0 };
const whole = await ai.generateText({ ...ask, prompt: "What is this?" });
check("text", typeof whole.text === "string" && whole.usage.outputTokens > 0, whole.usage);

const streamed = ai.streamText({ ...ask, prompt: "What is this?" });
let text = "";
for await (const piece of streamed.textStream) text += piece;
check("stream", text === whole.text, [text, whole.text]);

const schema = z.object({ kind: z.enum(["cat", "dog"]) });
const made = await ai.generateText({ ...ask, prompt: "A cat?", output: ai.Output.object({ schema }) });
check("object", ["cat", "dog"].includes(made.output.kind), made.output);

const paint = ai.tool({
  description: "Paints.",
  inputSchema: z.object({ colour: z.enum(["red", "blue"]) }),
});
const called = await ai.generateText({ ...ask, prompt: "Paint.", tools: { paint }, toolChoice: "required" });
check("tools", ["red", "blue"].includes(called.toolCalls[0].input.colour), called.toolCalls);

const { embeddings } = await ai.embedMany({ model: openai.embedding(name), values: ["a cat", "a dog"], maxRetries: 0 });
check("embeddings", embeddings.length === 2 && Math.abs(Math.hypot(...embeddings[0]) - 1) < 1e-3);

const { data } = await (await fetch(baseURL + "/models")).json();
const { modalities } = data.find((m) => m.id === name);
if (modalities.includes("image")) {
  const { image } = await ai.generateImage({ model: openai.image(name), prompt: "cat face", maxRetries: 0 });
  check("images", Buffer.from(image.uint8Array).subarray(1, 4).toString() === "PNG");
  const messages = [{ role: "user", content: [
    { type: "text", text: "What is this?" }, { type: "image", image: image.uint8Array, mediaType: "image/png" },
  ] }];
  check("chat with a picture", (await ai.generateText({ ...ask, messages })).text.length > 0);
}

await assert.rejects(ai.generateText({ ...ask, model: openai.chat("nobody"), prompt: "x" }), (e) => e.statusCode === 404);
await assert.rejects(ai.generateText({ ...ask, temperature: 5, prompt: "x" }), (e) => e.statusCode === 400);
check("errors", true);
console.log(count, "checks");
