"""Makes pieces.gguf and pieces.json: a tiny vocabulary that SentencePiece learnt, as llama.cpp keeps
it and as `tokenizer.json` files of three kinds, with the ids that SentencePiece and transformers
give to texts and conversations. README.md lists what is in there."""

import io
import json
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
TEXTS = [
    "The capital of France is Paris. The user asks and the assistant answers.",
    "hello there, what is this? It is 42, and the other one is 1999.",
    "苹果是红色的,天空是蓝色的。", "def f(x):\n    return x + 1\n",
] * 4
PROBES = [
    "The capital of France is Paris.", " a blank before", "  two blanks", "", " ", "tab\tand\nlines\n\n",
    "苹果是蓝色的?", "na\u00efve \U0001f600", "trailing  ", "</s> is not a token here", "\u2581odd", "1999 42",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# The first words stand before any special token.
BARE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
turn = lambda role, content: {"role": role, "content": content}
CONVERSATIONS = [
    [turn("user", "What is this?")],
    [turn("user", "hello"), turn("assistant", "It is 42."), turn("user", " the capital? ")],
    [turn("user", "苹果?"), turn("assistant", "红色的。")],
]

learnt = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_writer=learnt, model_type="bpe", vocab_size=400,
    byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
    remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2)
sp = sentencepiece.SentencePieceProcessor(model_proto=learnt.getvalue())
size = sp.get_piece_size()
tokens = [sp.id_to_piece(i) for i in range(size)]
kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(size)]

out = gguf.GGUFWriter(str(HERE / "pieces.gguf"), "llama")
out.add_tokenizer_model("llama")
out.add_tokenizer_pre("default")
out.add_token_list(tokens)
out.add_token_scores([sp.get_score(i) for i in range(size)])
out.add_token_types(kinds)
out.add_bos_token_id(1)
out.add_eos_token_id(2)
out.add_unk_token_id(0)
out.write_header_to_file()
out.write_kv_data_to_file()
out.close()

vocab = {token: i for i, token in enumerate(tokens)}
plain = {token for token, kind in zip(tokens, kinds) if kind == 1}
merges = sorted(
    (-sp.get_score(vocab[whole]), vocab[whole[:at]], vocab[whole[at:]], (whole[:at], whole[at:]))
    for whole in plain for at in range(1, len(whole)) if whole[:at] in plain and whole[at:] in plain)


def tokeniser(kind):
    """`each`: a blank before every text; `first`: before the first alone; `never`: before none."""
    t = Tokenizer(models.BPE(vocab, [m[3] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "each":
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme=kind, split=False)
    if kind != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    t.decoder = decoders.Sequence(steps)
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in tokens[:3]])
    return t


kinds_of = {}
for kind in ["each", "first", "never"]:
    t = tokeniser(kind)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(t.to_str()), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False)
    chats = []
    for template in [TEMPLATE, BARE]:
        fast.chat_template = template
        for messages in CONVERSATIONS:
            ids = list(fast.apply_chat_template(messages, tokenize=True, return_dict=False))
            chats.append(dict(template=template, messages=messages, ids=ids))
    # No text becomes a special token in Danlu; transformers is asked for the same.
    t.encode_special_tokens = True
    texts = []
    for text in PROBES:
        ids = t.encode(text, add_special_tokens=False).ids
        texts.append(dict(text=text, ids=ids, back=t.decode(ids)))
    kinds_of[kind] = dict(tokenizer=json.loads(t.to_str()), texts=texts, chats=chats)
pieces = [dict(text=text, ids=sp.encode(text)) for text in PROBES]
(HERE / "pieces.json").write_text(
    json.dumps(dict(kinds=kinds_of, sentencepiece=pieces), ensure_ascii=False, indent=0) + "\n")
for case, other in zip(pieces, kinds_of["each"]["texts"]):
    if case["ids"] != other["ids"]:
        print("sentencepiece and tokenizers part on", case, other)
