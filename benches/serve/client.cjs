// Drives every endpoint with the official JavaScript client. Usage: client.cjs BASE_URL MODEL [KEY]
"use strict";

const assert = require("node:assert");
const { OpenAI, toFile } = require("openai");

const [base, model, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: key ?? "none" });
let count = 0;

function check(name, condition, found) {
  assert.ok(condition, name + ": " + JSON.stringify(found));
  count += 1;
  console.log("ok", name);
}

async function main() {
  const models = await client.models.list();
  check("models", models.data.some((m) => m.id === model), models);

  const ask = { model, messages: [{ role: "user", content: "What is this?" }], max_completion_tokens: 12 };
  const whole = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 });
  check("chat", typeof whole.choices[0].message.content === "string", whole);

  const stream = await client.chat.completions.create({
    ...ask, stream: true, stream_options: { include_usage: true },
  });
  let text = "", usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  check("chat stream", text === whole.choices[0].message.content && usage.total_tokens > 0, text);

  const picture = await client.images.generate({ model, prompt: "cat face" });
  const data = picture.data[0].b64_json;
  check("images", Buffer.from(data, "base64").subarray(1, 4).toString() === "PNG");

  const named = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url: "data:image/png;base64," + data } },
    ] }],
  });
  check("chat with a picture", named.choices[0].message.content.length > 0, named);

  const speech = await client.audio.speech.create({
    model, voice: "alloy", input: "apple", response_format: "wav",
  });
  const wav = Buffer.from(await speech.arrayBuffer());
  check("speech", wav.subarray(0, 4).toString() === "RIFF");

  const heard = await client.audio.transcriptions.create({ model, file: await toFile(wav, "a.wav") });
  check("transcription", typeof heard.text === "string", heard);

  const spoken = await client.chat.completions.create({
    model, modalities: ["text", "audio"], audio: { voice: "alloy", format: "wav" },
    messages: [{ role: "user", content: "Say “apple”" }],
  });
  check("chat that speaks", spoken.choices[0].message.audio.data.length > 100);

  const schema = {
    type: "object", properties: { kind: { enum: ["cat", "dog"] } }, required: ["kind"],
    additionalProperties: false,
  };
  const json = await client.chat.completions.create({
    ...ask, max_completion_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "animal", schema, strict: true } },
  });
  check("json_schema", ["cat", "dog"].includes(JSON.parse(json.choices[0].message.content).kind));

  const completion = await client.completions.create({ model, prompt: "The cat", max_tokens: 4 });
  check("completions", ["stop", "length"].includes(completion.choices[0].finish_reason), completion);

  const vectors = await client.embeddings.create({ model, input: ["a cat", "a dog"] });
  const norm = Math.hypot(...vectors.data[0].embedding);
  check("embeddings", Math.abs(norm - 1) < 1e-3, norm);

  const once = new OpenAI({ baseURL: base, apiKey: key ?? "none", maxRetries: 0 });
  await assert.rejects(once.chat.completions.create({ ...ask, model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(once.chat.completions.create({ ...ask, temperature: -1 }), OpenAI.BadRequestError);
  check("errors", true);
  console.log(count, "checks");
}

main().catch((error) => { console.error(error); process.exit(1); });
