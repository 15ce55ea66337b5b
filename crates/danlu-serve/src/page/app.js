// The page: a client of this server's API. Text from anywhere is set as text, never as markup.
"use strict";

const WORDS = {
  en: {
    skip: "Skip to the message", model: "Model", against: "Against", to: "Reply in", to_text: "text",
    to_image: "pictures", to_audio: "sound", to_any: "anything", compare: "Compare", clear: "New chat",
    settings: "Settings", theme: "Light or dark", temperature: "Temperature", seed: "Seed",
    most: "Most tokens", alone: "Ask each question by itself", probabilities: "Probabilities on hover or focus",
    key: "Key", system: "System message", hello: "Text, pictures and sound, in and out",
    hint: "Write, drop a picture or a sound anywhere, draw, or record. Then choose what to be answered in.",
    file: "Attach a file", draw: "Draw a picture", record: "Record sound", message: "Message",
    send: "Send", stop: "Stop", colour: "Colour", size: "Size", wipe: "Wipe", cancel: "Cancel",
    attach: "Attach", drop: "Drop pictures and sounds here", area: "Drawing area",
    conversation: "Conversation", you: "You", picture: "Picture", sound: "Sound", remove: "Remove",
    heard: "it hears", nothing: "no reply", done: "Reply complete", failed: "The reply failed",
    no_mic: "The microphone is not available", too_big: "This file is too large",
    bad_file: "This is neither a picture nor a sound", recording: "Recording", stopped: "stopped",
    tokens: "tokens", per_second: "tokens/s", first: "first after", adapter: "adapter of",
    status: "The server answered with status", broken: "the reply broke off", cut: "cut at the most tokens",
    examples: [["text", "What is this?"], ["image", "Draw a red apple"], ["audio", "Say “hello”"], ["image", "Draw dolphin"]],
  },
  zh: {
    skip: "跳到消息框", model: "模型", against: "对比", to: "回复形式", to_text: "文字",
    to_image: "图片", to_audio: "声音", to_any: "不限", compare: "对比", clear: "新对话",
    settings: "设置", theme: "浅色或深色", temperature: "温度", seed: "随机种子",
    most: "最多词元", alone: "每个问题单独提问", probabilities: "悬停或聚焦时显示概率",
    key: "密钥", system: "系统消息", hello: "文字、图片和声音，都能读，也都能写",
    hint: "写字、拖入图片或声音、画一张图，或录一段音。再选择想要的回复形式。",
    file: "添加文件", draw: "画一张图", record: "录音", message: "消息",
    send: "发送", stop: "停止", colour: "颜色", size: "粗细", wipe: "清除", cancel: "取消",
    attach: "添加", drop: "把图片和声音拖到这里", area: "画布",
    conversation: "对话", you: "你", picture: "图片", sound: "声音", remove: "移除",
    heard: "听起来是", nothing: "没有回复", done: "回复完毕", failed: "回复失败",
    no_mic: "无法使用麦克风", too_big: "文件太大", bad_file: "这既不是图片也不是声音",
    recording: "正在录音", stopped: "已停止", tokens: "词元", per_second: "词元/秒",
    first: "首个用时", adapter: "适配器，基于",
    status: "服务器返回状态", broken: "回复中断了", cut: "已到最多词元，回复被截断",
    examples: [["text", "这是什么？"], ["image", "画红苹果"], ["audio", "读“你好”"], ["image", "画海豚"]],
  },
};

const $ = (id) => document.getElementById(id);
const saved = (name, usual) => localStorage.getItem("danlu." + name) ?? usual;
const save = (name, value) => localStorage.setItem("danlu." + name, value);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

let language = saved("language", navigator.language.startsWith("zh") ? "zh" : "en");
let models = [];
// What was said, by the place of who replied.
let history = [[], []];
let attached = [];
let running = null;
const t = (key) => WORDS[language][key];

// --- words and looks ---------------------------------------------------------------------------

function translate() {
  document.documentElement.lang = language;
  document.querySelectorAll("[data-t]").forEach((e) => { e.textContent = t(e.dataset.t); });
  document.querySelectorAll("[data-a]").forEach((e) => {
    e.setAttribute("aria-label", t(e.dataset.a));
    if (e.title) e.title = t(e.dataset.a);
  });
  document.querySelectorAll("[data-p]").forEach((e) => { e.placeholder = t(e.dataset.p); });
  $("language").textContent = language === "en" ? "中文" : "English";
  $("language").lang = language === "en" ? "zh" : "en";
  const box = $("examples");
  box.replaceChildren(...t("examples").map(([to, text]) => {
    const button = make("button", "", text);
    button.type = "button";
    button.onclick = () => {
      const kind = [...$("to").options].find((option) => option.value === to);
      if (!kind.disabled) $("to").value = to;
      $("text").value = text;
      $("text").focus();
    };
    return button;
  }));
}

function look(theme) {
  document.documentElement.classList.remove("light", "dark");
  if (theme) document.documentElement.classList.add(theme);
}

// What is told is heard by who listens and, unless it is to be seen anyway, seen for a while.
let fading;
function tell(text, seen = true) {
  $("status").textContent = text;
  if (!seen) return;
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { $("toast").hidden = true; }, 6000);
}

function panel(open) {
  $("panel").hidden = !open;
  $("settings").setAttribute("aria-expanded", String(open));
}

// An error of the server, or of a proxy before it, which has words of its own; one about the key shows
// where it goes.
async function refused(response) {
  const { status } = response;
  if (status === 401) {
    panel(true);
    $("key").focus();
  }
  const body = await response.json().catch(() => null);
  return Object.assign(new Error(body?.error?.message ?? t("status") + " " + status), { status });
}

// --- models ------------------------------------------------------------------------------------

function headers() {
  const key = $("key").value;
  return key ? { "content-type": "application/json", authorization: "Bearer " + key }
    : { "content-type": "application/json" };
}

let again;
async function load() {
  clearTimeout(again);
  try {
    const response = await fetch("v1/models", { headers: headers() });
    const body = response.ok ? await response.json().catch(() => null) : null;
    if (!body?.data) throw await refused(response);
    models = body.data;
    for (const id of ["model", "model2"]) {
      const before = $(id).value;
      $(id).replaceChildren(...models.map((m) => {
        const name = m.parent ? m.id + " (" + t("adapter") + " " + m.parent + ")" : m.id;
        const option = make("option", "", name);
        option.value = m.id;
        return option;
      }));
      if (models.some((m) => m.id === before)) $(id).value = before;
    }
    if (models.length > 1 && !$("model2").dataset.chosen) $("model2").selectedIndex = 1;
    offer();
  } catch (error) {
    tell(String(error.message));
    clearTimeout(again);
    // Another key is waited for, everything else may pass.
    if (error.status !== 401) again = setTimeout(load, 2000);
  }
}

// Kinds of reply that the chosen model does not know are not offered.
function offer() {
  const chosen = models.find((m) => m.id === $("model").value);
  if (!chosen) return;
  const can = new Set(chosen.modalities);
  for (const option of $("to").options) {
    option.disabled = option.value === "any" ? can.size < 3 : !can.has(option.value);
  }
  if ($("to").selectedOptions[0]?.disabled) $("to").value = "text";
  // Models of pictures and sounds are taught on single questions, those of text alone on conversations.
  if (!$("alone").dataset.chosen) $("alone").checked = can.size > 1;
}

// --- attachments -------------------------------------------------------------------------------

const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

async function attach(blob) {
  const kind = blob.type.split("/")[0];
  if (kind !== "image" && kind !== "audio") return tell(t("bad_file"));
  if (blob.size > 20e6) return tell(t("too_big"));
  // Sound goes as WAV, whatever the browser records or is given.
  const url = await dataUrl(kind === "audio" ? await toWav(blob) : blob);
  attached.push({ kind, url });
  showAttached();
  $("text").focus();
}

function medium({ kind, url }) {
  const element = make(kind === "image" ? "img" : "audio");
  if (kind === "image") element.alt = t("picture");
  else { element.controls = true; element.setAttribute("aria-label", t("sound")); }
  element.src = url;
  return element;
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((one, i) => {
    const chip = make("div", "chip");
    const button = make("button", "", "×");
    button.type = "button";
    button.setAttribute("aria-label", t("remove"));
    button.onclick = () => { attached.splice(i, 1); showAttached(); };
    chip.append(medium(one), button);
    return chip;
  }));
}

async function toWav(blob) {
  const context = new OfflineAudioContext(1, 16000, 16000);
  let sound;
  try {
    sound = await context.decodeAudioData(await blob.arrayBuffer());
  } catch {
    return blob;
  }
  const length = Math.max(1, Math.ceil(sound.duration * 16000));
  const mixer = new OfflineAudioContext(1, length, 16000);
  const source = mixer.createBufferSource();
  source.buffer = sound;
  source.connect(mixer.destination);
  source.start();
  const samples = (await mixer.startRendering()).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, 16000, true); view.setUint32(28, 32000, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((s, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, s)) * 32767, true));
  return new Blob([view.buffer], { type: "audio/wav" });
}

let recorder = null;
async function record() {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    return tell(t("no_mic"));
  }
  const pieces = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    const kind = recorder.mimeType || "audio/webm";
    recorder = null;
    $("record").setAttribute("aria-pressed", "false");
    attach(new Blob(pieces, { type: kind.replace("video/", "audio/") }));
  };
  recorder.start();
  $("record").setAttribute("aria-pressed", "true");
  tell(t("recording"));
}

// --- drawing -----------------------------------------------------------------------------------

const brush = $("canvas").getContext("2d");
let point = null;
function wipe() { brush.fillStyle = "#fff"; brush.fillRect(0, 0, 384, 384); }
function at(event) {
  const box = $("canvas").getBoundingClientRect();
  const scale = 384 / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}
function stroke(event) {
  if (!point) return;
  const next = at(event);
  brush.strokeStyle = $("colour").value;
  brush.lineWidth = $("size").value;
  brush.lineCap = "round";
  brush.beginPath();
  brush.moveTo(...point);
  brush.lineTo(...next);
  brush.stroke();
  point = next;
}
$("canvas").onpointerdown = (event) => {
  $("canvas").setPointerCapture(event.pointerId);
  point = at(event);
  stroke(event);
};
$("canvas").onpointermove = stroke;
$("canvas").onpointerup = $("canvas").onpointercancel = () => { point = null; };
$("canvas-clear").onclick = wipe;
$("canvas-cancel").onclick = () => $("canvas-dialog").close();
$("canvas-ok").onclick = () => $("canvas").toBlob((blob) => {
  $("canvas-dialog").close();
  attach(blob);
}, "image/png");
$("draw").onclick = () => { wipe(); $("canvas-dialog").showModal(); };

// --- asking ------------------------------------------------------------------------------------

const MODALITIES = {
  text: ["text"], image: ["image"], audio: ["text", "audio"], any: ["text", "image", "audio"],
};

function request(model, messages) {
  const body = {
    model, messages, modalities: MODALITIES[$("to").value], stream: true,
    stream_options: { include_usage: true },
  };
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  body.temperature = number("temperature");
  body.seed = number("seed");
  body.max_completion_tokens = number("most");
  if (body.modalities.includes("audio")) body.audio = { voice: "default", format: "wav" };
  if ($("probabilities").checked) { body.logprobs = true; body.top_logprobs = 5; }
  return body;
}

function userTurn(text, media) {
  const parts = media.map(({ kind, url }) => kind === "image"
    ? { type: "image_url", image_url: { url } }
    : { type: "input_audio", input_audio: { data: url.split(",")[1], format: "wav" } });
  if (text) parts.push({ type: "text", text });
  return { role: "user", content: parts };
}

function show(element) {
  const log = $("log");
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 200;
  if (element) log.append(element);
  if (near || element) log.scrollTop = log.scrollHeight;
}

function showUser(text, media) {
  $("empty").hidden = true;
  const turn = make("article", "turn user");
  turn.setAttribute("aria-label", t("you"));
  const said = make("div", "said");
  said.append(...media.map(medium));
  if (text) said.append(make("div", "body", text));
  turn.append(said);
  show(turn);
}

function card(model) {
  const box = make("article", "reply");
  box.setAttribute("aria-label", model);
  const body = make("div", "body waiting");
  const said = make("div", "said");
  said.append(body);
  const facts = make("p", "facts");
  box.append(make("p", "who", model), said, facts);
  return { box, said, body, facts };
}

const percent = (logprob) => (100 * Math.exp(logprob)).toFixed(1) + " %";

// Tokens with their probabilities: under them a line if the model was not sure.
function tokens(body, text, list) {
  const joined = list.map((one) => one.token).join("");
  if (!list.length || joined !== text) return body.append(text);
  for (const one of list) {
    const p = Math.exp(one.logprob);
    const span = make("span", "token" + (p < 0.4 ? " p2" : p < 0.8 ? " p1" : ""), one.token);
    span.tip = one.top_logprobs.map((o) =>
      (o.token === one.token ? "▸ " : "  ") + percent(o.logprob).padStart(7) + "  " + JSON.stringify(o.token)).join("\n")
      || percent(one.logprob);
    // One stop of the tab key a reply; within it the arrows lead on.
    span.tabIndex = body.querySelector(".token") ? -1 : 0;
    body.append(span);
  }
}

function walk(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const body = event.target.tip && step ? event.target.closest(".body") : null;
  if (!body) return;
  const all = [...body.querySelectorAll(".token")];
  const next = all[all.indexOf(event.target) + step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function reply(model, messages, ui, signal) {
  const start = performance.now();
  let first = null, count = 0, text = "", usage = null, reason = null;
  const said = { role: "assistant", content: "" };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request(model, messages)), signal,
    });
    if (!response.ok) throw await refused(response);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const { content, images, audio } = choice.delta;
      if (content || images || audio) first ??= performance.now();
      if (content) {
        count += 1;
        text += content;
        tokens(ui.body, content, choice.logprobs?.content ?? []);
      }
      for (const image of images ?? []) {
        ui.said.append(medium({ kind: "image", url: image.image_url.url }));
      }
      if (audio) {
        ui.said.append(medium({ kind: "audio", url: "data:audio/wav;base64," + audio.data }));
        ui.said.append(make("p", "heard", t("heard") + ": " + (audio.transcript || "–")));
        text ||= audio.transcript;
      }
      show();
    }
    // Without its end it is not whole, however the connection ended.
    if (!reason) throw new Error(t("broken"));
    tell((reason === "length" ? t("cut") : t("done")) + ": " + text, false);
  } catch (error) {
    const stopped = error.name === "AbortError";
    ui.body.append(make("span", stopped ? "facts" : "failed", stopped ? t("stopped") : error.message));
    if (!stopped) tell(t("failed") + ": " + error.message, false);
    // A question that was refused would be refused with every one after it.
    if (first === null) said.content = null;
  }
  ui.body.classList.remove("waiting");
  if (!ui.body.childNodes.length) {
    if (ui.said.childNodes.length > 1) ui.body.remove();
    else ui.body.append(t("nothing"));
  }
  const seconds = (performance.now() - start) / 1000;
  const made = usage?.completion_tokens ?? count;
  const facts = [];
  if (made) facts.push(made + " " + t("tokens"), (made / seconds).toFixed(1) + " " + t("per_second"));
  if (made && first) facts.push(t("first") + " " + ((first - start) / 1000).toFixed(2) + " s");
  if (reason === "length") facts.push(t("cut"));
  ui.facts.textContent = facts.join(" · ");
  // What was said before it was stopped was said.
  if (said.content !== null) said.content = text;
  return said;
}

async function ask(event) {
  event?.preventDefault();
  const text = $("text").value.trim();
  if (running || (!text && !attached.length)) return;
  const media = attached;
  attached = [];
  showAttached();
  $("text").value = "";
  grow();
  showUser(text, media);
  const turn = userTurn(text, media);
  // A new chat may be begun while this one is answered.
  const chats = history;
  const system = $("system").value ? [{ role: "system", content: $("system").value }] : [];
  // Each goes on from what it said itself.
  const messages = chats.map((chat) => [...system, ...($("alone").checked ? [] : chat), turn]);
  const two = $("compare").getAttribute("aria-pressed") === "true";
  const chosen = two ? [$("model").value, $("model2").value] : [$("model").value];
  const row = make("div", "turn replies" + (two ? " two" : ""));
  const cards = chosen.map(card);
  row.append(...cards.map((c) => c.box));
  show(row);
  running = new AbortController();
  // Read out when it is whole, and not word by word.
  $("log").setAttribute("aria-busy", "true");
  swap("send", "stop");
  const { signal } = running;
  const replies = await Promise.all(chosen.map((m, i) => reply(m, messages[i], cards[i], signal)));
  running = null;
  $("log").setAttribute("aria-busy", "false");
  swap("stop", "send");
  replies.forEach((said, i) => { if (said.content !== null) chats[i].push(turn, said); });
  if (chats === history && replies.every((said) => said.content === null)) takeBack(text, media);
}

// Shows one button in the place of another; the focus does not go with it.
function swap(from, to) {
  const lost = [$(from), document.body, null].includes(document.activeElement);
  $(from).hidden = true;
  $(to).hidden = false;
  if (lost) $("text").focus();
}

// A question that nobody answered may be asked again, unless another is being written.
function takeBack(text, media) {
  if ($("text").value || attached.length) return;
  $("text").value = text;
  attached = media;
  showAttached();
  grow();
}

function grow() {
  const box = $("text");
  box.style.height = "auto";
  box.style.height = Math.min(box.scrollHeight + 2, 160) + "px";
}

// --- probabilities -----------------------------------------------------------------------------

function tip(event) {
  const text = event.target.tip;
  $("tip").hidden = !text;
  if (!text) return;
  $("tip").textContent = text;
  if (event.type === "focusin") {
    event.target.setAttribute("role", "note");
    event.target.setAttribute("aria-describedby", "tip");
  }
  const box = event.target.getBoundingClientRect();
  const width = $("tip").offsetWidth;
  $("tip").style.left = Math.max(4, Math.min(box.left, innerWidth - width - 4)) + "px";
  $("tip").style.top = Math.max(4, box.top - $("tip").offsetHeight - 6) + "px";
}

// --- what is pressed ---------------------------------------------------------------------------

$("ask").onsubmit = ask;
$("stop").onclick = () => running?.abort();
$("text").oninput = grow;
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
};
$("log").onmouseover = tip;
$("log").onmouseleave = () => { $("tip").hidden = true; };
$("log").addEventListener("focusin", tip);
$("log").addEventListener("focusout", (event) => {
  $("tip").hidden = true;
  if (event.target.tip) ["role", "aria-describedby"].forEach((name) => event.target.removeAttribute(name));
});
$("log").onkeydown = walk;
$("file").onclick = () => $("picker").click();
$("picker").onchange = () => { [...$("picker").files].forEach(attach); $("picker").value = ""; };
$("record").onclick = record;
$("model").onchange = offer;
$("alone").onchange = () => { $("alone").dataset.chosen = "1"; };
$("model2").onchange = () => { $("model2").dataset.chosen = "1"; };
$("clear").onclick = () => {
  running?.abort();
  $("tip").hidden = true;
  history = [[], []];
  $("log").replaceChildren($("empty"));
  $("empty").hidden = false;
  $("text").focus();
};
$("compare").onclick = () => {
  const on = $("compare").getAttribute("aria-pressed") !== "true";
  $("compare").setAttribute("aria-pressed", String(on));
  document.querySelector(".second").hidden = !on;
};
$("settings").onclick = () => {
  panel($("panel").hidden);
};
$("language").onclick = () => {
  language = language === "en" ? "zh" : "en";
  save("language", language);
  translate();
  load();
};
$("theme").onclick = () => {
  const dark = document.documentElement.classList.contains("dark")
    || (!document.documentElement.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
  look(dark ? "light" : "dark");
  save("theme", dark ? "light" : "dark");
};
$("key").onchange = load;
addEventListener("keydown", (event) => {
  // In the drawing it closes the drawing.
  if (event.key === "Escape" && !$("canvas-dialog").open) running?.abort();
});
let inside = 0;
addEventListener("dragenter", (event) => { event.preventDefault(); inside += 1; $("drop").hidden = false; });
addEventListener("dragleave", () => { inside -= 1; if (inside <= 0) $("drop").hidden = true; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  [...event.dataTransfer.files].forEach(attach);
});
addEventListener("paste", (event) => [...event.clipboardData.files].forEach(attach));

look(saved("theme", ""));
translate();
load();
