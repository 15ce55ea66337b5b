"""Writes tools.json: conversations that call tools, in templates of three kinds, with the text and ids that
transformers' `apply_chat_template` gives for them.

    pip install transformers==5.24.0 tokenizers jinja2
    python golden/make_tools.py
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

# Tools listed in the system's turn, calls and answers between tags (as Qwen and Hermes have them).
TAGS = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- 'You may call:' }}
{%- for tool in tools %}
{{- '\\n' }}{{- tool | tojson }}
{%- endfor %}
{{- '\\nAnswer with <call> and </call> around JSON.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if message.reasoning_content is string %}{{- '\\n(' + message.reasoning_content + ')' }}{%- endif %}
{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- set call = tool_call.function if tool_call.function else tool_call %}
{{- '\\n<call>{"name": "' + call.name + '", "arguments": ' }}
{%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
{{- '}</call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<answer>' + message.content + '</answer>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Tools before the first question, one call a reply, answers as JSON (as Llama 3 has them).
FIRST = """\
{%- set ns = namespace(told=false) %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>ipython\\n' }}
{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
{%- else %}{{- message.content }}{%- endif %}
{{- '<|im_end|>' }}
{%- elif 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|im_start|>assistant\\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{- '}<|im_end|>' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message.role == 'user' and tools is not none and not ns.told %}
{%- set ns.told = true %}
{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- message['content'] | trim + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Calls by their ids, keys of a tool one after the other (as Mistral has them).
IDS = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{%- if tools and loop.index0 == (messages | selectattr('role', 'equalto', 'user') | list | length) - 1 %}
{{- '[TOOLS] [' }}
{%- for tool in tools %}
{{- '{' }}
{%- for key, value in tool.function.items() if key != 'return' %}
{{- '"' + key + '": ' + value | tojson }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
{%- endfor %}
{{- '}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
{%- endfor %}
{{- ']' }}
{%- endif %}
{{- '[ASK] ' + message['content'] }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}
{{- '[CALLS] [' }}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.id is undefined or tool_call.id | length != 9 %}{{- raise_exception('ids of nine') }}{%- endif %}
{%- set out = tool_call.function | tojson %}
{{- out[:-1] + ', "id": "' + tool_call.id + '"}' }}
{%- if not loop.last %}{{- ', ' }}{%- else %}{{- ']<|im_end|>' }}{%- endif %}
{%- endfor %}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] | trim + '<|im_end|>' }}
{%- elif message['role'] == 'tool' %}
{{- '[RESULT] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
{%- endif %}
{%- endfor %}
"""

# What differs between Python and others: forms of JSON, what is a sequence, what is not there.
FORMS = """\
{%- if tools is iterable and tools | length > 0 %}
{{- tools | tojson(ensure_ascii=True) }}
{{- tools | tojson(separators=(',', ':'), sort_keys=True) }}
{{- tools[0].function.parameters.properties | tojson(indent=2, ensure_ascii=False) }}
{{- [[], {}, [[1]], {'a': {}}] | tojson(indent=3) }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if 'content' in message and message.content is sequence and message.content is not mapping %}
{{- message.content }}
{%- endif %}
{%- if message.thinking is defined %}{{- '[' + message.thinking + ']' }}{%- endif %}
{%- if message.tool_calls is sequence %}{{- message.tool_calls | map(attribute='function') | list | tojson }}{%- endif %}
{{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather of a place — 天气", "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "A \"city\"\nor town"},
                           "days": {"type": "integer", "minimum": 1, "default": 3},
                           "exact": {"type": "boolean"}, "unit": {"enum": ["C", "F", None]}},
            "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def call(name, arguments, number):
    """A call of a tool."""
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "What is it like in Zürich?"}
ONE = {"role": "assistant", "content": None, "tool_calls": [
    call("weather", {"days": 2, "city": "Zürich", "exact": False, "min": -1.5, "unit": None}, 1)]}
SAID = {"role": "assistant", "content": "I look.", "reasoning_content": "Two calls are needed.",
        "tool_calls": [call("weather", {"city": "苹果 \"x\" \\"}, 2), call("now", {}, 3)]}
ANSWER = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "{\"sky\": \"blue <3\"}"}
REPLY = {"role": "assistant", "content": "Blue, and it is noon."}
TALKS = {
    "asked": [USER],
    "with a system": [{"role": "system", "content": "Be brief."}, USER],
    "called": [USER, ONE],
    "answered": [USER, ONE, ANSWER],
    "told": [USER, ONE, ANSWER, REPLY, {"role": "user", "content": "And now?"}],
    "twice": [USER, SAID, ANSWER | {"tool_call_id": "call00002"},
              ANSWER | {"tool_call_id": "call00003", "name": "now", "content": "12:00"}, REPLY],
}


def main():
    """Renders every talk in every template that can."""
    tokeniser = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "checkpoints/llama/tokenizer.json"),
                                        bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    templates = {"tags": TAGS, "first": FIRST, "ids": IDS, "forms": FORMS}
    cases = []
    for name, template in templates.items():
        tokeniser.chat_template = template
        for title, messages in TALKS.items():
            if name == "first" and title == "twice":
                continue
            for tools in (TOOLS, None):
                for opened in (False, True):
                    how = dict(tools=tools, add_generation_prompt=opened)
                    cases.append(dict(
                        template=name, title=title, messages=messages, tools=tools, open=opened,
                        text=tokeniser.apply_chat_template(messages, tokenize=False, **how),
                        ids=list(tokeniser.apply_chat_template(messages, tokenize=True, return_dict=False, **how))))
    out = HERE / "tools.json"
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    out.write_text(f'{{"templates": {json.dumps(templates)},\n"cases": [\n{lines}\n]}}\n', "utf-8")
    print(f"{out}: {len(cases)} cases")


if __name__ == "__main__":
    main()
