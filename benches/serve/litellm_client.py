"""Drives a server through litellm, as programs that speak to many providers do.

Usage: litellm_client.py BASE_URL MODEL [KEY]
"""

import base64
import io
import json
import sys
import urllib.request

import litellm

base, model = sys.argv[1], sys.argv[2]
to = {"model": "openai/" + model, "api_base": base, "api_key": sys.argv[3] if len(sys.argv) > 3 else "none",
      "num_retries": 0}
count = 0


def check(name, condition, found=None):
    global count
    assert condition, f"{name}: {found!r}"
    count += 1
    print("ok", name)


ask = [{"role": "user", "content": "What is this?"}]
reply = litellm.completion(messages=ask, max_tokens=12, logprobs=True, top_logprobs=2, seed=1, **to)
check("chat", isinstance(reply.choices[0].message.content, str), reply)
check("usage", reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens)
again = litellm.completion(messages=ask, max_tokens=12, **to)
check("known prompts are counted", again.usage.prompt_tokens_details.cached_tokens >= 0, again.usage)
chunks = list(litellm.completion(messages=ask, max_tokens=12, stream=True, stream_options={"include_usage": True}, **to))
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
check("stream", text == again.choices[0].message.content, text)

schema = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"],
          "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
reply = litellm.completion(messages=ask, response_format=form, **to)
check("json_schema", json.loads(reply.choices[0].message.content)["kind"] in ("cat", "dog"), reply)
tool = {"type": "function", "function": {"name": "paint", "parameters": {
    "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
    "additionalProperties": False}}}
reply = litellm.completion(messages=ask, tools=[tool], tool_choice="required", **to)
check("tools", reply.choices[0].message.tool_calls[0].function.name == "paint", reply)
check("embeddings", len(litellm.embedding(input=["a cat", "a dog"], **to).data) == 2)
check("completions", litellm.text_completion(prompt="The cat", max_tokens=4, **to).choices[0].finish_reason)

models = {m["id"]: m for m in json.load(urllib.request.urlopen(base + "/models"))["data"]}
if "image" in models[model]["modalities"]:
    data = litellm.image_generation(prompt="cat face", **to).data[0].b64_json
    check("images", base64.b64decode(data).startswith(b"\x89PNG"))
    url = "data:image/png;base64," + data
    picture = [{"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                            {"type": "image_url", "image_url": {"url": url}}]}]
    check("chat with a picture", litellm.completion(messages=picture, **to).choices[0].message.content)
if "audio" in models[model]["modalities"]:
    said = litellm.speech(input="apple", voice="alloy", response_format="wav", **to).content
    check("speech", said.startswith(b"RIFF"))
    file = io.BytesIO(said)
    file.name = "a.wav"
    check("transcription", isinstance(litellm.transcription(file=file, **to).text, str))

for name, kind, more in [("unknown model", litellm.NotFoundError, {"model": "openai/nobody"}),
                         ("bad temperature", litellm.BadRequestError, {"temperature": -1})]:
    try:
        litellm.completion(messages=ask, **(to | more))
    except kind as error:
        check(name, str(error))
    else:
        raise AssertionError(f"{name}: no error")
print(count, "checks")
