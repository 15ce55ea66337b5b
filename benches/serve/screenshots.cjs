// Takes the pictures of the page, and checks what they do not show: a Chromium that is driven over
// its debugging port, a running server with the reference model, PNG files out. Usage:
// node --experimental-websocket screenshots.cjs URL FOLDER [CHROMIUM]
"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");

const [url, folder, chromium = "chromium"] = process.argv.slice(2);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Page {
  constructor(socket) {
    this.socket = socket;
    this.next = 1;
    this.waiting = new Map();
    this.problems = [];
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.id) {
        const { resolve, reject } = this.waiting.get(message.id);
        this.waiting.delete(message.id);
        if (message.error) reject(new Error(message.error.message));
        else resolve(message.result);
      } else if (message.method === "Runtime.exceptionThrown") {
        this.problems.push(message.params.exceptionDetails.exception?.description);
      } else if (message.method === "Log.entryAdded" && message.params.entry.level === "error") {
        this.problems.push(message.params.entry.text + " " + (message.params.entry.url ?? ""));
      } else if (message.method === "Network.requestWillBeSent") {
        const to = message.params.request.url;
        if (!to.startsWith(url) && !/^(data|blob):/.test(to)) this.problems.push("asked " + to);
      }
    };
  }

  send(method, params = {}) {
    const id = this.next++;
    this.socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  async run(script) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression: "(async () => {" + script + "})()", awaitPromise: true, returnByValue: true,
    });
    if (exceptionDetails) throw new Error(exceptionDetails.exception.description);
    return result.value;
  }

  async size(width, height, mobile = false) {
    await this.send("Emulation.setDeviceMetricsOverride", {
      width, height, deviceScaleFactor: mobile ? 2 : 1, mobile,
    });
  }

  async open(scheme) {
    await this.send("Emulation.setEmulatedMedia", {
      features: [{ name: "prefers-color-scheme", value: scheme }],
    });
    await this.send("Page.navigate", { url });
    await this.until("document.readyState === 'complete' && document.querySelectorAll('#model option').length > 0");
  }

  async until(condition, most = 60000) {
    for (let passed = 0; passed < most; passed += 100) {
      if (await this.run("return Boolean(" + condition + ")")) return;
      await wait(100);
    }
    throw new Error("never: " + condition);
  }

  async ask(text, to) {
    await this.run(`
      document.getElementById("to").value = ${JSON.stringify(to)};
      document.getElementById("text").value = ${JSON.stringify(text)};
      document.getElementById("ask").requestSubmit();`);
    await wait(150);
    await this.until("document.getElementById('stop').hidden");
    await wait(250);
  }

  // Hands the picture or sound of the last reply back as an attachment.
  async attachLast(tag, kind) {
    await this.run(`
      const all = document.querySelectorAll(".replies .said ${tag}");
      attached.push({ kind: "${kind}", url: all[all.length - 1].src });
      showAttached();`);
  }

  async press(key) {
    const windowsVirtualKeyCode = { Escape: 27, ArrowRight: 39 }[key];
    for (const type of ["rawKeyDown", "keyUp"]) {
      await this.send("Input.dispatchKeyEvent", { type, key, code: key, windowsVirtualKeyCode });
    }
  }

  async holds(what, condition) {
    if (!await this.run("return Boolean(" + condition + ")")) this.problems.push("not so: " + what);
  }

  async shoot(name) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    const bytes = Buffer.from(data, "base64");
    writeFileSync(join(folder, name), bytes);
    console.log(name, Math.round(bytes.length / 1000) + " kB");
  }
}

async function checks(page) {
  await page.size(1100, 760);
  await page.open("light");
  // A reply that ends when it is told to, so that something can be done meanwhile.
  await page.run(`
    window.asked = fetch;
    window.fetch = async (path, options) => {
      if (!path.endsWith("completions")) return asked(path, options);
      return new Response(new ReadableStream({ start(stream) {
        window.say = (choice) => stream.enqueue(new TextEncoder().encode(
          "data: " + JSON.stringify({ choices: [{ delta: {}, ...choice }] }) + "\\n\\n"));
        window.end = () => stream.close();
        options.signal.onabort = () => stream.error(options.signal.reason);
      } }));
    };
    const logprobs = { content: ["a", "b"].map((token) => ({ token, logprob: -1, top_logprobs: [] })) };
    window.spoken = { delta: { content: "ab" }, logprobs };
    window.begin = (text) => {
      document.getElementById("text").value = text;
      document.getElementById("ask").requestSubmit();
    };
    begin("one");`);
  await page.until("window.say");
  await page.run("say(spoken)");
  await page.until("document.querySelectorAll('.token').length === 2");
  await page.holds("a reply is not read out by pieces", "document.getElementById('log').ariaBusy === 'true'");
  await page.run("document.getElementById('draw').click()");
  await page.press("Escape");
  await page.until("!document.getElementById('canvas-dialog').open");
  await page.holds("Escape in the drawing leaves the reply alone", "running && !running.signal.aborted");
  await page.run("document.querySelector('.token').focus()");
  await page.holds("the focus shows probabilities", "!document.getElementById('tip').hidden");
  await page.press("ArrowRight");
  await page.holds("the arrows lead on", "document.activeElement === document.querySelectorAll('.token')[1]");
  await page.holds("and show the next", "!document.getElementById('tip').hidden");
  await page.press("Escape");
  await page.until("document.getElementById('stop').hidden");
  await page.holds("what was said before the stop is kept", "history.length === 2 && history[1].content === 'ab'");
  await page.run("window.say = null; begin('two')");
  await page.until("window.say");
  await page.run("document.getElementById('clear').click()");
  await page.until("document.getElementById('stop').hidden");
  await page.holds("a new chat has nothing of the one before", "history.length === 0");
  await page.run("attach(new Blob(['x'], { type: 'text/plain' }))");
  await page.holds("what is told is seen", "!document.getElementById('toast').hidden && document.getElementById('toast').textContent");
  await page.run(`
    window.tries = 0;
    window.status = "503";
    window.fetch = async () => {
      tries += 1;
      return new Response('{"error":{"message":"no"}}', { status: Number(window.status) });
    };
    load(); load(); load();`);
  await wait(3000);
  await page.holds("it tries again by one clock", "tries === 4");
  await page.run("window.status = '401'; load();");
  await page.until("!document.getElementById('panel').hidden");
  await page.holds("the key is asked for", "document.activeElement.id === 'key'");
}

async function main() {
  while ((await fetch(new URL("ready", url))).status !== 200) await wait(200);
  const profile = mkdtempSync(join(tmpdir(), "danlu-page-"));
  const browser = spawn(chromium, [
    "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--lang=en-US",
    "--user-data-dir=" + profile, "about:blank",
  ], { stdio: ["ignore", "ignore", "pipe"] });
  try {
    const port = await new Promise((resolve) => {
      let text = "";
      browser.stderr.on("data", (data) => {
        text += data;
        const found = text.match(/ws:\/\/127\.0\.0\.1:(\d+)/);
        if (found) resolve(found[1]);
      });
    });
    const [target] = (await (await fetch(`http://127.0.0.1:${port}/json/list`)).json())
      .filter((one) => one.type === "page");
    const socket = new WebSocket(target.webSocketDebuggerUrl);
    await new Promise((resolve) => { socket.onopen = resolve; });
    const page = new Page(socket);
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await page.send(domain + ".enable");

    await page.size(1100, 760);
    await page.open("light");
    await page.ask("Draw a red apple", "image");
    await page.attachLast("img", "image");
    await page.ask("What is this?", "text");
    await page.run(`
      const token = document.querySelector(".token");
      token?.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));`);
    await page.shoot("page-chat.png");

    await page.open("light");
    await page.ask("Draw cat face", "image");
    await page.ask("Draw dolphin", "image");
    await page.run("document.getElementById('draw').click()");
    await page.run(`
      const c = document.getElementById("canvas").getContext("2d");
      c.strokeStyle = "#c0392b"; c.fillStyle = "#c0392b"; c.lineWidth = 10;
      c.beginPath(); c.arc(192, 210, 110, 0, 7); c.fill();
      c.strokeStyle = "#5a3a1a"; c.beginPath(); c.moveTo(192, 110); c.quadraticCurveTo(195, 70, 225, 50); c.stroke();`);
    await page.shoot("page-image.png");
    await page.run("document.getElementById('canvas-ok').click()");
    await page.until("document.querySelectorAll('#attached .chip').length === 1");
    await page.ask("What is this?", "text");

    await page.open("dark");
    await page.ask("Say “red apple”", "audio");
    await page.attachLast("audio", "audio");
    await page.until("document.querySelectorAll('#attached .chip').length === 1");
    await page.ask("Draw what you hear", "image");
    await page.shoot("page-audio.png");

    await page.open("light");
    await page.run(`
      document.getElementById("compare").click();
      const second = document.getElementById("model2");
      second.selectedIndex = Math.min(1, second.options.length - 1);`);
    await page.ask("Draw pizza", "image");
    await page.shoot("page-compare.png");

    await page.size(390, 780, true);
    await page.open("dark");
    await page.run("document.getElementById('language').click()");
    await page.ask("画红苹果", "image");
    await page.shoot("page-phone.png");
    const wide = await page.run("return document.documentElement.scrollWidth > innerWidth");
    if (wide) page.problems.push("the page is wider than a phone");
    await checks(page);
    if (page.problems.length) throw new Error(page.problems.join("\n"));
  } finally {
    browser.kill();
  }
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
