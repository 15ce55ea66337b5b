"""Drives every endpoint with the official Python client. Usage: client.py BASE_URL MODEL [KEY]"""

import base64
import io
import json
import sys
import wave

import openai

base, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base, api_key=sys.argv[3] if len(sys.argv) > 3 else "none")
done = []


def check(name, condition, found=None):
    assert condition, f"{name}: {found!r}"
    done.append(name)
    print("ok", name)


models = client.models.list()
check("models.list", model in [m.id for m in models.data], models)
check("models.retrieve", client.models.retrieve(model).id == model)

reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Draw a cat."}],
    max_completion_tokens=16,
    logprobs=True,
    top_logprobs=3,
    seed=1,
)
check("chat", reply.choices[0].message.content is not None, reply)
check("chat usage", reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens)
check("chat logprobs", all(len(t.top_logprobs) == 3 for t in reply.choices[0].logprobs.content))

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is this?"}],
    max_tokens=16,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
check("chat stream", chunks[-1].usage.completion_tokens > 0 and chunks[-2].choices[0].finish_reason)

picture = client.images.generate(model=model, prompt="cat face", n=2)
png = base64.b64decode(picture.data[0].b64_json)
check("images", len(picture.data) == 2 and png.startswith(b"\x89PNG"))

url = "data:image/png;base64," + picture.data[0].b64_json
reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]}],
)
check("chat with a picture", reply.choices[0].message.content, reply)
print("  a drawn cat face is named:", reply.choices[0].message.content)

for form, head in [("wav", b"RIFF"), ("flac", b"fLaC"), ("pcm", b"")]:
    said = client.audio.speech.create(model=model, voice="alloy", input="apple", response_format=form)
    check(f"speech {form}", said.content.startswith(head) and len(said.content) > 100)

wav = client.audio.speech.create(model=model, voice="alloy", input="apple", response_format="wav").content
with wave.open(io.BytesIO(wav)) as file:
    check("speech is 16 kHz", (file.getframerate(), file.getnchannels()) == (16000, 1))
text = client.audio.transcriptions.create(model=model, file=("a.wav", wav))
check("transcription", isinstance(text.text, str), text)
print("  spoken apple is heard as:", text.text)
text = client.audio.transcriptions.create(model=model, file=("a.wav", wav), response_format="text")
check("transcription text", isinstance(text, str), text)
text = client.audio.transcriptions.create(model=model, file=("a.wav", wav), response_format="verbose_json")
check("transcription verbose", text.duration > 0 and text.segments, text)

reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}},
        {"type": "text", "text": "Write what you hear."},
    ]}],
)
check("chat with sound", reply.choices[0].message.content is not None, reply)

reply = client.chat.completions.create(
    model=model,
    modalities=["text", "audio"],
    audio={"voice": "alloy", "format": "wav"},
    messages=[{"role": "user", "content": "Say “apple”"}],
)
audio = reply.choices[0].message.audio
check("chat that speaks", base64.b64decode(audio.data).startswith(b"RIFF") and audio.id, audio)

schema = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "tame": {"type": "boolean"}},
    "required": ["kind", "tame"],
    "additionalProperties": False,
}
reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "A cat?"}],
    response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}},
)
value = json.loads(reply.choices[0].message.content)
check("json_schema", value["kind"] in ("cat", "dog") and isinstance(value["tame"], bool), value)

tool = {"type": "function", "function": {"name": "paint", "parameters": {
    "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"], "additionalProperties": False}}}
reply = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Paint."}], tools=[tool], tool_choice="required",
)
call = reply.choices[0].message.tool_calls[0].function
check("tools", call.name == "paint" and json.loads(call.arguments)["colour"] in ("red", "blue"), call)

reply = client.completions.create(model=model, prompt="The cat", max_tokens=5)
check("completions", reply.choices[0].finish_reason in ("stop", "length"), reply)

vectors = client.embeddings.create(model=model, input=["a cat", "a dog"]).data
plain = client.embeddings.create(model=model, input=["a cat", "a dog"], encoding_format="float").data
check("embeddings", all(abs(a - b) < 1e-6 for a, b in zip(vectors[0].embedding, plain[0].embedding)))


def fails(name, kind, **arguments):
    try:
        client.with_options(max_retries=0).chat.completions.create(**arguments)
    except kind as error:
        check(name, error.body and set(error.body) == {"message", "type", "param", "code"}, error.body)
    else:
        raise AssertionError(f"{name}: no error")


good = {"model": model, "messages": [{"role": "user", "content": "x"}]}
fails("unknown model", openai.NotFoundError, **{**good, "model": "nobody"})
fails("bad temperature", openai.BadRequestError, **good, temperature=-1)
fails("remote picture", openai.BadRequestError, model=model, messages=[{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]}])
print(len(done), "checks")
